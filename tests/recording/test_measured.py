"""The steps of a run on a driver, from its marks, and launches that do not end."""

import threading
from typing import Any

import pytest
import torch

from bringup.errors import BringupError
from bringup.recording import measured
from bringup.recording.measured import steps_between
from bringup.recording.rows import BY_PROGRAM, FORWARD, STEP


def mark(kind: int, number: int, host: float, device: float = 0.0, launches: int = 1) -> dict[str, Any]:
    row = {"op": "aten::mm", "launches": launches}
    return {"kind": kind, "object": number, "host_seconds": host, "device_seconds": device, "rows": [row]}


def test_a_step_has_all_between_two_steps_of_the_optimizer() -> None:
    steps = steps_between([mark(STEP, 0, 1.0), mark(FORWARD, 7, 2.0), mark(STEP, 0, 4.0), mark(STEP, 0, 8.0)])
    assert steps.seconds == [3.0, 4.0]
    assert [len(rows) for rows in steps.rows] == [2, 1]


def test_optimizers_that_step_one_after_the_other_share_a_step() -> None:
    marks = [mark(STEP, number, 1.0) for _ in range(3) for number in (0, 1)]
    assert steps_between(marks).seconds == [2.0, 2.0]


def test_marks_of_the_program_come_before_those_of_optimizers() -> None:
    marks = [mark(STEP, number, 1.0) for _ in range(2) for number in (BY_PROGRAM, 0, 0)]
    assert steps_between(marks).seconds == [3.0]


def test_without_an_optimizer_steps_are_calls_of_the_module_that_launches_most() -> None:
    loss, model = mark(FORWARD, 1, 1.0), mark(FORWARD, 2, 5.0, launches=9)
    assert steps_between([model, loss, loss, model, loss, loss, model]).seconds == [7.0, 7.0]


def test_the_clock_of_the_device_counts_if_it_has_one() -> None:
    assert steps_between([mark(FORWARD, 1, 1.0, 0.25), mark(FORWARD, 1, 1.0, 0.5), mark(FORWARD, 1, 0.0)]).seconds == [
        0.25,
        0.5,
    ]


def test_one_call_is_no_step() -> None:
    assert steps_between([mark(FORWARD, 1, 1.0)]).seconds == []
    assert steps_between([]).seconds == []


def test_launch_that_does_not_end_is_named_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    running = iter([(0, ""), (7, "aten::log(float32[4]) on chip:0"), *[(8, "aten::exp(float32[4]) on chip:0")] * 40])
    done = threading.Event()

    def running_launch() -> tuple[int, str]:
        last = next(running, None)
        if last is None:
            done.set()
        return last or (0, "")

    monkeypatch.setattr(torch.ops.bringup, "running_launch", running_launch)
    measured._watch(0.02, done)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "aten::exp(float32[4]) on chip:0 has not ended for 20.0 ms" in lines[0]


@pytest.mark.parametrize("text", ["0s", "soon"])
def test_time_of_a_kernel_must_be_a_positive_time(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRINGUP_KERNEL_LIMIT", text)
    with pytest.raises(BringupError, match="BRINGUP_KERNEL_LIMIT"):
        measured._limit()
