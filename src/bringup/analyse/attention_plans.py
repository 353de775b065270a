"""What plans of attention cost: a library that computes one for every new length, and the kernels that need none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse.changes import replayed
from bringup.analyse.summary import Bottleneck, Summary
from bringup.text import duration, quantity
from bringup.timeline.plans import Plans
from bringup.timeline.replay import Timeline, WhatIf
from bringup.timeline.steady import steady, step_seconds

Array = npt.NDArray[Any]
KERNELS = "torch.nn.attention.sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])"


def without_plans(timeline: Timeline, summary: Summary) -> tuple[list[Bottleneck], Timeline, Summary]:
    """Return advice if the typical step plans attention, and timeline and summary as they would be without plans."""
    rows = _planned(timeline)
    if not len(rows):
        return [], timeline, summary
    other = replayed(timeline, WhatIf(keep_plans=False))
    seconds = step_seconds(other)
    host = max(summary.host_seconds - (summary.step_seconds - seconds), 0.0)
    plan = (timeline.chip.launch.attention_plan_ms or 0.0) * 1e-3
    line = timeline.trace.longest_line(rows, timeline.seconds[rows])
    advice = Bottleneck(
        f"the host plans attention for {duration(len(rows) * plan)} per {summary.unit}",
        f"{quantity(len(rows), 'new shape')} per {summary.unit}{f', mostly at {line}' if line else ''}; in half "
        f"precision, PyTorch prefers cuDNN on {summary.chip}, and cuDNN plans each new length for {duration(plan)}",
        f"with {KERNELS}, which need no plans, or a cache of fixed length: {duration(seconds)} per {summary.unit}",
        max(summary.step_seconds - seconds, 0.0),
        key="host-bound",
        remedy="attention-plans",
        line=line,
        numbers={"plans": len(rows), "plan_seconds": plan},
    )
    return [advice], other, replace(summary, step_seconds=seconds, host_seconds=host)


def _planned(timeline: Timeline) -> Array:
    """Return the rows of the typical step that plan attention."""
    if not timeline.chip.launch.attention_plan_ms:
        return np.zeros(0, dtype=np.int64)
    first, last, *_ = steady(timeline)
    rows = Plans().first_uses(timeline.trace)
    return rows[(rows >= first) & (rows < last)]
