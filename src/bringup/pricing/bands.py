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
    """One row of the table: mean absolute error of measured programs of one bound, or of a chip's operators."""

    chip: str
    measured: str
    bound: str
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
            Row(row["chip"], row["measured"], row["bound"], int(row["rows"]), float(row["error"]))
            for row in csv.DictReader(file)
        )


def write_table(path: Path, program_errors: Iterable[tuple[str, str, float]]) -> None:
    """Write a table with new errors of programs; its rows of operators are those of `table`.

    Args:
        path: the file to write.
        program_errors: chip, bound and relative error of every measured program.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    for chip, its_bound, error in program_errors:
        groups.setdefault((chip, its_bound), []).append(abs(error))
    rows = [Row(chip, "programs", name, len(off), sum(off) / len(off)) for (chip, name), off in groups.items()]
    rows += [row for row in table() if row.measured == "operators"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["chip", "measured", "bound", "rows", "error"])
        for row in sorted(rows, key=lambda row: (row.chip, row.measured != "programs", row.bound)):
            writer.writerow([row.chip, row.measured, row.bound, row.rows, f"{row.error:.3f}"])


def error_band(chip: Chip, its_bound: str | None = None) -> Band:
    """Return the error band of a chip's predictions for programs with a bound, or without one for all its programs.

    Errors of whole programs come first. Errors of single operators say nothing about the host, so they stand in for
    chip-bound programs only. An edited chip file is compared with the shipped measurements of operators again.
    """
    what = f"{its_bound} programs" if its_bound else "programs"
    if chip.invented:
        return Band(None, "none", 0, "not validated: invented chip")
    is_shipped = chip.name in available_chips() and chip == load_chip(chip.name)
    own = [row for row in table() if row.chip == chip.name] if is_shipped else []
    programs = [row for row in own if row.measured == "programs" and its_bound in (None, row.bound)]
    count = sum(row.rows for row in programs)
    if count >= FEWEST_PROGRAMS:
        mean = sum(row.error * row.rows for row in programs) / count
        return Band(max(mean, LABORATORIES), "programs", count, f"validated on {count} {what}")
    operators = [row for row in own if row.measured == "operators"] if is_shipped else _compared(chip)
    if its_bound != HOST_BOUND and operators and operators[0].rows >= FEWEST_OPERATORS:
        row = operators[0]
        text = f"operators, on {row.rows:,} measurements; {what} are not validated"
        return Band(max(row.error, LABORATORIES), "operators", row.rows, text)
    few = "too few measurements" if count else "no measurements"
    return Band(None, "none", count, f"not validated: {few} of {what} on {chip.name}")


def _compared(chip: Chip) -> list[Row]:
    """Compare a chip that is not shipped with the shipped measurements of operators."""
    off = list(errors([row for row in measurements() if row.chip == chip.name], chip).values())
    return [Row(chip.name, "operators", "", len(off), float(np.mean(np.abs(off))))] if off else []
