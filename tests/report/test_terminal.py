"""The summary on a terminal."""

from rich.console import Console

from bringup.analyse.holders import Owner
from bringup.report.lines import Line, by_kind
from bringup.report.terminal import _print_line


def test_long_lines_go_on_under_their_text() -> None:
    console = Console(width=30, record=True, emoji=False)
    for text in ("  1. a first sentence that is longer than that", "     -> an advice that is also longer than that"):
        _print_line(Line("bottleneck", ((text, ""),)), console)
    shown = [line.rstrip() for line in console.export_text().splitlines()]
    assert shown == [
        "  1. a first sentence that is",
        "     longer than that",
        "     -> an advice that is also",
        "        longer than that",
    ]


def test_members_of_a_list_are_shown_as_a_range() -> None:
    owners = [Owner("activations", f"h.{i}.attn", 5) for i in range(12)] + [Owner("parameters", "fc", 3)]
    assert by_kind(owners) == [("activations", 60, [("h.0-11.attn", 60)]), ("parameters", 3, [("fc", 3)])]
