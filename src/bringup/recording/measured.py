"""What a driver's device did during a recording: the measured step, and which launches ran on the host."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from bringup.text import duration, plain, size

MOST_OPERATORS = 5  # that the summary names


@dataclass
class Measured:
    """The measurements of a run on a driver.

    Attributes:
        ends: when each step of an optimizer had been launched, in seconds of the host's clock.
    """

    ends: list[float] = field(default_factory=list)

    def step_seconds(self) -> float | None:
        """Return the median time from the end of a step to the end of the next one, None if there are not two."""
        steps = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        return median(steps) if steps else None

    def facts(self) -> dict[str, Any]:
        """Return the driver's name, the measured step and the ledger, for the trace."""
        ledger = json.loads(torch.ops.bringup.driver_ledger())
        return {"name": str(torch.ops.bringup.driver_name()), "step_seconds": self.step_seconds(), **ledger}


@contextmanager
def measured() -> Iterator[Measured]:
    """Measure the steps of the program, and count its launches from now on."""
    measurement = Measured()
    torch.ops.bringup.clear_driver_ledger()
    hook = register_optimizer_step_post_hook(lambda *_: measurement.ends.append(time.perf_counter()))
    try:
        yield measurement
    finally:
        hook.remove()


def sentences(facts: dict[str, Any], predicted_seconds: float) -> Iterator[str]:
    """Yield the lines that the summary of a run on a driver has beside the prediction."""
    seconds, on_host = facts["step_seconds"], facts["on_host"]
    if seconds is not None:
        steps = f"{duration(seconds)} a step   predicted: {duration(predicted_seconds)}"
        yield f"measured on {facts['name']}: {steps}"
    down, up = (size(sum(row[key] for row in on_host)) for key in ("bytes_down", "bytes_up"))
    launches = sum(row["launches"] for row in on_host)
    yield (
        f"on the device {sum(facts['on_device'].values()):,} launches, on the host {launches:,} "
        f"({len({row['op'] for row in on_host})} operators): {down} down, {up} up"
    )
    for row in sorted(on_host, key=lambda row: (-row["launches"], row["op"]))[:MOST_OPERATORS]:
        moved = size(row["bytes_down"] + row["bytes_up"])
        yield plain(f"  {row['op']}  {row['launches']:,}x  {moved}  ({row['reason']})")
