"""Bottlenecks as condition, cause and action with numbers, and what-ifs: the same trace on a changed machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup import pricing
from bringup.cost import FAMILIES
from bringup.pricing import COMPUTE, MEMORY, WorkTable
from bringup.recording.trace import D2H, DEVICE_SYNC, EVENT_SYNC, H2D, LAUNCH, PINNED, STREAM_SYNC, Trace
from bringup.text import duration, size
from bringup.timeline.replay import Timeline, replay

if TYPE_CHECKING:
    from bringup.analyse.summary import Summary

Array = npt.NDArray[Any]
VALUE_BYTES = 64  # a copy to the host up to this size is a value that the program reads
SHORT_KERNEL = 20e-6  # what the host takes to launch the next one, eagerly (see hosts/*.toml)


@dataclass(frozen=True)
class Bottleneck:
    """What limits a step, why, what to do, and the seconds of a step that it costs."""

    condition: str
    cause: str
    action: str
    seconds: float


@dataclass(frozen=True)
class WhatIf:
    """A change of the machine or the program, and the step's time with it."""

    change: str
    step_seconds: float


def advise(timeline: Timeline, summary: Summary) -> tuple[list[Bottleneck], list[WhatIf]]:
    """Find the three dearest bottlenecks, and replay what would help."""
    what_if = _what_ifs(timeline, summary)
    found = [
        *_host_bound(timeline, summary, what_if),
        *_fallbacks(summary),
        *_copies(timeline, summary),
        *_waits(timeline, summary),
        *_engines(timeline, summary, what_if),
    ]
    floor = 0.01 * summary.step_seconds
    ranked = sorted((item for item in found if item.seconds > floor), key=lambda item: (-item.seconds, item.condition))
    return ranked[:3], what_if


def _step_seconds(timeline: Timeline) -> float:
    from bringup.analyse.summary import steady

    _, _, since, until, count = steady(timeline)
    return (until - since) / count


def _what_ifs(timeline: Timeline, summary: Summary) -> list[WhatIf]:
    trace, chip, host = timeline.trace, timeline.chip, timeline.host
    found = []

    def ask(change: str, other: Timeline) -> None:
        found.append(WhatIf(change, _step_seconds(other)))

    if "eager" in chip.modes and "graph" in chip.modes:
        ask("launches replayed as a graph", replay(trace, chip, host, graph=True))
    ask("host twice as fast", replay(trace, chip, host, prices=timeline.prices, dispatch_scale=0.5))
    ask("link twice as fast", replay(trace, chip, host, prices=timeline.prices, link_scale=2.0))
    if summary.fallbacks:
        ask("every operator on the chip", replay(trace, chip, host, prices=timeline.prices, keep_fallbacks=False))
    half = next((name for name in ("bfloat16", "float16") if name in chip.matrix.tflops), None)
    if half and any(dtype == "float32" for dtype in timeline.work.dtypes):
        table = _in_half(timeline.work, half)
        prices = pricing.price_table(table, trace.signatures, chip)
        prices = replace(prices, supported=timeline.prices.supported)
        ask(f"float32 products in {half}", replay(trace, chip, host, prices=prices))
    wider = chip.model_copy(
        update={"memory": chip.memory.model_copy(update={"bandwidth_gb_s": 2 * chip.memory.bandwidth_gb_s})}
    )
    ask("memory bandwidth doubled", replay(trace, wider, host))
    faster = {name: 2 * rate for name, rate in chip.matrix.tflops.items()}
    quick = chip.model_copy(update={"matrix": chip.matrix.model_copy(update={"tflops": faster})})
    ask("matrix engine doubled", replay(trace, quick, host))
    return found


def _in_half(work: WorkTable, dtype: str) -> WorkTable:
    """The same work with float32 products in a 16-bit dtype: half of their bytes too."""
    product = np.isin(work.family, [FAMILIES.index(name) for name in ("matmul", "convolution", "attention")])
    changed = product & (np.asarray(work.dtypes) == "float32")
    factor = np.where(changed, 0.5, 1.0)
    works = tuple(
        replace(item, dtype=dtype, read_bytes=item.read_bytes / 2, written_bytes=item.written_bytes / 2)
        if half
        else item
        for item, half in zip(work.works, changed, strict=True)
    )
    dtypes = tuple(dtype if half else name for name, half in zip(work.dtypes, changed, strict=True))
    item = work.item * factor[work.owner]
    return replace(work, works=works, dtypes=dtypes, bytes=work.bytes * factor, item=item)


def _gain(what_if: list[WhatIf], start: str) -> float | None:
    return next((item.step_seconds for item in what_if if item.change.startswith(start)), None)


def _host_bound(timeline: Timeline, summary: Summary, what_if: list[WhatIf]) -> list[Bottleneck]:
    from bringup.analyse.summary import steady

    if summary.host_seconds < 0.05 * summary.step_seconds:
        return []
    first, last, _, _, count = steady(timeline)
    columns = timeline.trace.columns
    launched = columns["kind"][first:last] == LAUNCH
    short = launched & (timeline.end[first:last] - timeline.start[first:last] < SHORT_KERNEL)
    per_step = int(short.sum()) // count
    working = summary.device_seconds
    times = summary.step_seconds / working if working else 0.0
    graph = _gain(what_if, "launches replayed")
    batch = f"batch {math.ceil(summary.samples * times):,}" if summary.samples else f"{times:.1f} times this batch"
    even = f", or raise the batch: break-even at {batch}" if times > 1.05 else ""
    action = "fuse (torch.compile)" + (f": {duration(graph)} as a graph" if graph is not None else "") + even
    return [
        Bottleneck(
            f"host-bound: the chip waits {duration(summary.host_seconds)} per step for launches",
            f"{per_step:,} launches of < 20 us per step, each of which takes the host longer than the chip",
            action,
            summary.host_seconds,
        )
    ]


