"""The replay of a priced trace on host, link and chip. docs/replay.md has the rules, with worked examples.

The host's time is *modelled* or *measured*. Modelled time is a fixed cost per class of operator, from the host file, so
equal traces have equal reports. Measured time is that of the program's threads, which includes the emulation's Python.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from bringup import pricing
from bringup.cost import FAMILIES
from bringup.errors import BringupError
from bringup.pricing import Prices, WorkTable
from bringup.pricing.collective import CONTENDED, with_collectives
from bringup.recording.rows import (
    D2D,
    D2H,
    DEVICE_SYNC,
    EVENT_RECORD,
    EVENT_SYNC,
    EVENT_WAIT,
    FORWARD,
    H2D,
    HOST,
    IN_BACKWARD,
    IN_OPTIMIZER,
    KINDS,
    LAUNCH,
    ON_HOST,
    PINNED,
    RESUME,
    SIGNAL,
    STEP,
    STREAM_SYNC,
    WAITS,
)
from bringup.recording.steps import Steps
from bringup.recording.trace import Trace
from bringup.text import duration, html_table
from bringup.timeline import library
from bringup.timeline.plans import Plans

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host, HostDispatch

Array = npt.NDArray[Any]
_PACES = ~np.isin(np.arange(256), (HOST, SIGNAL, RESUME))  # by kind of row: later rows of all threads wait for it
HostClock = Literal["modelled", "measured"]

# Time from the host's call to the start of a kernel on an idle device, for the doorbell and the front end's fetch.
# About 5 us on PCIe GPUs (wall time of an empty kernel and its synchronisation, less the time of the two calls).
LAUNCH_LATENCY = 5e-6


@dataclass(frozen=True, repr=False)
class Timeline:
    """The times of every row, in seconds from the first row.

    Attributes:
        issued: end of the host's call, without its wait.
        start, end: start and end on the row's engine.
        waited: duration of the host's wait in the call.
        seconds: duration on the engine.
        called: duration of the host's call, without its wait.
        fallback: index into `fallback_parts`, or -1. Rows that a plan puts on the host have `placed`, the last one.
        fallback_parts: seconds of [d2h, host, h2d], one row per unsupported signature, and zeros.
        host_clock: the clock of the host's time.
    """

    trace: Trace
    chip: Chip
    host: Host
    prices: Prices
    work: WorkTable
    steps: Steps
    issued: Array
    start: Array
    end: Array
    waited: Array
    seconds: Array
    called: Array
    fallback: Array
    fallback_parts: Array
    host_clock: HostClock = "modelled"

    def __repr__(self) -> str:
        """Return the machine and its time as text, on one line."""
        return f"<Timeline: {duration(self.total_seconds)} on {self.chip.name}, host {self.host.name}>"

    def _repr_html_(self) -> str:
        """Return a table for a notebook."""
        kinds, counts = np.unique(self.trace.columns["kind"], return_counts=True)
        times = {KINDS[kind]: float(self.seconds[self.trace.columns["kind"] == kind].sum()) for kind in kinds}
        rows = [
            (name, f"{count:,}", duration(times[name]))
            for name, count in zip(times, counts.tolist(), strict=True)
            if times[name]
        ]
        title = f"{duration(self.total_seconds)} on {self.chip.name}, host {self.host.name}"
        return html_table(title, rows, ("", "rows", "time on its engine"))

    @cached_property
    def finished(self) -> Array:
        """When the host has issued each row and all before it, and every device has finished them.

        Other waits of a thread do not count, because they may belong to a monitor thread. They delay only the later
        rows of their thread.
        """
        ours = _PACES[self.trace.columns["kind"]]
        done: Array = np.maximum.accumulate(np.maximum(self.end, self.issued + self.waited) * ours)
        return done

    @property
    def placed(self) -> int:
        """The number in `fallback` of rows that a plan puts on the host; `seconds` has their time."""
        return len(self.fallback_parts) - 1

    def launches_on_chip(self, first: int, last: int) -> Array:
        """Return the rows of launches from `first` to `last`, without those that a plan puts on the host."""
        kind, at = (self.trace.columns[name][first:last] for name in ("kind", "object"))
        return np.flatnonzero((kind == LAUNCH) & (at != ON_HOST)) + first

    def stretch(self, rows: Any) -> Array:
        """Return how many times as long contention makes rows as they are alone."""
        alone = self.seconds[rows]
        elapsed = self.end[rows] - self.start[rows]
        stretch: Array = np.divide(elapsed, alone, out=np.ones_like(elapsed), where=alone > 0)
        return stretch

    @property
    def total_seconds(self) -> float:
        """Seconds from the first row to the end of the host's last call and of all device work."""
        return float(max(self.end.max(initial=0.0), (self.issued + self.waited).max(initial=0.0)))


