"""The one-screen summary as data: lines and rows of tables, each with its role."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bringup.text import duration, quantity, size

if TYPE_CHECKING:  # the list of chips needs no summary
    from bringup.analyse.holders import Moment, Owner
    from bringup.analyse.summary import Summary, Way

MOST_FALLBACKS, MOST_KERNELS, MOST_BREAKS, MOST_UNPRICED = 5, 3, 5, 6
_MEMBER = re.compile(r"(^|\.)\d+(?=\.|$)")  # the number of a member of a list
LEAST_SHARE = 0.005  # smaller shares would be shown as 0 %


@dataclass(frozen=True)
class Line:
    """One line of the summary.

    Attributes:
        role: the kind of line, such as ``step``, ``memory`` or ``advice``.
        parts: pairs of a text and its terminal style; an empty style is plain text.
    """

    role: str
    parts: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """Return the line without styles."""
        return "".join(text for text, _ in self.parts)


@dataclass(frozen=True)
class Row:
    """One row of a table; neighbouring rows with the same role form one table."""

    role: str
    cells: tuple[str, ...]

    @property
    def text(self) -> str:
        """Return the cells, separated by spaces."""
        return "  ".join(self.cells)


def _line(role: str, *parts: str | tuple[str, str]) -> Line:
    return Line(role, tuple((part, "") if isinstance(part, str) else part for part in parts))


def lines(summary: Summary) -> Iterator[Line | Row]:
    """Yield the numbers, findings and advice of a summary, for one screen."""
    yield from _times(summary)
    yield from _notes(summary)
    yield from _size(summary)
    if not summary.fits:
        yield from _memory(summary)
    yield from _fallbacks(summary)
    yield from _kernels(summary)
    for finding in summary.findings:
        yield _line("finding", "  ", (finding.check, "bold red"), f": {finding.what}")
        yield _line("finding-advice", f"     -> {finding.advice}")
    for number, item in enumerate(summary.bottlenecks, 1):
        yield _line("bottleneck", "  ", (f"{number}.", "bold"), f" {item.condition}; {item.cause}")
        yield _line("advice", f"     -> {item.action}")
    yield from _compiled(summary)
    if summary.unpriced:
        names = ", ".join(summary.unpriced[:MOST_UNPRICED]) + (", ..." if len(summary.unpriced) > MOST_UNPRICED else "")
        yield _line("unpriced", f"  no cost rule, estimated from the bytes moved: {names}")


def _times(summary: Summary) -> Iterator[Line]:
    yield _line(
        "step",
        (f"{unit(summary)} {duration(summary.step_seconds)}", "bold"),
        " on ",
        (summary.chip, "bold"),
        f" (host {summary.host}, {summary.link})    ",
        (band(summary), "dim"),
    )
    total = summary.step_seconds or 1.0
    shares = "   ".join(f"{name} {seconds / total:.0%}" for name, seconds in summary.parts().items())
    yield _line("shares", f"  {shares}")


def _notes(summary: Summary) -> Iterator[Line]:
    if summary.dry:
        yield _line("dry", "  dry run: nothing was computed; results that the program printed are stand-ins")
    if summary.chip_time:
        yield _line("chip-time", "  the program's clocks showed chip time; times that it printed are predictions")
    if summary.redirected:
        yield _line("cuda", f"  cuda meant the chip: {redirected(summary)}")


def _size(summary: Summary) -> Iterator[Line]:
    steps = summary.steps_text()
    if summary.steps_by == "whole":
        yield _line("launches", f"  {quantity(round(summary.launches), 'launch')}, {steps}")
    else:
        warm = ", the first left out as warm-up" if summary.steps > 1 else ""
        yield _line(
            "launches",
            f"  {quantity(summary.launches, 'launch')} per {unit(summary)}, batch {summary.samples or 'unknown'}; "
            f"{quantity(summary.steps, 'step')}, {steps}{warm}",
        )
    verdict = ("fits", "") if summary.fits else ("does not fit", "bold red")
    energy = "" if summary.energy_joules is None else f"   energy {summary.energy_joules:.3g} J per {unit(summary)}"
    cost = "" if summary.cost_usd is None else f"   {per_million(summary)}"
    mfu = f"   MFU {used_peak(summary)}" if summary.mfu is not None else ""
    peak = f"  memory {size(summary.peak_bytes)} of {size(summary.capacity_bytes)}, "
    yield _line("memory", peak, verdict, f"{energy}{cost}{mfu}")


def _memory(summary: Summary) -> Iterator[Line | Row]:
    """Yield the moment of the memory peak, its holders, and ways to fit."""
    memory = summary.memory
    if memory.at is not None:
        yield _line("fullest", f"  memory is fullest in {moment(memory.at)}")
    for kind, total, largest in by_kind(memory.owners):
        where = ", ".join(f"{name or 'outside modules'} {size(count)}" for name, count in largest)
        if total >= LEAST_SHARE * memory.reserved_bytes:
            yield Row("holder", ("   ", kind, size(total), f"{total / max(memory.reserved_bytes, 1):.0%}", where))
    if summary.out_of_memory:
        yield _line(
            "out-of-memory",
            "  the program ended there: run it with --oom=continue to see the memory it needs and ways to make it fit",
        )
    for way in summary.ways_to_fit:
        yield _line("way", f"  -> {way_text(way, summary.capacity_bytes)}")


def _fallbacks(summary: Summary) -> Iterator[Line | Row]:
    for item in summary.fallbacks[:MOST_FALLBACKS]:
        parts = {
            "d2h": item.d2h_seconds,
            "host": item.host_seconds,
            "h2d": item.h2d_seconds,
            "stall": item.stall_seconds,
        }
        where = f"{item.file}:{item.line}" if item.file else "-"
        took = f"{duration(item.seconds)}/{unit(summary)}"
        terms = " + ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items())
        yield Row(
            "fallback", ("  fallback", f"{item.op} {item.dtype}", where, f"{item.count:,.3g}x", took, f"({terms})")
        )
    more = summary.fallbacks[MOST_FALLBACKS:]
    if more:
        rest = sum(item.seconds for item in more)
        yield _line(
            "more-fallbacks", f"  and {quantity(len(more), 'more fallback')}, {duration(rest)} per step: see the report"
        )


def _kernels(summary: Summary) -> Iterator[Line | Row]:
    """Yield the limits of the program's own kernels."""
    kernels = [item for item in summary.kernels if item.op.startswith("triton::")]
    for item in kernels[:MOST_KERNELS]:
        name = item.op.removeprefix("triton::")
        name = name if len(name) <= 30 else name[:28] + ".."
        busy = ", ".join(f"{engine} {share:.0%}" for engine, share in item.engines.items() if share >= LEAST_SHARE)
        limit = f"{item.bound}-bound, {item.roof:.0%} of the roofline; busy: {busy}"
        yield Row("kernel", ("  kernel", name, item.line, f"{item.count:,.3g}x", duration(item.seconds), limit))
    if len(kernels) > MOST_KERNELS:
        yield _line("more-kernels", f"  and {quantity(len(kernels) - MOST_KERNELS, 'more kernel')}: see the report")