def _fallbacks(summary: Summary) -> list[Bottleneck]:
    found = []
    for item in summary.fallbacks[:3]:
        where = f"{item.file}:{item.line}" if item.file else "an unknown line"
        found.append(
            Bottleneck(
                f"fallback: {item.op} {item.dtype} runs on the host, {duration(item.seconds)} per step",
                f"{summary.chip} does not list it; {item.count:,.3g}x at {where}",
                "use another dtype or operator there, move the step to the host on purpose, or ask the vendor for it",
                item.seconds,
            )
        )
    return found


def _copies(timeline: Timeline, summary: Summary) -> list[Bottleneck]:
    from bringup.analyse.summary import steady

    first, last, _, _, count = steady(timeline)
    columns = timeline.trace.columns
    kind, flags = columns["kind"][first:last], columns["flags"][first:last]
    every = np.isin(kind, (H2D, D2H))
    # A read of some values is a wait, see `_waits`; pinning does not help it.
    copies = every & ~((kind == D2H) & (columns["bytes"][first:last] <= VALUE_BYTES))
    if not copies.any() or summary.link_seconds <= 0:
        return []
    seconds = timeline.seconds[first:last]
    lost = summary.link_seconds * float(seconds[copies].sum() / seconds[every].sum())
    pageable = copies & ((flags & PINNED) == 0)
    moved = int(columns["bytes"][first:last][copies].sum()) // count
    share = float(pageable.sum()) / float(copies.sum())
    where = _dearest_line(timeline.trace, columns["line"][first:last][copies], timeline.seconds[first:last][copies])
    action = (
        "pin the host's memory (DataLoader(pin_memory=True)) and copy with non_blocking=True, one batch ahead"
        if share > 0.5
        else "copy less or earlier: on a second stream, one batch ahead; keep what does not change on the chip"
    )
    return [
        Bottleneck(
            f"link-bound: copies keep the chip waiting {duration(lost)} per step",
            f"{size(moved)} per step over {summary.link}, {share:.0%} of the copies pageable{where}",
            action,
            lost,
        )
    ]


def _waits(timeline: Timeline, summary: Summary) -> list[Bottleneck]:
    from bringup.analyse.summary import steady

    first, last, _, _, count = steady(timeline)
    columns = timeline.trace.columns
    waits = np.isin(columns["kind"][first:last], (STREAM_SYNC, DEVICE_SYNC, EVENT_SYNC))
    number = int(waits.sum()) / count
    if number < 1 or not summary.host_seconds:
        return []
    waited = timeline.waited[first:last][waits]
    where = _dearest_line(timeline.trace, columns["line"][first:last][waits], waited + 1e-12)
    # After a wait the chip is idle until the host has launched again: at most what the host costs.
    lost = min(summary.host_seconds, number * (timeline.host.dispatch.synchronize_us * 1e-6 + SHORT_KERNEL))
    return [
        Bottleneck(
            f"the host waits for the chip {number:.0f} times per step",
            f"reads of device values (.item(), .cpu(), printing){where}; the chip idles until the next launch",
            "read less often: keep sums on the chip and read them every n steps",
            lost,
        )
    ]


def _engines(timeline: Timeline, summary: Summary, what_if: list[WhatIf]) -> list[Bottleneck]:
    from bringup.analyse.summary import steady

    first, last, _, _, count = steady(timeline)
    columns = timeline.trace.columns
    rows = np.flatnonzero((columns["kind"][first:last] == LAUNCH) & (timeline.fallback[first:last] < 0)) + first
    if not len(rows):
        return []
    signature = columns["signature"][rows]
    spent = (timeline.end[rows] - timeline.start[rows]) / count
    bound, family = timeline.prices.bound[signature], timeline.work.family[signature]
    found = []
    product = np.isin(family, [FAMILIES.index(name) for name in ("matmul", "convolution", "attention")])
    full = np.asarray([dtype == "float32" for dtype in timeline.work.dtypes])[signature]
    heavy = float(spent[product & full & (bound == COMPUTE)].sum())
    half = next((item for item in what_if if item.change.startswith("float32 products")), None)
    if half is not None and heavy:
        gain = max(summary.step_seconds - half.step_seconds, 0.0)
        dtype = half.change.split()[-1]
        found.append(
            Bottleneck(
                f"compute-bound in float32: products take {duration(heavy)} per step",
                f"{summary.chip} multiplies {dtype} faster than float32",
                f"torch.autocast('chip', dtype=torch.{dtype}): {duration(half.step_seconds)} per step before its casts",
                gain,
            )
        )
    light = ~product & (bound == MEMORY)
    if light.any():
        moving = float(spent[light].sum())
        top = np.bincount(family[light], spent[light], len(FAMILIES)).argmax()
        # A chain of n pointwise operators moves every tensor n times; fused, once.
        found.append(
            Bottleneck(
                f"memory-bound: operators that only move data take {duration(moving)} per step",
                f"{int(light.sum()) // count:,} launches, most of the time in {FAMILIES[top]}",
                "fuse them (torch.compile), use fused optimizers and in-place forms, or a smaller dtype",
                moving / 2,
            )
        )
    return found


def _dearest_line(trace: Trace, lines: Array, weights: Array) -> str:
    known = lines >= 0
    if not known.any():
        return ""
    totals = np.bincount(lines[known], weights[known], len(trace.lines))
    return f", most at {trace.lines[int(totals.argmax())]}"
