"""Compares the prices of one recording on several chips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bringup.analyse import holders as memory
from bringup.analyse.summarize import summarize
from bringup.analyse.summary import Summary
from bringup.recording.trace import Trace
from bringup.timeline.replay import HostClock, replay

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host


@dataclass(frozen=True)
class Row:
    """One chip in a comparison.

    Attributes:
        summary: the chip's summary.
        bound: the part that takes most of a step, as `bound_of` names it.
        ratio: the first chip's step time divided by this chip's.
    """

    summary: Summary
    bound: str
    ratio: float


def compare(
    trace: Trace,
    chips: Sequence[Chip],
    host: Host,
    *,
    host_clock: HostClock = "modelled",
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Price a trace on every chip; return one row per chip in the order of `chips`.

    Args:
        trace: the recording.
        chips: the chips; the first one is the baseline of `Row.ratio`.
        host: the host to predict for.
        host_clock: ``modelled`` or ``measured``, as in `replay`.
        advance: called after every chip, for a progress bar.
    """
    rows: list[Row] = []
    peak: memory.Memory | None = None
    for chip in chips:
        timeline = replay(trace, chip, host, host_clock=host_clock)
        peak = peak or memory.usage(trace, timeline.steps.ends)
        summary = summarize(timeline, peak=peak)
        first = rows[0].summary.step_seconds if rows else summary.step_seconds
        rows.append(Row(summary, bound_of(summary), first / summary.step_seconds if summary.step_seconds else 0.0))
        advance()
    return rows


def bound_of(summary: Summary) -> str:
    """Name the part that takes most of a step: ``chip``, ``link``, ``between chips``, ``host`` or ``fallbacks``."""
    shares = {
        "chip": summary.device_seconds,
        "link": summary.link_seconds,
        "between chips": summary.between_seconds,
        "host": summary.host_seconds,
        "fallbacks": summary.fallback_seconds,
    }
    return max(shares, key=lambda name: shares[name])
