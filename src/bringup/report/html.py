"""The pages of a report, a comparison and a validation: one self-contained file each, which works offline."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import jinja2
from markupsafe import Markup

from bringup.analyse.compare import bound_of
from bringup.analyse.compile_advice import LEAST_SHARE
from bringup.analyse.holders import allocations_at_peak
from bringup.analyse.on_driver import MeasuredStep, measured_step
from bringup.analyse.source_lines import SourceLine, source_lines
from bringup.analyse.summarize import by_group
from bringup.analyse.summary import LEAST_SECONDS, Summary
from bringup.machine.facts import flat, source_of
from bringup.pricing import ENGINES
from bringup.report import figures, palette
from bringup.report.chart import Figure
from bringup.report.lines import (
    Line,
    band,
    by_kind,
    communication_lines,
    compilation_lines,
    expandable_text,
    lines,
    moment,
    per_million,
    placement_lines,
    step_lines,
    used_peak,
)
from bringup.text import duration, figure, module_name, size
from bringup.timeline.replay import Timeline

FOLDER = Path(__file__).parent
MOST_ROWS = 25
MOST_OWNERS = 15
MOST_FILES = 10  # with the lines of the program


@cache
def templates() -> jinja2.Environment:
    """Return the templates of the pages."""
    # Everything is escaped; `Markup` below marks our own style, script and figures.
    loader = jinja2.FileSystemLoader(FOLDER / "templates")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)


def _own(name: str) -> Markup:
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


def _hash(script: str) -> str:
    """Return what allows one script of our own in the page's security policy, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


# The parts of a step -> the colours of the palette, which page.css names so, too.
_CSS = {
    "chip busy": "chip",
    "link": "link",
    "between chips": "between",
    "host-bound": "host",
    "waiting on fallbacks": "fallback",
    "host computes": "fallback",
}
# What takes most of a step, as `bound_of` names it -> in words, before its share.
_VERDICTS = {
    "chip": "Bound by the chip, which computes",
    "link": "Bound by the link: the chip waits for copies",
    "between chips": "Bound by the links between chips: they transfer",
    "host": "Bound by the host: the chip waits for launches",
    "fallbacks": "Bound by what the host computes: the chip waits for it",
}
CELL_STYLES = {"step": "font-size:1.2em;font-weight:bold", "advice": "margin-left:2em", "finding": "font-weight:bold"}


def first_screen(summary: Summary) -> str:
    """Write the summary as HTML for a notebook's output: no script, and no style of the whole page."""
    parts: list[tuple[str, Any]] = []
    for item in lines(summary):
        if isinstance(item, Line):
            parts.append((item.role, item.text.strip()))
        elif parts and parts[-1][0] == "table":
            parts[-1][1].append(item.cells)
        else:
            parts.append(("table", [item.cells]))
    total = summary.step_seconds or 1.0
    shares = [
        (name, round(100 * seconds / total, 2), palette.PAGE[_CSS[name]]) for name, seconds in summary.parts().items()
    ]
    return templates().get_template("cell.html").render(parts=parts, shares=shares, styles=CELL_STYLES)


def render(template: str, *, title: str, charts: Mapping[str, Figure | None] | None = None, **values: Any) -> str:
    """Write a page with our style and scripts.

    Args:
        template: its file.
        title: of the page.
        charts: by name; the page leaves out what is None.
        values: for the template.
    """
    colours = palette.PAGE | {f"dark_{name}": colour for name, colour in palette.DARK.items()}
    css = Markup(Template((FOLDER / "page.css").read_text(encoding="utf-8")).substitute(colours))
    scripts = [_own("page.js")]
    drawn = {name: Markup(figure.as_json()) for name, figure in (charts or {}).items() if figure is not None}
    if drawn:
        css = _own("uplot/uPlot.min.css") + css
        scripts.append(Markup(f"/*\n{_own('uplot/LICENSE')}\n*/\n{_own('uplot/uPlot.iife.min.js')}"))
        scripts += map(_own, ("marks.js", "charts.js"))
    return (
        templates()
        .get_template(template)
        .render(
            title=title,
            css=css,
            scripts=scripts,
            hashes=Markup(" ".join(map(_hash, scripts))),
            charts=drawn,
            **{"run": "", **values},
        )
    )


