"""Sums up a replayed trace: the parts of a step's time, the fallbacks, the longest operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse import holders as memory
from bringup.analyse import input_bound, roofline
from bringup.analyse.communication import communication
from bringup.analyse.compilations import compilations
from bringup.analyse.early_clocks import early_clocks
from bringup.analyse.host_alone import host_alone
from bringup.analyse.own_time import own_time
from bringup.analyse.program_class import program_class
from bringup.analyse.summary import Fallback, GraphBreak, Placement, Summary, Wait
from bringup.analyse.tokens import tokens
from bringup.analyse.unlike import outside, typical_share, unlike_steps
from bringup.analyse.utilisation import utilisation
from bringup.cost import FAMILIES
from bringup.pricing.bands import bound, error_band
from bringup.recording.driver_rows import seconds_of
from bringup.recording.findings import Finding
from bringup.recording.rows import LAUNCH
from bringup.recording.trace import Trace
from bringup.recording.waits import WAIT_KINDS, is_small, own_waits, waiting_ops
from bringup.text import split_line
from bringup.timeline import library
from bringup.timeline.batch import batches, samples
from bringup.timeline.replay import Timeline
from bringup.timeline.steady import steady, typical

FINDING = [item.name for item in fields(Finding)]
Array = npt.NDArray[Any]


def summarize(timeline: Timeline, *, peak: memory.Memory | None = None) -> Summary:
    """Sum up a timeline, without the bottlenecks and what-ifs of `advice.advise`.

    Args:
        timeline: a replayed trace.
        peak: the result of `memory.usage`, which is the same for every chip; computed by default.
    """
    trace, chip, host = timeline.trace, timeline.chip, timeline.host
    first, last, since, until = steady(timeline)
    busy, on_host, link, between = library.shares(
        trace.columns["kind"], timeline.fallback, timeline.start, timeline.end, since, until
    )
    step = until - since
    peak = peak or memory.usage(trace, timeline.steps.ends)
    need, out_of_memory = memory.needed_bytes(trace, peak, chip), memory.ran_out(trace)
    band = error_band(chip, bound(busy, step), program_class(trace))
    price = chip.price
    loaders = input_bound.inputs(timeline, step)
    own_seconds, own = own_time(timeline, step)
    used = utilisation(timeline, first, last, step)
    launches = int(np.count_nonzero(trace.columns["kind"][first:last] == LAUNCH))
    all_steps = typical(timeline)
    before, after = outside(timeline)
    return Summary(
        chip=chip.name,
        host=host.name,
        link=chip.link.text,
        step_seconds=step,
        low_seconds=all_steps.low,
        high_seconds=all_steps.high,
        unequal=all_steps.is_unequal,
        device_seconds=busy,
        link_seconds=link,
        between_seconds=between,
        host_seconds=max(step - (busy + on_host + link + between), 0.0),
        fallback_seconds=on_host,
        total_seconds=timeline.total_seconds,
        steps=len(timeline.steps.ends),
        steps_by=timeline.steps.by,
        evaluations=timeline.steps.evaluations,
        typical_share=typical_share(timeline),
        like_steps=int(trace.step_work.alike.sum()),
        unlike_steps=unlike_steps(timeline),
        before=before,
        after=after,
        launches=launches,
        samples=samples(timeline, first, last),
        batches=batches(timeline, first, last),
        peak_bytes=peak.peak_bytes,
        capacity_bytes=chip.device_bytes,
        context_bytes=chip.context_bytes,
        fits=memory.fits(trace, peak, chip),
        verdict=memory.TOO_LARGE if out_of_memory else memory.verdict(need, chip.room_bytes),
        out_of_memory=out_of_memory,
        failed=bool(trace.about.get("failed", False)),
        stopped_by=str(trace.about.get("stopped_by", "")),
        dry=bool(trace.about.get("dry", False)),
        memory=peak,
        energy_joules=chip.joules(step, busy),
        cost_usd=price.usd_per_hour * step / 3600 if price and price.usd_per_hour else None,
        error_band=band.error,
        error_band_of=band.measured,
        error_band_rows=band.rows,
        error_source=band.text,
        unpriced=unpriced(timeline),
        fallbacks=fallbacks(timeline, first, last),
        input_seconds=sum(item.seconds for item in loaders),
        inputs=loaders,
        own_seconds=own_seconds,
        own=own,
        host_alone_seconds=host_alone(timeline, first, last, step, busy),
        waits=waits(timeline, first, last),
        kernels=roofline.kernels(timeline, first, last),
        findings=[Finding(**{name: str(b[name]) for name in FINDING}) for b in trace.about.get("findings", [])],
        compiled_graphs=int(trace.about.get("compiled_graphs", 0)),
        graph_breaks=[GraphBreak(str(b["line"]), str(b["reason"])) for b in trace.about.get("graph_breaks", [])],
        compilations=compilations(timeline),
        redirected={str(name): int(count) for name, count in trace.about.get("redirected", {}).items()},
        named_cuda=bool(trace.about.get("named_cuda", False)),
        chip_time=bool(trace.about.get("chip_time", False)),
        early_clocks=early_clocks(timeline),
        **(shared := communication(timeline, first, last, since, until)),
        **_tokens(timeline, first, last, step, shared["ranks"]),
        mfu=used.share if used else None,
        mfu_dtype=used.dtype if used else "",
        mfu_peak_flops=used.peak_flops if used else None,
        **_on_driver(trace.about.get("driver")),
        placement=_placement(timeline, step),
        framework=str(trace.about.get("framework", "torch")),
    )


def _tokens(timeline: Timeline, first: int, last: int, step: float, ranks: int) -> dict[str, Any]:
    """Return the fields about tokens."""
    read = tokens(timeline, first, last)
    fields = {"tokens": read.count, "sharing_ranks": read.sharing}
    if read.count is None or read.in_pipeline or not step:
        return fields
    each = read.count / read.sharing / step
    return {**fields, "tokens_per_second": each, "cluster_tokens_per_second": each * ranks}


def _on_driver(facts: dict[str, Any] | None) -> dict[str, Any]:
    """Return the fields about a run on a driver; none without one."""
    if facts is None:
        return {}
    rows = facts["on_host"]
    launches, down, up = (sum(int(row[key]) for row in rows) for key in ("launches", "bytes_down", "bytes_up"))
    return {
        "driver": str(facts["name"]),
        "measured_step_seconds": facts["step_seconds"],
        "launches_on_chip": sum(map(int, facts["on_device"].values())),
        "launches_on_host": launches,
        "bytes_down": down,
        "bytes_up": up,
    }


def _measured_fallbacks(facts: dict[str, Any] | None) -> dict[str, tuple[str, float]]:
    """Return for each operator that a driver left to the host the most common reason, and the seconds of a launch."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in (facts or {}).get("step_rows", []):
        if not row["on_device"] and row["launches"]:
            rows.setdefault(str(row["op"]).split(".")[0], []).append(row)
    return {
        op: (
            max(of_op, key=lambda row: float(row["launches"]))["reason"],
            sum(map(seconds_of, of_op)) / sum(row["launches"] for row in of_op),
        )
        for op, of_op in rows.items()
    }


