"""Writes timeline.json in the Chrome trace format, for ui.perfetto.dev."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.recording.rows import (
    D2D,
    D2H,
    DEVICE_SYNC,
    EVENT_SYNC,
    H2D,
    HOST,
    KINDS,
    LAUNCH,
    RESUME,
    STREAM_SYNC,
    WAITS_FOR,
)
from bringup.recording.trace import Trace
from bringup.timeline.replay import Timeline

Array = npt.NDArray[Any]
WAITED = (STREAM_SYNC, DEVICE_SYNC, EVENT_SYNC)
MOST_EVENTS = 200_000  # the viewer opens this many without trouble; a longer trace is cut, with a note


def text(timeline: Timeline, run: str = "") -> str:
    """Write complete events as JSON, with the id of the report's run: host threads as process 0, device n as n + 1."""
    about = json.dumps({"displayTimeUnit": "ms", "otherData": {"run": run}})
    return f'{about[:-1]}, "traceEvents": [{", ".join(_events(timeline))}]}}'


def _events(timeline: Timeline) -> Iterator[str]:
    trace = timeline.trace
    columns = trace.columns
    kind = columns["kind"]
    drawn = np.isin(kind, (LAUNCH, H2D, D2H, D2D, STREAM_SYNC, DEVICE_SYNC, EVENT_SYNC, HOST))
    shown = np.flatnonzero(drawn | ((kind == RESUME) & (timeline.end > timeline.start)))
    yield _name("process_name", 0, 0, f"host {timeline.host.name}")
    for device in np.unique(columns["device"][shown[kind[shown] < STREAM_SYNC]]).tolist():  # launches and copies
        yield _name("process_name", device + 1, 0, f"chip:{device} {timeline.chip.name}")
        yield _name("thread_name", device + 1, 1000, "link to the chip")
        yield _name("thread_name", device + 1, 1001, "link to the host")
        yield _name("thread_name", device + 1, 1002, "fallbacks on the host")
    copies = kind == D2D
    pairs = zip(columns["device"][copies].tolist(), columns["object"][copies].tolist(), strict=True)
    for device, source in sorted(set(pairs)):
        yield _name("thread_name", device + 1, 1100 + source, f"link from chip:{source}")
    described: dict[tuple[int, ...], str] = {}
    fields = ("kind", "device", "stream", "thread", "object", "flags", "signature", "line", "module", "bytes")
    cut = shown[:MOST_EVENTS]
    values = zip(*(columns[name][cut].tolist() for name in fields), strict=True)
    waits = np.isin(kind[cut], WAITED)
    start = np.where(waits, timeline.issued[cut], timeline.start[cut])
    end = np.where(waits, timeline.issued[cut] + timeline.waited[cut], timeline.end[cut])
    times = _times(start, end)
    runs_on_host = (timeline.fallback[cut] >= 0).tolist()
    for value, (begin, length), is_fallback in zip(values, times, runs_on_host, strict=True):
        row_kind, device, stream, thread, source, flags, *_ = value
        key = (row_kind, flags, *value[6:]) if row_kind != LAUNCH else (row_kind, *value[6:9])
        if key not in described:
            described[key] = _described(trace, *value[:1], *value[5:])
        if row_kind in WAITED:
            yield _span(described[key], 0, thread, begin, length)
            continue
        process, lane = device + 1, stream
        if row_kind in (HOST, RESUME):
            process, lane = 0, thread
        elif row_kind == LAUNCH and is_fallback:
            lane = 1002
        elif row_kind != LAUNCH:
            lane = 1100 + source if row_kind == D2D else 1001 if row_kind == D2H else 1000
        yield _span(described[key], process, lane, begin, length)
    if len(shown) > MOST_EVENTS:
        last = timeline.end[shown[MOST_EVENTS - 1 : MOST_EVENTS]]
        ((begin, length),) = _times(last, last)
        yield _span(_as_members(f"cut: {len(shown) - MOST_EVENTS} more events", {}), 0, 0, begin, length)


def _described(trace: Trace, kind: int, flags: int, signature: int, line: int, module: int, size: int) -> str:
    """Return the name of a row's event and its arguments as JSON, which rows of equal values share."""
    args: dict[str, Any] = {"line": trace.lines[line] if line >= 0 else ""}
    if kind == LAUNCH:
        launched = trace.signatures[signature]
        args |= {"shapes": launched.shapes, "module": trace.modules[module] if module >= 0 else ""}
        return _as_members(launched.op.removeprefix("aten::"), args)
    if kind in (H2D, D2H, D2D):
        return _as_members(KINDS[kind], {**args, "bytes": size})
    if kind == RESUME:
        return _as_members("wait: another thread", args)
    return _as_members(f"wait: {WAITS_FOR[flags] if kind == HOST else KINDS[kind]}", args)


def _as_members(name: str, args: dict[str, Any]) -> str:
    return json.dumps({"args": args, "name": name}, sort_keys=True)[1:-1]


def _name(event: str, process: int, thread: int, name: str) -> str:
    return json.dumps({"ph": "M", "name": event, "pid": process, "tid": thread, "args": {"name": name}})


def _times(start: Array, end: Array) -> Iterator[tuple[float, float]]:
    """Yield begin and length in microseconds. Both ends are rounded: no event ends after the next one begins."""
    begin, until = (np.round(seconds * 1e6, 3) for seconds in (start, end))
    return zip(begin.tolist(), np.round(until - begin, 3).tolist(), strict=True)


def _span(members: str, process: int, thread: int, begin: float, length: float) -> str:
    """Write an event by hand, because the encoder is slow where each of 100,000 events is a dict."""
    return f'{{{members}, "dur": {length}, "ph": "X", "pid": {process}, "tid": {thread}, "ts": {begin}}}'
