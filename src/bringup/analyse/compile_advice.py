"""Advice for steps that wait for launches or move the same tensors several times: torch.compile, or a larger batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse import changes
from bringup.analyse.larger_batch import BUSY, larger_batch
from bringup.analyse.summary import Bottleneck, Summary
from bringup.pricing import MEMORY
from bringup.recording.rows import DIFFERENTIABLE, IN_BACKWARD, IN_OPTIMIZER, LAUNCH, RAN
from bringup.recording.waits import DATA_DEPENDENT, SYNCHRONIZE, UPLOAD
from bringup.text import duration, quantity
from bringup.timeline.replay import Timeline, WhatIf
from bringup.timeline.steady import steady

Array = npt.NDArray[Any]
SHORT_KERNEL = 20e-6  # about the time in which the host launches the next kernel eagerly (see hosts/*.toml)
LEAST_HOST_SHARE = 0.05  # of a step: a shorter wait for launches is normal
LEAST_SHARE = 0.02  # of a step: a smaller saving is noise
LEAST_BATCH_GAIN = 1.05  # a smaller increase of the batch is not worth advising
REPEATED = 0.75  # of the steps: if so many have the same shapes, graphs that are recorded are replayed


@dataclass(frozen=True)
class Way:
    """One action: the seconds per step that it saves, its code, its text, and the numbers in the text."""

    seconds: float
    remedy: str
    action: str
    numbers: dict[str, float] = field(default_factory=dict)


def bottlenecks(timeline: Timeline, summary: Summary) -> list[Bottleneck]:
    """Return at most one bottleneck for launches and data movement, because torch.compile is the action for both."""
    if not summary.step_seconds:
        return []
    waits = summary.host_seconds >= LEAST_HOST_SHARE * summary.step_seconds
    moving, launches = _data_movement(timeline)
    moves = moving >= LEAST_SHARE * summary.step_seconds
    if not (waits or moves):
        return []
    compiled = _compiled(timeline, summary, waits)
    ways = [*compiled, *(_larger_batch(timeline, summary) if waits else [])]
    ways = [way for way in ways if way.seconds >= LEAST_SHARE * summary.step_seconds]
    if not ways:
        return []
    moves = moves and ways[0].remedy == "fuse"
    lost = (summary.host_seconds if waits else 0.0) + (moving if moves else 0.0)
    conditions, causes = [], []
    numbers: dict[str, float] = {}
    if waits:
        short = _short_launches(timeline)
        conditions.append(
            f"host-bound: the chip waits {duration(summary.host_seconds)} per {summary.unit} for launches"
        )
        causes.append(
            f"{quantity(short, 'launch')} per {summary.unit} of less than {SHORT_KERNEL * 1e6:g} us, "
            "each taking the host longer than the chip"
        )
        numbers |= {"waited_seconds": summary.host_seconds, "short_launches": short}
    if moves:
        conditions.append(f"memory-bound: pointwise operators take {duration(moving)} per {summary.unit}")
        causes.append(
            f"{quantity(launches, 'pointwise launch')} per {summary.unit}, and a chain of them moves every tensor "
            "several times"
        )
        numbers |= {"moving_seconds": moving, "launches": launches}
    if ways[0].remedy in ("fuse", "graph") and ways[0].seconds > lost:
        causes.append("fewer launches also take the chip less time")
    for way in ways:
        numbers |= way.numbers
    return [
        Bottleneck(
            ", and ".join(conditions),
            "; ".join(causes),
            ", or ".join(way.action for way in ways),
            ways[0].seconds,
            key="host-bound" if waits else "memory-bound",
            remedy=ways[0].remedy,
            numbers=numbers,
        )
    ]


def breaks(summary: Summary) -> list[Bottleneck]:
    """Return the breaks of torch.compile's graphs as a bottleneck if they cost time in every step."""
    cost = summary.graph_breaks_seconds
    if not cost:
        return []
    first = summary.graph_breaks[0]
    lines = quantity(len(summary.graph_breaks), "line")
    reads = all(".item()" in item.reason for item in summary.graph_breaks)
    action = (
        "keep the value on the chip, or set torch._dynamo.config.capture_scalar_outputs = True, which captures its read"
        if reads
        else "change these lines; torch.compile(fullgraph=True) raises an error at the first that is left"
    )
    return [
        Bottleneck(
            f"graph breaks: torch.compile cuts the program at {lines}, which costs {duration(cost)} per {summary.unit}",
            f"{first.line}: {first.reason}" + (", and others below" if len(summary.graph_breaks) > 1 else ""),
            action,
            cost,
            key="graph-breaks",
            remedy="whole-graph",
            line=first.line,
            numbers={"breaks": len(summary.graph_breaks)},
        )
    ]


