"""A chart's JSON, which stands in a script element."""

import json

import pytest

from bringup.report.chart import Axis, Figure, Parts, Series, read

HOSTILE = "</script><!-- &amp; \u2028 <script>alert(1)</script>"


def test_json_cannot_break_out_and_keeps_its_texts() -> None:
    series = Series(HOSTILE, "points", "#000000", [1.0], [2.0], size=[5.0], text=[HOSTILE])
    text = Figure(Axis(HOSTILE), Axis("y", log=True), [series]).as_json()
    assert text.isascii() and not set(text) & set("<>&")
    data = read(text)
    assert data["x"]["title"] == data["series"][0]["name"] == data["series"][0]["text"][0] == HOSTILE
    assert data["y"] == {"title": "y", "log": True, "lanes": []}


def test_json_writes_equal_texts_and_the_x_of_stacks_once() -> None:
    x, parts = [1.0, 2.0], Parts([1.0], [1.0], [3.0], ["a.py:1"])
    series = [Series(name, "stack", "#000000", x, [3.0, 0.0], parts=parts) for name in "ab"]
    bars = Series("c", "bars", "#000000", [0.0, 1.0], [0, 0], width=[1.0, 1.0], text=["a.py:1"] * 2)
    text = Figure(Axis(), Axis(), [*series, bars]).as_json()
    assert text.count("a.py:1") == 1 and json.loads(text)["series"][1]["x"] == []
    data = read(text)
    assert [one["x"] for one in data["series"]] == [x, x, [0.0, 1.0]] and data["series"][2]["text"] == ["a.py:1"] * 2


def test_json_refuses_what_no_browser_reads() -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        Figure(Axis(), Axis(), [Series("a", "line", "#000000", [float("nan")], [1.0])]).as_json()
