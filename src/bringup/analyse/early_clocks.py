"""Clocks that the program reads while the chip still computes: they show the time of launches.

What the program does with a reading is not recorded. A reading before work that the next reading waits for is taken for
the start of an interval, which may be early. But if two lines take turns, the one that was read first starts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse.summary import EarlyClock
from bringup.recording.rows import HOST, LAUNCH, RESUME, SIGNAL
from bringup.text import split_line
from bringup.timeline.replay import Timeline

Array = npt.NDArray[Any]
MOSTLY = 0.5  # of the intervals that end at a line: a loop whose first steps run ahead is timed right later on
LEAST_SECONDS = 1e-4  # chosen: so much that an interval leaves out is more than the latency of a launch


def early_clocks(timeline: Timeline) -> list[EarlyClock]:
    """Return the lines whose readings end intervals and show less than half of the time of what was launched in them.

    Times are means of these intervals. Nothing is known without `--chip-time`, where clocks show the chip's time.
    """
    reads = timeline.trace.about.get("clock_reads", [])
    last = len(timeline.trace)
    order = sorted((min(row, last), number) for number, item in enumerate(reads) for row in item["rows"])
    if len(order) < 2:
        return []
    rows, line = np.asarray(order).T
    now, behind = _at(timeline, rows)
    shown = np.diff(now)
    left = np.maximum(np.diff(behind), 0.0)
    short = (left > shown) & (left >= LEAST_SECONDS) & ~_only_start(timeline, rows, line, behind)
    clocks = []
    for number, item in enumerate(reads):
        ends = line[1:] == number
        if (short & ends).any() and (short & ends).sum() >= MOSTLY * ends.sum():
            file, place = split_line(item["line"])
            means = (float(values[short & ends].mean()) for values in (shown, shown + left))
            clocks.append(EarlyClock(file, place, *means))
    return sorted(clocks, key=lambda item: (item.file, item.line))


def _only_start(timeline: Timeline, rows: Array, line: Array, behind: Array) -> Array:
    """Return which of the readings after the first only start an interval: see the top of this file."""
    launched = np.append(0, np.cumsum(timeline.trace.columns["kind"] == LAUNCH))[rows]
    timed = (np.diff(launched) > 0) & (behind[1:] < LEAST_SECONDS)  # by this interval's end, the chip is done
    numbers, first = np.unique(line, return_index=True)
    first = first[np.searchsorted(numbers, line)]
    ends_a_pair = (line[:-2] == line[2:]) & (first[:-2] < first[1:-1])
    return np.append(timed[1:] & ~ends_a_pair, False)  # no interval follows the last reading


def _at(timeline: Timeline, rows: Array) -> tuple[Array, Array]:
    """Return the host's time before each of these rows, and how long the chip then goes on with what was launched."""
    host = np.maximum.accumulate(np.append(0.0, timeline.issued + timeline.waited))
    ours = ~np.isin(timeline.trace.columns["kind"], (HOST, SIGNAL, RESUME))
    chip = np.maximum.accumulate(np.append(0.0, timeline.end * ours))
    return host[rows], np.maximum(chip[rows] - host[rows], 0.0)
