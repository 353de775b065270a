"""The blocks of a KV cache: what is used, and what of freed blocks can be read again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bringup.serving.blocks import Blocks


def test_take_refuses_more_than_is_free() -> None:
    blocks = Blocks(10, 16)
    assert blocks.take(7) and not blocks.take(4) and blocks.take(3)
    assert blocks.free == 0


def test_the_peak_stays_when_blocks_are_freed() -> None:
    blocks = Blocks(10, 16)
    blocks.take(7)
    blocks.give_back(5)
    blocks.take(1)
    assert (blocks.used, blocks.peak) == (3, 7)


def test_count_rounds_up() -> None:
    assert [Blocks(10, 16).count(tokens) for tokens in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_freed_blocks_are_taken_from_the_end_of_the_oldest_sequence() -> None:
    blocks = Blocks(10, 16)
    blocks.take(10)
    blocks.give_back(4, "first", 4)
    blocks.give_back(6, "second", 6)
    blocks.take(3)
    assert (blocks.cached("first"), blocks.cached("second")) == (1, 6)
    assert blocks.retake("second") == 6 and blocks.used == 9


def test_a_block_that_is_not_full_cannot_be_read_again() -> None:
    blocks = Blocks(10, 16)
    blocks.take(5)
    blocks.give_back(5, "sequence", 4)
    assert blocks.cached("sequence") == 4 and blocks.used == 0


def test_without_caching_nothing_is_remembered() -> None:
    blocks = Blocks(10, 16, caching=False)
    blocks.take(5)
    blocks.give_back(5, "sequence", 5)
    assert blocks.cached("sequence") == 0 and blocks.free == 10


def test_the_last_reader_frees_a_shared_prefix() -> None:
    blocks = Blocks(10, 16)
    blocks.join("prefix")
    blocks.take(3)
    assert blocks.extend("prefix", 3) == 3
    blocks.join("prefix")
    blocks.leave("prefix")
    assert blocks.used == 3 and blocks.cached("prefix") == 3
    blocks.leave("prefix")
    assert blocks.used == 0 and blocks.cached("prefix") == 3
    blocks.join("prefix")
    assert blocks.used == 3


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), max_size=60))
def test_used_blocks_stay_within_the_total(moves: list[tuple[int, int]]) -> None:
    blocks, held = Blocks(20, 4), {}
    for count, key in moves:
        if key in held:
            blocks.give_back(held[key], key, held.pop(key) // 2)
        elif blocks.take(count):
            held[key] = count
        assert blocks.used == sum(held.values()) <= blocks.total
