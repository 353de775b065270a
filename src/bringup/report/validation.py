"""Plots predicted against measured times on one self-contained page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from bringup.report import html, palette

MOST_POINTS = 300  # per chip or operator: a browser draws this many quickly without WebGL


def page(measured: dict[Any, float], errors: dict[Any, float], tables: dict[str, Any], sets: bool) -> str:
    """Return the page as HTML.

    Args:
        measured: row -> seconds.
        errors: row -> relative error of the prediction.
        tables: title -> name -> kind -> `Errors`.
        sets: True if the rows are complete published sets.
    """
    plots = {
        "By chip": _scatter(measured, errors, lambda row: str(row.chip)),
        "By operator": _scatter(measured, errors, lambda row: str(getattr(row, "family", None) or row.model)),
    }
    return html.validation(len(errors), tables, plots, sets, MOST_POINTS)


def _scatter(measured: dict[Any, float], errors: dict[Any, float], key: Callable[[Any], str]) -> dict[str, Any]:
    groups: dict[str, list[Any]] = defaultdict(list)
    for row in errors:
        groups[key(row)].append(row)
    low, high = min(measured.values()) * 1e6, max(measured.values()) * 1e6
    traces: list[dict[str, Any]] = []
    for name, rows in sorted(groups.items()):
        drawn = rows[:: -(-len(rows) // MOST_POINTS)]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": str(Markup.escape(name)),
                "x": [float(f"{measured[row] * 1e6:.4g}") for row in drawn],
                "y": [float(f"{measured[row] * (1 + errors[row]) * 1e6:.4g}") for row in drawn],
                "text": [_label(row) for row in drawn],
                "hovertemplate": "%{text}<br>measured %{x:.4g} us, predicted %{y:.4g} us<extra></extra>",
                "marker": {"size": 4, "opacity": 0.55},
            }
        )
    for name, factor, dash in (("equal", 1.0, "solid"), ("+25 %", 1.25, "dot"), ("-25 %", 0.75, "dot")):
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": [low, high],
                "y": [low * factor, high * factor],
                "hoverinfo": "skip",
                "line": {"color": palette.GUIDE, "width": 1, "dash": dash},
            }
        )
    axis = {"type": "log", "gridcolor": palette.GRID}
    layout = {
        "height": 620,
        "margin": {"l": 70, "r": 15, "t": 20, "b": 55},
        "paper_bgcolor": palette.WHITE,
        "plot_bgcolor": palette.WHITE,
        "legend": {"itemsizing": "constant"},
        "xaxis": {**axis, "title": {"text": "measured, us"}},
        "yaxis": {**axis, "title": {"text": "predicted, us"}},
    }
    return {"data": traces, "layout": layout}


def _label(row: Any) -> str:
    text = row.text if hasattr(row, "text") else f"{row.op} {row.dtype} {'x'.join(map(str, row.dims))}"
    return str(Markup.escape(f"{row.chip} {text}"))
