"""The numbers of a replayed trace: where the time of a step goes, what fell back, what to change."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse import advice, roofline
from bringup.analyse import holders as memory
from bringup.analyse import ways_to_fit as fitting
from bringup.cost import FAMILIES
from bringup.recording.findings import Finding
from bringup.recording.trace import HOST, IN_FORWARD, LAUNCH, RESUME, SIGNAL
from bringup.timeline.replay import Timeline

Array = npt.NDArray[Any]
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Fallback:
    """Launches of one operator and dtype on one line that ran on the host; count and seconds per step."""

    op: str
    dtype: str
    file: str
    line: int
    count: float
    seconds: float
    d2h_seconds: float
    host_seconds: float
    h2d_seconds: float
    stall_seconds: float


@dataclass(frozen=True)
class GraphBreak:
    """A line at which torch.compile had to cut the program's graph, and Dynamo's reason."""

    line: str
    reason: str


@dataclass(frozen=True)
class Summary:
    """What one recording costs on one machine. Times are seconds of one step, the average of the steady ones.

    Attributes:
        step_seconds: from the end of one step to the end of the next.
        device_seconds, fallback_seconds, link_seconds, between_seconds, host_seconds: its parts: the chip computes;
            else the host computes what the chip cannot; else the link is busy; else a link between chips; else the
            chip waits for the host.
        launches: per step.
        samples: batch size of a step, as its first embedding, convolution or product sees it; 0 if there is none.
        peak_bytes: of device memory that tensors held at once, by the caching allocator's blocks.
        fits: in the chip's memory, by what the allocator reserved; on a chip that the program was not recorded on, by
            what tensors held.
        out_of_memory: the program ended with that error, so its peak is not known.
        dry: nothing was computed when it was recorded.
        memory: who holds it at its fullest.
        kernels: the kinds of launches that take the chip longest.
        findings: what the sanitizer found, if it was asked.
        compiled_graphs, graph_breaks: of torch.compile, in the whole program.
        redirected: what the program used by the name of CUDA, and how often.
        chip_time: the program's clocks showed the predicted time.
        ways_to_fit: changes that make it fit, the cheapest first; empty if it does.
        energy_joules, cost_usd: per step; None if the chip file has no power, no price.
        run: in all files of a report, what tells them from those of another run; else empty.
    """

    chip: str
    host: str
    link: str
    step_seconds: float
    device_seconds: float
    link_seconds: float
    between_seconds: float
    host_seconds: float
    fallback_seconds: float
    total_seconds: float
    steps: int
    steps_by: str
    launches: int
    samples: int
    peak_bytes: int
    capacity_bytes: int
    fits: bool
    out_of_memory: bool
    dry: bool
    memory: memory.Memory
    energy_joules: float | None
    cost_usd: float | None
    error_band: float | None
    error_source: str
    unpriced: list[str]
    fallbacks: list[Fallback] = field(default_factory=list)
    kernels: list[roofline.Kernel] = field(default_factory=list)
    bottlenecks: list[advice.Bottleneck] = field(default_factory=list)
    what_if: list[advice.WhatIf] = field(default_factory=list)
    ways_to_fit: list[fitting.Way] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    compiled_graphs: int = 0
    graph_breaks: list[GraphBreak] = field(default_factory=list)
    redirected: dict[str, int] = field(default_factory=dict)
    chip_time: bool = False
    run: str = ""

    def parts(self) -> dict[str, float]:
        """Return the seconds of a step's parts, which add up to it; links between chips only if one was used."""
        parts = {
            "chip busy": self.device_seconds,
            "link": self.link_seconds,
            "between chips": self.between_seconds,
            "host-bound": self.host_seconds,
            "waiting on fallbacks": self.fallback_seconds,
        }
        return {name: seconds for name, seconds in parts.items() if seconds or name != "between chips"}


def steady(timeline: Timeline) -> tuple[int, int, float, float, int]:
    """Return the steady part: first and last row, since and until in seconds, and its number of steps.

    The first step warms up and is left out, if there is another.
    """
    steps = timeline.steps
    ends, start, rows = steps.ends, steps.start, len(timeline.trace)
    if not rows:
        return 0, 0, 0.0, 0.0, 1
    # A step is over when the host has issued it and every device has done it. What a thread waits for otherwise holds
    # up that thread's later rows, and nothing else: it may be a progress bar's monitor.
    ours = ~np.isin(timeline.trace.columns["kind"], (HOST, SIGNAL, RESUME))
    done = np.maximum.accumulate(np.maximum(timeline.end, timeline.issued + timeline.waited) * ours)
    if len(ends) > 1:
        return int(ends[0]), int(ends[-1]), float(done[ends[0] - 1]), float(done[ends[-1] - 1]), len(ends) - 1
    since = float(done[start - 1]) if start else 0.0
    return start, int(ends[-1]), since, float(done[ends[-1] - 1]), 1


