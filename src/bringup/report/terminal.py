"""Prints the one-screen summary."""

from __future__ import annotations

import io
import re
import sys
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bringup.report.lines import Line, Row, lines
from bringup.text import plain

if TYPE_CHECKING:
    from bringup.analyse.summary import Summary

MARGIN = re.compile(r" *(?:\d+\. |-> )?")  # indentation, and a number or an arrow
UNWRAPPED = 1_000_000  # columns
LEAST_WIDTH = 20  # columns for the text in a narrow terminal


def console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal; without one, lines are not wrapped."""
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack letters of a name
    return Console(stderr=stderr, width=None if stream.isatty() else UNWRAPPED, emoji=False, highlight=False)


def escaped(text: object) -> str:
    """Escape a text from a file, name or path for rich: brackets are not markup, control characters are visible."""
    return escape(plain(str(text)))


def print_summary(summary: Summary, console: Console) -> None:
    """Print the numbers, findings and advice of a summary on one screen."""
    for (is_table, _), group in groupby(lines(summary), lambda line: (isinstance(line, Row), line.role)):
        if is_table:
            table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
            for row in group:
                assert isinstance(row, Row)
                table.add_row(*map(escaped, row.cells))
            console.print(table)
            continue
        for line in group:
            assert isinstance(line, Line)
            _print_line(line, console)


def _print_line(line: Line, console: Console) -> None:
    """Print a line; where it is longer than the terminal is wide, it goes on under its own text."""
    text = console.render_str(_markup(line))
    margin = len(MARGIN.match(line.text)[0])  # type: ignore[index]  # it matches every text
    pieces = text[margin:].wrap(console, max(console.width - margin, LEAST_WIDTH))
    for number, piece in enumerate(pieces):
        piece.rstrip()
        console.print(text[:margin] + piece if number == 0 else Text(" " * margin) + piece, soft_wrap=True)


def _markup(line: Line) -> str:
    return "".join(f"[{style}]{escaped(text)}[/]" if style else escaped(text) for text, style in line.parts)
