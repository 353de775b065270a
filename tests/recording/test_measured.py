"""The steps of a run on a driver, from its marks, and launches that do not end."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bringup.errors import BringupError
from bringup.recording import endless, measured
from bringup.recording.measured import steps_between
from bringup.recording.rows import BY_PROGRAM, FORWARD, LAUNCH, STEP


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
    looks = iter(range(40))
    done = threading.Event()

    def running_launches() -> tuple[list[int], list[str]]:
        look = next(looks, None)
        if look is None:
            done.set()
            return [], []
        return [100 + look, 8], ["aten::log(float32[4]) on chip:0", "aten::exp(float32[4]) on chip:1"]

    monkeypatch.setattr(torch.ops.bringup, "running_launches", running_launches)
    endless._watch(0.02, done)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "aten::exp(float32[4]) on chip:1 has not ended for 20.0 ms" in lines[0]


@pytest.mark.parametrize("text", ["0s", "soon"])
def test_time_of_a_kernel_must_be_a_positive_time(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRINGUP_KERNEL_LIMIT", text)
    with pytest.raises(BringupError, match="BRINGUP_KERNEL_LIMIT"):
        endless._limit()


def test_a_long_time_of_a_kernel_is_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRINGUP_KERNEL_LIMIT", "1000000000000s")
    assert endless._limit() == threading.TIMEOUT_MAX


def test_parts_of_a_launch_are_those_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    # relu_, and then nonzero, for which the host waits: its row is recorded after it ran.
    spans = torch.tensor([[0, 7, 0], [1, 8, 0], [1, 8, 0], [1, 9, 2]])
    times = torch.tensor([[0.0, 5e-6], [5e-6, 1e-6], [6e-6, 2e-6], [9e-6, 3e-6]], dtype=torch.float64)
    monkeypatch.setattr(torch.ops.bringup, "driver_spans", lambda: (spans, times, ["relu_", "nonzero"]))
    columns = {"kind": np.full(3, LAUNCH), "signature": np.array([0, 1, 1])}
    signatures = [SimpleNamespace(op="relu_"), SimpleNamespace(op="nonzero")]
    rows = measured.columns_of_rows(columns, signatures)  # type: ignore[arg-type]
    assert rows["measured_ns"].tolist() == [5000, 3000, 3000]
    assert rows["measured_begin_ns"].tolist() == [0, 5000, 9000]
