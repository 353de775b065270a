"""A check of kernels with locks: stores that a program has not made visible when it lets another program continue.

A program's stores are made by many threads, and an atomic on one element by a single thread. So a store of a tile stays
open until a barrier. If the program meanwhile changes a word on which programs of the launch wait, another program may
continue and see the old values. A store of a single element is made by the thread of the atomic, and is never open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bringup.recording.findings import Finding

Tensor = torch.Tensor
ADVICE = "call tl.debug_barrier() between the stores and the atomic"


@dataclass
class _Store:
    """An open store.

    Attributes:
        elements: the shadow of the allocation.
        index: the elements that it wrote.
        line: its source line.
        earlier: (element, program, verb, line) of another program's earlier access to one of them; None without one.
    """

    elements: Any
    index: Tensor
    line: str
    earlier: tuple[int, str, str, str] | None


@dataclass(frozen=True)
class _Release:
    """An atomic that followed an open store: its word (an address), its line, and the store's line and program."""

    word: int
    line: str
    store_line: str
    program: int


class Locks:
    """The open stores of the running program of a kernel whose programs run one after the other.

    Attributes:
        spinning: above 0 while the program runs a loop that waits for another program.
    """

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.spinning = 0
        self._program = -1
        self._open: list[_Store] = []
        self._releases: list[_Release] = []
        self._waited: set[int] = set()
        self._races: list[tuple[int, Finding]] = []  # with the word whose release they depend on

    def barrier(self) -> None:
        """Close the stores: the threads of the program have reached a barrier."""
        self._open.clear()

    def wait(self, words: list[int]) -> None:
        """Record that a program waits until these words change."""
        self._waited.update(words)

    def store(
        self, elements: Any, index: Tensor, program: int, line: str, earlier: tuple[int, str, str, str] | None
    ) -> None:
        """Open a store of a tile."""
        self._begin(program)
        elements.released[index] = 0
        self._open.append(_Store(elements, index, line, earlier))

    def release(self, word: int, program: int, line: str) -> None:
        """Record an atomic on one word, outside of loops that wait."""
        self._begin(program)
        for store in self._open:
            release = _Release(word, line, store.line, program)
            before = int(store.elements.released[store.index[0]])
            if before and self._releases[before - 1].word in self._waited and word not in self._waited:
                continue
            self._releases.append(release)
            store.elements.released[store.index] = len(self._releases)
            if store.earlier is not None:
                self._add(release, store.elements.name, *store.earlier)

    def access(self, elements: Any, index: Tensor, program: int, verb: str, line: str) -> None:
        """Check an access to elements that another program may have stored before a release."""
        self._begin(program)
        released = elements.released[index]
        late = torch.nonzero((released != 0) & (elements.writer[index] != program))
        if len(late):
            lane = int(late[0])
            release = self._releases[int(released[lane]) - 1]
            self._add(release, elements.name, int(index[lane]) - elements.shift, f"program {program - 1}", verb, line)

    def races(self) -> list[Finding]:
        """Return the races of the launch, one for each pair of lines."""
        by_lines: dict[tuple[str, str], Finding] = {}
        for word, race in self._races:
            if word in self._waited:
                by_lines.setdefault((race.line, race.other), race)
        return list(by_lines.values())

    def _begin(self, program: int) -> None:
        if program != self._program:
            self._program = program
            self._open.clear()

    def _add(self, release: _Release, name: str, place: int, other: str, verb: str, line: str) -> None:
        what = (
            f"kernel {self.kernel}: program {release.program - 1} stores to {name!r} at {release.store_line} and "
            f"releases a lock at {release.line} without a barrier between, so {other}, which {verb} element {place} at "
            f"{line}, may see old values or overwrite new ones"
        )
        self._races.append((release.word, Finding("race", what, release.store_line, release.line, ADVICE)))
