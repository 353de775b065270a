"""Advice for collectives: another order of a mesh's axes, larger buckets, and overlap, each judged by a replay.

What changes the kernels, such as another degree of tensor parallelism, cannot be replayed: it needs a recording.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse.changes import replayed
from bringup.analyse.summary import Bottleneck, Summary
from bringup.cost.collective import ranks_of
from bringup.cost.signature import Signature
from bringup.machine.topology import Topology, cluster_of
from bringup.pricing.collective import collective_seconds, is_collective
from bringup.recording.rows import EVENT_RECORD, EVENT_WAIT, IN_BACKWARD, LAUNCH
from bringup.recording.trace import Trace
from bringup.text import duration, quantity, size
from bringup.timeline.replay import Timeline
from bringup.timeline.steady import steady, step_seconds

Array = npt.NDArray[Any]
# All three are chosen.
LEAST_EXPOSED = 0.02  # of a step: below it, no change of collectives is worth a replay, or another recording
MOST_AXES = 4  # of a mesh: all their orders are replayed
FACTORS = (2, 4, 8, 16, 64)  # the sizes of buckets that are replayed, as multiples of the largest one


def bottlenecks(timeline: Timeline, summary: Summary) -> list[Bottleneck]:
    """Return a bottleneck for each change of the collectives that saves time."""
    least = LEAST_EXPOSED * summary.step_seconds
    if not summary.collectives or summary.ranks == 1 or summary.exposed_communication_seconds < least:
        return []
    exposed, spent = (duration(x) for x in (summary.exposed_communication_seconds, summary.communication_seconds))
    cause = f"{exposed} of {spent} of communication per {summary.unit} are exposed on {summary.cluster}"
    numbers = {"exposed_seconds": summary.exposed_communication_seconds}
    ways = [find(timeline, summary) for find in (_another_order, _larger_buckets, _beside_kernels)]
    return [replace(way, cause=cause, numbers=numbers) for way in ways if way is not None]


def _rows(timeline: Timeline) -> Array:
    """Return the collectives of the typical step."""
    first, last, *_ = steady(timeline)
    columns = timeline.trace.columns
    together = np.asarray([is_collective(item) for item in timeline.trace.signatures], dtype=bool)
    launched = np.flatnonzero(columns["kind"][first:last] == LAUNCH) + first
    rows: Array = launched[together[columns["signature"][launched]]]
    return rows


def _topology(timeline: Timeline, summary: Summary) -> Topology:
    return timeline.trace.cluster or cluster_of(timeline.chip, summary.ranks)


def _saving(summary: Summary, other: Timeline) -> float:
    return max(summary.step_seconds - step_seconds(other), 0.0)


# ---- another order of the mesh's axes


def _another_order(timeline: Timeline, summary: Summary) -> Bottleneck | None:
    """Replay with every order of the mesh's axes: those with the most communication should be inside of nodes."""
    topology, trace = _topology(timeline, summary), timeline.trace
    rows = _rows(timeline)
    signature = trace.columns["signature"]
    used = {int(number): tuple(ranks_of(trace.signatures[number])) for number in np.unique(signature[rows])}
    axes = _axes(set(used.values()), summary.ranks)
    if topology.nodes < 2 or not 2 <= len(axes) <= MOST_AXES:
        return None
    counts = np.bincount(signature[rows], minlength=len(trace.signatures))
    best: tuple[float, tuple[int, ...], int] | None = None  # with the signature that becomes shorter by most
    for order in itertools.permutations(range(len(axes))):
        more = np.zeros(len(trace.signatures))
        for number, ranks in used.items():
            new = _moved(ranks, axes, order)
            more[number] = _price(trace.signatures[number], topology, new) - _price(
                trace.signatures[number], topology, ranks
            )
        if not (more < 0).any():
            continue
        seconds = timeline.seconds.copy()
        everywhere = np.flatnonzero(trace.columns["kind"] == LAUNCH)
        seconds[everywhere] = np.maximum(seconds[everywhere] + more[signature[everywhere]], 0.0)
        saved = _saving(summary, replayed(timeline, seconds=seconds))
        if best is None or saved > best[0]:
            best = saved, order, int(np.argmin(more * counts))
    if best is None:
        return None
    saved, order, shorter = best
    after = " x ".join(f"{axes[i].size} (now in steps of {axes[i].stride})" for i in reversed(order))
    theirs = rows[signature[rows] == shorter]
    line = trace.longest_line(theirs, timeline.seconds[theirs]) if len(theirs) else ""
    return Bottleneck(
        f"communication: the group of {len(used[shorter])} ranks at {line or 'an unknown line'} is on several nodes",
        "",
        f"order the axes of init_device_mesh as {after}: the ranks of the last axis are neighbours",
        saved,
        key="communication",
        remedy="mesh-order",
        line=line,
    )


