"""What a kernel would save, from measured parts of a step."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bringup.drivers import next as next_kernel
from bringup.drivers.next import ranked
from bringup.errors import BringupError
from bringup.recording.driver_rows import typical
from bringup.recording.rows import LAUNCH

PARTS = {"kernel_seconds": 0.0, "down_seconds": 0.0, "host_seconds": 0.0, "up_seconds": 0.0, "between_seconds": 0.0}


def row(op: str, launches: float, on_device: bool = False, possible: bool = True, **seconds: float) -> dict[str, Any]:
    counts = {"launches": launches, "bytes_down": 100, "bytes_up": 50}
    return {"op": op, "on_device": on_device, "reason": "", "kernel_possible": possible, **counts, **PARTS, **seconds}


def trace(rows: list[dict[str, Any]], work: dict[str, tuple[float, float]]) -> Any:
    """A recording in which each operator was launched once, with these bytes and operations."""
    numbers = np.asarray(list(work.values()), dtype=float).reshape(-1, 2)
    return SimpleNamespace(
        about={"driver": {"step_seconds": 1.0, "step_rows": rows}},
        columns={"kind": np.full(len(work), LAUNCH), "signature": np.arange(len(work))},
        signatures=[SimpleNamespace(op=op) for op in work],
        work=SimpleNamespace(down_bytes=numbers[:, 0], up_bytes=np.zeros(len(work)), flops=numbers[:, 1]),
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


def test_typical_step_has_the_median_of_each_number() -> None:
    steps = [[row("a", 1, host_seconds=seconds)] for seconds in (9.0, 1.0, 2.0)]
    steps[1].append(row("once", 1))
    (only,) = typical(steps)
    assert (only["op"], only["host_seconds"]) == ("a", 2.0)


def test_fit_has_no_negative_rates() -> None:
    work = {"a": np.asarray([1.0, 1e6, 0.0]), "b": np.asarray([1.0, 2e6, 0.0])}
    rows = [row("a", 1, on_device=True, kernel_seconds=2e-3), row("b", 1, on_device=True, kernel_seconds=1e-3)]
    rates = next_kernel._rates(rows, work)
    assert rates is not None and (rates >= 0).all() and rates.any()
