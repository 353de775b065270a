"""``bringup compare``: predicts one recording on several chips."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bringup.analyse.compare import compare
from bringup.cli.options import complete_chips, host_clock_option, host_option
from bringup.files import write_text
from bringup.machine.files import available_chips, chip_names, load_chip, load_host
from bringup.report import directory, html, terminal
from bringup.report.lines import memory_share, per_million
from bringup.report.prediction import read_trace
from bringup.report.summary_json import as_dict
from bringup.report.terminal import escaped
from bringup.text import duration, figure, plain

if TYPE_CHECKING:
    from bringup.analyse.compare import Row


@click.command()
@click.argument("trace", type=click.Path())
@click.option(
    "--chips",
    default=None,
    shell_complete=complete_chips,
    metavar="NAME|FILE,...",
    help="Chips to compare; ratios are relative to the first one (default: all that ship with bringup).",
)
@click.option("--all", "all_chips", is_flag=True, help="Compare all chips that ship with bringup (as by default).")
@host_option
@host_clock_option("the CPU time measured during the recording")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of summaries.")
@click.option(
    "--html",
    "page",
    default=None,
    metavar="FILE",
    help="Write the comparison as a page (default: compare.html in the report's directory).",
)
def command(
    trace: str, chips: str | None, all_chips: bool, host: str | None, host_clock: str, as_json: bool, page: str | None
) -> None:
    """Compare the predicted step time, memory, energy and cost of one recording on several chips.

    TRACE is the directory that `bringup run` has written, or its trace.npz.
    """
    if all_chips and chips:
        raise click.UsageError("--all and --chips exclude each other: give one of them")
    names = chip_names(chips, "--chips") if chips else available_chips()
    described = [load_chip(name) for name in names]
    machine = load_host(host)
    recording = read_trace(trace)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("pricing", total=len(described))
        rows = compare(recording, described, machine, host_clock=host_clock, advance=lambda: bar.advance(task))  # type: ignore[arg-type]
    text = html.comparison(recording, rows)
    target = Path(page) if page else Path(trace) / "compare.html" if os.path.isdir(trace) else None
    if page:
        write_text(page, text)
    elif target is not None and not os.access(target.parent, os.W_OK):  # no error: the user did not request the page
        click.echo(f"bringup: {plain(str(target))}: cannot be written: give another path with --html FILE", err=True)
        target = None
    elif target is not None:
        directory.add(target.parent, target.name, text, recording.about.get("run", ""))
    if as_json:
        click.echo(json.dumps([{**as_dict(row.summary), "bound": row.bound} for row in rows], sort_keys=True))
        return
    console = terminal.console()
    print_table(rows if chips else sorted(rows, key=lambda row: row.summary.step_seconds), console)
    if target is not None:
        console.print(f"page: {terminal.escaped(target)}", highlight=False, soft_wrap=True)


def print_table(rows: list[Row], console: Console) -> None:
    """Print a table with one row per chip."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    step_or_run = rows[0].summary.unit
    for title in ("chip", step_or_run, "", "bound", "busy", "memory", "fallbacks", "energy", "cost", "band"):
        table.add_column(title, justify="left" if title in ("chip", "bound") else "right", no_wrap=True)
    for row in rows:
        summary = row.summary
        total = summary.step_seconds or 1.0
        table.add_row(
            escaped(summary.chip),
            duration(summary.step_seconds),
            f"{row.ratio:.2f}x",
            row.bound,
            f"{summary.device_seconds / total:.0%}",
            memory_share(summary),
            f"{sum(item.count for item in summary.fallbacks):,.0f}" if summary.fallbacks else "-",
            "-" if summary.energy_joules is None else f"{figure(summary.energy_joules)} J",
            per_million(summary),
            "-" if summary.error_band is None else f"{summary.error_band:.0%}",
        )
    console.print(table)
