"""What-ifs for memory: weights, optimizer state or caches in the host's memory, layer by layer.

Note [Streaming]
A streamed layer has no place of its own on the chip. It is copied up while the chip uses the streamed layer before it,
and what the chip writes in it is copied down after its last use. Copies up and down have a stream each, and events
order them with the launches. So the chip holds two streamed layers at a time, or all layers that one launch uses.
A launch of which only a part of a storage is needed, such as a lookup in a table, has only that part copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bringup.analyse.ways_to_fit import blocks
from bringup.placement.cut import cheapest, serial
from bringup.placement.graph import Step
from bringup.placement.placed import Outcome, Replayer, Rows, inserted
from bringup.recording.rows import D2H, EVENT_RECORD, EVENT_WAIT, H2D, IN_OPTIMIZER

Array = npt.NDArray[Any]
Way = Literal["streamed", "on the host"]
KINDS = ("weights", "optimizer state", "caches")
WEIGHTS, STATE, CACHES = range(len(KINDS))
WEIGHTS_OF_CUTS = (1.0, 0.5)  # chosen: those that the search tries for large graphs
MOST_POINTS = 9  # of a curve over layers


@dataclass(frozen=True)
class Offload:
    """A step with some layers' storages of one kind in the host's memory.

    Attributes:
        kind: one of `KINDS`.
        way: ``streamed`` to the chip for each use, or used ``on the host``.
        layers, of_layers: how many layers are in the host's memory, the last ones first, and how many there are.
        seconds: of the step.
        chip_bytes: the most bytes of persistent storages that are on the chip at a time.
        copied_bytes: bytes that cross the link in a step, beside the program's own copies.
        fits: True if the program then fits the chip.
    """

    kind: str
    way: Way
    layers: int
    of_layers: int
    seconds: float
    chip_bytes: int
    copied_bytes: int
    fits: bool


@dataclass(frozen=True)
class Visits:
    """The times at which a step uses streamed layers, in order; consecutive uses of one layer are one visit.

    Attributes:
        layer: per visit, its layer.
        first, last: its first and last node.
        up, down: bytes to copy; `ups` and `downs` are the numbers of storages.
        held: bytes that the chip holds for it.
    """

    layer: Array
    first: Array
    last: Array
    up: Array
    down: Array
    ups: Array
    downs: Array
    held: Array

    @classmethod
    def of_step(cls, step: Step, layer: Array, streamed: Array) -> Visits:
        """Return the visits of the storages in a mask."""
        pairs = np.flatnonzero(streamed[step.held] & (step.kind[step.holder] != D2H))
        order = pairs[np.lexsort((layer[step.held[pairs]], step.holder[pairs]))]
        node, storage = step.holder[order], step.held[order]
        begins = np.flatnonzero(np.diff(layer[storage], prepend=-1) != 0)
        visit = np.repeat(np.arange(len(begins)), np.diff(begins, append=len(order)))
        count = max(len(streamed), 1)
        keys, place = np.unique(visit * count + storage, return_inverse=True)

        def largest(which: Array) -> Array:
            most = np.zeros(len(keys))
            np.maximum.at(most, place.ravel(), np.where(which, step.held_bytes[order], 0.0))
            return most

        up, down = largest(step.held_read[order]), largest(step.held_written[order])

        def summed(values: Array) -> Array:
            return np.bincount(keys // count, values, len(begins))

        last = np.maximum.reduceat(node, begins) if len(begins) else node
        sums = (summed(values) for values in (up, down, up > 0, down > 0, np.maximum(up, down)))
        return cls(layer[storage[begins]], node[begins], last, *sums)

    def __len__(self) -> int:
        """Count the visits."""
        return len(self.layer)

    def peak(self, nodes: int) -> int:
        """Return the most bytes of streamed layers that the chip holds: a layer arrives during the visit before it."""
        if not len(self):
            return 0
        begins = np.concatenate([[0], self.first[:-1]])
        change = np.bincount(begins, self.held, nodes + 1) - np.bincount(self.last + 1, self.held, nodes + 1)
        if len(self) > 1:
            change[self.first[-1]] += self.held[0]  # for the next step
        return int(np.cumsum(change[:nodes]).max())


def offloads(replayer: Replayer, room: int) -> list[Offload]:
    """Return curves over layers for every kind and way, of steps with that much room for persistent storages."""
    layer, kind = layers(replayer.step)
    return [
        point
        for number in range(len(KINDS))
        for way in (_Streamed, _OnHost)
        for point in _curve(way(replayer, layer), kind == number, KINDS[number], room)
    ]


def shown(curves: list[Offload]) -> list[Offload]:
    """Return of every curve its first point that fits, or its last one; all layers if the program fits as it is."""
    by_curve: dict[tuple[str, str], list[Offload]] = {}
    for point in curves:
        by_curve.setdefault((point.kind, point.way), []).append(point)
    return [
        next((point for point in points if point.fits and not points[0].fits), points[-1])
        for points in by_curve.values()
    ]


def layers(step: Step) -> tuple[Array, Array]:
    """Return for every persistent storage its layer, and its kind as an index into `KINDS`; -1 for other storages.

    A layer is an element of a list of modules, or another module. Optimizer state is in the layer of its parameter if
    a launch updates parameters of this layer only. Layers are numbered in the order of their first use.
    """
    trace = step.timeline.trace
    count = len(step.persistent)
    phase = trace.columns["phase"][step.rows[step.holder]]
    layer = with_state(step, first_codes(step, module_codes(step)[step.holder]))
    layer = np.where(layer >= 0, layer, 2 * len(trace.modules))
    first = np.full(int(layer.max(initial=0)) + 1, len(step))
    np.minimum.at(first, layer[step.held], step.holder)
    rank = np.argsort(np.argsort(first, kind="stable"), kind="stable")

    def some(pairs: Array) -> Array:
        return np.bincount(step.held, pairs, count) > 0

    updated, used, written = some(phase == IN_OPTIMIZER), some(phase != IN_OPTIMIZER), some(step.held_written)
    owned = np.zeros(count, dtype=bool)
    numbered = step.persistent < len(trace.owned_storages)
    owned[numbered] = trace.owned_storages[step.persistent[numbered]]
    weights = owned | ~(updated | written)
    kind = np.select([weights, updated & ~used, written & ~updated], [WEIGHTS, STATE, CACHES], -1)
    return rank[layer], kind


def module_codes(step: Step) -> Array:
    """Return a number per node for its element of a list of modules, or else its module; -1 without a module."""
    trace = step.timeline.trace
    module = trace.columns["module"][step.rows]
    _, _, element_of_module = blocks(trace.modules)
    element = element_of_module[module]
    codes: Array = np.where(element >= 0, element, np.where(module >= 0, len(trace.modules) + module, -1))
    return codes


def with_state(step: Step, layer: Array) -> Array:
    """Return the layers of storages, with those of optimizer state: a launch updates it beside its parameter.

    State that no launch shares with a parameter is in the layer of the optimizer's launch before.
    """
    layer = np.where(layer >= 0, layer, first_codes(step, beside(step, layer)[step.holder]))
    optimizer = np.flatnonzero(step.timeline.trace.columns["phase"][step.rows] == IN_OPTIMIZER)
    of_node = beside(step, layer)[optimizer]
    before = np.maximum.accumulate(np.where(of_node >= 0, np.arange(len(of_node)), -1))
    near = np.full(len(step), -1)
    near[optimizer] = np.where(before >= 0, of_node[before], -1)
    return np.where(layer >= 0, layer, first_codes(step, near[step.holder]))


def beside(step: Step, layer: Array) -> Array:
    """Return for every node the layer of the persistent storages that it uses; -1 for none, or for several layers."""
    of_pair = layer[step.held]
    some = of_pair >= 0
    low, high = np.full(len(step), np.iinfo(np.int64).max), np.full(len(step), -1)
    np.minimum.at(low, step.holder[some], of_pair[some])
    np.maximum.at(high, step.holder[some], of_pair[some])
    return np.where(low == high, high, -1)


def first_codes(step: Step, codes: Array) -> Array:
    """Return for every persistent storage the first code of its pairs that is none of -1; -1 if there is none."""
    named = np.flatnonzero(codes >= 0)
    named = named[np.argsort(step.holder[named], kind="stable")]
    storages, place = np.unique(step.held[named], return_index=True)
    first = np.full(len(step.persistent), -1)
    first[storages] = codes[named][place]
    return first


def _curve(way: _Streamed | _OnHost, chosen: Array, kind: str, room: int) -> Iterator[Offload]:
    """Yield steps with 0 to all layers in the host's memory, those with the fewest layers that fit among them."""
    names = np.unique(way.layer[chosen])
    total = len(names)

    def storages(count: int) -> Array:
        return chosen & np.isin(way.layer, names[total - count :])

    fewest = _fewest(lambda count: way.chip_bytes(storages(count)) <= room, total)
    points = np.unique([*np.linspace(0, total, min(total + 1, MOST_POINTS)).astype(int), fewest])
    for count in points.tolist() if total else ():
        outcome = way.outcome(storages(count))
        fits = outcome.resident_bytes <= room
        yield Offload(kind, way.name, count, total, outcome.seconds, outcome.resident_bytes, outcome.copied_bytes, fits)