def _short_launches(timeline: Timeline) -> int:
    first, last, *_ = steady(timeline)
    launched = timeline.trace.columns["kind"][first:last] == LAUNCH
    return int((launched & (timeline.end[first:last] - timeline.start[first:last] < SHORT_KERNEL)).sum())


def _data_movement(timeline: Timeline) -> tuple[float, int]:
    """Return the seconds per step of memory-bound pointwise launches on the chip, and their number."""
    first, last, *_ = steady(timeline)
    kind = timeline.trace.columns["kind"][first:last]
    rows = np.flatnonzero((kind == LAUNCH) & (timeline.fallback[first:last] < 0)) + first
    signature = timeline.trace.columns["signature"][rows]
    if not len(rows):
        return 0.0, 0
    light = timeline.work.is_family("pointwise")[signature] & (timeline.prices.bound[signature] == MEMORY)
    return float((timeline.end[rows] - timeline.start[rows])[light].sum()), int(light.sum())


def _compiled(timeline: Timeline, summary: Summary, waits: bool) -> list[Way]:
    """Return what torch.compile saves, or its mode that replays a graph if the program is compiled already."""
    if not {"eager", "graph"} <= set(timeline.chip.modes):
        return []
    step = summary.step_seconds
    covered = changes.in_passes(timeline)
    if _has_modules(timeline):
        covered &= timeline.trace.columns["module"] >= 0
    once = waits and fits_in_graph(timeline, covered)
    if _differentiates_gradients(timeline):  # AOTAutograd, which torch.compile uses, "does not support double backward"
        graph = changes.same_step_seconds(timeline, changes.as_graph(timeline, _outside_optimizers(timeline)))
        by_hand = f"replay the step as a graph that the program captures (torch.{_module(summary)}.graph)"
        action = (
            f"torch.compile cannot differentiate gradients again, so {by_hand}: {duration(graph)} per {summary.unit}"
        )
        by_graph = Way(max(step - graph, 0.0), "graph", action, {"graph_seconds": graph})
        return [by_graph] if once and not _replays(timeline) else []
    if summary.compiled_graphs:
        if not once or _replays(timeline):
            return []
        graph = changes.same_step_seconds(timeline, changes.as_graph(timeline, covered))
        action = (
            f'replay the compiled kernels as a graph: torch.compile(mode="reduce-overhead"), {duration(graph)} per step'
        )
        return [Way(max(step - graph, 0.0), "graph", action, {"graph_seconds": graph})]
    fused = changes.fused(timeline)
    alone = changes.same_step_seconds(timeline, fused)
    ways = [Way(max(step - alone, 0.0), "fuse", "fuse operators with torch.compile", {"fused_seconds": alone})]
    if once:
        graph = changes.same_step_seconds(timeline, changes.as_graph(fused, covered))
        if alone - graph >= LEAST_SHARE * step:
            action = (
                'fuse operators with torch.compile(mode="reduce-overhead"), which also replays them as a graph: '
                f"{duration(graph)} per {summary.unit}"
            )
            ways = [Way(max(step - graph, 0.0), "fuse", action, {"graph_seconds": graph})]
    return ways


def cut_seconds(timeline: Timeline, summary: Summary) -> float:
    """Return what the breaks of torch.compile's graphs cost in a step; 0 if that is noise.

    Without them, the host does not wait at their lines, and kernels are fused across them.
    """
    trace = timeline.trace
    cuts = {item.line for item in summary.graph_breaks}
    at_cuts = np.asarray([line in cuts for line in trace.lines] + [False], dtype=bool)[trace.columns["line"]]
    waits = trace.waits.where(at_cuts[trace.waits.rows] & (trace.waits.kind != UPLOAD))
    if not len(waits.rows):
        return 0.0
    whole = changes.fused(changes.without_waits(timeline, waits))
    cost = changes.same_step_seconds(timeline, changes.fused(timeline)) - changes.same_step_seconds(timeline, whole)
    return cost if cost >= LEAST_SHARE * summary.step_seconds else 0.0


