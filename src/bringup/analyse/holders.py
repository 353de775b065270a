"""The holders of device memory at its peak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from bringup.recording.rows import (
    ACTIVATIONS,
    ALLOC,
    BEFORE,
    BLAS_WORKSPACE,
    D2D,
    D2H,
    FORWARD,
    FREE,
    GRADIENTS,
    H2D,
    IN_BACKWARD,
    IN_OPTIMIZER,
    INPUTS,
    KEPT,
    LAUNCH,
    ON_HOST,
    OPTIMIZER_STATE,
    OUTSIDE,
    OWNER,
    OWNERS,
    PHASES,
    RELEASE,
    RESERVE,
    STEP,
    WORKSPACE,
)
from bringup.recording.trace import Trace

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

Array = npt.NDArray[Any]
Result = TypeVar("Result")
Rest = ParamSpec("Rest")
LEAST_GAIN, PAGE = 0.05, 20 << 20  # smaller savings than a page of an expandable segment come and go with the last page


@dataclass(frozen=True)
class Moment:
    """The peak of device memory: the allocation that reached it, and its step (counted from 0)."""

    line: str
    module: str
    phase: str
    step: int
    device: int


@dataclass(frozen=True)
class Owner:
    """The bytes of one kind that one module allocated or owns."""

    kind: str
    module: str
    bytes: int


@dataclass(frozen=True)
class Allocation:
    """The storages held at the peak that one line allocated in one phase."""

    line: str
    phase: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Memory:
    """The memory of the fullest device at its peak.

    Attributes:
        peak_bytes: of the blocks that tensors held, ``torch.chip.max_memory_allocated``.
        reserved_bytes: the most that the allocator took from the device, ``torch.chip.max_memory_reserved``.
        free_bytes: at the peak, memory that the allocator has reserved and no tensor holds.
        expandable_bytes: the most that it would have taken for the same allocations and frees with expandable segments;
            None if it had them, or if this is not known.
        at: the moment of the peak; None if nothing was allocated, or if the peak was before the recording.
        owners: the holders of the memory, the largest first; they add up to `peak_bytes`.
    """

    peak_bytes: int
    reserved_bytes: int
    free_bytes: int
    at: Moment | None
    owners: list[Owner]
    expandable_bytes: int | None = None

    def expandable_gain(self, room: int) -> int:
        """Return the reserved bytes that expandable segments would save if they are worth a word, else 0.

        They are if the program then fits the room (bytes), or if they save at least 5 % of the reserved peak, and a
        page.
        """
        if self.expandable_bytes is None:
            return 0
        saved = self.reserved_bytes - self.expandable_bytes
        would_fit = self.expandable_bytes <= room < self.reserved_bytes
        return saved if would_fit or saved >= max(LEAST_GAIN * self.reserved_bytes, PAGE) else 0


@dataclass(frozen=True)
class Storages:
    """The storages that one device's allocator handed out during the recording, one array element per storage.

    Attributes:
        allocated, freed: rows of the trace; `freed` is the number of rows if the storage lives to the end.
        bytes: sizes of the blocks.
        kind: indices into `OWNERS`.
        module: numbers of the modules that own or allocated the storages; -1 for none.
        before: bytes held when the recording began.
    """

    device: int
    allocated: Array
    freed: Array
    bytes: Array
    kind: Array
    module: Array
    before: int

    def peak(self, scale: Array | float = 1.0) -> int:
        """Return the most bytes held at once, with every storage's size multiplied by its scale."""
        size = self.bytes * scale
        rows = np.concatenate([self.allocated, self.freed])
        change = np.concatenate([size, -size])
        order = np.argsort(rows, kind="stable")
        return int(self.before + max(np.cumsum(change[order]).max(initial=0.0), 0.0))


def _once(function: Callable[Concatenate[Trace, Rest], Result]) -> Callable[Concatenate[Trace, Rest], Result]:
    """Keep what a function returns for a trace as long as the trace lives: a report asks for it several times."""
    by_trace: WeakKeyDictionary[Trace, dict[Any, Result]] = WeakKeyDictionary()

    @wraps(function)
    def once(trace: Trace, /, *rest: Rest.args, **named: Rest.kwargs) -> Result:
        results, key = by_trace.setdefault(trace, {}), (rest, *named.items())
        if key not in results:
            results[key] = function(trace, *rest, **named)
        return results[key]

    return once


