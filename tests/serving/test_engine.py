"""One engine: what a step holds, and what is conserved whatever arrives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bringup.serving.blocks import Blocks
from bringup.serving.engine import Engine, Limits, Speculation
from bringup.serving.fleet import Handover, simulate
from bringup.serving.requests import Request
from bringup.serving.steps import Chunk


class Linear:
    """1 ms per step, 1 us per prompt token, 10 us per decoding request, and 1 ns per token in the caches."""

    def seconds(self, chunks: Sequence[Chunk], requests: int, context: int, width: int = 1) -> float:
        tokens = sum(chunk.tokens for chunk in chunks)
        return 1e-3 + 1e-6 * tokens + 1e-5 * requests * width + 1e-9 * context

    def decode_seconds(self, requests: int, contexts: Any) -> Any:
        return 1e-3 + 1e-5 * requests + 1e-9 * contexts


def engine(limits: Limits | None = None, blocks: int = 1000, **options: Any) -> Engine:
    caching = options.pop("caching", True)
    return Engine(Linear(), limits or Limits(), Blocks(blocks, 16, caching), np.random.default_rng(0), **options)


def requests(*rows: tuple[float, int, int]) -> list[Request]:
    return [Request(number, *row) for number, row in enumerate(rows)]


def test_one_request_takes_a_prompt_and_a_step_per_further_token() -> None:
    (request,) = served = requests((0.5, 100, 3))
    simulate(served, [engine()])
    assert request.first == pytest.approx(0.5 + 1e-3 + 100e-6)
    assert request.last == pytest.approx(request.first + 2 * 1.01e-3 + (100 + 101) * 1e-9)


def test_the_blocks_of_a_run_of_steps_are_noted() -> None:
    one = engine()
    simulate(requests((0.0, 16, 4000)), [one])
    assert one.blocks.peak == max(one.history.blocks) == 251  # 4,015 tokens of 16 each


def test_a_prompt_beyond_the_budget_is_computed_in_chunks() -> None:
    (request,) = served = requests((0.0, 5000, 1))
    one = engine()
    simulate(served, [one])
    assert one.steps == 3
    assert request.first == pytest.approx(3e-3 + 5000e-6)


def test_separate_steps_compute_whole_prompts_or_decode() -> None:
    served = requests((0.0, 100, 50), (0.0101, 5000, 1))
    one = engine(Limits(prefill="separate"))
    simulate(served, [one])
    assert one.steps == 1 + 49 + 1
    assert served[0].last - served[0].first > 49e-3 + 6e-3  # it waits for the long prompt


def test_the_request_admitted_last_is_preempted_and_ends_later() -> None:
    served = requests((0.0, 150, 100), (0.0, 150, 100))
    one = engine(blocks=25)  # 400 tokens, and both need 498
    simulate(served, [one])
    assert (served[0].preemptions, served[1].preemptions) == (0, 1)
    assert served[1].last > served[0].last and one.blocks.used == 0


def test_priority_decides_who_is_preempted() -> None:
    served = requests((0.0, 150, 100), (0.0, 150, 100))
    served[0].priority = 1
    simulate(served, [engine(Limits(policy="priority"), blocks=25)])
    assert (served[0].preemptions, served[1].preemptions) == (1, 0)


def test_a_swapped_request_is_copied_instead_of_computed_again() -> None:
    rows = ((0.0, 150, 100), (0.0, 150, 100))
    again, copied = requests(*rows), requests(*rows)
    simulate(again, [engine(blocks=25, caching=False)])
    simulate(copied, [engine(Limits(preemption="swap", swap_seconds=1e-6), blocks=25)])
    assert copied[1].preemptions == again[1].preemptions == 1
    assert copied[1].last < again[1].last


def test_a_shared_prefix_is_computed_once() -> None:
    served = requests((0.0, 1000, 2), (1.0, 1000, 2))
    for request in served:
        request.prefix, request.shared = "system", 800
    simulate(served, [engine()])
    assert [request.read for request in served] == [0, 800]
    assert served[1].first - served[1].arrival == pytest.approx(1e-3 + 200e-6)


def test_without_the_cache_a_shared_prefix_is_computed_twice() -> None:
    served = requests((0.0, 1000, 2), (1.0, 1000, 2))
    for request in served:
        request.prefix, request.shared = "system", 800
    simulate(served, [engine(caching=False)])
    assert [request.read for request in served] == [0, 0]


def test_speculation_gives_the_expected_tokens_per_step() -> None:
    one = engine(Limits(speculation=Speculation(4, 0.7)))
    served = requests((0.0, 16, 20_001))
    one.blocks.total = 10_000
    simulate(served, [one])
    expected = (1 - 0.7**5) / (1 - 0.7)  # Leviathan et al., 2023, equation 1
    assert 20_000 / (one.steps - 1) == pytest.approx(expected, rel=0.02)


def test_runs_of_steps_equal_single_steps() -> None:
    random = np.random.default_rng(3)
    rows = [
        (float(random.exponential() * n / 50), int(random.integers(1, 400)), int(random.integers(1, 200)))
        for n in range(60)
    ]
    rows.sort()
    runs, single = requests(*rows), requests(*rows)
    simulate(runs, [engine(blocks=60)])
    alone = engine(blocks=60)
    advance = alone.advance
    alone.advance = lambda until=float("inf"), single=False: advance(until, True)  # type: ignore[method-assign]
    simulate(single, [alone])
    assert sum(request.preemptions for request in runs) > 0
    np.testing.assert_allclose([r.last for r in runs], [r.last for r in single], rtol=1e-12)


rows_of = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 200), st.integers(1, 120)), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows_of,
    st.sampled_from(["fcfs", "priority"]),
    st.sampled_from(["chunked", "separate"]),
    st.sampled_from(["recompute", "swap"]),
    st.sampled_from([None, Speculation(3, 0.6)]),
    st.booleans(),
    st.integers(20, 60),
)
def test_every_request_ends_and_the_cache_is_never_too_full(
    rows: list[tuple[float, int, int]],
    policy: Any,
    prefill: Any,
    preemption: Any,
    speculation: Speculation | None,
    caching: bool,
    blocks: int,
) -> None:
    served = requests(*sorted(rows))
    for request in served:
        request.priority = request.number % 3
        if request.number % 2:
            request.prefix, request.shared = request.number % 4, min(request.prompt, 64)
    limits = Limits(64, 8, prefill, policy, preemption, 1e-6, speculation)
    one = engine(limits, blocks, caching=caching)
    simulate(served, [one])
    assert all(request.ended and request.generated == request.output for request in served)
    assert all(request.arrival <= request.begun <= request.first <= request.last for request in served)
    assert max(one.history.blocks) <= one.blocks.total and one.blocks.used == 0
    assert one.preemptions == sum(request.preemptions for request in served)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    rows_of,
    st.sampled_from(["least", "round-robin", "prefix"]),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(0, 5),
)
def test_several_engines_serve_all_requests(
    rows: list[tuple[float, int, int]], router: Any, first: int, after: int, clients: int
) -> None:
    served = requests(*sorted(rows))
    for request in served:
        request.prefix, request.shared = request.number % 3, min(request.prompt, 32)
    engines = [engine(Limits(64, 8), 40, stops_after_prompt=after > 0) for _ in range(first)]
    decoding = [engine(Limits(64, 8), 40) for _ in range(after)]
    handover = Handover(decoding, lambda request: 1e-3) if after else None
    simulate(served, engines, router, clients=clients, handover=handover)
    assert all(request.ended for request in served)
    assert all(one.blocks.used == 0 and not one.busy for one in engines + decoding)
    assert all(request.first <= request.last for request in served)


def test_clients_keep_as_many_requests_in_the_system() -> None:
    served = requests(*[(0.0, 16, 20)] * 40)
    one = engine()
    simulate(served, [one], clients=4)
    running = [run + wait for run, wait in zip(one.history.running, one.history.waiting, strict=True)]
    assert max(running) <= 4 and all(request.ended for request in served)
    assert running[-1] == one.history.blocks[-1] == 0, "the history ends when nothing runs any more"


def test_a_handover_takes_its_time() -> None:
    (request,) = served = requests((0.0, 100, 3))
    prefill, decode = engine(stops_after_prompt=True), engine()
    simulate(served, [prefill], handover=Handover([decode], lambda request: 0.25))
    assert request.first == pytest.approx(1.1e-3)
    assert request.last == pytest.approx(1.1e-3 + 0.25 + 2 * 1.01e-3 + 201e-9)
    assert decode.steps == 2 and prefill.steps == 1 and request.engine == 1
