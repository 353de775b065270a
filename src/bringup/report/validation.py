"""Charts of predicted against measured, as one self-contained page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from bringup.report import html, palette
from bringup.report.chart import Axis, Figure, Series

MOST_POINTS = 300  # per chip or operator: more would hide each other


def page(measured: dict[Any, float], errors: dict[Any, float], tables: dict[str, Any], sets: bool) -> str:
    """Return the page as HTML.

    Args:
        measured: row -> seconds.
        errors: row -> relative error of the prediction.
        tables: title -> name -> kind -> `Errors`.
        sets: True if the rows are complete published sets.
    """
    charts = {
        "By chip": _scatter(measured, errors, lambda row: str(row.chip)),
        "By operator": _scatter(measured, errors, lambda row: str(getattr(row, "family", None) or row.model)),
    }
    return html.validation(len(errors), tables, charts, sets, MOST_POINTS)


def _scatter(measured: dict[Any, float], errors: dict[Any, float], key: Callable[[Any], str]) -> Figure:
    groups: dict[str, list[Any]] = defaultdict(list)
    for row in errors:
        groups[key(row)].append(row)
    series: list[Series] = []
    for name, rows in sorted(groups.items()):
        drawn = rows[:: -(-len(rows) // MOST_POINTS)]
        series.append(
            Series(
                name,
                "points",
                palette.series(len(series)),
                x=[float(f"{measured[row] * 1e6:.4g}") for row in drawn],
                y=[float(f"{measured[row] * (1 + errors[row]) * 1e6:.4g}") for row in drawn],
                size=[5] * len(drawn),
                text=[_label(row) for row in drawn],
                hover="measured {x} us, predicted {y} us",
            )
        )
    low, high = min(measured.values()) * 1e6, max(measured.values()) * 1e6
    for name, factor in (("equal", 1.0), ("+25 %", 1.25), ("-25 %", 0.75)):
        ends = [low * factor, high * factor]
        series.append(Series(name, "line", palette.GUIDE, [low, high], ends, dashed=factor != 1))
    return Figure(Axis("measured, us", log=True), Axis("predicted, us", log=True), series, height=560)


def _label(row: Any) -> str:
    text = row.text if hasattr(row, "text") else f"{row.op} {row.dtype} {'x'.join(map(str, row.dims))}"
    return f"{row.chip} {text}"
