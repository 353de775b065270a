"""Replays of a changed program: the price of what an advice asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup import pricing
from bringup.analyse.chains import chains
from bringup.pricing import Prices
from bringup.recording.rows import (
    DEVICE_SYNC,
    EVENT_SYNC,
    FORWARD,
    HOST,
    IN_BACKWARD,
    IN_FORWARD,
    LAUNCH,
    NO_NODE,
    PINNED,
    RAN,
    STREAM_SYNC,
    WAITS,
)
from bringup.recording.waits import READ, Waits
from bringup.timeline.replay import AS_IS, Timeline, WhatIf, replay
from bringup.timeline.steady import steady

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

Array = npt.NDArray[Any]
AHEAD = np.iinfo(np.int16).max  # a stream that no program has: torch numbers 32 per device


def replayed(
    timeline: Timeline,
    what_if: WhatIf = AS_IS,
    *,
    columns: dict[str, Array] | None = None,
    prices: Prices | None = None,
    chip: Chip | None = None,
    seconds: Array | None = None,
) -> Timeline:
    """Replay a timeline's trace with other columns, prices, seconds or chip; clock and steps stay the same."""
    trace = timeline.trace
    if columns is not None:
        trace = replace(trace, columns=columns)
        trace.signatures, trace.work = timeline.trace.signatures, timeline.trace.work
        trace.steps, trace.step_work = timeline.trace.steps, timeline.trace.step_work
    same = what_if.graph is None and chip is None
    other = replay(
        trace,
        chip or timeline.chip,
        timeline.host,
        host_clock=timeline.host_clock,
        prices=prices or (timeline.prices if same else None),
        what_if=what_if,
        seconds=seconds,
    )
    return replace(other, steps=timeline.steps)


def same_step(timeline: Timeline, other: Timeline) -> tuple[float, float]:
    """Return the start and the end in another replay of the step that is the typical one in `timeline`."""
    first, last, *_ = steady(timeline)
    done = other.finished
    return float(done[first - 1]) if first else 0.0, float(done[last - 1])


def same_step_seconds(timeline: Timeline, other: Timeline) -> float:
    """Return the seconds in another replay of the step that is the typical one in `timeline`."""
    since, until = same_step(timeline, other)
    return until - since


def without_waits(timeline: Timeline, waits: Waits) -> Timeline:
    """Replay without these waits: launches no longer hold the host; synchronisations and reads are left out."""
    columns = dict(timeline.trace.columns)
    _leave_out(columns, waits)
    _as_nothing(columns, waits.copy[(waits.kind == READ) & (waits.copy >= 0)])
    return replayed(timeline, columns=columns)


def copied_ahead(timeline: Timeline, copies: Array, waits: Waits) -> Timeline:
    """Replay with copies of pinned memory one batch ahead, on a stream of their own, and without the waits for them."""
    columns = dict(timeline.trace.columns)
    _leave_out(columns, waits)
    columns["flags"], columns["stream"] = columns["flags"].copy(), columns["stream"].copy()
    columns["flags"][copies] |= PINNED
    columns["stream"][copies] = AHEAD
    return replayed(timeline, columns=columns)


def supported(timeline: Timeline, op: str, dtype: str) -> Timeline:
    """Replay on a chip that has one more operator in one dtype; `op` is without its overload."""
    signatures = timeline.trace.signatures
    new = np.asarray([item.op.split(".")[0] == op and item.dtype == dtype for item in signatures], dtype=bool)
    return replayed(timeline, prices=replace(timeline.prices, supported=timeline.prices.supported | new))


def in_passes(timeline: Timeline) -> Array:
    """Return for every row True if it is a launch of a forward or a backward pass, which torch.compile covers.

    In a step that trains, launches are part of the forward pass if autograd made a node for them, or for others of the
    same outermost module call. So augmentations, moving averages of weights and metrics are not. Nor are the sums of
    gradients over batches, which have no line.
    """
    columns = timeline.trace.columns
    phase, launched = columns["phase"], columns["kind"] == LAUNCH
    step = np.searchsorted(timeline.trace.step_work.rows, np.arange(len(phase)), side="right")
    node = launched & (phase == IN_FORWARD) & (columns["bytes"] != NO_NODE)
    trains = np.bincount(step, node & (columns["bytes"] == RAN), len(timeline.trace.step_work.rows) + 1) > 0
    call = np.cumsum(columns["kind"] == FORWARD)
    trained = (columns["module"] >= 0) & (np.bincount(call, node) > 0)[call]
    forward = launched & (phase == IN_FORWARD) & (trained | node | ~trains[step])
    passes: Array = forward | (launched & (phase == IN_BACKWARD) & (columns["line"] >= 0))
    return passes


def fused(timeline: Timeline) -> Timeline:
    """Replay with each chain of pointwise launches of the typical step's passes as one kernel; see `chains`."""
    columns = dict(timeline.trace.columns)
    first, last, *_ = steady(timeline)
    fusible = chains(timeline, first, last, in_passes(timeline))
    seconds = timeline.seconds.copy()
    seconds[fusible.first], seconds[fusible.others] = fusible.seconds, 0.0
    columns["kind"], columns["object"] = columns["kind"].copy(), columns["object"].copy()
    columns["flags"] = columns["flags"].copy()
    _as_nothing(columns, fusible.others)
    return replayed(timeline, columns=columns, seconds=seconds)


def as_graph(timeline: Timeline, covered: Array) -> Timeline:
    """Replay with some launches as those of recorded graphs, and the others as they are.

    A graph ends with the step, where the phase changes and where the host waits. Each costs the host one call.

    Args:
        timeline: the replayed trace.
        covered: for every row, True if a graph may have it.
    """
    columns = dict(timeline.trace.columns)
    kind, phase, before = columns["kind"], columns["phase"], columns["object"]
    launched = kind == LAUNCH
    waits = (launched & ((columns["flags"] & WAITS) != 0)) | np.isin(kind, (STREAM_SYNC, DEVICE_SYNC, EVENT_SYNC))
    rows = np.flatnonzero(launched)
    changed = np.zeros(len(kind), dtype=bool)
    changed[rows[1:]] = phase[rows[1:]] != phase[rows[:-1]]
    ends = timeline.steps.ends
    changed[ends[ends < len(changed)]] = True
    number = np.cumsum(waits | changed) + 1 + int(before[launched].max(initial=0))
    new = launched & covered & (before <= 0) & (timeline.fallback < 0) & ~waits
    columns["object"] = np.where(new, number, before)
    chip, kernels = timeline.chip, timeline.work.kernels[columns["signature"]] if len(timeline.work.kernels) else 0.0
    saved = pricing.launch_seconds(chip) - pricing.launch_seconds(chip, graph=True)
    seconds = np.where(new, timeline.seconds - saved * kernels, timeline.seconds)
    return replayed(timeline, columns=columns, seconds=np.maximum(seconds, 0.0))


def _leave_out(columns: dict[str, Array], waits: Waits) -> None:
    for name in ("kind", "object", "flags"):
        columns[name] = columns[name].copy()
    launched = columns["kind"][waits.rows] == LAUNCH
    columns["flags"][waits.rows[launched]] &= ~np.uint8(WAITS)
    _as_nothing(columns, waits.rows[~launched])


def _as_nothing(columns: dict[str, Array], rows: Array) -> None:
    """Turn rows into waits of no time."""
    columns["kind"][rows], columns["object"][rows], columns["flags"][rows] = HOST, 0, 0
