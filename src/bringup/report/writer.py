"""Writes the files of a report: trace, summary, page and timeline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from bringup.files import write_text
from bringup.recording.rows import MEASURED
from bringup.report import directory, html, perfetto, summary_json
from bringup.report.prediction import Prediction


def write(prediction: Prediction, target: Path, *, progress: bool = False) -> None:
    """Write the four files of a report, together or not at all. The prediction and all files get the run's id.

    Args:
        prediction: a priced trace.
        target: the directory; created if it does not exist.
        progress: True shows a progress bar on stderr.

    Raises:
        BringupError: a file cannot be written; the directory stays unchanged.
    """
    trace, timeline = prediction.trace, prediction.timeline
    run = identify(prediction)
    summary = prediction.summary
    work: dict[str, Callable[[Path], None]] = {
        "trace.npz": trace.save,
        "summary.json": lambda path: write_text(path, summary_json.as_json(summary) + "\n"),
        "timeline.pftrace.gz": lambda path: perfetto.write(path, timeline, run),
        "report.html": lambda path: write_text(path, html.page(timeline, summary)),
    }
    with Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar:
        task = bar.add_task("writing the report", total=len(work))

        def counted(save: Callable[[Path], None]) -> Callable[[Path], None]:
            def step(path: Path) -> None:
                save(path)
                bar.advance(task)

            return step

        directory.write(target, {name: counted(save) for name, save in work.items()})


def identify(prediction: Prediction) -> str:
    """Give the run's id to a prediction's trace and summary, and return it."""
    run = run_id(prediction)
    prediction.trace.about["run"] = run
    prediction.summary = replace(prediction.summary, run=run)
    return run


def run_id(prediction: Prediction) -> str:
    """Return an id for the run: the same for the same program and machine files, different for others.

    Host times in the trace differ between runs; they enter the id only through the summary. Times of input do not.
    """
    trace, timeline = prediction.trace, prediction.timeline
    bottlenecks = [item for item in prediction.summary.bottlenecks if item.key != "input-bound"]
    same = replace(
        prediction.summary, run="", input_seconds=0.0, inputs=[], own_seconds=0.0, own=[], bottlenecks=bottlenecks
    )
    digest = hashlib.sha256(summary_json.as_json(same).encode())
    for name, column in trace.columns.items():
        if name not in ("host_ns", *MEASURED):
            digest.update(np.ascontiguousarray(column).data)
    for column in (trace.uses, trace.offsets):
        digest.update(np.ascontiguousarray(column).data)
    about = {name: value for name, value in trace.about.items() if name not in ("run", "inputs", "sleeps")}
    described = [about, trace.signature_data, trace.lines, trace.modules]
    described += [timeline.chip.model_dump(), timeline.host.model_dump()]
    digest.update(json.dumps(described, sort_keys=True).encode())
    return digest.hexdigest()[:16]
