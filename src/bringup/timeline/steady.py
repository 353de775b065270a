"""The typical step of a timeline: the step of median time among those that do the same work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.timeline.replay import Timeline

Array = npt.NDArray[Any]
LOWEST, HIGHEST = 0.1, 0.9  # the quantiles of the steps' times that are reported as their spread
UNEQUAL = 0.25  # of the typical time: steps with a larger spread are called unequal; a logged value costs less


@dataclass(frozen=True)
class Typical:
    """The times of the steps after the first, which is left out as warm-up if there is another one.

    Attributes:
        seconds: the time of each.
        chosen: the index of the typical step, the median of the steps that do the same work.
        low, high: seconds between which four fifths of the steps lie that are alike and reach no other lines.
    """

    seconds: Array
    chosen: int
    low: float
    high: float

    @property
    def is_unequal(self) -> bool:
        """True if steps that do the same work take different times."""
        return self.high - self.low > UNEQUAL * float(self.seconds[self.chosen])


def typical(timeline: Timeline) -> Typical:
    """Find the typical step of a timeline."""
    work = timeline.trace.step_work
    seconds = np.diff(np.concatenate(([0.0], timeline.finished))[work.rows])
    members = np.flatnonzero(work.alike)
    # Picoseconds, so that equal steps stay equal on machines whose arithmetic differs; of equal steps, the last counts.
    order = members[np.lexsort((-members, np.round(seconds[members] * 1e12)))]
    chosen = int(order[(len(order) - 1) // 2])
    same = order[~work.with_other_lines[order]]
    same = same if len(same) else order
    low, high = (float(seconds[same[round(quantile * (len(same) - 1))]]) for quantile in (LOWEST, HIGHEST))
    return Typical(seconds, chosen, low, high)


def steady(timeline: Timeline) -> tuple[int, int, float, float]:
    """Return the typical step: its first and end row, and its start and end in seconds."""
    if not len(timeline.trace):
        return 0, 0, 0.0, 0.0
    chosen = typical(timeline).chosen
    first, last = map(int, timeline.trace.step_work.rows[chosen : chosen + 2])
    done = timeline.finished
    return first, last, float(done[first - 1]) if first else 0.0, float(done[last - 1])


def step_seconds(timeline: Timeline) -> float:
    """Return the seconds of the typical step."""
    _, _, since, until = steady(timeline)
    return until - since
