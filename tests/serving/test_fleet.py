"""Several engines: who gets a request."""

from __future__ import annotations

from bringup.serving.fleet import Handover, simulate
from tests.serving.test_engine import engine, requests


def test_the_engine_with_the_least_requests_gets_the_next_one() -> None:
    served = requests((0.0, 5000, 50), (0.001, 10, 1), (0.002, 10, 1))
    simulate(served, [engine(), engine()])
    assert [request.engine for request in served] == [0, 1, 1]  # the second ends in the step under way


def test_round_robin_takes_turns() -> None:
    served = requests(*[(0.1 * number, 10, 1) for number in range(5)])
    simulate(served, [engine(), engine()], "round-robin")
    assert [request.engine for request in served] == [0, 1, 0, 1, 0]


def test_engines_that_decode_are_numbered_after_those_that_prefill() -> None:
    served = requests(*[(0.0, 10, 5)] * 4)
    first, after = ([engine(stops_after_prompt=prefill) for _ in range(2)] for prefill in (True, False))
    simulate(served, first, handover=Handover(after, lambda request: 1e-3))
    assert sorted(request.engine for request in served) == [2, 2, 3, 3]


def test_two_engines_halve_the_load() -> None:
    rows = [(0.002 * number, 200, 40) for number in range(200)]
    one, two = requests(*rows), requests(*rows)
    simulate(one, [engine(blocks=100)])
    simulate(two, [engine(blocks=100), engine(blocks=100)])
    assert max(request.last for request in two) < 0.7 * max(request.last for request in one)
