"""Writes the timeline as a trace for ui.perfetto.dev: what the host and every stream and link do, and counters."""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse.holders import memory_over_time
from bringup.cost.collective import ranks_of
from bringup.machine.topology import cluster_of
from bringup.pricing.collective import is_collective
from bringup.recording.rows import D2D, D2H, H2D, KINDS, LAUNCH
from bringup.recording.trace import Trace
from bringup.report import pftrace
from bringup.text import quantity
from bringup.timeline.host_spans import COMPUTES, COPIES, LAUNCHES, NAMES, HostSpans, host_spans
from bringup.timeline.replay import Timeline, is_placed

Array = npt.NDArray[Any]
Described = tuple[str, Mapping[str, str | int]]
# Launches and copies: the viewer's engine takes about 0.5 KB for each, of the 4 GB that a page may have. A longer trace
# is cut, with a note.
MOST_EVENTS = 4_000_000
# Tracks of a device's process that are no streams, and the first of those for copies between chips.
TO_CHIP, TO_HOST, FALLBACKS, BETWEEN = 1000, 1001, 1002, 1100


def write(path: str | Path, timeline: Timeline, run: str = "") -> None:
    """Write the timeline to a file, compressed if its name ends in ``.gz``; an error changes no file."""
    pftrace.write(path, trace(timeline, run).packets(), f"timeline-{run}.pftrace")


def trace(timeline: Timeline, run: str = "") -> pftrace.Writer:
    """Return the timeline as a trace, with the id of the report's run: one process for the host and one per device.

    An arrow leads from the host's call to the launch or copy. Counters have the memory of tensors, the launches that
    are not done, and the link's rate.
    """
    writer = pftrace.Writer()
    add(writer, timeline, run)
    return writer


def write_ranks(path: str | Path, timelines: Mapping[int, Timeline]) -> None:
    """Write the timelines of several ranks on one clock to a file; each rank has its host and its chip."""
    writer = pftrace.Writer()
    for rank, timeline in sorted(timelines.items()):
        add(writer, timeline, name=f"rank {rank}: ")
    pftrace.write(path, writer.packets(), "ranks.pftrace")


def add(writer: pftrace.Writer, timeline: Timeline, run: str = "", name: str = "") -> None:
    """Add a timeline to a trace; the names of its processes begin with `name`."""
    kind = timeline.trace.columns["kind"]
    on_host = is_placed(timeline.trace.columns)  # the host's threads have what a plan puts there
    shown = np.flatnonzero(np.isin(kind, (LAUNCH, H2D, D2H, D2D)) & ~on_host)
    rows = shown[:MOST_EVENTS]
    last = int(rows[-1]) + 1 if len(shown) > MOST_EVENTS else len(kind)
    host = writer.process(f"{name}host {timeline.host.name}", f"run {run}" if run else "")
    devices = {
        device: writer.process(f"{name}chip:{device} {timeline.chip.name}")
        for device in np.unique(timeline.trace.columns["device"][rows]).tolist()
    }
    tracks = [
        *_host(timeline, writer, host, host_spans(timeline, 0, last)),
        *_devices(timeline, writer, devices, rows),
        *_links(timeline, writer, devices, rows),
    ]
    parts = _arrows(writer, tracks, len(kind))
    _add_counters(timeline, writer, devices, rows, last, tracks, parts)
    first = 0
    for track in tracks:
        writer.slices(track.track, track.times, track.which, track.kinds, parts[first : first + len(track.times)])
        first += len(track.times)
    if len(shown) > MOST_EVENTS:
        cut: Described = (f"cut: {len(shown) - MOST_EVENTS} more events", {})
        writer.slices(writer.track(host, "cut"), np.repeat(timeline.end[rows[-1:]], 2), np.zeros(1, int), [cut])


@dataclass(frozen=True)
class _Track:
    """The slices of a track: begin and end in turns, the kind of each, and the row whose arrow begins or ends there."""

    track: int
    times: Array
    which: Array
    kinds: list[Described]
    arrow: Array
    calls: bool


