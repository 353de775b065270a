"""The lines of the program with the time that they take on host, chip and link in the typical step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bringup.paths import BACKWARD
from bringup.recording.rows import ALLOC, D2D, D2H, H2D, LAUNCH
from bringup.text import split_line
from bringup.timeline.host_spans import FULL_QUEUE, host_spans
from bringup.timeline.replay import Timeline, is_placed
from bringup.timeline.steady import steady


@dataclass(frozen=True)
class SourceLine:
    """One line in the typical step: its own launches, and what their backward passes launch in other threads.

    Attributes:
        number: in its file; 0 if the line has no number.
        text: the source at the time of the recording; empty if it is unknown.
        launches: per step.
        chip_seconds, link_seconds: of launches and of copies on their engines, which overlap.
        host_seconds: of calls and waits; `waited_seconds` of them are waits.
        allocated_bytes: that its launches allocated.
    """

    number: int
    text: str
    launches: int
    chip_seconds: float
    link_seconds: float
    host_seconds: float
    waited_seconds: float
    allocated_bytes: int


def source_lines(timeline: Timeline) -> list[tuple[str, list[SourceLine]]]:
    """List the files of the typical step, the one that takes most time first, with their lines from top to bottom."""
    trace, (first, last, *_) = timeline.trace, steady(timeline)
    count = len(trace.lines)
    columns = {name: values[first:last] for name, values in trace.columns.items()}
    line = np.where(columns["line"] < 0, count, columns["line"])
    launched, copied = columns["kind"] == LAUNCH, np.isin(columns["kind"], (H2D, D2H, D2D))
    on_engine = (timeline.end - timeline.start)[first:last]
    launches = np.bincount(line[launched], minlength=count + 1)
    beside = ~is_placed(columns)  # the host's spans have what a plan puts on the host
    chip, link = (np.bincount(line[rows & beside], on_engine[rows & beside], count + 1) for rows in (launched, copied))
    spans = host_spans(timeline, first, last)
    of_span, length, waits = line[spans.row - first], spans.end - spans.start, spans.what >= FULL_QUEUE
    host = np.bincount(of_span, length, count + 1)
    waited = np.bincount(of_span[waits], length[waits], count + 1)
    allocated = np.bincount(line, np.where(columns["kind"] == ALLOC, columns["bytes"], 0), count + 1)
    texts = trace.about.get("source", [])
    files: dict[str, list[SourceLine]] = {}
    for place in np.flatnonzero((launches[:count] > 0) | (host[:count] > 0)).tolist():
        file, number = split_line(trace.lines[place].removesuffix(BACKWARD))
        suffix = BACKWARD if trace.lines[place].endswith(BACKWARD) else ""
        text = texts[place] if place < len(texts) else ""
        entry = SourceLine(
            number=number,
            text=text + suffix,
            launches=int(launches[place]),
            chip_seconds=float(chip[place]),
            link_seconds=float(link[place]),
            host_seconds=float(host[place]),
            waited_seconds=float(waited[place]),
            allocated_bytes=int(allocated[place]),
        )
        files.setdefault(file, []).append(entry)
    for lines in files.values():
        lines.sort(key=lambda item: item.number)
    return sorted(files.items(), key=lambda item: (-sum(max(x.chip_seconds, x.host_seconds) for x in item[1]), item[0]))
