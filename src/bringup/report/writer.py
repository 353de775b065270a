"""A report's directory: trace, summary, page, timeline, each whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from bringup.errors import BringupError
from bringup.files import write_text
from bringup.prediction import Prediction
from bringup.report import html, machine, perfetto


def write(prediction: Prediction, target: Path, *, progress: bool = False) -> dict[str, Path]:
    """Write the four files of a report.

    Args:
        prediction: a priced trace.
        target: the directory, made if it is not there.
        progress: show a bar on stderr.

    Returns:
        file name -> path.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BringupError(f"{target}: cannot be made ({error.strerror}): give another directory with --out") from None
    timeline, summary = prediction.timeline, prediction.summary
    work: dict[str, Callable[[Path], None]] = {
        "trace.parquet": lambda path: prediction.trace.save(path),
        "summary.json": lambda path: write_text(path, machine.as_json(summary) + "\n"),
        "timeline.json": lambda path: write_text(path, perfetto.text(timeline)),
        "report.html": lambda path: write_text(path, html.page(timeline, summary)),
    }
    with Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar:
        task = bar.add_task("writing the report", total=len(work))
        for name, save in work.items():
            save(target / name)
            bar.advance(task)
    return {name: target / name for name in work}
