"""Bottlenecks (condition, cause, action, numbers) and what-ifs (the same trace replayed on a changed machine).

An advice is given only if a replay of the changed program shows that it saves something, see `_worth_it`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup import pricing
from bringup.analyse import (
    attention_plans,
    changes,
    checkpoints,
    compile_advice,
    input_bound,
    layout_advice,
    tf32,
    unused_graphs,
    ways_to_fit,
)
from bringup.analyse.changes import replayed
from bringup.analyse.compile_advice import LEAST_SHARE
from bringup.analyse.summary import LEAST_SECONDS, Bottleneck, Summary, WhatIfResult
from bringup.analyse.wait_advice import for_waits
from bringup.analyse.window import window
from bringup.cost import FAMILIES
from bringup.pricing import COMPUTE, WorkTable
from bringup.recording.rows import D2H, H2D, LAUNCH, PINNED
from bringup.recording.trace import Trace
from bringup.recording.waits import REMEDIES, SPARSE_REMEDY, STAGED_BYTES, VALUE_BYTES
from bringup.text import duration, quantity, size
from bringup.timeline.replay import Timeline, WhatIf, is_placed
from bringup.timeline.steady import steady, step_seconds

Array = npt.NDArray[Any]
MOST_BOTTLENECKS = 3  # fit on one screen
ELSEWHERE = "use another dtype or operator, run this part on the host explicitly, or ask the vendor to add it"
MOSTLY = 0.5  # of the copies: above this share, pinning is the advice


def advise(timeline: Timeline, summary: Summary) -> Summary:
    """Add the bottlenecks whose advice saves most, the what-ifs and, if the program does not fit, the ways to fit."""
    whole, timeline = timeline, window(timeline)
    summary = replace(summary, what_if=_what_ifs(timeline, summary))
    ways = [] if summary.fits or summary.out_of_memory else ways_to_fit.ways(whole, summary)
    if summary.failed:  # what the rest of the program does is not known
        return replace(summary, ways_to_fit=ways)
    if summary.graph_breaks:
        summary = replace(summary, graph_breaks_seconds=compile_advice.cut_seconds(timeline, summary))
    plans, timeline_without, summary_without = attention_plans.without_plans(timeline, summary)
    bottlenecks = [
        *input_bound.advice(timeline, summary),
        *plans,
        *compile_advice.breaks(summary),
        *compile_advice.bottlenecks(timeline_without, summary_without),
        *_fallbacks(timeline, summary),
        *_copies(timeline, summary),
        *for_waits(timeline, summary),
        *_float32(timeline, summary),
        *tf32.bottlenecks(timeline, summary),
        *layout_advice.bottlenecks(timeline, summary),
    ]
    worth = [item for item in bottlenecks if _worth_it(item, summary)]
    ranked = sorted(worth, key=lambda item: (item.remedy == "larger-batch", -item.seconds))  # it changes the program
    if any(item.key == "link-bound" for item in ranked):  # its action is also that for the waits of copies
        ranked = [item for item in ranked if item.remedy not in ("non-blocking", "copy-later")]
    best = [_with_saving(item, summary) for item in ranked[:MOST_BOTTLENECKS]]
    trace = whole.trace
    saving = [*unused_graphs.memory_advice(trace, summary), *checkpoints.memory_advice(trace, summary)]
    return replace(summary, bottlenecks=best, ways_to_fit=ways, memory_advice=saving)


def _worth_it(item: Bottleneck, summary: Summary) -> bool:
    in_all = item.seconds * max(summary.steps, 1)
    if item.key == "graph-breaks":  # the program asked for compiled steps, so few of them are a trial
        in_all = LEAST_SECONDS
    return item.seconds >= LEAST_SHARE * input_bound.whole_step(summary) and in_all >= LEAST_SECONDS


def _with_saving(item: Bottleneck, summary: Summary) -> Bottleneck:
    share = f"{item.seconds / input_bound.whole_step(summary):.0%}"
    saving = f"saves {duration(item.seconds)} per {summary.unit} ({share})"
    if item.remedy == "larger-batch":
        saving = f"saves {share} of the time of each sample"
    return replace(item, action=f"{saving}: {item.action}")


def _saving(summary: Summary, other: Timeline) -> float:
    return max(summary.step_seconds - step_seconds(other), 0.0)


def _what_ifs(timeline: Timeline, summary: Summary) -> list[WhatIfResult]:
    trace, chip, prices = timeline.trace, timeline.chip, timeline.prices
    results = []

    def add(key: str, change: str, other: Timeline, dtype: str = "") -> None:
        results.append(WhatIfResult(change, step_seconds(other), key, dtype))

    if "eager" in chip.modes and "graph" in chip.modes:
        add("graph", "launches replayed as a graph", replayed(timeline, WhatIf(graph=True)))
    add("host", "host twice as fast", replayed(timeline, WhatIf(dispatch_scale=0.5)))
    add("link", "link twice as fast", replayed(timeline, WhatIf(link_scale=2.0)))
    if summary.fallbacks:
        add("fallbacks", "every operator on the chip", replayed(timeline, WhatIf(keep_fallbacks=False)))
    half = next((name for name in ("bfloat16", "float16") if name in chip.matrix.tflops), None)
    if half and any(dtype == "float32" for dtype in timeline.work.dtypes):
        table = pricing.price_table(_in_half(timeline.work, half), trace.signatures, chip)
        table = replace(table, supported=prices.supported)
        add("half", f"float32 products in {half}", replayed(timeline, prices=table), half)
    wider = chip.model_copy(
        update={"memory": chip.memory.model_copy(update={"bandwidth_gb_s": 2 * chip.memory.bandwidth_gb_s})}
    )
    add("bandwidth", "memory bandwidth doubled", replayed(timeline, chip=wider))
    faster = {name: 2 * rate for name, rate in chip.matrix.tflops.items()}
    quick = chip.model_copy(update={"matrix": chip.matrix.model_copy(update={"tflops": faster})})
    add("matrix", "matrix engine twice as fast", replayed(timeline, chip=quick))
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


def _fallbacks(timeline: Timeline, summary: Summary) -> list[Bottleneck]:
    bottlenecks = []
    for item in summary.fallbacks[:MOST_BOTTLENECKS]:
        where = f"{item.file}:{item.line}" if item.file else ""
        bottlenecks.append(
            Bottleneck(
                f"fallback: {item.op} {item.dtype} runs on the host, {duration(item.seconds)} per {summary.unit}",
                f"the chip file of {summary.chip} does not list it; "
                f"{quantity(item.count, 'launch')} per {summary.unit} at {where or 'an unknown line'}",
                SPARSE_REMEDY if "sparse" in item.op or "coalesce" in item.op else ELSEWHERE,
                _saving(summary, changes.supported(timeline, item.op, item.dtype)),
                key="fallback",
                remedy="replace",
                line=where,
                numbers={"count": item.count},
            )
        )
    return bottlenecks


def _copies(timeline: Timeline, summary: Summary) -> list[Bottleneck]:
    first, last, *_ = steady(timeline)
    columns = timeline.trace.columns
    kind, copies = columns["kind"][first:last], _large_copies(timeline.trace)[first:last]
    if not copies.any() or summary.link_seconds <= 0:
        return []
    rows = np.flatnonzero(copies) + first
    seconds = timeline.seconds[first:last]
    lost = summary.link_seconds * float(seconds[copies].sum() / seconds[np.isin(kind, (H2D, D2H))].sum())
    pageable = (columns["flags"][rows] & PINNED) == 0
    moved = int(columns["bytes"][rows].sum())
    share = float(pageable.mean())
    line = timeline.trace.longest_line(rows, timeline.seconds[rows])
    waits, large = timeline.trace.waits, _large_copies(timeline.trace)
    theirs = waits.where((waits.copy >= 0) & large[waits.copy])
    down = kind[copies] == D2H
    remedy, action = (
        ("copy-less", REMEDIES["download"])
        if float(seconds[copies][down].sum()) > MOSTLY * float(seconds[copies].sum())
        else (
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
            f"link-bound: the chip waits {duration(lost)} per {summary.unit} for copies",
            f"{size(moved)} per {summary.unit} over {summary.link}, "
            f"{share:.0%} of the copies from pageable memory{_most_at(line)}",
            action,
            _saving(
                summary,
                changes.copied_ahead(timeline, np.flatnonzero(large), theirs),
            ),
            key="link-bound",
            remedy=remedy,
            line=line,
            numbers={"bytes": moved, "pageable": share},
        )
    ]


def _large_copies(trace: Trace) -> Array:
    """Return for every row whether it is a large copy; small ones are waits (see `for_waits`), which pinning leaves.

    In a placed run, pinned copies may be those of the plan, which cannot be made ahead.
    """
    kind, moves = trace.columns["kind"], trace.columns["bytes"]
    large: Array = ((kind == H2D) & (moves > STAGED_BYTES)) | ((kind == D2H) & (moves > VALUE_BYTES))
    if trace.about.get("placement") is not None:
        large &= ~is_placed(trace.columns) & ((trace.columns["flags"] & PINNED) == 0)
    return large


def _launched(timeline: Timeline) -> tuple[Array, Array, Array]:
    """Return the rows of the steady launches on the chip, their signatures, and their seconds per step."""
    first, last, *_ = steady(timeline)
    kind = timeline.trace.columns["kind"][first:last]
    rows = np.flatnonzero((kind == LAUNCH) & (timeline.fallback[first:last] < 0)) + first
    return rows, timeline.trace.columns["signature"][rows], (timeline.end[rows] - timeline.start[rows])


def _float32(timeline: Timeline, summary: Summary) -> list[Bottleneck]:
    """Advise autocast if products in float32 take time that a shorter dtype saves."""
    _, signature, spent = _launched(timeline)
    half = summary.what_if_of("half")
    if half is None or not len(signature):
        return []
    product = timeline.work.is_family("matmul", "convolution", "attention")[signature]
    full = np.asarray([dtype == "float32" for dtype in timeline.work.dtypes])[signature]
    heavy = float(spent[product & full & (timeline.prices.bound[signature] == COMPUTE)].sum())
    if not heavy:
        return []
    dtype, device = half.dtype, "cuda" if summary.named_cuda else "chip"
    return [
        Bottleneck(
            f"compute-bound in float32: products take {duration(heavy)} per {summary.unit}",
            f"{summary.chip} multiplies {dtype} faster than float32",
            f"use torch.autocast('{device}', dtype=torch.{dtype}): {duration(half.step_seconds)} per {summary.unit}, "
            "without the time of its casts",
            max(summary.step_seconds - half.step_seconds, 0.0),
            key="compute-bound",
            remedy="autocast",
            numbers={"product_seconds": heavy, "half_seconds": half.step_seconds},
        )
    ]


def _most_at(line: str) -> str:
    return f", mostly at {line}" if line else ""