@_once
def memory_over_time(trace: Trace) -> tuple[int, Array]:
    """Return the peak in bytes of the fullest device, and the bytes held after every row on its device.

    What a plan puts on the host is not held, see `chip_uses`.
    """
    change = _change(trace, ALLOC, FREE)
    if trace.about.get("placement") is not None:
        columns = trace.columns
        allocated, frees = np.flatnonzero(columns["kind"] == ALLOC), np.flatnonzero(columns["kind"] == FREE)
        ends = chip_uses(trace)
        frees = frees[np.isin(columns["object"][frees], columns["object"][allocated])]
        moved, freed = ends[columns["object"][allocated]], ends[columns["object"][frees]]
        change[allocated[moved == NEVER]] = 0
        change[frees[freed < frees]] = 0
        sooner = (moved >= 0) & (moved < _freed_by(trace)[columns["object"][allocated]])
        np.subtract.at(change, moved[sooner], columns["bytes"][allocated[sooner]])
    return _over_time(trace, change, "held_bytes")


def reserved_over_time(trace: Trace) -> tuple[int, Array]:
    """Return the same as `memory_over_time` for the bytes that the allocator reserved from the device."""
    return _over_time(trace, _change(trace, RESERVE, RELEASE), "held_reserved_bytes")


NEVER = -1  # the chip uses a storage at no row


def chip_uses(trace: Trace) -> Array:
    """Return for every storage of a placed run the last row at which the chip uses it; `NEVER` for none.

    Storages that only the host's launches use are never on the chip, although the program has allocated them there.
    Those that the host's launches do not use have the number of rows.
    """
    columns = trace.columns
    kind, on_host = columns["kind"], columns["object"] == ON_HOST
    rows, storage = trace.use_rows, trace.uses >> 1
    size = _numbers(trace)
    by_host = _used_by(trace, (kind == LAUNCH) & on_host, size)
    on_chip = ((kind == LAUNCH) & ~on_host) | (kind == D2D)
    by_chip = _used_by(trace, on_chip, size)
    last = np.full(size, NEVER, dtype=np.int64)
    touched = (on_chip | (np.isin(kind, (H2D, D2H)) & ~on_host))[rows]
    np.maximum.at(last, storage[touched], rows[touched])
    return np.where(~by_host, len(trace), np.where(by_chip, last, NEVER))


def _numbers(trace: Trace) -> int:
    """Return the number of storages; a module may own an empty one, which nothing allocates or uses."""
    columns = trace.columns
    named = np.isin(columns["kind"], (ALLOC, FREE, OWNER))
    return int(max(columns["object"][named].max(initial=-1), (trace.uses >> 1).max(initial=-1))) + 1


def _freed_by(trace: Trace) -> Array:
    """Return for every storage the row that frees it; the number of rows for none."""
    freed_by = np.full(_numbers(trace), len(trace), dtype=np.int64)
    frees = np.flatnonzero(trace.columns["kind"] == FREE)
    freed_by[trace.columns["object"][frees]] = frees
    return freed_by


def _change(trace: Trace, more: int, less: int) -> Array:
    kind, size = trace.columns["kind"], trace.columns["bytes"]
    change: Array = np.where(kind == more, size, 0) - np.where(kind == less, size, 0)
    return change


def _over_time(trace: Trace, change: Array, held_before: str) -> tuple[int, Array]:
    device = trace.columns["device"]
    before = trace.about.get(held_before, [])
    held_bytes = np.zeros(len(device), dtype=np.int64)
    peak = max(before, default=0)
    for index in np.unique(device) if len(device) else ():
        is_device = device == index
        balance = np.cumsum(np.where(is_device, change, 0)) + _before(before, index)
        held_bytes = np.where(is_device, balance, held_bytes)
        peak = max(peak, int(balance.max(initial=0)))
    return peak, held_bytes


def _before(bytes_by_device: list[int], device: int) -> int:
    """Return the bytes that a device held when the recording began."""
    return int(bytes_by_device[device]) if device < len(bytes_by_device) else 0


