"""Steps of very little work per launch: the CPU is faster than the chip, and the summary says so."""

import pytest
import torch

import bringup
from bringup.analyse.summary import Summary
from bringup.report.lines import lines
from tests.analyse.programs import four_products


def steps_of(size: int, dtype: torch.dtype = torch.float32, steps: int = 80) -> Summary:
    x = torch.ones(size, size, device="chip", dtype=dtype)
    with bringup.record() as trace:
        for _ in range(steps):
            (x @ x).relu()
            bringup.step()
    return bringup.price(trace, "t4", "xeon-8275cl").summary


def test_small_steps_are_faster_on_the_cpu() -> None:
    summary = steps_of(64)
    flops, products, all_bytes = 2 * 64**3 + 64**2, 3 * 64 * 64 * 4, 5 * 64 * 64 * 4
    kernels = 2 * 5e-6 + (products + 2 * 64 * 64 * 4) / 140.8e9  # as a launch that a plan puts on the host
    assert summary.host_alone_seconds is not None and 3 * summary.host_alone_seconds < summary.step_seconds
    assert summary.host_alone_seconds == pytest.approx(flops / (4.61e12 / 24) + all_bytes / 8e9 + kernels)
    assert "the CPU is faster for this: one core of xeon-8275cl takes about" in "\n".join(
        line.text for line in lines(summary)
    )


def test_a_small_net_by_hand_is_faster_on_the_cpu() -> None:
    x, y = torch.ones(256, 32, device="chip"), torch.ones(256, 5, device="chip")
    a, b = torch.ones(32, 64, device="chip"), torch.ones(64, 5, device="chip")
    with bringup.record() as trace:
        for _ in range(20):
            hidden = (x @ a).clamp(min=0)
            error = 2 * (hidden @ b - y)
            to_a = x.t() @ ((error @ b.t()) * (hidden > 0))
            b -= 1e-6 * (hidden.t() @ error)
            a -= 1e-6 * to_a
            bringup.step()
    summary = bringup.price(trace, "t4", "xeon-8275cl").summary
    assert summary.host_alone_seconds is not None and 2 * summary.host_alone_seconds < summary.step_seconds


def test_work_for_the_chip_is_not_compared() -> None:
    assert bringup.price(four_products()[0], "t4").summary.host_alone_seconds is None
    assert steps_of(256).host_alone_seconds is None, "a core needs longer than the launches take"
    assert steps_of(64, steps=4).host_alone_seconds is None, "so few steps are not worth a word"
    assert steps_of(64, torch.float16).host_alone_seconds is None, "nor are numbers that a CPU multiplies slowly"


def test_float64_and_small_differences_are_not_compared() -> None:
    assert steps_of(64, torch.float64).host_alone_seconds is None, "host files have no rate of float64"
    assert steps_of(96).host_alone_seconds is None, "a core that reaches half of its peak is no faster"


def test_a_recording_without_steps_is_not_compared() -> None:
    x = torch.ones(64, 64, device="chip")
    with bringup.record() as trace:
        (x @ x).relu()
    assert bringup.price(trace, "t4").summary.host_alone_seconds is None
