"""``bringup validate``: predictions against measurements."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bringup.errors import BringupError
from bringup.files import refuse_unwritable, write_text
from bringup.machine.files import load_chip, load_host
from bringup.report import terminal
from bringup.report.validation import page
from bringup.text import duration
from bringup.validation import Errors, errors, grouped, measurements, read_folder, summarize
from bringup.validation.constants_fit import fit, generation, is_fitted

if TYPE_CHECKING:
    from bringup.validation import Errors, Measurement
    from bringup.validation.programs import Run


@click.command()
@click.option("--data", default=None, metavar="DIR", help="Published measurement sets (docs/validation.md says where).")
@click.option("--chip", "chips", default=None, metavar="NAME,...", help="Only these chips.")
@click.option("--family", "families", default=None, metavar="NAME,...", help="Only these operators: mm, softmax, ...")
@click.option("--programs", is_flag=True, help="Whole programs instead: models of transformers, recorded in dry form.")
@click.option("--leave-one-out", is_flag=True, help="Fit the constants again without each chip; needs --data.")
@click.option("--live", is_flag=True, help="Run models on a real device, beside the prediction; needs --chip FILE.")
@click.option("--device", default="cpu", show_default=True, metavar="NAME", help="The torch device of --live.")
@click.option("--host", default=None, metavar="FILE", help="The host file of --live (default: beside the chip file).")
@click.option("--worst", default=5, show_default=True, help="How many of the worst predictions to show.")
@click.option("--html", default=None, metavar="FILE", help="Write plots of predicted against measured.")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
def command(
    data: str | None,
    chips: str | None,
    families: str | None,
    programs: bool,
    leave_one_out: bool,
    live: bool,
    device: str,
    host: str | None,
    worst: int,
    html: str | None,
    as_json: bool,
) -> None:
    """Predict what others measured, and print the errors per chip, operator and set.

    Without --data: the figures that ship with bringup, each with its source. With it: every row of the sets in DIR,
    rows that constants were fitted on apart from unseen ones.
    """
    if html:
        refuse_unwritable(html)
    if live:
        _live(device, chips, host, as_json)
        return
    if programs:
        _programs(chips, worst, html, as_json)
        return

    data_sets = read_folder(Path(data)) if data else None
    rows = data_sets.rows if data_sets else measurements()
    wanted = [row for row in rows if _asked(row.chip, chips) and _asked_row(row, families)]
    if not wanted:
        chip_names, operators = sorted({row.chip for row in rows}), sorted({row.op for row in rows})
        raise BringupError(
            f"no measurement is of chips {chips or 'any'} and operators {families or 'any'}: there are "
            f"{', '.join(chip_names)}; {', '.join(operators)}"
        )
    off = errors(wanted)
    left_out = _left_out(list(rows), wanted, bool(data)) if leave_one_out else {}
    tables = _tables(off, left_out, sets=bool(data))
    console = _show(off, tables, html, as_json, sets=data is not None)
    if console is None:
        return
    for row, error in sorted(off.items(), key=lambda item: -abs(item[1]))[:worst]:
        dims = "x".join(map(str, row.dims))
        console.print(
            f"{error:+.0%}  {row.chip} {row.op} {row.dtype} {dims}: measured {duration(row.seconds)}, "
            f"predicted {duration(row.seconds * (1 + error))}  [dim]{terminal.shown(row.source)}[/]",
            highlight=False,
        )
    if data_sets and data_sets.unread:
        names = terminal.shown(", ".join(data_sets.unread[:3]))
        console.print(f"{len(data_sets.unread)} files have no reader or no chip: {names}, ...")


def _asked(name: str, asked: str | None) -> bool:
    return asked is None or name in asked.split(",")


def _asked_row(row: Measurement, asked: str | None) -> bool:
    return asked is None or not {row.op, row.family}.isdisjoint(asked.split(","))


def _publisher(row: Measurement) -> str:
    return row.source.split(" at ")[0].rsplit("/", 1)[-1]


Groups = dict[str, dict[str, "Errors"]]
KINDS = ("fitted", "unseen", "left out", "one run known")  # columns beside that of all rows


def _tables(off: dict[Measurement, float], left_out: dict[Measurement, float], *, sets: bool) -> dict[str, Groups]:
    """Errors by chip, by operator and by set, each in columns: all rows, fitted ones, unseen ones, chips left out."""
    kinds: dict[str, dict[Measurement, float]] = {"all": off}
    if sets:
        kinds["fitted"] = {row: error for row, error in off.items() if is_fitted(row)}
        kinds["unseen"] = {row: error for row, error in off.items() if not is_fitted(row)}
    if left_out:
        kinds["left out"] = left_out
    keys: dict[str, Callable[[Measurement], str]] = {"chip": lambda row: row.chip, "operator": lambda row: row.family}
    if sets:
        keys["set"] = lambda row: f"{_publisher(row)} {row.chip} {row.family} {row.dtype}"
    tables: dict[str, Groups] = {}
    for title, key in keys.items():
        columns = {name: {**summarize(part, key), **summarize(part, lambda _: "all")} for name, part in kinds.items()}
        names = [*sorted(name for name in columns["all"] if name != "all"), "all"]
        tables[title] = {
            name: {kind: by_name[name] for kind, by_name in columns.items() if name in by_name} for name in names
        }
    return tables


def _plain(tables: dict[str, Groups]) -> Any:
    return {
        title: {name: {kind: dataclasses.asdict(errors) for kind, errors in groups[name].items()} for name in groups}
        for title, groups in tables.items()
    }


def _print(console: Console, title: str, groups: Groups) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    kinds = {kind for by_kind in groups.values() for kind in by_kind}
    others = [kind for kind in KINDS if kind in kinds]
    for name in (title, "figures", "mean", "median", "bias", *others):
        table.add_column(name, justify="left" if name == title else "right")
    for name, by_kind in groups.items():
        total = by_kind["all"]
        table.add_row(
            terminal.shown(name),
            f"{total.figures:,}",
            f"{total.mean:.1%}",
            f"{total.median:.1%}",
            f"{total.bias:+.1%}",
            *(f"{by_kind[kind].mean:.1%}" if kind in by_kind else "-" for kind in others),
        )
    console.print(table)
    console.print()


def _left_out(rows: list[Measurement], wanted: list[Measurement], has_data: bool) -> dict[Measurement, float]:
    """Errors of every chip with constants that were fitted without its generation."""
    if not has_data:
        raise BringupError(
            "--leave-one-out fits the constants again, which needs the measurement sets: give --data DIR"
        )

    off_without: dict[Measurement, float] = {}
    generations = sorted({generation(row.chip) for row in wanted})
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for name in bar.track(generations, description="fitting without each chip"):
            constants = fit(rows, leave_out=name)
            for group in grouped(row for row in wanted if generation(row.chip) == name):
                off = group.errors(load_chip(group.chip), constants)
                off_without |= {row: float(error) for row, error in zip(group.rows, off, strict=True)}
    return off_without


def _show(
    off: dict[Any, float], tables: dict[str, Groups], html: str | None, as_json: bool, *, sets: bool
) -> Console | None:
    """Write the page, and the tables as JSON or as text; the console for more of the latter."""
    if html:
        write_text(html, page({row: row.seconds for row in off}, off, tables, sets))
    if as_json:
        click.echo(json.dumps(_plain(tables), indent=2))
        return None
    console = terminal.console()
    for title, groups in tables.items():
        _print(console, title, groups)
    return console


def _programs(chips: str | None, worst: int, html: str | None, as_json: bool) -> None:
    from bringup.validation import programs  # imports torch

    rows = [run for run in programs.runs() if _asked(run.chip, chips)]
    if not rows:
        measured = ", ".join(sorted({run.chip for run in programs.runs()}))
        raise BringupError(f"no whole program was measured on {chips}: there are runs on {measured}")
    off: dict[Run, float] = {}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for run in bar.track(rows, description="recording programs in dry form"):
            off |= programs.errors([run])
    scaled = programs.with_one_run(off)
    tables: dict[str, Groups] = {}
    keys: dict[str, Callable[[Any], str]] = {
        "chip": lambda run: run.chip,
        "program": lambda run: f"{run.model} {run.mode}",
    }
    for title, key in keys.items():
        columns = {
            name: {**summarize(part, key), **summarize(part, lambda _: "all")}
            for name, part in (("all", off), ("one run known", scaled))
        }
        names = [*sorted(name for name in columns["all"] if name != "all"), "all"]
        tables[title] = {name: {kind: part[name] for kind, part in columns.items() if name in part} for name in names}
    console = _show(off, tables, html, as_json, sets=True)
    if console is None:
        return
    for run, error in sorted(off.items(), key=lambda item: -abs(item[1]))[:worst]:
        console.print(
            f"{error:+.0%}  {run.chip} {run.text}: measured {duration(run.seconds)}, "
            f"predicted {duration(run.seconds * (1 + error))}  [dim]{terminal.shown(run.source)}[/]",
            highlight=False,
        )


def _live(device: str, chip_file: str | None, host_file: str | None, as_json: bool) -> None:
    from bringup.validation.live import compare  # imports torch

    if chip_file is None:
        raise BringupError(
            "--live compares a real device with its own chip file: measure one with `bringup calibrate`, then give "
            "--chip ./this-cpu.toml"
        )
    beside = Path(chip_file).with_name("this-host.toml")
    chip, host = load_chip(chip_file), load_host(host_file or (str(beside) if os.path.isfile(beside) else None))
    with Progress(console=Console(stderr=True), transient=True) as bar:

        def begin(total: int) -> Callable[[], Any]:
            task = bar.add_task(f"running models on {terminal.shown(device)}", total=total)
            return lambda: bar.advance(task)

        outcome = compare(device, chip, host, begin)
    comparisons = outcome.rows
    total = Errors.from_values(each.error for each in comparisons)
    if as_json:
        rows = [
            {"program": each.program.text, "measured_seconds": each.measured, "predicted_seconds": each.predicted}
            for each in comparisons
        ]
        click.echo(
            json.dumps(
                {
                    "device": device,
                    "chip": chip.name,
                    "programs": rows,
                    **dataclasses.asdict(total),
                    "speed": round(outcome.speed, 4),
                },
                indent=2,
            )
        )
        return
    console = terminal.console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("program, batch", "measured", "predicted", "error"):
        table.add_column(name, justify="left" if name.startswith("program") else "right")
    for each in comparisons:
        table.add_row(each.program.text, duration(each.measured), duration(each.predicted), f"{each.error:+.0%}")
    console.print(table)
    console.print(f"mean {total.mean:.1%}, median {total.median:.1%}, bias {total.bias:+.1%}", highlight=False)
    console.print(
        f"The machine now runs a product at {outcome.speed:.2f} of the speed in its chip file.",
        highlight=False,
    )
