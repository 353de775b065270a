"""``bringup fit``: shows which chips have enough memory for a program, and the largest batch that fits."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from bringup.analyse.search import Program, search
from bringup.cli.options import host_option
from bringup.errors import BringupError
from bringup.machine.files import chip_names, load_chip, load_host
from bringup.report import lines, terminal
from bringup.report.summary_json import as_dict
from bringup.text import duration, plain, size

if TYPE_CHECKING:
    from bringup.analyse.search import Fit


@click.command()
@click.option("--chips", required=True, metavar="NAME|FILE,...", help="Chips to try.")
@click.option(
    "--vary",
    default=None,
    metavar="--ARGUMENT|VARIABLE",
    help="Find the largest whole number that fits, passed as this script argument or environment variable.",
)
@click.option(
    "--most", default=65536, show_default=True, type=click.IntRange(min=1), help="Largest number to try with --vary."
)
@host_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    chips: str,
    vary: str | None,
    most: int,
    host: str | None,
    as_json: bool,
    script: str,
    arguments: tuple[str, ...],
) -> None:
    """Run SCRIPT dry, and show which chips have enough memory for it and their predicted step time.

    ARGUMENTS of the script follow ``--``. With --vary, find the largest number that fits, such as a batch size:
    `bringup fit --chips t4,edge8 --vary --batch train.py -- --epochs 1`.
    """
    described = {name: load_chip(name) for name in chip_names(chips, "--chips")}
    if not os.path.isfile(script):
        raise BringupError(f"{script}: there is no such script: give the path of a Python file")
    if vary is not None and not re.fullmatch(r"--?[A-Za-z][\w-]*|[A-Za-z_]\w*", vary):
        raise BringupError(
            f"--vary must be an argument (--batch-size) or an environment variable (BATCH), got {vary!r}"
        )
    program = Program(script, arguments, vary)
    fits = search(program, described, load_host(host), most=most, say=_say)
    if as_json:
        click.echo(
            json.dumps({"script": script, "vary": vary, "chips": [_as_dict(fit) for fit in fits]}, sort_keys=True)
        )
        return
    _print(fits, program)


def _say(text: str) -> None:
    print(plain(text), file=sys.stderr, flush=True)


def _as_dict(fit: Fit) -> dict[str, Any]:
    def run(summary: Any) -> dict[str, Any]:
        full = as_dict(summary)
        keep = ("peak_bytes", "fits", "step_seconds", "samples", "launches", "error_band", "ways_to_fit")
        return {**{name: full[name] for name in keep}, "reserved_bytes": full["memory"]["reserved_bytes"]}

    largest = None
    if fit.largest is not None and fit.at_largest is not None:
        largest = {"value": fit.largest, **run(fit.at_largest)}
    return {
        "chip": fit.as_is.chip,
        "capacity_bytes": fit.as_is.capacity_bytes,
        **run(fit.as_is),
        "largest": largest,
    }


def _print(fits: list[Fit], program: Any) -> None:
    console = terminal.console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ["chip", "capacity", "needs", "", lines.unit(fits[0].as_is)]
    if program.vary:
        titles += [f"largest {program.vary}", lines.unit(fits[0].as_is), "samples/s"]
    for title in titles:
        table.add_column(title, justify="left" if title in ("chip", "") else "right", no_wrap=True)
    for fit in fits:
        summary = fit.as_is
        row = [
            terminal.escaped(summary.chip),
            size(summary.capacity_bytes),
            size(summary.peak_bytes),
            "fits" if summary.fits else "[red]does not fit[/]",
            duration(summary.step_seconds),
        ]
        if program.vary:
            row += _largest(fit)
        table.add_row(*row)
    console.print(table)
    for fit in fits:
        for way in fit.as_is.ways_to_fit:
            text = lines.way_text(way, fit.as_is.capacity_bytes)
            console.print(f"{terminal.escaped(fit.as_is.chip)} -> {terminal.escaped(text)}", highlight=False)


def _largest(fit: Fit) -> list[str]:
    if fit.largest is None or fit.at_largest is None:
        return ["none", "-", "-"]
    last = fit.at_largest
    rate = f"{last.samples / last.step_seconds:,.4g}" if last.samples and last.step_seconds else "-"
    return [f"{fit.largest:,}" + (" or more" if fit.open_end else ""), duration(last.step_seconds), rate]
