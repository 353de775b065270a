"""What TF32 would change: float32 products that ran without it because torch's switches were off."""

from __future__ import annotations

from collections.abc import Iterable

from bringup import pricing
from bringup.analyse.changes import replayed
from bringup.analyse.summary import Bottleneck, Summary
from bringup.cost import FAMILIES
from bringup.pricing.rates import engine_dtype
from bringup.recording.rows import LAUNCH
from bringup.text import duration
from bringup.timeline import steady
from bringup.timeline.replay import Timeline

# Switch -> the statement that turns it on (PyTorch documentation, CUDA semantics).
STATEMENTS = {
    "matmul": "torch.set_float32_matmul_precision('high')",
    "convolution": "torch.backends.cudnn.allow_tf32 = True",
}


def switches_off(timeline: Timeline) -> list[str]:
    """Return the switches that were off at float32 products that the chip could compute in TF32."""
    works = zip(timeline.work.dtypes, timeline.work.works, strict=True)
    slower = {
        work.family
        for dtype, work in works
        if engine_dtype(timeline.chip, dtype, work.tf32) != engine_dtype(timeline.chip, dtype, work.family)
    }
    return [name for name in STATEMENTS if name in slower]


def step_seconds(timeline: Timeline) -> float:
    """Return the seconds of a step if torch allowed TF32 in all products."""
    prices = pricing.price_table(timeline.work, timeline.trace.signatures, timeline.chip, tf32=True)
    return steady.step_seconds(replayed(timeline, prices=prices))


def bottlenecks(timeline: Timeline, summary: Summary) -> Iterable[Bottleneck]:
    """Yield an advice if switches of TF32 are off, with the step time that follows from turning them on."""
    switches = switches_off(timeline)
    if not switches:
        return
    after = step_seconds(timeline)
    spent = _product_seconds(timeline, switches)
    statements = " and ".join(STATEMENTS[name] for name in switches)
    yield Bottleneck(
        f"float32 products without TF32 take {duration(spent)} per {summary.unit}",
        f"{summary.chip} computes them in TF32 if torch allows it: 10 instead of 23 bits of each factor's mantissa",
        f"{statements} ({duration(after)} per {summary.unit} then)",
        max(summary.step_seconds - after, 0.0),
        key="compute-bound",
        remedy="tf32",
        numbers={"product_seconds": spent, "tf32_seconds": after},
    )


def _product_seconds(timeline: Timeline, switches: list[str]) -> float:
    """Return the seconds per step of float32 products with one of these switches off."""
    first, last, *_ = steady.steady(timeline)
    columns = timeline.trace.columns
    slow = [
        dtype == "float32" and FAMILIES[family] in switches and not work.tf32
        for dtype, family, work in zip(timeline.work.dtypes, timeline.work.family, timeline.work.works, strict=True)
    ]
    rows = [row for row in range(first, last) if columns["kind"][row] == LAUNCH and slow[columns["signature"][row]]]
    return float((timeline.end[rows] - timeline.start[rows]).sum())