def _compiled(summary: Summary) -> Iterator[Line]:
    if not summary.compiled_graphs:
        return
    breaks = len(summary.graph_breaks)
    cut = f", cut at {quantity(breaks, 'line')}:" if breaks else ", no graph breaks"
    yield _line("compiled", f"  torch.compile: {quantity(summary.compiled_graphs, 'graph')}{cut}")
    for cut_at in summary.graph_breaks[:MOST_BREAKS]:
        yield _line("graph-break", f"     {cut_at.line}: {cut_at.reason}")
    if breaks > MOST_BREAKS:
        yield _line("more-breaks", f"     and {quantity(breaks - MOST_BREAKS, 'more line')}: see the report")


def band(summary: Summary) -> str:
    """Write the error band and its source."""
    if summary.error_band is None:
        return summary.error_source
    return f"+- {summary.error_band:.0%} ({summary.error_source})"


def unit(summary: Summary) -> str:
    """Return the unit of work that the times are for: ``step``, or ``run`` if no steps were found."""
    return "run" if summary.steps_by == "whole" else "step"


def used_peak(summary: Summary) -> str:
    """Write the share of the peak that products use, with its denominator; empty without products."""
    if summary.mfu is None or summary.mfu_peak_flops is None:
        return ""
    peak = f"{summary.mfu_peak_flops / 1e12:,.4g} Tflop/s"
    return f"{100 * summary.mfu:.2g}% of {peak}, the {summary.mfu_dtype} peak"


def per_million(summary: Summary) -> str:
    """Write the cost of a million samples, or of a million steps if the batch is unknown."""
    if summary.cost_usd is None:
        return "-"
    samples, noun = (summary.samples, "samples") if summary.samples else (1, f"{unit(summary)}s")
    return f"{summary.cost_usd * 1e6 / samples:,.3g} USD per million {noun}"


def redirected(summary: Summary) -> str:
    """Write the CUDA names that the program used most."""
    most = sorted(summary.redirected.items(), key=lambda pair: (-pair[1], pair[0]))
    names = ", ".join(f"{name} {count:,}x" if count > 1 else name for name, count in most[:4])
    return names + (f", and {quantity(len(most) - 4, 'more name')}" if len(most) > 4 else "")


def way_text(way: Way, capacity: int) -> str:
    """Write a way to fit with the memory and the time that it needs for the same work."""
    verdict = "fits" if way.fits else f"{size(way.peak_bytes - capacity)} too much"
    return f"{way.change}: {size(way.peak_bytes)}, {verdict}, {duration(way.step_seconds)} for the same work"


def moment(at: Moment) -> str:
    """Write the step, phase, module and line at which memory is fullest."""
    inside = f" of {at.module}" if at.module else ""
    return f"step {at.step + 1}, {at.phase} pass{inside}" + (f", at {at.line}" if at.line else "")


def _range(names: set[str]) -> str:
    """Write names that differ only in their numbers as one: ``layers.0-11.mlp``."""
    columns = zip(*(name.split(".") for name in names), strict=True)
    parts = (sorted(set(column), key=lambda part: (len(part), part)) for column in columns)
    return ".".join(part[0] if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def by_kind(owners: list[Owner]) -> list[tuple[str, int, list[tuple[str, int]]]]:
    """Group the holders of memory; return kinds, bytes and their three largest modules, with list members merged."""
    totals: dict[str, dict[str, int]] = {}
    members: dict[tuple[str, str], set[str]] = {}  # of a kind and a pattern
    for item in owners:
        pattern = _MEMBER.sub(r"\1*", item.module)
        by_module = totals.setdefault(item.kind, {})
        by_module[pattern] = by_module.get(pattern, 0) + item.bytes
        members.setdefault((item.kind, pattern), set()).add(item.module)
    groups = []
    for kind, modules in totals.items():
        largest = sorted(modules.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = [(_range(members[kind, pattern]), count) for pattern, count in largest[:3]]
        groups.append((kind, sum(modules.values()), shown if modules.keys() != {""} else []))
    return sorted(groups, key=lambda group: (-group[1], group[0]))