@dataclass(frozen=True)
class WhatIf:
    """A change of the machine for a replay.

    Attributes:
        graph: True if launches are replayed from a graph, at little cost for the host. None means True only for a chip
            without eager mode.
        dispatch_scale: factor for the host's time per launch.
        link_scale: factor for the link's bandwidth.
        keep_fallbacks: if False, the chip supports every operator.
        keep_plans: if False, the chip's library needs no plans for attention.
    """

    graph: bool | None = None
    dispatch_scale: float = 1.0
    link_scale: float = 1.0
    keep_fallbacks: bool = True
    keep_plans: bool = True


AS_IS = WhatIf()


def replay(
    trace: Trace,
    chip: Chip,
    host: Host,
    *,
    host_clock: HostClock = "modelled",
    prices: Prices | None = None,
    what_if: WhatIf = AS_IS,
    seconds: Array | None = None,
    calls: Calls | None = None,
) -> Timeline:
    """Replay a trace on a machine.

    Args:
        trace: the recording.
        chip: the device.
        host: the host.
        host_clock: ``modelled`` or ``measured``.
        prices: the chip's prices, if they are computed already.
        what_if: a change of the machine.
        seconds: durations of all rows on their engines, instead of the prices.
        calls: the host's times, if they are computed already.
    """
    inputs = row_inputs(trace, chip, host, host_clock=host_clock, prices=prices, what_if=what_if, calls=calls)
    if seconds is not None:
        inputs = replace(inputs, seconds=seconds)
    under_way = open_replay(chip)
    try:
        feed(under_way, trace.columns, inputs)
        issued, start, end, waited = under_way.results()
    finally:
        under_way.close()
    return Timeline(
        trace,
        chip,
        host,
        inputs.prices,
        trace.work,
        trace.steps,
        issued,
        start,
        end,
        waited,
        inputs.seconds,
        inputs.host_seconds,
        inputs.fallback,
        inputs.parts,
        host_clock,
    )


@dataclass(frozen=True)
class RowInputs:
    """The inputs of the replay for every row, beside the trace's columns."""

    prices: Prices
    flags: Array
    host_seconds: Array
    seconds: Array
    share: Array
    fallback: Array
    parts: Array


