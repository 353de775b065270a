"""Write the error bands and the tables of README.md and docs/validation.md that follow from our own measurements.

    python benchmarks/validation_tables.py DIR

DIR holds the folder h100_bringup. Prices or recordings that change make this necessary; the tests say when.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bringup.analyse.program_class import CLASSES
from bringup.machine.files import load_chip
from bringup.pricing import bands
from bringup.pricing.errors import Errors
from bringup.validation.measured import (
    ALLOCATED,
    BUSY,
    COMPILED,
    EAGER,
    GRAPH,
    ISSUE,
    LAUNCHES,
    NEW_LENGTH,
    RESERVED,
    STEP,
    band_rows,
    read_measured,
    tables,
)

ROOT = Path(__file__).parents[1]
CHIP = "h100-sxm"
BY_CLASS = "| class | chip-bound | error | host-bound | error |"
BY_FIGURE = "| | figures | step | bias | chip busy | bias | kernels, bias | peak allocated | peak reserved |"
BY_OPERATOR = "| | figures | mean | median | bias |"


def line(*cells: object) -> str:
    """Return one row of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def with_table(text: str, header: str, rows: list[str], after: str = "") -> str:
    """Replace the rows of the first table with this header behind a heading."""
    start = text.index(header, text.index(after))
    first = text.index("\n", text.index("\n", start) + 1) + 1
    return text[:first] + "".join(f"{row}\n" for row in rows) + text[text.index("\n\n", first - 1) + 1 :]


def classes() -> list[str]:
    """Return the rows of the README's table by class."""
    own = {(row.kind, row.bound): row for row in bands.table() if row.chip == CHIP and row.measured == "programs"}
    lines = []
    for kind in CLASSES:
        cells: list[object] = []
        for bound in (bands.CHIP_BOUND, bands.HOST_BOUND):
            row = own.get((kind, bound))
            cells += ["-", "-"] if row is None else [row.rows, f"{100 * row.error:.0f} %"]
        if any(cell != "-" for cell in cells):
            lines.append(line(kind, *cells))
    return lines


def percent(value: float) -> str:
    """Return a share as text."""
    return f"{100 * value:.1f} %"


def signed(value: float) -> str:
    """Return a bias as text."""
    return f"{100 * value:+.1f} %"


def programs(errors: dict[str, dict[str, Errors]]) -> list[str]:
    """Return the rows of the table of whole programs."""
    lines = []
    for name, step in errors[STEP].items():
        busy, kernels, allocated, reserved = (errors[item][name] for item in (BUSY, LAUNCHES, ALLOCATED, RESERVED))
        times = percent(step.mean), signed(step.bias), percent(busy.mean), signed(busy.bias), signed(kernels.bias)
        lines.append(line(name, step.figures, *times, percent(allocated.mean), percent(reserved.mean)))
    allocated, reserved = (errors[figure]["size over 1 GiB"] for figure in (ALLOCATED, RESERVED))
    peaks = percent(allocated.mean), percent(reserved.mean)
    return [*lines, line("peak over 1 GiB", allocated.figures, *("-" * 5), *peaks)]


def operators(errors: dict[str, dict[str, Errors]]) -> list[str]:
    """Return the rows of the table of compiled programs, decoding at new lengths, operators and host calls."""
    lines = []
    for figure in (COMPILED, NEW_LENGTH, GRAPH, EAGER, ISSUE):
        for name, of in errors[figure].items():
            if name.startswith("class ") or name == "all":
                shares = percent(of.mean), percent(of.median), signed(of.bias)
                lines.append(line(f"{figure}, {name.removeprefix('class ')}", of.figures, *shares))
    return lines


def main() -> None:
    found = read_measured(Path(sys.argv[1])).comparisons
    errors = tables(found)
    bands.write_table(bands.TABLE, band_rows(found))
    bands.table.cache_clear()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = with_table(readme, BY_CLASS, classes())
    band = bands.error_band(load_chip(CHIP), bands.CHIP_BOUND)
    assert band.error is not None
    (row,) = (row for row in readme.splitlines() if row.startswith(f"| {CHIP} | ") and row.count("|") == 9)
    readme = readme.replace(row, line(*row.strip("| ").split(" | ")[:-1], f"{100 * band.error:.0f} %"))
    (ROOT / "README.md").write_text(readme, encoding="utf-8")
    page = ROOT / "docs" / "validation.md"
    text = with_table(page.read_text(encoding="utf-8"), BY_FIGURE, programs(errors))
    page.write_text(with_table(text, BY_OPERATOR, operators(errors), "## Our own measurements"), encoding="utf-8")
    large = (errors[figure]["size over 1 GiB"].mean for figure in (ALLOCATED, RESERVED))
    print("README.md says of peaks over 1 GiB: allocated, reserved", *map(percent, large))


if __name__ == "__main__":
    main()
