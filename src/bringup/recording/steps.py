"""The steps of a recorded program."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.recording.passes import Passes, changes_parameters, evaluations, find_passes, forward_start, forward_starts
from bringup.recording.period import find_period
from bringup.recording.rows import BY_PROGRAM, FORWARD, H2D, IN_BACKWARD, IN_OPTIMIZER, LAUNCH, STEP

if TYPE_CHECKING:
    from bringup.recording.trace import Trace

Array = npt.NDArray[Any]
FEW_STEPS = 4  # optimizer steps that say little of a program which works in the evaluations of their closures
LEAST_SHARE = 0.1  # of the launches, chosen: backward passes at the end of a longer program are no steps of it
MANY_EVALUATIONS = 4  # per step: sharpness-aware optimizers evaluate twice, L-BFGS up to 25 times (torch's max_eval)


@dataclass(frozen=True)
class Steps:
    """The program's steps. The rows before `start` are its set-up.

    Attributes:
        by: the marks of the steps: ``program`` (bringup.step), ``optimizer``, ``replay`` (replays of a captured graph),
            ``period`` (a repeated series of launches with several module calls or none), ``backward`` (backward
            passes), ``forward`` (calls of the module that does most of the work), ``execution`` (of the program of JAX
            that does most of the work), or ``whole`` for none.
        start: the first row of the first step.
        ends: the row after the last row of each step.
        evaluations: how often an optimizer evaluates its closure in one step; 1 without closures.
    """

    by: str
    start: int
    ends: Array
    evaluations: int = 1


def find_steps(trace: Trace) -> Steps:
    """Return the steps that the program marks, else those of optimizers, or of graphs that contain optimizer steps.

    In programs of JAX and TensorFlow they are executions of one program, if it does most of the work. Without an
    optimizer they are repetitions of a series of launches, else replays of graphs if most launches are replayed, else
    backward passes, else module calls. If an error or a signal ended the program, the step that it interrupted is left
    out.
    """
    steps = _steps(trace)
    ended = not trace.about.get("failed") and not trace.about.get("stopped_by")
    if ended or steps.by in ("program", "optimizer", "whole"):
        return steps
    if len(steps.ends) < 2:
        return Steps("whole", 0, np.asarray([len(trace)]))
    return replace(steps, ends=steps.ends[:-1])


def _steps(trace: Trace) -> Steps:
    """Return the steps of a program, as if it had come to its end."""
    kind, objects = trace.columns["kind"], trace.columns["object"]
    marks = np.flatnonzero((kind == STEP) & (objects == BY_PROGRAM))
    if len(marks):
        return Steps("program", 0, marks + 1)
    replays, trains = _replays(trace)
    optimizers = np.flatnonzero(kind == STEP)
    # A captured step marks its end once, in the capture; a compiled optimizer marks every step.
    if 2 * trains.sum() >= max(len(optimizers), 1) and (optimizers > replays[trains][0, 0]).sum() < trains.sum():
        return _by_replays(trace, replays[trains])
    if len(optimizers):
        return _by_optimizers(trace, optimizers)
    calls = np.flatnonzero(kind == FORWARD)
    if (
        trace.about.get("framework") in ("jax", "tensorflow")
        and (executions := _by_executions(trace, calls)) is not None
    ):
        return executions
    period = find_period(trace)
    if period is not None and period.calls != 1:
        return Steps("period", int(period.starts[0]), np.append(period.starts[1:], period.end))
    launched = kind == LAUNCH
    if period is None and len(replays) and 2 * np.count_nonzero(objects[launched]) >= launched.sum():
        return _by_replays(trace, replays)
    passes = find_passes(trace)
    if len(passes.firsts):
        starts = _with_data(trace, forward_starts(trace, passes))
        if launched[starts[0] :].sum() < LEAST_SHARE * launched.sum():
            return Steps("whole", 0, np.asarray([len(trace)]))
        return Steps("backward", int(starts[0]), np.append(starts[1:], len(trace)))
    return _by_calls(trace, calls)


def _replays(trace: Trace) -> tuple[Array, Array]:
    """Return the first and last launch of every replay of a graph as pairs, and True for replays that train.

    In these an optimizer changes parameters.
    """
    columns = trace.columns
    replayed = np.flatnonzero((columns["kind"] == LAUNCH) & (columns["object"] > 0))
    _, firsts, which = np.unique(columns["object"][replayed], return_index=True, return_inverse=True)
    lasts = np.zeros(len(firsts), dtype=np.int64)
    np.maximum.at(lasts, which, replayed)
    trains = changes_parameters(trace)[replayed]
    return np.stack((replayed[firsts], lasts), axis=1), np.bincount(which[trains], minlength=len(firsts)) > 0


def _by_replays(trace: Trace, replays: Array) -> Steps:
    """Return replays of graphs as steps, each with the uploads and launches that prepare it."""
    starts = _with_data(trace, replays[:, 0])
    return Steps("replay", int(starts[0]), np.append(starts[1:], replays[-1, 1] + 1))


def _by_optimizers(trace: Trace, marks: Array) -> Steps:
    """Return the steps of the optimizer that steps most often, and of those that step before or after it.

    Optimizers whose steps alternate, such as those of two networks that train each other, share one step.
    """
    numbers = trace.columns["object"][marks]
    passes = find_passes(trace)
    spans: list[tuple[int, int]] = []
    ends = []
    _, firsts, counts = np.unique(numbers, return_index=True, return_counts=True)
    for count, first in sorted(zip((-counts).tolist(), firsts.tolist(), strict=True)):
        own = marks[numbers == numbers[first]]
        begin, end = int(own[0]), int(own[-1])
        alone = all(end < since or begin > until for since, until in spans)
        trains = ((passes.firsts > begin) & (passes.firsts < end)).any()
        if not spans or (alone and count < -1 and trains):
            spans.append((begin, end))
            ends.append(own + 1)
    of_all = np.sort(np.concatenate(ends))
    evaluated = evaluations(trace, passes, of_all)
    each = max(round(len(evaluated) / len(of_all)), 1)
    if len(of_all) < FEW_STEPS and each >= MANY_EVALUATIONS:
        starts = _with_data(trace, forward_starts(trace, replace(passes, firsts=evaluated)))
        return Steps("backward", int(starts[0]), np.append(starts[1:], of_all[-1]))
    again = set(trace.columns["line"][of_all[0] : of_all[1]].tolist()) if len(of_all) > 1 else set()
    start = _start(trace, passes, int(of_all[0] if each == 1 else passes.firsts[passes.firsts > evaluated[0]][0]))
    return Steps("optimizer", _prepared(trace, start, again, len(trace)), of_all, each)


def _by_calls(trace: Trace, calls: Array) -> Steps:
    """Return the calls of the module that does most of the work; modules are told apart by their first parameter.

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
    numbers, firsts, which, counts = np.unique(modules, return_index=True, return_inverse=True, return_counts=True)
    if len(calls) > 1 and counts.max() == 1:
        return Steps("whole", 0, np.asarray([rows]))
    weights = np.where((counts > 1) | (len(calls) == 1), np.bincount(which, _weights(trace, calls)), 0.0)
    _, _, chosen = min(zip(-weights, firsts, numbers, strict=True))
    starts = _with_data(trace, calls[modules == chosen])
    return Steps("forward", int(starts[0]), np.append(starts[1:], rows))