@dataclass(frozen=True)
class _Axis:
    """An axis of a mesh: its ranks are `size` from any on, in steps of `stride`."""

    size: int
    stride: int


def _axes(groups: set[tuple[int, ...]], ranks: int) -> list[_Axis]:
    """Return the axes of the mesh whose groups these are, the innermost first; none if they are of no mesh."""
    bounds = {1, ranks}
    for group in groups:
        steps = set(np.diff(group).tolist())
        if len(steps) == 1 and min(steps) > 0:
            step = min(steps)
            bounds |= {step, step * len(group)}
    ordered = sorted(bounds)
    if any(outer % inner for inner, outer in itertools.pairwise(ordered)) or ordered[-1] != ranks:
        return []
    return [_Axis(outer // inner, inner) for inner, outer in itertools.pairwise(ordered)]


def _moved(ranks: Sequence[int], axes: list[_Axis], order: Sequence[int]) -> list[int]:
    """Return where ranks are if the axes have another order, the innermost first."""
    strides, extent = [0] * len(axes), 1
    for place in order:
        strides[place] = extent
        extent *= axes[place].size
    return sorted(
        sum(rank // axis.stride % axis.size * stride for axis, stride in zip(axes, strides, strict=True))
        for rank in ranks
    )


def _price(signature: Signature, topology: Topology, ranks: Sequence[int]) -> float:
    if signature.name == "send":  # takes no time of the sender
        return 0.0
    return collective_seconds(signature.name, float(signature.args["bytes"]), cluster=topology, ranks=ranks)


# ---- larger buckets


def _larger_buckets(timeline: Timeline, summary: Summary) -> Bottleneck | None:
    """Replay with the all-reduces of a step in larger buckets, each of which begins when its last part is ready."""
    trace = timeline.trace
    topology, signature = _topology(timeline, summary), trace.columns["signature"]
    series = [item for item in _series(timeline) if len(item) > 1]
    largest = max((_bytes(trace, row) for item in series for row in item), default=0)
    best: tuple[float, float, Array] | None = None
    for factor in FACTORS:
        seconds, changed = timeline.seconds.copy(), False
        for item in series:
            for bucket in _buckets(trace, item, factor * largest):
                changed |= len(bucket) > 1
                ranks = list(ranks_of(trace.signatures[signature[bucket[0]]]))
                whole = float(sum(_bytes(trace, row) for row in bucket))
                seconds[bucket[:-1]] = 0.0
                if len(bucket) > 1:
                    seconds[bucket[-1]] = collective_seconds("all_reduce", whole, cluster=topology, ranks=ranks)
        if not changed:
            continue
        saved = _saving(summary, replayed(timeline, seconds=seconds))
        if best is None or saved > best[0]:
            best = saved, factor * largest, np.concatenate(series)
    if best is None:
        return None
    saved, limit, reduces = best
    first, last, *_ = steady(timeline)
    rows = reduces[(reduces >= first) & (reduces < last)]
    line = trace.longest_line(rows, timeline.seconds[rows])
    in_backward = 2 * np.count_nonzero(trace.columns["phase"][rows] == IN_BACKWARD) > len(rows)
    mib = max(round(limit / 2**20), 1)
    return Bottleneck(
        f"communication: {quantity(len(rows), 'all-reduce')} per {summary.unit} of at most {size(largest)} each",
        "",
        f"use larger buckets: DistributedDataParallel(bucket_cap_mb={mib})"
        if in_backward
        else f"reduce gradients in buckets of {mib} MiB, as DistributedDataParallel does",
        saved,
        key="communication",
        remedy="larger-buckets",
        line=line,
    )


def _series(timeline: Timeline) -> Iterator[list[int]]:
    """Yield all-reduces of the whole recording that could be one: no other launch uses a result before the last."""
    trace, columns = timeline.trace, timeline.trace.columns
    if not any(item.op.startswith("c10d::all_reduce") for item in trace.signatures):
        return
    step = np.searchsorted(timeline.steps.ends, np.arange(len(trace)), side="right")
    reduces = np.asarray([item.op.startswith("c10d::all_reduce") for item in trace.signatures], dtype=bool)
    current: list[int] = []
    held: set[int] = set()  # the storages of the results
    key: tuple[Any, ...] = ()
    for row in np.flatnonzero(columns["kind"] == LAUNCH).tolist():
        number = int(columns["signature"][row])
        used = {use >> 1 for use in trace.uses[trace.offsets[row] : trace.offsets[row + 1]].tolist()}
        item = trace.signatures[number]
        new = (
            (tuple(ranks_of(item)), item.dtype, columns["phase"][row], columns["stream"][row], int(step[row]))
            if reduces[number]
            else ()
        )
        if held & used or (new and new != key):
            yield current
            current, held, key = [], set(), ()
        if new:
            current, key = [*current, row], new
            held |= used
    yield current


def _buckets(trace: Trace, rows: list[int], limit: float) -> Iterator[list[int]]:
    bucket: list[int] = []
    whole = 0
    for row in rows:
        if bucket and whole + _bytes(trace, row) > limit:
            yield bucket
            bucket, whole = [], 0
        bucket.append(row)
        whole += _bytes(trace, row)
    yield bucket


def _bytes(trace: Trace, row: int) -> int:
    return int(trace.signatures[int(trace.columns["signature"][row])].args["bytes"])


# ---- gradients that are reduced as soon as they are ready


def _beside_kernels(timeline: Timeline, summary: Summary) -> Bottleneck | None:
    """Replay with every all-reduce as soon as its data is ready, and its wait just before the data is used."""
    trace, columns = timeline.trace, timeline.trace.columns
    reduces = np.asarray([item.op.startswith("c10d::all_reduce") for item in trace.signatures], dtype=bool)
    place = np.arange(len(trace), dtype=np.float64)
    moved = []
    for row in np.flatnonzero((columns["kind"] == LAUNCH) & reduces[columns["signature"]]).tolist():
        if not _waits_at_once(columns, row):
            continue
        before, after = _neighbours(timeline, row)
        if (columns["kind"][before + 1 : row] == LAUNCH).any() or (columns["kind"][row + 1 : after] == LAUNCH).any():
            place[row - 2 : row + 2], place[row + 2] = before + 0.25, after - 0.25
            moved.append(row)
    first, last, *_ = steady(timeline)
    rows = np.asarray([row for row in moved if first <= row < last], dtype=np.int64)
    if not len(rows):
        return None
    order = np.argsort(place, kind="stable")
    other = replayed(
        timeline,
        columns={name: column[order] for name, column in columns.items()},
        seconds=timeline.seconds[order],
    )
    line = trace.longest_line(rows, timeline.seconds[rows])
    return Bottleneck(
        f"communication: {quantity(len(rows), 'all-reduce')} per {summary.unit} could run beside kernels",
        "",
        "reduce each gradient as soon as it is ready, as DistributedDataParallel does, or in a hook with async_op=True "
        f"({line or 'an unknown line'})",
        _saving(summary, other),
        key="communication",
        remedy="overlap",
        line=line,
    )


def _waits_at_once(columns: dict[str, Array], row: int) -> bool:
    """Return True if a collective is called without async_op: the program's stream waits for it directly after."""
    around = columns["kind"][max(row - 2, 0) : row + 3].tolist()
    events = columns["object"][max(row - 2, 0) : row + 3].tolist()
    wanted = [EVENT_RECORD, EVENT_WAIT, LAUNCH, EVENT_RECORD, EVENT_WAIT]
    return bool(around == wanted and events[0] == events[1] and events[3] == events[4])


def _neighbours(timeline: Timeline, row: int) -> tuple[int, int]:
    """Return the rows of the same step before and after this one that use its tensors, or the step's bounds."""
    trace = timeline.trace
    ends = timeline.steps.ends
    step = int(np.searchsorted(ends, row, side="right"))
    begin, end = int(ends[step - 1]) if step else 0, int(ends[step]) - 1 if step < len(ends) else len(trace)
    used = np.unique(trace.uses[trace.offsets[row] : trace.offsets[row + 1]] >> 1)

    def touching(first: int, last: int) -> Array:
        uses = np.isin(trace.uses[trace.offsets[first] : trace.offsets[last]] >> 1, used)
        counts = np.diff(trace.offsets[first : last + 1])
        touched: Array = (
            np.flatnonzero(np.bincount(np.repeat(np.arange(last - first), counts), uses, last - first)) + first
        )
        return touched

    earlier, later = touching(begin, row), touching(row + 1, end)
    return int(earlier[-1]) if len(earlier) else begin, int(later[0]) if len(later) else end
