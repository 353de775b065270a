"""Checkpoints that save nothing because what they rebuild is the peak, and checkpoints that do what they are for."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.analyse.programs import summary_of

HERE = "tests/analyse/test_checkpoints.py:"
MIB = 1 << 20
WIDTH, ROWS, LAYERS = 256, 4096, 8


class Model(nn.Module):
    def __init__(self, mode: str = "none", reentrant: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)) for _ in range(LAYERS)
        )
        self.mode = mode
        self.checkpoint = partial(checkpoint, use_reentrant=reentrant)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = self.checkpoint(layer, x) if self.mode == "each" else layer(x)
        return x


def step(model: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = torch.randn(ROWS, WIDTH, device="chip", requires_grad=True)
    model(x).square().mean().backward()


def whole(model: nn.Module, reentrant: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
    return partial(checkpoint, model, use_reentrant=reentrant)


def as_function(layers: nn.ModuleList) -> Callable[[torch.Tensor], torch.Tensor]:
    def run(x: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return partial(checkpoint, run, use_reentrant=False)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_the_whole_model_is_told_to_be_smaller(reentrant: bool) -> None:
    model = Model(reentrant=reentrant).to("chip")
    found = summary_of(lambda: step(whole(model, reentrant)))
    (item,) = found.memory_advice
    assert item.key == "whole-checkpoint" and "each of its 8 layers" in item.action
    # A layer has results of 8, 8 and 4 MiB; the last one's result is not read by a backward pass.
    assert item.bytes == pytest.approx((8 * 20 - 4) * MIB, rel=0.05)
    assert item.line.startswith(HERE) and item.line in item.cause
    model.zero_grad(set_to_none=True)
    model.mode = "each"
    assert item.peak_bytes == pytest.approx(summary_of(lambda: step(model)).peak_bytes, rel=0.05)
    assert item.saved_bytes == found.peak_bytes - item.peak_bytes


def test_a_checkpointed_function_names_its_line() -> None:
    layers = Model().to("chip").layers
    (item,) = summary_of(lambda: step(as_function(layers))).memory_advice
    assert item.line == f"{HERE}{as_function.__code__.co_firstlineno + 3}"
    assert "each of its 8 layers" in item.action


def test_a_region_without_layers_is_cut_into_parts() -> None:
    weight = torch.randn(WIDTH, WIDTH, device="chip", requires_grad=True)

    def run(x: torch.Tensor) -> torch.Tensor:
        for _ in range(50):
            x = torch.tanh(x @ weight)
        return x

    (item,) = summary_of(lambda: step(partial(checkpoint, run, use_reentrant=False))).memory_advice
    assert "10 parts of it, one after the other" in item.action  # of 100 launches


def test_without_a_checkpoint_there_is_no_advice() -> None:
    model = Model().to("chip")
    assert not summary_of(lambda: step(model)).memory_advice


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_each_layer_is_silent(reentrant: bool) -> None:
    model = Model("each", reentrant).to("chip")
    assert not summary_of(lambda: step(model)).memory_advice


@pytest.mark.parametrize("segments", [2, 4])
def test_segments_are_silent(segments: int) -> None:
    layers = nn.Sequential(*Model().layers).to("chip")
    assert not summary_of(
        lambda: step(lambda x: checkpoint_sequential(layers, segments, x, use_reentrant=False))
    ).memory_advice


def test_a_checkpoint_away_from_the_peak_is_silent() -> None:
    model = whole(Model().to("chip"))

    def program() -> None:
        step(model)
        torch.empty(512 * MIB, dtype=torch.uint8, device="chip")

    assert not summary_of(program).memory_advice


def test_a_small_checkpointed_part_of_a_model_is_silent() -> None:
    model, part = Model().to("chip"), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()).to("chip")
    assert not summary_of(lambda: step(lambda x: model(checkpoint(part, x, use_reentrant=False)))).memory_advice


def test_a_second_derivative_is_no_checkpoint() -> None:
    model = Model().to("chip")

    def program() -> None:
        x = torch.randn(ROWS, WIDTH, device="chip", requires_grad=True)
        (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        gradient.square().mean().backward()

    assert not summary_of(program).memory_advice


def test_a_backward_pass_with_a_checkpoint_is_one_step() -> None:
    model = whole(Model().to("chip"))
    found = summary_of(lambda: [step(model) for _ in range(4)])
    assert found.steps == 4 and not found.unlike_steps
