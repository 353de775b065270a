"""``bringup validate``: predictions against published measurements."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import click
import numpy as np
from rich.markup import escape
from rich.table import Table

from bringup.chip import load_chip
from bringup.errors import BringupError
from bringup.report import terminal
from bringup.text import duration


@click.command()
@click.option("--chip", "chips", default=None, metavar="NAME,...", help="Only these chips.")
@click.option("--op", "ops", default=None, metavar="NAME,...", help="Only these operators: mm, bmm, softmax, ...")
@click.option("--worst", default=5, show_default=True, help="How many of the worst predictions to show.")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
def command(chips: str | None, ops: str | None, worst: int, as_json: bool) -> None:
    """Predict every published measurement that ships with bringup, and print the errors.

    The measurements are single figures that others published, each with its source (measurements.csv).
    """
    from bringup.validation import Measurement, errors, measurements

    rows = [row for row in measurements() if _wanted(row.chip, chips) and _wanted(row.op, ops)]
    if not rows:
        known = sorted({row.chip for row in measurements()}), sorted({row.op for row in measurements()})
        raise BringupError(
            f"no measurement is of chips {chips or 'any'} and operators {ops or 'any'}: there are "
            f"{', '.join(known[0])}; {', '.join(known[1])}"
        )
    off: dict[Measurement, float] = {}
    for name in sorted({row.chip for row in rows}):
        own = tuple(row for row in rows if row.chip == name)
        off |= dict(zip(own, errors(own, load_chip(name)), strict=True))
    by_chip = _grouped(off, lambda row: row.chip)
    by_op = _grouped(off, lambda row: row.op)
    if as_json:
        click.echo(json.dumps({"chips": by_chip, "ops": by_op, "all": _numbers(off.values())}, indent=2))
        return
    console = terminal.console()
    for title, groups in (("chip", by_chip), ("operator", by_op)):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in (title, "figures", "mean", "median", "bias"):
            table.add_column(name, justify="left" if name == title else "right")
        for name, found in [*groups.items(), ("all", _numbers(off.values()))]:
            table.add_row(
                escape(name),
                str(found["figures"]),
                f"{found['mean']:.1%}",
                f"{found['median']:.1%}",
                f"{found['bias']:+.1%}",
            )
        console.print(table)
        console.print()
    for row, error in sorted(off.items(), key=lambda item: -abs(item[1]))[:worst]:
        dims = "x".join(map(str, row.dims))
        console.print(
            f"{error:+.0%}  {row.chip} {row.op} {row.dtype} {dims}: measured {duration(row.seconds)}, "
            f"predicted {duration(row.seconds * (1 + error))}  [dim]{escape(row.source)}[/]",
            highlight=False,
        )


def _wanted(name: str, asked: str | None) -> bool:
    return asked is None or name in asked.split(",")


def _grouped(off: dict[Any, float], key: Callable[[Any], str]) -> dict[str, dict[str, float]]:
    names = sorted({key(row) for row in off})
    return {name: _numbers(error for row, error in off.items() if key(row) == name) for name in names}


def _numbers(errors: Iterable[float]) -> dict[str, float]:
    """Mean and median absolute error, and the mean signed one; 0.1 is 10 %."""
    values = np.asarray(list(errors))
    return {
        "figures": len(values),
        "mean": round(float(np.mean(np.abs(values))), 4),
        "median": round(float(np.median(np.abs(values))), 4),
        "bias": round(float(np.mean(values)), 4),
    }
