"""The charts of the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bringup import pricing
from bringup.analyse.holders import memory_over_time
from bringup.analyse.summary import Summary
from bringup.cost import FAMILIES
from bringup.recording.rows import D2D, D2H, H2D, LAUNCH
from bringup.report import palette
from bringup.report.chart import Axis, Figure, Series
from bringup.text import duration, short, size
from bringup.timeline.replay import Timeline
from bringup.timeline.steady import steady

MOST_SPANS = 3000  # of one lane; beyond that neighbours are drawn as one
MOST_LANES = 200  # by stream and family: ten streams with kernels of every family
MOST_POINTS = 4000
MOST_SIGNATURES = 400


def timeline(replayed: Timeline) -> tuple[Figure | None, str]:
    """Draw the typical step: a lane per stream, one per direction of the link, one for fallbacks.

    Returns:
        the figure, or None if nothing ran, and a sentence on what it shows.
    """
    first, last, *_ = steady(replayed)
    kind = replayed.trace.columns["kind"]
    rows = np.arange(first, last)
    rows = rows[np.isin(kind[rows], (LAUNCH, H2D, D2H, D2D)) & (replayed.end[rows] > replayed.start[rows])]
    if not len(rows):
        return None, "Nothing ran on the chip."
    since = float(replayed.start[rows].min())
    lanes = _lanes(replayed, rows)
    hidden = len(lanes) - MOST_LANES
    if hidden > 0:
        lanes = dict(sorted(lanes.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST_LANES])
    merged = 0
    names = sorted({lane for lane, _ in lanes}, reverse=True)
    series = []
    for (lane, family), members in sorted(lanes.items()):
        spans = _spans(replayed, np.asarray(members), since)
        merged += len(members) - len(spans)
        series.append(
            Series(
                family,
                "bars",
                palette.FAMILY.get(family, palette.OTHER),
                x=[start for start, _, _ in spans],
                y=[names.index(lane)] * len(spans),
                width=[length for _, length, _ in spans],
                text=[text for _, _, text in spans],
            )
        )
    shown = "whole recording" if replayed.steps.by == "whole" else "typical step"
    note = f"The {shown}: {len(rows):,} launches and copies."
    if merged > 0:
        note += f" {merged:,} are merged with a neighbour; timeline.json has all of them."
    if hidden > 0:
        note += f" The chart leaves out {hidden:,} lanes with fewer of them."
    height = 80 + 50 * len(names)
    return Figure(Axis("milliseconds of chip time"), Axis(lanes=names), series, height), note


def _lanes(replayed: Timeline, rows: npt.NDArray[Any]) -> dict[tuple[str, str], list[int]]:
    """Return the rows of each lane; rows that agree in what a lane depends on are looked at once."""
    columns = replayed.trace.columns
    signature = columns["signature"][rows]
    family = np.where(signature >= 0, np.append(replayed.work.family, -1)[signature], -1)
    fields = [columns[name][rows].astype(np.int64) for name in ("kind", "device", "stream", "object")]
    fields[-1] *= fields[0] == D2D  # only copies between chips are told apart by it
    fields += [family, replayed.fallback[rows] >= 0]
    _, first, alike = np.unique(np.stack(fields), axis=1, return_index=True, return_inverse=True)
    order = np.argsort(alike.ravel(), kind="stable")
    groups = np.split(rows[order], np.cumsum(np.bincount(alike.ravel()))[:-1])
    lanes: dict[tuple[str, str], list[int]] = {}
    for place, members in zip(first.tolist(), groups, strict=True):
        lanes.setdefault(_lane(replayed, int(rows[place])), []).extend(members.tolist())
    return {lane: sorted(members) for lane, members in lanes.items()}


def _lane(replayed: Timeline, row: int) -> tuple[str, str]:
    columns = replayed.trace.columns
    what, device = int(columns["kind"][row]), int(columns["device"][row])
    if what == D2D:
        return f"chip:{int(columns['object'][row])} to chip:{device}", "between chips"
    if what != LAUNCH:
        return f"link to the {'host' if what == D2H else 'chip'}", "link"
    if replayed.fallback[row] >= 0:
        return "host", "fallback"
    family = FAMILIES[replayed.work.family[columns["signature"][row]]]
    return f"chip:{device} s{int(columns['stream'][row])}", family


def _spans(replayed: Timeline, rows: npt.NDArray[Any], since: float) -> list[tuple[float, float, str]]:
    """(start, length in ms, text); neighbours are merged if there are too many to draw."""
    start, end = (replayed.start[rows] - since) * 1e3, (replayed.end[rows] - since) * 1e3
    pieces = np.array_split(np.arange(len(rows)), min(len(rows), MOST_SPANS))
    spans = []
    for piece in pieces:
        row = int(rows[piece[0]])
        text = _text(replayed, row) if len(piece) == 1 else f"{len(piece)} launches, the first {_text(replayed, row)}"
        low, high = float(start[piece[0]]), float(end[piece].max())
        spans.append((round(low, 6), round(high - low, 6), text))
    return spans


def _text(replayed: Timeline, row: int) -> str:
    columns = replayed.trace.columns
    took = duration(float(replayed.end[row] - replayed.start[row]))
    line, module = int(columns["line"][row]), int(columns["module"][row])
    where = replayed.trace.lines[line] if line >= 0 else "no Python line"
    if int(columns["kind"][row]) != LAUNCH:
        return f"{size(int(columns['bytes'][row]))}, {took}, {where}"
    signature = replayed.trace.signatures[columns["signature"][row]]
    inside = f", {replayed.trace.modules[module]}" if module >= 0 else ""
    return f"{signature.op} {took}\n{short(signature.shapes, 120)}\n{where}{inside}"


def memory(replayed: Timeline, summary: Summary) -> Figure | None:
    """Draw the bytes that tensors hold over time, with the capacity if it is near; None if nothing was allocated."""
    _, held = memory_over_time(replayed.trace)
    rows = np.flatnonzero(np.diff(held, prepend=0) != 0)
    if not len(rows):
        return None
    if len(rows) > MOST_POINTS:  # the largest of every piece, so that no peak is lost
        rows = np.asarray([piece[np.argmax(held[piece])] for piece in np.array_split(rows, MOST_POINTS)])
    x = [round(float(value) * 1e3, 6) for value in replayed.issued[rows]]
    y = [round(float(value) / 2**20, 4) for value in held[rows]]
    series = [Series("held by tensors", "steps", palette.PAGE["chip"], x, y, hover="{y} MiB at {x} ms")]
    if summary.peak_bytes * 4 > summary.capacity_bytes:
        capacity = summary.capacity_bytes / 2**20
        ends, colour = [x[0], x[-1]], palette.PAGE["fallback"]
        series.append(Series("capacity", "line", colour, ends, [capacity] * 2, hover="capacity: {y} MiB", dashed=True))
    return Figure(Axis("milliseconds, when the host issued it"), Axis("MiB"), series)


def roofline(replayed: Timeline) -> Figure:
    """Draw achieved flop/s over flops per byte, one point per kind of launch, under the chip's roofs."""
    columns, work, prices = replayed.trace.columns, replayed.work, replayed.prices
    counts = np.bincount(columns["signature"][columns["kind"] == LAUNCH], minlength=len(prices.seconds))
    spent = counts * prices.seconds
    shown = [int(i) for i in np.argsort(-spent, kind="stable")[:MOST_SIGNATURES] if spent[i] > 0 and work.flops[i] > 0]
    shown = [i for i in shown if prices.supported[i] and work.bytes[i] > 0]
    series = []
    for code in sorted({int(work.family[i]) for i in shown}):
        members = [i for i in shown if work.family[i] == code]
        share = spent[members] / spent.sum()
        series.append(
            Series(
                FAMILIES[code],
                "points",
                palette.FAMILY[FAMILIES[code]],
                x=[float(f"{work.flops[i] / work.bytes[i]:.6g}") for i in members],
                y=[float(f"{work.flops[i] / prices.seconds[i] / 1e9:.6g}") for i in members],
                size=[round(float(5 + 30 * np.sqrt(value)), 2) for value in share],
                text=[_point(replayed, i, int(counts[i])) for i in members],
            )
        )
    x, y = Axis("flop per byte of device memory", log=True), Axis("Gflop/s", log=True)
    return Figure(x, y, [*series, *_roofs(replayed)], height=420)


def _roofs(replayed: Timeline) -> list[Series]:
    memory_rate = pricing.memory_rate(replayed.chip)
    low, high = 1e-2, 1e4
    roofs: list[Series] = []
    for dtype in replayed.chip.matrix.tflops:
        if dtype == "tf32":
            continue
        rate = pricing.matrix_rate(replayed.chip, dtype)
        knee = rate / memory_rate
        x, y = [low, knee, max(high, knee)], [low * memory_rate / 1e9, rate / 1e9, rate / 1e9]
        colour = palette.series(8 + len(roofs))
        roofs.append(Series(f"{dtype} matrix", "line", colour, x, y, dashed=dtype != "float32"))
    return roofs


def _point(replayed: Timeline, i: int, count: int) -> str:
    signature = replayed.trace.signatures[i]
    bound = pricing.BOUNDS[int(replayed.prices.bound[i])]
    took = duration(float(replayed.prices.seconds[i]))
    return f"{signature.op} {count:,}x {took}, {bound}-bound\n{short(signature.shapes, 120)}"
