"""``bringup driver``: writes a new driver, checks one, and says which kernel to write next."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.table import Table

from bringup import core_build
from bringup.cli.options import complete_chips
from bringup.cli.options import quantity as measure
from bringup.drivers import new as skeleton
from bringup.drivers.names import resolve
from bringup.errors import BringupError
from bringup.files import refuse_unwritable, write_text
from bringup.machine.files import load_chip
from bringup.process import DEFAULT_CHIP, asked_chip, asked_driver
from bringup.report.terminal import console as new_console
from bringup.report.terminal import escaped
from bringup.text import duration, quantity, size
from bringup.units import parse_time

COLOURS = {"right": "green", "wrong": "red", "refused": "dim"}


@click.group()
def command() -> None:
    """Write a driver for a chip, check it, and find out which kernel to write next."""


@command.command(short_help="Print the folder of driver.h.")
def include() -> None:
    """Print the folder of driver.h, for a compiler's option -I."""
    click.echo(core_build.sources())


@command.command(short_help="Write the folder of a new driver.")
@click.argument("name")
def new(name: str) -> None:
    """Write the folder NAME with a driver that runs every operator on the host, and a Makefile."""
    skeleton.write(name)
    click.echo(f"{name}/{name}.cpp   build: make -C {name}   check: bringup driver check ./{name}/{name}.so")


@command.command(short_help="Check a driver against the CPU.")
@click.argument("driver")
@click.option("--json", "json_file", default=None, metavar="FILE", help="Write the result as JSON to this file.")
@click.option("--html", "html_file", default=None, metavar="FILE", help="Write the result as a page to this file.")
@click.option("--junit", "junit_file", default=None, metavar="FILE", help="Write the result for CI to this file.")
@click.option("--only", default="", metavar="OP,...", help="Operators of torch's database, such as add,softmax.")
@click.option("--dtype", default="", metavar="DTYPE,...", help="Dtypes, such as float32 (default: all).")
@click.option(
    "--chip", default=None, shell_complete=complete_chips, metavar="NAME|FILE", help="Chip whose memory the device has."
)
@click.option(
    "--jobs", default=2, show_default=True, type=click.IntRange(min=1), help="Number of processes at the same time."
)
@click.option(
    "--limit",
    callback=measure(parse_time),
    default="60s",
    show_default=True,
    metavar="TIME",
    help="Time after which a kernel counts as endless.",
)
def check(
    driver: str,
    json_file: str | None,
    html_file: str | None,
    junit_file: str | None,
    only: str,
    dtype: str,
    chip: str | None,
    jobs: int,
    limit: float,
) -> None:
    """Compare the kernels of DRIVER, a name or a library, with the CPU; check its memory, streams, events and errors.

    The exit code is 1 if something is wrong.
    """
    from bringup.drivers import check as checking  # imports torch
    from bringup.drivers import page

    name = chip or asked_chip() or DEFAULT_CHIP
    load_chip(name)
    refuse_unwritable(*(file for file in (json_file, html_file, junit_file) if file))
    options = checking.Options(resolve(driver), name, jobs, _operators(only), _dtypes(dtype), limit)
    result = checking.run(options, _progress if sys.stderr.isatty() else lambda name: None)
    if sys.stderr.isatty():
        _progress("")
    texts = {
        json_file: json.dumps(result, indent=2) + "\n",
        html_file: page.page(result),
        junit_file: page.junit(result),
    }
    for file, text in texts.items():
        if file:
            write_text(file, text)
    _print(result, checking.sentence(result))
    sys.exit(0 if checking.is_right(result) else 1)


@command.command(short_help="Say which kernel to write next.")
@click.argument("program", type=click.Path())
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--driver", default=None, metavar="NAME|FILE", help="The driver (default: BRINGUP_DRIVER).")
@click.option(
    "--chip",
    default=None,
    shell_complete=complete_chips,
    metavar="NAME|FILE",
    help="Chip to run on (default: BRINGUP_CHIP or edge8).",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object per operator.")
def next(program: str, arguments: tuple[str, ...], driver: str | None, chip: str | None, as_json: bool) -> None:
    """Say which operator of PROGRAM to write a kernel for next, and what that would save of a step.

    PROGRAM is a script, whose ARGUMENTS follow --, or the trace.npz of a run on the driver. Without steps of an
    optimizer, the whole run counts as one step.
    """
    from bringup.drivers.next import ranked, recorded  # imports numpy

    name = driver or asked_driver()
    if not name and not program.endswith(".npz"):
        raise BringupError("name the driver with --driver")
    seconds, savings = ranked(recorded(program, arguments, resolve(name) if name else "", chip))
    if as_json:
        click.echo(json.dumps(savings, indent=2))
        return
    step = "" if seconds is None else f" of {duration(seconds)}"
    for number, saving in enumerate(savings, 1):
        launches = quantity(saving["launches"], "launch")
        copies = f"{size(saving['bytes'])} of copies disappear"
        click.echo(
            f"{number:>3}. {saving['op']}   saves {duration(saving['saves_seconds'])}{step} ({launches}; {copies})"
        )
    if not savings:
        click.echo("no kernel would save time: what runs on the host cannot run on the device, or takes no longer")


def _operators(names: str) -> tuple[str, ...]:
    listed = tuple(name for name in names.split(",") if name)
    if listed:
        from torch.testing._internal.common_methods_invocations import op_db

        there_are = (
            {str(op.name) for op in op_db} | {f"{op.name}.{op.variant_test_name}" for op in op_db} | {"optimizers"}
        )
        for name in listed:
            if name not in there_are:
                raise BringupError(
                    f"--only: torch's database has no operator {name!r}: give names such as add, softmax, optimizers"
                )
    return listed


def _dtypes(names: str) -> tuple[str, ...]:
    from bringup.drivers.cases import DTYPES

    listed = tuple(f"torch.{name}" for name in names.split(",") if name)
    for name in listed:
        if name not in map(str, DTYPES):
            known_dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise BringupError(f"--dtype must be of {known_dtypes}; got {name.removeprefix('torch.')!r}")
    return listed


def _progress(name: str) -> None:
    print(f"\r\033[K{name[:70]}", end="", file=sys.stderr, flush=True)


def _print(result: dict[str, Any], counts: str) -> None:
    console = new_console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (("operator", "left"), ("dtype", "left"), ("verdict", "left"), ("launches", "right")):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("worst error", justify="right")
    table.add_column("reason", overflow="fold")
    for line in result["operators"]:
        if line["verdict"] != "refused":
            verdict = f"[{COLOURS[line['verdict']]}]{line['verdict']}[/]"
            error = f"{line['worst_error']:.1e}"
            table.add_row(line["op"], line["dtype"], verdict, str(line["samples"]), error, escaped(line["reason"]))
    if table.row_count:
        console.print(table)
    for line in result["checks"]:
        text = escaped(f"{line['check']}: {line['evidence']}")
        console.print(f"[{COLOURS[line['verdict']]}]{line['verdict']}[/] {text}", soft_wrap=True)
    console.print(escaped(f"{result['driver']}: {counts}"), soft_wrap=True)