@_once
def storages(trace: Trace, device: int) -> Storages:
    """List the storages that one device's allocator handed out, each with its kind.

    Parameters and buffers belong to modules that were called. A gradient is allocated in the backward pass, and an
    optimizer reads it or it is never freed. Optimizer state is allocated by an optimizer and outlives its step. The
    forward pass allocates activations, storages that are kept between calls (caches of keys and values), and inputs,
    which were copied from the host. All other storages are workspace. In a program that calls no module, activations
    are what a backward pass follows; the rest is named as tensors outside modules.
    """
    columns, rows = trace.columns, len(trace)
    kind, objects = columns["kind"], columns["object"]
    allocated = np.flatnonzero((kind == ALLOC) & (columns["device"] == device))
    number = objects[allocated]
    size = _numbers(trace)
    freed = _freed_by(trace)[number]
    held = columns["bytes"][allocated].astype(np.int64)
    if trace.about.get("placement") is not None:
        ends = chip_uses(trace)[number]
        held[ends == NEVER] = 0
        freed = np.minimum(freed, np.maximum(ends, allocated))

    marked = np.full(size, -1, dtype=np.int64)
    owner_module = np.full(size, -1, dtype=np.int64)
    marks = np.flatnonzero(kind == OWNER)
    marked[objects[marks]] = columns["bytes"][marks]
    owner_module[objects[marks]] = columns["module"][marks]

    phase = columns["phase"][allocated]
    in_optimizer = _used_by(trace, (kind == LAUNCH) & (columns["phase"] == IN_OPTIMIZER), size)[number]
    uploaded = _used_by(trace, kind == H2D, size)[number]
    outlives = freed > _next(np.flatnonzero(kind == STEP), allocated, rows)
    next_call = _next(np.flatnonzero(kind == FORWARD), allocated, rows)
    kept_for_next_call = (freed > next_call) & (next_call < rows) & (columns["module"][allocated] >= 0)
    alive = freed == rows
    calls = np.flatnonzero(kind == FORWARD)
    if len(calls):  # storages allocated before the first call of a model are the model's own or its inputs
        rest = np.where(
            allocated > calls[0], ACTIVATIONS, INPUTS if np.any(columns["bytes"][marks] != BLAS_WORKSPACE) else OUTSIDE
        )
    else:
        backward = np.flatnonzero((kind == LAUNCH) & (columns["phase"] == IN_BACKWARD))
        rest = np.where((_next(backward, allocated, rows) < freed) & ~alive, ACTIVATIONS, OUTSIDE)
    kinds = np.select(
        [
            marked[number] >= 0,
            phase == IN_OPTIMIZER,
            phase == IN_BACKWARD,
            uploaded,
            kept_for_next_call,
        ],
        [
            marked[number],
            np.where(outlives | alive, OPTIMIZER_STATE, WORKSPACE),
            np.where(in_optimizer | alive, GRADIENTS, WORKSPACE),
            INPUTS,
            KEPT,
        ],
        rest,
    )
    module = np.where(owner_module[number] >= 0, owner_module[number], columns["module"][allocated])
    before = _before(trace.about.get("held_bytes", []), device)
    return Storages(device, allocated, freed, held, kinds, module, before)


def _used_by(trace: Trace, rows: Array, size: int) -> Array:
    """Return for every storage number True if one of the rows uses it."""
    counts = np.diff(trace.offsets)
    is_used = np.zeros(size, dtype=bool)
    is_used[trace.uses[np.repeat(rows, counts)] >> 1] = True
    return is_used


def _next(marks: Array, after: Array, none: int) -> Array:
    """Return the first mark after each row."""
    padded = np.append(marks, none)
    following: Array = padded[np.searchsorted(marks, after, side="right")]
    return following