def _track(
    track: int, start: Array, end: Array, keys: list[Array], describe: Any, arrow: Array, *, calls: bool
) -> _Track:
    """Return a track whose slices are described by `describe(*key)`, once for equal keys."""
    table: dict[tuple[int, ...], int] = {}
    values = zip(*(key.tolist() for key in keys), strict=True)
    which = np.fromiter((table.setdefault(value, len(table)) for value in values), np.int64, len(start))
    times = np.stack([start, end], axis=1).ravel()
    return _Track(track, times, which, [describe(*key) for key in table], arrow, calls)


def _host(timeline: Timeline, writer: pftrace.Writer, host: int, spans: HostSpans) -> Iterator[_Track]:
    columns = timeline.trace.columns
    threads = columns["thread"][spans.row]
    for thread in np.unique(threads).tolist():
        ours = np.flatnonzero(threads == thread)
        row, what = spans.row[ours], spans.what[ours]
        keys = [what, *(columns[name][row] for name in ("kind", "signature", "line", "module"))]

        def describe(what: int, kind: int, signature: int, line: int, module: int) -> Described:
            return _of_host(timeline.trace, what, kind, signature, line, module)

        arrow = np.where(np.isin(what, (LAUNCHES, COPIES)), row, -1)
        track = writer.thread(host, f"host thread {thread}")
        yield _track(track, spans.start[ours], spans.end[ours], keys, describe, arrow, calls=True)


def _of_host(trace: Trace, what: int, kind: int, signature: int, line: int, module: int) -> Described:
    ran = trace.signatures[signature].op.removeprefix("aten::") if kind == LAUNCH else KINDS[kind]
    name = f"{NAMES[what]}: {ran}" if what in (LAUNCHES, COPIES, COMPUTES) else NAMES[what]
    # What is launched has the rest, at the end of its arrow.
    return name, {} if what in (LAUNCHES, COPIES) else _place(trace, line, module)


def _place(trace: Trace, line: int, module: int) -> dict[str, str | int]:
    place: dict[str, str | int] = {"line": trace.lines[line] if line >= 0 else ""}
    return {**place, "module": trace.modules[module]} if module >= 0 else place


def _devices(timeline: Timeline, writer: pftrace.Writer, devices: dict[int, int], rows: Array) -> Iterator[_Track]:
    columns = timeline.trace.columns
    lanes, on = _lanes(timeline, rows), columns["device"][rows].astype(np.int64)
    fixed = {TO_CHIP: "link to the chip", TO_HOST: "link to the host", FALLBACKS: "fallbacks on the host"}
    for device, lane in np.unique(np.stack([on, lanes]), axis=1).T.tolist():
        source = f"link from chip:{lane - BETWEEN}" if lane >= BETWEEN else f"stream {lane}"
        ours = rows[(on == device) & (lanes == lane)]
        ours = ours[np.argsort(timeline.start[ours], kind="stable")]
        for part in _apart(timeline, ours):
            launched = columns["kind"][part] == LAUNCH
            keys = [columns[name][part] for name in ("kind", "signature", "line", "module")]
            keys.append(np.where(launched, 0, columns["bytes"][part]))

            def describe(kind: int, signature: int, line: int, module: int, size: int) -> Described:
                return _on_device(timeline.trace, kind, signature, line, module, size)

            track = writer.track(devices[device], fixed.get(lane, source + _group_of(timeline, part)))
            yield _track(track, timeline.start[part], timeline.end[part], keys, describe, part, calls=False)


def _group_of(timeline: Timeline, rows: Array) -> str:
    """Return in words the group whose collectives a stream has, if it has no others."""
    used = np.unique(timeline.trace.columns["signature"][rows]).tolist()
    signatures = [timeline.trace.signatures[number] for number in used if number >= 0]  # copies have none
    if len(signatures) < len(used) or not all(map(is_collective, signatures)):
        return ""
    groups = {tuple(ranks_of(signature)) for signature in signatures}
    return f": group of {quantity(len(groups.pop()), 'rank')}" if len(groups) == 1 else ": collectives"


