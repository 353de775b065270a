"""The charts of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bringup import pricing
from bringup.analyse.holders import Storages, memory_over_time, storages
from bringup.analyse.summary import Summary
from bringup.cost import FAMILIES
from bringup.paths import BACKWARD
from bringup.recording.rows import ALLOC, BEFORE, D2D, D2H, FALLBACK, FREE, H2D, LAUNCH, MEASURED, OWNERS, PHASES
from bringup.recording.trace import Trace
from bringup.report import palette
from bringup.report.chart import Axis, Figure, Parts, Series
from bringup.text import duration, module_name, short, size, split_line
from bringup.timeline.host_spans import NAMES, host_spans
from bringup.timeline.replay import Timeline, is_placed
from bringup.timeline.steady import steady

MOST_SPANS = 3000  # of one lane; beyond that neighbours are drawn as one
MOST_LANES = 200  # by stream and family: ten streams with kernels of every family
MOST_POINTS = 2000
LEAST_SHARE = 1e-3  # of the chip's time: what takes less is no part of the flame graph
MOST_CALLS = 50  # of a stack; what is called inside of them counts for the innermost one that is shown
MOST_PARTS = 1000  # storages of one kind that a click lists
MOST_SIGNATURES = 400
MEASURED_ON = "measured on"  # how the lanes begin that show what a driver's device did
MOST_MODULES = 10  # groups of modules in the chart of memory; more are hard to tell apart
OUTSIDE_MODULES = "tensors outside modules"


def timeline(replayed: Timeline, part: tuple[int, int] | None = None) -> tuple[Figure | None, str]:
    """Draw the typical step: lanes for the host's threads, streams, each direction of the link, and fallbacks.

    Args:
        replayed: the replay of a recording.
        part: the first row and the row after the last one, if they are not those of the typical step.

    Returns:
        the figure, or None if nothing ran, and a sentence on what it shows.
    """
    first, last = part or steady(replayed)[:2]
    columns = replayed.trace.columns
    rows = np.arange(first, last)
    rows = rows[np.isin(columns["kind"][rows], (LAUNCH, H2D, D2H, D2D)) & (replayed.end[rows] > replayed.start[rows])]
    on_host = is_placed({name: columns[name][rows] for name in ("kind", "object")})  # the host's lane has them
    count, rows = len(rows), rows[~on_host]
    if not count:
        return None, "Nothing ran on the chip."
    lanes = _lanes(replayed, rows) if len(rows) else {}
    hidden = len(lanes) - MOST_LANES
    if hidden > 0:
        lanes = dict(sorted(lanes.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST_LANES])
    marks = [
        (lane, _column(lane, name), name, palette.FAMILY.get(name, palette.OTHER), _device_marks(replayed, members))
        for (lane, name), members in sorted(lanes.items())
    ]
    marks = _host_lanes(replayed, first, last) + marks
    since = min(float(spans.start.min()) for *_, spans in marks)
    measured = _measured_lanes(replayed, first, last, since)
    marks += measured
    names = list(dict.fromkeys(sorted((lane for lane, *_ in marks), key=_place)))
    merged = 0
    series = []
    for lane, column, name, colour, spans in marks:
        drawn = _drawn(replayed, spans, since)
        merged += (len(spans.row) - len(drawn)) * (column not in ("host", "measured"))
        begin, width, text, lines, modules, row = map(list, zip(*drawn, strict=True))
        series.append(
            Series(
                name,
                "bars",
                colour,
                x=begin,
                y=[names.index(lane)] * len(drawn),
                width=width,
                text=text,
                row=[number - first for number in row],
                column=column,
                labels={"line": lines, "module": modules},
            )
        )
    shown = "whole recording" if replayed.steps.by == "whole" else "typical step"
    note = f"The {shown}: {count:,} launches and copies."
    if count > len(rows):
        note += f" {count - len(rows):,} of them run on the host, where a plan puts them."
    if merged > 0:
        note += f" {merged:,} are merged with a neighbour; timeline.pftrace.gz has all of them."
    if hidden > 0:
        note += f" The chart leaves out {hidden:,} lanes with fewer of them."
    if measured:
        note += f" The lanes {measured[0][0].removesuffix(', host')} show when its device ran the same launches, which"
        note += f" took {duration(max(float(spans.end.max()) for *_, spans in measured) - since)} together."
    height = 80 + 40 * len(names)
    return Figure(Axis("milliseconds"), Axis(lanes=names), series, height), note


@dataclass(frozen=True)
class _Spans:
    """Spans of one lane and colour: their rows, what each is, and their ends in seconds."""

    row: npt.NDArray[Any]
    what: Sequence[str] | None  # None: what the row ran on the chip or link
    start: npt.NDArray[Any]
    end: npt.NDArray[Any]


def _place(lane: str) -> tuple[int, str]:
    """Return the place of a lane from below: what was measured, the link, fallbacks, chips, and the host's threads."""
    order = (MEASURED_ON, "link", "fallbacks", "chip", "host")
    return next(number for number, start in enumerate(order) if lane.startswith(start)), lane


