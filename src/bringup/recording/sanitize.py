"""What a recording shows to be wrong: races, reads of memory that nobody wrote, leaks, needless waits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.cost.rules import tags
from bringup.recording.findings import Finding, watches
from bringup.recording.rows import (
    ALLOC,
    D2D,
    D2H,
    DEVICE_SYNC,
    EVENT_RECORD,
    EVENT_SYNC,
    EVENT_WAIT,
    FREE,
    H2D,
    HOST_INDEX,
    INITIALISED,
    LAUNCH,
    OF_ALLOCATOR,
    OF_DOWNLOAD,
    OF_UPLOAD,
    STREAM_SYNC,
    WAITS,
)
from bringup.recording.steps import find_steps
from bringup.recording.trace import Trace
from bringup.text import size

if TYPE_CHECKING:
    from bringup.paths import Places

Array = npt.NDArray[Any]
HOT = 8  # a line that waits this often in one recording is in a loop


class _Rows:
    """The columns of a trace as they are needed here."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.kind = trace.columns["kind"]
        self.line_of = trace.columns["line"]
        counts = np.diff(trace.offsets)
        self.use_row = np.repeat(np.arange(len(trace)), counts)
        self.storage = trace.uses >> 1
        self.written = (trace.uses & 1).astype(bool)

    def line(self, row: int) -> str:
        number = int(self.line_of[row])
        return self.trace.lines[number] if number >= 0 else ""

    def at(self, row: int) -> str:
        """`` at train.py:12`` with the word before it, or nothing."""
        return f" at {self.line(row)}" if self.line(row) else ""

    def name(self, row: int) -> str:
        kind = int(self.kind[row])
        if kind == LAUNCH:
            return self.trace.signatures[int(self.trace.columns["signature"][row])].op.split(".")[0]
        return {H2D: "a copy from the host", D2H: "a copy to the host", D2D: "a copy between chips"}[kind]

    def stream(self, row: int) -> str:
        columns = self.trace.columns
        return f"stream {int(columns['stream'][row])} of chip:{int(columns['device'][row])}"


def findings(trace: Trace, checks: tuple[str, ...] | None = None) -> list[Finding]:
    """Look for everything that is wrong, or for what `checks` names, each mistake once per line (or pair of lines)."""
    rows = _Rows(trace)
    found: dict[tuple[str, str, str], Finding] = {}
    for name in CHECKS if checks is None else checks:
        for item in CHECKS[name](rows):
            found.setdefault((item.check, item.line, item.other), item)
    return list(found.values())


# ---- races


@dataclass
class _Accesses:
    """The last write of one storage, (stream, time, row), and the reads since: stream -> (time, row)."""

    write: tuple[int, int, int] | None = None
    reads: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def all(self) -> list[tuple[int, int, int]]:
        """Every access as (stream, time, row)."""
        return [(user, *rest) for user, rest in self.reads.items()] + ([self.write] if self.write else [])


def _races(rows: _Rows) -> Iterator[Finding]:
    """Two streams use the same memory, one of them writes, and no event, wait or synchronisation orders them."""
    works = np.isin(rows.kind, _WORKS)
    pairs = rows.trace.columns["device"].astype(np.int64) * 65536 + rows.trace.columns["stream"]
    if len(np.unique(pairs[works])) > 1:
        yield from _Races(rows, pairs).find()


_WORKS = (LAUNCH, H2D, D2H, D2D)
_ORDERS = (EVENT_RECORD, EVENT_WAIT, EVENT_SYNC, STREAM_SYNC, DEVICE_SYNC, ALLOC, FREE)