def _links(timeline: Timeline, writer: pftrace.Writer, devices: dict[int, int], rows: Array) -> Iterator[_Track]:
    """Yield the links between chips and the network, each with the collectives that pass it; waits are left out."""
    trace, signature = timeline.trace, timeline.trace.columns["signature"]
    together = np.asarray([is_collective(item) for item in trace.signatures], dtype=bool)
    rows = rows[(trace.columns["kind"][rows] == LAUNCH)]
    rows = rows[together[signature[rows]]]
    if not len(rows):
        return
    groups = {number: ranks_of(trace.signatures[number]) for number in np.unique(signature[rows]).tolist()}
    topology = trace.cluster or cluster_of(timeline.chip, 1 + max(max(ranks) for ranks in groups.values()))
    beyond = np.zeros(len(trace.signatures), dtype=bool)
    for number, ranks in groups.items():
        beyond[number] = topology.group(ranks).nodes > 1
    took = timeline.prices.seconds[signature[rows]] * timeline.stretch(rows)
    start = np.maximum(timeline.end[rows] - took, timeline.start[rows])
    on = trace.columns["device"][rows].astype(np.int64)
    names = (f"links of the node ({topology.node.links.kind})", "network between nodes")
    for device, outside in itertools.product(devices, (False, True)):
        which = np.flatnonzero((on == device) & (beyond[signature[rows]] == outside) & (timeline.end[rows] > start))
        which = which[np.argsort(start[which], kind="stable")]
        ours = rows[which]
        keys = [trace.columns[name][ours] for name in ("kind", "signature", "line", "module", "bytes")]

        def describe(kind: int, signature: int, line: int, module: int, _: int) -> Described:
            name, place = _on_device(trace, kind, signature, line, module, 0)
            return name, {**place, "bytes": int(trace.signatures[signature].args["bytes"])}

        for part in _parts_apart(start[which], timeline.end[ours]):
            track = writer.track(devices[device], names[outside])
            spans = start[which][part], timeline.end[ours][part]
            yield _track(track, *spans, [key[part] for key in keys], describe, np.full(len(part), -1), calls=False)


def _lanes(timeline: Timeline, rows: Array) -> Array:
    """Return the track of each launch or copy in its device's process."""
    columns = timeline.trace.columns
    kind, stream, source = (columns[name][rows].astype(np.int64) for name in ("kind", "stream", "object"))
    on_host = (kind == LAUNCH) & (timeline.fallback[rows] >= 0)
    lanes = np.where(kind == LAUNCH, np.where(on_host, FALLBACKS, stream), BETWEEN + source)
    return np.where(kind == H2D, TO_CHIP, np.where(kind == D2H, TO_HOST, lanes))


def _apart(timeline: Timeline, rows: Array) -> list[Array]:
    """Divide rows, in order of their begin, so that none overlaps the next: two threads may have fallbacks at once."""
    return [rows[part] for part in _parts_apart(timeline.start[rows], timeline.end[rows])]


def _parts_apart(start: Array, end: Array) -> list[Array]:
    """Return the places of intervals, in order of their begin, in parts that do not overlap."""
    if not len(start):
        return []
    if not (start[1:] < end[:-1]).any():
        return [np.arange(len(start))]
    parts: list[list[int]] = []
    done: list[float] = []
    for row, (begin, until) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
        place = next((place for place, moment in enumerate(done) if moment <= begin), len(done))
        if place == len(done):
            parts.append([])
            done.append(until)
        parts[place].append(row)
        done[place] = until
    return [np.array(part) for part in parts]


def _on_device(trace: Trace, kind: int, signature: int, line: int, module: int, size: int) -> Described:
    place = _place(trace, line, module)
    if kind != LAUNCH:
        return KINDS[kind], {**place, "bytes": size}
    launched = trace.signatures[signature]
    return launched.op.removeprefix("aten::"), {**place, "shapes": json.dumps(launched.shapes)}


