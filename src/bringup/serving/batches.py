"""Any program under a stream of requests: they wait in one queue, and servers take them in batches."""

from __future__ import annotations

import bisect
import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from bringup.analyse import changes
from bringup.errors import BringupError
from bringup.recording.trace import Trace
from bringup.serving.engine import History
from bringup.serving.requests import Request
from bringup.timeline.replay import WhatIf, replay

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host

Array = npt.NDArray[Any]
# Factors of the host's times that are replayed; chosen: straight in between, and beyond the last one.
SLOWER = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Queue:
    """How requests wait.

    Attributes:
        batch: the most requests in a batch.
        window: seconds that the first request of a batch waits for others.
        limit: requests that may wait; others are turned away.
        deadline: seconds after its arrival at which the answer is of no more use: it is not computed.
    """

    batch: int = 1
    window: float = 0.0
    limit: float = math.inf
    deadline: float = math.inf


def simulate(
    requests: Sequence[Request],
    service: Callable[[int], float],
    queue: Queue,
    *,
    servers: int = 1,
    clients: int = 0,
) -> History:
    """Serve requests, which are updated, and return the queue over time: at the start and the end of each batch.

    Args:
        requests: in the order of arrival.
        service: returns the seconds of a batch by its size.
        queue: how they wait.
        servers: that take batches.
        clients: if not 0, this many requests are there at the start, and each that ends lets the next one arrive.
    """
    arriving = [(request.arrival, request.number) for request in (requests[:clients] if clients else requests)]
    following = iter(requests[clients:]) if clients else iter(())
    heapq.heapify(arriving)
    idle = [0.0] * servers
    waiting: deque[Request] = deque()
    arrived: list[float] = []
    left: list[float] = []
    computed: list[tuple[float, float, int]] = []  # start, end and requests of each batch

    def leave(request: Request, time: float) -> None:
        after = next(following, None)
        if after is not None:
            after.arrival = time
            heapq.heappush(arriving, (time, after.number))

    def arrive() -> None:
        time, number = heapq.heappop(arriving)
        if len(waiting) < queue.limit:
            waiting.append(requests[number])
            arrived.append(time)
        else:
            requests[number].dropped = True
            leave(requests[number], time)

    time = 0.0
    while arriving or waiting:
        time = max(time, heapq.heappop(idle))
        if not waiting:
            time = max(time, arriving[0][0])
        while arriving and arriving[0][0] <= time:
            arrive()
        if waiting and len(waiting) < queue.batch and queue.window:
            close = max(time, waiting[0].arrival + queue.window)
            while arriving and arriving[0][0] <= close and len(waiting) < queue.batch:
                time = max(time, arriving[0][0])
                arrive()
            time = close if len(waiting) < queue.batch else time
        while waiting and waiting[0].arrival + queue.deadline < time:
            late = waiting.popleft()
            late.dropped = True
            left.append(time)
            leave(late, time)
        if not waiting:
            heapq.heappush(idle, time)
            continue
        count = min(len(waiting), queue.batch)
        end = time + service(count)
        computed.append((time, end, count))
        for _ in range(count):
            request = waiting.popleft()
            request.begun, request.first, request.last = time, end, end
            request.generated = request.output
            leave(request, end)
        heapq.heappush(idle, end)
    return _history(arrived, left, computed)


def _history(arrived: list[float], left: list[float], computed: list[tuple[float, float, int]]) -> History:
    """Return the queue at the start and the end of each batch, from when requests came and left without an answer."""
    if not computed:
        return History()
    start, end, count = np.asarray(computed).T
    time = np.unique(np.concatenate([start, end]))

    def until(moments: Array, counts: Array | None = None) -> Array:
        order = np.argsort(moments, kind="stable")
        total = np.concatenate([[0], np.cumsum(np.ones(len(moments)) if counts is None else counts[order])])
        return total[np.searchsorted(moments[order], time, side="right")].astype(int)

    begun = until(start, count)
    waiting = until(np.asarray(arrived)) - until(np.asarray(left)) - begun
    return History(time=time.tolist(), running=(begun - until(end, count)).tolist(), waiting=waiting.tolist())


@dataclass(frozen=True)
class Jitter:
    """A stated distribution of the host's times: all of a batch take longer by one factor.

    Attributes:
        kind: ``lognormal`` has the median 1 and the spread `sigma`; ``exponential`` the mean 1.
        sigma: of the factor's logarithm.
    """

    kind: Literal["lognormal", "exponential"]
    sigma: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Jitter:
        """Read ``lognormal:SIGMA`` or ``exponential``.

        Raises:
            BringupError: it is neither.
        """
        kind, _, value = text.partition(":")
        if text == "exponential":
            return cls("exponential")
        try:
            sigma = float(value)
        except ValueError:
            sigma = math.nan
        if kind != "lognormal" or not 0 < sigma <= 3:
            raise BringupError(f"jitter must be lognormal:SIGMA with a sigma up to 3, or exponential, got {text!r}")
        return cls("lognormal", sigma)

    def factor(self, random: np.random.Generator) -> float:
        """Draw a factor."""
        if self.kind == "exponential":
            return float(random.exponential())
        return math.exp(self.sigma * random.standard_normal())


class Service:
    """The seconds of a batch by its size and the factor of the host's times.

    Args:
        sizes: of batches, the smallest first.
        seconds: a row per size, a column per factor of `SLOWER`.
    """

    def __init__(self, sizes: Sequence[int], seconds: Array) -> None:
        self._sizes, self._seconds = sizes, seconds
        self._rows: dict[int, list[float]] = {}

    @classmethod
    def of_traces(cls, traces: Mapping[int, Trace], chip: Chip, host: Host, scale: float = 1.0) -> Service:
        """Price recordings by their size of a batch."""
        sizes = sorted(traces)
        return cls(sizes, np.asarray([_by_host(traces[size], chip, host) for size in sizes]) * scale)

    def seconds(self, batch: int, slower: float = 1.0) -> float:
        """Return the seconds of a batch whose host takes `slower` times its price."""
        if batch not in self._rows:
            self._rows[batch] = [float(np.interp(batch, self._sizes, column)) for column in self._seconds.T]
        row = self._rows[batch]
        place = min(bisect.bisect_right(SLOWER, slower), len(SLOWER) - 1)
        share = (slower - SLOWER[place - 1]) / (SLOWER[place] - SLOWER[place - 1])
        return row[place - 1] + share * (row[place] - row[place - 1])


def _by_host(trace: Trace, chip: Chip, host: Host) -> list[float]:
    timeline = replay(trace, chip, host)
    return [
        changes.same_step_seconds(timeline, changes.replayed(timeline, WhatIf(dispatch_scale=factor)))
        for factor in SLOWER
    ]