def _fewest(fits: Any, total: int) -> int:
    low, high = 0, total
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


class _Streamed:
    """Storages in the host's memory that are copied to the chip for each use."""

    name: Way = "streamed"

    def __init__(self, replayer: Replayer, layer: Array) -> None:
        self.replayer, self.layer = replayer, layer

    def chip_bytes(self, streamed: Array) -> int:
        step = self.replayer.step
        stays = int(step.persistent_bytes[~streamed].sum())
        return stays + Visits.of_step(step, self.layer, streamed).peak(len(step))

    def outcome(self, streamed: Array) -> Outcome:
        visits = Visits.of_step(self.replayer.step, self.layer, streamed)
        return self.replayer.judge(_rows(self.replayer, visits), self.chip_bytes(streamed))


class _OnHost:
    """Storages in the host's memory, whose launches run on the host, and others where that is cheaper."""

    name: Way = "on the host"

    def __init__(self, replayer: Replayer, layer: Array) -> None:
        self.replayer, self.layer = replayer, layer

    def _users(self, moved: Array) -> Array:
        step = self.replayer.step
        users = np.zeros(len(step), dtype=bool)
        users[step.holder[moved[step.held]]] = True
        chosen: Array = users & (step.kind != D2H) & ~step.must_be_chip
        return chosen

    def chip_bytes(self, moved: Array) -> int:
        step = self.replayer.step
        return step.resident_bytes(~(step.must_be_host | self._users(moved)))

    def outcome(self, moved: Array) -> Outcome:
        step = self.replayer.step
        if not moved.any():
            return self.replayer.outcome(None)
        forced = replace(step, must_be_host=step.must_be_host | self._users(moved))
        divisions = [~forced.must_be_host]
        divisions += [cheapest(forced, serial(forced, weight), np.arange(len(step))) for weight in WEIGHTS_OF_CUTS]
        return min(map(self.replayer.outcome, divisions), key=lambda outcome: outcome.seconds)


