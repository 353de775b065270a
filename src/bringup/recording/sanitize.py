"""Checks of a recording: races, reads of uninitialised memory, leaks, needless waits and host indices."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.cost.rules import tags
from bringup.errors import BringupError
from bringup.recording.findings import Finding, early_use, watches
from bringup.recording.rows import (
    ALLOC,
    D2D,
    D2H,
    DEVICE_SYNC,
    EVENT_RECORD,
    EVENT_SYNC,
    EVENT_WAIT,
    FORWARD,
    FREE,
    H2D,
    HOST_INDEX,
    INITIALISED,
    LAUNCH,
    OF_ALLOCATOR,
    STREAM_SYNC,
    WAITS,
)
from bringup.recording.trace import Trace
from bringup.recording.waits import NOUNS, WAIT_KINDS, is_small, remedy, waiting_ops
from bringup.text import size

if TYPE_CHECKING:
    from bringup.paths import Places

Array = npt.NDArray[Any]
HOT = 8  # a line that waits at least this often is probably in a loop


class _Rows:
    """The columns of a trace, and texts for its rows."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.kind = trace.columns["kind"]
        self.line_of = trace.columns["line"]
        self.storage = trace.uses >> 1
        self.written = (trace.uses & 1).astype(bool)

    def line(self, row: int) -> str:
        number = int(self.line_of[row])
        return self.trace.lines[number] if number >= 0 else ""

    def at(self, row: int) -> str:
        """Return the line of a row as `` at train.py:12``, or "" if it is unknown."""
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
    """Return the findings of all checks, or of those named in `checks`; each line or pair of lines is reported once."""
    rows = _Rows(trace)
    by_lines: dict[tuple[str, str, str], Finding] = {}
    for name in CHECKS if checks is None else checks:
        for item in CHECKS[name](rows):
            by_lines.setdefault((item.check, item.line, item.other), item)
    return list(by_lines.values())


def checks(names: str) -> tuple[str, ...]:
    """Read a list of checks, such as ``race,init`` or ``all``.

    Raises:
        BringupError: there is no such check.
    """
    listed = tuple(CHECKS) if names == "all" else tuple(name for name in names.split(",") if name)
    for name in listed:
        if name not in CHECKS:
            raise BringupError(f"sanitize must be {', '.join(CHECKS)} or all, got {name!r}")
    return listed


# ---- races


@dataclass
class _Accesses:
    """The last write of one storage, (stream, time, row), and the reads after it, stream -> (time, row)."""

    write: tuple[int, int, int] | None = None
    reads: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def all(self) -> list[tuple[int, int, int]]:
        """All accesses as (stream, time, row)."""
        return [(user, *rest) for user, rest in self.reads.items()] + ([self.write] if self.write else [])


def _races(rows: _Rows) -> Iterator[Finding]:
    """Find memory that two streams use, one of them for writing, without an event, wait or synchronisation between."""
    works = np.isin(rows.kind, _WORKS)
    pairs = rows.trace.columns["device"].astype(np.int64) * 65536 + rows.trace.columns["stream"]
    if len(np.unique(pairs[works])) > 1:
        yield from _Races(rows, pairs).find()


_WORKS = (LAUNCH, H2D, D2H, D2D)
_ORDERS = (EVENT_RECORD, EVENT_WAIT, EVENT_SYNC, STREAM_SYNC, DEVICE_SYNC, ALLOC, FREE)