def _by_executions(trace: Trace, calls: Array) -> Steps | None:
    """Return the executions of the compiled program that does most of the work; None if no program does half of it."""
    numbers = trace.columns["object"][calls]
    weights = _weights(trace, calls)
    shares = np.bincount(numbers, weights) if len(calls) else np.zeros(1)
    own = calls[numbers == int(shares.argmax())]
    if len(own) < 2 or 2 * shares.max() < weights.sum():
        return None
    starts = _with_data(trace, own)
    return Steps("execution", int(starts[0]), np.append(starts[1:], len(trace)))


def _weights(trace: Trace, calls: Array) -> Array:
    """Return the share of each call, up to the next one, in the work of all.

    Half of it is the share of launches, for which the host takes time, half that of bytes, for which the chip does.
    """
    launches = np.flatnonzero(trace.columns["kind"] == LAUNCH)
    which = np.searchsorted(calls, launches, side="right") - 1
    launches, which = launches[which >= 0], which[which >= 0]
    count = np.bincount(which, minlength=len(calls)).astype(np.float64)
    moved = np.bincount(which, trace.work.bytes[trace.columns["signature"][launches]], len(calls))
    shares: Array = count / max(count.sum(), 1.0) + moved / max(moved.sum(), 1.0)
    return shares


def _start(trace: Trace, passes: Passes, end: int) -> int:
    """Return the first row of the step that ends at an optimizer's step: that of the forward pass that feeds it.

    The step may have several backward passes, which add up gradients. Passes before gradients were set to zero, or
    whose gradients the optimizer does not read, belong to the set-up.
    """
    columns = trace.columns
    kind, phase = columns["kind"][:end], columns["phase"][:end]
    calls = np.flatnonzero(kind == FORWARD)
    begins = passes.firsts[passes.firsts < end]
    if not len(begins):
        return int(calls[0]) if len(calls) else min(int(np.argmax(kind == LAUNCH)), end - 1)
    zeroing = np.asarray([item.base in ("zero", "_foreach_zero") for item in trace.signatures])
    zeroed = np.flatnonzero((kind == LAUNCH) & (phase == IN_OPTIMIZER))
    zeroed = zeroed[zeroing[columns["signature"][zeroed]] & (zeroed < begins[-1])]
    since = int(zeroed[-1]) if len(zeroed) else -1
    gradient = max(_first_gradient(trace, int(begins[-1]), end), since + 1)
    first = int(begins[max(int(np.searchsorted(begins, gradient, side="right")) - 1, 0)])
    start = forward_start(trace, passes, since, first, end)
    if start >= 0:
        return start
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


def _first_gradient(trace: Trace, since: int, end: int) -> int:
    """Return the first backward launch that writes what an optimizer reads between the two rows; 0 if there is none."""
    columns, offsets = trace.columns, trace.offsets
    in_optimizer = (columns["kind"] == LAUNCH) & (columns["phase"] == IN_OPTIMIZER)
    in_backward = (columns["kind"] == LAUNCH) & (columns["phase"] == IN_BACKWARD)
    row_of, uses = trace.use_rows[: offsets[end]], trace.uses[: offsets[end]]
    gradients = np.unique(uses[in_optimizer[row_of] & (row_of > since)] >> 1)
    writes = in_backward[row_of] & ((uses & 1) == 1) & np.isin(uses >> 1, gradients)
    return int(row_of[writes].min()) if writes.any() else 0