def _column(lane: str, name: str) -> str:
    if lane.startswith(MEASURED_ON):
        return "measured"
    return "host" if name == "fallback" else "link" if lane.startswith("link") or " to " in lane else "chip"


def _device_marks(replayed: Timeline, rows: npt.NDArray[Any]) -> _Spans:
    return _Spans(rows, None, replayed.start[rows], replayed.end[rows])


def _host_lanes(replayed: Timeline, first: int, last: int) -> list[tuple[str, str, str, str, _Spans]]:
    """Return lane, column, name, colour and spans of each kind of span in the host's threads."""
    spans = host_spans(replayed, first, last)
    thread = replayed.trace.columns["thread"][spans.row]
    several = len(np.unique(thread)) > 1
    lanes = []
    for number in np.unique(thread).tolist():
        lane = f"host thread {number}" if several else "host"
        for what in np.unique(spans.what[thread == number]).tolist():
            members = np.flatnonzero((thread == number) & (spans.what == what))
            name = NAMES[what]
            colour = palette.HOST.get(name, palette.HOST["wait" if name.startswith("wait") else "computes"])
            names = [name] * len(members)
            picked = _Spans(spans.row[members], names, spans.start[members], spans.end[members])
            lanes.append((lane, "host", f"host: {name}", colour, picked))
    return lanes


def _measured_lanes(replayed: Timeline, first: int, last: int, since: float) -> list[tuple[str, str, str, str, _Spans]]:
    """Return the same for the launches that a driver's device ran; the first of them begins at `since`."""
    columns = {name: values[first:last] for name, values in replayed.trace.columns.items()}
    if MEASURED[0] not in columns:
        return []
    rows = np.flatnonzero(columns[MEASURED[1]] > 0)
    if not len(rows):
        return []
    begin, seconds = (columns[name][rows] / 1e9 for name in MEASURED)
    device, stream = (columns[name][rows] for name in ("device", "stream"))
    for number in np.unique(device):  # each has a clock of its own
        begin[device == number] += since - begin[device == number].min()
    name = replayed.trace.about.get("driver", {}).get("name", "a driver")
    where = [f"chip:{d}, stream {s}" for d, s in zip(device.tolist(), stream.tolist(), strict=True)]
    several = len(set(where)) > 1
    on_host = columns["flags"][rows] & FALLBACK != 0
    family = replayed.work.family[columns["signature"][rows]]
    lanes = []
    for code, host, place in sorted({*zip(family.tolist(), on_host.tolist(), where, strict=True)}):
        members = np.flatnonzero((family == code) & (on_host == host) & (np.asarray(where) == place))
        lane = f"{MEASURED_ON} {name}{f', {place}' if several else ''}{', host' if host else ''}"
        what = "fallback" if host else FAMILIES[code]
        of_trace = rows[members] + first
        predicted = (replayed.end - replayed.start)[of_trace].tolist()
        texts = [f"predicted {duration(spent)}, measured" for spent in predicted]
        spans = _Spans(of_trace, texts, begin[members], begin[members] + seconds[members])
        lanes.append((lane, "measured", what, palette.FAMILY.get(what, palette.OTHER), spans))
    return lanes


