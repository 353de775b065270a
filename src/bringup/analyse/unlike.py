"""The parts of a program that are not its typical step: set-up, evaluations, checkpoints, and what comes at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.recording.rows import FORWARD, LAUNCH
from bringup.recording.trace import Trace
from bringup.text import split_line
from bringup.timeline.replay import Timeline
from bringup.timeline.steady import finished, typical

Array = npt.NDArray[Any]
MUCH_LONGER = 1.25  # times the typical step: a step with some other work that takes longer is named, too


@dataclass(frozen=True)
class UnlikeSteps:
    """Steps with other work than the typical step, such as an evaluation.

    Attributes:
        file, line: where most of the other work is launched.
        count: number of these steps.
        seconds, launches: the median of one of them, with its usual work.
    """

    file: str
    line: int
    count: int
    seconds: float
    launches: int


@dataclass(frozen=True)
class Outside:
    """The launches and seconds before the first step or after the last one."""

    launches: int
    seconds: float


def unlike_steps(timeline: Timeline) -> list[UnlikeSteps]:
    """List the steps after the first that do other work, by the line of this work; the longest in all first."""
    trace, step = timeline.trace, typical(timeline)
    work = trace.step_work
    other = work.usual[work.line] == 0
    some = np.bincount(work.step[other], work.count[other], len(step.seconds)) > 0
    unlike = ~work.alike | (some & (step.seconds > MUCH_LONGER * step.seconds[step.chosen]))
    launches = np.diff(np.concatenate(([0], np.cumsum(trace.columns["kind"] == LAUNCH)))[work.rows])
    groups: dict[int, list[int]] = {}
    for index in np.flatnonzero(unlike).tolist():
        groups.setdefault(_line_of(trace, index, step.chosen), []).append(index)
    listed = []
    for line, members in groups.items():
        middle = (len(members) - 1) // 2
        seconds, count = (sorted(values[members].tolist())[middle] for values in (step.seconds, launches))
        place = split_line(trace.lines[line] if line >= 0 else "")
        listed.append(UnlikeSteps(*place, len(members), float(seconds), int(count)))
    return sorted(listed, key=lambda item: (-item.count * item.seconds, item.file, item.line))


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
    first, last = steps.start, int(steps.ends[-1])
    done = np.concatenate(([0.0], finished(timeline)))
    launched = np.concatenate(([0], np.cumsum(timeline.trace.columns["kind"] == LAUNCH)))
    return (
        Outside(int(launched[first]), float(done[first])),
        Outside(int(launched[-1] - launched[last]), float(done[-1] - done[last])),
    )
