"""MFU: the flops of products over the chip's peak."""

import pytest
import torch

import bringup
from bringup.machine.files import load_chip

N = 512


def products(dtype: torch.dtype, count: int) -> None:
    x = torch.ones(N, N, dtype=dtype, device="chip")
    for _ in range(count):
        x = x @ x


def test_mfu_is_flops_over_time_and_peak() -> None:
    with bringup.record() as trace:
        products(torch.float16, 3)
    for name in ("t4", "a100-sxm-80"):
        priced = bringup.price(trace, chip=name)
        peak = load_chip(name).matrix.tflops["float16"] * 1e12
        assert (priced.mfu_dtype, priced.mfu_peak_flops) == ("float16", peak)
        assert priced.mfu == pytest.approx(3 * 2 * N**3 / priced.step_seconds / peak)
        assert 0 < priced.mfu < 1


def test_denominator_is_the_peak_of_most_of_the_flops() -> None:
    with bringup.record() as trace:
        products(torch.float32, 1)
        products(torch.float16, 2)
    assert bringup.price(trace, chip="t4").mfu_dtype == "float16"


def test_additions_are_no_products() -> None:
    with bringup.record() as trace:
        torch.ones(N, device="chip").add_(1).exp_()
    priced = bringup.price(trace, chip="t4")
    assert priced.mfu is None and priced.mfu_dtype == "" and priced.mfu_peak_flops is None


def test_mfu_counts_every_chip_that_steps_use() -> None:
    with bringup.record() as trace:
        products(torch.float16, 1)
    one = bringup.price(trace, chip="t4").mfu_peak_flops
    with bringup.record() as both:
        products(torch.float16, 2)
    launches = (both.columns["kind"] == 0).nonzero()[0]
    both.columns["device"] = both.columns["device"].copy()
    both.columns["device"][launches[-1]] = 1
    assert bringup.price(both, chip="t4").mfu_peak_flops == 2 * one


def test_products_in_tf32_have_the_peak_of_tf32() -> None:
    x, weight = torch.ones(16, 64, 56, 56, device="chip"), torch.ones(64, 64, 3, 3, device="chip")
    with bringup.record() as trace:
        torch.nn.functional.conv2d(x, weight, padding=1)
    peaks = load_chip("a100-sxm-80").matrix.tflops
    priced = bringup.price(trace, chip="a100-sxm-80")
    assert (priced.mfu_dtype, priced.mfu_peak_flops) == ("tf32", peaks["tf32"] * 1e12)
    assert priced.mfu is not None and priced.mfu < 1
    assert bringup.price(trace, chip="t4").mfu_dtype == "float32", "a T4 has no TF32"
