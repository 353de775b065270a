"""A finding is a mistake at a line of the program. A watch looks for findings while the program runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A mistake at a line of the program.

    Attributes:
        check: the name of the check, a key of `sanitize.CHECKS`.
        what: the mistake, in one sentence that names the lines.
        line: ``train.py:12``; "" if it is unknown.
        other: a second line, such as the other access of a race or the allocation; "" if there is none.
        advice: the remedy.
    """

    check: str
    what: str
    line: str
    other: str
    advice: str

    def __str__(self) -> str:
        """Return the check, the mistake and the remedy."""
        return f"{self.check}: {self.what}: {self.advice}"


def early_use(line: str, copy: str, *, to_host: bool) -> Finding:
    """Return the finding that a line uses page-locked memory while an asynchronous copy may still run."""
    verb, way = ("uses", "from") if to_host else ("changes", "to")
    what = f"{line or 'the program'} {verb} page-locked memory that {copy} copies {way} the chip"
    advice = "first synchronize an event that is recorded after the copy"
    return Finding("race", f"{what}, before it has waited for the copy", line, copy, advice)


@dataclass(frozen=True)
class Watch:
    """A check of the running program, added to `watches` by another part of bringup.

    Attributes:
        watched: returns a context manager that watches the program inside its block; blocks may be nested.
        take: returns the findings since its last call.
    """

    watched: Callable[[], AbstractContextManager[None]]
    take: Callable[[], list[Finding]]


watches: list[Watch] = []
