"""The collectives of a step: their time, and how much of it no kernel hides."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse.summary import Collective
from bringup.cost.collective import ranks_of
from bringup.machine.topology import cluster_of
from bringup.recording.rows import LAUNCH
from bringup.text import split_line
from bringup.timeline.replay import Timeline

Array = npt.NDArray[Any]
LEAST_WAIT = 1e-9  # seconds: a shorter wait is a difference of rounding


def communication(timeline: Timeline, first: int, last: int, since: float, until: float) -> dict[str, Any]:
    """Return the fields of a summary that speak of collectives, for the rows of a step and its time."""
    trace, columns = timeline.trace, timeline.trace.columns
    ranks = int(trace.about.get("ranks", 1))
    launches = np.flatnonzero(columns["kind"][first:last] == LAUNCH) + first
    is_collective = timeline.work.is_family("collective")
    if not is_collective.any():
        return {"ranks": ranks}
    rows = launches[is_collective[columns["signature"][launches]]]
    everything = np.flatnonzero(columns["kind"] == LAUNCH)
    together = is_collective[columns["signature"][everything]]
    priced = timeline.prices.seconds[columns["signature"][everything[together]]]
    spans = np.stack([timeline.start, timeline.end], axis=1)
    waits = spans[everything[together]].copy()  # for other ranks, which is no communication
    waits[:, 1] = np.maximum(waits[:, 1] - priced * timeline.stretch(everything[together]), waits[:, 0])
    spans[everything[together], 0] = waits[:, 1]
    waits = waits[waits[:, 1] - waits[:, 0] > LEAST_WAIT].clip(since, until)
    spans = spans.clip(since, until)
    network, kernels = (_union(spans[everything[which]]) for which in (together, ~together))
    both = _union(spans[everything])
    groups: dict[tuple[str, int, int, str], list[tuple[float, float]]] = defaultdict(list)
    busy = _Covered(spans[everything[~together]])
    for row in rows:
        signature = trace.signatures[columns["signature"][row]]
        key = signature.name, len(ranks_of(signature)), int(signature.args["bytes"]), trace.line_of(row)
        seconds = float(min(timeline.seconds[row], timeline.prices.seconds[columns["signature"][row]]))
        groups[key].append((seconds, busy.outside(*spans[row].tolist())))
    collectives = [
        Collective(
            kind, size, nbytes, len(times), sum(x for x, _ in times), sum(x for _, x in times), *split_line(line)
        )
        for (kind, size, nbytes, line), times in groups.items()
    ]
    largest = 1 + max(max(ranks_of(s)) for s, which in zip(trace.signatures, is_collective, strict=True) if which)
    return {
        "cluster": (trace.cluster or cluster_of(timeline.chip, largest)).name,
        "ranks": max(ranks, largest),
        "communication_seconds": network,
        "exposed_communication_seconds": max(both - kernels, 0.0),
        "bubble_seconds": max(_union(np.concatenate([spans[everything], waits])) - both, 0.0),
        "collectives": sorted(collectives, key=lambda item: -item.seconds),
    }


class _Covered:
    """The union of intervals."""

    def __init__(self, spans: Array) -> None:
        spans = spans[spans[:, 1] > spans[:, 0]]
        spans = spans[np.argsort(spans[:, 0])]
        reached = np.maximum.accumulate(spans[:, 1])
        begins = np.maximum(spans[:, 0], np.append(-np.inf, reached[:-1]))
        self._begins, self._ends = (side[reached > begins] for side in (begins, reached))
        self._until = np.append(0.0, np.cumsum(self._ends - self._begins))  # length before each interval

    @property
    def length(self) -> float:
        """The length of the union."""
        return float(self._until[-1])

    def before(self, moment: float) -> float:
        """Return the length up to a moment."""
        place = int(np.searchsorted(self._begins, moment))
        over = max(float(self._ends[place - 1]) - moment, 0.0) if place else 0.0
        return float(self._until[place]) - over

    def outside(self, begin: float, end: float) -> float:
        """Return the length of the part of an interval that is not covered."""
        return max(end - begin - (self.before(end) - self.before(begin)), 0.0)


def _union(spans: Array) -> float:
    """Return the length of the union of intervals."""
    return _Covered(spans).length
