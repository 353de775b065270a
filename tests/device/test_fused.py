"""Operators that are one kernel on accelerators: values and gradients as the CPU's, and one launch each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bringup
from bringup.recording.rows import LAUNCH


def operators(call: Callable[[], object]) -> list[str]:
    """The names of the operators that the second call launches."""
    call()
    with bringup.record() as trace:
        call()
    return [trace.signatures[number].op for number in trace.columns["signature"][trace.columns["kind"] == LAUNCH]]


def attend(device: str, inputs: list[torch.Tensor], **options: object) -> list[torch.Tensor]:
    """The result of attention with dropout, and its gradients."""
    torch.manual_seed(3)
    leaves = [tensor.to(device).requires_grad_() for tensor in inputs]
    mask = options.pop("attn_mask", None)
    mask = mask.to(device) if isinstance(mask, torch.Tensor) else None
    result = F.scaled_dot_product_attention(*leaves, attn_mask=mask, dropout_p=0.25, **options)  # type: ignore[arg-type]
    result.square().sum().backward()
    return [result.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["plain", "causal", "added mask", "boolean mask", "shared keys", "scaled"])
def test_attention_with_dropout_draws_and_computes_as_the_cpu(form: str, dtype: torch.dtype) -> None:
    heads = 2 if form == "shared keys" else 4
    inputs = [torch.randn(2, count, length, 8, dtype=dtype) for count, length in ((4, 16), (heads, 12), (heads, 12))]
    options: dict[str, object] = {
        "plain": {},
        "causal": {"is_causal": True},
        "added mask": {"attn_mask": torch.randn(16, 12, dtype=dtype)},
        "boolean mask": {"attn_mask": torch.rand(2, 1, 16, 12) > 0.3},
        "shared keys": {"enable_gqa": True},
        "scaled": {"scale": -0.5},
    }[form]
    close = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    computed, expected = attend("chip", inputs, **options), attend("cpu", inputs, **options)
    assert len(computed) == len(expected) == 4
    for mine, theirs in zip(computed, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=close, atol=close)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_attention_is_one_launch_each_way_and_keeps_no_matrix_of_weights(dropout: float) -> None:
    query = torch.randn(2, 4, 256, 16, device="chip", dtype=torch.bfloat16, requires_grad=True)

    def step() -> None:
        F.scaled_dot_product_attention(query, query, query, dropout_p=dropout, is_causal=True).sum().backward()

    names = operators(step)
    assert sum("attention" in name for name in names) == 2 and not any("bmm" in name for name in names)
    before = torch.chip.memory_allocated()
    torch.chip.reset_peak_memory_stats()
    step()
    weights = 2 * 4 * 256 * 256 * 2
    assert torch.chip.max_memory_allocated() - before < weights


@pytest.mark.parametrize("compiled", [False, True])
def test_a_row_that_is_masked_as_a_whole_is_zero(compiled: bool) -> None:
    mask = torch.ones(4, 4, dtype=torch.bool, device="chip")
    mask[2] = False
    query = torch.randn(1, 2, 4, 8, device="chip", requires_grad=True)

    def attention(query: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, query, query, mask, 0.1)

    result = (torch.compile(attention) if compiled else attention)(query)
    result.sum().backward()
    assert query.grad is not None and query.grad.isfinite().all() and not result[:, :, 2].any()


def test_attention_may_run_backward_twice_through_one_graph() -> None:
    query = torch.randn(1, 2, 8, 4, device="chip", requires_grad=True)
    result = F.scaled_dot_product_attention(query, query, query, dropout_p=0.5).sum()
    first, second = (torch.autograd.grad(result, query, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first.cpu(), second.cpu())


def test_attention_of_everything_or_nothing_dropped_is_torchs() -> None:
    query = torch.randn(1, 2, 8, 4)
    for dropout in (0.0, 1.0):
        mine = F.scaled_dot_product_attention(*[query.to("chip")] * 3, dropout_p=dropout)
        theirs = F.scaled_dot_product_attention(query, query, query, dropout_p=dropout)
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_dropout_is_one_launch_and_draws_as_the_cpu() -> None:
    for dtype in (torch.float32, torch.float16):
        torch.manual_seed(0)
        expected = F.dropout(torch.ones(1000, dtype=dtype), 0.3)
        torch.manual_seed(0)
        assert torch.equal(F.dropout(torch.ones(1000, dtype=dtype, device="chip"), 0.3).cpu(), expected)
    x = torch.ones(64, 8, device="chip", requires_grad=True)
    assert operators(lambda: F.dropout(x, 0.1)) == ["aten::native_dropout"]
    kept = F.dropout(x, 0.1)
    kept.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, kept.detach())
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.native_dropout(torch.ones(4, device="chip", dtype=torch.int32), 0.5, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32,), (16, 32)])
def test_rms_norm_is_one_launch_each_way(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    data, weight = torch.randn(4, 16, 32, dtype=dtype), torch.randn(shape, dtype=dtype)

    def run(device: str, weighted: bool = True) -> list[torch.Tensor]:
        x, w = (tensor.to(device, copy=True).requires_grad_() for tensor in (data, weight))
        result = F.rms_norm(x, shape, w if weighted else None, 1e-5)
        result.float().pow(3).sum().backward()
        return [result.detach().cpu(), *(leaf.grad.cpu() for leaf in (x, w) if leaf.grad is not None)]

    for weighted in (True, False):
        for mine, theirs in zip(run("chip", weighted), run("cpu", weighted), strict=True):
            torch.testing.assert_close(mine, theirs)
    names = operators(lambda: run("chip"))
    assert [name for name in names if "norm" in name] == ["aten::_fused_rms_norm", "aten::_fused_rms_norm_backward"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_a_recurrent_cell_is_two_products_and_one_kernel(kind: type[nn.LSTMCell | nn.GRUCell], bias: bool) -> None:
    cell, data = kind(8, 16, bias=bias), torch.randn(4, 8)

    def gradients(device: str) -> list[torch.Tensor]:
        cell.to(device).zero_grad()
        state = None
        for _ in range(3):
            state = cell(data.to(device), state)
        (state[0] + state[1] if isinstance(state, tuple) else state).sum().backward()
        return [parameter.grad.cpu().clone() for parameter in cell.parameters() if parameter.grad is not None]

    for theirs, mine in zip(gradients("cpu"), gradients("chip"), strict=True):
        torch.testing.assert_close(mine, theirs)
    on_chip = data.to("chip")
    names = operators(lambda: cell(on_chip))
    assert sum("_thnn_fused" in name for name in names) == 1 and sum(name == "aten::mm" for name in names) == 2
    assert not any("sigmoid" in name or "tanh" in name for name in names)


def test_dropout_adds_only_its_own_launches_to_a_transformer_in_training() -> None:
    """The public configurations of GPT-2 and BERT train with dropout in attention."""

    def train(dropout: float) -> Counter[str]:
        block = nn.TransformerEncoderLayer(64, 4, 128, dropout, batch_first=True).to("chip")
        data = torch.randn(2, 16, 64, device="chip")
        return Counter(operators(lambda: block(data).sum().backward()))

    more = train(0.1) - train(0.0)
    more = Counter({name: count for name, count in more.items() if "attention" not in name and "copy" not in name})
    assert more == {"aten::native_dropout": 3, "aten::native_dropout_backward": 3}  # outside of attention


@pytest.mark.parametrize("form", ["plain", "causal", "boolean mask"])
def test_compiled_attention_with_dropout_is_the_same_kernel(form: str) -> None:
    mask = torch.rand(16, 16, device="chip") > 0.2
    options: dict[str, Any] = {"plain": {}, "causal": {"is_causal": True}, "boolean mask": {"attn_mask": mask}}[form]

    def attention(query: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, query, query, dropout_p=0.3, **options)

    data, results = torch.randn(2, 4, 16, 8), []
    compiled = torch.compile(attention)
    for run in (attention, compiled):
        query = data.to("chip").requires_grad_()
        torch.manual_seed(5)
        result = run(query)
        result.square().sum().backward()
        results.append((result.detach().cpu(), query.grad.cpu() if query.grad is not None else None))
    torch.testing.assert_close(results[1], results[0])
    query = data.to("chip")
    names = operators(lambda: compiled(query))
    assert sum("attention" in name for name in names) == 1 and not any("bmm" in name for name in names)


def test_compiled_dropout_draws_and_compares_in_one_kernel() -> None:
    layer = torch.compile(nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Dropout(0.1)).to("chip"))
    data = torch.randn(32, 64, device="chip")
    names = operators(lambda: layer(data))
    assert len(names) == 3 and sum("inductor_random" in name for name in names) == 1, names
    assert [name for name in names if name.startswith("prims::")] == ["prims::inductor_seeds"], "as Inductor, by ATen"
