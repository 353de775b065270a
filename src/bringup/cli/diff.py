"""``bringup diff``: compares two recordings by module, line and operator."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from bringup.analyse import diff as comparison
from bringup.cli.options import complete_chips, host_clock_option, output_options, quantity
from bringup.cli.report import priced
from bringup.errors import BringupError
from bringup.files import refuse_unwritable, write_text
from bringup.report import diff as view
from bringup.report import exceeded, github, terminal
from bringup.text import plain
from bringup.units import Change, parse_size_change, parse_time_change

EXCEEDED = 1  # the exit code if a limit is exceeded


@click.command()
@click.argument("before", type=click.Path())
@click.argument("after", type=click.Path())
@click.option(
    "--chip",
    default=None,
    shell_complete=complete_chips,
    metavar="NAME|FILE",
    help="Chip for both runs (default: that of each recording).",
)
@click.option("--host", default=None, metavar="NAME|FILE", help="Host for both runs (default: that of each recording).")
@host_clock_option("the CPU time measured during the recording", default=None)
@click.option(
    "--max-slower",
    callback=quantity(parse_time_change),
    default=None,
    metavar="CHANGE",
    help="End with exit code 1 if a step of AFTER takes longer by more than a change such as 5% or +2ms.",
)
@click.option(
    "--max-memory",
    callback=quantity(parse_size_change),
    default=None,
    metavar="CHANGE",
    help="End with exit code 1 if AFTER holds more memory by more than a change such as 5% or +100MiB.",
)
@click.option("--html", "page", default=None, metavar="FILE", help="Write the comparison as a page.")
@output_options("the comparison")
def command(
    before: str,
    after: str,
    chip: str | None,
    host: str | None,
    host_clock: str | None,
    max_slower: Change | None,
    max_memory: Change | None,
    page: str | None,
    output: str,
) -> None:
    """Compare two runs: what became slower or faster, what is new, what is gone.

    BEFORE and AFTER are directories that `bringup run` has written, or their trace files.
    """
    refuse_unwritable(*((page,) if page else ()))
    first, second = (priced(path, chip, host, host_clock) for path in (before, after))
    runs, names = (first.summary, second.summary), (before, after)
    if (first.summary.steps_by == "whole") != (second.summary.steps_by == "whole"):
        whole, other = (before, after) if first.summary.steps_by == "whole" else (after, before)
        raise BringupError(
            f"{plain(whole)} has no steps and {plain(other)} has, so their times cannot be compared: "
            "mark the steps of both programs with bringup.step()"
        )
    compared = comparison.diff(runs, (first.timeline, second.timeline))
    if page:
        traces = (first.timeline.trace, second.timeline.trace)
        write_text(page, view.page(compared, traces, names, _reports(names, Path(page).parent)))
    if output == "json":
        click.echo(view.as_json(compared))
    else:
        console = terminal.console()
        view.print_diff(compared, names, console)
        if page:
            console.print(f"page: {terminal.escaped(page)}", soft_wrap=True)
    sentences = list(exceeded.by_change(runs, names, max_slower, max_memory))
    for sentence in sentences:
        print(f"bringup: {plain(sentence)}", file=sys.stderr)
    if output == "github":
        github.write(github.of_diff(compared, names, sentences))
    sys.exit(EXCEEDED if sentences else 0)


def _reports(names: tuple[str, str], folder: Path) -> dict[str, str]:
    """Return the addresses of the runs' reports, seen from the folder of a page."""
    pages = {name: Path(name, "report.html") for name in names}
    return {name: Path(os.path.relpath(path, folder)).as_posix() for name, path in pages.items() if path.is_file()}
