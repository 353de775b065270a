"""What a driver's device did during a recording: measured steps, their parts, and what ran on the host."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from bringup.recording.driver_rows import middle_half, seconds_of, typical
from bringup.text import duration, plain, size

MOST_OPERATORS = 5  # that the summary names


@dataclass
class Measured:
    """The measurements of a run on a driver.

    Attributes:
        ends: when each step of an optimizer had been launched, in seconds of the host's clock.
    """

    ends: list[float] = field(default_factory=list)

    def seconds_of_steps(self, on_device: list[float]) -> list[float]:
        """Return the time from the end of each step to the end of the next one.

        The device's clock counts if the driver has one: the host may have launched many steps before they run. The
        device's times may be of the latest steps alone.
        """
        on_host = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        return on_device if any(on_device) else on_host

    def facts(self) -> dict[str, Any]:
        """Return the driver's name, the measured step, the ledger, and the parts of a step, for the trace."""
        ledger = json.loads(torch.ops.bringup.driver_ledger())
        steps = json.loads(torch.ops.bringup.driver_steps())
        total, seconds = steps.pop("total"), self.seconds_of_steps(steps.pop("step_seconds"))
        measured_steps = [steps.get(str(number), []) for number in range(1, len(self.ends))]
        latest = min(len(steps), len(seconds), len(measured_steps))
        rows, seconds = measured_steps[len(measured_steps) - latest :], seconds[len(seconds) - latest :]
        middle = middle_half(seconds)
        return {
            "name": str(torch.ops.bringup.driver_name()),
            "step_seconds": fmean(seconds[number] for number in middle) if latest else None,
            "step_rows": typical([rows[number] for number in middle]) if latest else total,
            **ledger,
        }


@contextmanager
def measured() -> Iterator[Measured]:
    """Measure the steps of the program and the parts of its launches, and count them from now on."""
    measurement = Measured()
    torch.ops.bringup.clear_driver_ledger()
    torch.ops.bringup.measure_driver(True)

    def end_step(*_: Any) -> None:
        if torch.ops.bringup.is_open():  # an optimizer on the host alone opens no device
            measurement.ends.append(time.perf_counter())
            torch.ops.bringup.next_driver_step()

    hook = register_optimizer_step_post_hook(end_step)
    try:
        yield measurement
    finally:
        hook.remove()
        torch.ops.bringup.measure_driver(False)


def sentences(facts: dict[str, Any], predicted_seconds: float) -> Iterator[str]:
    """Yield the lines that the summary of a run on a driver has beside the prediction."""
    seconds, on_host = facts["step_seconds"], facts["on_host"]
    if seconds is not None:
        steps = f"{duration(seconds)} a step   predicted: {duration(predicted_seconds)}"
        yield f"measured on {facts['name']}: {steps}"
        parts = {"on the device": 0.0, "on the host": 0.0, "between launches": 0.0}
        for row in facts["step_rows"]:
            parts["on the device"] += row["kernel_seconds"]
            parts["on the host"] += seconds_of(row)
            parts["between launches"] += row["between_seconds"]
        yield "of a step: " + ", ".join(f"{duration(value)} {name}" for name, value in parts.items())
    down, up = (size(sum(row[key] for row in on_host)) for key in ("bytes_down", "bytes_up"))
    launches = sum(row["launches"] for row in on_host)
    yield (
        f"on the device {sum(facts['on_device'].values()):,} launches, on the host {launches:,} "
        f"({len({row['op'] for row in on_host})} operators): {down} down, {up} up, "
        f"{duration(sum(map(seconds_of, on_host)))}"
    )
    for row in sorted(on_host, key=lambda row: (-row["launches"], row["op"]))[:MOST_OPERATORS]:
        moved = size(row["bytes_down"] + row["bytes_up"])
        yield plain(f"  {row['op']}  {row['launches']:,}x  {moved}  {duration(seconds_of(row))}  ({row['reason']})")
