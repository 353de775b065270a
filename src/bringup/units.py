"""Reads the times, sizes and changes that people write in options and marks: ``20ms``, ``14GiB``, ``+5%``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bringup.errors import BringupError

TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
SIZES = {
    **{"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
    **{"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
}
_NUMBER = re.compile(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*([a-zA-Z%]*)\s*", re.ASCII)
MOST = 1e18  # an exabyte, or thirty thousand million years; beyond it a number is a mistake


@dataclass(frozen=True)
class Change:
    """A permitted increase: a share of the earlier value, or an amount in seconds or bytes.

    Attributes:
        value: 0.05 for ``5%``; else seconds or bytes.
        relative: True for a share.
        text: as the user wrote it.
    """

    value: float
    relative: bool
    text: str

    def exceeded(self, before: float, after: float) -> bool:
        """Return True if a value grew by more than this."""
        return after - before > (self.value * before if self.relative else self.value)


def parse_time(text: str) -> float:
    """Read a time such as ``20ms`` or ``1.5 s`` as seconds.

    Raises:
        BringupError: it is no number with a unit of time.
    """
    return _parse(text, TIMES, "a time", "20ms")


def parse_size(text: str) -> int:
    """Read a size such as ``14GiB`` or ``100 MB`` as bytes. Capital letters do not matter.

    Raises:
        BringupError: it is no number with a unit of size.
    """
    return int(_parse(text, SIZES, "a size", "14GiB"))


def parse_time_change(text: str) -> Change:
    """Read a permitted increase of a time: ``5%`` or ``+2ms``; the plus sign may be left out.

    Raises:
        BringupError: it is neither.
    """
    return _change(text, TIMES, "5% or +2ms")


def parse_size_change(text: str) -> Change:
    """Read a permitted increase of memory: ``5%`` or ``+100MiB``; the plus sign may be left out.

    Raises:
        BringupError: it is neither.
    """
    return _change(text, SIZES, "5% or +100MiB")


def _change(text: str, units: Mapping[str, float], example: str) -> Change:
    unsigned = text.strip().removeprefix("+")
    value = _parse(unsigned, {**units, "%": 0.01}, "a change", example, shown=text)
    return Change(value, unsigned.rstrip().endswith("%"), text.strip())


def _parse(text: str, units: Mapping[str, float], what: str, example: str, *, shown: str | None = None) -> float:
    shown = text if shown is None else shown
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise BringupError(f"{shown!r} is not {what}: write a number with its unit, such as {example}")
    number, unit = float(match[1]), match[2]
    factors = {name.lower(): factor for name, factor in units.items()}
    if unit.lower() not in factors:
        problem = f"{unit!r} is not a unit of it" if unit else "it has no unit"
        raise BringupError(f"{shown!r} is not {what}, because {problem}: use {', '.join(units)}, such as {example}")
    value = number * factors[unit.lower()]
    if value > MOST:
        raise BringupError(f"{shown!r} is too large for {what}: write a smaller one, such as {example}")
    return value