def _lanes(replayed: Timeline, rows: npt.NDArray[Any]) -> dict[tuple[str, str], npt.NDArray[Any]]:
    """Return the rows of each lane; rows that agree in what a lane depends on are looked at once."""
    columns = replayed.trace.columns
    signature = columns["signature"][rows]
    family = np.where(signature >= 0, np.append(replayed.work.family, -1)[signature], -1)
    fields = [columns[name][rows].astype(np.int64) for name in ("kind", "device", "stream", "object")]
    fields[-1] *= fields[0] == D2D  # only copies between chips are told apart by it
    fields += [family, replayed.fallback[rows] >= 0]
    _, first, alike = np.unique(_keys(fields), return_index=True, return_inverse=True)
    order = np.argsort(alike, kind="stable")
    groups = np.split(rows[order], np.cumsum(np.bincount(alike))[:-1])
    lanes: dict[tuple[str, str], list[npt.NDArray[Any]]] = {}
    for place, members in zip(first.tolist(), groups, strict=True):
        lanes.setdefault(_lane(replayed, int(rows[place])), []).append(members)
    return {lane: np.sort(np.concatenate(members)) for lane, members in lanes.items()}


def _keys(fields: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return one number per row, equal for rows whose fields are equal: numbers are sorted faster than columns."""
    keys = np.zeros(len(fields[0]), dtype=np.int64)
    for field in fields:
        low = int(field.min())
        keys = keys * (int(field.max()) - low + 1) + (field.astype(np.int64) - low)
    return keys


def _lane(replayed: Timeline, row: int) -> tuple[str, str]:
    columns = replayed.trace.columns
    what, device = int(columns["kind"][row]), int(columns["device"][row])
    if what == D2D:
        return f"chip:{int(columns['object'][row])} to chip:{device}", "between chips"
    if what != LAUNCH:
        return f"link to the {'host' if what == D2H else 'chip'}", "link"
    if replayed.fallback[row] >= 0:
        return "fallbacks on the host", "fallback"
    family = FAMILIES[replayed.work.family[columns["signature"][row]]]
    return f"chip:{device} s{int(columns['stream'][row])}", family


def _drawn(replayed: Timeline, spans: _Spans, since: float) -> list[tuple[float, float, str, str, str, int]]:
    """(start, length in ms, text, line, module, row); neighbours are merged if there are too many to draw."""
    start, end = (spans.start - since) * 1e3, (spans.end - since) * 1e3
    pieces = np.array_split(np.arange(len(start)), min(len(start), MOST_SPANS))
    drawn = []
    for piece in pieces:
        place = int(piece[0])
        row = int(spans.row[place])
        if spans.what is None:
            text = _text(replayed, row)
        else:
            took = duration(float(spans.end[place] - spans.start[place]))
            text = f"{spans.what[place]} {took}\n{_what(replayed, row)}"
        if len(piece) > 1:
            text = f"{len(piece)} launches, the first {text}"
        low, high = float(start[place]), float(end[piece].max())
        line, module = _where(replayed, row)
        drawn.append((round(low, 6) + 0.0, round(high - low, 6), text, line, module, row))
    return drawn


def _where(replayed: Timeline, row: int) -> tuple[str, str]:
    """Return the line and the module of a row."""
    trace = replayed.trace
    line, module = (int(trace.columns[name][row]) for name in ("line", "module"))
    inside = module_name(trace.modules[module]) if module >= 0 else "no module"
    return trace.lines[line] if line >= 0 else "no Python line", inside


def _what(replayed: Timeline, row: int) -> str:
    """Return operator and line of a row."""
    columns = replayed.trace.columns
    line, _ = _where(replayed, row)
    if int(columns["kind"][row]) != LAUNCH:
        return line
    return f"{replayed.trace.signatures[columns['signature'][row]].op}\n{line}"


def _text(replayed: Timeline, row: int) -> str:
    columns = replayed.trace.columns
    took = duration(float(replayed.end[row] - replayed.start[row]))
    line, module = int(columns["line"][row]), int(columns["module"][row])
    where = replayed.trace.lines[line] if line >= 0 else "no Python line"
    if int(columns["kind"][row]) != LAUNCH:
        return f"{size(int(columns['bytes'][row]))}, {took}, {where}"
    signature = replayed.trace.signatures[columns["signature"][row]]
    inside = f", {module_name(replayed.trace.modules[module])}" if module >= 0 else ""
    return f"{signature.op} {took}\n{short(signature.shapes, 120)}\n{where}{inside}"


def flame(replayed: Timeline, by: Literal["module", "line", "stack"] = "module") -> Figure | None:
    """Draw the chip's time in the typical step, each part below what it belongs to; None if the chip computes nothing.

    Args:
        replayed: the replay of a recording.
        by: passes, the modules in them and operators; or passes, files, their lines and operators; or passes, the
            program's calls and operators, None if the recording has no stacks.
    """
    if by not in replayed.trace.columns:
        return None
    first, last, *_ = steady(replayed)
    trace = replayed.trace
    rows = replayed.launches_on_chip(first, last)
    if not len(rows):
        return None
    ops = [item.op.removeprefix("aten::") for item in trace.signatures]
    fields = [trace.columns[name][rows] for name in ("phase", by, "signature")]
    inner: Sequence[tuple[str, ...]] = {
        "module": lambda: [_modules(name) for name in trace.modules],
        "line": lambda: _lines(trace),
        "stack": lambda: _stacks(trace),
    }[by]()
    _, some, place = np.unique(_keys(fields), return_index=True, return_inverse=True)
    seconds = np.bincount(place, (replayed.end - replayed.start)[rows])
    totals: dict[tuple[str, ...], float] = {}
    groups = zip(*(field[some].tolist() for field in fields), strict=True)
    for (phase, place_of, signature), spent in zip(groups, seconds.tolist(), strict=True):
        whole = (PHASES[phase], *(inner[place_of] if place_of >= 0 else ()), ops[signature])
        for depth in range(1, len(whole) + 1):
            totals[whole[:depth]] = totals.get(whole[:depth], 0.0) + spent
    total = sum(seconds.tolist()) or 1.0
    begins: dict[tuple[str, ...], float] = {}
    ends: dict[tuple[str, ...], float] = {}  # of the children so far
    shown = [path for path, spent in totals.items() if spent >= total * LEAST_SHARE]
    for path in sorted(shown, key=lambda path: (len(path), PHASES.index(path[0]), -totals[path], path)):
        begins[path] = ends.get(path[:-1], begins.get(path[:-1], 0.0))
        ends[path[:-1]] = begins[path] + totals[path]
    deepest = max(len(path) for path in shown)
    series = []
    for name in PHASES:
        paths = sorted((path for path in shown if path[0] == name), key=lambda path: (len(path), begins[path]))
        if paths:
            series.append(
                Series(
                    f"{name} pass" if name != "optimizer" else name,
                    "bars",
                    palette.PHASE[name],
                    x=[round(begins[path] * 1e3, 6) for path in paths],
                    y=[deepest - len(path) for path in paths],
                    width=[round(totals[path] * 1e3, 6) for path in paths],
                    text=[_of_flame(path, totals[path], total) for path in paths],
                    inside=True,
                )
            )
    lanes = [f"level {deepest - number}" for number in range(deepest)]
    return Figure(Axis("milliseconds of chip time per step"), Axis(lanes=lanes), series, 80 + 30 * deepest)


def _modules(name: str) -> tuple[str, ...]:
    """Return a module and those around it, the outermost first: ``layers``, ``layers.0`` and ``layers.0.mlp``."""
    parts = name.split(".")
    return tuple(module_name(".".join(parts[:depth])) for depth in range(1, len(parts) + 1))


def _lines(trace: Trace) -> list[tuple[str, ...]]:
    """Return for each line its file, and its number with its source: ``train.py`` and ``12: loss = model(x)``."""
    sources = chain(trace.about.get("source", ()), repeat(""))
    places = (split_line(line.removesuffix(BACKWARD)) for line in trace.lines)
    return [
        (file, f"line {number}: {source}" if source else f"line {number}") if number else (file or line,)
        for (file, number), line, source in zip(places, trace.lines, sources, strict=False)
    ]


def _stacks(trace: Trace) -> list[tuple[str, ...]]:
    """Return for each stack its calls, the outermost first: ``main  train.py:40`` and ``loss  model.py:12``."""
    paths: list[tuple[str, ...]] = []
    for caller, line, function in trace.stacks:
        outer = paths[caller] if caller >= 0 else ()
        paths.append((*outer, f"{function}  {trace.lines[line]}") if len(outer) < MOST_CALLS else outer)
    return paths


def _of_flame(path: tuple[str, ...], spent: float, total: float) -> str:
    return f"{path[-1]} {duration(spent)}\n{spent / total:.1%} of the chip's time\n{' > '.join(path[:-1])}".strip()


def memory(replayed: Timeline, summary: Summary) -> Figure | None:
    """Draw the bytes that tensors of the fullest device hold over time, stacked by kind; None if nothing was allocated.

    The capacity is drawn if it is near.
    """
    drawn = _Memory.of_replay(replayed)
    if drawn is None:
        return None
    kinds = drawn.handed_out.kind
    groups = {OWNERS[code]: kinds == code for code in np.unique(kinds).tolist()}
    series = drawn.stacks(groups, palette.MEMORY, list(palette.MEMORY))
    if summary.peak_bytes * 4 > summary.capacity_bytes:
        capacity = summary.capacity_bytes / 2**20
        ends, colour = [series[0].x[0], series[0].x[-1]], palette.PAGE["fallback"]
        series.append(Series("capacity", "line", colour, ends, [capacity] * 2, hover="capacity: {y} MiB", dashed=True))
    return Figure(Axis("milliseconds, when the host issued it"), Axis("MiB"), series)


def memory_by_module(replayed: Timeline) -> Figure | None:
    """Draw the same bytes, stacked by the module that owns or allocated them; None without modules."""
    drawn = _Memory.of_replay(replayed)
    if drawn is None or (drawn.handed_out.module < 0).all():
        return None
    handed_out, names = drawn.handed_out, replayed.trace.modules
    weight = np.bincount(handed_out.module + 1, handed_out.bytes * drawn.seconds, len(names) + 1)[1:]
    group = np.asarray([*_grouped(names, weight), OUTSIDE_MODULES])[handed_out.module]
    groups = {str(name): group == name for name in np.unique(group)}
    order = sorted(
        groups, key=lambda name: (name == OUTSIDE_MODULES, -float(handed_out.bytes[groups[name]].sum()), name)
    )
    colours = {name: palette.series(number) for number, name in enumerate(order)}
    colours |= {name: palette.MEMORY[name] for name in (OWNERS[BEFORE], OUTSIDE_MODULES)}
    series = drawn.stacks(groups, colours, [OWNERS[BEFORE], *order])
    return Figure(Axis("milliseconds, when the host issued it"), Axis("MiB"), series)


def _grouped(names: Sequence[str], weight: npt.NDArray[Any]) -> list[str]:
    """Return the group of every module: the heaviest groups are divided further, while there are few."""
    paths = [tuple(name.split(".")) for name in names]
    groups: dict[tuple[str, ...], list[int]] = {(): list(range(len(names)))}
    whole: set[tuple[str, ...]] = set()  # groups that stay as they are
    while parts := [path for path in groups if path not in whole]:
        path = max(parts, key=lambda path: (float(weight[groups[path]].sum()), path))
        inner: dict[tuple[str, ...], list[int]] = {}
        for module in groups[path]:
            inner.setdefault(paths[module][: len(path) + 1], []).append(module)
        if len(groups) - 1 + len(inner) > MOST_MODULES or list(inner) == [path]:
            whole.add(path)
        else:
            del groups[path]
            groups |= inner
    group = {
        module: module_name(".".join(path)) or "all modules" for path, modules in groups.items() for module in modules
    }
    return [group[module] for module in range(len(names))]


@dataclass(frozen=True)
class _Memory:
    """The storages of the fullest device over time.

    Attributes:
        held: bytes after each of the rows, in which storages are allocated and freed.
        points: the rows that are drawn, as places in `rows`.
    """

    replayed: Timeline
    handed_out: Storages
    rows: npt.NDArray[Any]
    held: npt.NDArray[Any]
    points: npt.NDArray[Any]

    @staticmethod
    def of_replay(replayed: Timeline) -> _Memory | None:
        """Return them, None if nothing was allocated."""
        trace = replayed.trace
        _, held = memory_over_time(trace)
        if not len(held) or not held.any():
            return None
        device = int(trace.columns["device"][int(np.argmax(held))])
        rows = np.flatnonzero(np.isin(trace.columns["kind"], (ALLOC, FREE)) & (trace.columns["device"] == device))
        if not len(rows):
            return None
        points = np.arange(len(rows))
        if len(points) > MOST_POINTS:  # the largest of every piece, so that no peak is lost
            points = np.asarray([piece[np.argmax(held[rows[piece]])] for piece in np.array_split(points, MOST_POINTS)])
        return _Memory(replayed, storages(trace, device), rows, held[rows], points)

    @cached_property
    def seconds(self) -> npt.NDArray[Any]:
        """How long each storage lives; those that are never freed live to the end."""
        issued = self.replayed.issued
        last = float(issued[self.rows[-1]])
        since = issued[self.handed_out.allocated]
        seconds: npt.NDArray[Any] = np.append(issued, last + 1e-3)[self.handed_out.freed] - since
        return seconds

    def stacks(
        self, groups: dict[str, npt.NDArray[Any]], colours: dict[str, str], order: Sequence[str]
    ) -> list[Series]:
        """Return a stack for each group of storages; what was held before the recording is one, too."""
        over_time = {name: self._over_time(members) for name, members in groups.items()}
        rest = self.held - sum(over_time.values())  # held before the recording, and not freed yet
        if rest.any():
            over_time[OWNERS[BEFORE]] = rest
        x = self._milliseconds(self.replayed.issued[self.rows[self.points]])
        series = []
        for name in (name for name in order if name in over_time):
            y = [round(float(value) / 2**20, 4) for value in over_time[name][self.points]]
            parts = self._largest(groups.get(name, np.zeros(len(self.handed_out.bytes), bool)))
            hover = f"{name}: {{y}} MiB at {{x}} ms"
            series.append(Series(name, "stack", colours[name], x, y, hover=hover, parts=parts))
        return series

    def _milliseconds(self, seconds: npt.NDArray[Any]) -> list[float]:
        """Return moments in milliseconds, rounded to a hundred-thousandth of the recording."""
        last = float(self.replayed.issued[self.rows[-1]]) * 1e3
        digits = max(5 - math.floor(math.log10(max(last, 1e-3))), 0)
        return [round(float(value) * 1e3, digits) for value in seconds]

    def _over_time(self, members: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the bytes that some storages hold after each of the rows."""
        size = self.handed_out.bytes[members]
        more, less = (np.bincount(place[members], size, len(self.rows) + 1) for place in self._places)
        return np.cumsum((more - less)[:-1].astype(np.int64))  # whole numbers below 2**53 have no error

    @cached_property
    def _places(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Where each storage is allocated and freed, as places in `rows`."""
        allocated, freed = (
            np.searchsorted(self.rows, moments) for moments in (self.handed_out.allocated, self.handed_out.freed)
        )
        return allocated, freed

    def _largest(self, members: npt.NDArray[Any]) -> Parts:
        """Return the storages of a group with the most bytes times seconds, and the lines that allocated them."""
        trace = self.replayed.trace
        chosen = np.flatnonzero(members)
        lived = self.seconds[chosen]
        weight = self.handed_out.bytes[chosen] * lived
        picked = np.sort(np.argsort(-weight, kind="stable")[:MOST_PARTS])
        allocated = self.handed_out.allocated[chosen[picked]]
        lines = trace.columns["line"][allocated].tolist()
        x = self._milliseconds(self.replayed.issued[allocated])
        ends = self._milliseconds(self.replayed.issued[allocated] + lived[picked])
        return Parts(
            x=x,
            width=[round(end - start, 6) for start, end in zip(x, ends, strict=True)],
            y=[round(float(value) / 2**20, 4) for value in self.handed_out.bytes[chosen[picked]]],
            text=[trace.lines[line] if line >= 0 else "no Python line" for line in lines],
        )


def roofline(replayed: Timeline) -> Figure:
    """Draw achieved flop/s over flops per byte, one point per kind of launch, under the chip's roofs."""
    columns, work, prices = replayed.trace.columns, replayed.work, replayed.prices
    rows = replayed.launches_on_chip(0, len(replayed.trace))
    counts = np.bincount(columns["signature"][rows], minlength=len(prices.seconds))
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
