"""The requests of a simulation: one is what a client asks for, and what happens to it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Request:
    """One request. Times are seconds from the start of the simulation.

    Attributes:
        number: its place in the order of arrival.
        arrival: when it arrives.
        prompt, output: tokens that it brings, and that it gets. An engine stops at the last one.
        priority: a smaller number goes first.
        prefix, shared: the first `shared` tokens of the prompt equal those of other requests with this prefix.
        computed: tokens whose keys and values are in the cache.
        generated: tokens that it has got.
        first, last: when its first and its last token were there.
        begun: when an engine first computed for it.
        read: prompt tokens that were read from the prefix cache.
        preemptions: how often an engine took its blocks away.
        blocks: that it holds alone.
        joined: True while it reads the blocks of its prefix.
        swapped: True while its keys and values are in the host's memory.
        engine: the engine that it went to last; those that decode for others are numbered after them.
        dropped: True if it was turned away.
    """

    number: int
    arrival: float
    prompt: int
    output: int
    priority: int = 0
    prefix: Hashable = None
    shared: int = 0
    computed: int = 0
    generated: int = 0
    first: float = -1.0
    last: float = -1.0
    begun: float = -1.0
    read: int = 0
    preemptions: int = 0
    blocks: int = 0
    joined: bool = False
    swapped: bool = False
    engine: int = -1
    dropped: bool = False

    @property
    def to_compute(self) -> int:
        """Tokens that are there: the prompt and what was generated."""
        return self.prompt + self.generated

    @property
    def longest(self) -> int:
        """Tokens in the cache when the last one is generated, which itself is never read."""
        return self.prompt + self.output - 1

    @property
    def ended(self) -> bool:
        """True if it has all its tokens."""
        return self.generated >= self.output
