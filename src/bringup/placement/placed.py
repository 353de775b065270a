"""The replay of a placed step: copies where values change sides, and the host's own time for what runs there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.placement.cut import crossings
from bringup.placement.graph import Step
from bringup.recording.rows import D2H, H2D, HOST, IN_BACKWARD, LAUNCH, ON_HOST, RESUME, SIGNAL, STREAM_SYNC
from bringup.timeline import library
from bringup.timeline.replay import open_replay

Array = npt.NDArray[Any]
WAITS_OF_THREADS = (HOST, SIGNAL, RESUME)


@dataclass(frozen=True)
class Factors:
    """How wrong prices may be: factors of the chip's and the link's time, of the host's work, and of its calls."""

    chip: float = 1.0
    host: float = 1.0
    calls: float = 1.0


AS_PRICED = Factors()


@dataclass(frozen=True)
class Outcome:
    """The replay of a placed step.

    Attributes:
        seconds: from step to step, as the summary has it.
        latency: of one step that begins on an idle machine.
        busy_seconds: the part of a step in which the chip computes.
        joules: the chip's energy per step; nan without its power.
        copied_bytes: bytes that a step copies beside the program's own copies.
        resident_bytes: persistent storages that the chip holds.
    """

    seconds: float
    latency: float
    busy_seconds: float
    joules: float
    copied_bytes: int
    resident_bytes: int

    def value(self, objective: str) -> float:
        """Return what an objective minimises; the chip is paid by the hour, so ``cost`` is ``time``."""
        return {"latency": self.latency, "energy": self.joules}.get(objective, self.seconds)


@dataclass(frozen=True)
class Rows:
    """The rows of a placed step, by column, as `timeline.library` takes them, and the bytes that were added.

    Beside these, `row` is the row of the trace, and `added` is 1 for rows before it that are not in the trace.
    """

    columns: dict[str, Array]
    copied_bytes: int


def inserted(columns: dict[str, Array], at: Array, added: dict[str, Array]) -> dict[str, Array]:
    """Insert rows before others, which share the device, stream and thread with them unless `added` has these."""
    constants = {"flags": 0, "object": 0, "share": 1.0, "fallback": -1, "bytes": 0, "added": 1}
    longer = {}
    for name, column in columns.items():
        behind = np.full(len(at), constants[name]) if name in constants else column[np.minimum(at, len(column) - 1)]
        longer[name] = np.insert(column, at, added.get(name, behind).astype(column.dtype))
    return longer


