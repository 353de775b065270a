"""The steps of a recorded program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.recording.period import find_period
from bringup.recording.rows import (
    ALLOC,
    BY_PROGRAM,
    FORWARD,
    FREE,
    H2D,
    IN_BACKWARD,
    IN_FORWARD,
    IN_OPTIMIZER,
    LAUNCH,
    REBUILT,
    STEP,
    STREAM_SYNC,
    WITHIN,
)

if TYPE_CHECKING:
    from bringup.recording.trace import Trace

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Steps:
    """The program's steps. The rows before `start` are its set-up.

    Attributes:
        by: the marks of the steps: ``program`` (bringup.step), ``optimizer``, ``period`` (a repeated series of launches
            with several module calls or none), ``backward`` (backward passes), ``forward`` (calls of the module that is
            called most often), or ``whole`` for none.
        start: the first row of the first step.
        ends: the row after the last row of each step.
    """

    by: str
    start: int
    ends: Array


def find_steps(trace: Trace) -> Steps:
    """Return the steps that the program marks, else those of the optimizer that steps most often.

    Without an optimizer they are repetitions of a series of launches, else backward passes, else module calls.
    """
    kind, objects = trace.columns["kind"], trace.columns["object"]
    marks = np.flatnonzero((kind == STEP) & (objects == BY_PROGRAM))
    if len(marks):
        return Steps("program", 0, marks + 1)
    optimizers = np.flatnonzero(kind == STEP)
    if len(optimizers):
        numbers, firsts, counts = np.unique(objects[optimizers], return_index=True, return_counts=True)
        chosen = min(zip(-counts, firsts, numbers, strict=True))[2]
        ends = optimizers[objects[optimizers] == chosen] + 1
        again = set(trace.columns["line"][ends[0] : ends[1]].tolist()) if len(ends) > 1 else set()
        return Steps("optimizer", _prepared(trace, _start(trace, int(ends[0])), again, len(trace)), ends)
    calls = np.flatnonzero(kind == FORWARD)
    period = find_period(trace)
    if period is not None and period.calls != 1:
        return Steps("period", int(period.starts[0]), np.append(period.starts[1:], period.end))
    passes = _with_data(trace, _passes(trace))
    if len(passes):
        return Steps("backward", int(passes[0]), np.append(passes[1:], len(trace)))
    return _by_calls(trace, calls)


def _by_calls(trace: Trace, calls: Array) -> Steps:
    """Return the calls of the module that is called most often; modules are told apart by their first parameter.

    If there are several calls and none is of the same module as another, they are parts of one step.
    """
    rows = len(trace)
    if not len(calls):
        return Steps("whole", 0, np.asarray([rows]))
    owned = np.flatnonzero(trace.owned_storages[trace.uses >> 1])
    row_of = np.searchsorted(trace.offsets, owned, side="right") - 1
    first_use = np.searchsorted(row_of, calls)
    padded = np.append(row_of, rows)
    inside = padded[first_use] < np.append(calls[1:], rows)
    parameter = np.append(trace.uses[owned] >> 1, -1)[first_use]
    modules = np.where(inside, parameter, -1 - trace.columns["object"][calls])
    numbers, firsts, counts = np.unique(modules, return_index=True, return_counts=True)
    most, _, chosen = min(zip(-counts, firsts, numbers, strict=True))
    if len(calls) > 1 and most == -1:
        return Steps("whole", 0, np.asarray([rows]))
    starts = _with_data(trace, calls[modules == chosen])
    return Steps("forward", int(starts[0]), np.append(starts[1:], rows))


def _fed(trace: Trace) -> tuple[Array, Array]:
    """Return the rows of the backward passes that read results of a forward pass, and the launches of these results.

    Only launches of the forward pass that read a parameter count, because data may be older than the pass.
    """
    columns = trace.columns
    launched, phase = columns["kind"] == LAUNCH, columns["phase"]
    row_of = np.repeat(np.arange(len(trace)), np.diff(trace.offsets))
    numbers, written, owned = trace.uses >> 1, (trace.uses & 1) == 1, trace.owned_storages
    reads_parameter = np.zeros(len(trace), dtype=bool)
    reads_parameter[row_of[owned[numbers] & ~written]] = True
    forward = launched & (phase == IN_FORWARD) & reads_parameter
    writes = written & forward[row_of] & ~owned[numbers]
    writer = np.full(len(owned), len(trace), dtype=np.int64)
    np.minimum.at(writer, numbers[writes], row_of[writes])
    reads = (launched & (phase == IN_BACKWARD))[row_of] & ~written & (writer[numbers] < row_of)
    return row_of[reads], writer[numbers[reads]]


def _start(trace: Trace, end: int) -> int:
    """Return the first row of the step that ends at an optimizer's step: that of the forward pass that feeds it.

    The step may have several backward passes, which add up gradients. Passes before gradients were set to zero, or
    whose gradients the optimizer does not read, belong to the set-up.
    """
    columns = trace.columns
    kind, phase = columns["kind"][:end], columns["phase"][:end]
    calls = np.flatnonzero(kind == FORWARD)
    begins = _backward_begins(trace)
    begins = begins[begins < end]
    if not len(begins):
        return int(calls[0]) if len(calls) else min(int(np.argmax(kind == LAUNCH)), end - 1)
    zeroing = np.asarray([item.base in ("zero", "_foreach_zero") for item in trace.signatures])
    zeroed = np.flatnonzero((kind == LAUNCH) & (phase == IN_OPTIMIZER))
    zeroed = zeroed[zeroing[columns["signature"][zeroed]] & (zeroed < begins[-1])]
    since = int(zeroed[-1]) if len(zeroed) else -1
    gradient = max(_first_gradient(trace, int(begins[-1]), end), since + 1)
    first = int(begins[max(int(np.searchsorted(begins, gradient, side="right")) - 1, 0)])
    readers, writers = _fed(trace)
    feeds = (readers >= first) & (readers < end) & (writers > since)
    if feeds.any():
        return _with_uploads(trace, int(writers[feeds].min()))
    before = calls[calls < first]
    return int(before[-1]) if len(before) else first


def _prepared(trace: Trace, start: int, lines: set[int], most: int) -> int:
    """Return the first row that prepares a step, such as its data: of at most so many launches and uploads before it.

    They are at the given lines, and nothing else comes between them and the step.
    """
    kind, line = trace.columns["kind"], trace.columns["line"]
    first = row = start
    while first > 0 and kind[first - 1] not in (FORWARD, STEP) and (line[first - 1] < 0 or line[first - 1] in lines):
        most -= kind[first - 1] in (LAUNCH, H2D)
        if most < 0:
            break
        first -= 1
        row = first if line[first] >= 0 else row
    return row


def _with_data(trace: Trace, starts: Array) -> Array:
    """Move the starts of steps back to their data, if data is prepared before the first step and again in it."""
    kind, line = trace.columns["kind"], trace.columns["line"]
    if len(starts) < 2:
        return starts
    lines = set(line[: starts[0]].tolist()) & set(line[starts[0] : starts[1]].tolist())
    first = _prepared(trace, int(starts[0]), lines, len(trace))
    most = int(np.isin(kind[first : starts[0]], (LAUNCH, H2D)).sum())
    return np.asarray([_prepared(trace, int(start), lines, most) for start in starts])


def _backward_begins(trace: Trace) -> Array:
    """Return the first launch of every backward pass; what a checkpoint runs again is a part of it."""
    launches = np.flatnonzero(trace.columns["kind"] == LAUNCH)
    within = np.isin(trace.columns["bytes"][launches], (REBUILT, WITHIN))
    backward = (trace.columns["phase"][launches] == IN_BACKWARD) | within
    begins: Array = launches[backward & ~np.concatenate(([False], backward))[:-1]]
    return begins


def _first_gradient(trace: Trace, since: int, end: int) -> int:
    """Return the first backward launch that writes what an optimizer reads between the two rows; 0 if there is none."""
    columns, offsets = trace.columns, trace.offsets
    in_optimizer = (columns["kind"] == LAUNCH) & (columns["phase"] == IN_OPTIMIZER)
    in_backward = (columns["kind"] == LAUNCH) & (columns["phase"] == IN_BACKWARD)
    row_of = np.repeat(np.arange(end), np.diff(offsets[: end + 1]))
    uses = trace.uses[: offsets[end]]
    gradients = np.unique(uses[in_optimizer[row_of] & (row_of > since)] >> 1)
    writes = in_backward[row_of] & ((uses & 1) == 1) & np.isin(uses >> 1, gradients)
    return int(row_of[writes].min()) if writes.any() else 0


def _passes(trace: Trace) -> Array:
    """Return the first row of the forward pass of every backward pass."""
    begins = _backward_begins(trace)
    if not len(begins):
        return begins
    readers, writers = _fed(trace)
    which = np.searchsorted(begins, readers, side="right") - 1
    previous = np.concatenate(([0], begins[:-1]))
    own = writers > previous[which]
    starts = np.full(len(begins), len(trace), dtype=np.int64)
    np.minimum.at(starts, which[own], writers[own])
    starts = starts[starts < begins]
    return np.unique([_with_uploads(trace, int(row)) for row in starts]) if len(starts) else begins


def _with_uploads(trace: Trace, row: int) -> int:
    """Return the first row of a forward pass from its first launch: that of its module call and its uploads of data."""
    columns = trace.columns
    kind = columns["kind"]
    owned = trace.owned_storages
    calls = np.flatnonzero(kind[:row] == FORWARD)
    launched = np.flatnonzero(kind[:row] == LAUNCH)
    if len(calls) and (not len(launched) or columns["module"][row] >= 0 or calls[-1] > launched[-1]):
        row = int(calls[-1])
    first = row
    while first > 0 and kind[first - 1] in (H2D, STREAM_SYNC, ALLOC, FREE):
        first -= 1
        storages = trace.uses[trace.offsets[first] : trace.offsets[first + 1]] >> 1
        if kind[first] == H2D:
            if owned[storages].any():
                break
            row = first
    return row