class _Inserted:
    """Rows to insert, each before a row of the step."""

    def __init__(self, step: Step, columns: dict[str, Array]) -> None:
        self.step, self.columns = step, columns
        self.entries: list[tuple[int, int, int, int, float, float]] = []  # at, kind, stream, object, seconds, call
        self.up, self.down = (int(columns["stream"].max()) + number for number in (1, 2))
        self.event_seconds = (step.timeline.host.dispatch.event_us or 0.0) * 1e-6 * step.slowness

    def event(self, at: int, kind: int, stream: int, number: int) -> None:
        self.entries.append((at, kind, stream, number, 0.0, self.event_seconds))

    def copy(self, at: int, kind: int, count: float, bytes_: float) -> None:
        link = self.step.timeline.chip.link
        rate = (link.h2d_gb_s if kind == H2D else link.d2h_gb_s) * 1e9
        seconds = count * link.latency_us * 1e-6 + bytes_ / rate
        stream = self.up if kind == H2D else self.down
        self.entries.append((at, kind, stream, 0, seconds, count * self.step.copy_seconds))

    def rows(self) -> dict[str, Array]:
        entries = sorted(self.entries, key=lambda entry: entry[0])
        at, *values = (np.asarray(column) for column in zip(*entries, strict=True))
        names = ("kind", "stream", "object", "seconds", "host_seconds")
        return inserted(self.columns, at, dict(zip(names, values, strict=True)))


def _rows(replayer: Replayer, visits: Visits) -> Rows:
    """Return the rows of a step that streams layers, see Note [Streaming]."""
    step, columns, total = replayer.step, replayer.as_is(), len(visits)
    if not total:
        return Rows(columns, 0)
    more = _Inserted(step, columns)
    base = int(columns["object"].max(initial=0)) + 1
    arrived, used, saved = (range(base + which * total, base + (which + 1) * total) for which in range(3))  # events
    first, last = step.rows[visits.first] - step.first, step.rows[visits.last] - step.first
    compute = columns["stream"][first].tolist()
    saved_before = _saved_before(visits)
    for visit in range(total):
        at, after = int(first[visit]), int(last[visit]) + 1
        following = (visit + 1) % total
        if visits.ups[following]:
            before = (following - 2) % total  # its memory is free again
            freed = saved[before] if visits.downs[before] else used[before]
            more.event(at, EVENT_WAIT, more.up, freed)
            if saved_before[following] >= 0:  # what it wrote the last time has arrived on the host
                more.event(at, EVENT_WAIT, more.up, saved[saved_before[following]])
            more.copy(at, H2D, visits.ups[following], visits.up[following])
            more.event(at, EVENT_RECORD, more.up, arrived[following])
        if visits.ups[visit]:
            more.event(at, EVENT_WAIT, compute[visit], arrived[visit])
        more.event(after, EVENT_RECORD, compute[visit], used[visit])
        if visits.downs[visit]:
            more.event(after, EVENT_WAIT, more.down, used[visit])
            more.copy(after, D2H, visits.downs[visit], visits.down[visit])
            more.event(after, EVENT_RECORD, more.down, saved[visit])
    return Rows(more.rows(), int(visits.up.sum() + visits.down.sum()))


def _saved_before(visits: Visits) -> list[int]:
    """Return for every visit the last one before it that writes in the same layer, also of the step before; or -1."""
    saved: dict[int, int] = {}
    before = [-1] * len(visits)
    for _ in range(2):
        for visit, layer in enumerate(visits.layer.tolist()):
            before[visit] = saved.get(layer, -1)
            if visits.downs[visit]:
                saved[layer] = visit
    return before
