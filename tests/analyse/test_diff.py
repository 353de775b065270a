"""Two runs, compared by module, line and operator."""

import numpy as np
import pytest
import torch
from torch import nn

import bringup
from bringup.analyse.diff import Diff, diff, row_seconds
from bringup.recording.trace import Trace
from bringup.timeline.steady import steady


def train(width: int = 64, *, sorts: bool = False, reads: bool = False) -> Trace:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 8)).to("chip")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(16, 64).to("chip")
    with bringup.record() as trace:
        for _ in range(4):
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if sorts:
                x.sort()
            if reads:
                loss.item()
    return trace


def compared(before: Trace, after: Trace) -> Diff:
    runs = [bringup.price(trace, chip="t4") for trace in (before, after)]
    return diff((runs[0].summary, runs[1].summary), (runs[0].timeline, runs[1].timeline))


@pytest.mark.parametrize("chip", ["t4", "edge-tpu", "tpu-v3"])
def test_seconds_of_the_rows_add_up_to_the_step(chip: str) -> None:
    priced = bringup.price(train(reads=True, sorts=True), chip=chip)
    *_, since, until = steady(priced.timeline)
    seconds = row_seconds(priced.timeline)
    assert (seconds >= 0).all()
    assert seconds.sum() == pytest.approx(until - since, rel=1e-6)


def test_chip_busy_belongs_to_launches() -> None:
    priced = bringup.price(train(2048), chip="t4")
    launched = priced.timeline.trace.columns["kind"] == 0
    long = launched & (priced.timeline.end - priced.timeline.start > 0)
    own = row_seconds(priced.timeline)[long].sum()
    assert own >= priced.device_seconds * (1 - 1e-9)  # the rest of their time is the host's calls


def test_equal_runs_have_no_difference() -> None:
    trace = train()
    result = compared(trace, trace)
    assert not (result.slower or result.faster or result.new or result.gone or result.memory)


def test_wider_layer_is_slower_and_holds_more() -> None:
    result = compared(train(8192), train(65536))  # too wide to wait for the host
    slower = {(part.group, part.name) for part in result.slower}
    assert ("module", "0") in slower and ("operator", "aten::mm") in slower
    assert not result.new and not result.gone
    module = next(part for part in result.memory if part.group == "module" and part.name == "0")
    assert module.peak_bytes[1] > module.peak_bytes[0]
    back = compared(train(65536), train(8192))
    assert {(part.group, part.name) for part in back.faster} == slower


def test_new_operator_is_new_and_then_gone() -> None:
    plain, sorting = train(), train(sorts=True)
    new = {(part.group, part.name): part for part in compared(plain, sorting).new}
    sort = new[("operator", "aten::sort")]
    assert sort.launches == (0.0, 1.0) and sort.seconds[0] == 0.0 < sort.seconds[1]
    gone = {(part.group, part.name) for part in compared(sorting, plain).gone}
    assert gone == set(new)


def moved(trace: Trace, by: int, after: int = 0) -> Trace:
    """Return the trace of the same program with lines added above those after a line."""

    def renamed(text: str) -> str:
        file, _, number = text.rpartition(":")
        return f"{file}:{int(number) + by}" if number.isdigit() and int(number) > after else text

    return Trace(
        trace.columns,
        trace.uses,
        trace.offsets,
        trace.signature_data,
        [renamed(text) for text in trace.lines],
        trace.modules,
        dict(trace.about),
    )


def test_lines_that_moved_are_the_same_lines() -> None:
    trace = train(sorts=True)
    result = compared(trace, moved(trace, 7))
    assert not (result.slower or result.faster or result.new or result.gone)


def test_lines_below_an_inserted_line_are_the_same_lines() -> None:
    plain, sorting = train(), train(sorts=True)
    result = compared(plain, moved(sorting, 3))
    new = [part for part in result.new if part.group == "line"]
    assert len(new) == 1 and new[0].launches == (0.0, 1.0)
    assert not [part for part in result.gone if part.group == "line"]


def test_empty_recordings_are_equal() -> None:
    with bringup.record() as nothing:
        pass
    assert np.array_equal(row_seconds(bringup.price(nothing, chip="t4").timeline), np.zeros(len(nothing)))
    result = compared(nothing, nothing)
    assert not (result.slower or result.new or result.gone)
