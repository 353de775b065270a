"""``bringup validate``: compares predictions with measurements."""

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
from bringup.pricing.bands import write_table
from bringup.report import terminal
from bringup.report.validation import page
from bringup.text import duration, quantity
from bringup.validation import (
    Errors,
    MeasurementSet,
    collectives,
    errors,
    grouped,
    measurements,
    read_folder,
    summarize,
)
from bringup.validation.collectives import read_collectives
from bringup.validation.constants_fit import fit, generation, is_fitted
from bringup.validation.measured import TIMES, MeasuredSet, band_rows, read_measured, tables

if TYPE_CHECKING:
    from bringup.validation import Errors, Measurement
    from bringup.validation.programs import Run


@click.command()
@click.option(
    "--data", default=None, metavar="DIR", help="Directory with published measurement sets, see docs/validation.md."
)
@click.option("--chip", "chips", default=None, metavar="NAME,...", help="Only these chips (default: all).")
@click.option(
    "--family",
    "families",
    default=None,
    metavar="NAME,...",
    help="Only these operators, such as mm,softmax (default: all).",
)
@click.option(
    "--programs", is_flag=True, help="Predict whole programs instead of operators: models of transformers, run dry."
)
@click.option(
    "--bands",
    default=None,
    metavar="FILE",
    help="Also write the errors by chip and bound, as src/bringup/pricing/bands.csv has them; needs --programs.",
)
@click.option(
    "--leave-one-out", is_flag=True, help="Also predict every chip with constants fitted without it; needs --data."
)
@click.option(
    "--live", is_flag=True, help="Run models on a real device and compare with their predictions; needs --chip FILE."
)
@click.option("--device", default="cpu", show_default=True, metavar="NAME", help="Torch device for --live.")
@click.option(
    "--host",
    default=None,
    metavar="FILE",
    help="Host file for --live (default: this-host.toml beside the chip file).",
)
@click.option("--worst", default=5, show_default=True, help="Number of the worst predictions to show.")
@click.option("--html", default=None, metavar="FILE", help="Write a page that plots predicted against measured times.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of tables.")
def command(
    data: str | None,
    chips: str | None,
    families: str | None,
    programs: bool,
    bands: str | None,
    leave_one_out: bool,
    live: bool,
    device: str,
    host: str | None,
    worst: int,
    html: str | None,
    as_json: bool,
) -> None:
    """Predict published measurements, and print the errors per chip, operator and set.

    Without --data, the measurements that ship with bringup are used. With --data, all rows of the sets in DIR are used.
    The model's constants were fitted on a part of these rows, so errors of fitted and of unseen rows are separate.
    """
    if bands and (not (programs or data) or chips):
        raise BringupError("--bands writes the errors of all programs: give --programs or --data, and no --chip")
    for file in filter(None, (html, bands)):
        refuse_unwritable(file)
    if live:
        _live(device, chips, host, as_json)
        return
    if programs:
        _programs(chips, worst, html, bands, as_json)
        return

    own = read_measured(Path(data)) if data else MeasuredSet((), ())
    systems, unusable = read_collectives(Path(data)) if data and _has_collectives(chips, families) else ([], [])
    data_sets = read_folder(Path(data), may_be_empty=bool(own.comparisons or systems)) if data else None
    if data_sets:
        data_sets = dataclasses.replace(data_sets, skipped=(*data_sets.skipped, *unusable))
    if bands:
        if not own.comparisons:
            raise BringupError(f"--bands needs whole programs, and {data} has none that bringup can read")
        write_table(Path(bands), band_rows(own.comparisons))
    listed = [row for row in own.comparisons if _is_listed(row.chip, chips) and _is_listed(row.kind, families)]
    own_tables: dict[str, Groups] = {
        title: {name: {"all": total} for name, total in groups.items()} for title, groups in tables(listed).items()
    }
    if systems:
        own_tables["collectives"] = collectives.summary(systems, leave_one_out=leave_one_out)
    rows = data_sets.rows if data_sets else measurements()
    selected = [row for row in rows if _is_listed(row.chip, chips) and _is_listed_operator(row, families)]
    if data_sets and not selected and (own_tables or not rows):
        timed = {row: row.error for row in listed if row.figure in TIMES}
        console = _show(timed, own_tables, html, as_json, sets=True)
        if console is not None:
            _print_worst(console, timed, worst, lambda row: row.text, with_source=False)
        _say_skipped(own, data_sets, as_json)
        return
    if not selected:
        chip_names, operators = sorted({row.chip for row in rows}), sorted({row.op for row in rows})
        raise BringupError(
            f"no measurement has chip {chips or 'any'} and operator {families or 'any'}; measured are "
            f"{', '.join(chip_names)}; {', '.join(operators)}"
        )
    row_errors = errors(selected)
    left_out = _left_out(list(rows), selected, bool(data)) if leave_one_out else {}
    all_tables = {**_tables(row_errors, left_out, sets=bool(data)), **own_tables}
    console = _show(row_errors, all_tables, html, as_json, sets=data is not None)
    if data_sets:
        _say_skipped(own, data_sets, as_json)
    if console is not None:
        _print_worst(console, row_errors, worst, lambda row: f"{row.op} {row.dtype} {'x'.join(map(str, row.dims))}")


