"""TF32: torch's switches at every launch, the prices that follow from them, and the advice to turn them on."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional

import bringup
from bringup.analyse import tf32
from bringup.timeline.replay import replay


@pytest.fixture(autouse=True)
def torchs_defaults() -> Iterator[None]:
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(precision)
    torch._C._set_cudnn_allow_tf32(convolutions)


def product(side: int = 2048) -> bringup.Trace:
    with bringup.dry():
        x = torch.ones(side, side, device="chip")
        with bringup.record() as trace:
            x @ x
    return trace


def convolution(*, last: bool = False, window: int = 3, dtype: torch.dtype = torch.float32) -> bringup.Trace:
    with bringup.dry():
        x = torch.ones(16, 64, 32, 32, device="chip", dtype=dtype)
        w = torch.ones(64, 64, window, window, device="chip", dtype=dtype)
        if last:
            x, w = (tensor.to(memory_format=torch.channels_last) for tensor in (x, w))
        with bringup.record() as trace:
            functional.conv2d(x, w)
    return trace


def seconds(trace: bringup.Trace, chip: str) -> float:
    return float(replay(trace, bringup.load_chip(chip), bringup.load_host()).prices.seconds[-1])


def test_switches_are_those_of_torch_when_the_launch_was_made() -> None:
    with bringup.dry():
        x = torch.ones(64, 64, device="chip")
        image, filters = torch.ones(1, 8, 16, 16, device="chip"), torch.ones(8, 8, 3, 3, device="chip")
        with bringup.record() as trace:
            x @ x
            torch.set_float32_matmul_precision("high")
            x @ x
            torch.backends.cuda.matmul.allow_tf32 = False
            x @ x
            functional.conv2d(image, filters)
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                functional.conv2d(image, filters)
            x + x
    rows = trace.columns["signature"][trace.columns["signature"] >= 0]
    assert [trace.signatures[row].tf32 for row in rows] == [
        ("convolution", "rnn"),
        ("matmul", "convolution", "rnn"),
        ("convolution", "rnn"),
        ("convolution", "rnn"),
        (),
        ("convolution", "rnn"),
    ]
    assert ["tf32" in data for data in trace.signature_data] == [False, True, False, True, False]


def test_precision_of_products_and_of_convolutions_are_set_apart() -> None:
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        (data,) = product(64).signature_data
        assert data["tf32"] == ["matmul", "rnn"]
    finally:
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        torch.backends.cuda.matmul.fp32_precision = "ieee"


def test_products_use_tf32_only_where_torch_allows_it() -> None:
    exact = product()
    torch.set_float32_matmul_precision("high")
    fast = product()
    assert seconds(exact, "a100-sxm-80") > 4 * seconds(fast, "a100-sxm-80")
    for chip in ("t4", "v100-sxm", "mi300x", "tpu-v4"):  # no TF32, or libraries that do not follow the switch
        assert seconds(exact, chip) == seconds(fast, chip)


def test_convolutions_use_tf32_by_default() -> None:
    fast = convolution(last=True)
    torch._C._set_cudnn_allow_tf32(False)
    exact = convolution(last=True)
    assert seconds(exact, "a100-sxm-80") > 1.5 * seconds(fast, "a100-sxm-80")
    assert seconds(exact, "t4") == seconds(fast, "t4")


def test_conversions_of_the_layout_cost_channels_first_in_tf32_and_channels_last_without() -> None:
    first, last = convolution(), convolution(last=True)
    moved = 2 * 4 * (16 * 64 * 32 * 32 + 16 * 64 * 30 * 30 + 64 * 64 * 3 * 3)
    moving = moved / (bringup.load_chip("a100-sxm-80").memory.bandwidth_gb_s * 1e9)
    assert seconds(first, "a100-sxm-80") - seconds(last, "a100-sxm-80") > moving
    one = convolution(window=1)
    assert one.signatures[-1].work.conversions == 0  # a plain product
    torch._C._set_cudnn_allow_tf32(False)
    first, last = convolution(), convolution(last=True)
    assert seconds(last, "a100-sxm-80") - seconds(first, "a100-sxm-80") > moving


def test_half_precision_and_depthwise_convolutions_are_priced_as_before() -> None:
    half = convolution(dtype=torch.float16)
    torch._C._set_cudnn_allow_tf32(False)
    assert seconds(convolution(dtype=torch.float16), "a100-sxm-80") == seconds(half, "a100-sxm-80")


def linear_training() -> bringup.Trace:
    with bringup.dry():
        model = nn.Linear(4096, 4096).to("chip")
        x = torch.ones(4096, 4096, device="chip")
        with bringup.record() as trace:
            for _ in range(3):
                model(x).sum().backward()
                bringup.step()
    return trace


def test_advice_says_what_tf32_would_take() -> None:
    exact = bringup.price(linear_training(), chip="a100-sxm-80")
    (advice,) = [item for item in exact.summary.bottlenecks if item.remedy == "tf32"]
    assert "torch.set_float32_matmul_precision('high')" in advice.action
    torch.set_float32_matmul_precision("high")
    fast = bringup.price(linear_training(), chip="a100-sxm-80")
    assert advice.numbers["tf32_seconds"] == pytest.approx(fast.summary.step_seconds, rel=1e-6)
    assert advice.seconds == pytest.approx(exact.summary.step_seconds - fast.summary.step_seconds, rel=1e-6)
    assert not [item for item in fast.summary.bottlenecks if item.remedy == "tf32"]


def test_no_advice_without_tf32_or_without_float32_products() -> None:
    trace = linear_training()
    assert not [item for item in bringup.price(trace, chip="t4").summary.bottlenecks if item.remedy == "tf32"]
    with bringup.dry():
        x = torch.ones(4096, 4096, device="chip", dtype=torch.bfloat16)
        with bringup.record() as halves:
            for _ in range(3):
                x @ x
    timeline = replay(halves, bringup.load_chip("a100-sxm-80"), bringup.load_host())
    assert tf32.switches_off(timeline) == []


@pytest.mark.slow
def test_compiled_graph_keeps_the_switches() -> None:
    def multiply(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ x)

    x = torch.ones(64, 64, device="chip")
    torch._dynamo.reset()
    torch.set_float32_matmul_precision("high")
    with bringup.record() as trace:
        torch.compile(multiply)(x)
    products = [signature for signature in trace.signatures if signature.base == "mm"]
    assert [signature.tf32 for signature in products] == [("matmul", "convolution", "rnn")]