class _Races:
    """Vector clocks: what every stream, and the host, is known to run after.

    Host threads are one: what they launch is ordered as they launched it. So a race between threads is not seen, and
    none is reported that is not there.
    """

    def __init__(self, rows: _Rows, pairs: Array) -> None:
        self.rows = rows
        self.pairs = pairs
        relevant = np.isin(rows.kind, (*_WORKS, *_ORDERS))
        self.order = np.flatnonzero(relevant)
        self.streams = {int(pair): number for number, pair in enumerate(np.unique(pairs[relevant]))}
        self.clocks = np.zeros((len(self.streams) + 1, len(self.streams)), dtype=np.int64)  # the last is the host's
        self.events: dict[int, Array] = {}
        self.accesses: dict[int, _Accesses] = {}
        self.owner: dict[int, int] = {}  # storage -> stream that its memory goes back to
        self.kept: dict[int, set[int]] = {}  # storage -> other streams that the allocator waits for
        self.freed: dict[int, list[tuple[int, int, int]]] = {}  # stream -> uses of what went back to it

    def find(self) -> Iterator[Finding]:
        """Go through the rows in the host's order."""
        columns = self.rows.trace.columns
        for row in self.order.tolist():
            kind, thing, stream = (
                int(self.rows.kind[row]),
                int(columns["object"][row]),
                self.streams[int(self.pairs[row])],
            )
            if kind in _WORKS:
                yield from self._work(row, stream)
            elif kind == ALLOC:
                self.owner[thing] = stream
                yield from self._reused(row, stream)
            elif kind == FREE:
                self._free(thing, stream)
            else:
                self._synchronise(row, kind, thing, stream)

    def _join(self, who: int, other: Array) -> None:
        np.maximum(self.clocks[who], other, out=self.clocks[who])

    def _synchronise(self, row: int, kind: int, thing: int, stream: int) -> None:
        if kind == EVENT_RECORD:
            self.events[thing] = np.maximum(self.clocks[stream], self.clocks[-1])
            if self.rows.trace.columns["flags"][row] & OF_ALLOCATOR:  # record_stream: the memory waits for this stream
                storage = int(self.rows.storage[int(self.rows.trace.offsets[row])])
                self.kept.setdefault(storage, set()).add(stream)
        elif kind in (EVENT_WAIT, EVENT_SYNC):
            if thing in self.events:
                self._join(stream if kind == EVENT_WAIT else -1, self.events[thing])
        elif kind == STREAM_SYNC:
            self._join(-1, self.clocks[stream])
        else:
            device = int(self.rows.trace.columns["device"][row])
            for pair, number in self.streams.items():
                if pair >> 16 == device:
                    self._join(-1, self.clocks[number])

    def _work(self, row: int, stream: int) -> Iterator[Finding]:
        rows = self.rows
        self._join(stream, self.clocks[-1])
        self.clocks[stream, stream] += 1
        now = int(self.clocks[stream, stream])
        for place in range(int(rows.trace.offsets[row]), int(rows.trace.offsets[row + 1])):
            used = self.accesses.setdefault(int(rows.storage[place]), _Accesses())
            writes = bool(rows.written[place])
            yield from self._conflicts(row, stream, used, writes)
            if writes:
                used.write, used.reads = (stream, now, row), {}
            else:
                used.reads[stream] = (now, row)
        if rows.trace.columns["flags"][row] & WAITS and rows.kind[row] == LAUNCH:
            self._join(-1, self.clocks[stream])

    def _conflicts(self, row: int, stream: int, used: _Accesses, writes: bool) -> Iterator[Finding]:
        rows = self.rows
        for user, time, at in used.all if writes else [used.write] if used.write else []:
            if user == stream or self.clocks[stream, user] >= time:
                continue
            verb = "wrote" if (user, time, at) == used.write else "reads"
            yield Finding(
                "race",
                f"{rows.name(row)}{rows.at(row)} {'writes' if writes else 'reads'} on {rows.stream(row)} what "
                f"{rows.name(at)}{rows.at(at)} {verb} on {rows.stream(at)}, and nothing orders the two",
                rows.line(row),
                rows.line(at),
                "let the second stream wait for the first (stream.wait_stream, or an event)",
            )

    def _free(self, storage: int, stream: int) -> None:
        home = self.owner.get(storage, stream)
        known = {home} | self.kept.pop(storage, set())
        uses = self.accesses.pop(storage, _Accesses()).all
        self.freed.setdefault(home, []).extend(use for use in uses if use[0] not in known)

    def _reused(self, row: int, stream: int) -> Iterator[Finding]:
        rows = self.rows
        for user, time, at in self.freed.pop(stream, ()):
            if max(self.clocks[stream, user], self.clocks[-1, user]) >= time:
                continue
            yield Finding(
                "race",
                f"{rows.name(at)}{rows.at(at)} still uses memory on {rows.stream(at)} that was freed, and "
                f"{rows.stream(row)} may overwrite it{rows.at(row)}",
                rows.line(at),
                rows.line(row),
                "call tensor.record_stream(stream) before it is freed, or let the other stream wait first",
            )


