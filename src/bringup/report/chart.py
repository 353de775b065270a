"""A chart of a page as data: two axes and series of marks, which charts.js draws."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bringup.report import palette


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        title: the quantity and its unit.
        log: True for a logarithmic scale; all values are positive.
        lanes: names from bottom to top, if the values are numbers of lanes.
    """

    title: str = ""
    log: bool = False
    lanes: Sequence[str] = ()


@dataclass(frozen=True)
class Parts:
    """What an area consists of: `text` takes `y` of it from `x` on, for `width`."""

    x: Sequence[float] = ()
    width: Sequence[float] = ()
    y: Sequence[float] = ()
    text: Sequence[str] = ()


@dataclass(frozen=True)
class Series:
    """Marks of one shape and colour.

    Attributes:
        name: the entry in the legend, which series of the same name share.
        shape: ``bars`` start at `x` in lane `y` and are `width` long. ``points`` have a diameter of `size` pixels.
            ``line`` connects the points. ``steps`` is a line that keeps its `y` until the next `x`, with the area below
            it filled. ``stack`` is the same on top of the stacks before it, whose `x` are equal.
        colour: ``#rrggbb``.
        x, y: one number per mark.
        width, size: one number per mark, for the shapes that use it.
        text: one per mark, or none.
        hover: follows the text of each mark; ``{x}`` and ``{y}`` stand for the mark's numbers.
        dashed: True for a dashed line.
        row: one number per mark, or none; a click on a mark selects all marks of its row, and an arrow connects them.
        column: of the sums below the chart that counts the lengths of the bars; empty for none.
        labels: what the sums are grouped by beside `name`, one text per mark.
        inside: True if bars show the first line of their text, or points their text beside them where there is room.
        parts: what a stack consists of; a click lists those at its place.
    """

    name: str
    shape: Literal["bars", "points", "line", "steps", "stack"]
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    width: Sequence[float] = ()
    size: Sequence[float] = ()
    text: Sequence[str] = ()
    hover: str = ""
    dashed: bool = False
    row: Sequence[int] = ()
    column: str = ""
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    inside: bool = False
    parts: Parts = Parts()


@dataclass(frozen=True)
class Figure:
    """One chart; `height` is in pixels."""

    x: Axis
    y: Axis
    series: Sequence[Series]
    height: int = 320

    def as_json(self) -> str:
        """Return JSON that no text in it can break out of, inside a script element.

        Texts are numbers of the list `texts`. A stack has no `x` if it has that of the one before. `read` undoes both.
        """
        texts: dict[str, int] = {}

        def numbers(values: Sequence[str]) -> list[int]:
            return [texts.setdefault(value, len(texts)) for value in values]

        series: list[dict[str, Any]] = []
        for one, before in zip(self.series, (None, *self.series), strict=False):
            repeats = one.shape == "stack" and before is not None and one.x is before.x
            described = {
                **vars(one),
                "dark": palette.dark(one.colour),
                "x": [] if repeats else one.x,
                "text": numbers(one.text),
                "labels": {name: numbers(values) for name, values in one.labels.items()},
                "parts": {**vars(one.parts), "text": numbers(one.parts.text)},
            }
            series.append({name: value for name, value in described.items() if name in _NEEDED or value})
        data = {"x": self.x, "y": self.y, "height": self.height, "series": series, "texts": list(texts)}
        text = json.dumps(data, default=vars, sort_keys=True, allow_nan=False, separators=(",", ":"))
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


_NEEDED = ("name", "shape", "colour", "dark", "x", "y")


def read(text: str) -> dict[str, Any]:
    """Return the data of `Figure.as_json` with all texts and numbers in place."""
    data: dict[str, Any] = json.loads(text)
    texts = data.pop("texts")
    for one, before in zip(data["series"], (None, *data["series"]), strict=False):
        one["text"] = [texts[number] for number in one.get("text", ())]
        if before is not None and not one["x"]:
            one["x"] = before["x"]
    return data
