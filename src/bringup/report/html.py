"""report.html, compare.html and the page of bringup validate: one self-contained file each, which works offline."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from bringup.analyse.compare import Row
from bringup.analyse.holders import memory_over_time
from bringup.analyse.summarize import by_group
from bringup.analyse.summary import Summary
from bringup.pricing.pricing import ENGINES
from bringup.recording.trace import ALLOC, FREE, PHASES, Trace
from bringup.report import figures
from bringup.report.terminal import band, by_kind, moment, per_million, unit
from bringup.text import duration, size
from bringup.timeline.replay import Timeline

FOLDER = Path(__file__).parent
MOST_ROWS = 25


@cache
def _templates() -> jinja2.Environment:
    # Everything is escaped; `Markup` below marks our own style, script and figures.
    loader = jinja2.FileSystemLoader(FOLDER / "templates")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)


def _own(name: str) -> Markup:
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


def _script(figure: Any) -> Markup:
    """A figure as JSON that no text in it can break out of."""
    text = json.dumps(figure, sort_keys=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _render(
    template: str, *, title: str, js: str = "", plots: dict[str, Any] | None = None, run: str = "", **values: Any
) -> str:
    """Write a page with our style, and with plotly if it has plots."""
    plotly = ""
    if plots:
        from plotly.offline import get_plotlyjs

        plotly = Markup(get_plotlyjs())
    figures = {name: _script(figure) for name, figure in (plots or {}).items()}
    found = _templates().get_template(template)
    return found.render(title=title, run=run, css=_own("page.css"), js=js, plotly=plotly, figures=figures, **values)


def page(timeline: Timeline, summary: Summary) -> str:
    """Write the report of one recording on one machine."""
    shown, note = figures.timeline(timeline)
    plots = {
        "plot-timeline": shown,
        "plot-memory": figures.memory(timeline, summary),
        "plot-roofline": figures.roofline(timeline),
    }
    return _render(
        "report.html",
        title=f"{timeline.trace.about.get('program', 'trace')} on {summary.chip}: bringup",
        js=_own("page.js"),
        plots=plots,
        run=summary.run,
        about=timeline.trace.about,
        chip=timeline.chip,
        s=summary,
        unit=unit(summary),
        band=band(summary),
        cost=per_million,
        found=_found(summary),
        parts=_parts(summary),
        groups=_groups(timeline),
        owners=_owners(timeline.trace),
        kinds=by_kind(summary.memory.owners),
        fullest=moment(summary.memory.at) if summary.memory.at else "",
        facts=_facts(timeline),
        engines=ENGINES,
        timeline_note=note,
        duration=duration,
        size=size,
    )


def comparison(trace: Trace, rows: list[Row]) -> str:
    """Write the comparison of one recording on many chips."""
    return _render(
        "compare.html",
        title=f"{trace.about.get('program', 'trace')} on {len(rows)} chips: bringup",
        run=trace.about.get("run", ""),
        about=trace.about,
        rows=rows,
        fastest=min(row.summary.step_seconds for row in rows) or 1.0,
        cost=per_million,
        unit=unit(rows[0].summary),
        duration=duration,
        fallbacks=lambda summary: sum(item.count for item in summary.fallbacks),
    )


def validation(count: int, tables: dict[str, Any], plots: dict[str, Any], sets: bool, most: int) -> str:
    """Write predictions against measurements: a scatter plot and tables of errors."""
    return _render(
        "validation.html",
        title=f"{count:,} predictions against measurements: bringup",
        plots=plots,
        count=count,
        most=most,
        tables=tables,
        sets=sets,
    )


def scorecard(card: dict[str, Any], items: dict[str, Any], old: dict[str, Any] | None) -> str:
    """Write a scorecard's page, with the support matrix and what changed against an older card."""
    from bringup.scorecard import card as cards
    from bringup.scorecard.registry import LEVELS

    name = card["chip"] or card["device"]
    return _render(
        "check.html",
        title=f"scorecard of {name}: bringup",
        card=card,
        name=name,
        badge=Markup(badge(card)),
        about={key: entry.about for key, entry in items.items()},
        levels=[(level, text, cards.share(card, level), cards.totals(card)[level]) for level, text in LEVELS.items()],
        changes=cards.changes(old, card) if old else [],
        dtypes=sorted({dtype for row in card["ops"].values() if isinstance(row, dict) for dtype in row}),
        ops={key: row for key, row in card["ops"].items() if isinstance(row, dict)},
    )


