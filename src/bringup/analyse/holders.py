"""Who holds the device's memory, when it is fullest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.recording.rows import (
    ACTIVATIONS,
    ALLOC,
    BEFORE,
    FORWARD,
    FRAGMENTATION,
    FREE,
    GRADIENTS,
    H2D,
    IN_BACKWARD,
    IN_OPTIMIZER,
    INPUTS,
    KEPT,
    LAUNCH,
    OPTIMIZER_STATE,
    OWNER,
    OWNERS,
    PARAMETERS,
    PHASES,
    RELEASE,
    RESERVE,
    STEP,
    WORKSPACE,
)
from bringup.recording.trace import Trace

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Moment:
    """When memory was fullest: the allocation that made it so, in which step (from 0)."""

    line: str
    module: str
    phase: str
    step: int
    device: int


@dataclass(frozen=True)
class Owner:
    """Bytes of one kind that one module made or owns."""

    kind: str
    module: str
    bytes: int


@dataclass(frozen=True)
class Memory:
    """The fullest device at its fullest.

    Attributes:
        peak_bytes: of the blocks that tensors held, ``torch.chip.max_memory_allocated``.
        reserved_bytes: the most that the allocator took from the device, ``torch.chip.max_memory_reserved``.
        at: when; None if nothing was allocated.
        owners: who held the peak and what lay reserved but free, the largest first.
    """

    peak_bytes: int
    reserved_bytes: int
    at: Moment | None
    owners: list[Owner]


@dataclass(frozen=True)
class Storages:
    """The storages that one device's allocator handed out while the program was recorded, one element each.

    Attributes:
        made, freed: row of the trace; `freed` is the number of rows if it lives to the end.
        bytes: of its block.
        kind: index into `OWNERS`.
        module: number of the module that owns it or allocated it; -1: none.
        before: bytes that were held when the recording began.
    """

    device: int
    made: Array
    freed: Array
    bytes: Array
    kind: Array
    module: Array
    before: int

    def peak(self, scale: Array | float = 1.0) -> int:
        """Return the most bytes held at once, each storage's times its scale."""
        size = self.bytes * scale
        rows = np.concatenate([self.made, self.freed])
        change = np.concatenate([size, -size])
        order = np.argsort(rows, kind="stable")
        return int(self.before + max(np.cumsum(change[order]).max(initial=0.0), 0.0))


def memory_over_time(trace: Trace) -> tuple[int, Array]:
    """Return the peak in bytes of the fullest device, and the bytes held after every row on its device."""
    return _over_time(trace, ALLOC, FREE, "held_bytes")


def reserved_over_time(trace: Trace) -> tuple[int, Array]:
    """Return what `memory_over_time` does, of what the allocator took from the device."""
    return _over_time(trace, RESERVE, RELEASE, "held_reserved_bytes")


def _over_time(trace: Trace, more: int, less: int, held_before: str) -> tuple[int, Array]:
    kind, size, device = (trace.columns[name] for name in ("kind", "bytes", "device"))
    change = np.where(kind == more, size, 0) - np.where(kind == less, size, 0)
    before = trace.about.get(held_before, [])
    held = np.zeros(len(kind), dtype=np.int64)
    peak = max(before, default=0)
    for index in np.unique(device) if len(device) else ():
        on = device == index
        balance = np.cumsum(np.where(on, change, 0)) + _before(before, index)
        held = np.where(on, balance, held)
        peak = max(peak, int(balance.max(initial=0)))
    return peak, held


def _before(held: list[int], device: int) -> int:
    """What a device held when the recording began."""
    return int(held[device]) if device < len(held) else 0


