"""The blocks of an engine's KV cache: who holds them, and which freed ones still hold a prefix that can be read again.

Note [Freed blocks]
A freed block keeps its contents until it is taken again, and the block that was freed first is taken first. The blocks
of one sequence are freed from the last to the first, so its beginning survives longest. Freed blocks of a sequence are
therefore a run that only becomes shorter from its end, and one number describes it (vLLM, vllm/v1/core/block_pool.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

SIZE = 16  # tokens of a block: the default of vLLM (vllm/config/cache.py, block_size)


def blocks_of(tokens: int, size: int) -> int:
    """Return the blocks of a cache for which a number of tokens is stated: at least one."""
    return max(tokens // size, 1)


@dataclass
class Shared:
    """The blocks of a prefix that running requests share."""

    blocks: int = 0
    readers: int = 0


class Blocks:
    """A pool of blocks of `size` tokens each.

    Attributes:
        total: the number of blocks.
        used: blocks that running requests hold.
        peak: the most that they held after blocks were taken.
        caching: True if freed blocks can be read again.
    """

    def __init__(self, total: int, size: int, caching: bool = True) -> None:
        self.total = total
        self.size = size
        self.caching = caching
        self.used = 0
        self.peak = 0
        self._freed: OrderedDict[Hashable, int] = OrderedDict()  # runs of freed blocks, the oldest first
        self._remembered = 0  # blocks in these runs
        self._shared: dict[Hashable, Shared] = {}
        self._anonymous = 0

    @property
    def free(self) -> int:
        """Blocks that can be taken, with those that hold a prefix."""
        return self.total - self.used

    def count(self, tokens: int) -> int:
        """Return the blocks that some tokens need."""
        return -(-tokens // self.size)

    def take(self, count: int) -> bool:
        """Take blocks, the ones freed first; False, and nothing happens, if there are not enough."""
        if count > self.total - self.used:
            return False
        short = count - (self.total - self.used - self._remembered)
        while short > 0:
            oldest = next(iter(self._freed))
            lost = min(short, self._freed[oldest])
            self._shorten(oldest, lost)
            short -= lost
        self.used += count
        self.peak = max(self.peak, self.used)
        return True

    def give_back(self, count: int, key: Hashable = None, full: int = 0) -> None:
        """Free blocks. With a key, the first `full` of them hold a sequence that can be read again."""
        self.used -= count
        if not self.caching:
            return
        if key is None or full < count:  # nothing finds these again, but they are taken in their turn
            self._anonymous += 1
            self._remember(("anonymous", self._anonymous), count - (full if key is not None else 0))
        if key is not None:
            self._remember(key, full)

    def cached(self, key: Hashable) -> int:
        """Return how many blocks of a sequence can be read without computing them."""
        shared = self._shared.get(key)
        return shared.blocks if shared else self._freed.get(key, 0)

    def retakes(self, key: Hashable) -> int:
        """Return how many freed blocks of a sequence are still there."""
        return self._freed.get(key, 0)

    def retake(self, key: Hashable) -> int:
        """Take the freed blocks of a sequence that are still there, and return their number."""
        count = self._freed.get(key, 0)
        if count:
            self._shorten(key, count)
            self.used += count
        return count

    def join(self, key: Hashable) -> None:
        """Begin to read a shared prefix. Its freed blocks are taken first."""
        if key not in self._shared:
            self._shared[key] = Shared(self.retake(key))
        self._shared[key].readers += 1

    def extend(self, key: Hashable, blocks: int) -> int:
        """Let others read a prefix up to a number of blocks, and return how many the caller hands over for that."""
        shared = self._shared[key]
        more = max(blocks - shared.blocks, 0)
        shared.blocks += more
        return more

    def leave(self, key: Hashable) -> None:
        """End reading a shared prefix. The last reader frees its blocks."""
        shared = self._shared[key]
        shared.readers -= 1
        if not shared.readers:
            del self._shared[key]
            self.give_back(shared.blocks, key, shared.blocks)

    def _remember(self, key: Hashable, count: int) -> None:
        if count > 0:
            self._freed[key] = self._freed.pop(key, 0) + count
            self._remembered += count

    def _shorten(self, key: Hashable, count: int) -> None:
        self._remembered -= count
        self._freed[key] -= count
        if not self._freed[key]:
            del self._freed[key]
