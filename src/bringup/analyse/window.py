"""The first steps of a long recording, which stand for all of it if its steps are alike: replays of them are short."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse.holders import memory_over_time
from bringup.recording.rows import ALLOC, D2D, FREE, HOST, LAUNCH, OWNER, RELEASE, RESERVE
from bringup.timeline.replay import Timeline
from bringup.timeline.steady import step_seconds, typical

Array = npt.NDArray[Any]
LEAST_ROWS = 100_000  # a shorter recording is replayed in a fraction of a second
STEPS = 32  # after the warm-up
# The share of steps that must be alike, in the window and in the recording. Then the median step is one of them in
# every replay, whatever the others take.
LIKE = 0.8
# What a step's time depends on. Addresses, events and the moments of frees differ between like steps.
COLUMNS = ("kind", "signature", "line", "module", "phase", "device", "stream", "thread", "flags", "views", "bytes")
MEMORY = (ALLOC, FREE, RESERVE, RELEASE, OWNER)  # rows that take no time, apart from their views


def window(timeline: Timeline) -> Timeline:
    """Return the beginning of a timeline with its set-up and first steps, or the whole one.

    It is the beginning only if four of five steps launch the same in both, if the typical step takes the same time in
    both, and if the memory is fullest there. So a what-if on it has the figure of the whole recording.
    """
    trace, work = timeline.trace, timeline.trace.step_work
    rows = int(work.rows[min(STEPS, len(work.rows) - 1)])
    if len(trace) < max(LEAST_ROWS, 2 * rows) or timeline.host_clock == "measured":
        return timeline
    if not work.alike[:STEPS].any():
        return timeline
    same = _same_as_typical(timeline)
    if min(same[work.alike].mean(), same[:STEPS][work.alike[:STEPS]].mean()) < LIKE:
        return timeline
    first = _first_rows(timeline, rows)
    fullest = memory_over_time(first.trace)[0] == memory_over_time(trace)[0]
    is_same = math.isclose(step_seconds(first), step_seconds(timeline), rel_tol=1e-6)
    return first if fullest and is_same else timeline


def _same_as_typical(timeline: Timeline) -> Array:
    """Return for every step True if it launches, copies and waits as the typical step does, in the same order."""
    work, columns = timeline.trace.step_work, timeline.trace.columns
    rows = np.flatnonzero(~np.isin(columns["kind"], MEMORY) | (columns["views"] > 0))
    kind, number = columns["kind"][rows], columns["object"][rows]
    # A replay of a graph, or a launch by a plan; where a copy between chips comes from; how long the host sleeps.
    place = np.where(kind == LAUNCH, np.sign(number), np.where(np.isin(kind, (D2D, HOST)), number, 0))
    listed = [*(columns[name][rows] for name in COLUMNS), place]
    bounds = np.searchsorted(rows, work.rows).tolist()

    def content(first: int, last: int) -> bytes:
        return b"".join(column[first:last].tobytes() for column in listed)

    chosen = typical(timeline).chosen
    wanted = content(bounds[chosen], bounds[chosen + 1])
    length = bounds[chosen + 1] - bounds[chosen]
    return np.asarray([last - first == length and content(first, last) == wanted for first, last in pairwise(bounds)])


def _first_rows(timeline: Timeline, rows: int) -> Timeline:
    """Return a timeline's first rows, which end with a step."""
    whole, work = timeline.trace, timeline.trace.step_work
    uses = whole.uses[: whole.offsets[rows]]
    columns = {name: column[:rows] for name, column in whole.columns.items()}
    trace = replace(whole, columns=columns, uses=uses, offsets=whole.offsets[: rows + 1])
    trace.signatures, trace.work = whole.signatures, whole.work
    trace.steps = replace(whole.steps, ends=whole.steps.ends[whole.steps.ends <= rows])
    steps = int(np.searchsorted(work.rows, rows))
    counted = work.step < steps
    trace.step_work = replace(
        work,
        rows=work.rows[: steps + 1],
        alike=work.alike[:steps],
        step=work.step[counted],
        line=work.line[counted],
        count=work.count[counted],
    )
    times = {name: getattr(timeline, name)[:rows] for name in ("issued", "start", "end", "waited", "seconds", "called")}
    return replace(timeline, trace=trace, steps=trace.steps, fallback=timeline.fallback[:rows], **times)
