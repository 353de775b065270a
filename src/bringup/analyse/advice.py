"""Bottlenecks as condition, cause and action with numbers, and what-ifs: the same trace on a changed machine."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup import pricing
from bringup.analyse import ways_to_fit
from bringup.analyse.summary import Bottleneck, Summary, WhatIfResult
from bringup.cost import FAMILIES
from bringup.pricing import COMPUTE, MEMORY, WorkTable
from bringup.recording.rows import D2H, DEVICE_SYNC, EVENT_SYNC, H2D, LAUNCH, PINNED, STREAM_SYNC
from bringup.recording.trace import Trace
from bringup.text import duration, size
from bringup.timeline.replay import Timeline, WhatIf, replay
from bringup.timeline.steady import steady

Array = npt.NDArray[Any]
VALUE_BYTES = 64  # a copy to the host up to this size is a value that the program reads
SHORT_KERNEL = 20e-6  # what the host takes to launch the next one, eagerly (see hosts/*.toml)
MOST_BOTTLENECKS = 3  # one screen
LEAST_SHARE = 0.01  # of a step: a smaller bottleneck is not worth a change
LEAST_HOST_SHARE = 0.05  # of a step: a shorter wait for launches is normal
LEAST_BATCH_GAIN = 1.05  # a batch that is larger by less is no advice
MOSTLY = 0.5  # of the copies


def advise(timeline: Timeline, summary: Summary) -> Summary:
    """Return the summary with its three dearest bottlenecks, the what-ifs, and ways to fit where it does not."""
    summary = replace(summary, what_if=_what_ifs(timeline, summary))
    bottlenecks = [
        *_host_bound(timeline, summary),
        *_fallbacks(summary),
        *_copies(timeline, summary),
        *_waits(timeline, summary),
        *_engines(timeline, summary),
    ]
    least = LEAST_SHARE * summary.step_seconds
    dear = (item for item in bottlenecks if item.seconds > least)
    ranked = sorted(dear, key=lambda item: (-item.seconds, item.condition))
    ways = [] if summary.fits or summary.out_of_memory else ways_to_fit.ways(timeline, summary)
    return replace(summary, bottlenecks=ranked[:MOST_BOTTLENECKS], ways_to_fit=ways)


def _step_seconds(timeline: Timeline) -> float:
    _, _, since, until, count = steady(timeline)
    return (until - since) / count


def _what_ifs(timeline: Timeline, summary: Summary) -> list[WhatIfResult]:
    trace, chip, host, prices = timeline.trace, timeline.chip, timeline.host, timeline.prices
    results = []

    def ask(key: str, change: str, other: Timeline, dtype: str = "") -> None:
        results.append(WhatIfResult(change, _step_seconds(other), key, dtype))

    if "eager" in chip.modes and "graph" in chip.modes:
        ask("graph", "launches replayed as a graph", replay(trace, chip, host, what_if=WhatIf(graph=True)))
    ask("host", "host twice as fast", replay(trace, chip, host, prices=prices, what_if=WhatIf(dispatch_scale=0.5)))
    ask("link", "link twice as fast", replay(trace, chip, host, prices=prices, what_if=WhatIf(link_scale=2.0)))
    if summary.fallbacks:
        whole = replay(trace, chip, host, prices=prices, what_if=WhatIf(keep_fallbacks=False))
        ask("fallbacks", "every operator on the chip", whole)
    half = next((name for name in ("bfloat16", "float16") if name in chip.matrix.tflops), None)
    if half and any(dtype == "float32" for dtype in timeline.work.dtypes):
        table = pricing.price_table(_in_half(timeline.work, half), trace.signatures, chip)
        table = replace(table, supported=prices.supported)
        ask("half", f"float32 products in {half}", replay(trace, chip, host, prices=table), half)
    wider = chip.model_copy(
        update={"memory": chip.memory.model_copy(update={"bandwidth_gb_s": 2 * chip.memory.bandwidth_gb_s})}
    )
    ask("bandwidth", "memory bandwidth doubled", replay(trace, wider, host))
    faster = {name: 2 * rate for name, rate in chip.matrix.tflops.items()}
    quick = chip.model_copy(update={"matrix": chip.matrix.model_copy(update={"tflops": faster})})
    ask("matrix", "matrix engine doubled", replay(trace, quick, host))
    return results


def _in_half(work: WorkTable, dtype: str) -> WorkTable:
    """Return the work with float32 products in a 16-bit dtype, which halves their bytes too."""
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


def _host_bound(timeline: Timeline, summary: Summary) -> list[Bottleneck]:
    if summary.host_seconds < LEAST_HOST_SHARE * summary.step_seconds:
        return []
    first, last, _, _, count = steady(timeline)
    columns = timeline.trace.columns
    launched = columns["kind"][first:last] == LAUNCH
    short = launched & (timeline.end[first:last] - timeline.start[first:last] < SHORT_KERNEL)
    per_step = int(short.sum()) // count
    working = summary.device_seconds
    times = summary.step_seconds / working if working else 0.0
    graph = summary.what_if_of("graph")
    samples = math.ceil(summary.samples * times)
    batch = f"batch {samples:,}" if summary.samples else f"{times:.1f} times this batch"
    even = f", or raise the batch: break-even at {batch}" if times > LEAST_BATCH_GAIN else ""
    action = "fuse (torch.compile)" + (f": {duration(graph.step_seconds)} as a graph" if graph else "") + even
    return [
        Bottleneck(
            f"host-bound: the chip waits {duration(summary.host_seconds)} per step for launches",
            f"{per_step:,} launches of < {SHORT_KERNEL * 1e6:g} us per step, "
            "each of which takes the host longer than the chip",
            action,
            summary.host_seconds,
            key="host-bound",
            remedy="fuse",
            numbers={
                "waited_seconds": summary.host_seconds,
                "short_launches": per_step,
                **({"graph_seconds": graph.step_seconds} if graph else {}),
                **({"break_even_samples": samples} if even and summary.samples else {}),
            },
        )
    ]


def _fallbacks(summary: Summary) -> list[Bottleneck]:
    bottlenecks = []
    for item in summary.fallbacks[:MOST_BOTTLENECKS]:
        where = f"{item.file}:{item.line}" if item.file else ""
        bottlenecks.append(
            Bottleneck(
                f"fallback: {item.op} {item.dtype} runs on the host, {duration(item.seconds)} per step",
                f"{summary.chip} does not list it; {item.count:,.3g}x at {where or 'an unknown line'}",
                "use another dtype or operator there, move the step to the host on purpose, or ask the vendor for it",
                item.seconds,
                key="fallback",
                remedy="replace",
                line=where,
                numbers={"count": item.count},
            )
        )
    return bottlenecks


def _copies(timeline: Timeline, summary: Summary) -> list[Bottleneck]:
    first, last, _, _, count = steady(timeline)
    columns = timeline.trace.columns
    kind, flags = columns["kind"][first:last], columns["flags"][first:last]
    all_copies = np.isin(kind, (H2D, D2H))
    # A read of some values is a wait, see `_waits`; pinning does not help it.
    copies = all_copies & ~((kind == D2H) & (columns["bytes"][first:last] <= VALUE_BYTES))
    if not copies.any() or summary.link_seconds <= 0:
        return []
    seconds = timeline.seconds[first:last]
    lost = summary.link_seconds * float(seconds[copies].sum() / seconds[all_copies].sum())
    pageable = copies & ((flags & PINNED) == 0)
    moved = int(columns["bytes"][first:last][copies].sum()) // count
    share = float(pageable.sum()) / float(copies.sum())
    line = _dearest_line(timeline.trace, columns["line"][first:last][copies], timeline.seconds[first:last][copies])
    remedy, action = (
        (
            "pin",
            "pin the host's memory (DataLoader(pin_memory=True)) and copy with non_blocking=True, one batch ahead",
        )
        if share > MOSTLY
        else (
            "copy-less",
            "copy less or earlier: on a second stream, one batch ahead; keep what does not change on the chip",
        )
    )
    return [
        Bottleneck(
            f"link-bound: copies keep the chip waiting {duration(lost)} per step",
            f"{size(moved)} per step over {summary.link}, {share:.0%} of the copies pageable{_most_at(line)}",
            action,
            lost,
            key="link-bound",
            remedy=remedy,
            line=line,
            numbers={"bytes": moved, "pageable": share},
        )
    ]


def _waits(timeline: Timeline, summary: Summary) -> list[Bottleneck]:
    first, last, _, _, count = steady(timeline)
    columns = timeline.trace.columns
    waits = np.isin(columns["kind"][first:last], (STREAM_SYNC, DEVICE_SYNC, EVENT_SYNC))
    number = int(waits.sum()) / count
    if number < 1 or not summary.host_seconds:
        return []
    waited = timeline.waited[first:last][waits]
    line = _dearest_line(timeline.trace, columns["line"][first:last][waits], waited + 1e-12)
    # After a wait the chip is idle until the host has launched again: at most what the host costs.
    lost = min(summary.host_seconds, number * (timeline.host.dispatch.synchronize_us * 1e-6 + SHORT_KERNEL))
    return [
        Bottleneck(
            f"the host waits for the chip {number:.0f} times per step",
            f"reads of device values (.item(), .cpu(), printing){_most_at(line)}; the chip idles until the next launch",
            "read less often: keep sums on the chip and read them every n steps",
            lost,
            key="waits",
            remedy="read-less-often",
            line=line,
            numbers={"waits": number},
        )
    ]


def _engines(timeline: Timeline, summary: Summary) -> list[Bottleneck]:
    first, last, _, _, count = steady(timeline)
    columns = timeline.trace.columns
    rows = np.flatnonzero((columns["kind"][first:last] == LAUNCH) & (timeline.fallback[first:last] < 0)) + first
    if not len(rows):
        return []
    signature = columns["signature"][rows]
    spent = (timeline.end[rows] - timeline.start[rows]) / count
    bound, family = timeline.prices.bound[signature], timeline.work.family[signature]
    bottlenecks = []
    product = np.isin(family, [FAMILIES.index(name) for name in ("matmul", "convolution", "attention")])
    full = np.asarray([dtype == "float32" for dtype in timeline.work.dtypes])[signature]
    heavy = float(spent[product & full & (bound == COMPUTE)].sum())
    half = summary.what_if_of("half")
    if half is not None and heavy:
        gain = max(summary.step_seconds - half.step_seconds, 0.0)
        dtype, step = half.dtype, duration(half.step_seconds)
        bottlenecks.append(
            Bottleneck(
                f"compute-bound in float32: products take {duration(heavy)} per step",
                f"{summary.chip} multiplies {dtype} faster than float32",
                f"torch.autocast('chip', dtype=torch.{dtype}): {step} per step before its casts",
                gain,
                key="compute-bound",
                remedy="autocast",
                numbers={"product_seconds": heavy, "half_seconds": half.step_seconds},
            )
        )
    light = ~product & (bound == MEMORY)
    if light.any():
        moving = float(spent[light].sum())
        top = np.bincount(family[light], spent[light], len(FAMILIES)).argmax()
        launches = int(light.sum()) // count
        # A chain of n pointwise operators moves every tensor n times; fused, once.
        bottlenecks.append(
            Bottleneck(
                f"memory-bound: operators that only move data take {duration(moving)} per step",
                f"{launches:,} launches, most of the time in {FAMILIES[top]}",
                "fuse them (torch.compile), use fused optimizers and in-place forms, or a smaller dtype",
                moving / 2,
                key="memory-bound",
                remedy="fuse",
                numbers={"moving_seconds": moving, "launches": launches},
            )
        )
    return bottlenecks


def _dearest_line(trace: Trace, lines: Array, weights: Array) -> str:
    """Return the line with the largest weight; empty if no row has a line."""
    has_line = lines >= 0
    if not has_line.any():
        return ""
    totals = np.bincount(lines[has_line], weights[has_line], len(trace.lines))
    return trace.lines[int(totals.argmax())]


def _most_at(line: str) -> str:
    return f", most at {line}" if line else ""
