"""Advice on the host's waits for the chip: one bottleneck per kind of wait, with what a replay without them saves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse import changes
from bringup.analyse.summary import Bottleneck, Summary
from bringup.recording.rows import IN_OPTIMIZER
from bringup.recording.waits import (
    WAIT_KINDS,
    Waits,
    count_text,
    is_of_scaler,
    is_small,
    noun,
    own_waits,
    places,
    remedy,
    waiting_ops,
)
from bringup.text import duration, split_line
from bringup.timeline.replay import Timeline
from bringup.timeline.steady import steady, step_seconds

Array = npt.NDArray[Any]
LEAST_PER_STEP = 1.0  # rarer waits are those that the advice asks for
CODES = {  # `Bottleneck.remedy` of each kind
    "upload": "non-blocking",
    "download": "copy-later",
    "read": "read-less-often",
    "synchronize": "synchronize-less",
    "data_dependent": "fixed-size",
}


def for_waits(timeline: Timeline, summary: Summary) -> list[Bottleneck]:
    """Return a bottleneck for each kind of wait that happens in every step.

    Small uploads are a kind of their own, and so are the reads of GradScaler. Reads of optimizers with closures are not
    advised against.
    """
    waits = own_waits(timeline.trace)
    if summary.evaluations > 1:  # an optimizer with a closure, such as LBFGS, decides by the values that it reads
        read = waits.kind == WAIT_KINDS.index("read")
        waits = waits.where(~read | (timeline.trace.columns["phase"][waits.rows] != IN_OPTIMIZER))
    small, scaler = is_small(timeline.trace, waits), is_of_scaler(timeline.trace, waits)
    groups = [waits.where((waits.kind == kind) & ~small & ~scaler) for kind in range(len(WAIT_KINDS))]
    return [
        *(item for group in groups for item in _bottleneck(timeline, summary, group)),
        *_bottleneck(timeline, summary, waits.where(small), is_small=True),
        *_bottleneck(timeline, summary, waits.where(scaler), scaler=True),
    ]


def _bottleneck(
    timeline: Timeline, summary: Summary, waits: Waits, *, is_small: bool = False, scaler: bool = False
) -> list[Bottleneck]:
    """Return the advice on these waits; only those of the typical step are counted."""
    first, last, *_ = steady(timeline)
    rows = waits.between(first, last).rows
    per_step = float(len(rows))
    if per_step < LEAST_PER_STEP:
        return []
    kind = WAIT_KINDS[int(waits.kind[0])]
    saved = summary.step_seconds - step_seconds(changes.without_waits(timeline, waits))
    stood = float(timeline.waited[rows].sum())
    line = timeline.trace.longest_line(rows, timeline.waited[rows] + 1e-12)
    ops = sorted(set(waiting_ops(timeline.trace, rows)) - {""})
    at = places(_counts(timeline, rows))
    times = "once" if count_text(per_step) == "1" else f"{count_text(per_step)} times"
    in_all = f", {duration(stood)} in all" if stood >= saved else ""  # else the copies and the chip's pause count more
    return [
        Bottleneck(
            f"the host waits for the chip {times} per {summary.unit}{in_all}",
            f"{noun(kind, per_step, ops)}{at}; until its next launch the chip idles",
            remedy(kind, small=is_small, ops=ops, scaler=scaler),
            max(saved, 0.0),
            key="waits",
            remedy="make-on-chip" if is_small else "fused-optimizer" if scaler else CODES[kind],
            line=line,
            numbers={"waits": per_step},
        )
    ]


def _counts(timeline: Timeline, rows: Array) -> list[tuple[str, int, float]]:
    """Return file, line and number of each line of these waits, the longest first."""
    trace = timeline.trace
    lines, place, numbers = np.unique(trace.columns["line"][rows], return_inverse=True, return_counts=True)
    seconds = np.bincount(place, timeline.waited[rows], len(lines))
    named = [split_line(trace.lines[line] if line >= 0 else "") for line in lines.tolist()]
    order = sorted(range(len(lines)), key=lambda i: (-seconds[i], -numbers[i], named[i]))
    return [(*named[i], float(numbers[i])) for i in order]
