"""Steps that one core of the host would finish before the chip, because a launch has very little work."""

from __future__ import annotations

import numpy as np

from bringup import pricing
from bringup.analyse.summary import LEAST_SECONDS
from bringup.recording.rows import D2H, H2D, LAUNCH
from bringup.timeline.replay import Timeline, calls_of_placed, on_host_seconds

PRODUCTS = ("float32",)  # host files have the rate of float32 only, and CPUs multiply shorter numbers slowly
DOUBLE = ("float64", "complex128")
PEAK = 3.0  # chosen: a core may reach only a third of its peak
OFF = 1.37  # steps are off by up to 37 % (docs/validation.md)
BUSY = 0.5  # chosen: a chip that computes for more of the step is not the one that waits


def host_alone(timeline: Timeline, first: int, last: int, step: float, busy: float) -> float | None:
    """Return about how long one core of the host takes for the step in these rows; None unless it is clearly faster.

    Nothing overlaps, and every operator reads and writes the main memory. None too if the step has kernels of the
    program's own, collectives, operators in float64, or products in another dtype than float32.
    """
    trace, host = timeline.trace, timeline.host
    columns, work, compute = trace.columns, trace.work, host.compute
    if timeline.steps.by == "whole" or busy > BUSY * step or not pricing.class_of(timeline.chip).queues:
        return None
    rows = np.flatnonzero(np.isin(columns["kind"][first:last], (LAUNCH, H2D, D2H))) + first
    if len(np.unique(columns["device"][rows])) != 1:
        return None
    launched = columns["kind"][rows] == LAUNCH
    signature = columns["signature"][rows[launched]]
    kinds = np.unique(signature)
    products = kinds[work.is_family("matmul", "convolution", "depthwise", "attention", "rnn")[kinds]]
    dtypes = {work.dtypes[i] for i in kinds}, {work.dtypes[i] for i in products}
    if work.is_family("kernel", "collective")[kinds].any() or dtypes[0] & set(DOUBLE) or dtypes[1] - set(PRODUCTS):
        return None
    core = compute.vector_tflops * 1e12 / compute.cores
    moved = float(work.bytes[signature].sum() + columns["bytes"][rows[~launched]].sum()) / (compute.pageable_gb_s * 1e9)
    calls = float(on_host_seconds(trace, host)[rows].sum() + calls_of_placed(trace, host, rows).sum())
    computing = float(work.flops[signature].sum()) / core
    seconds = computing + moved + calls
    saved = (step - seconds) * len(timeline.steps.ends)
    is_clear = OFF * (PEAK * computing + moved + calls) < step
    return seconds if is_clear and saved >= LEAST_SECONDS else None
