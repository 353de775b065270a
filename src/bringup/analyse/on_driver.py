"""What a run on a real driver measured, beside what is predicted: the parts of a step, and its operators."""

from __future__ import annotations

from dataclasses import dataclass, field

from bringup.analyse.summarize import by_group
from bringup.recording.driver_rows import seconds_of
from bringup.timeline.replay import Timeline


@dataclass
class MeasuredOp:
    """An operator in the typical step.

    Attributes:
        op: its name.
        launches: of the recording.
        predicted_seconds: on the chip.
        device_seconds: measured in the driver's kernels.
        host_seconds: measured on the host, with copies.
        reasons: why launches ran on the host.
    """

    op: str
    launches: float = 0.0
    predicted_seconds: float = 0.0
    device_seconds: float = 0.0
    host_seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)

    @property
    def measured_seconds(self) -> float:
        """Return the seconds on the device and on the host."""
        return self.device_seconds + self.host_seconds


@dataclass(frozen=True)
class MeasuredStep:
    """The typical step of a run on a driver: its operators, the longest first, and the time between launches."""

    ops: list[MeasuredOp]
    between_seconds: float

    def parts(self) -> dict[str, float]:
        """Return the seconds of each part."""
        on_device, on_host = (sum(op.device_seconds for op in self.ops), sum(op.host_seconds for op in self.ops))
        return {"on the device": on_device, "on the host": on_host, "between launches": self.between_seconds}


def measured_step(timeline: Timeline) -> MeasuredStep | None:
    """Return the measured step, None if the recording is not of a driver, or has no rows of a step."""
    rows = timeline.trace.about.get("driver", {}).get("step_rows", [])
    if not rows:
        return None
    ops: dict[str, MeasuredOp] = {}
    for name, launches, seconds, _ in by_group(timeline, "op"):
        ops[name] = MeasuredOp(name, launches, seconds)
    for row in rows:
        op = ops.setdefault(row["op"], MeasuredOp(row["op"]))
        op.device_seconds += row["kernel_seconds"]
        op.host_seconds += seconds_of(row)
        if row["reason"] and not row["on_device"] and row["reason"] not in op.reasons:
            op.reasons.append(row["reason"])
    shown = [op for op in ops.values() if op.measured_seconds or op.predicted_seconds]
    shown.sort(key=lambda op: (-op.measured_seconds, -op.predicted_seconds, op.op))
    return MeasuredStep(shown, sum(row["between_seconds"] for row in rows))
