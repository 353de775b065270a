"""``bringup compare``: predicts one recording on several chips."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bringup.analyse.advice import advise
from bringup.analyse.compare import compare
from bringup.cli.options import complete_chips, host_clock_option, host_option
from bringup.errors import BringupError
from bringup.files import write_text
from bringup.machine.files import available_chips, chip_names, load_chip, load_host
from bringup.machine.topology import is_file, load_cluster
from bringup.report import comparison, directory, html, terminal
from bringup.report.lines import memory_share, per_million
from bringup.report.prediction import read_trace
from bringup.report.summary_json import as_dict
from bringup.report.terminal import escaped
from bringup.text import duration, figure, plain

if TYPE_CHECKING:
    from bringup.analyse.compare import Row
    from bringup.machine.topology import Topology
    from bringup.recording.trace import Trace
    from bringup.timeline.replay import Timeline


@click.command()
@click.argument("trace", type=click.Path())
@click.option(
    "--chips",
    default=None,
    shell_complete=complete_chips,
    metavar="NAME|FILE,...",
    help="Chips to compare; ratios are relative to the first one (default: all that ship with bringup; the one that "
    "the program ran on is first if it is among them).",
)
@click.option(
    "--clusters",
    default=None,
    metavar="NAME|FILE,...",
    help="Clusters to compare, such as dgx-a100x4,dgx-h100x4, for the recording of one rank of many.",
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
@click.option(
    "--reports",
    default=None,
    metavar="DIR",
    help="Write the report of every chip or cluster there; the page links to them.",
)
def command(
    trace: str,
    chips: str | None,
    clusters: str | None,
    all_chips: bool,
    host: str | None,
    host_clock: str,
    as_json: bool,
    page: str | None,
    reports: str | None,
) -> None:
    """Compare the predicted step time, memory, energy and cost of one recording on several chips or clusters.

    TRACE is the directory that `bringup run` has written, or its trace.npz.
    """
    if all_chips and chips:
        raise click.UsageError("--all and --chips exclude each other: give one of them")
    if clusters is not None and (chips or all_chips):
        raise click.UsageError("--clusters names the chips, too: leave out --chips and --all")
    on_clusters = chip_names(clusters, "--clusters", "cluster") if clusters is not None else None
    noun = "cluster" if on_clusters else "chip"
    recording = read_trace(trace)
    if on_clusters is not None:
        described = [load_chip(_fitting(name, recording).node.chip) for name in on_clusters]
    else:
        recorded = recording.about.get("chip")
        names = chip_names(chips, "--chips") if chips else sorted(available_chips(), key=lambda name: name != recorded)
        described = [load_chip(name) for name in names]
    machine = load_host(host)
    if reports:
        _make(reports)
    written: list[str] = []  # the paths of the rows' reports
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("pricing", total=len(described))

        def done(timeline: Timeline, row: Row) -> None:
            if reports:
                written.append(_unused(os.path.join(reports, re.sub(r"[^\w.-]", "_", row.name)), written))
                write_text(written[-1], html.page(timeline, advise(timeline, row.summary)))
            bar.advance(task)

        rows = compare(
            recording,
            described,
            machine,
            host_clock=host_clock,  # type: ignore[arg-type]
            clusters=on_clusters,
            done=done,
        )
    target = Path(page) if page else Path(trace) / "compare.html" if os.path.isdir(trace) else None
    folder = target.parent if target else Path()
    as_recorded = {"host": machine.name, "host_clock": host_clock}
    of_run = str(recording.about.get(noun, ""))
    is_linked = os.path.isfile(folder / "report.html") and as_recorded.items() <= recording.about.items()
    links = [
        "" if not reports else Path(os.path.relpath(path, folder)).as_posix() for path in written or [""] * len(rows)
    ]
    if is_linked:
        names = [_whole_path(row.name) if on_clusters else row.name for row in rows]
        links = [link or ("report.html" if name == of_run else "") for link, name in zip(links, names, strict=True)]
    text = comparison.page(recording, rows, links, noun)
    if page:
        write_text(page, text)
    elif target is not None and not os.access(target.parent, os.W_OK):  # no error: the user did not request the page
        click.echo(f"bringup: {plain(str(target))}: cannot be written: give another path with --html FILE", err=True)
        target = None
    elif target is not None:
        directory.add(target.parent, target.name, text, recording.about.get("run", ""))
    if as_json:
        listed = [
            {**as_dict(row.summary), "name": row.name, "bound": row.bound, "graph_only": row.graph_only} for row in rows
        ]
        click.echo(json.dumps(listed, sort_keys=True))
        return
    console = terminal.console()
    if on_clusters is not None:
        print_clusters(rows, console)
    else:
        print_table(rows if chips else sorted(rows, key=lambda row: row.summary.step_seconds), console)
    for name, path in (("page", target), ("reports", reports)):
        if path:
            console.print(f"{name}: {terminal.escaped(path)}", soft_wrap=True)


def _make(folder: str) -> None:
    """Create a folder, or raise `BringupError`."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise BringupError(f"{folder}: cannot be created ({error.strerror}): give another directory") from None


def _unused(path: str, others: list[str]) -> str:
    """Return a page's path that no other row has: names of files may differ only in what a path cannot contain."""
    numbers = itertools.count(2)
    name = f"{path}.html"
    while name in others:
        name = f"{path}-{next(numbers)}.html"
    return name


def _whole_path(cluster: str) -> str:
    """Return a cluster's name, or the whole path of its file, as recordings have it."""
    return os.path.abspath(cluster) if is_file(cluster) else cluster


def _fitting(name: str, recording: Trace) -> Topology:
    """Load a cluster that has a chip for each rank of the recording."""
    topology = load_cluster(name)
    topology.group(int(recording.about.get("ranks", 1)))  # raises if the cluster has too few chips
    return topology


def print_clusters(rows: list[Row], console: Console) -> None:
    """Print a table with one row per cluster."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ("cluster", "chip", "step", "", "communication", "exposed", "memory", "MFU", "energy", "cost")
    for title in titles:
        table.add_column(title, justify="left" if title in ("cluster", "chip") else "right", no_wrap=True)
    for row in rows:
        summary, ranks = row.summary, row.summary.ranks
        table.add_row(
            escaped(row.name),
            escaped(summary.chip),
            duration(summary.step_seconds),
            f"{row.ratio:.2f}x",
            duration(summary.communication_seconds),
            duration(summary.exposed_communication_seconds),
            memory_share(summary),
            "-" if summary.mfu is None else f"{summary.mfu:.0%}",
            "-" if summary.energy_joules is None else f"{figure(summary.energy_joules * ranks)} J",
            "-" if summary.cost_usd is None else f"{figure(summary.cost_usd * ranks)} USD",
        )
    console.print(table)
    console.print("energy and cost are those of a step on all ranks")


def print_table(rows: list[Row], console: Console) -> None:
    """Print a table with one row per chip; ``*`` marks those that only run compiled graphs."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    step_or_run = rows[0].summary.unit
    for title in ("chip", step_or_run, "", "bound", "busy", "memory", "fallbacks", "energy", "cost", "band"):
        table.add_column(title, justify="left" if title in ("chip", "bound") else "right", no_wrap=True)
    for row in rows:
        summary = row.summary
        total = summary.step_seconds or 1.0
        table.add_row(
            escaped(summary.chip + ("*" if row.graph_only else "")),
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
    if any(row.graph_only for row in rows):
        console.print("* only runs compiled graphs: the host pays nothing per operator", style="dim")