# ---- memory that nobody wrote

_FILLS = {"copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "geometric_"}
_FILLS |= {"cauchy_", "log_normal_", "set_", "scatter_", "index_put_", "index_copy_", "index_fill_", "masked_scatter_"}
_IGNORE_SELF = {"baddbmm", "addmm", "addbmm", "addmv", "addr"}  # with beta=0


def _reads_itself(op: str) -> bool:
    """Does an in-place operator read what it writes?"""
    name = op.split("::")[-1].split(".")[0]
    return name.endswith("_") and name not in _FILLS and "pointwise" in tags(op)


def _uninitialised(rows: _Rows) -> Iterator[Finding]:
    """The first use of an allocation is a read: nobody has written what is read."""
    columns = rows.trace.columns
    made = np.flatnonzero((rows.kind == ALLOC) & ((columns["flags"] & INITIALISED) == 0))
    allocated = {int(columns["object"][row]): int(row) for row in made}
    uses = np.flatnonzero(np.isin(rows.kind[rows.use_row], _WORKS))
    storages, first = np.unique(rows.storage[uses], return_index=True)
    for storage, place in zip(storages.tolist(), uses[first].tolist(), strict=True):
        if storage not in allocated:
            continue
        row = int(rows.use_row[place])
        is_launch = int(rows.kind[row]) == LAUNCH
        data = rows.trace.signature_data[int(columns["signature"][row])] if is_launch else {"op": "", "inputs": []}
        op = data["op"]
        base = op.split("::")[-1].split(".")[0]
        at = rows.at(row)
        if op.startswith("triton::"):
            line = data["args"].get("read_first", {}).get(str(place - int(rows.trace.offsets[row])))
            if line is None:
                continue
            at = f" at {line}{', launched' + at if at else ''}"
        elif rows.written[place] and not _reads_itself(op):
            continue
        if base in _IGNORE_SELF and place == int(rows.trace.offsets[row]):
            continue
        if rows.written[place] and not _is_input(rows.trace, row, place) and not op.startswith("triton::"):
            continue  # a fresh result
        born = allocated[storage]
        yield Finding(
            "init",
            f"{rows.name(row)}{at} reads memory that was allocated{rows.at(born)} and never written",
            rows.line(row),
            rows.line(born),
            "fill it first: torch.empty has no values (torch.zeros has)",
        )


def _is_input(trace: Trace, row: int, place: int) -> bool:
    """Is the use one of the storages that the launch was given? Those come before its fresh results."""
    data = trace.signature_data[int(trace.columns["signature"][row])]
    given = {item[3] for item in data["inputs"] if item is not None and item[3] >= 0}
    return place - int(trace.offsets[row]) < len(given)


# ---- leaks


def _leaks(rows: _Rows) -> Iterator[Finding]:
    """Every step leaves memory of the same line behind."""
    columns = rows.trace.columns
    steps = find_steps(columns)
    if len(steps.ends) < 4 or steps.by == "whole":
        return
    made = np.flatnonzero(rows.kind == ALLOC)
    freed = set(columns["object"][rows.kind == FREE].tolist())
    alive = made[[number not in freed for number in columns["object"][made].tolist()]] if len(made) else made
    step = np.searchsorted(steps.ends, alive, side="right")
    last = len(steps.ends)
    lines = columns["line"][alive]
    for line in np.unique(lines[lines >= 0]):
        members = lines == line
        in_steps = set(step[members & (step > 0) & (step < last)].tolist())
        if len(in_steps) < max(3, (last - 1) * 3 // 4):
            continue
        each = int(columns["bytes"][alive[members]].sum()) // max(len(in_steps), 1)
        text = rows.trace.lines[int(line)]
        yield Finding(
            "leak",
            f"every step keeps {size(each)} that {text} allocated: {len(in_steps)} steps, none was freed",
            text,
            "",
            "keep numbers, not tensors (.item(), .detach().cpu()), or delete what is no longer needed",
        )


# ---- waits


def waits(trace: Trace) -> list[tuple[str, int]]:
    """List the implicit synchronisations: (line, how often), the most frequent first.

    A read of a device value, a copy of pageable memory, an operator whose result's size depends on data. What the
    program asks for itself (``synchronize``) does not count.
    """
    rows = _Rows(trace)
    counts: dict[str, int] = {}
    for row in _implicit(rows):
        counts[rows.line(int(row))] = counts.get(rows.line(int(row)), 0) + 1
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _implicit(rows: _Rows) -> Array:
    columns, kind = rows.trace.columns, rows.kind
    by_launch = (kind == LAUNCH) & ((columns["flags"] & WAITS) != 0)
    by_copy = (kind == STREAM_SYNC) & ((columns["flags"] & (OF_UPLOAD | OF_DOWNLOAD)) != 0)
    implicit: Array = np.flatnonzero(by_launch | by_copy)
    return implicit


def _hot_waits(rows: _Rows) -> Iterator[Finding]:
    """A line that makes the host wait again and again: in most steps, or often where there are no steps."""
    steps = find_steps(rows.trace.columns)
    every = _implicit(rows)
    lines = rows.line_of[every]
    step = np.searchsorted(steps.ends, every, side="right")
    for line in np.unique(lines[lines >= 0]):
        members = lines == line
        count, in_steps = int(members.sum()), len(set(step[members].tolist()))
        per_step = steps.by != "whole" and len(steps.ends) >= 4
        if (in_steps * 4 < len(steps.ends) * 3 or count < 4) if per_step else count < HOT:
            continue
        text = rows.trace.lines[int(line)]
        how = f"in {in_steps} of {len(steps.ends)} steps" if per_step else f"{count} times"
        row = int(every[np.flatnonzero(members)[0]])
        uploads = bool(rows.trace.columns["flags"][row] & OF_UPLOAD)
        yield Finding(
            "sync",
            f"{text} makes the host wait for the chip {how}",
            text,
            "",
            "pin the host's memory and copy with non_blocking=True"
            if uploads
            else "read values less often: keep them on the chip, and read them every n steps",
        )


# ---- page-locked memory


def touched() -> list[Finding]:
    """Return the findings since the last call: page-locked memory used too early, and those of the watches."""
    import torch

    touches = [finding for watch in watches for finding in watch.take()]
    for item in json.loads(torch.ops.bringup.pinned_touches()):
        copy, line = item["copy"], item["line"]
        at = f"{line} " if line else "the program "
        what = (
            f"{at}uses page-locked memory that {copy} copies from the chip, before it has waited for that"
            if item["to_host"]
            else f"{at}changes page-locked memory that {copy} copies to the chip, before it has waited for that"
        )
        touches.append(Finding("race", what, line, copy, "synchronize an event that was recorded after the copy first"))
    return touches


def shown(finding: Finding, places: Places) -> Finding:
    """Shorten the paths in a finding that has not gone through a recording."""
    return replace(
        finding, what=places.within(finding.what), line=places.line(finding.line), other=places.within(finding.other)
    )


@contextmanager
def watched() -> Iterator[None]:
    """Watch page-locked memory that is allocated inside the block, and whatever the watches look at."""
    import torch

    torch.ops.bringup.watch_pinned(True)
    try:
        with ExitStack() as stack:
            for watch in watches:
                stack.enter_context(watch.watched())
            yield
    finally:
        torch.ops.bringup.watch_pinned(False)


# ---- devices


def _host_indices(rows: _Rows) -> Iterator[Finding]:
    """A chip's tensor is indexed with one on the host: it works, by a copy that waits."""
    flags = rows.trace.columns["flags"]
    for row in np.flatnonzero((rows.kind == LAUNCH) & ((flags & HOST_INDEX) != 0)):
        yield Finding(
            "device",
            f"{rows.name(int(row))}{rows.at(int(row))} gets a tensor on the host beside those on the chip",
            rows.line(int(row)),
            "",
            "move it to the chip once: every call copies it",
        )


CHECKS: dict[str, Callable[[_Rows], Iterator[Finding]]] = {
    "race": _races,
    "init": _uninitialised,
    "leak": _leaks,
    "sync": _hot_waits,
    "device": _host_indices,
}