def page(timeline: Timeline, summary: Summary) -> str:
    """Write the report of one recording on one machine."""
    files, measured = source_lines(timeline), measured_step(timeline)
    shown, note = figures.timeline(timeline)
    charts = {
        "timeline": shown,
        "flame": figures.flame(timeline),
        "lines": figures.flame(timeline, by="line"),
        "stacks": figures.flame(timeline, by="stack"),
        "memory": figures.memory(timeline, summary),
        "memory_by_module": figures.memory_by_module(timeline),
        "roofline": figures.roofline(timeline),
    }
    return render(
        "report.html",
        title=f"{timeline.trace.about.get('program', 'trace')} on {summary.chip}: bringup",
        charts=charts,
        run=summary.run,
        about=timeline.trace.about,
        chip=timeline.chip,
        s=summary,
        unit=summary.unit,
        band=band(summary),
        verdict=_verdict(summary),
        costliest=_costliest(files),
        cost=per_million,
        used_peak=used_peak(summary),
        steps=[
            line.text.strip()
            for line in (
                *step_lines(summary),
                *communication_lines(summary),
                *compilation_lines(summary),
                *placement_lines(summary),
            )
        ],
        parts=_parts(summary),
        groups=_groups(timeline),
        measured=measured,
        side_by_side=_side_by_side(summary, measured),
        most_rows=MOST_ROWS,
        files=files[:MOST_FILES],
        longest=max((max(x.chip_seconds, x.host_seconds) for _, listed in files for x in listed), default=0.0) or 1.0,
        owners=allocations_at_peak(timeline.trace, summary.memory.at)[:MOST_OWNERS],
        kinds=by_kind(summary.memory.owners),
        fullest=moment(summary.memory.at, summary) if summary.memory.at else "",
        expandable=expandable_text(summary),
        facts=_facts(timeline),
        engines=ENGINES,
        timeline_note=note,
        duration=duration,
        figure=figure,
        least_share=LEAST_SHARE,
        least_seconds=LEAST_SECONDS,
        size=size,
    )


def validation(count: int, tables: dict[str, Any], charts: dict[str, Figure], sets: bool, most: int) -> str:
    """Write predictions against measurements: scatter charts and tables of errors."""
    return render(
        "validation.html",
        title=f"{count:,} predictions against measurements: bringup",
        charts=charts,
        count=count,
        most=most,
        tables=tables,
        sets=sets,
    )


def _parts(summary: Summary) -> list[dict[str, Any]]:
    total = summary.step_seconds or 1.0
    return [
        {"name": name, "css": _CSS[name], "percent": round(100 * seconds / total, 1), "text": duration(seconds)}
        for name, seconds in summary.parts().items()
    ]


def _side_by_side(summary: Summary, measured: MeasuredStep | None) -> list[tuple[str, float, list[dict[str, Any]]]]:
    """Return the predicted and the measured step to one scale: name, seconds, and parts with shares of the longer one.

    It is empty if no step was measured.
    """
    if measured is None or summary.measured_step_seconds is None:
        return []
    both = {
        f"predicted for {summary.chip}": {name: (_CSS[name], seconds) for name, seconds in summary.parts().items()},
        f"measured on {summary.driver}": {
            name: (css, seconds)
            for (name, seconds), css in zip(measured.parts().items(), ("chip", "fallback", "host"), strict=True)
        },
    }
    totals = {name: sum(seconds for _, seconds in parts.values()) for name, parts in both.items()}
    longest = max(totals.values()) or 1.0
    return [
        (
            name,
            totals[name],
            [
                {"name": part, "css": css, "percent": f"{100 * seconds / longest:.2f}", "text": duration(seconds)}
                for part, (css, seconds) in parts.items()
                if seconds
            ],
        )
        for name, parts in both.items()
    ]


def _verdict(summary: Summary) -> str:
    """Write what takes most of a step, and its share."""
    share = max(summary.parts().values()) / (summary.step_seconds or 1.0)
    return f"{_VERDICTS[bound_of(summary)]} {100 * share:.0f} % of a {summary.unit}."


def _costliest(files: list[tuple[str, list[SourceLine]]]) -> tuple[str, SourceLine] | None:
    """Return the line that takes most time on host or chip, with its place; None without lines."""
    lines = [(f"{file}:{line.number}" if line.number else file, line) for file, listed in files for line in listed]
    return max(lines, key=lambda item: max(item[1].chip_seconds, item[1].host_seconds), default=None)


def _groups(timeline: Timeline) -> list[tuple[str, list[dict[str, Any]], int]]:
    groups = []
    for label in ("family", "module", "line", "op"):
        rows = by_group(timeline, label)
        total = sum(seconds for _, _, seconds, _ in rows) or 1.0
        shown = [
            {
                "name": module_name(name) if label == "module" else name,
                "count": count,
                "seconds": seconds,
                "percent": 100 * seconds / total,
                "gflop": flops / 1e9,
            }
            for name, count, seconds, flops in rows[:MOST_ROWS]
        ]
        groups.append((label, shown, max(len(rows) - MOST_ROWS, 0)))
    return groups


def _facts(timeline: Timeline) -> list[tuple[str, str, str]]:
    data = timeline.chip.model_dump(exclude_none=True)
    sources = data.pop("sources", {})
    return [(key, str(value), source_of(key, sources)) for key, value in flat(data)]