def badge(card: dict[str, Any]) -> str:
    """Draw the share that passes as an SVG."""
    from bringup.scorecard.card import share

    score = share(card)
    text = "nothing applies" if score is None else f"{int(100 * score)} %"
    colour = "#777777" if score is None else "#2c7a3f" if score > 0.9 else "#b07a12" if score > 0.6 else "#a8322d"
    return _templates().get_template("badge.svg").render(name=card["chip"] or card["device"], text=text, colour=colour)


def _found(summary: Summary) -> str:
    if summary.steps_by == "whole":
        return "No steps were found: the whole recording is one"
    by = {
        "optimizer": "optimizer steps",
        "forward": "outermost module calls",
        "program": "the program's own marks",
    }[summary.steps_by]
    return f"{summary.steps:,} steps, found by {by}" + (", the first left out" if summary.steps > 1 else "")


_CSS = {
    "chip busy": "chip",
    "link": "link",
    "between chips": "between",
    "host-bound": "host",
    "waiting on fallbacks": "fallback",
}


def _parts(summary: Summary) -> list[dict[str, Any]]:
    total = summary.step_seconds or 1.0
    return [
        {"name": name, "css": _CSS[name], "percent": round(100 * seconds / total, 1), "text": duration(seconds)}
        for name, seconds in summary.parts().items()
    ]


def _groups(timeline: Timeline) -> list[tuple[str, list[dict[str, Any]], int]]:
    groups = []
    for label in ("family", "module", "line", "op"):
        rows = by_group(timeline, label)
        total = sum(seconds for _, _, seconds, _ in rows) or 1.0
        shown = [
            {"name": name, "count": count, "seconds": seconds, "percent": 100 * seconds / total, "gflop": flops / 1e9}
            for name, count, seconds, flops in rows[:MOST_ROWS]
        ]
        groups.append((label, shown, max(len(rows) - MOST_ROWS, 0)))
    return groups


def _owners(trace: Trace) -> list[dict[str, Any]]:
    """Who holds the memory at the peak: by line and phase of the allocation."""
    columns = trace.columns
    _, held = memory_over_time(trace)
    if not len(held) or held.max() == 0:
        return []
    top = int(np.argmax(held))
    kind, objects = columns["kind"][: top + 1], columns["object"][: top + 1]
    live: dict[int, int] = {}
    for row in map(int, np.flatnonzero((kind == ALLOC) | (kind == FREE))):
        if kind[row] == ALLOC:
            live[int(objects[row])] = row
        else:
            live.pop(int(objects[row]), None)
    totals: dict[tuple[int, int], list[int]] = {}
    for row in live.values():
        totals.setdefault((int(columns["line"][row]), int(columns["phase"][row])), []).append(
            int(columns["bytes"][row])
        )
    rows: list[dict[str, Any]] = [
        {
            "line": trace.lines[line] if line >= 0 else "(no Python line)",
            "phase": PHASES[phase],
            "count": len(sizes),
            "bytes": sum(sizes),
        }
        for (line, phase), sizes in totals.items()
    ]
    return sorted(rows, key=lambda row: (-row["bytes"], row["line"]))[:15]


def _facts(timeline: Timeline) -> list[tuple[str, str, str]]:
    from bringup.cli.chips import flat, source_of

    data = timeline.chip.model_dump(exclude_none=True)
    sources = data.pop("sources", {})
    return [(key, str(value), source_of(key, sources)) for key, value in flat(data)]