def row_inputs(
    trace: Trace,
    chip: Chip,
    host: Host,
    *,
    host_clock: HostClock = "modelled",
    prices: Prices | None = None,
    what_if: WhatIf = AS_IS,
    plans: Plans | None = None,
    calls: Calls | None = None,
) -> RowInputs:
    """Return the price of every row; see `replay` for the arguments. `plans` are those that earlier rows have built."""
    graph = "eager" not in chip.modes if what_if.graph is None else what_if.graph
    work = trace.work
    prices = prices or pricing.price_table(work, trace.signatures, chip, graph=graph)
    if work.is_family("collective").any():
        prices = with_collectives(prices, trace.signatures, chip, trace.cluster)
    columns = trace.columns
    kind, signature = columns["kind"], columns["signature"]
    is_launch = kind == LAUNCH
    seconds = np.where(is_launch, prices.seconds[signature] if len(prices.seconds) else 0.0, 0.0)
    in_graph = is_launch & (columns["object"] > 0)
    if in_graph.any() and not graph:
        launches = pricing.launch_seconds(chip) - pricing.launch_seconds(chip, graph=True)
        seconds = np.where(in_graph, seconds - launches * work.kernels[signature], seconds)
    share = np.where(is_launch, prices.share[signature] if len(prices.share) else 1.0, 1.0)
    _price_copies(seconds, columns, chip, host, what_if.link_scale)
    seconds = np.where(kind == HOST, columns["object"] * 1e-9, seconds)
    placed = is_placed(columns)
    seconds = np.where(placed, on_host_seconds(trace, host), seconds) if placed.any() else seconds
    unsupported = np.flatnonzero(~prices.supported) if what_if.keep_fallbacks else np.zeros(0, np.int64)
    parts = _fallback_parts(work, unsupported, chip, host, what_if.link_scale)
    place = np.full(len(prices.seconds) + 1, -1, dtype=np.int32)
    place[unsupported] = np.arange(len(unsupported), dtype=np.int32)
    fallback = np.where(placed, len(unsupported), np.where(is_launch, place[signature], -1)).astype(np.int32)
    host_seconds = _host_seconds(trace, work, host, graph) if calls is None else calls.seconds(host, graph)
    if host_clock == "measured":
        measured = columns["host_ns"] * 1e-9
        # A graph saves what the host file has for the launches; the rest of the measured time is the program's own.
        saved = _host_seconds(trace, work, host, False) - host_seconds if what_if.graph else 0.0
        host_seconds = np.maximum(measured - saved, 0.0)
    else:
        apart = pricing.launched_by_cells(work, chip)
        if apart.any():
            host_seconds = host_seconds * np.where(is_launch, np.where(apart, work.cells, 1.0)[signature], 1.0)
        if host.dispatch.launch_us and len(prices.kernels) and not graph:
            further = np.where(apart, 0.0, prices.kernels - 1)[signature] * host.dispatch.launch_us * 1e-6
            counted = (columns["phase"] == IN_BACKWARD) & work.is_family(*host.dispatch.backward_families)[signature]
            # Calls of the driver, whose code is in the host's caches by then. Times of backward passes have them.
            host_seconds = host_seconds + np.where(is_launch & ~in_graph & ~placed & ~counted, further, 0.0)
    if chip.launch.attention_plan_ms and what_if.keep_plans:
        host_seconds = host_seconds.copy()
        rows = (plans or Plans()).first_uses(trace) if calls is None else calls.plans
        host_seconds[rows] += chip.launch.attention_plan_ms * 1e-3
    host_seconds = host_seconds * what_if.dispatch_scale
    flags = columns["flags"]
    if not pricing.class_of(chip).queues:
        flags = np.where(is_launch, flags | WAITS, flags)
    if not all(np.isfinite(values).all() for values in (host_seconds, seconds, share, parts)):
        raise BringupError(
            f"the recording's time on {chip.name} with host {host.name} is not finite: record the program again"
        )
    return RowInputs(prices, flags.astype(np.uint8), host_seconds, seconds, share, fallback, parts)


class Calls:
    """The host's times of one trace, which are the same for every chip."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._seconds: dict[tuple[str, bool], tuple[Host, Array]] = {}

    @cached_property
    def plans(self) -> Array:
        """The rows that build a plan."""
        return Plans().first_uses(self.trace)

    def seconds(self, host: Host, graph: bool) -> Array:
        """Return the modelled time of the host for every row."""
        entry = self._seconds.get((host.name, graph))
        if entry is None or entry[0] is not host:
            seconds = _host_seconds(self.trace, self.trace.work, host, graph)
            seconds.flags.writeable = False
            entry = self._seconds[host.name, graph] = (host, seconds)
        return entry[1]


def calls_of_placed(trace: Trace, host: Host, rows: Array) -> Array:
    """Return the seconds of the host's call in these rows if a plan puts them on the host."""
    columns = {**trace.columns, "object": trace.columns["object"].copy()}
    columns["object"][rows] = ON_HOST
    placed = replace(trace, columns=columns)
    placed.signatures, placed.work = trace.signatures, trace.work
    calls: Array = _host_seconds(placed, trace.work, host, False)[rows]
    return calls


def open_replay(chip: Chip) -> library.Replay:
    """Begin a replay, which the caller closes."""
    launch = chip.launch
    return library.Replay(
        LAUNCH_LATENCY if pricing.class_of(chip).queues else 0.0,
        launch.queue_depth,
        launch.copy_engines,
        chip.compute.concurrent_kernels,
        CONTENDED,
    )


