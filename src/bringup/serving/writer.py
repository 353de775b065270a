"""The files of a simulation: the page, a timeline with one track per request, the requests, and the table of steps."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.errors import BringupError
from bringup.files import write_text
from bringup.report import directory, html, palette, pftrace
from bringup.report.chart import Axis, Figure, Series
from bringup.serving.outcome import WORDS, Outcome
from bringup.serving.steps import COLUMNS
from bringup.text import duration, figure

if TYPE_CHECKING:
    from bringup.serving.serve import Simulation

Array = npt.NDArray[Any]
FILES = ("report.html", "timeline.pftrace.gz", "requests.parquet", "summary.json", "steps.csv")
MOST_POINTS = 2000
MOST_TRACKS = 20_000  # requests in the timeline; chosen: the viewer opens them without trouble
PREFILL, REQUESTS, CONTEXTS = (0, 256, 512, 1024, 2048), (0, 1, 8, 32, 64, 128, 256), (0, 256, 1024, 4096)


def prepare(out: str) -> Path:
    """Check before the simulation that the directory can be written.

    Raises:
        BringupError: it cannot, or pyarrow is missing.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise BringupError('--out writes requests.parquet with pyarrow: pip install "bringup[serve]"') from None
    return directory.prepare(out, FILES)


def write(simulation: Simulation, outcome: Outcome, out: str, name: str) -> None:
    """Write all files, together or not at all."""
    work = {
        "report.html": lambda path: write_text(path, page(outcome, name)),
        "timeline.pftrace.gz": lambda path: pftrace.write(path, timeline(outcome).packets()),
        "requests.parquet": lambda path: parquet(outcome, path),
        "summary.json": lambda path: write_text(path, json.dumps(outcome.as_dict(), sort_keys=True) + "\n"),
    }
    if simulation.has_tokens:
        work["steps.csv"] = lambda path: steps(simulation, path)
    directory.write(Path(out), work)


def parquet(outcome: Outcome, path: Path) -> None:
    """Write one row per request."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(outcome.table()), path)


def steps(simulation: Simulation, path: Path) -> None:
    """Write what some steps take, in the format of --step-seconds."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for prefill in PREFILL:
            for requests in REQUESTS:
                for context in CONTEXTS if requests else (0,):
                    if prefill + requests:
                        seconds = simulation.step_seconds(prefill, requests, requests * context)
                        writer.writerow([prefill, requests, requests * context, f"{seconds:.6g}"])


def timeline(outcome: Outcome) -> pftrace.Writer:
    """Return a trace for ui.perfetto.dev with a track per request."""
    writer = pftrace.Writer()
    engines = sorted({max(request.engine, 0) for request in outcome.requests})
    processes = {engine: writer.process(f"engine {engine}") for engine in engines}
    for request in outcome.requests[:MOST_TRACKS]:
        track = writer.track(processes[max(request.engine, 0)], f"request {request.number}")
        moments = [request.arrival, request.begun, request.last]
        names = ["waits", "runs"]
        if outcome.kv_blocks:
            moments.insert(2, request.first)
            names[1:] = ["prefill", "decode"]
        about = {"prompt": request.prompt, "output": request.output, "preemptions": request.preemptions}
        times = np.repeat(moments, 2)[1:-1]  # each part ends where the next one begins
        writer.slices(track, times, np.arange(len(names)), [(name, about) for name in names])
    return writer


# ---- the page


def page(outcome: Outcome, name: str) -> str:
    """Write the report."""
    has_tokens = outcome.kv_blocks > 0
    percentiles = outcome.percentiles()
    names = tuple(percentiles) if has_tokens else ("latency",)
    charts = {"latency": _latency(outcome, names), "queue": _queue(outcome)}
    if has_tokens:
        charts["cache"] = _cache(outcome)
    on = f" on {outcome.about['chip']}" if outcome.about["chip"] else ""
    return html.render(
        "serve.html",
        title=f"{name}{on} under load: bringup",
        charts=charts,
        name=name,
        on=on,
        o=outcome,
        percentiles=percentiles,
        names=names,
        words=WORDS,
        has_tokens=has_tokens,
        infinity=math.inf,
        duration=duration,
        figure=figure,
    )


def _latency(outcome: Outcome, names: tuple[str, ...]) -> Figure:
    series = []
    for number, name in enumerate(names):
        values = np.sort(outcome.columns[name])
        values = values[~np.isnan(values)]
        places = np.unique(np.linspace(0, len(values) - 1, min(len(values), 200)).astype(int))
        x = [max(round(float(value), 9), 1e-9) for value in values[places]]
        y = [round(100 * (int(place) + 1) / len(values), 3) for place in places]
        series.append(Series(WORDS[name], "line", palette.series(number), x, y, hover="{y} % within {x} s"))
    return Figure(Axis("seconds", log=True), Axis("% of the requests"), series)


def _over_time(outcome: Outcome, number: int, field: str) -> tuple[list[float], list[float]]:
    history = outcome.histories[number]
    if not history.time:  # the engine got no request
        return [], []
    time, values = np.asarray(history.time), np.asarray(getattr(history, field), dtype=float)
    before, end = np.arange(len(time) - 1), len(time) - 1
    pieces = np.array_split(before, min(len(before), MOST_POINTS // len(outcome.histories)) or 1)
    rows = [int(piece[np.argmax(values[piece])]) for piece in pieces if len(piece)]  # the largest, so no peak is lost
    rows.append(end)  # where nothing runs any more
    return [round(float(time[row]), 6) for row in rows], [float(values[row]) for row in rows]


def _queue(outcome: Outcome) -> Figure:
    series = []
    for number in range(len(outcome.histories)):
        ending = f", engine {number}" if len(outcome.histories) > 1 else ""
        for place, field in enumerate(("running", "waiting")):
            x, y = _over_time(outcome, number, field)
            colour = palette.series(2 * number + place)
            series.append(Series(f"{field}{ending}", "line", colour, x, y, hover=f"{{y}} {field} at {{x}} s"))
    return Figure(Axis("seconds"), Axis("requests"), series)


def _cache(outcome: Outcome) -> Figure:
    series = []
    for number in range(len(outcome.histories)):
        ending = f" of engine {number}" if len(outcome.histories) > 1 else ""
        x, y = _over_time(outcome, number, "blocks")
        share = [round(100 * value / outcome.kv_blocks, 3) for value in y]
        series.append(Series(f"KV cache{ending}", "steps", palette.series(number), x, share, hover="{y} % at {x} s"))
        times = outcome.histories[number].preemptions[:MOST_POINTS]
        if times:
            x, y = [round(time, 6) for time in times], [100.0] * len(times)
            sizes, colour = [6.0] * len(times), palette.PAGE["fallback"]
            series.append(
                Series(f"preemptions{ending}", "points", colour, x, y, size=sizes, hover="preempted at {x} s")
            )
    return Figure(Axis("seconds"), Axis("% of the KV cache"), series)
