"""Broken files of every format end in the answer or in one sentence. The long way: python -m tests.fuzz_files."""

import os
import random
import signal
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import fuzz_files
from tests.campaign import campaign

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


def test_campaign_notices_what_dies_and_what_hangs() -> None:
    found = list(campaign(dies, [0, 1, 2, 3], seconds=5))
    assert found == [(0, "accepted", ""), (1, "crash", "SIGSEGV"), (2, "hang", "SIGKILL"), (3, "accepted", "")]


def dies(number: int) -> tuple[str, str]:
    if number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 2:
        time.sleep(600)
    return "accepted", ""