def _placement(timeline: Timeline, step: float) -> Placement | None:
    about = timeline.trace.about.get("placement")
    if about is None:
        return None
    counts = {name: int(about[name]) for name in about if name.startswith("launches_")}
    return Placement(float(about["planned_seconds"]), step, **counts)


def unpriced(timeline: Timeline) -> list[str]:
    """List the operators without a cost rule, whose time is estimated from the bytes that they move."""
    other = FAMILIES.index("other")
    return sorted(
        {timeline.trace.signatures[i].op.split(".")[0] for i in np.flatnonzero(timeline.work.family == other)}
    )


def fallbacks(timeline: Timeline, first: int, last: int) -> list[Fallback]:
    """List the fallbacks in the rows from `first` to `last`, the longest first; counts and seconds are per step."""
    trace = timeline.trace
    fallback = timeline.fallback[first:last]
    rows = np.flatnonzero((fallback >= 0) & (fallback != timeline.placed)) + first
    groups: dict[tuple[str, str, int], list[int]] = {}
    for row in rows:
        signature = trace.signatures[trace.columns["signature"][row]]
        key = (signature.op.split(".")[0], signature.dtype, int(trace.columns["line"][row]))
        groups.setdefault(key, []).append(int(row))
    ledger = []
    measured = _measured_fallbacks(trace.about.get("driver"))
    for (op, dtype, line), members in groups.items():
        d2h, on_host, h2d = map(float, timeline.fallback_parts[timeline.fallback[members]].sum(axis=0))
        stall = float(timeline.waited[members].sum())
        file, number = split_line(trace.lines[line] if line >= 0 else "")
        seconds = d2h + on_host + h2d + stall
        count = float(len(members))
        reason, each = measured.get(op, ("", None))
        took = None if each is None else each * count
        ledger.append(Fallback(op, dtype, file, number, count, seconds, d2h, on_host, h2d, stall, reason, took))
    ledger += _host_functions(trace, first, last)
    return sorted(ledger, key=lambda item: (-item.seconds, item.op, item.line))


