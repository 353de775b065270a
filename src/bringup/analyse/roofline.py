"""The limits of every kind of launch: its share of the roofline, and how busy it keeps the chip's engines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bringup import pricing
from bringup.pricing import ENGINES
from bringup.timeline.replay import Timeline

MOST_KERNELS = 25


@dataclass(frozen=True)
class Kernel:
    """All launches of one operator or kernel with the same signature, in the steady steps.

    Attributes:
        op: the operator, or the kernel's name (``triton::add_kernel``).
        shapes: dtypes and shapes of its tensors, as text.
        line: the Python line of the first such launch; empty if it has none.
        count: launches per step.
        seconds: time of one launch.
        flops, bytes: of one launch; bytes are those moved to and from device memory.
        bound: ``compute``, ``memory`` or ``launch``: the part that determines `seconds`.
        roof: the share of the roofline's speed that it reaches. This is the time of its busiest engine at the chip's
            sustained rate with all cores busy, divided by `seconds` (Williams, Waterman & Patterson, CACM 2009).
        cores: the share of the cores that it can keep busy.
        engines: engine -> share of `seconds` in which it is busy: ``matrix``, ``vector``, ``special`` functions,
            device ``memory``. Engines work at the same time.
    """

    op: str
    shapes: str
    line: str
    count: float
    seconds: float
    flops: float
    bytes: float
    bound: str
    roof: float
    cores: float
    engines: dict[str, float]


def kernels(timeline: Timeline, first: int, last: int) -> list[Kernel]:
    """List the kinds of launches in the rows from `first` to `last`, at most 25, the longest first."""
    columns, prices, work = timeline.trace.columns, timeline.prices, timeline.work
    rows = timeline.launches_on_chip(first, last)
    numbers = columns["signature"][rows]
    counts = np.bincount(numbers, minlength=len(prices.seconds))
    spent = np.where(prices.supported, counts * prices.seconds, 0.0)
    longest = []
    for i in map(int, np.argsort(-spent, kind="stable")[:MOST_KERNELS]):
        if spent[i] <= 0:
            break
        signature, seconds = timeline.trace.signatures[i], float(prices.seconds[i])
        line = int(columns["line"][rows[np.argmax(numbers == i)]])
        longest.append(
            Kernel(
                op=signature.op,
                shapes=signature.shapes,
                line=timeline.trace.lines[line] if line >= 0 else "",
                count=float(counts[i]),
                seconds=seconds,
                flops=float(work.flops[i]),
                bytes=float(work.bytes[i]),
                bound=pricing.BOUNDS[int(prices.bound[i])],
                roof=min(_at_best(timeline, i) / seconds, 1.0),
                cores=float(prices.share[i]),
                engines={
                    name: min(float(part) / seconds, 1.0)
                    for name, part in zip(ENGINES, prices.engines[:, i], strict=True)
                },
            )
        )
    return longest


def _at_best(timeline: Timeline, i: int) -> float:
    """Return the seconds of the busiest engine at its sustained rate, with all cores busy and every byte moved once."""
    chip, work = timeline.chip, timeline.work
    vector, special = float(work.vector_flops[i]), float(work.special[i])
    return max(
        (float(work.flops[i]) - vector - special) / pricing.matrix_rate(chip, work.dtypes[i]),
        vector / pricing.vector_rate(chip, work.dtypes[i]),
        special / pricing.special_rate(chip),
        float(work.bytes[i]) / pricing.memory_rate(chip),
    )
