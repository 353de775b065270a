"""Programs under a stream of requests: queues with known formulas, batches, limits and deadlines."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bringup.errors import BringupError
from bringup.serving.batches import SLOWER, Jitter, Queue, Service, simulate
from bringup.serving.requests import Request


def requests(*arrivals: float) -> list[Request]:
    return [Request(number, arrival, 1, 1) for number, arrival in enumerate(arrivals)]


def mean_wait(rate: float, jitter: Jitter | None, count: int = 400_000) -> float:
    """The mean wait before a server that takes one second: the gaps are stretched to have their mean exactly."""
    random = np.random.default_rng(5)
    gaps = random.exponential(1, count)
    served = requests(*np.cumsum(gaps / gaps.mean() / rate).tolist())
    service = Service([1], np.asarray([SLOWER]))  # the host's time alone, one second

    def seconds(batch: int) -> float:
        return service.seconds(batch, jitter.factor(random) if jitter else 1.0)

    simulate(served, seconds, Queue())
    return float(np.mean([request.begun - request.arrival for request in served]))


def test_a_queue_with_constant_service_waits_as_long_as_m_d_1() -> None:
    assert mean_wait(0.5, None) == pytest.approx(0.5 / (2 * (1 - 0.5)), rel=0.01)  # Pollaczek and Khinchine


def test_a_queue_with_exponential_service_waits_as_long_as_m_m_1() -> None:
    assert mean_wait(0.5, Jitter("exponential")) == pytest.approx(0.5 / (1 - 0.5), rel=0.01)


def test_a_batch_waits_for_its_window_or_until_it_is_full() -> None:
    served = requests(0.0, 0.1, 0.2, 5.0)
    history = simulate(served, lambda batch: 1.0, Queue(batch=3, window=0.5))
    assert [request.begun for request in served] == [0.2, 0.2, 0.2, 5.5]
    assert history.time == [0.2, 1.2, 5.5, 6.5]
    assert history.running == [3, 0, 1, 0] and not any(history.waiting)


def test_a_full_queue_turns_requests_away() -> None:
    served = requests(0.0, 0.1, 0.2, 0.3)
    simulate(served, lambda batch: 1.0, Queue(limit=2))
    assert [request.dropped for request in served] == [False, False, False, True]


def test_history_counts_what_all_servers_compute() -> None:
    history = simulate(requests(0.0, 0.5, 0.75, 0.75), lambda batch: 1.0, Queue(deadline=0.5), servers=2)
    assert history.time == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert history.running == [1, 2, 2, 1, 0]  # the third goes to the first server, and the fourth is too late
    assert history.waiting == [0, 0, 1, 0, 0]


def test_a_request_beyond_its_deadline_is_not_computed() -> None:
    served = requests(0.0, 0.1, 0.2)
    simulate(served, lambda batch: 1.0, Queue(deadline=1.0))
    assert [request.dropped for request in served] == [False, False, True]


def test_two_servers_halve_the_queue() -> None:
    served = requests(0.0, 0.0, 0.0, 0.0)
    simulate(served, lambda batch: 1.0, Queue(), servers=2)
    assert [request.last for request in served] == [1.0, 1.0, 2.0, 2.0]


def test_clients_send_the_next_request_when_they_have_their_answer() -> None:
    served = requests(*[0.0] * 6)
    simulate(served, lambda batch: 1.0, Queue(), clients=2)
    assert [request.last for request in served] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert [request.arrival for request in served] == [0.0, 0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_batch_is_straight_in_the_time_of_the_host() -> None:
    service = Service([1, 3], np.asarray([np.maximum(SLOWER, 1.0), np.maximum(SLOWER, 2.0)]))
    assert [service.seconds(1, slower) for slower in (0.0, 0.1, 3.0, 40.0)] == pytest.approx([1.0, 1.0, 3.0, 40.0])
    assert service.seconds(2, 0.0) == pytest.approx(1.5)


def test_jitter_has_its_distribution() -> None:
    random = np.random.default_rng(0)
    factors = [Jitter.parse("lognormal:0.3").factor(random) for _ in range(20_000)]
    assert np.median(factors) == pytest.approx(1, rel=0.02)
    assert np.log(factors).std() == pytest.approx(0.3, rel=0.03)
    assert np.mean([Jitter.parse("exponential").factor(random) for _ in range(20_000)]) == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("text", ["normal:1", "lognormal", "lognormal:0", "lognormal:x", "lognormal:9"])
def test_another_jitter_is_refused(text: str) -> None:
    with pytest.raises(BringupError, match="jitter must be lognormal:SIGMA"):
        Jitter.parse(text)


def test_an_idle_server_answers_at_once() -> None:
    served = requests(0.0, 10.0)
    simulate(served, lambda batch: 1.0, Queue())
    assert [request.last for request in served] == [1.0, 11.0] and math.isclose(served[1].begun, 10.0)
