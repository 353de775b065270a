"""The sentences for limits that a run exceeds."""

from __future__ import annotations

from collections.abc import Iterator

from bringup.analyse.summary import Summary
from bringup.report.lines import unit
from bringup.text import duration, size


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
        took = f"a {unit(summary)} takes {duration(summary.step_seconds)} on {summary.chip}"
        yield f"{took}, which exceeds --max-step by {duration(summary.step_seconds - max_step)}"
    if max_memory is not None and summary.peak_bytes > max_memory:
        where = f" at {summary.memory.at.line}" if summary.memory.at and summary.memory.at.line else ""
        yield (
            f"tensors hold {size(summary.peak_bytes)} of device memory{where}, "
            f"which exceeds --max-memory by {size(summary.peak_bytes - max_memory)}"
        )
