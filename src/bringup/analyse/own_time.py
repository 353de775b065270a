"""Programs that wait for their own Python: it takes longer between launches than the chip needs for a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse.summary import OwnTime
from bringup.recording.rows import ALLOC, FALLBACK, FREE, IN_BACKWARD, LAUNCH, OWNER, RELEASE, RESERVE, WAITS
from bringup.text import split_line
from bringup.timeline.replay import Timeline

Array = npt.NDArray[Any]
LEAST_NS = 1_000_000  # a shorter time between launches is mostly that of launching, which the replay models
LEAST_COMPILED_NS = 5_000_000  # chosen: the same with torch.compile, whose guards and wrappers run between two graphs
WITHOUT_TIME = (ALLOC, FREE, RESERVE, RELEASE, OWNER)


def own_time(timeline: Timeline, step_seconds: float) -> tuple[float, list[OwnTime]]:
    """Return the seconds per typical step of the program's own Python, and its lines, the slowest first.

    It is the median over the typical steps after the first, so compilers, imports and first calls do not count; without
    two such steps, or after a failure, nothing is told. It is CPU time and sleeps of the thread that launches, so waits
    for the emulated chip do not count. It is 0 if it is less than the step.
    """
    work = timeline.trace.step_work
    rows, line, seconds, sleeps = _times(timeline)
    inside = (rows >= work.rows[0]) & (rows < work.rows[-1])
    rows, line, seconds, sleeps = (values[inside] for values in (rows, line, seconds, sleeps))
    step = np.searchsorted(work.rows, rows, side="right") - 1
    counted = work.alike.copy()
    counted[np.flatnonzero(counted)[:1]] = False
    totals = np.bincount(step, seconds, len(counted))[counted]
    tells = len(totals) > 1 and not timeline.trace.about.get("failed", False)
    total = float(np.median(totals)) if tells else 0.0
    if total == 0 or total <= step_seconds:
        return 0.0, []
    by_line: dict[tuple[int, bool], float] = {}
    pieces = (values[counted[step]].tolist() for values in (line, sleeps, seconds))
    for number, slept, spent in zip(*pieces, strict=True):
        by_line[number, slept] = by_line.get((number, slept), 0.0) + spent
    whole = sum(by_line.values())
    listed = []
    for (number, slept), spent in by_line.items():
        file, place = split_line(_text(timeline, number, slept))
        listed.append(OwnTime(file, place, slept, total * spent / whole))
    return total, sorted(listed, key=lambda item: (-item.seconds, item.file, item.line))


def _text(timeline: Timeline, number: int, slept: bool) -> str:
    if slept:
        return str(timeline.trace.about["sleeps"][number]["line"])
    return timeline.trace.lines[number] if number >= 0 else ""


def _times(timeline: Timeline) -> tuple[Array, Array, Array, Array]:
    """Return the row after each piece of own time, its line, its seconds, and True for sleeps.

    The number of a sleep's line is its place in the trace's ``about``.
    """
    rows, line, seconds = _computing(timeline)
    about = timeline.trace.about
    listed = [] if about.get("chip_time", False) else about.get("sleeps", [])  # else they are in the step
    for number, item in enumerate(listed):
        rows = np.append(rows, np.asarray(item["rows"], dtype=np.int64))
        line = np.append(line, np.full(len(item["rows"]), number))
        seconds = np.append(seconds, item["seconds"])
    slept = np.arange(len(rows)) >= len(rows) - sum(len(item["rows"]) for item in listed)
    return rows, line, seconds, slept


def _computing(timeline: Timeline) -> tuple[Array, Array, Array]:
    """Return the row, the line and the CPU seconds of the long times between launches.

    Those of launches that wait, of fallbacks, of sparse tensors and of the first launch of a signature are partly the
    emulation's. Those in which a DataLoader makes a batch count as input.
    """
    trace, columns = timeline.trace, timeline.trace.columns
    none = np.zeros(0, np.int64)
    launched = columns["thread"][(columns["kind"] == LAUNCH) & (columns["phase"] != IN_BACKWARD)]
    if timeline.host_clock == "measured" or not len(launched):  # the step has the measured time
        return none, none, none.astype(float)
    thread = np.bincount(launched).argmax()
    members = np.flatnonzero((columns["thread"] == thread) & ~np.isin(columns["kind"], WITHOUT_TIME))
    least = LEAST_COMPILED_NS if trace.about.get("compiled_graphs") else LEAST_NS
    is_long = (columns["host_ns"][members] >= least) & (columns["phase"][members] != IN_BACKWARD)
    is_long &= (columns["kind"][members] != LAUNCH) | (columns["flags"][members] & (WAITS | FALLBACK) == 0)
    is_long &= ~_is_first(columns["signature"])[members]
    sparse = np.asarray([*(item.op.startswith("sparse::") for item in trace.signatures), False])
    is_long &= ~sparse[columns["signature"][members]]
    batches = [row for item in trace.about.get("inputs", []) for row in item.get("rows", [])]
    loading = np.searchsorted(members, np.asarray(batches, dtype=np.int64))
    is_long[loading[loading < len(members)]] = False
    rows = members[is_long]
    return rows, columns["line"][rows].astype(np.int64), columns["host_ns"][rows] * 1e-9


def _is_first(signature: Array) -> Array:
    """Return for every row True if it is the first launch of its signature, which the emulation works out there."""
    first = np.zeros(len(signature), dtype=bool)
    numbers, rows = np.unique(signature, return_index=True)
    first[rows[numbers >= 0]] = True
    return first
