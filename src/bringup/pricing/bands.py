"""The error band of a prediction: the error within which four in five of the measured programs like it were."""

from __future__ import annotations

import csv
import math
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
COVERED = 0.8  # the share of programs that a band is to hold for
# A quantile of fewer than four programs of a class cannot cover that share. Fewer programs of a bound, or fewer
# operators, say nothing about the next program (chosen).
FEWEST_OF_CLASS, FEWEST_PROGRAMS, FEWEST_OPERATORS = 4, 3, 10


@dataclass(frozen=True)
class Band:
    """How far predictions are from measurements.

    Attributes:
        error: 0.18 for 18 %; None if nothing comparable was measured. Of programs, four in five were within it; of
            operators, it is the mean absolute error.
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
    """Errors of measured programs of one chip, bound and class, or of a chip's operators.

    Attributes:
        chip: the chip's name.
        measured: ``programs`` or ``operators``.
        bound, kind: the programs' bound and class; empty for all.
        rows: the number of measurements.
        error: mean absolute error.
        within: of programs, see `within`.
    """

    chip: str
    measured: str
    bound: str
    kind: str
    rows: int
    error: float
    within: float | None


def bound(device_seconds: float, step_seconds: float) -> str:
    """Return the bound of a program: `CHIP_BOUND` if the chip computes for at least half of the step."""
    return CHIP_BOUND if 2 * device_seconds >= step_seconds else HOST_BOUND


def within(off: list[float]) -> float:
    """Return the absolute error that another program of the kind stays within in four of five cases.

    It is the quantile of split conformal prediction (Papadopoulos et al. 2002, "Inductive Confidence Machines for
    Regression"): of n errors, that of rank (n + 1) * 0.8, rounded up. Of fewer than four errors it is the largest.
    """
    rank = min(len(off), math.ceil(COVERED * (len(off) + 1)))
    return sorted(map(abs, off))[rank - 1]


@cache
def table() -> tuple[Row, ...]:
    """Read the errors by chip and bound that ship with bringup."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(
            Row(
                row["chip"],
                row["measured"],
                row["bound"],
                row["class"],
                int(row["rows"]),
                float(row["error"]),
                float(row["within"]) if row["within"] else None,
            )
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
        for group in ((chip, its_bound, kind), (chip, its_bound, ""), (chip, "", "")):
            groups.setdefault(group, []).append(abs(error))
    replaced = {chip for chip, _, _ in groups}
    rows = [
        Row(chip, "programs", its_bound, kind, len(off), sum(off) / len(off), within(off))
        for (chip, its_bound, kind), off in groups.items()
    ]
    rows += [row for row in table() if row.measured == "operators" or row.chip not in replaced]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["chip", "measured", "bound", "class", "rows", "error", "within"])
        for row in sorted(rows, key=lambda row: (row.chip, row.measured != "programs", row.bound, row.kind)):
            covered = "" if row.within is None else f"{row.within:.3f}"
            writer.writerow([row.chip, row.measured, row.bound, row.kind, row.rows, f"{row.error:.3f}", covered])


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
    programs = {row.kind: row for row in own if row.measured == "programs" and row.bound == (its_bound or "")}
    for name, fewest in ((kind, FEWEST_OF_CLASS), ("", FEWEST_PROGRAMS)):
        row = programs.get(name or "")
        if row and row.within is not None and row.rows >= fewest:
            text = f"4 in 5 programs; validated on {row.rows} {_what(its_bound, name)}"
            return Band(max(row.within, LABORATORIES), "programs", row.rows, text)
    count = programs[""].rows if "" in programs else 0
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
    return [Row(chip.name, "operators", "", "", len(off), float(np.mean(np.abs(off))), None)] if off else []
