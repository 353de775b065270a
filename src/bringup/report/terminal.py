"""The one-screen summary."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bringup.summary import Summary
from bringup.text import duration, size


def console() -> Console:
    """A console as wide as the terminal; wide enough for a table where there is none."""
    return Console() if sys.stdout.isatty() else Console(width=140)


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
    machine = f"(host {escape(summary.host)}, {escape(summary.link)})"
    console.print(
        f"[bold]{what} {duration(summary.step_seconds)}[/] on [bold]{escape(summary.chip)}[/] {machine}    "
        f"[dim]{escape(band(summary))}[/]"
    )
    shares = [
        ("chip busy", summary.device_seconds),
        ("link", summary.link_seconds),
        ("host-bound", summary.host_seconds),
        ("waiting on fallbacks", summary.fallback_seconds),
    ]
    total = summary.step_seconds or 1.0
    console.print("  " + "   ".join(f"{name} {seconds / total:.0%}" for name, seconds in shares))
    found = {
        "optimizer": "found by optimizer steps",
        "forward": "found by outermost module calls",
        "program": "marked by the program",
        "whole": "no steps found",
    }[summary.steps_by]
    warm = ", the first left out" if summary.steps > 1 else ""
    fits = "fits" if summary.fits else "[bold red]does not fit[/]"
    energy = "" if summary.energy_joules is None else f"   {summary.energy_joules:.3g} J"
    cost = "" if summary.cost_usd is None else f"   {per_million(summary)}"
    console.print(
        f"  {summary.launches:,} launches per {what}, batch {summary.samples or 'unknown'}; "
        f"{summary.steps:,} steps {found}{warm}"
        if summary.steps_by != "whole"
        else f"  {summary.launches:,.0f} launches, {found}",
        highlight=False,
    )
    console.print(
        f"  memory {size(summary.peak_bytes)} of {size(summary.capacity_bytes)}, {fits}{energy}{cost}", highlight=False
    )
    _print_fallbacks(summary, console)
    for number, item in enumerate(summary.bottlenecks, 1):
        console.print(f"  [bold]{number}.[/] {escape(item.condition)}; {escape(item.cause)}", highlight=False)
        console.print(f"     -> {escape(item.action)}", highlight=False)
    if summary.unpriced:
        names = ", ".join(summary.unpriced[:6]) + (", ..." if len(summary.unpriced) > 6 else "")
        console.print(f"  priced by their bytes, as no rule knows them: {escape(names)}", highlight=False)


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
            escape(f"{item.op} {item.dtype}"),
            escape(where),
            f"{item.count:,.3g}x",
            f"{duration(item.seconds)}/{unit(summary)}",
            f"({parts})",
        )
    console.print(table)
    if len(summary.fallbacks) > 5:
        rest = sum(item.seconds for item in summary.fallbacks[5:])
        console.print(f"  and {len(summary.fallbacks) - 5} more, {duration(rest)} per step: see the report")
