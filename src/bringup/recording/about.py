"""What other parts of bringup add to the description of a trace, `Trace.about`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bringup.paths import Places

Describe = Callable[["Places"], dict[str, Any]]

_begin: list[Callable[[], Describe]] = []


def register(begin: Callable[[], Describe]) -> None:
    """Add a function to call when a recording begins. What it returns is called for the entries of each trace taken."""
    _begin.append(begin)


def begin_recording() -> list[Describe]:
    """Call what is registered: a recording begins."""
    return [begin() for begin in _begin]
