"""The graphs that a compiler builds for a program: one for every series of launches with other shapes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.recording.rows import H2D, IN_OPTIMIZER, LAUNCH
from bringup.recording.trace import Trace
from bringup.timeline.replay import Timeline

Array = npt.NDArray[Any]
OURS = {"json": False}  # for the screen only
BUCKETS = 4  # the size of a bucket is the power of two that leads to at most this number of lengths


@dataclass(frozen=True)
class Compilations:
    """The graphs that were, or would be, compiled in the whole run.

    Attributes:
        graphs: their number.
        changed_at: the lines from which a step first differs from the one before, the most frequent first; for
            torch.compile, the lines that call a function which is compiled again.
        shapes: distinct shapes of steps; 0 if a step's graph does not depend on them, or if torch.compile compiles and
            compiles nothing again.
        axis: the axis of the first input that changes; -1 if there are several, or none.
        bucket, bucketed: a size to which lengths may be rounded up, and the distinct lengths that this leaves; 0 if it
            leaves as many.
        again: how often torch.compile compiled again.
    """

    graphs: int
    changed_at: list[str]
    shapes: int = field(default=0, metadata=OURS)
    axis: int = field(default=-1, metadata=OURS)
    bucket: int = field(default=0, metadata=OURS)
    bucketed: int = field(default=0, metadata=OURS)
    again: int = field(default=0, metadata=OURS)


def compilations(timeline: Timeline) -> Compilations | None:
    """Return the graphs of a chip that only runs graphs, or those of torch.compile; None if nothing is compiled.

    A chip that only runs graphs compiles one for every step with other operators, shapes or dtypes.
    """
    about = timeline.trace.about
    if "eager" not in timeline.chip.modes:
        return _by_step(timeline.trace)
    graphs = int(about.get("compiled_graphs", 0))
    again = {str(item["line"]): int(item["count"]) for item in about.get("recompilations", [])}
    lines = sorted((line for line in again if line), key=lambda line: (-again[line], line))
    if not graphs:
        return None
    if not lines:
        return Compilations(graphs, lines)
    return replace(_by_step(timeline.trace), graphs=graphs, changed_at=lines, again=sum(again.values()))


@dataclass(frozen=True)
class _Step:
    """The launches and uploads of a step: rows, signatures (-1: an upload), and what changes with their shapes."""

    rows: Array
    signatures: Array
    key: bytes  # of the whole graph
    shape: bytes  # of the graph without the optimizer, whose first step also creates its state
    lines: frozenset[int]


def _by_step(trace: Trace) -> Compilations:
    columns = trace.columns
    bounds = [trace.steps.start, *trace.steps.ends.tolist()]
    steps = [_step(trace, first, last) for first, last in pairwise(bounds)]
    steps = [step for step in steps if step.key]
    keys: set[bytes] = set()
    changes: dict[int, int] = {}
    for number, step in enumerate(steps):
        if number and step.key not in keys:
            row = _first_change(trace, steps[number - 1], step)
            line = int(columns["line"][row])
            changes[line] = changes.get(line, 0) + 1
        keys.add(step.key)
    lines = sorted((line for line in changes if line >= 0), key=lambda line: (-changes[line], trace.lines[line]))
    changed_at = [trace.lines[line] for line in lines]
    by_work: dict[frozenset[int], list[_Step]] = {}
    for step in steps:
        by_work.setdefault(step.lines, []).append(step)
    usual = max(by_work.values(), key=len, default=[])  # without evaluations and other work
    shapes = len({step.shape for step in usual})
    if shapes < 2:
        return Compilations(len(keys), changed_at)
    axis, lengths = _lengths(trace, usual)
    bucket = 1 << max(-(-max(lengths, default=1) // BUCKETS) - 1, 0).bit_length()
    bucketed = len({-(-length // bucket) for length in lengths})
    if not lengths or bucketed >= shapes:
        bucket = bucketed = 0
    return Compilations(len(keys), changed_at, shapes, axis, bucket, bucketed)


def _step(trace: Trace, first: int, last: int) -> _Step:
    columns = trace.columns
    kind = columns["kind"][first:last]
    rows = np.flatnonzero((kind == LAUNCH) | (kind == H2D)) + first
    launched = columns["kind"][rows] == LAUNCH
    signatures = np.where(launched, columns["signature"][rows], -1).astype(np.int64)
    model = launched & (columns["phase"][rows] != IN_OPTIMIZER)
    lines = frozenset(columns["line"][rows[model]].tolist())
    return _Step(rows, signatures, signatures[launched].tobytes(), signatures[model].tobytes(), lines)


def _first_change(trace: Trace, before: _Step, after: _Step) -> int:
    """Return the first row of a step at which it differs from the step before: in signature, line or uploaded bytes."""
    columns = trace.columns
    count = min(len(before.rows), len(after.rows))
    ours, others = after.rows[:count], before.rows[:count]
    differs = after.signatures[:count] != before.signatures[:count]
    differs |= columns["line"][ours] != columns["line"][others]
    differs |= (after.signatures[:count] < 0) & (columns["bytes"][ours] != columns["bytes"][others])
    return int(after.rows[int(np.argmax(differs)) if differs.any() else min(count, len(after.rows) - 1)])


def _lengths(trace: Trace, steps: list[_Step]) -> tuple[int, list[int]]:
    """Return the axis that changes from step to step and its sizes; (-1, []) if it is not a single one.

    The first launch with other shapes decides, because the shapes of later ones follow from it.
    """
    launches = [step.signatures[step.signatures >= 0] for step in steps]
    count = min(map(len, launches))
    table = np.stack([numbers[:count] for numbers in launches])
    changing = np.flatnonzero((table != table[0]).any(axis=0))
    for place in changing.tolist():
        signatures = [trace.signatures[number] for number in table[:, place].tolist()]
        shapes = [tuple(tensor.shape for tensor in (*item.tensors, *item.results)) for item in signatures]
        if len({(item.op, *map(len, shape)) for item, shape in zip(signatures, shapes, strict=True)}) > 1:
            return -1, []
        places = [(tensor, axis) for tensor, shape in enumerate(shapes[0]) for axis in range(len(shape))]
        axes = [(tensor, axis) for tensor, axis in places if len({shape[tensor][axis] for shape in shapes}) > 1]
        if axes:
            tensor, axis = axes[0]
            alone = sum(other == tensor for other, _ in axes) == 1
            return (axis, sorted({shape[tensor][axis] for shape in shapes})) if alone else (-1, [])
    return -1, []
