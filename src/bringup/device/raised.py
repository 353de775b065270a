"""Errors of Python on their way through the core: kept here under a number, and raised in the user's thread."""

from __future__ import annotations

import itertools
import sys
import traceback
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from bringup.errors import BringupError


@dataclass
class _Kept:
    error: BaseException
    text: str | None  # the only argument of the error, if it prints as that
    notes: list[str]
    trace: TracebackType | None


_errors: dict[int, _Kept] = {}
_numbers = itertools.count(1)
_library: Any = torch.library.Library("bringup", "FRAGMENT")  # type: ignore[no-untyped-call]


def keep(error: BaseException) -> int:
    """Keep an error until the core drops it, and return its number.

    Its frames lose their variables, which may hold memory of the chip that is mapped only during a launch.
    """
    for dropped in torch.ops.bringup.dropped_errors():
        _errors.pop(dropped, None)
    link: BaseException | None = error
    cleared: set[int] = set()  # a chain may be circular
    while (
        link is not None and link is not sys.exc_info()[1] and id(link) not in cleared
    ):  # the thread's own is not ours
        traceback.clear_frames(link.__traceback__)
        cleared.add(id(link))
        link = link.__cause__ or link.__context__
    text = str(error) if error.args == (str(error),) else None
    number = next(_numbers)
    trace = None if isinstance(error, BringupError) else error.__traceback__  # a mistake needs none of our frames
    _errors[number] = _Kept(error, text, list(getattr(error, "__notes__", [])), trace)
    return number


def _raise(number: int, context: str) -> None:
    """Raise an error in the user's thread, with the launch and the other failures in its text. Called by the core."""
    entry = _errors[number]
    if entry.text is not None:
        entry.error.args = (entry.text + context,)
    elif context:
        entry.error.__notes__ = [*entry.notes, context.strip()]
        if sys.version_info < (3, 11):  # which prints no notes
            print(f"bringup: {type(entry.error).__name__}: {context.strip()}", file=sys.stderr)
    raise entry.error.with_traceback(entry.trace)


_library.impl("raise_error", _raise, "CompositeExplicitAutograd")
