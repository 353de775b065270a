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
from bringup.timeline.replay import Timeline

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
    for row in shown[:MOST_EVENTS]:
        row_kind = int(kind[row])
        device, line = int(columns["device"][row]), int(columns["line"][row])
        args: dict[str, Any] = {"line": trace.lines[line] if line >= 0 else ""}
        name, process, thread = KINDS[row_kind], device + 1, int(columns["stream"][row])
        if row_kind == LAUNCH:
            signature = trace.signatures[columns["signature"][row]]
            name = signature.op.removeprefix("aten::")
            module = int(columns["module"][row])
            args |= {"shapes": signature.shapes, "module": trace.modules[module] if module >= 0 else ""}
            if timeline.fallback[row] >= 0:
                thread = 1002
        elif row_kind in (H2D, D2H, D2D):
            source = int(columns["object"][row])
            thread = 1100 + source if row_kind == D2D else 1001 if row_kind == D2H else 1000
            args["bytes"] = int(columns["bytes"][row])
        elif row_kind in (HOST, RESUME):
            process, thread = 0, int(columns["thread"][row])
            name = "wait: another thread" if row_kind == RESUME else f"wait: {WAITS_FOR[int(columns['flags'][row])]}"
        else:
            process, thread = 0, int(columns["thread"][row])
            written.append(_span(f"wait: {name}", process, thread, timeline.issued[row], timeline.waited[row], args))
            continue
        written.append(_span(name, process, thread, timeline.start[row], timeline.end[row] - timeline.start[row], args))
    if len(shown) > MOST_EVENTS:
        last = timeline.end[shown[MOST_EVENTS - 1]]
        written.append(_span(f"cut: {len(shown) - MOST_EVENTS} more events", 0, 0, last, 0.0, {}))
    return written


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
        "ts": round(float(start) * 1e6, 3),
        "dur": round(float(seconds) * 1e6, 3),
        "args": args,
    }
