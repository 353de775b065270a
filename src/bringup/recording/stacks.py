"""Stacks: for recordings that keep them, the calls of the program that led to each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass
class Stacks:
    """The chains of frames of a recording, as the core numbers them: each is a frame and its caller's chain.

    Args:
        root: the chain of the call that began the recording; what it shares with others is left out.

    Attributes:
        of_line: for each of the core's lines its chain; -1 for none.
        callers, lines, functions: of each of the core's chains, the caller's, and the line and function of the frame.
        used: the core's numbers of the chains that the trace has, each after its caller's.
    """

    root: int
    of_line: Sequence[int] = ()
    callers: Sequence[int] = ()
    lines: Sequence[str] = ()
    functions: Sequence[str] = ()
    used: list[int] = field(default_factory=list)

    def read(self) -> None:
        """Read the chains that the core has so far."""
        self.of_line, self.callers, self.lines, self.functions = torch.ops.bringup.recorded_stacks()
        outside = set(self._chain(self.root, set()))
        seen = set(outside)
        for number in self.of_line:
            seen.update(self._chain(number, seen))
        self.used = sorted(seen - outside)

    def _chain(self, number: int, ends: set[int]) -> list[int]:
        """Return a chain from its innermost frame to its first one that is not in `ends`."""
        frames = []
        while number >= 0 and number not in ends:
            frames.append(number)
            number = self.callers[number]
        return frames

    def places(self) -> list[str]:
        """Return the line of each chain's innermost frame, with its whole path."""
        return [self.lines[number] for number in self.used]

    def numbered(self, lines: Sequence[int]) -> tuple[list[int], list[tuple[int, int, str]]]:
        """Return the chain of each of the core's lines (-1: none), and the trace's `stacks`.

        Args:
            lines: the number of each of `places` in the trace.
        """
        place = {number: i for i, number in enumerate(self.used)}
        chains = [
            (place.get(self.callers[number], -1), line, self.functions[number])
            for number, line in zip(self.used, lines, strict=True)
        ]
        return [place.get(number, -1) for number in self.of_line], chains
