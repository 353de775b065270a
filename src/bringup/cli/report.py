"""``bringup report``: reports a recording again, on any chip and host."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bringup.cli.options import host_clock_option, host_option, json_option
from bringup.errors import BringupError
from bringup.machine.files import available_chips, load_chip, load_host
from bringup.report import directory, summary_json, terminal, writer
from bringup.report.prediction import price, read_trace
from bringup.text import short


@click.command()
@click.argument("trace")
@click.option("--chip", default=None, metavar="NAME|FILE", help="Chip to predict for (default: that of the recording).")
@host_option
@host_clock_option("the CPU time measured during the recording")
@click.option("--out", default=None, metavar="DIR", help="Write the four files of a report there (default: none).")
@json_option
def command(trace: str, chip: str | None, host: str | None, host_clock: str, out: str | None, as_json: bool) -> None:
    """Report a recording again, without running the program. This needs no torch.

    TRACE is the directory that `bringup run` has written, or its trace.npz.
    """
    target = directory.prepare(out) if out else None
    machine = load_host(host)
    recording = read_trace(trace)
    name = chip or str(recording.about.get("chip", ""))
    if not chip and name not in available_chips():  # a recording may come from anybody, and names no files
        raise BringupError(
            f"{trace}: was recorded on {short(name) or 'an unnamed chip'}, which does not ship with bringup: "
            "give its file with --chip"
        )
    prediction = price(recording, load_chip(name), machine, host_clock=host_clock)  # type: ignore[arg-type]
    if target is not None:
        writer.write(prediction, target, progress=sys.stderr.isatty())
    if as_json:
        click.echo(summary_json.as_json(prediction.summary, indent=None))
        return
    console = terminal.console()
    terminal.print_summary(prediction.summary, console)
    if out:
        console.print(f"report: {terminal.escaped(Path(out, 'report.html'))}", highlight=False, soft_wrap=True)
