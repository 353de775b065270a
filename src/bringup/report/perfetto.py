"""Writes timeline.json in the Chrome trace format, for ui.perfetto.dev."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.files import written_whole
from bringup.recording.rows import ALLOC, D2D, D2H, FREE, H2D, KINDS, LAUNCH
from bringup.recording.trace import Trace
from bringup.timeline.host_spans import COMPUTES, COPIES, LAUNCHES, NAMES, HostSpans, host_spans
from bringup.timeline.replay import Timeline, is_placed

Array = npt.NDArray[Any]
MOST_EVENTS = (
    200_000  # launches and copies: the viewer opens this many without trouble; a longer trace is cut, with a note
)
# Threads of a device's process that are no streams, and the first of those for copies between chips.
TO_CHIP, TO_HOST, FALLBACKS, BETWEEN = 1000, 1001, 1002, 1100


def text(timeline: Timeline, run: str = "") -> str:
    """Write the timeline as JSON, with the id of the report's run: the host as process 0, device n as n + 1.

    An arrow leads from the host's call to the launch or copy. Counters have the memory of tensors, the launches that
    are not done, and the link's rate.
    """
    about = json.dumps({"displayTimeUnit": "ms", "otherData": {"run": run}})
    events = ",\n".join(_events(timeline))
    return f'{about[:-1]}, "traceEvents": [{events}]}}'


def write(path: str | Path, timeline: Timeline, run: str = "") -> None:
    """Write the timeline to a file, compressed if its name ends in ``.gz``; an error changes no file."""
    data = text(timeline, run).encode()
    if str(path).endswith(".gz"):
        data = gzip.compress(data, mtime=0)  # equal timelines have equal files
    with written_whole(path) as temporary:
        Path(temporary).write_bytes(data)


def _events(timeline: Timeline) -> Iterator[str]:
    kind = timeline.trace.columns["kind"]
    on_host = is_placed(timeline.trace.columns)  # the host's threads have what a plan puts there
    shown = np.flatnonzero(np.isin(kind, (LAUNCH, H2D, D2H, D2D)) & ~on_host)
    rows = shown[:MOST_EVENTS]
    last = int(rows[-1]) + 1 if len(shown) > MOST_EVENTS else len(kind)
    spans = host_spans(timeline, 0, last)
    yield from _names(timeline, rows, spans)
    yield from _host(timeline, spans)
    yield from _devices(timeline, rows)
    yield from _counters(timeline, rows, last)
    if len(shown) > MOST_EVENTS:
        ((begin, length),) = _times(timeline.end[rows[-1:]], timeline.end[rows[-1:]])
        yield _span(_as_members(f"cut: {len(shown) - MOST_EVENTS} more events", {}), 0, 0, begin, length)


def _names(timeline: Timeline, rows: Array, spans: HostSpans) -> Iterator[str]:
    columns = timeline.trace.columns
    yield _name("process_name", 0, 0, f"host {timeline.host.name}")
    for thread in np.unique(columns["thread"][spans.row]).tolist():
        yield _name("thread_name", 0, thread, f"host thread {thread}")
    lanes = np.unique(np.stack([columns["device"][rows].astype(np.int64), _lanes(timeline, rows)]), axis=1).T.tolist()
    fixed = {TO_CHIP: "link to the chip", TO_HOST: "link to the host", FALLBACKS: "fallbacks on the host"}
    for device in sorted({device for device, _ in lanes}):
        yield _name("process_name", device + 1, 0, f"chip:{device} {timeline.chip.name}")
    for device, lane in lanes:
        source = f"link from chip:{lane - BETWEEN}" if lane >= BETWEEN else f"stream {lane}"
        yield _name("thread_name", device + 1, lane, fixed.get(lane, source))


def _lanes(timeline: Timeline, rows: Array) -> Array:
    """Return the thread of each launch or copy in its device's process."""
    columns = timeline.trace.columns
    kind, stream, source = (columns[name][rows].astype(np.int64) for name in ("kind", "stream", "object"))
    on_host = (kind == LAUNCH) & (timeline.fallback[rows] >= 0)
    lanes = np.where(kind == LAUNCH, np.where(on_host, FALLBACKS, stream), BETWEEN + source)
    return np.where(kind == H2D, TO_CHIP, np.where(kind == D2H, TO_HOST, lanes))


def _host(timeline: Timeline, spans: HostSpans) -> Iterator[str]:
    columns = timeline.trace.columns
    described: dict[tuple[int, ...], str] = {}
    kind = columns["kind"][spans.row]
    fields = [spans.what, kind, *(columns[name][spans.row] for name in ("signature", "line", "module"))]
    values = zip(*(field.tolist() for field in fields), strict=True)
    threads, times = columns["thread"][spans.row].tolist(), _times(spans.start, spans.end)
    for value, row, thread, (begin, length) in zip(values, spans.row.tolist(), threads, times, strict=True):
        if value not in described:
            described[value] = _of_host(timeline.trace, *value)
        arrow = f',"bind_id":"{row}","flow_out":true' if value[0] in (LAUNCHES, COPIES) else ""
        yield _span(described[value] + arrow, 0, thread, begin, length)


