"""The summary on a terminal."""

import pytest
from rich.console import Console

from bringup.analyse.holders import Owner
from bringup.report.lines import Line, by_kind
from bringup.report.terminal import _print_line, console
from bringup.text import module_name


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


@pytest.mark.parametrize(
    ("name", "text"),
    [("2", "module 2"), ("0.norm", "module 0.norm"), ("0,2-7", "modules 0,2-7"), ("a.0-3", "a.0-3"), ("", "")],
)
def test_module_whose_name_is_a_number_is_called_so(name: str, text: str) -> None:
    assert module_name(name) == text


def test_terminal_does_not_colour_numbers() -> None:
    assert not console().render_str("off by 15 %").spans
