"""What a step of an engine takes: a table over prompt tokens, decoding requests and the tokens in their caches."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bringup.errors import BringupError
from bringup.files import StrPath, read_text

Array = npt.NDArray[Any]
COLUMNS = ("prefill_tokens", "decode_requests", "context_tokens", "seconds")
LEAST = 1e-3  # of the shortest row: beyond the rows, a line could lead below zero; chosen
NEIGHBOURS = 8  # rows that correct the plane at a point; chosen: the corners of a cell


@dataclass(frozen=True)
class Chunk:
    """A part of a prompt in a step.

    Attributes:
        tokens: that are computed.
        cached: tokens of the same request before them.
        last: True if the step generates the request's next token.
    """

    tokens: int
    cached: int
    last: bool


class StepTable(Protocol):
    """The seconds of any step."""

    def seconds(self, chunks: Sequence[Chunk], requests: int, context: int, width: int = 1) -> float:
        """Return the seconds of one step.

        Args:
            chunks: parts of prompts.
            requests: decoding requests.
            context: tokens in their caches together.
            width: tokens that each of them computes: more than one with drafts.
        """
        ...

    def decode_seconds(self, requests: int, contexts: Array) -> Array:
        """Return the seconds of steps that only decode, one per number of tokens in the caches."""
        ...


class Rows:
    """A step table from rows of a file: the seconds of `COLUMNS`, and what lies between and beyond them.

    Rows that are a full grid are interpolated between its lines and extended beyond them. Other rows are fitted by a
    plane without negative slopes; at and near a row, its distance from the plane is added.
    """

    def __init__(self, rows: Array) -> None:
        points, seconds = rows[:, :3], rows[:, 3]
        points, number = np.unique(points, axis=0, return_inverse=True)
        seconds = np.bincount(number.ravel(), seconds) / np.bincount(number.ravel())  # a step measured again: the mean
        self._axes = [np.unique(points[:, column]) for column in range(3)]
        self._grid = None
        if math.prod(map(len, self._axes)) == len(points):
            self._grid = seconds.reshape([len(axis) for axis in self._axes])
        self._points, self._scale = points, np.maximum(np.ptp(points, axis=0), 1.0)
        self._plane = _plane(points, seconds)
        self._off = seconds - self._plane[0] - points @ self._plane[1:]
        self._least = float(seconds.min())
        self._lines: dict[int, Array] = {}

    @classmethod
    def read(cls, path: StrPath) -> Rows:
        """Read a CSV file with a header of `COLUMNS`.

        Raises:
            BringupError: the file is missing or malformed, with the line.
        """
        reader = csv.DictReader(io.StringIO(read_text(path, "step table")))
        try:
            rows = _rows(reader, path)
        except csv.Error as error:
            raise BringupError(f"{path}:{reader.line_num + 1}: is no CSV: {error}") from None
        if not rows:
            raise BringupError(f"{path}: has no rows: write one step per line")
        return cls(np.asarray(rows))

    def seconds(self, chunks: Sequence[Chunk], requests: int, context: int, width: int = 1) -> float:
        """Return the seconds of one step; drafted tokens count like those of a prompt."""
        tokens = sum(chunk.tokens for chunk in chunks) + (width - 1) * requests
        total = context + sum(chunk.cached for chunk in chunks)
        return float(self._at(np.asarray([[tokens, requests, total]], dtype=float))[0])

    def decode_seconds(self, requests: int, contexts: Array) -> Array:
        """Return the seconds of steps that only decode."""
        if self._grid is not None:
            if requests not in self._lines:  # over the contexts, for no prompt and this many requests
                line = [[0.0, float(requests), context] for context in self._axes[2]]
                self._lines[requests] = self._at(np.asarray(line))
            line_seconds = extended(self._axes[2], self._lines[requests], contexts)
            least: Array = np.maximum(line_seconds, self._least * LEAST)
            return least
        # Elsewhere a step is nearly linear in the context.
        places = np.unique(np.linspace(0, len(contexts) - 1, 9).astype(int))
        points = np.stack([np.zeros(len(places)), np.full(len(places), requests), contexts[places]], axis=1)
        seconds: Array = np.interp(contexts, contexts[places], self._at(points))
        return seconds

    def _at(self, points: Array) -> Array:
        values = self._on_grid(points) if self._grid is not None else self._by_plane(points)
        above: Array = np.maximum(values, self._least * LEAST)
        return above

    def _on_grid(self, points: Array) -> Array:
        assert self._grid is not None
        corners = [np.zeros(len(points)) + 0.0]
        lower, weight = [], []
        for axis, values in zip(self._axes, points.T, strict=True):
            place = np.clip(np.searchsorted(axis, values, side="right") - 1, 0, max(len(axis) - 2, 0))
            lower.append(place)
            if len(axis) == 1:
                weight.append(np.zeros(len(values)))
            else:
                weight.append((values - axis[place]) / (axis[place + 1] - axis[place]))
        for corner in itertools.product((0, 1), repeat=3):
            share = np.ones(len(points))
            index = []
            for axis, place, part, up in zip(self._axes, lower, weight, corner, strict=True):
                share *= part if up else 1 - part
                index.append(np.minimum(place + up, len(axis) - 1))
            corners.append(share * self._grid[tuple(index)])
        total: Array = np.sum(corners, axis=0)
        return total

    def _by_plane(self, points: Array) -> Array:
        plane = self._plane[0] + points @ self._plane[1:]
        distance = (((points[:, None, :] - self._points[None]) / self._scale) ** 2).sum(axis=2)
        nearest = np.argsort(distance, axis=1, kind="stable")[:, :NEIGHBOURS]
        weight = 1 / (np.take_along_axis(distance, nearest, axis=1) + 1e-12)
        near: Array = plane + (weight * self._off[nearest]).sum(axis=1) / weight.sum(axis=1)
        return near


def _rows(reader: csv.DictReader[str], path: StrPath) -> list[list[float]]:
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise BringupError(f"{path}: its first line must name the columns {', '.join(COLUMNS)}")
    rows = []
    for line in reader:
        try:
            row = [float(line[name]) for name in COLUMNS]
        except (TypeError, ValueError):
            raise BringupError(f"{path}:{reader.line_num}: must have four numbers") from None
        if not all(map(math.isfinite, row)) or min(row[:3]) < 0 or row[3] <= 0:
            raise BringupError(f"{path}:{reader.line_num}: numbers must not be negative, and seconds must be positive")
        rows.append(row)
    return rows


def extended(places: Array, values: Array, at: Array) -> Array:
    """Interpolate between places, and extend beyond the first and the last one by the slopes there."""
    inside: Array = np.interp(at, places, values)
    if len(places) < 2:
        return inside
    first, last = (
        (values[1] - values[0]) / (places[1] - places[0]),
        (values[-1] - values[-2]) / (places[-1] - places[-2]),
    )
    beyond: Array = inside + np.minimum(at - places[0], 0.0) * first + np.maximum(at - places[-1], 0.0) * last
    return beyond


def _plane(points: Array, seconds: Array) -> Array:
    """Return the constant and the three slopes, none negative, that fit best."""
    columns = np.column_stack([np.ones(len(points)), points])
    best, least = np.zeros(4), math.inf
    for chosen in itertools.product((True, False), repeat=4):
        used = np.flatnonzero(chosen)
        solution = np.zeros(4)
        if len(used):
            solution[used] = np.linalg.lstsq(columns[:, used], seconds, rcond=None)[0]
        off = float(((columns @ solution - seconds) ** 2).sum())
        if solution.min() >= 0 and off < least - 1e-18:
            best, least = solution, off
    return best


@dataclass(frozen=True)
class Scaled:
    """A step table times a factor: a calibration, an end of the error band, or a limit of power."""

    table: StepTable
    factor: float

    def seconds(self, chunks: Sequence[Chunk], requests: int, context: int, width: int = 1) -> float:
        """Return the seconds of one step."""
        return self.factor * self.table.seconds(chunks, requests, context, width)

    def decode_seconds(self, requests: int, contexts: Array) -> Array:
        """Return the seconds of steps that only decode."""
        return self.factor * self.table.decode_seconds(requests, contexts)
