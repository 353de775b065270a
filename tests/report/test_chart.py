"""A chart's JSON, which stands in a script element."""

import json

import pytest

from bringup.report.chart import Axis, Figure, Series

HOSTILE = "</script><!-- &amp; \u2028 <script>alert(1)</script>"


def test_json_cannot_break_out_and_keeps_its_texts() -> None:
    series = Series(HOSTILE, "points", "#000000", [1.0], [2.0], size=[5.0], text=[HOSTILE])
    text = Figure(Axis(HOSTILE), Axis("y", log=True), [series]).as_json()
    assert text.isascii() and not set(text) & set("<>&")
    read = json.loads(text)
    assert read["x"]["title"] == read["series"][0]["name"] == read["series"][0]["text"][0] == HOSTILE
    assert read["y"] == {"title": "y", "log": True, "lanes": []}


def test_json_refuses_what_no_browser_reads() -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        Figure(Axis(), Axis(), [Series("a", "line", "#000000", [float("nan")], [1.0])]).as_json()
