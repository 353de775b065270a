"""Plots of predicted against measured, as one self-contained page."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from markupsafe import Markup

from bringup.report import html


def page(measured: dict[Any, float], off: dict[Any, float], tables: dict[str, Any], sets: bool) -> str:
    """Write the page.

    Args:
        measured: row -> seconds.
        off: row -> predicted over measured, less one.
        tables: title -> name -> kind -> `Errors`.
        sets: are these whole published sets?
    """
    by_chip: dict[str, list[Any]] = defaultdict(list)
    for row in off:
        by_chip[row.chip].append(row)
    low, high = min(measured.values()) * 1e6, max(measured.values()) * 1e6
    traces: list[dict[str, Any]] = [
        {
            "type": "scattergl",
            "mode": "markers",
            "name": chip,
            "x": [round(measured[row] * 1e6, 3) for row in rows],
            "y": [round(measured[row] * (1 + off[row]) * 1e6, 3) for row in rows],
            "text": [_label(row) for row in rows],
            "hovertemplate": "%{text}<br>measured %{x:.4g} us, predicted %{y:.4g} us<extra></extra>",
            "marker": {"size": 4, "opacity": 0.55},
        }
        for chip, rows in sorted(by_chip.items())
    ]
    traces += [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": [low, high],
            "y": [low * factor, high * factor],
            "hoverinfo": "skip",
            "line": {"color": "#6b7280", "width": 1, "dash": dash},
        }
        for name, factor, dash in (("equal", 1.0, "solid"), ("+25 %", 1.25, "dot"), ("-25 %", 0.75, "dot"))
    ]
    axis = {"type": "log", "gridcolor": "#e6e9ef"}
    layout = {
        "height": 620,
        "margin": {"l": 70, "r": 15, "t": 20, "b": 55},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "xaxis": {**axis, "title": {"text": "measured, us"}},
        "yaxis": {**axis, "title": {"text": "predicted, us"}},
    }
    return html.validation(len(off), tables, {"scatter": {"data": traces, "layout": layout}}, sets)


def _label(row: Any) -> str:
    text = row.text if hasattr(row, "text") else f"{row.op} {row.dtype} {'x'.join(map(str, row.dims))}"
    return str(Markup.escape(f"{row.chip} {text}"))
