"""Bottlenecks (condition, cause, action, numbers) and what-ifs (the same trace replayed on a changed machine)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup import pricing
from bringup.analyse import tf32, ways_to_fit
from bringup.analyse.summary import Bottleneck, Summary, WhatIfResult
from bringup.cost import FAMILIES
from bringup.pricing import COMPUTE, MEMORY, WorkTable
from bringup.recording.rows import D2H, DEVICE_SYNC, EVENT_SYNC, H2D, LAUNCH, PINNED, STREAM_SYNC
from bringup.recording.trace import Trace
from bringup.text import duration, quantity, size
from bringup.timeline.replay import Timeline, WhatIf, replay
from bringup.timeline.steady import steady

Array = npt.NDArray[Any]
VALUE_BYTES = 64  # a copy to the host up to this size is a value that the program reads
SHORT_KERNEL = 20e-6  # about the time in which the host launches the next kernel eagerly (see hosts/*.toml)
MOST_BOTTLENECKS = 3  # fit on one screen
LEAST_SHARE = 0.01  # of a step: a smaller bottleneck is not worth a change
LEAST_HOST_SHARE = 0.05  # of a step: a shorter wait for launches is normal
LEAST_BATCH_GAIN = 1.05  # a smaller increase of the batch is not worth advising
MOSTLY = 0.5  # of the copies: above this share, pinning is the advice


def advise(timeline: Timeline, summary: Summary) -> Summary:
    """Add the three most expensive bottlenecks, the what-ifs and, if the program does not fit, the ways to fit."""
    summary = replace(summary, what_if=_what_ifs(timeline, summary))
    bottlenecks = [
        *_host_bound(timeline, summary),
        *_fallbacks(summary),
        *_copies(timeline, summary),
        *_waits(timeline, summary),
        *_engines(timeline, summary),
        *tf32.bottlenecks(timeline, summary),
    ]
    least = LEAST_SHARE * summary.step_seconds
    expensive = (item for item in bottlenecks if item.seconds > least)
    ranked = sorted(expensive, key=lambda item: (-item.seconds, item.condition))
    ways = [] if summary.fits or summary.out_of_memory else ways_to_fit.ways(timeline, summary)
    return replace(summary, bottlenecks=ranked[:MOST_BOTTLENECKS], ways_to_fit=ways)


def _step_seconds(timeline: Timeline) -> float:
    _, _, since, until, count = steady(timeline)
    return (until - since) / count


def _what_ifs(timeline: Timeline, summary: Summary) -> list[WhatIfResult]:
    trace, chip, host, prices = timeline.trace, timeline.chip, timeline.host, timeline.prices
    results = []

    def add(key: str, change: str, other: Timeline, dtype: str = "") -> None:
        results.append(WhatIfResult(change, _step_seconds(other), key, dtype))

    if "eager" in chip.modes and "graph" in chip.modes:
        add("graph", "launches replayed as a graph", replay(trace, chip, host, what_if=WhatIf(graph=True)))
    add("host", "host twice as fast", replay(trace, chip, host, prices=prices, what_if=WhatIf(dispatch_scale=0.5)))
    add("link", "link twice as fast", replay(trace, chip, host, prices=prices, what_if=WhatIf(link_scale=2.0)))
    if summary.fallbacks:
        without_fallbacks = replay(trace, chip, host, prices=prices, what_if=WhatIf(keep_fallbacks=False))
        add("fallbacks", "every operator on the chip", without_fallbacks)
    half = next((name for name in ("bfloat16", "float16") if name in chip.matrix.tflops), None)
    if half and any(dtype == "float32" for dtype in timeline.work.dtypes):
        table = pricing.price_table(_in_half(timeline.work, half), trace.signatures, chip)
        table = replace(table, supported=prices.supported)
        add("half", f"float32 products in {half}", replay(trace, chip, host, prices=table), half)
    wider = chip.model_copy(
        update={"memory": chip.memory.model_copy(update={"bandwidth_gb_s": 2 * chip.memory.bandwidth_gb_s})}
    )
    add("bandwidth", "memory bandwidth doubled", replay(trace, wider, host))
    faster = {name: 2 * rate for name, rate in chip.matrix.tflops.items()}
    quick = chip.model_copy(update={"matrix": chip.matrix.model_copy(update={"tflops": faster})})
    add("matrix", "matrix engine twice as fast", replay(trace, quick, host))
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
    raised = f", or raise the batch: the chip is always busy from {batch}" if times > LEAST_BATCH_GAIN else ""
    replayed = f" ({duration(graph.step_seconds)} if replayed as a graph)" if graph else ""
    return [
        Bottleneck(
            f"host-bound: the chip waits {duration(summary.host_seconds)} per step for launches",
            f"{quantity(per_step, 'launch')} per step of less than {SHORT_KERNEL * 1e6:g} us, "
            "each taking the host longer than the chip",
            f"fuse operators with torch.compile{replayed}{raised}",
            summary.host_seconds,
            key="host-bound",
            remedy="fuse",
            numbers={
                "waited_seconds": summary.host_seconds,
                "short_launches": per_step,
                **({"graph_seconds": graph.step_seconds} if graph else {}),
                **({"break_even_samples": samples} if raised and summary.samples else {}),
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
                f"the chip file of {summary.chip} does not list it; "
                f"{quantity(item.count, 'launch')} per step at {where or 'an unknown line'}",
                "use another dtype or operator, run this part on the host explicitly, or ask the vendor to add it",
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
    # Reading a few values is a wait (see `_waits`), which pinning does not shorten.
    copies = all_copies & ~((kind == D2H) & (columns["bytes"][first:last] <= VALUE_BYTES))
    if not copies.any() or summary.link_seconds <= 0:
        return []
    seconds = timeline.seconds[first:last]
    lost = summary.link_seconds * float(seconds[copies].sum() / seconds[all_copies].sum())
    pageable = copies & ((flags & PINNED) == 0)
    moved = int(columns["bytes"][first:last][copies].sum()) // count
    share = float(pageable.sum()) / float(copies.sum())
    line = _longest_line(timeline.trace, columns["line"][first:last][copies], timeline.seconds[first:last][copies])
    remedy, action = (
        (
            "pin",
            "pin the host memory (DataLoader(pin_memory=True)) and copy one batch ahead with non_blocking=True",
        )
        if share > MOSTLY
        else (
            "copy-less",
            "copy less, or copy one batch ahead on a second stream; keep constant data on the chip",
        )
    )
    return [
        Bottleneck(
            f"link-bound: the chip waits {duration(lost)} per step for copies",
            f"{size(moved)} per step over {summary.link}, "
            f"{share:.0%} of the copies from pageable memory{_most_at(line)}",
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
    line = _longest_line(timeline.trace, columns["line"][first:last][waits], waited + 1e-12)
    # After a wait the chip is idle until the host launches again: at most the host-bound time.
    lost = min(summary.host_seconds, number * (timeline.host.dispatch.synchronize_us * 1e-6 + SHORT_KERNEL))
    return [
        Bottleneck(
            f"the host waits for the chip {quantity(round(number), 'time')} per step",
            f"it reads device values (.item(), .cpu(), printing){_most_at(line)}; until the next launch the chip idles",
            "read values less often: keep sums on the chip and read them every n steps",
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
                f"use torch.autocast('chip', dtype=torch.{dtype}): {step} per step, without the time of its casts",
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
        # A chain of n pointwise operators moves every tensor n times, a fused one moves it once.
        bottlenecks.append(
            Bottleneck(
                f"memory-bound: operators that only move data take {duration(moving)} per step",
                f"{quantity(launches, 'launch')} per step, most of the time in {FAMILIES[top]} operators",
                "fuse them with torch.compile, use fused optimizers and in-place operators, or use a smaller dtype",
                moving / 2,
                key="memory-bound",
                remedy="fuse",
                numbers={"moving_seconds": moving, "launches": launches},
            )
        )
    return bottlenecks


def _longest_line(trace: Trace, lines: Array, weights: Array) -> str:
    """Return the line with the largest total weight; empty if no row has a line."""
    has_line = lines >= 0
    if not has_line.any():
        return ""
    totals = np.bincount(lines[has_line], weights[has_line], len(trace.lines))
    return trace.lines[int(totals.argmax())]


def _most_at(line: str) -> str:
    return f", mostly at {line}" if line else ""
