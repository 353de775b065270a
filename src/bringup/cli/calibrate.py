"""``bringup calibrate``: measures a real device and writes its chip file and host file."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bringup import pricing
from bringup.errors import BringupError
from bringup.files import refuse_unwritable, write_text
from bringup.machine.files import load_chip, load_host
from bringup.report import terminal
from bringup.text import quantity
from bringup.validation import errors, summarize
from bringup.validation.calibration import calibrate


@click.command()
@click.option(
    "--device", default="cpu", show_default=True, metavar="NAME", help="Torch device to measure: cpu, cuda, cuda:1, ..."
)
@click.option("--name", default=None, metavar="NAME", help="Name of the chip (default: this-DEVICE, such as this-cpu).")
@click.option("--out", default=".", show_default=True, metavar="DIR", help="Existing directory for the two files.")
def command(device: str, name: str | None, out: str) -> None:
    """Time a suite of operators on a real device, and write a chip file for the device and a host file for its host.

    Use the files like any others: `bringup run --chip ./this-cpu.toml --host ./this-host.toml script.py`. Every number
    in them names this machine and the date as its source. Run nothing else during the calibration.
    """
    import tomli_w

    folder = Path(out)
    if not os.path.isdir(folder):
        raise BringupError(f"{folder} is not a directory: create it first, or give another one with --out")
    chip_name = name or f"this-{device.split(':')[0]}"
    chip_file, host_file = folder / f"{chip_name}.toml", folder / "this-host.toml"
    refuse_unwritable(chip_file, host_file)
    console = terminal.console()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:

        def begin(total: int, description: str) -> Callable[[], Any]:
            task = progress.add_task(description, total=total)
            done = itertools.count(1)

            def advance() -> None:
                progress.advance(task)
                if (count := next(done)) % max(total // 10, 1) == 0 and not console.is_terminal:
                    click.echo(f"{description}: {count} of {total}", err=True)

            return advance

        calibrated = calibrate(device, chip_name, begin)
    write_text(chip_file, tomli_w.dumps(calibrated.chip))
    write_text(host_file, tomli_w.dumps(calibrated.host))
    chip, _ = load_chip(str(chip_file)), load_host(str(host_file))
    row_errors = errors(calibrated.rows, chip)
    console.print(
        f"{terminal.escaped(chip.description)}: {chip.matrix.tflops['float32'] * 1e3:,.0f} GFLOP/s float32, "
        f"{chip.memory.bandwidth_gb_s:,.1f} GB/s, {pricing.launch_seconds(chip) * 1e6:.2g} us per launch",
    )
    console.print("mean error of the model on the measured operators:")
    for op, total in summarize(row_errors, lambda row: row.op).items():
        console.print(f"  {op:<12} {total.mean:>4.0%}  ({quantity(total.figures, 'measurement')})")
    console.print(f"  {'all':<12} {np.mean(np.abs(list(row_errors.values()))):>4.0%}")
    written = terminal.escaped(f"written: {chip_file} and {host_file}")
    console.print(written, soft_wrap=True)