def usage(trace: Trace, steps: Array) -> Memory:
    """Return the peak of device memory and its holders.

    Args:
        trace: the recording.
        steps: for every step, the row after its last one.
    """
    peak, held_bytes = memory_over_time(trace)
    reserved, reserved_bytes = reserved_over_time(trace)
    expandable = max(trace.about.get("expandable_reserved_bytes", []), default=None)
    if not len(held_bytes) or held_bytes.max() == 0 or held_bytes.max() < peak:  # else, it was before the recording
        return Memory(peak, reserved, 0, None, [Owner(OWNERS[BEFORE], "", peak)] if peak else [], expandable)
    top = int(np.argmax(held_bytes))
    columns = trace.columns
    handed_out = storages(trace, int(columns["device"][top]))
    live = (handed_out.allocated <= top) & (handed_out.freed > top)
    names = [*trace.modules, ""]  # -1: none
    codes = handed_out.kind[live] * len(names) + handed_out.module[live] % len(names)
    sums = np.bincount(codes, handed_out.bytes[live], len(OWNERS) * len(names))
    totals = {(OWNERS[code // len(names)], names[code % len(names)]): int(sums[code]) for code in np.flatnonzero(sums)}
    before = int(held_bytes[top] - handed_out.bytes[live].sum())  # without what was freed since the recording began
    if before > 0:
        totals[(OWNERS[BEFORE], "")] = before
    owners = [Owner(kind, module, count) for (kind, module), count in totals.items()]
    line, module = int(columns["line"][top]), int(columns["module"][top])
    at = Moment(
        trace.lines[line] if line >= 0 else "",
        trace.modules[module] if module >= 0 else "",
        PHASES[int(columns["phase"][top])],
        int(np.searchsorted(steps, top, side="right")),
        handed_out.device,
    )
    _, allocated_bytes = _over_time(trace, _change(trace, ALLOC, FREE), "held_bytes")
    free = max(int(reserved_bytes[top] - allocated_bytes[top]), 0)  # both on the device of this row
    owners.sort(key=lambda item: (-item.bytes, item.kind, item.module))
    return Memory(peak, reserved, free, at, owners, expandable)


FITS, CLOSE, TOO_LARGE = "yes", "within 5 %", "no"
VERDICTS = {FITS: "fits", CLOSE: "within 5 %: try it", TOO_LARGE: "does not fit"}  # in words
NEAR = 0.05  # predicted peaks are compared with measured ones only to a few percent: nearer, only a run decides


def verdict(need: float, room: int) -> str:
    """Return `FITS`, `TOO_LARGE` or, if the need is within 5 % of the room, `CLOSE`; both are in bytes."""
    return CLOSE if abs(need - room) <= NEAR * room else FITS if need < room else TOO_LARGE


def needed_bytes(trace: Trace, peak: Memory, chip: Chip, moved_bytes: int = 0) -> int:
    """Return the bytes that decide if the program fits the chip's memory.

    On the chip of the recording, the allocator released cached memory before it went past the capacity, so reserved
    bytes beyond the room are needed. Within the room, and on another chip, the bytes held by tensors are needed. So
    are they in a placed run, whose allocator has reserved memory for what the plan puts on the host, too.

    Args:
        trace: the recording.
        peak: its memory.
        chip: the chip.
        moved_bytes: of what tensors held, the part that a division of the program puts on the host.
    """
    if moved_bytes:
        return max(peak.peak_bytes - moved_bytes, 0)
    was_recorded_here = trace.about.get("chip") == chip.name and trace.about.get("placement") is None
    return peak.reserved_bytes if was_recorded_here and peak.reserved_bytes > chip.room_bytes else peak.peak_bytes


def ran_out(trace: Trace) -> bool:
    """Return True if the recorded program ended because the memory was full, so that its peak is unknown."""
    return bool(trace.about.get("out_of_memory", False))


def fits(trace: Trace, peak: Memory, chip: Chip, moved_bytes: int = 0) -> bool:
    """Return True if the program ran to its end, and the bytes that it needs have room; see `needed_bytes`."""
    return not ran_out(trace) and needed_bytes(trace, peak, chip, moved_bytes) <= chip.room_bytes


def allocations_at_peak(trace: Trace, peak: Moment | None) -> list[Allocation]:
    """List the lines that allocated the memory of the fullest device at its peak, the largest first."""
    if peak is None:
        return []
    _, held_bytes = memory_over_time(trace)
    top = int(np.argmax(held_bytes))
    handed_out = storages(trace, peak.device)
    rows = handed_out.allocated[(handed_out.allocated <= top) & (handed_out.freed > top)]
    lines, phases, sizes = (trace.columns[name][rows] for name in ("line", "phase", "bytes"))
    groups: dict[tuple[int, int], list[int]] = {}
    for line, phase, size in zip(lines.tolist(), phases.tolist(), sizes.tolist(), strict=True):
        groups.setdefault((line, phase), []).append(size)
    allocations = [
        Allocation(trace.lines[line] if line >= 0 else "(no Python line)", PHASES[phase], len(group), sum(group))
        for (line, phase), group in groups.items()
    ]
    return sorted(allocations, key=lambda item: (-item.bytes, item.line))
