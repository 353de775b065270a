"""The program's own Python is shown if it takes longer than the step, with its line; the emulation's time is not."""

import time
from collections.abc import Callable

import pytest
import torch
from torch.utils.data import DataLoader

import bringup
from bringup.recording.rows import H2D, IN_BACKWARD, LAUNCH, STEP
from bringup.report import writer
from bringup.report.lines import lines
from bringup.report.prediction import Prediction
from bringup.timeline import clock
from tests.analyse.programs import four_products

MS = 1_000_000


def recorded(prepare: Callable[[], object] = lambda: None, steps: int = 8) -> bringup.Trace:
    """Record steps whose host times are then set to nothing, so that a busy machine changes no result."""
    x = torch.ones(64, 64, device="chip")
    with bringup.record() as trace:
        for _ in range(steps):
            prepare()
            (x @ x).relu()
            bringup.step()
    trace.columns["host_ns"][:] = 0
    return trace


def first_launches(trace: bringup.Trace) -> list[int]:
    return [row for row in range(len(trace)) if trace.columns["kind"][row] == LAUNCH][::2]


def shown(prediction: Prediction) -> dict[str, str]:
    return {line.role: line.text for line in lines(prediction.summary)}


def test_python_between_steps_is_shown_with_the_line_of_the_launch() -> None:
    trace = recorded()
    trace.columns["host_ns"][first_launches(trace)] = 20 * MS
    prediction = bringup.price(trace, "t4")
    summary = prediction.summary
    assert summary.own_seconds == 0.02 and summary.step_seconds < 1e-3, "it is no part of the step"
    (item,) = summary.own
    assert not item.sleeps and f"{item.file}:{item.line}" in trace.lines
    text = shown(prediction)["own-time"]
    assert "own Python 20.0 ms per step" in text and f"before the launch at {item.file}:{item.line}" in text


def test_sleeps_of_a_generator_are_shown_with_their_line() -> None:
    summary = bringup.price(recorded(lambda: time.sleep(0.01)), "t4").summary
    (item,) = summary.own
    assert item.sleeps and summary.own_seconds == 0.01
    with open(__file__, encoding="utf-8") as file:
        text = file.read().splitlines()[item.line - 1]
    assert "time.sleep(0.01)" in text and item.file.endswith("test_own_time.py")


def test_time_of_few_steps_does_not_count() -> None:
    trace = recorded()
    trace.columns["host_ns"][first_launches(trace)[:3]] = 10_000 * MS
    summary = bringup.price(trace, "t4").summary
    assert summary.own_seconds == 0 and summary.own == []


@pytest.mark.parametrize("nanoseconds", [50_000, 400_000])
def test_time_of_launching_does_not_count(nanoseconds: int) -> None:
    trace = recorded()
    trace.columns["host_ns"][:] = nanoseconds
    prediction = bringup.price(trace, "t4")
    assert prediction.summary.own == [] and "own-time" not in shown(prediction)


def test_first_launches_of_a_signature_do_not_count() -> None:
    with bringup.record() as trace:
        for size in range(64, 72):  # the emulation works out each of them
            torch.ones(size, size, device="chip").relu()
            bringup.step()
    columns = trace.columns
    columns["host_ns"][:] = 0
    columns["host_ns"][columns["kind"] == LAUNCH] = 20 * MS
    assert bringup.price(trace, "t4").summary.own == []


def test_guards_of_compiled_graphs_do_not_count() -> None:
    trace = recorded()
    trace.columns["host_ns"][first_launches(trace)] = 2 * MS
    assert bringup.price(trace, "t4").summary.own_seconds == 0.002
    trace.about["compiled_graphs"] = 2
    assert bringup.price(trace, "t4").summary.own == []


def test_clocks_that_show_chip_time_take_none_of_the_program() -> None:
    x, spent = torch.ones(64, 64, device="chip"), []
    with bringup.record() as trace, clock.shown():
        for _ in range(4):
            x.relu()
            torch.chip.synchronize()  # type: ignore[attr-defined]
            began = time.thread_time_ns()
            time.perf_counter()
            spent.append(time.thread_time_ns() - began)
            bringup.step()
    assert min(spent) > trace.columns["host_ns"][trace.columns["kind"] == STEP].min()


def test_time_below_the_step_does_not_count() -> None:
    trace, step = four_products()
    for share, is_shown in ((0.9, False), (1.1, True)):
        trace.columns["host_ns"][:] = 0
        trace.columns["host_ns"][trace.columns["kind"] == LAUNCH] = int(share * step * 1e9)
        assert bool(bringup.price(trace, "t4").summary.own) == is_shown


def test_the_backward_pass_does_not_count() -> None:
    model = torch.nn.Linear(8, 8).to("chip")
    with bringup.record() as trace:
        for _ in range(4):
            model(torch.ones(4, 8, device="chip")).sum().backward()
            bringup.step()
    columns = trace.columns
    columns["host_ns"][:] = 0
    columns["host_ns"][(columns["kind"] == LAUNCH) & (columns["phase"] == IN_BACKWARD)] = 50 * MS
    assert bringup.price(trace, "t4").summary.own == []


def test_batches_of_a_loader_are_input_only() -> None:
    loader = iter(DataLoader([torch.ones(2)] * 64, batch_size=2))  # type: ignore[arg-type]
    trace = recorded(lambda: next(loader).to("chip"))
    for item in trace.about["inputs"]:
        item["batch_seconds"] = 0.02
    trace.columns["host_ns"][trace.columns["kind"] == H2D] = 20 * MS
    summary = bringup.price(trace, "t4").summary
    assert summary.input_seconds == 0.02 and summary.own == []


def test_waits_for_the_chip_use_no_time_of_the_host() -> None:
    x = torch.ones(64, 64, device="chip")
    with bringup.record() as trace:
        for _ in range(4):
            for _ in range(50):
                x = x @ x
            torch.chip.synchronize()  # type: ignore[attr-defined]
            bringup.step()
    assert bringup.price(trace, "t4").summary.own == []


def test_a_measured_step_has_its_python_already() -> None:
    trace = recorded()
    trace.columns["host_ns"][first_launches(trace)] = 20 * MS
    summary = bringup.price(trace, "t4", host_clock="measured").summary
    assert summary.own == [] and summary.step_seconds > 0.02


def test_measured_time_does_not_change_the_id_of_a_run() -> None:
    ids = set()
    for nanoseconds in (20 * MS, 30 * MS):
        trace = recorded()
        trace.columns["host_ns"][first_launches(trace)] = nanoseconds
        trace.about["sleeps"] = [{"line": "train.py:3", "rows": [3], "seconds": [nanoseconds * 1e-9]}]
        ids.add(writer.run_id(bringup.price(trace, "t4")))
    assert len(ids) == 1


def test_sleep_is_as_before_when_the_recording_ends() -> None:
    before = time.sleep
    recorded()
    assert time.sleep is before
