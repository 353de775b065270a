"""Several engines behind a router: events in the order of time, from arrivals to the last token.

The engine whose next step starts first computes next, up to the next event. A request goes to an engine at its arrival,
and its router sees the engines as the steps under way will leave them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from bringup.serving.engine import Engine
from bringup.serving.requests import Request

Router = Literal["least", "round-robin", "prefix"]
ROUTERS: tuple[Router, ...] = ("least", "round-robin", "prefix")


@dataclass(frozen=True)
class Handover:
    """Engines that decode what others have prefilled, and the seconds until a request's keys and values are there."""

    engines: Sequence[Engine]
    seconds: Callable[[Request], float]


def simulate(
    requests: Sequence[Request],
    engines: Sequence[Engine],
    router: Router = "least",
    *,
    clients: int = 0,
    handover: Handover | None = None,
) -> None:
    """Serve requests, which are updated.

    Args:
        requests: in the order of arrival.
        engines: that requests arrive at.
        router: chooses one: with the ``least`` requests, in turn, or the one that last had the ``prefix``.
        clients: if not 0, this many requests are there at the start, and each that ends lets the next one arrive.
        handover: for engines that only prefill.
    """
    arrive, decode = Choice(engines, router), None
    events: list[tuple[float, int, Choice]] = []  # time, number of the request, where it goes
    every_engine = list(engines)
    following = iter(requests[clients:]) if clients else iter(())

    def ended(request: Request) -> None:
        if handover is not None and decode is not None and not request.ended:
            heapq.heappush(events, (request.last + handover.seconds(request), request.number, decode))
            return
        after = next(following, None)
        if after is not None:
            after.arrival = request.last
            heapq.heappush(events, (after.arrival, after.number, arrive))

    if handover is not None:
        decode = Choice(handover.engines, "least", len(engines))
        every_engine += handover.engines
    for engine in every_engine:
        engine.ended = ended
    events += [(request.arrival, request.number, arrive) for request in (requests[:clients] if clients else requests)]
    heapq.heapify(events)
    # An engine's steps may bring an event for another one only with clients or a handover.
    single = len(every_engine) > 1 and (clients > 0 or handover is not None)
    while True:
        until = events[0][0] if events else float("inf")
        busy = [engine for engine in every_engine if engine.busy]
        first = min(busy, key=lambda engine: engine.clock, default=None)
        if first is not None and first.clock < until:
            first.advance(until, single)
        elif events:
            time, number, choice = heapq.heappop(events)
            choice.submit(requests[number], time)
        else:
            return


class Choice:
    """Engines that a request can go to; `before` is the number of the first one."""

    def __init__(self, engines: Sequence[Engine], router: Router, before: int = 0) -> None:
        self.engines = engines
        self.router = router
        self.before = before
        self._turn = 0
        self._last: dict[object, int] = {}

    def submit(self, request: Request, time: float) -> None:
        """Send a request to an engine."""
        number = self._choose(request)
        request.engine = self.before + number
        self.engines[number].submit(request, time)

    def _choose(self, request: Request) -> int:
        if self.router == "round-robin":
            self._turn += 1
            return (self._turn - 1) % len(self.engines)
        least = min(range(len(self.engines)), key=lambda number: self.engines[number].load)
        if self.router == "prefix" and request.shared:
            last = self._last.setdefault(request.prefix, least)
            # As far as the engine is not busier than another by more than a full batch would be.
            if self.engines[last].waiting == 0 or self.engines[last].load <= 2 * self.engines[least].load + 1:
                return last
            self._last[request.prefix] = least
        return least

    def __lt__(self, other: Choice) -> bool:
        return id(self) < id(other)  # two events of one request never have the same time
