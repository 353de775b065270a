"""The one-screen summary, printed."""

from __future__ import annotations

import io
import sys
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bringup.report.lines import Line, Row, lines
from bringup.text import plain

if TYPE_CHECKING:
    from bringup.analyse.summary import Summary

# rich colours the numbers of these; elsewhere names and paths hold numbers, too.
HIGHLIGHTED = ("step", "shares", "out-of-memory", "more-fallbacks")


def console() -> Console:
    """Return a console as wide as the terminal; wide enough for a table where there is none."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have letters that a terminal's encoding lacks
    return Console(width=None if sys.stdout.isatty() else 140, emoji=False)


def shown(text: object) -> str:
    """Return a text of a file, a name or a path as rich prints it: its brackets are no markup, see also `plain`."""
    return escape(plain(str(text)))


def print_summary(summary: Summary, console: Console) -> None:
    """Print what happened and what to do, on one screen."""
    for (is_table, _), group in groupby(lines(summary), lambda line: (isinstance(line, Row), line.role)):
        if is_table:
            table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
            for row in group:
                assert isinstance(row, Row)
                table.add_row(*map(shown, row.cells))
            console.print(table)
            continue
        for line in group:
            assert isinstance(line, Line)
            console.print(_markup(line), highlight=line.role in HIGHLIGHTED)


def _markup(line: Line) -> str:
    return "".join(f"[{style}]{shown(text)}[/]" if style else shown(text) for text, style in line.parts)
