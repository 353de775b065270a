"""``bringup calibrate``: measure a device of this machine and write its chip file and host file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bringup.errors import BringupError
from bringup.files import refuse_unwritable, write_text
from bringup.machine.files import load_chip, load_host
from bringup.report import terminal
from bringup.validation import errors, summarize
from bringup.validation.calibration import calibrate


@click.command()
@click.option(
    "--device", default="cpu", show_default=True, metavar="NAME", help="A torch device: cpu, cuda, cuda:1, ..."
)
@click.option("--name", default=None, metavar="NAME", help="Name of the chip (default: this-cpu, this-cuda, ...).")
@click.option("--out", default=".", show_default=True, metavar="DIR", help="Where the two files go.")
def command(device: str, name: str | None, out: str) -> None:
    """Time a suite of operators on a real device, and describe the device in a chip file and its host in a host file.

    Every number has this machine and the date as its source. Use them as any other:
    `bringup run --chip ./this-cpu.toml --host ./this-host.toml script.py`. Leave the machine alone meanwhile.
    """
    import tomli_w

    folder = Path(out)
    if not os.path.isdir(folder):
        raise BringupError(f"{folder} is no folder: make it first, or give another with --out")
    chosen = name or f"this-{device.split(':')[0]}"
    chip_file, host_file = folder / f"{chosen}.toml", folder / "this-host.toml"
    refuse_unwritable(chip_file, host_file)
    console = terminal.console()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:

        def begin(total: int, what: str) -> Callable[[], Any]:
            task = progress.add_task(what, total=total)
            return lambda: progress.advance(task)

        calibrated = calibrate(device, chosen, begin)
    write_text(chip_file, tomli_w.dumps(calibrated.chip))
    write_text(host_file, tomli_w.dumps(calibrated.host))
    chip, _ = load_chip(str(chip_file)), load_host(str(host_file))
    off = errors(calibrated.rows, chip)
    console.print(
        f"{terminal.shown(chip.description)}: {chip.matrix.tflops['float32'] * 1e3:,.0f} GFLOP/s float32, "
        f"{chip.memory.bandwidth_gb_s:,.1f} GB/s, a launch {chip.launch.eager_us:.2g} us",
        highlight=False,
    )
    for family, each in summarize(off, lambda row: row.op).items():
        console.print(f"  {family:<12} {each.figures:>3} figures, the model is off by {each.mean:.0%}", highlight=False)
    written = terminal.shown(f"Written: {chip_file} and {host_file}")
    console.print(f"all: {np.mean(np.abs(list(off.values()))):.0%}. {written}", highlight=False, soft_wrap=True)
