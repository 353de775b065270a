"""What GitHub Actions shows of a command: annotations at lines of the program, and a job summary in Markdown.

The forms are those of GitHub's documentation, "Workflow commands for GitHub Actions": ``::error file=..,line=..::text``
on standard output, and Markdown appended to the file that ``GITHUB_STEP_SUMMARY`` names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from bringup.errors import BringupError
from bringup.paths import BACKWARD
from bringup.report import diff as comparison
from bringup.report.lines import Line, lines
from bringup.text import duration, plain, quantity, size

if TYPE_CHECKING:
    from bringup.analyse.diff import Diff
    from bringup.analyse.search import Fit
    from bringup.analyse.summary import Summary

SUMMARY = "GITHUB_STEP_SUMMARY"  # GitHub's name of the variable
MOST = 10  # annotations of one level that GitHub shows per step
LISTED = ("advice", "memory-advice", "bottleneck", "finding", "finding-advice")  # roles of lines in a job summary


@dataclass(frozen=True)
class Note:
    """An annotation; without a line it stands at the job."""

    level: Literal["error", "warning", "notice"]
    text: str
    line: str = ""  # train.py:12

    def __str__(self) -> str:
        """Return the workflow command."""
        file, _, number = self.line.removesuffix(BACKWARD).rpartition(":")
        properties = {"file": file, "line": number} if file and number.isdigit() else {}
        properties["title"] = "bringup"
        listed = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in properties.items())
        return f"::{self.level} {listed}::{_escaped(self.text)}"


@dataclass(frozen=True)
class Page:
    """The annotations of a command, and its part of the job summary."""

    title: str
    notes: list[Note] = field(default_factory=list)
    body: list[str] = field(default_factory=list)  # blocks of Markdown

    def markdown(self) -> str:
        """Return the part of the job summary."""
        return "\n\n".join([f"### {_cell(self.title)}", *self.body]) + "\n\n"


def _escaped(text: str, more: str = "") -> str:
    return "".join(f"%{ord(letter):02X}" if letter in "%\r\n" + more else letter for letter in plain(text))


def write(page: Page) -> None:
    """Print the annotations, the first of each level, and append the page to the job summary, if there is one.

    Raises:
        BringupError: the file of the job summary cannot be written.
    """
    for level in ("error", "warning", "notice"):
        for note in [note for note in page.notes if note.level == level][:MOST]:
            print(note, flush=True)
    path = os.environ.get(SUMMARY)
    if not path:
        return
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(page.markdown())
    except OSError as error:
        raise BringupError(f"{path}: the job summary cannot be written ({error.strerror}): unset {SUMMARY}") from None


def of_run(summary: Summary, program: str, exceeded: Iterable[str]) -> Page:
    """Return the page of a run: its findings and limits as errors, operators on the host as warnings."""
    page = Page(f"bringup run {program} on {summary.chip}")
    page.notes.extend(Note("error", sentence) for sentence in exceeded)
    page.notes.extend(Note("error", f"{item.what}: {item.advice}", item.line) for item in summary.findings)
    if summary.out_of_memory:
        at = summary.memory.at.line if summary.memory.at else ""
        page.notes.append(Note("error", f"out of memory on {summary.chip}", at or ""))
    for ledger in summary.fallbacks:
        took = f"{ledger.count:,.4g}x per {summary.unit}, {duration(ledger.seconds)}"
        text = f"{ledger.op} {ledger.dtype} runs on the host ({took})"
        page.notes.append(Note("warning", text, f"{ledger.file}:{ledger.line}"))
    numbers = {
        summary.unit: duration(summary.step_seconds),
        **{name: duration(seconds) for name, seconds in summary.parts().items()},
        "launches": f"{summary.launches:,}",
        "memory at the peak": f"{size(summary.peak_bytes)} of {size(summary.capacity_bytes)}",
        "error band": "not validated" if summary.error_band is None else f"+-{summary.error_band:.0%}",
    }
    page.body.append(_table(("", summary.chip), numbers.items()))
    listed = [line.text.strip() for line in lines(summary) if isinstance(line, Line) and line.role in LISTED]
    if listed:
        page.body.append("\n".join(_item(text) for text in listed))
    return page


def of_diff(compared: Diff, names: tuple[str, str], exceeded: Iterable[str]) -> Page:
    """Return the page of a comparison: limits as errors; if there are any, the lines that became slower."""
    before, after = compared.runs
    page = Page(comparison.verdict(compared, names))
    page.notes.extend(Note("error", sentence) for sentence in exceeded)
    if page.notes:
        slower = [part for part in (*compared.slower, *compared.new) if part.group == "line"]
        page.notes.extend(Note("warning", f"slower: {_change(part.seconds)}", part.name) for part in slower)
    rows = {
        f"time of a {after.unit}": (duration(before.step_seconds), duration(after.step_seconds)),
        "launches": (f"{before.launches:,}", f"{after.launches:,}"),
        "memory at the peak": (size(before.peak_bytes), size(after.peak_bytes)),
    }
    page.body.append(_table(("", *names), ((name, *pair) for name, pair in rows.items())))
    for title in ("slower", "faster", "new", "gone"):
        parts = getattr(compared, title)[: comparison.MOST_PARTS]
        if parts:
            cells = ((part.group, part.name, _change(part.seconds)) for part in parts)
            page.body.append(_table((title, "", f"time of a {after.unit}"), cells))
    return page


def _change(seconds: tuple[float, float]) -> str:
    first, second = seconds
    return f"{duration(first)} -> {duration(second)} ({comparison.signed(second - first)})"


def of_fit(fits: Sequence[Fit], program: str) -> Page:
    """Return the page of a search: a warning for each chip whose memory is too small."""
    page = Page(f"bringup fit {program}")
    for fit in fits:
        if not fit.as_is.fits:
            needs = f"{size(fit.as_is.peak_bytes)} of {size(fit.as_is.capacity_bytes)}"
            page.notes.append(Note("warning", f"{program} does not fit {fit.as_is.chip}: {needs}"))
    rows = (
        (fit.as_is.chip, size(fit.as_is.capacity_bytes), size(fit.as_is.peak_bytes), fit.as_is.verdict_text())
        for fit in fits
    )
    page.body.append(_table(("chip", "capacity", "needs", ""), rows))
    return page


def of_check(card: Mapping[str, Any], changes: Iterable[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> Page:
    """Return the page of a scorecard: items that became worse as errors, others that fail as warnings."""
    page = Page(f"bringup check: {quantity(len(card['items']), 'item')}")
    worse = [after for word, _, after in changes if word == "worse"]
    page.notes.extend(Note("error", f"{item['id']} {item['title']} became worse: {item['evidence']}") for item in worse)
    failed = [item for item in card["items"] if item["verdict"] == "fail" and item not in worse]
    page.notes.extend(Note("warning", f"{item['id']} {item['title']} fails: {item['evidence']}") for item in failed)
    rows = ((item["id"], item["title"], item["verdict"], item["evidence"]) for item in card["items"])
    page.body.append(_table(("item", "", "verdict", "evidence"), rows))
    return page


def _item(text: str) -> str:
    """Return an item of a list; what to do stands below what is wrong."""
    return f"  - {_cell(text.removeprefix('-> '))}" if text.startswith("-> ") else f"- {_cell(text)}"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in cells)


def _cell(text: str) -> str:
    """Escape a text for Markdown and the HTML in it: names come from programs."""
    shown = escape(plain(text), quote=False)
    return "".join(f"\\{letter}" if letter in "\\|`*_[]" and text != "---" else letter for letter in shown)
