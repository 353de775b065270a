"""Writes timeline.json in the Chrome trace format, for ui.perfetto.dev."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

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

WAITED = (STREAM_SYNC, DEVICE_SYNC, EVENT_SYNC)
MOST_EVENTS = 200_000  # the viewer opens this many without trouble; a longer trace is cut, with a note


def events(timeline: Timeline) -> list[dict[str, Any]]:
    """Return complete events: host threads as process 0, device n as process n + 1."""
    trace = timeline.trace
    columns = trace.columns
    kind = columns["kind"]
    drawn = np.isin(kind, (LAUNCH, H2D, D2H, D2D, STREAM_SYNC, DEVICE_SYNC, EVENT_SYNC, HOST))
    shown = np.flatnonzero(drawn | ((kind == RESUME) & (timeline.end > timeline.start)))
    written: list[dict[str, Any]] = [_name("process_name", 0, 0, f"host {timeline.host.name}")]
    for device in np.unique(columns["device"][shown[kind[shown] < STREAM_SYNC]]):  # launches and copies
        written.append(_name("process_name", int(device) + 1, 0, f"chip:{device} {timeline.chip.name}"))
        written.append(_name("thread_name", int(device) + 1, 1000, "link to the chip"))
        written.append(_name("thread_name", int(device) + 1, 1001, "link to the host"))
        written.append(_name("thread_name", int(device) + 1, 1002, "fallbacks on the host"))
    copies = kind == D2D
    pairs = zip(columns["device"][copies].tolist(), columns["object"][copies].tolist(), strict=True)
    for device, source in sorted(set(pairs)):
        written.append(_name("thread_name", device + 1, 1100 + source, f"link from chip:{source}"))
    names: dict[tuple[int, ...], tuple[str, dict[str, Any]]] = {}
    fields = ("kind", "device", "stream", "thread", "object", "flags", "signature", "line", "module", "bytes")
    cut = shown[:MOST_EVENTS]
    values = zip(*(columns[name][cut].tolist() for name in fields), strict=True)
    times = zip(*(getattr(timeline, name)[cut].tolist() for name in ("issued", "start", "end", "waited")), strict=True)
    runs_on_host = (timeline.fallback[cut] >= 0).tolist()
    for value, (issued, start, end, waited), is_fallback in zip(values, times, runs_on_host, strict=True):
        row_kind, device, stream, thread, source, flags, *_ = value
        about = (row_kind, flags, *value[6:]) if row_kind != LAUNCH else (row_kind, *value[6:9])
        if about not in names:
            names[about] = _described(trace, *value[:1], *value[5:])
        name, args = names[about]
        if row_kind in WAITED:
            written.append(_span(name, 0, thread, issued, waited, args))
            continue
        process, lane = device + 1, stream
        if row_kind in (HOST, RESUME):
            process, lane = 0, thread
        elif row_kind == LAUNCH and is_fallback:
            lane = 1002
        elif row_kind != LAUNCH:
            lane = 1100 + source if row_kind == D2D else 1001 if row_kind == D2H else 1000
        written.append(_span(name, process, lane, start, end - start, args))
    if len(shown) > MOST_EVENTS:
        last = float(timeline.end[shown[MOST_EVENTS - 1]])
        written.append(_span(f"cut: {len(shown) - MOST_EVENTS} more events", 0, 0, last, 0.0, {}))
    return written


def _described(
    trace: Trace, kind: int, flags: int, signature: int, line: int, module: int, size: int
) -> tuple[str, dict[str, Any]]:
    """Return the name of a row's event and its arguments, which rows of equal values share."""
    args: dict[str, Any] = {"line": trace.lines[line] if line >= 0 else ""}
    if kind == LAUNCH:
        launched = trace.signatures[signature]
        args |= {"shapes": launched.shapes, "module": trace.modules[module] if module >= 0 else ""}
        return launched.op.removeprefix("aten::"), args
    if kind in (H2D, D2H, D2D):
        return KINDS[kind], {**args, "bytes": size}
    if kind == RESUME:
        return "wait: another thread", args
    return f"wait: {WAITS_FOR[flags] if kind == HOST else KINDS[kind]}", args


def text(timeline: Timeline, run: str = "") -> str:
    """Write the events as JSON, with the id of the report's run."""
    about = {"displayTimeUnit": "ms", "otherData": {"run": run}}
    return json.dumps({**about, "traceEvents": events(timeline)}, sort_keys=True, allow_nan=False)


def _name(event: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": event, "pid": process, "tid": thread, "args": {"name": name}}


def _span(name: str, process: int, thread: int, start: float, seconds: float, args: dict[str, Any]) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": name,
        "pid": process,
        "tid": thread,
        "ts": round(start * 1e6, 3),
        "dur": round(seconds * 1e6, 3),
        "args": args,
    }