class _Races:
    """Vector clocks: the work of every stream that has certainly finished before the next work of a stream or the host.

    All host threads count as one, and their launches are ordered as they were made. A race between host threads is
    therefore not found, and there are no false alarms.
    """

    def __init__(self, rows: _Rows, pairs: Array) -> None:
        self.rows = rows
        self.pairs = pairs
        relevant = np.isin(rows.kind, (*_WORKS, *_ORDERS))
        self.order = np.flatnonzero(relevant)
        self.streams = {int(pair): number for number, pair in enumerate(np.unique(pairs[relevant]))}
        self.clocks = np.zeros((len(self.streams) + 1, len(self.streams)), dtype=np.int64)  # the last row: the host
        self.events: dict[int, Array] = {}
        self.accesses: dict[int, _Accesses] = {}
        self.owner: dict[int, int] = {}  # storage -> stream of its allocation, to which the memory returns
        self.users: dict[int, set[int]] = {}  # storage -> streams of record_stream, for which the allocator waits
        self.freed: dict[int, list[tuple[int, int, int]]] = {}  # stream -> accesses to memory that returned to it

    def find(self) -> Iterator[Finding]:
        """Yield the races, in the host's order."""
        columns = self.rows.trace.columns
        for row in self.order.tolist():
            kind, number = int(self.rows.kind[row]), int(columns["object"][row])
            stream = self.streams[int(self.pairs[row])]
            if kind in _WORKS:
                yield from self._work(row, stream)
            elif kind == ALLOC:
                self.owner[number] = stream
                yield from self._reused(row, stream)
            elif kind == FREE:
                self._free(number, stream)
            else:
                self._synchronise(row, kind, number, stream)

    def _join(self, waiter: int, other: Array) -> None:
        np.maximum(self.clocks[waiter], other, out=self.clocks[waiter])

    def _synchronise(self, row: int, kind: int, event: int, stream: int) -> None:
        if kind == EVENT_RECORD:
            self.events[event] = np.maximum(self.clocks[stream], self.clocks[-1])
            if self.rows.trace.columns["flags"][row] & OF_ALLOCATOR:  # record_stream
                storage = int(self.rows.storage[int(self.rows.trace.offsets[row])])
                self.users.setdefault(storage, set()).add(stream)
        elif kind in (EVENT_WAIT, EVENT_SYNC):
            if event in self.events:
                self._join(stream if kind == EVENT_WAIT else -1, self.events[event])
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
            verb = "writes" if (user, time, at) == used.write else "reads"
            yield Finding(
                "race",
                f"{rows.name(row)}{rows.at(row)} {'writes' if writes else 'reads'} memory on {rows.stream(row)} that "
                f"{rows.name(at)}{rows.at(at)} {verb} on {rows.stream(at)}, and nothing orders the two",
                rows.line(row),
                rows.line(at),
                "let the second stream wait for the first (stream.wait_stream, or an event)",
            )

    def _free(self, storage: int, stream: int) -> None:
        home = self.owner.get(storage, stream)
        safe = {home} | self.users.pop(storage, set())
        uses = self.accesses.pop(storage, _Accesses()).all
        self.freed.setdefault(home, []).extend(use for use in uses if use[0] not in safe)

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
                "call tensor.record_stream(stream) before the tensor is freed, or let the other stream wait first",
            )


# ---- uninitialised memory

