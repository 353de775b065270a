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
from bringup.cli.fit_model import MODEL_OPTIONS, model_options, print_model
from bringup.cli.options import complete_chips, host_option, output_options
from bringup.cli.run import command as run
from bringup.errors import BringupError
from bringup.machine.files import available_chips, chip_names, load_chip, load_host
from bringup.report import github, lines, terminal
from bringup.report.summary_json import as_dict
from bringup.text import duration, plain, size

if TYPE_CHECKING:
    from bringup.analyse.search import Fit


# Options of `bringup run` that fit sets itself, or that have no use in a search.
NOT_SHARED = {
    "chips",
    "host",
    "host_clock",
    "dry",
    "oom",
    "sanitize",
    "out",
    "output",
    "as_json",
    "script",
    "arguments",
}
SHARED = [
    option for option in run.params if isinstance(option, click.Option) and option.name not in (*NOT_SHARED, "help")
]


@click.command()
@click.option(
    "--chips",
    default=None,
    shell_complete=complete_chips,
    metavar="NAME|FILE,...",
    help="Chips to try (with --model, default: all that ship).",
)
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
@output_options("the result")
@model_options
@click.argument("script", type=click.Path(), required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(
    context: click.Context,
    /,
    chips: str | None,
    vary: str | None,
    most: int,
    host: str | None,
    output: str,
    model: str | None,
    script: str | None,
    arguments: tuple[str, ...],
    **options: Any,
) -> None:
    """Run SCRIPT dry, and show which chips have enough memory for it and their predicted step time.

    ARGUMENTS of the script follow ``--``. With --vary, find the largest number that fits, such as a batch size:
    `bringup fit --chips t4,edge8 --vary --batch train.py -- --epochs 1`. With --model instead of SCRIPT, show the
    memory of a model: `bringup fit --model llama-2-7b --train --lora 8 --batch 4`.
    """
    changed = _changed(context)
    if model is not None:
        _refuse(changed & {"vary", "most", "host", "script", *(option.name for option in SHARED)}, "--model")
        if not options["train"] and (idle := changed & {"optimizer", "lora", "checkpointing"}):
            raise BringupError(f"{_listed(idle)} applies to training: add --train")
        names = chip_names(chips, "--chips") if chips and "chips" in changed else available_chips()
        chosen = {name: options[name] for name in MODEL_OPTIONS}
        print_model(model, {name: load_chip(name) for name in names}, output == "json", **chosen)
        return
    _refuse(changed & set(MODEL_OPTIONS), "a script")
    if script is None or chips is None:
        missing = "SCRIPT, or --model" if script is None else "--chips"
        raise BringupError(f"bringup fit needs {missing}: for example, bringup fit --chips t4 train.py")
    described = {name: load_chip(name) for name in chip_names(chips, "--chips")}
    if not options["module"] and not os.path.isfile(script):
        raise BringupError(f"{script}: there is no such script: give the path of a Python file")
    if vary is not None and not re.fullmatch(r"--?[A-Za-z][\w-]*|[A-Za-z_]\w*", vary):
        raise BringupError(
            f"--vary must be an argument (--batch-size) or an environment variable (BATCH), got {vary!r}"
        )
    program = Program(script, arguments, vary, _passed_on(options))
    fits = search(program, described, load_host(host), most=most, say=_say)
    if output == "json":
        click.echo(
            json.dumps({"script": script, "vary": vary, "chips": [_as_dict(fit) for fit in fits]}, sort_keys=True)
        )
        return
    _print(fits, program)
    if output == "github":
        github.write(github.of_fit(fits, script))


def _changed(context: click.Context) -> set[str]:
    """Return the names of the options and arguments that the user gave."""
    source = click.core.ParameterSource.COMMANDLINE
    return {name for name in context.params if context.get_parameter_source(name) == source and context.params[name]}


def _refuse(names: set[str], other: str) -> None:
    if names:
        raise BringupError(f"{_listed(names)} and {other} exclude each other: leave one out")


def _listed(names: set[str]) -> str:
    return ", ".join("SCRIPT" if name == "script" else f"--{name.replace('_', '-')}" for name in sorted(names))


def _passed_on(options: dict[str, Any]) -> tuple[str, ...]:
    """Return the options of `bringup run` that differ from their defaults, as the command line has them."""
    words: list[str] = []
    for option in SHARED:
        value = options[option.name or ""]
        if option.is_flag and value:
            words.append(option.opts[0])
        elif not option.is_flag and value != option.default:
            words.append(f"{option.opts[0]}={value}")
    return tuple(words)


def _say(text: str) -> None:
    print(plain(text), file=sys.stderr, flush=True)


def _as_dict(fit: Fit) -> dict[str, Any]:
    def run(summary: Any) -> dict[str, Any]:
        full = as_dict(summary)
        keep = ("peak_bytes", "fits", "verdict", "step_seconds", "samples", "launches", "error_band", "ways_to_fit")
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


command.params[:0] = SHARED


def _print(fits: list[Fit], program: Any) -> None:
    console = terminal.console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ["chip", "capacity", "needs", "", fits[0].as_is.unit]
    if program.vary:
        titles += [f"largest {program.vary}", fits[0].as_is.unit, "samples/s"]
    for title in titles:
        table.add_column(title, justify="left" if title in ("chip", "") else "right", no_wrap=True)
    for fit in fits:
        summary = fit.as_is
        row = [
            terminal.escaped(summary.chip),
            size(summary.capacity_bytes),
            size(summary.peak_bytes),
            summary.verdict_text() if summary.fits else f"[red]{summary.verdict_text()}[/]",
            duration(summary.step_seconds),
        ]
        if program.vary:
            row += _largest(fit)
        table.add_row(*row)
    console.print(table)
    for fit in fits:
        for way in fit.as_is.ways_to_fit:
            text = lines.way_text(way, fit.as_is.room_bytes)
            console.print(f"{terminal.escaped(fit.as_is.chip)} -> {terminal.escaped(text)}")


def _largest(fit: Fit) -> list[str]:
    if fit.largest is None or fit.at_largest is None:
        return ["none", "-", "-"]
    last = fit.at_largest
    rate = f"{last.samples * last.batches / last.step_seconds:,.4g}" if last.samples and last.step_seconds else "-"
    return [f"{fit.largest:,}" + (" or more" if fit.open_end else ""), duration(last.step_seconds), rate]
