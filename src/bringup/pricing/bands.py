"""The error band of a prediction: the mean error of the predictions that measurements could check."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bringup.machine.files import available_chips, load_chip
from bringup.pricing.errors import errors
from bringup.pricing.measurements import measurements

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

TABLE = Path(__file__).parent / "bands.csv"
HOST_BOUND, CHIP_BOUND = "host-bound", "chip-bound"
# Laboratories differ by 3 to 9 % on the same product on the same silicon (docs/validation.md), so no error below that
# can be told from theirs.
LABORATORIES = 0.09
FEWEST_PROGRAMS, FEWEST_OPERATORS = 3, 10  # fewer measurements say nothing about the next program


@dataclass(frozen=True)
class Band:
    """How far predictions are from measurements.

    Attributes:
        error: mean absolute error, 0.18 for 18 %; None if nothing comparable was measured.
        measured: what was measured: ``programs``, ``operators`` or ``none``.
        rows: the number of measurements.
        text: the origin in words.
    """

    error: float | None
    measured: str
    rows: int
    text: str


@dataclass(frozen=True)
class Row:
    """Mean absolute error of measured programs of one chip, bound and class, or of a chip's operators."""

    chip: str
    measured: str
    bound: str
    kind: str
    rows: int
    error: float


def bound(device_seconds: float, step_seconds: float) -> str:
    """Return the bound of a program: `CHIP_BOUND` if the chip computes for at least half of the step."""
    return CHIP_BOUND if 2 * device_seconds >= step_seconds else HOST_BOUND


@cache
def table() -> tuple[Row, ...]:
    """Read the errors by chip and bound that ship with bringup."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(
            Row(row["chip"], row["measured"], row["bound"], row["class"], int(row["rows"]), float(row["error"]))
            for row in csv.DictReader(file)
        )


def write_table(path: Path, program_errors: Iterable[tuple[str, str, str, float]]) -> None:
    """Write a table with new errors of programs; its other rows are those of `table`.

    Args:
        path: the file to write.
        program_errors: chip, bound, class and relative error of every measured program.
    """
    groups: dict[tuple[str, str, str], list[float]] = {}
    for chip, its_bound, kind, error in program_errors:
        groups.setdefault((chip, its_bound, kind), []).append(abs(error))
    replaced = {chip for chip, _, _ in groups}
    rows = [
        Row(chip, "programs", its_bound, kind, len(off), sum(off) / len(off))
        for (chip, its_bound, kind), off in groups.items()
    ]
    rows += [row for row in table() if row.measured == "operators" or row.chip not in replaced]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["chip", "measured", "bound", "class", "rows", "error"])
        for row in sorted(rows, key=lambda row: (row.chip, row.measured != "programs", row.bound, row.kind)):
            writer.writerow([row.chip, row.measured, row.bound, row.kind, row.rows, f"{row.error:.3f}"])


def error_band(chip: Chip, its_bound: str | None = None, kind: str | None = None) -> Band:
    """Return the error band of a chip's predictions for programs with a bound and class, or for all its programs.

    Errors of whole programs come first: those of the same bound and class, else those of the same bound. Errors of
    single operators say nothing about the host, so they stand in for chip-bound programs only. An edited chip file is
    compared with the shipped measurements of operators again. Without any, the text has the spread of the class.
    """
    if chip.invented:
        return Band(None, "none", 0, "not validated: invented chip")
    is_shipped = chip.name in available_chips() and chip == load_chip(chip.name)
    own = [row for row in table() if row.chip == chip.name] if is_shipped else []
    programs = [row for row in own if row.measured == "programs" and its_bound in (None, row.bound)]
    for name in [kind, None] if kind else [None]:
        rows = [row for row in programs if name in (None, row.kind)]
        count = sum(row.rows for row in rows)
        if count >= FEWEST_PROGRAMS:
            mean = sum(row.error * row.rows for row in rows) / count
            return Band(max(mean, LABORATORIES), "programs", count, f"validated on {count} {_what(its_bound, name)}")
    what = _what(its_bound, None)
    operators = [row for row in own if row.measured == "operators"] if is_shipped else _compared(chip)
    if its_bound != HOST_BOUND and operators and operators[0].rows >= FEWEST_OPERATORS:
        row = operators[0]
        text = f"operators, on {row.rows:,} measurements; {what} are not validated"
        return Band(max(row.error, LABORATORIES), "operators", row.rows, text)
    few = "too few measurements" if count else "no measurements"
    spread = _spread(its_bound, kind)
    return Band(None, "none", count, f"not validated: {few} of {what} on {chip.name}{spread}")


def _what(its_bound: str | None, kind: str | None) -> str:
    programs = f"{kind}s" if kind and kind != "other" else "programs"
    return f"{its_bound} {programs}" if its_bound else programs


def _spread(its_bound: str | None, kind: str | None) -> str:
    """Return by how much predictions for programs of a class were off on other chips; empty if it is not known."""
    rows = [
        row for row in table() if row.measured == "programs" and its_bound in (None, row.bound) and row.kind == kind
    ]
    if not kind or not rows:
        return ""
    low, high = (f"{100 * limit(row.error for row in rows):.0f}" for limit in (min, max))
    chips = len({row.chip for row in rows})
    where = f"the {chips} measured chips" if chips > 1 else f"the measured {rows[0].chip}"
    return f" ({_what(its_bound, kind)} were off by {low if low == high else f'{low} to {high}'} % on {where})"


def _compared(chip: Chip) -> list[Row]:
    """Compare a chip that is not shipped with the shipped measurements of operators."""
    off = list(errors([row for row in measurements() if row.chip == chip.name], chip).values())
    return [Row(chip.name, "operators", "", "", len(off), float(np.mean(np.abs(off))))] if off else []
