"""Plans of attention: the host computes one for each new shape in half precision, and the advice that avoids them."""

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import bringup
from bringup.analyse.summary import Summary
from bringup.text import duration
from bringup.timeline.plans import Plans
from bringup.timeline.replay import replay

NO_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


def attend(length: int, *, dtype: torch.dtype = torch.bfloat16, depth: int = 64) -> None:
    query = torch.ones(1, 4, 1, depth, device="chip", dtype=dtype)
    key = torch.ones(1, 4, length, depth, device="chip", dtype=dtype)
    scaled_dot_product_attention(query, key, key)


def recorded(program: Callable[[], None], kernels: AbstractContextManager[None] | None = None) -> bringup.Trace:
    with bringup.dry(), bringup.record() as trace, kernels or nullcontext():
        program()
    return trace


def planned(trace: bringup.Trace) -> int:
    return len(Plans().first_uses(trace))


def test_every_new_length_is_planned_once() -> None:
    assert planned(recorded(lambda: [attend(length) for length in (8, 9, 9, 8, 10)] and None)) == 3


@pytest.mark.parametrize(
    "options", [{"dtype": torch.float32}, {"depth": 60}, {"depth": 512}], ids=["float32", "depth 60", "depth 512"]
)
def test_kernels_that_cudnn_lacks_need_no_plan(options: dict[str, object]) -> None:
    assert planned(recorded(lambda: attend(8, **options))) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("kernels", [NO_PLANS, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
def test_other_kernels_need_no_plan(kernels: list[SDPBackend] | SDPBackend) -> None:
    assert planned(recorded(lambda: attend(8), sdpa_kernel(kernels))) == 0


def test_cudnn_alone_needs_plans_too() -> None:
    assert planned(recorded(lambda: attend(8), sdpa_kernel(SDPBackend.CUDNN_ATTENTION))) == 1


def test_every_thread_has_plans_of_its_own() -> None:
    def program() -> None:
        attend(8)
        thread = threading.Thread(target=attend, args=(8,))
        thread.start()
        thread.join()

    assert planned(recorded(program)) == 2


def test_parts_of_a_recording_plan_what_the_whole_does() -> None:
    trace = recorded(lambda: [attend(length) for length in (8, 9, 8, 10, 9)] and None)
    plans, middle = Plans(), len(trace) // 2
    parts = 0
    for part in (slice(0, middle), slice(middle, None)):
        columns = {name: column[part] for name, column in trace.columns.items()}
        parts += len(plans.first_uses(replace(trace, columns=columns)))
    assert parts == planned(trace) == 3


class Decoder(nn.Module):
    def forward(self, length: int) -> None:
        attend(length)


def decode(lengths: Iterable[int] = tuple(range(100, 112))) -> None:
    decoder = Decoder()
    for length in lengths:
        decoder(length)


def summary_of(trace: bringup.Trace) -> Summary:
    return bringup.price(trace, "h100-sxm").summary


def test_a_chip_whose_library_plans_is_slower_by_its_plans() -> None:
    trace, host = recorded(decode), bringup.load_host()
    chip = bringup.load_chip("h100-sxm")
    assert chip.launch.attention_plan_ms is not None
    other = chip.model_copy(update={"launch": chip.launch.model_copy(update={"attention_plan_ms": None})})
    longer = replay(trace, chip, host).total_seconds - replay(trace, other, host).total_seconds
    assert longer == pytest.approx(12e-3 * chip.launch.attention_plan_ms, rel=1e-3)


def test_advice_is_to_use_kernels_without_plans() -> None:
    best = summary_of(recorded(decode)).bottlenecks[0]
    without = summary_of(recorded(decode, sdpa_kernel(NO_PLANS)))
    assert (best.remedy, best.numbers["plans"]) == ("attention-plans", 1)
    assert best.seconds == pytest.approx(best.numbers["plan_seconds"], rel=0.01)
    assert best.action.endswith(f"{duration(without.step_seconds)} per step")
    assert all(item.remedy != "attention-plans" for item in without.bottlenecks)


def test_fixed_lengths_get_no_advice() -> None:
    summary = summary_of(recorded(lambda: decode([100] * 12)))
    assert all(item.remedy != "attention-plans" for item in summary.bottlenecks)


@pytest.mark.parametrize("kernel", [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION])
@pytest.mark.parametrize("shape", ["causal", "mask", "grouped"])
def test_a_kernel_that_the_cpu_lacks_is_one_launch_and_right(kernel: SDPBackend, shape: str) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 16, 8, requires_grad=True) for heads in (4, 2, 2))
    if shape != "grouped":
        key, value = (torch.randn(2, 4, 16, 8, requires_grad=True) for _ in range(2))
    mask = torch.randn(16, 16) if shape == "mask" else None
    options = {"is_causal": shape == "causal", "enable_gqa": shape == "grouped"}
    expected = scaled_dot_product_attention(query, key, value, mask, **options)
    expected.sum().backward()
    theirs = [tensor.detach().to("chip").requires_grad_() for tensor in (query, key, value)]
    with bringup.record() as trace, sdpa_kernel(kernel):
        result = scaled_dot_product_attention(*theirs, None if mask is None else mask.to("chip"), **options)
        result.sum().backward()
    attention = [item.op for item in trace.signatures if "attention" in item.op]
    assert len(attention) == 2, attention
    torch.testing.assert_close(result.cpu(), expected.detach(), rtol=1e-5, atol=1e-6)
    for ours, cpu in zip(theirs, (query, key, value), strict=True):
        assert ours.grad is not None and cpu.grad is not None
        torch.testing.assert_close(ours.grad.cpu(), cpu.grad, rtol=1e-5, atol=1e-5)
