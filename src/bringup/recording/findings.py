"""A finding: something wrong at a line. And the watches, which look for findings while the program runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something wrong at a line.

    Attributes:
        check: the name of the check, a key of `sanitize.CHECKS`.
        what: what happened, in one sentence that names the lines.
        line: ``train.py:12``; "" if it is not known.
        other: the second line of a race, of an allocation; "" if there is none.
        advice: what to do.
    """

    check: str
    what: str
    line: str
    other: str
    advice: str

    def __str__(self) -> str:
        """Return the sentence and what to do."""
        return f"{self.check}: {self.what}: {self.advice}"


@dataclass(frozen=True)
class Watch:
    """A check of the running program that another part of bringup brings.

    Attributes:
        watched: returns a context in which the program is watched; contexts may be nested.
        take: returns the findings since its last call.
    """

    watched: Callable[[], AbstractContextManager[None]]
    take: Callable[[], list[Finding]]


watches: list[Watch] = []