def feed(under_way: library.Replay, columns: dict[str, Array], inputs: RowInputs) -> None:
    """Replay further rows."""
    of_rows = {
        **{name: columns[name] for name in ("kind", "device", "stream", "thread", "object")},
        **{name: getattr(inputs, name) for name in ("flags", "host_seconds", "seconds", "share", "fallback")},
    }
    under_way.feed(of_rows, inputs.parts)


def _price_copies(seconds: Array, columns: dict[str, Array], chip: Chip, host: Host, scale: float) -> None:
    kind, size = columns["kind"], columns["bytes"]
    pinned = (columns["flags"] & PINNED) != 0
    for which, rate in ((H2D, chip.link.h2d_gb_s), (D2H, chip.link.d2h_gb_s)):
        rows = kind == which
        # Pageable memory is copied piece by piece through a pinned buffer, so the slower of the two copies decides.
        rates = np.where(pinned[rows], rate * scale, min(rate * scale, host.compute.pageable_gb_s)) * 1e9
        seconds[rows] = chip.link.latency_us * 1e-6 + size[rows] / rates
    rows = kind == D2D
    between = chip.interconnect.gb_s if chip.interconnect else min(chip.link.h2d_gb_s, chip.link.d2h_gb_s)
    seconds[rows] = chip.link.latency_us * 1e-6 + size[rows] / (between * 1e9)


def _fallback_parts(work: WorkTable, which: Array, chip: Chip, host: Host, scale: float) -> Array:
    """Return seconds of [d2h, host, h2d] for signatures that run on the host; their copies use pageable memory."""
    latency = chip.link.latency_us * 1e-6
    down = min(chip.link.d2h_gb_s * scale, host.compute.pageable_gb_s) * 1e9
    up = min(chip.link.h2d_gb_s * scale, host.compute.pageable_gb_s) * 1e9
    flops = work.flops[which] / (host.compute.vector_tflops * 1e12)
    moved = work.bytes[which] / (host.compute.memory_gb_s * 1e9)
    compute = host.compute.kernel_us * 1e-6 * work.kernels[which] + np.maximum(flops, moved)
    parts = [latency + work.down_bytes[which] / down, compute, latency + work.up_bytes[which] / up]
    return np.append(np.stack(parts, axis=1), np.zeros((1, 3)), axis=0)


def is_placed(columns: dict[str, Array]) -> Array:
    """Return a mask of the launches and copies that a plan puts on the host."""
    placed: Array = columns["object"] == ON_HOST
    return placed & np.isin(columns["kind"], (LAUNCH, H2D, D2H)) if placed.any() else placed


def on_host_seconds(trace: Trace, host: Host) -> Array:
    """Return for every row the seconds that the host computes if a plan puts the launch or copy there, else 0.

    The host's call is not part of it: `_host_seconds` has the views, and autograd's node.
    """
    columns, work, compute = trace.columns, trace.work, host.compute
    kind, signature = columns["kind"], columns["signature"]
    memory = compute.memory_gb_s * 1e9
    seconds = np.zeros(len(kind))
    calls = np.zeros(len(kind))  # of kernels of the CPU
    launched = kind == LAUNCH
    if launched.any():
        # The CPU has no kernels over lists: it calls the operator for each tensor.
        lists = [len(item.results) if item.name.startswith("_foreach") else 0 for item in trace.signatures]
        kernels = np.maximum(work.kernels, lists)
        body = np.maximum(work.flops / (compute.vector_tflops * 1e12), work.bytes / memory)
        seconds[launched], calls[launched] = body[signature[launched]], kernels[signature[launched]]
    copied = np.isin(kind, (H2D, D2H))  # the copy reads and writes the host's memory
    seconds[copied], calls[copied] = 2 * columns["bytes"][copied] / memory, 1
    if host.dispatch.program != 1:  # a kernel between others finds nothing of its own in the caches, wherever it runs
        calls[_between_others(columns)] *= host.dispatch.program
    return seconds + compute.kernel_us * 1e-6 * calls


