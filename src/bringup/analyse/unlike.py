"""The parts of a program that are not its typical step: set-up, evaluations, checkpoints, and what comes at the end."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.recording.rows import FORWARD, LAUNCH
from bringup.recording.trace import Trace
from bringup.text import split_line
from bringup.timeline.replay import Timeline
from bringup.timeline.steady import HIGHEST, UNEQUAL, typical

Array = npt.NDArray[Any]
MOST_GROUPS = 3  # of steps at one line that are listed apart; more of them are a range
MUCH_LONGER = 1.25  # times the usual steps: a step with some other work that takes longer is named, too


@dataclass(frozen=True)
class UnlikeSteps:
    """Steps with other work than the typical step, such as an evaluation.

    Attributes:
        file, line: where most of the other work is launched.
        count: number of these steps.
        seconds, launches: the median of one of them, with its usual work.
        low_seconds, high_seconds: the shortest and the longest of them.
    """

    file: str
    line: int
    count: int
    seconds: float
    launches: int
    low_seconds: float
    high_seconds: float

    @property
    def is_unequal(self) -> bool:
        """True if these steps take different times."""
        return self.high_seconds - self.low_seconds > UNEQUAL * self.seconds


@dataclass(frozen=True)
class Outside:
    """What comes before the first step or after the last one.

    Attributes:
        launches, seconds: all of it.
        file, line: where it takes longest: a line outside of modules, or one that calls an outermost module.
    """

    launches: int
    seconds: float
    file: str = ""
    line: int = 0


def unlike_steps(timeline: Timeline) -> list[UnlikeSteps]:
    """List the steps after the first that do other work, by the line of this work; the longest in all first."""
    trace, step = timeline.trace, typical(timeline)
    work = trace.step_work
    some = work.with_other_lines
    usual = work.alike & ~some
    longest = np.quantile(step.seconds[usual], HIGHEST) if usual.any() else step.seconds[step.chosen]
    unlike = ~work.alike | (some & (step.seconds > MUCH_LONGER * max(longest, step.seconds[step.chosen])))
    launches = np.diff(np.concatenate(([0], np.cumsum(trace.columns["kind"] == LAUNCH)))[work.rows])
    groups: dict[int, list[int]] = {}
    for index in np.flatnonzero(unlike).tolist():
        groups.setdefault(_line_of(trace, index, step.chosen), []).append(index)
    listed = []
    for line, of_line in groups.items():
        place = split_line(trace.lines[line] if line >= 0 else "")
        for members in _split(of_line, step.seconds):
            middle = (len(members) - 1) // 2
            seconds, count = (sorted(values[members].tolist()) for values in (step.seconds, launches))
            listed.append(UnlikeSteps(*place, len(members), seconds[middle], count[middle], seconds[0], seconds[-1]))
    return sorted(listed, key=lambda item: (-item.count * item.seconds, item.file, item.line))


def _split(members: list[int], seconds: Array) -> list[list[int]]:
    """Split steps with other work at one line into groups of nearly equal times, if these are few groups of several."""
    order = sorted(members, key=lambda index: seconds[index])
    groups = [order[:1]]
    for before, index in pairwise(order):
        if seconds[index] > MUCH_LONGER * seconds[before]:
            groups.append([])
        groups[-1].append(index)
    return groups if len(groups) <= MOST_GROUPS and min(map(len, groups)) > 1 else [members]


def _line_of(trace: Trace, index: int, chosen: int) -> int:
    """Return the line of a step's other work: that of its additional module calls, else of most launches and copies.

    Lines that most steps do not reach come first, then lines that they reach less often.
    """
    columns, lines = trace.columns, len(trace.lines)
    work = trace.step_work
    rows = work.rows

    def counts(step: int, *, calls: bool) -> Array:
        if calls:
            members = slice(int(rows[step]), int(rows[step + 1]))
            line = columns["line"][members][columns["kind"][members] == FORWARD]
            return np.bincount(line[line >= 0], minlength=lines)
        members_of = (work.step == step) & (work.line >= 0)
        return np.bincount(work.line[members_of], work.count[members_of], lines)

    new = work.usual[:lines] == 0
    for calls in (True, False):
        for only_new in (True, False):
            more = (counts(index, calls=calls) - counts(chosen, calls=calls)) * (new if only_new else 1)
            if len(more) and more.max() > 0:
                return int(more.argmax())
    first = columns["line"][int(rows[index]) : int(rows[index + 1])]
    return int(first[first >= 0][0]) if (first >= 0).any() else -1


def outside(timeline: Timeline) -> tuple[Outside, Outside]:
    """Return what comes before the first step and after the last one; nothing if the program has no steps."""
    steps, rows = timeline.steps, len(timeline.trace)
    if steps.by == "whole" or not rows:
        return Outside(0, 0.0), Outside(0, 0.0)
    took = np.diff(np.concatenate(([0.0], timeline.finished)))
    trace, columns = timeline.trace, timeline.trace.columns
    launches = columns["kind"] == LAUNCH
    calls = np.flatnonzero(columns["kind"] == FORWARD)
    latest = np.searchsorted(calls, np.arange(rows), side="right") - 1
    of_call = np.append(columns["line"][calls], -1)[latest]
    line = np.where((columns["module"] >= 0) & (of_call >= 0), of_call, columns["line"])

    def part(members: slice) -> Outside:
        has_line = line[members] >= 0
        totals = np.bincount(line[members][has_line], took[members][has_line], 1)
        place = split_line(trace.lines[int(totals.argmax())] if has_line.any() else "")
        return Outside(int(launches[members].sum()), float(took[members].sum()), *place)

    return part(slice(0, steps.start)), part(slice(int(steps.ends[-1]), rows))


def typical_share(timeline: Timeline) -> float:
    """Return the share of the run in steps that do the work of the typical one; the first step counts as such."""
    steps, rows = timeline.steps, len(timeline.trace)
    if steps.by == "whole" or not rows:
        return 1.0
    done = np.concatenate(([0.0], timeline.finished))
    alike = typical(timeline).seconds[timeline.trace.step_work.alike].sum()
    warm_up = done[steps.ends[0]] - done[steps.start] if len(steps.ends) > 1 else 0.0
    return float((alike + warm_up) / done[-1]) if done[-1] else 1.0