def _arrows(writer: pftrace.Writer, tracks: list[_Track], rows: int) -> list[bytes]:
    """Return the parts of all events, which have the ends of the arrows.

    An arrow gets the smallest number that is free between its ends, so that equal steps have equal numbers. Timelines
    of several ranks have no number in common.
    """
    first = np.cumsum([0, *(len(track.times) for track in tracks)])
    times = np.concatenate([np.zeros(0), *(track.times for track in tracks)])
    events = np.full((2, rows), -1, dtype=np.int64)  # the call of each row, and its launch or copy
    for track, begin in zip(tracks, first.tolist(), strict=False):
        slices = np.flatnonzero(track.arrow >= 0)
        events[0 if track.calls else 1, track.arrow[slices]] = begin + 2 * slices
    calls, launched = events[:, (events >= 0).all(axis=0)]
    order = np.argsort(times[calls], kind="stable")
    calls, launched = calls[order], launched[order]
    margin = 4e-9 * pftrace.TOLERANCE  # written times are a little off
    parts = [b""] * len(times)
    free: list[int] = []
    under_way: list[tuple[float, int]] = []
    begins: list[bytes] = []
    ends: list[bytes] = []
    ordered = (calls.tolist(), launched.tolist(), times[calls].tolist(), (times[launched] + margin).tolist())
    for call, launch, begin, until in zip(*ordered, strict=True):
        while under_way and under_way[0][0] < begin:
            heapq.heappush(free, heapq.heappop(under_way)[1])
        if not free:
            free.append(len(begins))
            writer.arrows += 1
            begins.append(pftrace.begins(writer.arrows))
            ends.append(pftrace.ends(writer.arrows))
        number = heapq.heappop(free)
        heapq.heappush(under_way, (until, number))
        parts[call], parts[launch] = begins[number], ends[number]
    return parts


def _add_counters(
    timeline: Timeline,
    writer: pftrace.Writer,
    devices: dict[int, int],
    rows: Array,
    last: int,
    tracks: list[_Track],
    parts: list[bytes],
) -> None:
    """Add the values of the counters to events of the same moment, and write the others as events of their own."""
    times = _nanoseconds(np.concatenate([np.zeros(0), *(track.times for track in tracks)]))
    order = np.argsort(times, kind="stable")
    times = times[order]
    counters = np.zeros(len(times), dtype=np.uint8)
    for device, name, unit, moments, values in _counters(timeline, devices, rows, last):
        counter = writer.counter(devices[device], name, unit)
        place = np.searchsorted(times, moments, side="right") - 1
        joined = (place >= 0) & (times[place] == moments) & (counters[place] < pftrace.COUNTERS)
        counters[place[joined]] += 1
        different, which = np.unique(values[joined], return_inverse=True)
        table = [pftrace.counts(counter, value) for value in different.tolist()]
        for event, number in zip(order[place[joined]].tolist(), which.tolist(), strict=True):
            parts[event] += table[number]
        if not joined.all():
            writer.values(counter, moments[~joined] * 1e-9, values[~joined])


def _counters(
    timeline: Timeline, devices: dict[int, int], rows: Array, last: int
) -> Iterator[tuple[int, str, str, Array, Array]]:
    """Yield device, name, unit, moments and values of what tensors hold, of launches that have not ended, and rates."""
    columns = timeline.trace.columns
    kind, size = columns["kind"], columns["bytes"]
    _, held_bytes = memory_over_time(timeline.trace)
    before = timeline.trace.about.get("held_bytes", [])
    for device in devices:
        own = np.flatnonzero(columns["device"][:last] == device)
        start = before[device] if device < len(before) else 0
        balance = np.diff(held_bytes[own], prepend=start)
        changes = balance != 0
        yield device, "memory", "B", *_values(timeline.issued[own[changes]], balance[changes], start)
        ours = rows[columns["device"][rows] == device]
        launched = ours[kind[ours] == LAUNCH]
        moments = np.concatenate([timeline.issued[launched], timeline.end[launched]])
        yield device, "launches queued", "", *_values(moments, np.repeat([1, -1], len(launched)))
        for direction, name in ((H2D, "link to the chip"), (D2H, "link to the host")):
            copies = ours[(kind[ours] == direction) & (timeline.end[ours] > timeline.start[ours])]
            begin, end = timeline.start[copies], timeline.end[copies]
            rate = np.rint(size[copies] / (end - begin)).astype(np.int64)
            if len(copies):
                moments, balance = np.concatenate([begin, end]), np.concatenate([rate, -rate])
                yield device, name, "B/s", *_values(moments, balance)


def _values(times: Array, changes: Array, start: int = 0) -> tuple[Array, Array]:
    """Return the values of a counter after its changes, one for all changes of a moment in nanoseconds."""
    order = np.argsort(times, kind="stable")
    moments, values = _nanoseconds(times[order]), start + np.cumsum(changes[order])
    final = np.append(moments[1:] != moments[:-1], True)[: len(moments)]
    return moments[final], np.maximum(values[final], 0)


def _nanoseconds(times: Array) -> Array:
    return np.rint(times * 1e9).astype(np.int64)
