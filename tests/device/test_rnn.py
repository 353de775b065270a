"""Recurrent layers: one launch a stack where the chip's library has such kernels, with the values of the cells."""

from typing import Any

import pytest
import torch
from torch import nn

import bringup
from bringup.process import process
from bringup.recording.rows import LAUNCH

CHIP = torch.device("chip:0")


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.ones(1, device=CHIP)  # the first use chooses the chip
    chip = process.chosen_chip()
    ops = chip.ops.model_copy(update={"groups": {**chip.ops.groups, "rnn": ["float32"]}})
    monkeypatch.setattr(process, "chip", chip.model_copy(update={"ops": ops}))


def names(trace: bringup.Trace) -> list[str]:
    return [trace.signatures[row].base for row in trace.columns["signature"][trace.columns["kind"] == LAUNCH]]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"batch_first": True}, {"bias": False}])
@pytest.mark.usefixtures("with_kernels")
def test_values_and_gradients_are_those_of_the_cpu(kind: Any, options: dict[str, bool]) -> None:
    results: dict[str, list[torch.Tensor]] = {}
    for device in ("cpu", "chip"):
        torch.manual_seed(0)
        layer = kind(6, 5, 2, **options).to(device)
        x = torch.randn(7, 3, 6).to(device).requires_grad_()
        with bringup.record() as trace:
            output, state = layer(x)
            (output.square().sum() + (state[0] if kind is nn.LSTM else state).sum()).backward()
        results[device] = [output, x.grad, *(parameter.grad for parameter in layer.parameters())]
    for here, there in zip(results["chip"], results["cpu"], strict=True):
        torch.testing.assert_close(here.cpu(), there)
    mode = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "rnn_tanh"}[kind]
    assert names(trace).count(mode) == names(trace).count("rnn_backward") == 1
    assert not {"mm", "addmm", "sigmoid", "tanh", "bmm"} & set(names(trace))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.usefixtures("with_kernels")
def test_packed_sequences_are_one_launch_too(kind: Any, bidirectional: bool) -> None:
    results: dict[str, list[torch.Tensor]] = {}
    for device in ("cpu", "chip"):
        torch.manual_seed(0)
        layer = kind(6, 5, 2, bidirectional=bidirectional).to(device)
        x = torch.randn(7, 3, 6).to(device).requires_grad_()
        with bringup.record() as trace:
            output, _ = layer(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([7, 4, 2])))
            padded, _ = nn.utils.rnn.pad_packed_sequence(output)
            padded.square().sum().backward()
        results[device] = [padded, x.grad, *(parameter.grad for parameter in layer.parameters())]
    for here, there in zip(results["chip"], results["cpu"], strict=True):
        torch.testing.assert_close(here.cpu(), there)
    mode = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "rnn_tanh"}[kind]
    assert names(trace).count(mode) == names(trace).count("rnn_backward") == 1 and "addmm" not in names(trace)
    (work,) = [signature.work for signature in trace.signatures if signature.base == mode]
    parts = 4 if bidirectional else 2
    assert work.kernels == parts * (2 * 7 + 8) and work.gemms[0].m == 7 + 4 + 2


@pytest.mark.usefixtures("with_kernels")
def test_inference_is_one_launch() -> None:
    layer, x = nn.LSTM(6, 5, 2).to(CHIP), torch.randn(7, 3, 6, device=CHIP)
    for context in (torch.no_grad, torch.inference_mode):
        with context(), bringup.record() as trace:
            layer(x)
        assert names(trace).count("lstm") == 1 and "addmm" not in names(trace)


def test_chip_without_kernels_launches_cells() -> None:
    layer, x = nn.LSTM(6, 5, 2).to(CHIP), torch.randn(7, 3, 6, device=CHIP)
    with bringup.record() as trace:
        layer(x)
    assert "lstm" not in names(trace) and len(names(trace)) > 2 * 7 * 2


@pytest.mark.usefixtures("with_kernels")
def test_work_counts_products_of_inputs_and_states() -> None:
    layer, x = nn.LSTM(6, 5, 2, bidirectional=True).to(CHIP), torch.randn(7, 3, 6, device=CHIP)
    with torch.no_grad(), bringup.record() as trace:
        layer(x)
    (work,) = [signature.work for signature in trace.signatures if signature.base == "lstm"]
    first, second = 7 * 3 * 20 * (6 + 5), 7 * 3 * 20 * (10 + 5)
    assert sum(gemm.flops for gemm in work.gemms) == 2 * 2 * (first + second)
    assert work.kernels == 2 * 2 * (2 * 7 + 8)
    assert work.tf32 == "rnn"


@pytest.mark.usefixtures("with_kernels")
def test_recording_with_stacks_is_priced_by_cells_elsewhere() -> None:
    layer, x = nn.LSTM(64, 64, 2).to(CHIP), torch.randn(50, 8, 64, device=CHIP)
    with torch.no_grad(), bringup.record() as trace:
        layer(x)
    fused, cells = (bringup.price(trace, chip=name).summary for name in ("a100-sxm-80", "max-1550"))
    assert fused.fallbacks == cells.fallbacks == []
    assert cells.step_seconds > 3 * fused.step_seconds


@pytest.mark.usefixtures("with_kernels")
def test_second_backward_needs_retain_graph() -> None:
    layer, x = nn.GRU(6, 5).to(CHIP), torch.randn(7, 3, 6, device=CHIP)
    loss = layer(x)[0].sum()
    loss.backward(retain_graph=True)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.usefixtures("with_kernels")
def test_training_with_an_optimizer_learns() -> None:
    torch.manual_seed(0)
    layer, head = nn.LSTM(4, 16).to(CHIP), nn.Linear(16, 1).to(CHIP)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.01)
    x = torch.randn(10, 8, 4, device=CHIP)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (head(layer(x)[0]) - x.sum(-1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