def _host_functions(trace: Trace, first: int, last: int) -> Iterator[Fallback]:
    """Yield TensorFlow's functions that ran on the host, with what they took on the machine of the recording."""
    for item in trace.about.get("host_functions", []):
        inside = [spent for row, spent in zip(item["rows"], item["seconds"], strict=True) if first <= row < last]
        if inside:
            file, number = split_line(str(item["line"]))
            took = sum(inside)
            name, count = str(item["name"]), float(len(inside))
            yield Fallback(
                name, "of TensorFlow", file, number, count, took, 0.0, took, 0.0, 0.0, str(item["why"]), took
            )


def waits(timeline: Timeline, first: int, last: int) -> list[Wait]:
    """List the host's waits for the chip in the rows from `first` to `last`, by kind and line, the longest first."""
    trace = timeline.trace
    steady_waits = own_waits(trace).between(first, last)
    lines = trace.columns["line"][steady_waits.rows]
    small = is_small(trace, steady_waits)
    groups, place, counts = np.unique(
        np.stack((steady_waits.kind, lines), axis=1), axis=0, return_inverse=True, return_counts=True
    )
    seconds = np.bincount(place.ravel(), timeline.waited[steady_waits.rows], len(groups))
    listed = []
    all_small = np.bincount(place.ravel(), small, len(groups)) == counts
    ops: list[set[str]] = [set() for _ in groups]
    for group, op in zip(place.ravel().tolist(), waiting_ops(trace, steady_waits.rows), strict=True):
        ops[group] |= {op} if op else set()
    for (kind, line), number, total, one, names in zip(
        groups.tolist(), counts.tolist(), seconds.tolist(), all_small.tolist(), ops, strict=True
    ):
        file, place_in_file = split_line(trace.lines[line] if line >= 0 else "")
        listed.append(Wait(WAIT_KINDS[kind], file, place_in_file, float(number), total, one, tuple(sorted(names))))
    return sorted(listed, key=lambda item: (-item.seconds, -item.per_step, item.kind, item.file, item.line))


def by_group(timeline: Timeline, label: str) -> list[tuple[str, int, float, float]]:
    """Group the steady launches by ``family``, ``op``, ``module`` or ``line``, without those of the host by a plan.

    Returns:
        tuples of name, launches, device seconds and flops per step, the longest first.
    """
    first, last, *_ = steady(timeline)
    columns = timeline.trace.columns
    rows = timeline.launches_on_chip(first, last)
    signature = columns["signature"][rows]
    if label == "family":
        names, codes = list(FAMILIES), timeline.work.family[signature]
    elif label == "op":
        ops = [item.op for item in timeline.trace.signatures]
        names = sorted(set(ops))
        place = {name: number for number, name in enumerate(names)}
        codes = np.asarray([place[op] for op in ops], dtype=np.int64)[signature]
    else:
        texts = timeline.trace.modules if label == "module" else timeline.trace.lines
        names, codes = [*texts, "(none)"], columns[label][rows].astype(np.int64)
        codes = np.where(codes < 0, len(texts), codes)
    spent = timeline.end[rows] - timeline.start[rows]
    totals = np.bincount(codes, spent, len(names))
    flops = np.bincount(codes, timeline.work.flops[signature], len(names))
    counts = np.bincount(codes, minlength=len(names))
    order = sorted(np.flatnonzero(counts), key=lambda i: (-totals[i], names[i]))
    return [(names[i], int(counts[i]), float(totals[i]), float(flops[i])) for i in order]