def summarize(timeline: Timeline, *, advise: bool = True, used: memory.Memory | None = None) -> Summary:
    """Add up a timeline.

    Args:
        timeline: a replayed trace.
        advise: also look for bottlenecks, which replays some what-ifs.
        used: `memory.usage` of the trace and its steps, which are the same for every chip; computed by default.
    """
    from bringup import validation

    trace, chip, host = timeline.trace, timeline.chip, timeline.host
    first, last, since, until, count = steady(timeline)
    busy, on_host, link, between = _shares(timeline, since, until)
    step = (until - since) / count
    used = used or memory.usage(trace, timeline.steps.ends)
    band, source = validation.error_band(chip)
    energy = _energy(timeline, step, busy / count)
    price = chip.price
    launches = int(np.count_nonzero(trace.columns["kind"][first:last] == LAUNCH))
    summary = Summary(
        chip=chip.name,
        host=host.name,
        link=chip.link.text,
        step_seconds=step,
        device_seconds=busy / count,
        link_seconds=link / count,
        between_seconds=between / count,
        host_seconds=max(step - (busy + on_host + link + between) / count, 0.0),
        fallback_seconds=on_host / count,
        total_seconds=timeline.total_seconds,
        steps=len(timeline.steps.ends),
        steps_by=timeline.steps.by,
        launches=round(launches / count),
        samples=samples(timeline, first, last),
        peak_bytes=used.peak_bytes,
        capacity_bytes=chip.device_bytes,
        fits=fitting.fits(trace, used, chip),
        out_of_memory=bool(trace.about.get("out_of_memory", False)),
        dry=bool(trace.about.get("dry", False)),
        memory=used,
        energy_joules=energy,
        cost_usd=price.usd_per_hour * step / 3600 if price and price.usd_per_hour else None,
        error_band=band,
        error_source=source,
        unpriced=unpriced(timeline),
        fallbacks=fallbacks(timeline, first, last, count),
        kernels=roofline.kernels(timeline, first, last, count),
        compiled_graphs=int(trace.about.get("compiled_graphs", 0)),
        graph_breaks=[GraphBreak(str(b["line"]), str(b["reason"])) for b in trace.about.get("graph_breaks", [])],
        redirected={str(name): int(count) for name, count in trace.about.get("redirected", {}).items()},
        chip_time=bool(trace.about.get("chip_time", False)),
    )
    if not advise:
        return summary
    found, what_if = advice.advise(timeline, summary)
    ways = [] if summary.fits or summary.out_of_memory else fitting.ways(timeline, replace(summary, what_if=what_if))
    return replace(summary, bottlenecks=found, what_if=what_if, ways_to_fit=ways)


def _shares(timeline: Timeline, since: float, until: float) -> tuple[float, float, float, float]:
    import torch

    kind = torch.from_numpy(np.ascontiguousarray(timeline.trace.columns["kind"]).copy())
    fallback = torch.from_numpy(timeline.fallback)
    start, end = torch.from_numpy(timeline.start), torch.from_numpy(timeline.end)
    busy, on_host, link, between = torch.ops.bringup.timeline_shares(kind, fallback, start, end, since, until)
    return busy, on_host, link, between


def _energy(timeline: Timeline, step: float, busy: float) -> float | None:
    """Idle power always, the rest of the TDP while the chip computes: an upper bound. Idle defaults to a tenth."""
    power = timeline.chip.power
    if power is None:
        return None
    idle = power.idle_w if power.idle_w is not None else power.tdp_w * 0.1
    return idle * step + (power.tdp_w - idle) * busy


def samples(timeline: Timeline, first: int, last: int) -> int:
    """Return the leading dimension of what the first embedding, convolution or product of the rows works on."""
    columns, work = timeline.trace.columns, timeline.work
    for row in np.flatnonzero(columns["kind"][first:last] == LAUNCH) + first:
        number = columns["signature"][row]
        signature = timeline.trace.signatures[number]
        product = work.works[number].family in ("convolution", "matmul")
        signature = next((item for item in signature.inner if item.base == "embedding"), signature)
        if columns["phase"][row] != IN_FORWARD or not (product or signature.base == "embedding"):
            continue
        names = ("indices", "input", "mat1", "self")
        data = next((found for name in names if (found := signature.tensor(name)) is not None and found.shape), None)
        if data is not None:
            return int(data.shape[0])
    return 0


def unpriced(timeline: Timeline) -> list[str]:
    """Name the operators that no rule knows; they are priced by their bytes."""
    other = FAMILIES.index("other")
    named = {timeline.trace.signatures[i].op.split(".")[0] for i in np.flatnonzero(timeline.work.family == other)}
    return sorted(named)


def fallbacks(timeline: Timeline, first: int, last: int, steps: int) -> list[Fallback]:
    """List what ran on the host in the rows from `first` to `last`, the dearest first, divided by `steps`."""
    trace = timeline.trace
    rows = np.flatnonzero(timeline.fallback[first:last] >= 0) + first
    groups: dict[tuple[str, str, int], list[int]] = {}
    for row in rows:
        signature = trace.signatures[trace.columns["signature"][row]]
        key = (signature.op.split(".")[0], signature.dtype, int(trace.columns["line"][row]))
        groups.setdefault(key, []).append(int(row))
    found = []
    for (op, dtype, line), members in groups.items():
        d2h, on_host, h2d = map(float, timeline.fallback_parts[timeline.fallback[members]].sum(axis=0) / steps)
        stall = float(timeline.waited[members].sum()) / steps
        file, number = split_line(trace.lines[line] if line >= 0 else "")
        seconds = d2h + on_host + h2d + stall
        found.append(Fallback(op, dtype, file, number, len(members) / steps, seconds, d2h, on_host, h2d, stall))
    return sorted(found, key=lambda item: (-item.seconds, item.op, item.line))


def split_line(text: str) -> tuple[str, int]:
    """Split ``train.py:12``; an unknown line is ``("", 0)``."""
    file, _, number = text.rpartition(":")
    return (file, int(number)) if number.isdigit() else (text, 0)


def by_group(timeline: Timeline, label: str) -> list[tuple[str, int, float, float]]:
    """Group the steady launches by ``family``, ``op``, ``module`` or ``line``.

    Returns:
        (name, launches per step, device seconds per step, flops per step), the longest first.
    """
    first, last, _, _, count = steady(timeline)
    columns = timeline.trace.columns
    kind = columns["kind"][first:last]
    rows = np.flatnonzero(kind == LAUNCH) + first
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
    return [(names[i], int(counts[i]) // count, float(totals[i]) / count, float(flops[i]) / count) for i in order]
