"""Programs that wait for their input: batches take longer to load than the chip needs for a step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse.summary import Bottleneck, Input, Summary
from bringup.recording.rows import HOST, RESUME
from bringup.text import duration, quantity, split_line
from bringup.timeline.replay import Timeline
from bringup.timeline.steady import steady

Array = npt.NDArray[Any]
LEAST_PER_STEP = 0.5  # batches: rarer ones are not those of the step
MOSTLY = 0.75  # of the typical steps: if so many take the same number of batches, the others are at the ends


def inputs(timeline: Timeline, step_seconds: float) -> list[Input]:
    """Return the loaders whose batches take longer than a step, the slowest first; times are per typical step.

    Shorter ones are left out, since a measured time would make equal programs differ.
    """
    listed = []
    for item in timeline.trace.about.get("inputs", []):
        workers, seconds = int(item["workers"]), float(item["batch_seconds"])
        per_step = _per_step(timeline, np.asarray(item.get("rows", []), dtype=np.int64))
        if per_step >= LEAST_PER_STEP:
            spent = seconds * per_step / max(workers, 1)
            maker, by_library = str(item.get("maker", "")), bool(item.get("by_library", False))
            place, iterable = split_line(str(item["line"])), bool(item.get("iterable", False))
            listed.append(Input(*place, workers, per_step, seconds, spent, maker, by_library, iterable))
    total = sum(item.seconds for item in listed)
    return sorted(listed, key=lambda item: (-item.seconds, item.file)) if total > step_seconds - _idle(timeline) else []


def _per_step(timeline: Timeline, rows: Array) -> float:
    """Return how many batches a typical step takes. `rows` has the number of rows before each batch.

    Steps with other work, such as evaluations, do not count.
    """
    work = timeline.trace.step_work
    inside = rows[(rows >= work.rows[0]) & (rows < work.rows[-1])]
    counts = np.bincount(np.searchsorted(work.rows, inside, side="right") - 1, minlength=len(work.alike))[work.alike]
    if not len(counts):
        return 0.0
    frequent = np.bincount(counts)
    return float(frequent.argmax()) if frequent.max() >= MOSTLY * len(counts) else float(counts.mean())


def _idle(timeline: Timeline) -> float:
    """Return the seconds per step for which the host waits in the replay for something else than the chip."""
    first, last, *_ = steady(timeline)
    kind = timeline.trace.columns["kind"][first:last]
    rows = np.flatnonzero(np.isin(kind, (HOST, RESUME))) + first
    return float((timeline.end[rows] - timeline.start[rows]).sum())


def whole_step(summary: Summary) -> float:
    """Return the seconds of a step with its input. Workers load beside the step, the program itself does not."""
    if summary.chip_time:  # waits for input are in the step
        return summary.step_seconds
    own = sum(item.seconds for item in summary.inputs if item.workers == 0)
    beside = sum(item.seconds for item in summary.inputs if item.workers > 0)
    return max(summary.step_seconds + own, beside)


def advice(timeline: Timeline, summary: Summary) -> list[Bottleneck]:
    """Advise workers, as many as keep up with the chip or as the host has cores."""
    if not summary.inputs or summary.inputs[0].by_library:
        return []
    slowest = summary.inputs[0]
    others = summary.input_seconds - slowest.seconds
    busy = summary.step_seconds - (min(_idle(timeline), summary.input_seconds) if summary.chip_time else 0.0)
    needed = slowest.batch_seconds * slowest.per_step / max(busy, 1e-9)
    workers = min(math.ceil(needed), timeline.host.compute.cores)
    if workers <= slowest.workers:
        return []
    faster = max(busy, slowest.batch_seconds * slowest.per_step / workers) + others
    whole = whole_step(summary)
    where = f"{slowest.file}:{slowest.line}"
    at_maker = f" at {slowest.maker}" if slowest.maker not in ("", where) else ""
    parts = "; with get_worker_info, each takes its part of the IterableDataset" if slowest.iterable else ""
    return [
        Bottleneck(
            f"input-bound: the chip waits for input {max(whole - busy, 0.0) / whole:.0%} of the time",
            f"the DataLoader at {where} gives {quantity(slowest.per_step, 'batch')} per {summary.unit}, and each takes "
            f"{duration(slowest.batch_seconds)} with num_workers={slowest.workers}",
            f"load batches in processes of their own: DataLoader(num_workers={workers}){at_maker}, "
            f"{duration(faster)} per {summary.unit}{parts}",
            max(whole - faster, 0.0),
            key="input-bound",
            remedy="workers",
            line=where,
            numbers={"input_seconds": summary.input_seconds, "workers": workers},
        )
    ]
