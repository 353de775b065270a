"""The steady part of a timeline: the steps after the first, and the batch that they work on."""

from __future__ import annotations

import numpy as np

from bringup.recording.rows import HOST, IN_FORWARD, LAUNCH, RESUME, SIGNAL
from bringup.timeline.replay import Timeline


def steady(timeline: Timeline) -> tuple[int, int, float, float, int]:
    """Return the steady part: its first and end row, its start and end in seconds, and its number of steps.

    The first step is left out as warm-up if there are at least two.
    """
    steps = timeline.steps
    ends, start, rows = steps.ends, steps.start, len(timeline.trace)
    if not rows:
        return 0, 0, 0.0, 0.0, 1
    # A step ends when the host has issued all its rows and every device has finished them. Other waits of a thread do
    # not count, because they may belong to a monitor thread. They delay only the later rows of their thread.
    ours = ~np.isin(timeline.trace.columns["kind"], (HOST, SIGNAL, RESUME))
    done = np.maximum.accumulate(np.maximum(timeline.end, timeline.issued + timeline.waited) * ours)
    if len(ends) > 1:
        return int(ends[0]), int(ends[-1]), float(done[ends[0] - 1]), float(done[ends[-1] - 1]), len(ends) - 1
    since = float(done[start - 1]) if start else 0.0
    return start, int(ends[-1]), since, float(done[ends[-1] - 1]), 1


def samples(timeline: Timeline, first: int, last: int) -> int:
    """Return the leading dimension of the input of the first embedding, convolution or product; 0 if there is none."""
    columns, work = timeline.trace.columns, timeline.work
    for row in np.flatnonzero(columns["kind"][first:last] == LAUNCH) + first:
        number = columns["signature"][row]
        signature = timeline.trace.signatures[number]
        product = work.works[number].family in ("convolution", "matmul")
        signature = next((item for item in signature.inner if item.base == "embedding"), signature)
        if columns["phase"][row] != IN_FORWARD or not (product or signature.base == "embedding"):
            continue
        names = ("indices", "input", "mat1", "self")
        tensors = map(signature.tensor, names)
        data = next((tensor for tensor in tensors if tensor is not None and tensor.shape), None)
        if data is not None:
            return int(data.shape[0])
    return 0
