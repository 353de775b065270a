"""Broken files of every format end in the answer or in one sentence. The long way: python -m tests.fuzz_files."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import fuzz_files

CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@pytest.mark.parametrize("name", fuzz_files.FORMATS)
@settings(max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=CHECKS)
@given(rng=st.randoms(use_true_random=False))
def test_broken_file_is_read_or_refused_in_one_sentence(name: str, rng: random.Random) -> None:
    outcome, reason = fuzz_files.outcome_of(name, rng)
    assert outcome not in fuzz_files.FAULTS, reason


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz_files.FORMATS)
def test_campaign_finds_neither_traceback_nor_crash_nor_hang(name: str) -> None:
    faults = [found for found in fuzz_files.campaign(name, seed=1, count=2000) if found[1] in fuzz_files.FAULTS]
    assert not faults


@pytest.mark.parametrize("name", ["trace", "scorecard"])
def test_campaign_tells_the_outcomes_apart(name: str) -> None:
    found = list(fuzz_files.campaign(name, seed=1, count=40))
    assert [number for number, _, _ in found] == list(range(40))
    assert {"accepted", "one sentence"} == {outcome for _, outcome, _ in found}


def test_campaign_notices_what_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_files, "_work", dies)
    found = list(fuzz_files.campaign("TTIR", seed=1, count=3))
    assert found == [(0, "accepted", ""), (1, "crash", "SIGSEGV"), (2, "accepted", "")]


def dies(name: str, seed: int, numbers: list[int], pipe: object) -> None:
    import os
    import signal

    send = pipe.send  # type: ignore[attr-defined]
    for number in numbers:
        send((number, None, ""))
        if number == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        send((number, "accepted", ""))
