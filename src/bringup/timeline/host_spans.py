"""What the host's threads do over time: their calls, their waits by kind, and what they compute for the chip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.recording.rows import D2D, D2H, H2D, HOST, LAUNCH, RESUME, WAITS_FOR
from bringup.recording.waits import NOUNS, WAIT_KINDS
from bringup.timeline.replay import Timeline, is_placed

Array = npt.NDArray[Any]

# What a span is: the host issues a launch or copy, makes another call, computes, or waits for one of the following.
NAMES = (
    *("launch", "copy", "other call", "computes", "wait: full queue", "wait: fallback"),
    *(f"wait: {NOUNS[kind][0]}" for kind in WAIT_KINDS),
    *(f"wait: {what}" for what in (*WAITS_FOR, "another thread")),
)
LAUNCHES, COPIES, CALLS, COMPUTES, FULL_QUEUE, FOR_FALLBACK = range(6)
FOR_CHIP = 6  # the first of `WAIT_KINDS`
OUTSIDE = FOR_CHIP + len(WAIT_KINDS)  # the first of `WAITS_FOR`
FOR_THREAD = len(NAMES) - 1


@dataclass(frozen=True)
class HostSpans:
    """Spans of the host's threads in the order of their rows; those of a thread do not overlap.

    Attributes:
        row: the row of each; a row may have a call, a wait and a computation.
        what: an index into `NAMES`.
        start, end: seconds from the first row.
    """

    row: Array
    what: Array
    start: Array
    end: Array


def host_spans(timeline: Timeline, first: int, last: int) -> HostSpans:
    """Return the spans of the rows from `first` to `last`, without `last`."""
    columns = {name: values[first:last] for name, values in timeline.trace.columns.items()}
    kind, flags, fallback = columns["kind"], columns["flags"], timeline.fallback[first:last]
    issued, waited = timeline.issued[first:last], timeline.waited[first:last]
    calls = np.select([kind == LAUNCH, np.isin(kind, (H2D, D2H, D2D))], [LAUNCHES, COPIES], CALLS)
    steady_waits = timeline.trace.waits.between(first, last)
    waits = np.full(len(kind), FULL_QUEUE)
    waits[steady_waits.rows - first] = FOR_CHIP + steady_waits.kind
    waits[fallback >= 0] = FOR_FALLBACK
    computes = (fallback >= 0) | is_placed(columns)
    outside = np.isin(kind, (HOST, RESUME))
    slept = np.where(kind == RESUME, FOR_THREAD, OUTSIDE + np.minimum(flags, len(WAITS_FOR) - 1))
    begins = np.where(computes & (kind == LAUNCH), timeline.start[first:last], issued + waited)
    pieces = (
        (calls, issued - timeline.called[first:last], issued),
        (waits, issued, issued + waited),
        (np.where(outside, slept, COMPUTES), begins, np.where(computes | outside, timeline.end[first:last], begins)),
    )
    row = np.concatenate([np.arange(first, last)] * len(pieces))
    what, start, end = (np.concatenate(values) for values in zip(*pieces, strict=True))
    order = np.flatnonzero(end > start)
    order = order[np.lexsort((start[order], row[order]))]
    return HostSpans(row[order], what[order], start[order], end[order])
