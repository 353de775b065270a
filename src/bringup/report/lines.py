"""The one-screen summary as data: lines and rows of tables, each with its role."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bringup.text import duration, size

if TYPE_CHECKING:  # the list of chips needs no summary
    from bringup.analyse.holders import Moment, Owner
    from bringup.analyse.summary import Summary, Way

MOST_FALLBACKS, MOST_KERNELS, MOST_BREAKS, MOST_UNPRICED = 5, 3, 5, 6
LEAST_SHARE = 0.005  # what rounds to 0 % is not shown


@dataclass(frozen=True)
class Line:
    """A line of the summary.

    Attributes:
        role: what it says, such as ``step``, ``memory`` or ``advice``.
        parts: its texts, each with a style of the terminal; empty: none.
    """

    role: str
    parts: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The line without styles."""
        return "".join(text for text, _ in self.parts)


@dataclass(frozen=True)
class Row:
    """A row of a table; neighbours with the same role are one table."""

    role: str
    cells: tuple[str, ...]

    @property
    def text(self) -> str:
        """The cells, separated by blanks."""
        return "  ".join(self.cells)


def _line(role: str, *parts: str | tuple[str, str]) -> Line:
    return Line(role, tuple((part, "") if isinstance(part, str) else part for part in parts))


def lines(summary: Summary) -> Iterator[Line | Row]:
    """Yield what happened and what to do, for one screen."""
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
        yield _line("unpriced", f"  priced by their bytes, as no rule knows them: {names}")


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
        yield _line("dry", "  dry run: nothing was computed; what the program printed of results are stand-ins")
    if summary.chip_time:
        yield _line("chip-time", "  the program's clocks showed chip time: what it printed of times is predicted")
    if summary.redirected:
        yield _line("cuda", f"  cuda meant the chip: {redirected(summary)}")


def _size(summary: Summary) -> Iterator[Line]:
    steps = summary.steps_text()
    if summary.steps_by == "whole":
        yield _line("launches", f"  {summary.launches:,.0f} launches, {steps}")
    else:
        warm = ", the first left out" if summary.steps > 1 else ""
        yield _line(
            "launches",
            f"  {summary.launches:,} launches per {unit(summary)}, batch {summary.samples or 'unknown'}; "
            f"{summary.steps:,} steps {steps}{warm}",
        )
    verdict = ("fits", "") if summary.fits else ("does not fit", "bold red")
    energy = "" if summary.energy_joules is None else f"   {summary.energy_joules:.3g} J"
    cost = "" if summary.cost_usd is None else f"   {per_million(summary)}"
    used = f"  memory {size(summary.peak_bytes)} of {size(summary.capacity_bytes)}, "
    yield _line("memory", used, verdict, f"{energy}{cost}")


def _memory(summary: Summary) -> Iterator[Line | Row]:
    """Yield when memory is fullest, who holds it then, and what would make it fit."""
    memory = summary.memory
    if memory.at is not None:
        yield _line("fullest", f"  fullest in {moment(memory.at)}")
    for kind, total, largest in by_kind(memory.owners):
        where = ", ".join(f"{name or 'outside modules'} {size(count)}" for name, count in largest)
        if total >= LEAST_SHARE * memory.reserved_bytes:
            yield Row("holder", ("   ", kind, size(total), f"{total / max(memory.reserved_bytes, 1):.0%}", where))
    if summary.out_of_memory:
        yield _line(
            "out-of-memory",
            "  it ended there: run it with --oom=continue to see what it needs, and what would make it fit",
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
        yield _line("more-fallbacks", f"  and {len(more)} more, {duration(rest)} per step: see the report")


def _kernels(summary: Summary) -> Iterator[Line | Row]:
    """Yield what limits the program's own kernels."""
    own = [item for item in summary.kernels if item.op.startswith("triton::")]
    for item in own[:MOST_KERNELS]:
        name = item.op.removeprefix("triton::")
        name = name if len(name) <= 30 else name[:28] + ".."
        busy = ", ".join(f"{engine} {share:.0%}" for engine, share in item.engines.items() if share >= LEAST_SHARE)
        limit = f"{item.bound}-bound, {item.roof:.0%} of its roof; busy: {busy}"
        yield Row("kernel", ("  kernel", name, item.line, f"{item.count:,.3g}x", duration(item.seconds), limit))
    if len(own) > MOST_KERNELS:
        yield _line("more-kernels", f"  and {len(own) - MOST_KERNELS} more: see the report")


def _compiled(summary: Summary) -> Iterator[Line]:
    if not summary.compiled_graphs:
        return
    breaks = len(summary.graph_breaks)
    cut = f", cut at {breaks} line{'s' * (breaks > 1)}:" if breaks else ", no graph breaks"
    yield _line("compiled", f"  torch.compile: {summary.compiled_graphs} graphs{cut}")
    for cut_at in summary.graph_breaks[:MOST_BREAKS]:
        yield _line("graph-break", f"     {cut_at.line}: {cut_at.reason}")
    if breaks > MOST_BREAKS:
        yield _line("more-breaks", f"     and {breaks - MOST_BREAKS} more: see the report")


def band(summary: Summary) -> str:
    """Write the error band and where it comes from."""
    if summary.error_band is None:
        return summary.error_source
    return f"+- {summary.error_band:.0%} ({summary.error_source})"


def unit(summary: Summary) -> str:
    """Name what the times are of."""
    return "run" if summary.steps_by == "whole" else "step"


def per_million(summary: Summary) -> str:
    """Write the cost of a million samples, or of a million steps if the batch is not known."""
    if summary.cost_usd is None:
        return "-"
    each, what = (summary.samples, "samples") if summary.samples else (1, f"{unit(summary)}s")
    return f"{summary.cost_usd * 1e6 / each:,.3g} USD per million {what}"


def redirected(summary: Summary) -> str:
    """Write what was used most by the name of CUDA."""
    most = sorted(summary.redirected.items(), key=lambda pair: (-pair[1], pair[0]))
    used = ", ".join(f"{name} {count:,}x" if count > 1 else name for name, count in most[:4])
    return used + (f", and {len(most) - 4} more names" if len(most) > 4 else "")


def way_text(way: Way, capacity: int) -> str:
    """Write a way to fit, what it needs then and how long the same work takes."""
    verdict = "fits" if way.fits else f"{size(way.peak_bytes - capacity)} too much"
    return f"{way.change}: {size(way.peak_bytes)}, {verdict}, {duration(way.step_seconds)} for the same work"


def moment(at: Moment) -> str:
    """Write when memory is fullest."""
    inside = f" of {at.module}" if at.module else ""
    return f"step {at.step + 1}, {at.phase} pass{inside}" + (f", at {at.line}" if at.line else "")


def by_kind(owners: list[Owner]) -> list[tuple[str, int, list[tuple[str, int]]]]:
    """Group who holds memory: kind, bytes, and its three largest modules, where the members of a list are one."""
    totals: dict[str, dict[str, int]] = {}
    for item in owners:
        name = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", item.module)
        of_kind = totals.setdefault(item.kind, {})
        of_kind[name] = of_kind.get(name, 0) + item.bytes
    groups = []
    for kind, modules in totals.items():
        largest = sorted(modules.items(), key=lambda pair: (-pair[1], pair[0]))
        groups.append((kind, sum(modules.values()), largest[:3] if modules.keys() != {""} else []))
    return sorted(groups, key=lambda group: (-group[1], group[0]))
