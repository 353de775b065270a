"""Recordings of measured programs and operators that ship with bringup: pricing them needs neither torch nor models.

Each recording is one step in a dry run. Programs that read their results wait in it; a step ends without a wait.
`benchmarks/record_measured.py` writes the table anew.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bringup.recording.rows import ALLOC, BY_PROGRAM, COLUMNS, DEVICE_SYNC, FREE, LAUNCH, OWNER, RELEASE, RESERVE, STEP
from bringup.recording.trace import Trace

TABLE = Path(__file__).parent / "recorded.json.gz"
KEPT = ("kind", "flags", "phase", "stream", "thread", "views", "signature", "bytes", "object")
OF_MEMORY = (ALLOC, FREE, RESERVE, RELEASE, OWNER)  # rows that take no time: the peaks are kept as numbers


@dataclass(frozen=True, eq=False)
class Recorded:
    """One step of a program, or one call of an operator.

    Attributes:
        columns: the rows of a trace that take time, without lines and modules.
        peak_allocated, peak_reserved: the most bytes that tensors held, and that the allocator reserved, in the steps.
        signature_data: the kinds of launch of all recordings.
    """

    columns: dict[str, Any]
    peak_allocated: int
    peak_reserved: int
    signature_data: list[dict[str, Any]]

    def trace(self, steps: int, *, wait_each: bool = False) -> Trace:
        """Return a trace of equal steps: the host waits for the chip after each of them, or after the last one."""
        count = len(self.columns["kind"])
        none = {"line": -1, "module": -1, "signature": -1, "stream": -1}  # of columns that say nothing of a row
        wait, end = none | {"kind": DEVICE_SYNC}, none | {"kind": STEP, "object": BY_PROGRAM}
        step = [wait, end] if wait_each else [end]
        columns = {}
        for name, dtype in COLUMNS.items():
            rows = self.columns[name] if name in self.columns else np.full(count, none.get(name, 0))
            marks = [mark.get(name, 0) for mark in step]
            last = [] if wait_each else [wait.get(name, 0)]
            columns[name] = np.concatenate([np.tile(np.concatenate([rows, marks]), steps), last]).astype(dtype)
        replayed = np.flatnonzero((columns["kind"] == LAUNCH) & (columns["object"] > 0))
        each = count + len(step)  # every step replays its graphs anew
        columns["object"][replayed] += replayed // each * (columns["object"][replayed].max(initial=0) + 1)
        used = np.unique(columns["signature"])
        used = used[used >= 0]
        signatures = [self.signature_data[number] for number in used.tolist()]
        codes = np.searchsorted(used, columns["signature"])
        columns["signature"] = np.where(columns["signature"] >= 0, codes, -1).astype(COLUMNS["signature"])
        offsets = np.zeros(len(columns["kind"]) + 1, dtype=np.int64)
        return Trace(columns, np.zeros(0, dtype=np.int64), offsets, signatures, [], [], {"dry": True})


def pack(trace: Trace) -> dict[str, Any]:
    """Return the rows of one step that take time, without its last wait and mark; one number is for equal values."""
    kind = trace.columns["kind"]
    ends = [np.flatnonzero(kind == mark)[-1] for mark in (DEVICE_SYNC, STEP)]
    keep = np.setdiff1d(np.flatnonzero(~np.isin(kind, OF_MEMORY)), ends)
    packed = {}
    for name in KEPT:
        values = trace.columns[name][keep].tolist()
        packed[name] = values[0] if len(set(values)) == 1 and name != "kind" else values
    return packed


@cache
def recordings() -> dict[str, Recorded]:
    """Read the recordings that ship with bringup: ``program/ID``, ``operator/ID`` and ``host/NAME``."""
    with gzip.open(TABLE, "rt", encoding="utf-8") as file:
        table = json.load(file)
    by_name = {}
    for name, item in table["recordings"].items():
        count = len(item["columns"]["kind"])
        columns = {key: np.broadcast_to(np.asarray(value), (count,)) for key, value in item["columns"].items()}
        by_name[name] = Recorded(columns, item["peak_allocated"], item["peak_reserved"], table["signatures"])
    return by_name