_FILLS = {"copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "geometric_"}
_FILLS |= {"cauchy_", "log_normal_", "set_", "scatter_", "index_put_", "index_copy_", "index_fill_", "masked_scatter_"}
_IGNORE_SELF = {"baddbmm", "addmm", "addbmm", "addmv", "addr"}  # with beta=0


def _reads_itself(op: str) -> bool:
    """Return True if an operator is in-place and reads its operand before it writes it."""
    name = op.split("::")[-1].split(".")[0]
    return name.endswith("_") and name not in _FILLS and "pointwise" in tags(op)


def _uninitialised(rows: _Rows) -> Iterator[Finding]:
    """Find allocations whose first use is a read."""
    columns = rows.trace.columns
    allocations = np.flatnonzero((rows.kind == ALLOC) & ((columns["flags"] & INITIALISED) == 0))
    allocated = {int(columns["object"][row]): int(row) for row in allocations}
    uses = np.flatnonzero(np.isin(rows.kind[rows.trace.use_rows], _WORKS))
    storages, first = np.unique(rows.storage[uses], return_index=True)
    for storage, place in zip(storages.tolist(), uses[first].tolist(), strict=True):
        if storage not in allocated:
            continue
        row = int(rows.trace.use_rows[place])
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
        allocation = allocated[storage]
        yield Finding(
            "init",
            f"{rows.name(row)}{at} reads memory that was allocated{rows.at(allocation)} and never written",
            rows.line(row),
            rows.line(allocation),
            "fill the tensor first; torch.empty leaves it uninitialised, torch.zeros does not",
        )


def _is_input(trace: Trace, row: int, place: int) -> bool:
    """Return True if a use is an input of its launch. The storages of inputs come before those of fresh results."""
    data = trace.signature_data[int(trace.columns["signature"][row])]
    storages = {item[3] for item in data["inputs"] if item is not None and item[3] >= 0}
    return place - int(trace.offsets[row]) < len(storages)


# ---- leaks


def _leaks(rows: _Rows) -> Iterator[Finding]:
    """Find lines whose allocations of most steps are never freed."""
    columns = rows.trace.columns
    steps = rows.trace.steps
    # A program that calls no modules may collect the results of a repeated series.
    collects = steps.by == "period" and not (rows.kind == FORWARD).any()
    if len(steps.ends) < 4 or steps.by == "whole" or collects:
        return
    allocations = np.flatnonzero(rows.kind == ALLOC)
    freed = set(columns["object"][rows.kind == FREE].tolist())
    alive = allocations[[number not in freed for number in columns["object"][allocations].tolist()]]
    step = np.searchsorted(steps.ends, alive, side="right")
    last = len(steps.ends)
    lines = columns["line"][alive]
    for line in np.unique(lines[lines >= 0]):
        members = (lines == line) & (step > 0) & (step < last)
        in_steps = set(step[members].tolist())
        if len(in_steps) < max(3, (last - 1) * 3 // 4):
            continue
        ended = members & (step < last - 1)  # the last step's other tensors live until the program ends
        each = int(np.median(np.bincount(step[ended], columns["bytes"][alive[ended]])[np.unique(step[ended])]))
        text = rows.trace.lines[int(line)]
        yield Finding(
            "leak",
            f"{text} allocates {size(each)} per step{_in_module(rows.trace, alive[ended])} that is never freed, in "
            f"{len(in_steps)} of the {last - 1} steps after the first",
            text,
            "",
            "keep numbers, not tensors (.item(), .detach().cpu()), or delete tensors that are no longer needed",
        )


def _in_module(trace: Trace, allocations: Array) -> str:
    """Return the module with most bytes of these allocations as `` in module layers.0``; "" outside of modules."""
    modules = trace.columns["module"][allocations]
    names, place = np.unique(modules, return_inverse=True)
    most = int(names[np.argmax(np.bincount(place, trace.columns["bytes"][allocations]))])
    return f" {'mostly ' if len(names) > 1 else ''}in module {trace.modules[most]}" if most >= 0 else ""


# ---- waits


def waits(trace: Trace) -> list[tuple[str, int]]:
    """Return the implicit synchronisations as (line, count), the most frequent first.

    These are blocking copies, reads of device values, and operators whose result's size depends on data.
    Explicit calls of ``synchronize`` do not count.
    """
    rows = _Rows(trace)
    counts: dict[str, int] = {}
    for row in trace.waits.implicit.rows.tolist():
        counts[rows.line(row)] = counts.get(rows.line(row), 0) + 1
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _hot_waits(rows: _Rows) -> Iterator[Finding]:
    """Find lines that make the host wait in most steps, or often if the program has no steps."""
    steps = rows.trace.steps
    implicit = rows.trace.waits.implicit
    lines = rows.line_of[implicit.rows]
    step = np.searchsorted(steps.ends, implicit.rows, side="right")
    for line in np.unique(lines[lines >= 0]):
        members = np.flatnonzero(lines == line)
        count, in_steps = len(members), len(set(step[members].tolist()))
        per_step = steps.by != "whole" and len(steps.ends) >= 4
        if (in_steps * 4 < len(steps.ends) * 3 or count < 4) if per_step else count < HOT:
            continue
        text = rows.trace.lines[int(line)]
        how = f"in {in_steps} of {len(steps.ends)} steps" if per_step else f"{count} times"
        kind = int(np.bincount(implicit.kind[members]).argmax())
        of_kind = implicit.where((lines == line) & (implicit.kind == kind))
        name = WAIT_KINDS[kind]
        ops = [op for op in waiting_ops(rows.trace, of_kind.rows) if op]
        cause = NOUNS[name][0]
        yield Finding(
            "sync",
            f"{text} makes the host wait for the chip {how}: {'an' if cause[0] in 'aeiou' else 'a'} {cause}",
            text,
            "",
            remedy(name, small=bool(is_small(rows.trace, of_kind).all()), ops=ops),
        )


# ---- the running program


def touched() -> list[Finding]:
    """Return the findings since the last call: of page-locked and unwritten memory, and of watches."""
    import torch

    touches = [finding for watch in watches for finding in watch.take()]
    pinned = json.loads(torch.ops.bringup.pinned_touches())
    with_line = {(item["copy"], item["to_host"]) for item in pinned if item["line"]}
    for item in pinned:
        copy, line = item["copy"], item["line"]
        if not line and (copy, item["to_host"]) in with_line:  # a thread of the same operator, which has no Python line
            continue
        touches.append(early_use(line, copy, to_host=item["to_host"]))
    return touches + _unwritten_reads()


def _unwritten_reads() -> list[Finding]:
    """Return the reads of partly written memory whose results are used; csrc/launch/unwritten.cpp looks for them."""
    import torch

    by_lines: dict[tuple[str, str], Finding] = {}
    for read in json.loads(torch.ops.bringup.unwritten_reads()):
        line, allocated = read["line"], read["allocated"]
        name, at = read["op"].split(".")[0], read["kernel_line"] or line
        if read["kernel_line"] and line:
            at += f", launched at {line}"
        what = f"{name}{f' at {at}' if at else ''} reads {read['part']}, which were never written since the allocation"
        finding = Finding("init", f"{what}{f' at {allocated}' if allocated else ''}", line, allocated, _INIT_ADVICE)
        by_lines.setdefault((line, allocated), finding)
    return list(by_lines.values())


_INIT_ADVICE = "write all elements first, read only those that are written, or allocate with torch.zeros"


def shown(finding: Finding, places: Places) -> Finding:
    """Shorten the paths in a finding that does not come from a trace."""
    return replace(
        finding, what=places.within(finding.what), line=places.line(finding.line), other=places.within(finding.other)
    )


@contextmanager
def watched(unwritten: bool = True) -> Iterator[None]:
    """Watch page-locked memory that is allocated inside the block, and run the watches.

    Args:
        unwritten: also watch memory of torch.empty, which is filled with NaN, and integers with bytes 0x7f.
    """
    import torch

    torch.ops.bringup.watch_pinned(True)
    torch.ops.bringup.watch_unwritten(unwritten)
    try:
        with ExitStack() as stack:
            for watch in watches:
                stack.enter_context(watch.watched())
            yield
    finally:
        torch.ops.bringup.watch_pinned(False)
        torch.ops.bringup.watch_unwritten(False)


# ---- devices


def _host_indices(rows: _Rows) -> Iterator[Finding]:
    """Find chip tensors that are indexed with a host tensor, which needs a blocking copy."""
    flags = rows.trace.columns["flags"]
    for row in np.flatnonzero((rows.kind == LAUNCH) & ((flags & HOST_INDEX) != 0)):
        yield Finding(
            "device",
            f"{rows.name(int(row))}{rows.at(int(row))} gets a tensor on the host beside those on the chip",
            rows.line(int(row)),
            "",
            "move it to the chip once, because every call copies it",
        )


CHECKS: dict[str, Callable[[_Rows], Iterator[Finding]]] = {
    "race": _races,
    "init": _uninitialised,
    "leak": _leaks,
    "sync": _hot_waits,
    "device": _host_indices,
}