class Replayer:
    """Replays divisions of one step. The rows that do not change are prepared once."""

    def __init__(self, step: Step) -> None:
        self.step = step
        part = slice(step.first, step.last)
        columns, inputs = step.timeline.trace.columns, step.inputs
        self.columns = {name: columns[name][part] for name in ("kind", "device", "stream", "thread", "object", "bytes")}
        self.columns |= {
            name: getattr(inputs, name)[part] for name in ("flags", "host_seconds", "seconds", "share", "fallback")
        }
        self.columns["row"] = np.arange(step.first, step.last)
        self.columns["added"] = np.zeros(step.last - step.first, dtype=np.int64)
        self.placed = len(inputs.parts) - 1

    def rows(self, on_chip: Array, factors: Factors = AS_PRICED) -> Rows:
        """Return the rows of the step with each node on its side."""
        step = self.step
        downloads = step.kind == D2H
        copies, before, values, goes_down = self._copies(on_chip)
        rows = {name: column.copy() for name, column in self.columns.items()}
        rows["seconds"] *= np.where(rows["kind"] == HOST, 1.0, factors.chip)
        rows["host_seconds"] *= factors.calls

        moved = ~on_chip & ~downloads
        moved[downloads] = self._on_host_already(on_chip, copies, before, values, goes_down)[downloads]
        here = step.rows[moved] - step.first
        rows["object"][here] = ON_HOST
        rows["fallback"][here] = self.placed
        rows["seconds"][here] = step.host[moved] * factors.host
        rows["host_seconds"][here] = step.call[moved] * factors.calls
        ended = step.sync[moved]
        ended = ended[ended >= 0] - step.first
        rows["kind"][ended], rows["object"][ended], rows["flags"][ended] = HOST, 0, 0
        rows["host_seconds"][ended] = rows["seconds"][ended] = 0.0

        # Copies before the row of their first reader, then one wait for those that go down.
        place = step.rows[before] - step.first
        waits = np.unique(place[goes_down])
        order = np.lexsort((np.concatenate([~goes_down, np.full(len(waits), 2)]), np.concatenate([place, waits])))
        at = np.concatenate([place, waits])[order]
        up, down = step.link_seconds
        link = np.where(goes_down, down[values], up[values]) * factors.chip
        # As the replay has it for all calls of a backward pass.
        columns, backward = step.timeline.trace.columns, step.timeline.host.dispatch.backward
        scale = np.where(columns["phase"][step.first : step.last] == IN_BACKWARD, backward, 1.0)
        calls = [scale[place] * step.copy_seconds, scale[waits] * step.sync_seconds]
        added: dict[str, Any] = {
            "kind": np.concatenate([np.where(goes_down, D2H, H2D), np.full(len(waits), STREAM_SYNC)]),
            "seconds": np.concatenate([link, np.zeros(len(waits))]),
            "host_seconds": np.concatenate(calls) * factors.calls,
            "bytes": np.concatenate([step.value_bytes[values], np.zeros(len(waits))]),
        }
        placed = inserted(rows, at, {name: values[order] for name, values in added.items()})
        return Rows(placed, int(step.value_bytes[values].sum()))

    def _copies(self, on_chip: Array) -> tuple[Array, Array, Array, Array]:
        """Return the values that change sides: edges, first reader on the other side, value, and if it goes down."""
        step = self.step
        crossing, side = crossings(step, on_chip)
        edges = np.flatnonzero(crossing)
        value, reader = step.read[edges], step.reader[edges]
        count = len(step)
        # Readers of the next step come after those behind the maker; a value that is always there comes first.
        distance = (reader - step.maker[value] - 1) % max(count, 1)
        distance = np.where(step.maker[value] < 0, reader, distance)
        order = np.lexsort((distance, value))
        _, firsts = np.unique(value[order], return_index=True)
        chosen = order[firsts]
        return edges[chosen], reader[chosen], value[chosen], side[edges[chosen]]

    def _on_host_already(self, on_chip: Array, copies: Array, before: Array, values: Array, goes_down: Array) -> Array:
        """Return the program's downloads whose value the host has: it made it, or has copied it for a launch."""
        step = self.step
        on_host = np.zeros(len(step), dtype=bool)
        edges = np.flatnonzero(step.kind[step.reader] == D2H)
        node, value = step.reader[edges], step.read[edges]
        maker = step.maker[value]
        on_host[node[(maker >= 0) & ~on_chip[np.maximum(maker, 0)]]] = True
        copied_at = np.full(len(step.maker), len(step))
        copied_at[values[goes_down]] = before[goes_down]
        on_host[node[copied_at[value] < node]] = True
        return on_host

    def outcome(self, on_chip: Array | None, factors: Factors = AS_PRICED) -> Outcome:
        """Replay a division; None is the recorded program as it is."""
        rows = Rows(self.as_is(factors), 0) if on_chip is None else self.rows(on_chip, factors)
        everywhere = np.ones(len(self.step), dtype=bool)
        return self.judge(rows, self.step.resident_bytes(everywhere if on_chip is None else on_chip), factors)

    def judge(self, rows: Rows, resident_bytes: int, factors: Factors = AS_PRICED) -> Outcome:
        """Replay rows of a step, with these bytes of persistent storages on the chip."""
        twice, issued, start, end, waited = self.replayed(rows.columns, factors)
        once = len(rows.columns["kind"])
        ours = ~np.isin(twice["kind"], WAITS_OF_THREADS)
        done = np.maximum.accumulate(np.maximum(end, issued + waited) * ours)
        since, until = float(done[once - 1]), float(done[-1])
        busy, *_ = library.shares(twice["kind"], twice["fallback"], start, end, since, until)
        seconds = until - since
        joules = self.step.timeline.chip.joules(seconds, busy)
        return Outcome(seconds, since, busy, math.nan if joules is None else joules, rows.copied_bytes, resident_bytes)

    def replayed(
        self, columns: dict[str, Array], factors: Factors = AS_PRICED
    ) -> tuple[dict[str, Array], Array, Array, Array, Array]:
        """Replay a step twice, so that the second one begins on a busy machine.

        Returns:
            the rows, and for each when it was issued, started and ended, and how long its call waited.
        """
        twice = {name: np.concatenate([column, column]) for name, column in columns.items()}
        once = len(columns["kind"])
        graphs = (twice["kind"] == LAUNCH) & (twice["object"] > 0)
        twice["object"][once:][graphs[once:]] += int(columns["object"].max(initial=0)) + 1
        return twice, *self._replay(twice, factors)

    def as_is(self, factors: Factors = AS_PRICED) -> dict[str, Array]:
        """Return the rows of the recorded step."""
        rows = {name: column.copy() for name, column in self.columns.items()}
        rows["seconds"] *= np.where(rows["kind"] == HOST, 1.0, factors.chip)
        rows["host_seconds"] *= factors.calls
        return rows

    def _replay(self, columns: dict[str, Array], factors: Factors) -> tuple[Array, Array, Array, Array]:
        under_way = open_replay(self.step.timeline.chip)
        parts = self.step.inputs.parts * [factors.chip, factors.host, factors.chip]
        try:
            under_way.feed(columns, parts)
            return under_way.results()
        finally:
            under_way.close()