def _say_skipped(own: MeasuredSet, sets: MeasurementSet, as_json: bool) -> None:
    """Name the files that were skipped or not read; on the error stream, if the other is JSON."""
    console = terminal.console(stderr=as_json)
    for sentence in (*own.skipped, *sets.skipped):
        console.print(terminal.escaped(sentence))
    if sets.unread:
        names = terminal.escaped(", ".join(sets.unread[:3]))
        count = quantity(len(sets.unread), "file")
        console.print(f"{count} not read, because bringup has no reader or no chip file for them: {names}, ...")


def _has_collectives(chips: str | None, families: str | None) -> bool:
    return chips is None and (families is None or "collective" in families.split(","))


def _is_listed(name: str, names: str | None) -> bool:
    return names is None or name in names.split(",")


def _is_listed_operator(row: Measurement, names: str | None) -> bool:
    return names is None or not {row.op, row.family}.isdisjoint(names.split(","))


def _publisher(row: Measurement) -> str:
    return row.source.split(" at ")[0].rsplit("/", 1)[-1]


Groups = dict[str, dict[str, "Errors"]]
KINDS = ("fitted", "unseen", "left out", "one run known")  # columns beside the one for all rows


def _tables(
    row_errors: dict[Measurement, float], left_out: dict[Measurement, float], *, sets: bool
) -> dict[str, Groups]:
    """Group errors by chip, by operator and by set; each group has them for all, fitted, unseen and left-out rows."""
    kinds: dict[str, dict[Measurement, float]] = {"all": row_errors}
    if sets:
        kinds["fitted"] = {row: error for row, error in row_errors.items() if is_fitted(row)}
        kinds["unseen"] = {row: error for row, error in row_errors.items() if not is_fitted(row)}
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
            terminal.escaped(name),
            f"{total.figures:,}",
            f"{total.mean:.1%}",
            f"{total.median:.1%}",
            f"{total.bias:+.1%}",
            *(f"{by_kind[kind].mean:.1%}" if kind in by_kind else "-" for kind in others),
        )
    console.print(table)
    console.print()


def _left_out(rows: list[Measurement], selected: list[Measurement], has_data: bool) -> dict[Measurement, float]:
    """Return the errors of every chip with constants that are fitted without chips of its generation."""
    if not has_data:
        raise BringupError("--leave-one-out fits the constants again and needs the measurement sets: give --data DIR")

    row_errors: dict[Measurement, float] = {}
    generations = sorted({generation(row.chip) for row in selected})
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for name in bar.track(generations, description="fitting without each chip"):
            constants = fit(rows, leave_out=name)
            for group in grouped(row for row in selected if generation(row.chip) == name):
                group_errors = group.errors(load_chip(group.chip), constants)
                row_errors |= {row: float(error) for row, error in zip(group.rows, group_errors, strict=True)}
    return row_errors