def _of_host(trace: Trace, what: int, kind: int, signature: int, line: int, module: int) -> str:
    """Return the name of a span of the host and its arguments as JSON, which spans of equal values share."""
    ran = trace.signatures[signature].op.removeprefix("aten::") if kind == LAUNCH else KINDS[kind]
    name = f"{NAMES[what]}: {ran}" if what in (LAUNCHES, COPIES, COMPUTES) else NAMES[what]
    # What is launched has the rest, at the end of its arrow.
    return _as_members(name, {} if what in (LAUNCHES, COPIES) else _place(trace, line, module))


def _place(trace: Trace, line: int, module: int) -> dict[str, str]:
    place = {"line": trace.lines[line] if line >= 0 else ""}
    return {**place, "module": trace.modules[module]} if module >= 0 else place


def _devices(timeline: Timeline, rows: Array) -> Iterator[str]:
    columns = timeline.trace.columns
    described: dict[tuple[int, ...], str] = {}
    fields = ("kind", "signature", "line", "module", "bytes")
    values = zip(*(columns[name][rows].tolist() for name in fields), strict=True)
    processes, lanes = (columns["device"][rows].astype(np.int64) + 1).tolist(), _lanes(timeline, rows).tolist()
    times = _times(timeline.start[rows], timeline.end[rows])
    for value, row, process, lane, (begin, length) in zip(values, rows.tolist(), processes, lanes, times, strict=True):
        key = value[:4] if value[0] == LAUNCH else value
        if key not in described:
            described[key] = _on_device(timeline.trace, *value)
        yield _span(f'{described[key]},"bind_id":"{row}","flow_in":true', process, lane, begin, length)


def _on_device(trace: Trace, kind: int, signature: int, line: int, module: int, size: int) -> str:
    """Return the name of a launch or copy and its arguments as JSON, which rows of equal values share."""
    args: dict[str, Any] = dict(_place(trace, line, module))
    if kind != LAUNCH:
        return _as_members(KINDS[kind], {**args, "bytes": size})
    launched = trace.signatures[signature]
    return _as_members(launched.op.removeprefix("aten::"), {**args, "shapes": launched.shapes})


def _counters(timeline: Timeline, rows: Array, last: int) -> Iterator[str]:
    """Yield for each device what tensors hold, the launches that have not ended, and the rate of each direction."""
    columns = timeline.trace.columns
    kind, size = columns["kind"], columns["bytes"]
    changes = np.flatnonzero(np.isin(kind[:last], (ALLOC, FREE)))
    before = timeline.trace.about.get("held_bytes", [])
    for device in np.unique(columns["device"][rows]).tolist():
        held = changes[columns["device"][changes] == device]
        balance = np.where(kind[held] == ALLOC, size[held], -size[held])
        start = before[device] if device < len(before) else 0
        yield from _counter("memory, MiB", device, timeline.issued[held], balance / 2**20, start / 2**20)
        ours = rows[columns["device"][rows] == device]
        launched = ours[kind[ours] == LAUNCH]
        times = np.concatenate([timeline.issued[launched], timeline.end[launched]])
        yield from _counter("launches queued", device, times, np.repeat([1.0, -1.0], len(launched)))
        for direction, name in ((H2D, "link to the chip, GB/s"), (D2H, "link to the host, GB/s")):
            copies = ours[(kind[ours] == direction) & (timeline.end[ours] > timeline.start[ours])]
            begin, end = timeline.start[copies], timeline.end[copies]
            rate = size[copies] / (end - begin) / 1e9
            yield from _counter(name, device, np.concatenate([begin, end]), np.concatenate([rate, -rate]))


def _counter(name: str, device: int, times: Array, changes: Array, start: float = 0.0) -> Iterator[str]:
    """Yield the values of a counter after its changes, one for all changes of a moment."""
    order = np.argsort(times, kind="stable")
    moments = np.round(times[order] * 1e6, 3)
    values = np.round(start + np.cumsum(changes[order]), 6) + 0.0  # sums of differences: no tiny remainder, no -0
    final = np.append(moments[1:] != moments[:-1], True)[: len(moments)]
    members = f'"name":{json.dumps(name)},"ph":"C","pid":{device + 1}'
    for moment, value in zip(moments[final].tolist(), values[final].tolist(), strict=True):
        yield f'{{"args":{{"value":{value:g}}},{members},"ts":{moment}}}'


def _as_members(name: str, args: dict[str, Any]) -> str:
    return json.dumps({"args": args, "name": name}, sort_keys=True, separators=(",", ":"))[1:-1]


def _name(event: str, process: int, thread: int, name: str) -> str:
    return json.dumps({"ph": "M", "name": event, "pid": process, "tid": thread, "args": {"name": name}})


def _times(start: Array, end: Array) -> Iterator[tuple[float, float]]:
    """Yield begin and length in microseconds. Both ends are rounded: no event ends after the next one begins."""
    begin, until = (np.round(seconds * 1e6, 3) for seconds in (start, end))
    return zip(begin.tolist(), np.round(until - begin, 3).tolist(), strict=True)


def _span(members: str, process: int, thread: int, begin: float, length: float) -> str:
    """Write an event by hand, because the encoder is slow where each of 100,000 events is a dict."""
    return f'{{{members},"dur":{length},"ph":"X","pid":{process},"tid":{thread},"ts":{begin}}}'
