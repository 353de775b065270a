"""The page of a comparison: one recording on many chips, as tables and as charts of time against energy and cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bringup.analyse.compare import Row
from bringup.analyse.summary import Summary
from bringup.recording.trace import Trace
from bringup.report import html, palette
from bringup.report.chart import Axis, Figure, Series
from bringup.report.lines import memory_share, priced_noun, usd_per_million
from bringup.text import duration, figure, quantity

GRAPHS = "compiled graphs only"
_COLOUR = {"chip": "chip", "link": "link", "host": "host", "fallbacks": "fallback", "between chips": "between"}


def page(trace: Trace, rows: Sequence[Row], reports: Sequence[str], compared: str = "chip") -> str:
    """Write the comparison of one recording on many chips or clusters.

    Args:
        trace: the recording.
        rows: one per chip; the first one is what the ratios compare with.
        reports: the address of each row's report; empty for those that have none.
        compared: what is compared, ``chip`` or ``cluster``.
    """
    first = rows[0].summary
    addresses = {id(row): address for row, address in zip(rows, reports, strict=True)}
    fastest_first = sorted(rows, key=lambda row: row.summary.step_seconds)
    tables = [[row for row in fastest_first if row.graph_only == graph_only] for graph_only in (False, True)]
    return html.render(
        "compare.html",
        title=f"{trace.about.get('program', 'trace')} on {quantity(len(rows), compared)}: bringup",
        charts={
            "energy": _scatter(rows, "joules", lambda summary: summary.energy_joules),
            "cost": _scatter(rows, f"USD per million {priced_noun(first)}", usd_per_million),
        },
        run=trace.about.get("run", ""),
        about=trace.about,
        first=rows[0],
        compared=compared,
        count=quantity(len(rows), compared),
        tables=[(table, table[0].summary.step_seconds or 1.0) for table in tables if table],
        address=lambda row: addresses[id(row)],
        noun=priced_noun(first),
        cost=usd_per_million,
        memory_share=memory_share,
        unit=first.unit,
        duration=duration,
        figure=figure,
        fallbacks=lambda summary: sum(item.count for item in summary.fallbacks),
    )


def _scatter(rows: Sequence[Row], unit: str, value: Callable[[Summary], float | None]) -> Figure | None:
    """Draw the step time of every chip against a value; None if fewer than two chips have one."""
    groups: dict[str, list[tuple[float, float, str]]] = {}
    for row in rows:
        number, step = value(row.summary), row.summary.step_seconds
        if number and step:
            name = GRAPHS if row.graph_only else f"bound by the {row.bound}".replace("the between", "links between")
            point = (float(f"{step * 1e3:.4g}"), float(f"{number:.4g}"), row.name)
            groups.setdefault(name, []).append(point)
    if sum(map(len, groups.values())) < 2:
        return None
    colours = {f"bound by the {name}": palette.PAGE[colour] for name, colour in _COLOUR.items()}
    series = []
    for name, points in sorted(groups.items(), key=lambda item: (item[0] == GRAPHS, item[0])):
        x, y, text = map(list, zip(*sorted(points), strict=True))
        colour = colours.get(name, palette.PAGE["special" if name == GRAPHS else "between"])
        hover = f"{{x}} ms, {{y}} {unit}"
        series.append(Series(name, "points", colour, x, y, size=[9] * len(x), text=text, hover=hover, inside=True))
    return Figure(Axis(f"milliseconds per {rows[0].summary.unit}", log=True), Axis(unit, log=True), series, height=420)