def _show(
    row_errors: dict[Any, float], tables: dict[str, Groups], html: str | None, as_json: bool, *, sets: bool
) -> Console | None:
    """Write the page, and print the tables as JSON or as text; return the console for further text."""
    if html:
        write_text(html, page({row: row.seconds for row in row_errors}, row_errors, tables, sets))
    if as_json:
        click.echo(json.dumps(_plain(tables), indent=2))
        return None
    console = terminal.console()
    for title, groups in tables.items():
        _print(console, title, groups)
    return console


def _print_worst(
    console: Console,
    row_errors: dict[Any, float],
    worst: int,
    text: Callable[[Any], str],
    *,
    with_source: bool = True,
) -> None:
    """Print the worst predictions of times; `text` names a row."""
    for row, error in sorted(row_errors.items(), key=lambda item: -abs(item[1]))[:worst]:
        source = f"  [dim]{terminal.escaped(row.source)}[/]" if with_source else ""
        console.print(
            f"{error:+.0%}  {row.chip} {terminal.escaped(text(row))}: measured {duration(row.seconds)}, "
            f"predicted {duration(row.seconds * (1 + error))}{source}",
        )


def _programs(chips: str | None, worst: int, html: str | None, bands: str | None, as_json: bool) -> None:
    from bringup.validation import programs  # imports torch

    rows = [run for run in programs.runs() if _is_listed(run.chip, chips)]
    if not rows:
        measured = ", ".join(sorted({run.chip for run in programs.runs()}))
        raise BringupError(f"no whole program was measured on {chips}; measured chips are {measured}")
    run_errors: dict[Run, float] = {}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for run in bar.track(rows, description="recording programs in dry form"):
            run_errors |= programs.errors([run])
    if bands:
        by_bound = [
            (run.chip, programs.bound_of(run), programs.class_of(run), error) for run, error in run_errors.items()
        ]
        write_table(Path(bands), by_bound)
    scaled = programs.with_one_run(run_errors)
    tables: dict[str, Groups] = {}
    keys: dict[str, Callable[[Any], str]] = {
        "chip": lambda run: run.chip,
        "program": lambda run: f"{run.model} {run.mode}",
        "bound": lambda run: f"{run.chip} {programs.bound_of(run)}",
    }
    for title, key in keys.items():
        columns = {
            name: {**summarize(part, key), **summarize(part, lambda _: "all")}
            for name, part in (("all", run_errors), ("one run known", scaled))
        }
        names = [*sorted(name for name in columns["all"] if name != "all"), "all"]
        tables[title] = {name: {kind: part[name] for kind, part in columns.items() if name in part} for name in names}
    console = _show(run_errors, tables, html, as_json, sets=True)
    if console is not None:
        _print_worst(console, run_errors, worst, lambda run: run.text)


def _live(device: str, chip_file: str | None, host_file: str | None, as_json: bool) -> None:
    from bringup.validation.live import compare  # imports torch

    if chip_file is None:
        raise BringupError(
            "--live needs the chip file of the real device: write one with `bringup calibrate`, then give "
            "--chip ./this-cpu.toml"
        )
    beside = Path(chip_file).with_name("this-host.toml")
    chip, host = load_chip(chip_file), load_host(host_file or (str(beside) if os.path.isfile(beside) else None))
    with Progress(console=Console(stderr=True), transient=True) as bar:

        def begin(total: int) -> Callable[[], Any]:
            task = bar.add_task(f"running models on {terminal.escaped(device)}", total=total)
            return lambda: bar.advance(task)

        outcome = compare(device, chip, host, begin)
    comparisons = outcome.rows
    total = Errors.from_values(row.error for row in comparisons)
    if as_json:
        rows = [
            {"program": row.program.text, "measured_seconds": row.measured, "predicted_seconds": row.predicted}
            for row in comparisons
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
    for row in comparisons:
        table.add_row(row.program.text, duration(row.measured), duration(row.predicted), f"{row.error:+.0%}")
    console.print(table)
    console.print(f"mean {total.mean:.1%}, median {total.median:.1%}, bias {total.bias:+.1%}")
    console.print(
        f"The machine now runs a matrix product at {outcome.speed:.2f} times the speed in its chip file.",
    )
