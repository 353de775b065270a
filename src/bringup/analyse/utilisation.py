"""The share of the chip's peak that a program's products use (MFU, model FLOPs utilisation)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bringup.pricing.rates import engine_dtype, matrix_peak
from bringup.timeline.replay import Timeline


@dataclass(frozen=True)
class Utilisation:
    """The flops of a step's products over those that the chips could do in its time.

    The definition is that of Chowdhery et al., PaLM (JMLR 2023), appendix B, with the recorded products in place of a
    formula. Products that a program computes again (activation checkpointing) therefore count again.

    Attributes:
        share: 0 to 1.
        dtype: the dtype in which most of the flops are computed, ``tf32`` included. Its peak is the denominator.
        peak_flops: the peak in flop/s of all chips that the steps use.
    """

    share: float
    dtype: str
    peak_flops: float


def utilisation(timeline: Timeline, first: int, last: int, seconds: float) -> Utilisation | None:
    """Return the utilisation in the rows from `first` to `last`, which take `seconds`; None without products."""
    columns, work = timeline.trace.columns, timeline.work
    rows = timeline.launches_on_chip(first, last)
    counts = np.bincount(columns["signature"][rows], minlength=len(work.flops))
    flops = counts * np.maximum(work.flops - work.vector_flops - work.special, 0.0)
    total = float(flops.sum())
    if total <= 0 or seconds <= 0:
        return None
    by_dtype: dict[str, float] = {}
    for dtype, item, value in zip(work.dtypes, work.works, flops.tolist(), strict=True):
        name = engine_dtype(timeline.chip, dtype, item.tf32)
        by_dtype[name] = by_dtype.get(name, 0.0) + value
    dtype = max(sorted(by_dtype), key=lambda name: by_dtype[name])
    peak = matrix_peak(timeline.chip, dtype) * len(np.unique(columns["device"][rows]))
    return Utilisation(total / seconds / peak, dtype, peak)
