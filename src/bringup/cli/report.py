"""``bringup report``: makes every view of a recording again, on any chip and host."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bringup.cli.options import complete_chips, host_clock_option
from bringup.errors import BringupError
from bringup.files import refuse_unwritable, write_text
from bringup.machine.files import available_chips, available_hosts, load_chip, load_host
from bringup.report import directory, html, perfetto, summary_json, terminal, writer
from bringup.report.prediction import Prediction, price, read_trace
from bringup.text import short


@click.command()
@click.argument("trace", type=click.Path())
@click.option(
    "--chip",
    default=None,
    shell_complete=complete_chips,
    metavar="NAME|FILE",
    help="Chip to predict for (default: that of the recording).",
)
@click.option("--host", default=None, metavar="NAME|FILE", help="Host to predict for (default: that of the recording).")
@host_clock_option("the CPU time measured during the recording", default=None)
@click.option("--terminal", "as_text", is_flag=True, help="Print the summary, as without a view, beside other views.")
@click.option("--html", "page", default=None, metavar="FILE", help="Write the report as a page.")
@click.option(
    "--perfetto",
    "events",
    default=None,
    metavar="FILE",
    help="Write the timeline for ui.perfetto.dev, such as FILE.pftrace.gz; .gz compresses it.",
)
@click.option(
    "--out", default=None, metavar="DIR", help="Write the four files of a report there, and print the summary."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one line of JSON instead of text.")
def command(
    trace: str,
    chip: str | None,
    host: str | None,
    host_clock: str | None,
    as_text: bool,
    page: str | None,
    events: str | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Make the views of a recording again, without running the program. This needs no torch.

    TRACE is the directory that `bringup run` has written, or its trace.npz. On the chip and host of the recording, the
    views have the same bytes as those of the run.
    """
    if as_json and as_text:
        raise click.UsageError("--json and --terminal exclude each other: give one of them")
    refuse_unwritable(*(path for path in (page, events) if path))
    target = directory.prepare(out) if out else None
    prediction = priced(trace, chip, host, host_clock)
    writer.identify(prediction)
    if target is not None:
        writer.write(prediction, target, progress=sys.stderr.isatty())
    if page:
        write_text(page, html.page(prediction.timeline, prediction.summary))
    if events:
        perfetto.write(events, prediction.timeline, prediction.summary.run)
    if as_json:
        click.echo(summary_json.as_json(prediction.summary, indent=None))
        return
    console = terminal.console()
    if as_text or out or not (page or events):
        terminal.print_summary(prediction.summary, console)
    report = str(Path(out, "report.html")) if out else None
    for name, path in (("report", report), ("page", page), ("timeline", events)):
        if path:
            console.print(f"{name}: {terminal.escaped(path)}", soft_wrap=True)


def priced(path: str, chip: str | None, host: str | None, host_clock: str | None) -> Prediction:
    """Price a recording.

    Args:
        path: a trace file, or the directory of a report.
        chip: name or file; None is that of the recording.
        host: the same for the host.
        host_clock: ``modelled``, ``measured``, or None for that of the recording.

    Raises:
        BringupError: the recording cannot be read, or its chip or host does not ship with bringup.
    """
    loaded = load_chip(chip) if chip else None  # a mistake in an option is reported before one in the recording
    machine = load_host(host) if host else None
    recording = read_trace(path)
    about = recording.about
    if loaded is None:
        loaded = load_chip(shipped(path, "chip", str(about.get("chip", "")), available_chips()))
    if machine is None:
        name = about.get("host")
        machine = load_host(shipped(path, "host", str(name), available_hosts()) if name else None)
    clock = host_clock or about.get("host_clock", "modelled")
    return price(recording, loaded, machine, host_clock=clock)  # type: ignore[arg-type]


def shipped(path: str, what: str, name: str, names: tuple[str, ...] | list[str]) -> str:
    """Return the name of a chip or host that ships. A recording may come from anybody, so it names no files."""
    if name not in names:
        place = "on" if what == "chip" else "with host"
        raise BringupError(
            f"{path}: was recorded {place} {short(name) or f'an unnamed {what}'}, which does not ship with bringup: "
            f"give its file with --{what}"
        )
    return name