def storages(trace: Trace, device: int) -> Storages:
    """List what one device's allocator handed out, with its kind.

    Parameters and buffers are those of the modules that were called. A gradient was made in the backward pass, and an
    optimizer reads it or it lives on. Optimizer state was made by an optimizer and outlives its step. What the forward
    pass made is an activation, unless it is kept for the next call of the model (a cache of keys and values) or came
    over the link (an input). The rest is workspace.
    """
    columns, rows = trace.columns, len(trace)
    kind, objects = columns["kind"], columns["object"]
    made = np.flatnonzero((kind == ALLOC) & (columns["device"] == device))
    number = objects[made]
    size = int(max(objects[(kind == ALLOC) | (kind == FREE)].max(initial=-1), (trace.uses >> 1).max(initial=-1))) + 1
    freed_by = np.full(size, rows, dtype=np.int64)
    frees = np.flatnonzero(kind == FREE)
    freed_by[objects[frees]] = frees
    freed = freed_by[number]

    marked = np.full(size, -1, dtype=np.int64)
    owner_module = np.full(size, -1, dtype=np.int64)
    marks = np.flatnonzero(kind == OWNER)
    marked[objects[marks]] = columns["bytes"][marks]
    owner_module[objects[marks]] = columns["module"][marks]

    phase = columns["phase"][made]
    in_optimizer = _used_by(trace, (kind == LAUNCH) & (columns["phase"] == IN_OPTIMIZER), size)[number]
    uploaded = _used_by(trace, kind == H2D, size)[number]
    outlives = freed > _next(np.flatnonzero(kind == STEP), made, rows)
    next_call = _next(np.flatnonzero(kind == FORWARD), made, rows)
    kept = (freed > next_call) & (next_call < rows) & (columns["module"][made] >= 0)
    alive = freed == rows
    # What was there before a model was called belongs to a model, or was made for it.
    called = made > (np.flatnonzero(kind == FORWARD)[:1] if (kind == FORWARD).any() else rows)
    unmarked = ACTIVATIONS if not len(marks) and (kind == FORWARD).any() else INPUTS if len(marks) else PARAMETERS
    found = np.select(
        [
            marked[number] >= 0,
            phase == IN_OPTIMIZER,
            phase == IN_BACKWARD,
            uploaded,
            kept,
        ],
        [
            marked[number],
            np.where(outlives | alive, OPTIMIZER_STATE, WORKSPACE),
            np.where(in_optimizer | alive, GRADIENTS, WORKSPACE),
            INPUTS,
            KEPT,
        ],
        np.where(called, ACTIVATIONS, unmarked),
    )
    module = np.where(owner_module[number] >= 0, owner_module[number], columns["module"][made])
    before = _before(trace.about.get("held_bytes", []), device)
    return Storages(device, made, freed, columns["bytes"][made].astype(np.int64), found, module, before)


def _used_by(trace: Trace, rows: Array, size: int) -> Array:
    """Tell of every storage number whether one of the rows uses it."""
    counts = np.diff(trace.offsets)
    used = np.zeros(size, dtype=bool)
    used[trace.uses[np.repeat(rows, counts)] >> 1] = True
    return used


def _next(marks: Array, after: Array, none: int) -> Array:
    """Return the first mark after each row."""
    padded = np.append(marks, none)
    found: Array = padded[np.searchsorted(marks, after, side="right")]
    return found


def usage(trace: Trace, steps: Array) -> Memory:
    """Return who holds the memory at the peak.

    Args:
        trace: what was recorded.
        steps: the row after the last of every step.
    """
    peak, held = memory_over_time(trace)
    reserved, taken = reserved_over_time(trace)
    if not len(held) or held.max() == 0:
        return Memory(peak, reserved, None, [])
    top = int(np.argmax(held))
    columns = trace.columns
    every = storages(trace, int(columns["device"][top]))
    live = (every.made <= top) & (every.freed > top)
    names = [*trace.modules, ""]  # -1: none
    codes = every.kind[live] * len(names) + every.module[live] % len(names)
    sums = np.bincount(codes, every.bytes[live], len(OWNERS) * len(names))
    totals = {(OWNERS[code // len(names)], names[code % len(names)]): int(sums[code]) for code in np.flatnonzero(sums)}
    free = int(taken[top] - held[top])  # both of the row's device
    for kind, count in ((BEFORE, every.before), (FRAGMENTATION, free)):
        if count > 0:
            totals[(OWNERS[kind], "")] = count
    owners = [Owner(kind, module, count) for (kind, module), count in totals.items()]
    line, module = int(columns["line"][top]), int(columns["module"][top])
    at = Moment(
        trace.lines[line] if line >= 0 else "",
        trace.modules[module] if module >= 0 else "",
        PHASES[int(columns["phase"][top])],
        int(np.searchsorted(steps, top, side="right")),
        every.device,
    )
    return Memory(peak, reserved, at, sorted(owners, key=lambda item: (-item.bytes, item.kind, item.module)))
