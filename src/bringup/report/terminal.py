"""The one-screen summary."""

from __future__ import annotations

import io
import re
import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bringup.analyse.holders import Moment, Owner
from bringup.analyse.summary import Summary, Way
from bringup.text import duration, plain, size


def console() -> Console:
    """Return a console as wide as the terminal; wide enough for a table where there is none."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have letters that a terminal's encoding lacks
    return Console(width=None if sys.stdout.isatty() else 140, emoji=False)


def shown(text: object) -> str:
    """Return a text of a file, a name or a path as rich prints it: its brackets are no markup, see also `plain`."""
    return escape(plain(str(text)))


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


def print_summary(summary: Summary, console: Console) -> None:
    """Print what happened and what to do, on one screen."""
    what = unit(summary)
    machine = f"(host {shown(summary.host)}, {shown(summary.link)})"
    console.print(
        f"[bold]{what} {duration(summary.step_seconds)}[/] on [bold]{shown(summary.chip)}[/] {machine}    "
        f"[dim]{shown(band(summary))}[/]"
    )
    total = summary.step_seconds or 1.0
    console.print("  " + "   ".join(f"{name} {seconds / total:.0%}" for name, seconds in summary.parts().items()))
    steps = summary.steps_text()
    warm = ", the first left out" if summary.steps > 1 else ""
    if summary.dry:
        console.print(
            "  dry run: nothing was computed; what the program printed of results are stand-ins", highlight=False
        )
    if summary.chip_time:
        console.print("  the program's clocks showed chip time: what it printed of times is predicted", highlight=False)
    if summary.redirected:
        console.print(f"  cuda meant the chip: {shown(redirected(summary))}", highlight=False)
    fits = "fits" if summary.fits else "[bold red]does not fit[/]"
    energy = "" if summary.energy_joules is None else f"   {summary.energy_joules:.3g} J"
    cost = "" if summary.cost_usd is None else f"   {per_million(summary)}"
    console.print(
        f"  {summary.launches:,} launches per {what}, batch {summary.samples or 'unknown'}; "
        f"{summary.steps:,} steps {steps}{warm}"
        if summary.steps_by != "whole"
        else f"  {summary.launches:,.0f} launches, {steps}",
        highlight=False,
    )
    console.print(
        f"  memory {size(summary.peak_bytes)} of {size(summary.capacity_bytes)}, {fits}{energy}{cost}", highlight=False
    )
    if not summary.fits:
        _print_memory(summary, console)
    _print_fallbacks(summary, console)
    _print_kernels(summary, console)
    for finding in summary.findings:
        console.print(f"  [bold red]{finding.check}[/]: {shown(finding.what)}", highlight=False)
        console.print(f"     -> {shown(finding.advice)}", highlight=False)
    for number, item in enumerate(summary.bottlenecks, 1):
        console.print(f"  [bold]{number}.[/] {shown(item.condition)}; {shown(item.cause)}", highlight=False)
        console.print(f"     -> {shown(item.action)}", highlight=False)
    if summary.compiled_graphs:
        breaks = len(summary.graph_breaks)
        cut = f", cut at {breaks} line{'s' * (breaks > 1)}:" if breaks else ", no graph breaks"
        console.print(f"  torch.compile: {summary.compiled_graphs} graphs{cut}", highlight=False)
        for cut_at in summary.graph_breaks[:5]:
            console.print(f"     {shown(cut_at.line)}: {shown(cut_at.reason)}", highlight=False)
        if breaks > 5:
            console.print(f"     and {breaks - 5} more: see the report", highlight=False)
    if summary.unpriced:
        names = ", ".join(summary.unpriced[:6]) + (", ..." if len(summary.unpriced) > 6 else "")
        console.print(f"  priced by their bytes, as no rule knows them: {shown(names)}", highlight=False)


def _print_kernels(summary: Summary, console: Console) -> None:
    """Print what limits the program's own kernels."""
    own = [item for item in summary.kernels if item.op.startswith("triton::")]
    if not own:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for item in own[:3]:
        name = item.op.removeprefix("triton::")
        busy = ", ".join(f"{engine} {share:.0%}" for engine, share in item.engines.items() if share >= 0.005)
        table.add_row(
            "  kernel",
            shown(name if len(name) <= 30 else name[:28] + ".."),
            shown(item.line),
            f"{item.count:,.3g}x",
            duration(item.seconds),
            f"{item.bound}-bound, {item.roof:.0%} of its roof; busy: {busy}",
        )
    console.print(table)
    if len(own) > 3:
        console.print(f"  and {len(own) - 3} more: see the report", highlight=False)


def redirected(summary: Summary) -> str:
    """Write what was used most by the name of CUDA."""
    most = sorted(summary.redirected.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = ", ".join(f"{name} {count:,}x" if count > 1 else name for name, count in most[:4])
    return shown + (f", and {len(most) - 4} more names" if len(most) > 4 else "")


def _print_memory(summary: Summary, console: Console) -> None:
    """Print when memory is fullest, who holds it then, and what would make it fit."""
    used = summary.memory
    if used.at is not None:
        console.print(f"  fullest in {shown(moment(used.at))}", highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for kind, total, most in by_kind(used.owners):
        where = ", ".join(f"{shown(name or 'outside modules')} {size(count)}" for name, count in most)
        if total < 0.005 * used.reserved_bytes:
            continue
        table.add_row("   ", kind, size(total), f"{total / max(used.reserved_bytes, 1):.0%}", where)
    console.print(table)
    if summary.out_of_memory:
        console.print("  it ended there: run it with --oom=continue to see what it needs, and what would make it fit")
    for way in summary.ways_to_fit:
        console.print(f"  -> {shown(way_text(way, summary.capacity_bytes))}", highlight=False)


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
    found = []
    for kind, modules in totals.items():
        largest = sorted(modules.items(), key=lambda pair: (-pair[1], pair[0]))
        found.append((kind, sum(modules.values()), largest[:3] if modules.keys() != {""} else []))
    return sorted(found, key=lambda group: (-group[1], group[0]))


def _print_fallbacks(summary: Summary, console: Console) -> None:
    if not summary.fallbacks:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for item in summary.fallbacks[:5]:
        parts = " + ".join(
            f"{name} {duration(seconds)}"
            for name, seconds in (
                ("d2h", item.d2h_seconds),
                ("host", item.host_seconds),
                ("h2d", item.h2d_seconds),
                ("stall", item.stall_seconds),
            )
        )
        where = f"{item.file}:{item.line}" if item.file else "-"
        table.add_row(
            "  fallback",
            shown(f"{item.op} {item.dtype}"),
            shown(where),
            f"{item.count:,.3g}x",
            f"{duration(item.seconds)}/{unit(summary)}",
            f"({parts})",
        )
    console.print(table)
    if len(summary.fallbacks) > 5:
        rest = sum(item.seconds for item in summary.fallbacks[5:])
        console.print(f"  and {len(summary.fallbacks) - 5} more, {duration(rest)} per step: see the report")
