"""What-ifs of a long recording are replayed on its first steps, if these have the figures of the whole one."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import bringup
from bringup.analyse import advice, window
from bringup.analyse.summarize import summarize
from bringup.machine.files import load_chip, load_host
from bringup.timeline.replay import Timeline, replay

STEPS = 60


@pytest.fixture(autouse=True)
def _short_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "LEAST_ROWS", 0)
    monkeypatch.setattr(window, "STEPS", 10)


def recorded(step: Callable[[int], object]) -> Timeline:
    with bringup.record() as trace:
        for number in range(STEPS):
            step(number)
            bringup.step()
    return replay(trace, load_chip("t4"), load_host())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(batch.to("chip")).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


def trained(read_every: int = 1) -> Timeline:
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.LayerNorm(512), nn.Linear(512, 256)).to("chip")
    optimizer = torch.optim.AdamW(model.parameters())
    batch = torch.randn(64, 256)

    def step(number: int) -> None:
        loss = train(model, optimizer, batch)
        if number % read_every == 0:
            loss.item()

    return recorded(step)


@pytest.mark.parametrize("read_every", [1, 10])
def test_advice_of_the_window_is_that_of_the_whole(read_every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = trained(read_every)
    assert len(window.window(timeline).trace) < len(timeline.trace) / 4
    short = advice.advise(timeline, summarize(timeline))
    monkeypatch.setattr(advice, "window", lambda timeline: timeline)
    whole = advice.advise(timeline, summarize(timeline))
    assert short.bottlenecks and len(short.what_if) > 3
    for one, other in zip(short.bottlenecks, whole.bottlenecks, strict=True):
        assert (one.key, one.remedy, one.line) == (other.key, other.remedy, other.line)
        assert one.seconds == pytest.approx(other.seconds, rel=1e-6)
        assert one.numbers == pytest.approx(other.numbers, rel=1e-6)
    for changed, expected in zip(short.what_if, whole.what_if, strict=True):
        assert changed.key == expected.key
        assert changed.step_seconds == pytest.approx(expected.step_seconds, rel=1e-6)


def test_steps_of_several_kinds_are_replayed_whole() -> None:
    x = torch.ones(64, 64, device="chip")
    timeline = recorded(lambda number: x @ x if number % 2 else (x + x) @ x)
    assert window.window(timeline) is timeline


def test_later_steps_of_another_kind_are_replayed_whole() -> None:
    x = torch.ones(64, 64, device="chip")
    timeline = recorded(lambda number: x @ x if number < 30 else (x + x) @ x)
    assert window.window(timeline) is timeline


def test_recording_whose_memory_is_fullest_later_is_replayed_whole() -> None:
    x = torch.ones(64, 64, device="chip")
    kept = []
    timeline = recorded(lambda number: kept.append(x @ x))
    assert window.window(timeline) is timeline


def test_measured_times_are_replayed_whole() -> None:
    x = torch.ones(64, 64, device="chip")
    timeline = recorded(lambda number: x @ x)
    assert window.window(timeline) is not timeline
    measured = replay(timeline.trace, timeline.chip, timeline.host, host_clock="measured")
    assert window.window(measured) is measured


def test_recording_whose_first_steps_are_of_another_kind_is_replayed_as_a_whole() -> None:
    other, model = (nn.Linear(64, 64).to("chip") for _ in range(2))
    batch = torch.randn(8, 64, device="chip")

    def step(number: int) -> None:
        if number < 12:
            other(batch).relu()
        else:
            model(batch).sigmoid()

    timeline = recorded(step)
    assert not timeline.trace.step_work.alike[:10].any()
    assert window.window(timeline) is timeline
    advice.advise(timeline, summarize(timeline))
