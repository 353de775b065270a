"""Compares the prices of one recording on several chips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bringup.analyse import holders as memory
from bringup.analyse.summarize import summarize
from bringup.analyse.summary import Summary
from bringup.recording.trace import Trace
from bringup.text import duration, html_table, size
from bringup.timeline.replay import HostClock, Timeline, replay

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host


@dataclass(frozen=True)
class Row:
    """One chip or cluster in a comparison.

    Attributes:
        name: of the chip, or of the cluster.
        summary: the chip's summary.
        bound: the part that takes most of a step, as `bound_of` names it.
        ratio: the first chip's step time divided by this chip's.
        graph_only: True if the chip runs compiled graphs alone, so that the host pays nothing per operator.
    """

    name: str
    summary: Summary
    bound: str
    ratio: float
    graph_only: bool = False


class Comparison(list[Row]):
    """The rows of a comparison, in the order of the chips."""

    def _repr_html_(self) -> str:
        """Return a table for a notebook."""
        rows = [
            (
                row.name,
                duration(row.summary.step_seconds),
                f"{row.ratio:.2f}x",
                row.bound,
                f"{row.summary.device_seconds / (row.summary.step_seconds or 1.0):.0%}",
                f"{size(row.summary.peak_bytes)} of {size(row.summary.capacity_bytes)}",
                "not validated" if row.summary.error_band is None else f"+-{row.summary.error_band:.0%}",
            )
            for row in self
        ]
        return html_table("comparison", rows, ("chip", "step", "", "bound", "busy", "memory", "band"))


def compare(
    trace: Trace,
    chips: Sequence[Chip],
    host: Host,
    *,
    host_clock: HostClock = "modelled",
    clusters: Sequence[str] | None = None,
    done: Callable[[Timeline, Row], None] = lambda timeline, row: None,
) -> Comparison:
    """Price a trace on every chip; return one row per chip in the order of `chips`.

    Args:
        trace: the recording.
        chips: the chips; the first one is the baseline of `Row.ratio`.
        host: the host to predict for.
        host_clock: ``modelled`` or ``measured``, as in `replay`.
        clusters: the cluster on which each chip's collectives are priced (default: that of the recording).
        done: called after every chip, with its timeline, which is not kept, and its row.
    """
    rows = Comparison()
    peak: memory.Memory | None = None
    for number, chip in enumerate(chips):
        if clusters is not None:
            trace = replace(trace, about={**trace.about, "cluster": clusters[number]})
        timeline = replay(trace, chip, host, host_clock=host_clock)
        peak = peak or memory.usage(trace, timeline.steps.ends)
        summary = summarize(timeline, peak=peak)
        first = rows[0].summary.step_seconds if rows else summary.step_seconds
        ratio = first / summary.step_seconds if summary.step_seconds else 0.0
        name = summary.chip if clusters is None else clusters[number]
        rows.append(Row(name, summary, bound_of(summary), ratio, "eager" not in chip.modes))
        done(timeline, rows[-1])
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
