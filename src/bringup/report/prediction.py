"""Predictions from Python: price a trace, which needs no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bringup.analyse.advice import advise
from bringup.analyse.compare import Comparison, compare
from bringup.analyse.summarize import summarize
from bringup.analyse.summary import Summary
from bringup.errors import BringupError
from bringup.files import write_text
from bringup.machine.files import available_chips, load_chip, load_host
from bringup.machine.schema import Chip, Host
from bringup.recording.trace import Trace
from bringup.report import directory, html
from bringup.timeline.replay import HostClock, Timeline, replay


class Prediction:
    """A trace priced on one machine. The fields of its `Summary` are also its attributes, in seconds and bytes.

    Attributes:
        trace: the recording.
        timeline: start and end of every row.
        summary: the numbers of the report.
    """

    def __init__(self, trace: Trace, timeline: Timeline, summary: Summary) -> None:
        self.trace = trace
        self.timeline = timeline
        self.summary = summary

    def __getattr__(self, name: str) -> Any:
        """Return a field of the summary."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.summary, name)

    def __repr__(self) -> str:
        """Return the step time and the chip as text."""
        took = f"{self.summary.step_seconds * 1e3:.4g} ms per {self.summary.unit}"
        return f"<Prediction: {took} on {self.summary.chip}>"

    def _repr_html_(self) -> str:
        """Return the first screen of the report for a notebook."""
        return html.first_screen(self.summary)

    def compare(self, chips: Sequence[str | os.PathLike[str] | Chip] | None = None) -> Comparison:
        """Price the recording on several chips with the same host.

        Args:
            chips: names, files or loaded chips; the first one is the baseline (default: all that ship).
        """
        described = [
            chip if isinstance(chip, Chip) else load_chip(os.fspath(chip)) for chip in chips or available_chips()
        ]
        return compare(self.trace, described, self.timeline.host, host_clock=self.timeline.host_clock)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one self-contained file."""
        write_text(path, html.page(self.timeline, self.summary))


def price(
    trace: Trace,
    chip: str | os.PathLike[str] | Chip,
    host: str | os.PathLike[str] | Host | None = None,
    *,
    host_clock: HostClock = "modelled",
    cluster: str | os.PathLike[str] | None = None,
) -> Prediction:
    """Price a trace on a chip. Nothing is run, so this takes milliseconds.

    Args:
        trace: from `record` or `Trace.load`.
        chip: name, file or loaded chip.
        host: name, file or loaded host (default: see `load_host`).
        host_clock: ``modelled`` (times from the host file) or ``measured`` (CPU times of the recorded program).
        cluster: name or file of the cluster for collectives (default: that of the recording, or the chip's nearest).
    """
    if cluster is not None:
        trace = replace(trace, about={**trace.about, "cluster": os.fspath(cluster)})
    described = chip if isinstance(chip, Chip) else load_chip(os.fspath(chip))
    machine = host if isinstance(host, Host) else load_host(None if host is None else os.fspath(host))
    timeline = replay(trace, described, machine, host_clock=host_clock)
    return Prediction(trace, timeline, advise(timeline, summarize(timeline)))


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Load a trace file, or the trace in a report's directory.

    Raises:
        BringupError: it is missing or damaged, or the directory holds files of two runs.
    """
    file_or_folder = Path(path)
    if not os.path.isdir(file_or_folder):
        return Trace.load(file_or_folder)
    try:
        with directory.opened(file_or_folder) as check:
            trace = Trace.load(file_or_folder / "trace.npz")
            check(trace.about.get("run", ""))
            return trace
    except OSError as error:
        raise BringupError(f"{file_or_folder}: cannot be read ({error.strerror or error})") from None
