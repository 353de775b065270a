"""The sentences for limits that a run, or the change between two runs, exceeds."""

from __future__ import annotations

from collections.abc import Iterator

from bringup.analyse.summary import Summary
from bringup.text import duration, size
from bringup.units import Change


def by_run(summary: Summary, max_step: float | None, max_memory: int | None) -> Iterator[str]:
    """Yield one sentence for each limit that a run exceeds.

    Args:
        summary: of the run.
        max_step: the longest step in seconds, None without limit.
        max_memory: the most bytes that tensors may hold at once on a device, None without limit.
    """
    if not summary.launches and (max_step is not None or max_memory is not None):
        yield "the limits cannot be checked: the program launched nothing on the chip"
        return
    if max_step is not None and summary.step_seconds > max_step:
        took = f"a {summary.unit} takes {duration(summary.step_seconds)} on {summary.chip}"
        yield f"{took}, which exceeds --max-step by {duration(summary.step_seconds - max_step)}"
    if max_memory is not None and summary.peak_bytes > max_memory:
        where = f" at {summary.memory.at.line}" if summary.memory.at and summary.memory.at.line else ""
        yield (
            f"tensors hold {size(summary.peak_bytes)} of device memory{where}, "
            f"which exceeds --max-memory by {size(summary.peak_bytes - max_memory)}"
        )


def by_change(
    runs: tuple[Summary, Summary], names: tuple[str, str], max_slower: Change | None, max_memory: Change | None
) -> Iterator[str]:
    """Yield one sentence for each limit that the change from the first run to the second one exceeds.

    Args:
        runs: the summaries.
        names: of the runs, for the sentences.
        max_slower: the permitted increase of the step time, None without limit.
        max_memory: the permitted increase of the memory that tensors hold at the peak, None without limit.
    """
    before, after = runs
    if max_slower is not None and max_slower.exceeded(before.step_seconds, after.step_seconds):
        more = f"{after.step_seconds / before.step_seconds - 1:.1%}" if before.step_seconds else "infinitely"
        times = f"{duration(before.step_seconds)} -> {duration(after.step_seconds)} per {after.unit}"
        yield f"{names[1]} is {more} slower than {names[0]} ({times}), --max-slower allows {max_slower.text}"
    if max_memory is not None and max_memory.exceeded(before.peak_bytes, after.peak_bytes):
        more = size(after.peak_bytes - before.peak_bytes)
        sizes = f"{size(before.peak_bytes)} -> {size(after.peak_bytes)}"
        yield f"{names[1]} holds {more} more memory than {names[0]} ({sizes}), --max-memory allows {max_memory.text}"