def _differentiates_gradients(timeline: Timeline) -> bool:
    """Return True if a backward pass of the typical step can be differentiated: ``create_graph=True``."""
    first, last, *_ = steady(timeline)
    columns = timeline.trace.columns
    return bool(((columns["kind"][first:last] == LAUNCH) & (columns["bytes"][first:last] == DIFFERENTIABLE)).any())


def _outside_optimizers(timeline: Timeline) -> Array:
    outside: Array = timeline.trace.columns["phase"] != IN_OPTIMIZER
    return outside


def _module(summary: Summary) -> str:
    return "cuda" if summary.named_cuda else "chip"


def _larger_batch(timeline: Timeline, summary: Summary) -> list[Way]:
    """Return what a larger batch saves for the same samples."""
    if summary.step_seconds <= LEAST_BATCH_GAIN * summary.device_seconds:
        return []
    if not summary.samples:  # what would grow is not known: a graph, or points that depend on each other
        return []
    larger = larger_batch(timeline)
    if larger is None and 2 * summary.memory.peak_bytes > summary.room_bytes:
        return []  # twice the batch may not fit
    if larger is None or not larger.samples:
        # The host's work is the same for a larger batch, so its share is the most that is saved for the same samples.
        without = changes.same_step_seconds(timeline, changes.replayed(timeline, WhatIf(dispatch_scale=0.0)))
        return [Way(max(summary.step_seconds - without, 0.0), "larger-batch", "raise the batch")]
    if larger.busy <= summary.device_seconds / summary.step_seconds:
        return []  # what the chip computes does not grow with the batch, so the estimate says little
    even, only = ("", "") if larger.busy >= BUSY else ("even ", "only ")
    at = f"raise the batch: {even}at batch {larger.samples:,} the chip is busy {only}{larger.busy:.0%} of the time"
    return [Way(larger.saved_seconds, "larger-batch", at, {"busy_samples": larger.samples, "busy": larger.busy})]


def _replays(timeline: Timeline) -> bool:
    """Return True if the typical step replays a graph already."""
    first, last, *_ = steady(timeline)
    columns = timeline.trace.columns
    return bool(((columns["kind"][first:last] == LAUNCH) & (columns["object"][first:last] > 0)).any())


def fits_in_graph(timeline: Timeline, covered: Array) -> bool:
    """Return True if what torch.compile covers in a step can be graphs that the next steps replay.

    It cannot if a module needs a result on the host: the size of an operator's result, or a value, which may decide
    what is launched next. A step without modules can read values at one point, the border between two steps. Nor is a
    graph replayed if its shapes change from step to step.
    """
    first, last, *_ = steady(timeline)
    columns = timeline.trace.columns
    waits = timeline.trace.waits.between(first, last)
    rows = waits.rows[(waits.kind != UPLOAD) & (waits.kind != SYNCHRONIZE)]
    launched = columns["kind"] == LAUNCH
    if _has_modules(timeline):
        return not (columns["module"][rows] >= 0).any() and _repeats(timeline, covered)
    if (waits.kind == DATA_DEPENDENT).any():
        return False
    points: Array = np.unique(np.cumsum(launched)[rows])  # reads without a launch between them are one point
    return len(points) <= 1 and _repeats(timeline, covered)


def _has_modules(timeline: Timeline) -> bool:
    """Return True if the typical step calls modules that the program compiles as such.

    A function that torch.func differentiates has a backward pass, but no graph of autograd. It is compiled as a whole.
    """
    first, last, *_ = steady(timeline)
    kind, phase, module, nodes = (
        timeline.trace.columns[name][first:last] for name in ("kind", "phase", "module", "bytes")
    )
    launched = kind == LAUNCH
    by_function = (launched & (phase == IN_BACKWARD)).any() and not (launched & (nodes == RAN)).any()
    return bool((launched & (module >= 0)).any()) and not by_function


def _repeats(timeline: Timeline, covered: Array) -> bool:
    """Return True if most steps that do the work of the typical one launch the same signatures as it."""
    columns, work = timeline.trace.columns, timeline.trace.step_work
    first, last, *_ = steady(timeline)

    def launched(begin: int, end: int) -> bytes:
        return bytes(columns["signature"][begin:end][covered[begin:end]].tobytes())

    bounds = work.rows.tolist()
    steps = [launched(*bounds[i : i + 2]) for i in np.flatnonzero(work.alike).tolist()]
    return steps.count(launched(first, last)) >= REPEATED * len(steps)
