"""The work of a program's steps, counted by line, and which of them do the same work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.recording.rows import D2D, D2H, FORWARD, H2D, IN_BACKWARD, LAUNCH

if TYPE_CHECKING:
    from bringup.recording.trace import Trace

Array = npt.NDArray[Any]
OTHER_WORK = 0.25  # of a step's launches and copies: steps that differ by less do the same work
MORE_CALLS = 1.5  # times as many outermost module calls are other work, if the backward pass does not grow with them
# Of the additional calls: a longer input has nearly as many additional backward launches, an evaluation none.
GROWS = 0.5


@dataclass(frozen=True)
class StepWork:
    """The steps after the first, which is left out as warm-up if there is another one, and their work.

    Attributes:
        rows: the first row of each of these steps, and the row after the last one.
        alike: True for steps that do the work of most steps.
        step, line, count: launches, copies and module calls: one entry per step and line that occurs in it (-1: none).
        usual: the median count of every line over all steps; the last one is that of rows without a line.
    """

    rows: Array
    alike: Array
    step: Array
    line: Array
    count: Array
    usual: Array

    @cached_property
    def with_other_lines(self) -> Array:
        """True for steps with work at lines that most steps do not reach, however little it is."""
        other = self.usual[self.line] == 0
        some: Array = np.bincount(self.step[other], self.count[other], len(self.alike)) > 0
        return some


def find_work(trace: Trace) -> StepWork:
    """Count the work of each step of a recording by line, and find the steps that are alike."""
    columns, lines = trace.columns, len(trace.lines) + 1
    ends = trace.steps.ends
    rows = ends if len(ends) > 1 else np.concatenate(([trace.steps.start], ends))
    steps = len(rows) - 1
    kinds = (LAUNCH, H2D, D2H, D2D, FORWARD)
    members = np.flatnonzero(np.isin(columns["kind"][rows[0] : rows[-1]], kinds)) + int(rows[0])
    step = np.searchsorted(rows, members, side="right") - 1
    keys, count = np.unique(step * lines + columns["line"][members] + 1, return_counts=True)
    step, line = keys // lines, keys % lines - 1
    usual = _medians(line, count, steps, lines)
    return StepWork(rows, _alike(trace, rows, step, line, count, usual), step, line, count, usual)


def _medians(line: Array, count: Array, steps: int, lines: int) -> Array:
    """Return the lower median of every line's count over the steps; steps without the line count as 0."""
    medians = np.zeros(lines, dtype=np.int64)
    order = np.lexsort((count, line))
    numbers, firsts, present = np.unique(line[order], return_index=True, return_counts=True)
    middle = (steps - 1) // 2 - (steps - present)  # steps without the line come first
    has_median = middle >= 0
    medians[numbers[has_median]] = count[order][(firsts + middle)[has_median]]
    return medians


def _alike(trace: Trace, rows: Array, step: Array, line: Array, count: Array, usual: Array) -> Array:
    """Return for every step True if its work is that of most steps.

    Other work is launched at lines that most steps do not reach, leaves out lines that they reach, or calls modules
    more often without as many backward launches, as an evaluation does. Longer inputs have more of both.
    """
    steps, columns = len(rows) - 1, trace.columns
    is_usual = usual[line] > 0
    other = np.bincount(step[~is_usual], count[~is_usual], steps)
    missing = usual.sum() - np.bincount(step[is_usual], usual[line[is_usual]], steps)
    is_backward = (columns["kind"] == LAUNCH) & (columns["phase"] == IN_BACKWARD)
    calls, backward = (_times_usual(mask, rows) for mask in (columns["kind"] == FORWARD, is_backward))
    evaluates = (calls > MORE_CALLS) & (backward - 1 <= GROWS * (calls - 1)) & (backward > 0)
    alike: Array = (other + missing <= OTHER_WORK * usual.sum()) & ~evaluates
    if 2 * alike.sum() >= steps:
        return alike
    # Steps take turns: the most frequent set of lines is typical.
    hashes = np.zeros(steps, dtype=np.int64)
    np.add.at(hashes, step, (line + 2) * 0x9E3779B1 % (1 << 40))
    _, first, place, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    most = min(range(len(counts)), key=lambda i: (-counts[i], first[i]))
    of_turn: Array = place.ravel() == most
    return of_turn


def _times_usual(mask: Array, rows: Array) -> Array:
    """Return how often a kind of row occurs in each step, as a multiple of the median; 0 if the median is 0."""
    counts = np.diff(np.concatenate(([0], np.cumsum(mask)))[rows])
    usual = np.sort(counts)[(len(counts) - 1) // 2]
    multiples: Array = counts / usual if usual else np.zeros(len(counts))
    return multiples