def _host_seconds(trace: Trace, work: WorkTable, host: Host, graph: bool) -> Array:
    """Return the modelled time of the host for every row."""
    columns = trace.columns
    dispatch, kind = host.dispatch, columns["kind"]
    cost = np.zeros(len(kind))
    placed = is_placed(columns)
    in_backward = columns["phase"] == IN_BACKWARD
    launch_us = dispatch.launch_us or 0.0
    if len(work.family) and not graph:
        forward, backward = (
            _by_family(dispatch, in_backward=which)[work.family] + launch_us for which in (False, True)
        )
        if dispatch.tensor_us:
            tensors = [len(signature.tensors) for signature in trace.signatures]
            lists = np.where(work.is_family("optimizer"), tensors, 0) * dispatch.tensor_us
            forward, backward = forward + lists, backward + lists
        signature = columns["signature"]
        by_row = np.where(in_backward, backward[signature], forward[signature])
        by_row = np.where(placed, 0.0, by_row) + np.where(in_backward, dispatch.node_us or 0.0, 0.0)
        cost = np.where(kind == LAUNCH, by_row, cost)
    cost[np.isin(kind, (H2D, D2H, D2D)) & ~placed] = dispatch.copy_us
    cost[np.isin(kind, (STREAM_SYNC, DEVICE_SYNC, EVENT_SYNC))] = dispatch.synchronize_us
    cost[np.isin(kind, (EVENT_RECORD, EVENT_WAIT))] = dispatch.event_us or 0.0
    # Allocations and frees stay 0, because a cached block takes no notable time beside its launch.
    if not graph:
        cost += columns["views"] * dispatch.view_us
        cost *= np.where(in_backward, dispatch.backward, 1.0)
        if dispatch.program != 1:
            rows = _between_others(columns)
            cost[rows[~np.isin(rows, _repeated_by_optimizers(trace))]] *= dispatch.program
    else:
        cost[np.isin(kind, (FORWARD, STEP))] = dispatch.matmul_us + launch_us  # one launch of a compiled graph each
    _price_replays(cost, columns, dispatch.matmul_us + launch_us)
    return cost * 1e-6


def _by_family(dispatch: HostDispatch, *, in_backward: bool) -> Array:
    """Return the microseconds of a launch of every family, without the driver's call."""
    cost = np.full(len(FAMILIES), dispatch.pointwise_us)
    cost[[FAMILIES.index(name) for name in ("normalization", "softmax", "attention")]] = dispatch.norm_us
    cost[[FAMILIES.index(name) for name in ("matmul", "convolution")]] = dispatch.matmul_us
    for name, value in (dispatch.families | (dispatch.backward_families if in_backward else {})).items():
        cost[FAMILIES.index(name)] = value
    return cost


def _between_others(columns: dict[str, Array]) -> Array:
    """Return the launches whose preceding launch was another one: none of their code is in the host's inner caches."""
    rows = np.flatnonzero(columns["kind"] == LAUNCH)
    signature = columns["signature"][rows]
    others: Array = rows[np.append(True, signature[1:] != signature[:-1])] if len(rows) else rows
    return others


def _repeated_by_optimizers(trace: Trace) -> Array:
    """Return the launches of an optimizer whose operator has run in the same step, and is in the caches."""
    rows = np.flatnonzero(trace.columns["kind"] == LAUNCH)
    phase = trace.columns["phase"][rows]
    _, operator = np.unique([signature.op for signature in trace.signatures], return_inverse=True)
    series = np.cumsum(np.append(False, phase[1:] != phase[:-1]))
    of_optimizers = phase == IN_OPTIMIZER
    rows, series = rows[of_optimizers], series[of_optimizers]
    first = np.unique(np.stack([series, operator[trace.columns["signature"][rows]]]), axis=1, return_index=True)[1]
    repeated: Array = np.delete(rows, first)
    return repeated


def _price_replays(cost: Array, columns: dict[str, Array], launch_us: float) -> None:
    """Set the host's cost of the launches of a replayed graph: one call for the first, none for the others."""
    graphs = np.where(columns["kind"] == LAUNCH, np.maximum(columns["object"], 0), 0)
    rows = np.flatnonzero(graphs)
    if not len(rows):
        return
    first = np.append(True, np.diff(graphs[rows]) != 0)
    cost[rows] = np.where(first, launch_us, 0.0)
