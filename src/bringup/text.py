"""Formatting for people: safe text, durations and sizes."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape

_JOINERS = "\u200c\u200d"  # harmless: they occur within Persian words and within emoji
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (such as bidirectional overrides), surrogate, separators


def plain(text: str) -> str:
    """Return a text with control characters and invisible characters escaped, so that a terminal may show it.

    Names and texts from files need this, because anyone may have written them.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _shows(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def _shows(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character) not in _HIDDEN


def visible(text: str) -> str:
    """Return a text of a file that has no hidden characters.

    Raises:
        ValueError: it has one.
    """
    if plain(text) != text:
        raise ValueError(f"a text may not have the character in {short(text)!r}: leave it out")
    return text


def short(text: str, most: int = 80) -> str:
    """Return the first letters of a text in one line, escaped by `plain`."""
    text = plain(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def split_line(text: str) -> tuple[str, int]:
    """Split ``train.py:12``; an unknown line is ``("", 0)``."""
    file, _, number = text.rpartition(":")
    return (file, int(number)) if number.isdigit() else (text, 0)


def module_name(name: str) -> str:
    """Write the name of a module, or of several as one; that of a list's member begins with a number: ``module 2``."""
    if not name[:1].isdigit():
        return name
    several = any(mark in name.partition(".")[0] for mark in ",-")
    return f"modules {name}" if several else f"module {name}"


def quantity(number: float, noun: str) -> str:
    """Write a number with its noun: ``1 launch``, ``2,000 launches``."""
    plural = "" if number == 1 else "es" if noun.endswith(("ch", "s")) else "s"
    return f"{number:,} {noun}{plural}" if isinstance(number, int) else f"{number:,.3g} {noun}{plural}"


def figure(number: float) -> str:
    """Write a number with three digits, or all digits before the point: ``0.0182``, ``1,740``, ``0.0000121``."""
    if abs(number) >= 999.5:
        return f"{number:,.0f}"
    if number == 0 or abs(number) >= 1e-4:
        return f"{number:.3g}"
    return f"{number:.{2 - math.floor(math.log10(abs(number)))}f}"


def duration(seconds: float) -> str:
    """Format a time with a fitting unit: ``412.3 ms``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            value = seconds / scale
            return f"{value:,.1f} {unit}" if value < 1e4 else f"{value:,.0f} {unit}"
    return "0 us" if seconds == 0 else f"{seconds * 1e9:.0f} ns"


def size(count: float) -> str:
    """Format a number of bytes with a fitting unit: ``1.50 GiB``."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count:.0f} bytes"


def html_table(title: str, rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """Write a title and a table as HTML for a notebook's output; the first column is text, the others are numbers."""
    align = ("left", "right")

    def row(tag: str, cells: Sequence[str]) -> str:
        texts = (
            f'<{tag} style="text-align:{align[number > 0]}">{escape(plain(cell))}</{tag}>'
            for number, cell in enumerate(cells)
        )
        return f"<tr>{''.join(texts)}</tr>"

    head = f"<thead>{row('th', heads)}</thead>" if heads else ""
    body = "".join(row("td", cells) for cells in rows)
    return f"<div><strong>{escape(plain(title))}</strong><table>{head}<tbody>{body}</tbody></table></div>"
