"""A chart of a page as data: two axes and series of marks, which charts.js draws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


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
class Series:
    """Marks of one shape and colour.

    Attributes:
        name: the entry in the legend, which series of the same name share.
        shape: ``bars`` start at `x` in lane `y` and are `width` long. ``points`` have a diameter of `size` pixels.
            ``line`` connects the points. ``steps`` is a line that keeps its `y` until the next `x`, with the area below
            it filled.
        colour: ``#rrggbb``.
        x, y: one number per mark.
        width, size: one number per mark, for the shapes that use it.
        text: one per mark, or none.
        hover: follows the text of each mark; ``{x}`` and ``{y}`` stand for the mark's numbers.
        dashed: True for a dashed line.
    """

    name: str
    shape: Literal["bars", "points", "line", "steps"]
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    width: Sequence[float] = ()
    size: Sequence[float] = ()
    text: Sequence[str] = ()
    hover: str = ""
    dashed: bool = False


@dataclass(frozen=True)
class Figure:
    """One chart; `height` is in pixels."""

    x: Axis
    y: Axis
    series: Sequence[Series]
    height: int = 320

    def as_json(self) -> str:
        """Return JSON that no text in it can break out of, inside a script element."""
        text = json.dumps(self, default=vars, sort_keys=True, allow_nan=False, separators=(",", ":"))
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
