"""What a kernel would save, from measured parts of a step."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bringup.drivers import next as next_kernel
from bringup.drivers.next import ranked
from bringup.errors import BringupError
from bringup.recording.driver_rows import middle_half, typical
from bringup.recording.rows import LAUNCH

PARTS = {"kernel_seconds": 0.0, "down_seconds": 0.0, "host_seconds": 0.0, "up_seconds": 0.0, "between_seconds": 0.0}


def row(op: str, launches: float, on_device: bool = False, possible: bool = True, **seconds: float) -> dict[str, Any]:
    counts = {"launches": launches, "bytes_down": 100, "bytes_up": 50}
    return {"op": op, "on_device": on_device, "reason": "", "kernel_possible": possible, **counts, **PARTS, **seconds}


def trace(rows: list[dict[str, Any]], work: dict[str, tuple[float, float]]) -> Any:
    """A recording in which each operator was launched once, with these bytes and operations of products."""
    numbers = np.asarray(list(work.values()), dtype=float).reshape(-1, 2)
    nothing = np.zeros(len(work))
    return SimpleNamespace(
        about={"driver": {"step_seconds": 1.0, "step_rows": rows}},
        columns={"kind": np.full(len(work), LAUNCH), "signature": np.arange(len(work))},
        signatures=[SimpleNamespace(op=op, base=op.split(".")[0], results=(None,)) for op in work],
        work=SimpleNamespace(
            bytes=numbers[:, 0],
            flops=numbers[:, 1],
            vector_flops=nothing,
            special=nothing,
            family=np.zeros(len(work), dtype=int),
        ),
    )


def test_kernel_is_estimated_from_the_other_kernels() -> None:
    rows = [
        row("small", 10, on_device=True, kernel_seconds=10 * 1e-3),  # 1 ms per launch
        row("large", 1, on_device=True, kernel_seconds=3e-3),  # and 2 ns per byte
        row("slow", 2, down_seconds=10e-3, host_seconds=20e-3, up_seconds=6e-3),
    ]
    work = {"small": (0.0, 0.0), "large": (1e6, 0.0), "slow": (2e6, 0.0)}
    seconds, savings = ranked(trace(rows, work))
    assert seconds == 1.0
    assert [saving["op"] for saving in savings] == ["slow"]
    assert savings[0]["saves_seconds"] == pytest.approx(36e-3 - 2 * (1e-3 + 4e-3))
    assert (savings[0]["launches"], savings[0]["bytes"]) == (2, 150)


def test_first_kernel_saves_the_copies() -> None:
    rows = [row("a", 1, down_seconds=2e-3, host_seconds=5e-3, up_seconds=1e-3)]
    _, savings = ranked(trace(rows, {"a": (1.0, 0.0)}))
    assert savings[0]["saves_seconds"] == pytest.approx(3e-3)


def test_product_is_no_faster_than_the_host_while_no_kernel_multiplies() -> None:
    rows = [
        row("copy", 1, on_device=True, kernel_seconds=1e-6),
        row("mm", 1, down_seconds=2e-3, host_seconds=5e-3, up_seconds=1e-3),
    ]
    _, savings = ranked(trace(rows, {"copy": (1.0, 0.0), "mm": (1.0, 1e9)}))
    assert savings[0]["saves_seconds"] == pytest.approx(3e-3)


def test_operators_that_no_kernel_can_take_over_are_left_out() -> None:
    rows = [row("nonzero", 3, possible=False, host_seconds=1.0, down_seconds=1.0), row("a", 1, down_seconds=1e-3)]
    _, savings = ranked(trace(rows, {"nonzero": (1.0, 0.0), "a": (1.0, 0.0)}))
    assert [saving["op"] for saving in savings] == ["a"]


def test_recording_without_a_driver_is_refused() -> None:
    recording = trace([], {})
    recording.about = {}
    with pytest.raises(BringupError, match="not of a driver"):
        ranked(recording)


def test_parts_of_a_typical_step_add_up_to_it() -> None:
    seconds = [9.0, 1.0, 2.0, 3.0, 2.5, 0.1]
    middle = middle_half(seconds)
    assert sorted(middle) == [1, 2, 3, 4]
    steps = [[row("a", 1, host_seconds=0.75 * took), row("b", 2, down_seconds=0.25 * took)] for took in seconds]
    steps[3].append(row("sometimes", 1))
    first, second, sometimes = typical([steps[number] for number in middle])
    assert first["host_seconds"] + second["down_seconds"] == pytest.approx((1.0 + 2.0 + 3.0 + 2.5) / 4)
    assert (first["launches"], second["launches"], sometimes["launches"]) == (1, 2, 0.25)


def test_relatives_say_more_than_other_kernels() -> None:
    rows = [
        row("add", 1, on_device=True, kernel_seconds=1e-3),
        row("mul", 1, on_device=True, kernel_seconds=1e-3),
        row("gelu", 1, on_device=True, kernel_seconds=10e-3),
        row("gelu_backward", 1, down_seconds=30e-3),
        row("relu", 1, down_seconds=30e-3),
    ]
    _, savings = ranked(trace(rows, dict.fromkeys(("add", "mul", "gelu", "gelu_backward", "relu"), (1e6, 0.0))))
    kernels = {saving["op"]: 30e-3 - saving["saves_seconds"] for saving in savings}
    assert 3e-3 < kernels["gelu_backward"] < 11e-3
    assert 1e-3 < kernels["relu"] < kernels["gelu_backward"] / 1.5


def test_fit_has_no_negative_rates() -> None:
    rows = [row("a", 1, on_device=True, kernel_seconds=2e-3), row("b", 1, on_device=True, kernel_seconds=1e-3)]
    work = next_kernel._mean_work(trace(rows, {"a": (1e6, 0.0), "b": (2e6, 0.0)}))
    rates = next_kernel._rates(rows, work)
    assert rates is not None and (rates >= 0).all() and rates.any()
