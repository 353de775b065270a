"""Several chips of one machine: which layers of a program run on which chip.

Note [Chains]
Layers are numbered in the order of their first use, and each chip gets consecutive ones. Where every layer reads only
what the layer before it has made, dynamic programming over the layers finds the best division: of least time one after
the other, and of least time of the busiest chip, which counts where steps overlap. Both are replayed, and the better
one is improved by moving single layers. So programs that are no chains are divided too, not always in the best way;
the lower bound says how much could be left.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.errors import BringupError
from bringup.machine.schema import Chip, Host
from bringup.placement.graph import OUTSIDE, Step, step_graph
from bringup.placement.offload import beside, module_codes, with_state
from bringup.placement.place import peak_of
from bringup.placement.placed import Outcome, Replayer, Rows, inserted
from bringup.recording.rows import (
    D2D,
    D2H,
    DEVICE_SYNC,
    EVENT_RECORD,
    EVENT_WAIT,
    H2D,
    IN_BACKWARD,
    IN_FORWARD,
    IN_OPTIMIZER,
    LAUNCH,
)
from bringup.recording.trace import Trace
from bringup.report.lines import MEMBER, names_as_one
from bringup.text import size
from bringup.timeline.replay import HostClock, replay, row_inputs

Array = npt.NDArray[Any]
MOST_CHIPS = 64
MOST_MOVES = 200  # replays of moved layers; chosen: a few seconds for programs of thousands of launches


@dataclass(frozen=True)
class Part:
    """What one chip runs: its file's name, modules, layers, seconds of work per step, and persistent bytes."""

    chip: str
    modules: str
    layers: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Chain:
    """A division of a step among chips.

    Attributes:
        host: the host's name.
        parts: one per chip, in the order of the chips.
        seconds: of the step, by the replay; `bound_seconds` is a lower bound for every division.
        first_chip_seconds: of the step on the first chip alone; `first_chip_fits` is False if it cannot hold it.
        copied_bytes: what crosses between chips per step.
        tried: divisions that were replayed.
    """

    host: str
    parts: list[Part]
    seconds: float
    bound_seconds: float
    first_chip_seconds: float
    first_chip_fits: bool
    copied_bytes: int
    tried: int


@dataclass(frozen=True)
class Layers:
    """The layers of a step.

    Attributes:
        of_node: per node, its layer.
        of_storage: per persistent storage, the layer that uses it first.
        seconds: per chip and layer, of its work.
        bytes: per layer, of its persistent storages and of the activations that it keeps.
        cut: per layer, the bytes that are copied if the chip changes before it, and `copies` their number.
    """

    of_node: Array
    of_storage: Array
    seconds: Array
    bytes: Array
    cut: Array
    copies: Array


def divide(trace: Trace, chips: Sequence[Chip], host: Host, *, host_clock: HostClock = "modelled") -> Chain:
    """Divide the typical step of a recording of one chip among several chips of one machine.

    Raises:
        BringupError: it cannot be divided, or the chips cannot hold it.
    """
    if not 2 <= len(chips) <= MOST_CHIPS:
        raise BringupError(f"name 2 to {MOST_CHIPS} chips, got {len(chips)}")
    timeline = replay(trace, chips[0], host, host_clock=host_clock)
    step = step_graph(timeline)
    prices = [row_inputs(trace, chip, host, host_clock=host_clock) for chip in chips]
    seconds = np.stack([np.where(p.fallback[step.rows] >= 0, np.inf, p.seconds[step.rows]) for p in prices])
    activations = max(peak_of(step) - float(step.persistent_bytes.sum()), 0.0)
    trains = bool((trace.columns["phase"][step.rows] == IN_BACKWARD).any())
    layers = _layers(step, seconds, activations if trains else 0.0)
    room = np.asarray([chip.room_bytes - (0.0 if trains else activations) for chip in chips])
    judge = _Judge(Replayer(step), chips, seconds, layers)
    starts = [_consecutive(layers, room, chips, busiest) for busiest in (False, True)]
    if starts[0] is None or starts[1] is None:
        needs = size(float(layers.bytes.sum()) + (0.0 if trains else activations * len(chips)))
        raise BringupError(f"{len(chips)} chips cannot hold the program: it needs {needs}, activations included")
    best, outcome, tried = _improve(judge, [start for start in starts if start is not None], room)
    alone = judge.replayer.outcome(None)
    parts = [_part(step, layers, best, number, chip, seconds) for number, chip in enumerate(chips)]
    fits = layers.bytes.sum() <= room[0]
    bound = min(_bound(step, seconds), outcome.seconds)
    return Chain(host.name, parts, outcome.seconds, bound, alone.seconds, bool(fits), outcome.copied_bytes, tried)


def _layers(step: Step, seconds: Array, activations: float) -> Layers:
    """Find the layers of a step; `activations` are the bytes that they keep for the backward pass.

    Raises:
        BringupError: one launch updates the parameters of several layers.
    """
    trace, nodes = step.timeline.trace, np.arange(len(step))
    phase = trace.columns["phase"][step.rows]
    holds = np.zeros(len(step), dtype=bool)
    holds[step.holder] = True
    modules = module_codes(step)
    code = np.where((modules < len(trace.modules)) | (holds & (phase == IN_FORWARD)), modules, -1)
    storage = np.full(len(step.persistent), -1)
    named = np.flatnonzero(code[step.holder] >= 0)[::-1]  # the first user of a storage wins
    storage[step.held[named]] = code[step.holder[named]]
    storage = with_state(step, storage)
    neighbour = beside(step, storage)
    several = (neighbour < 0) & (phase == IN_OPTIMIZER) & np.isin(nodes, step.holder[storage[step.held] >= 0])
    if several.any():
        raise BringupError(
            "one launch of the optimizer updates parameters of several layers, so it cannot be divided: "
            "record the program with foreach=False in its optimizer"
        )
    code = np.where(code >= 0, code, neighbour)
    code = _filled(step, code)
    _, first, code = np.unique(code, return_index=True, return_inverse=True)
    of_node = np.argsort(np.argsort(first))[code.ravel()]
    of_storage = np.zeros(len(step.persistent), dtype=np.int64)
    of_storage[step.held[::-1]] = of_node[step.holder[::-1]]
    count = len(first)
    work = np.stack([np.bincount(of_node, row, count) for row in seconds])
    owned = np.bincount(of_storage, step.persistent_bytes, count)
    makers = step.maker[step.maker >= 0]
    written = np.bincount(of_node[makers], step.value_bytes[step.maker >= 0], count)
    held = owned + activations * written / max(written.sum(), 1.0)
    return Layers(of_node, of_storage, work, held, *_cuts(step, of_node, count))


def _filled(step: Step, code: Array) -> Array:
    """Give nodes without a layer that of the node before; uploads that of their first reader."""
    filled = code.copy()
    uploads = np.flatnonzero((step.kind == H2D) & (code < 0))
    edges = np.flatnonzero(np.isin(step.maker[step.read], uploads) & (code[step.reader] >= 0))[::-1]
    filled[step.maker[step.read[edges]]] = code[step.reader[edges]]
    before = np.maximum.accumulate(np.where(filled >= 0, np.arange(len(filled)), -1))
    first = filled[filled >= 0][:1]
    start = int(first[0]) if len(first) else 0
    chosen: Array = np.where(before >= 0, filled[np.maximum(before, 0)], start)
    return chosen


def _cuts(step: Step, of_node: Array, count: int) -> tuple[Array, Array]:
    """Return per layer the bytes and the number of the values that are used on both sides of its beginning."""
    edges = np.flatnonzero(step.maker[step.read] != OUTSIDE)
    value, reader = step.read[edges], of_node[step.reader[edges]]
    maker = np.where(step.maker >= 0, of_node[np.maximum(step.maker, 0)], count)
    low, high = np.full(len(step.maker), count), np.full(len(step.maker), -1)
    np.minimum.at(low, value, reader)
    np.maximum.at(high, value, reader)
    used = high >= 0
    maker = np.where(step.maker >= 0, maker, low)[used]
    sizes = step.value_bytes[used]
    change = np.zeros((2, count + 2))
    for begin, end in ((maker, high[used]), (low[used], maker)):  # copies to later chips, and to earlier ones
        apart = begin < end
        for row, amount in ((0, sizes[apart]), (1, np.ones(int(apart.sum())))):
            np.add.at(change[row], begin[apart] + 1, amount)
            np.add.at(change[row], end[apart] + 1, -amount)
    crossing = np.cumsum(change, axis=1)[:, :count]
    return crossing[0], crossing[1]


def _between(one: Chip, other: Chip) -> tuple[float, float]:
    """Return latency in seconds and bytes per second of a copy from one chip to another."""
    rates = [
        chip.interconnect.gb_s if chip.interconnect else min(chip.link.h2d_gb_s, chip.link.d2h_gb_s)
        for chip in (one, other)
    ]
    return max(one.link.latency_us, other.link.latency_us) * 1e-6, min(rates) * 1e9


def _consecutive(layers: Layers, room: Array, chips: Sequence[Chip], busiest: bool) -> Array | None:
    """Give consecutive layers to every chip, by dynamic programming; None if the chips cannot hold them.

    The sum of all chips' times is least, or that of the busiest one. Returns the chip of every layer.
    """
    count = len(layers.bytes)
    held = np.concatenate([[0.0], np.cumsum(layers.bytes)])
    best = np.full(count + 1, np.inf)
    best[0] = 0.0
    choices = []
    for number, chip in enumerate(chips):
        done = np.concatenate([[0.0], np.cumsum(layers.seconds[number])])
        latency, rate = _between(chips[max(number - 1, 0)], chip)
        cost = np.append(layers.copies * latency + layers.cut / rate, 0.0)
        cost[0] = 0.0
        following, choice = best.copy(), np.arange(count + 1)  # the chip has no layers
        for end in range(1, count + 1):
            begins = np.arange(end)
            part = done[end] - done[begins] + cost[begins]
            total = np.maximum(best[begins], part) if busiest else best[begins] + part
            total[held[end] - held[begins] > room[number]] = np.inf
            least = int(np.argmin(total))
            if total[least] < following[end]:
                following[end], choice[end] = total[least], least
        best = following
        choices.append(choice)
    if not np.isfinite(best[count]):
        return None
    chip_of = np.zeros(count, dtype=np.int64)
    end = count
    for number in reversed(range(len(chips))):
        begin = int(choices[number][end])
        chip_of[begin:end] = number
        end = begin
    return chip_of


class _Judge:
    """Replays divisions of layers among chips."""

    def __init__(self, replayer: Replayer, chips: Sequence[Chip], seconds: Array, layers: Layers) -> None:
        self.replayer, self.chips, self.layers = replayer, chips, layers
        self.seconds = np.where(np.isfinite(seconds), seconds, 0.0)

    def outcome(self, chip_of: Array) -> Outcome:
        """Replay the step with each layer on its chip."""
        step = self.replayer.step
        columns = self.replayer.as_is()
        rows = step.rows - step.first
        device = chip_of[self.layers.of_node].astype(np.int64)
        downloads = np.flatnonzero(step.kind[step.reader] == D2H)
        makers = step.maker[step.read[downloads]]
        last = np.flatnonzero(step.kind == LAUNCH)[-1]  # made what a step downloads of the one before
        device[step.reader[downloads]] = device[np.where(makers >= 0, makers, last)]
        columns["device"][rows] = device
        ended = step.sync >= 0
        columns["device"][step.sync[ended] - step.first] = device[ended]
        columns["device"][columns["kind"] == DEVICE_SYNC] = device[-1]
        launched = step.kind != D2H
        columns["seconds"][rows[launched]] = self.seconds[device[launched], np.flatnonzero(launched)]
        added, copied = self._copies(device, rows, columns)
        if added is not None:
            columns = inserted(columns, *added)
        return self.replayer.judge(Rows(columns, copied), 0)

    def _copies(
        self, device: Array, rows: Array, columns: dict[str, Array]
    ) -> tuple[tuple[Array, dict[str, Array]] | None, int]:
        step = self.replayer.step
        edges = np.flatnonzero((step.maker[step.read] >= 0) & (step.kind[step.reader] != D2H))
        value, reader = step.read[edges], step.reader[edges]
        maker = step.maker[value]
        apart = device[reader] != device[maker]
        value, reader, maker = value[apart], reader[apart], maker[apart]
        # Readers behind the maker come first; those before it read what the step before has left.
        order = np.lexsort(((reader - maker) % len(step), device[reader], value))
        keys = np.stack([value[order], device[reader[order]]])
        if not len(order):
            return None, 0
        fresh = np.concatenate([[True], (np.diff(keys, axis=1) != 0).any(0)])
        value, reader, maker = (item[order][fresh] for item in (value, reader, maker))
        count = len(value)
        event = int(columns["object"].max(initial=0)) + 1 + np.arange(count)
        ends = zip(device[maker].tolist(), device[reader].tolist(), strict=True)
        links = np.asarray([_between(self.chips[source], self.chips[target]) for source, target in ends])
        link = links[:, 0] + step.value_bytes[value] / links[:, 1]
        dispatch = step.timeline.host.dispatch
        event_seconds = (dispatch.event_us or 0.0) * 1e-6
        zeros = np.zeros(count)
        # An event behind the maker, a wait for it before the reader, and the copy.
        at = np.concatenate([rows[maker] + 1, rows[reader], rows[reader]])
        added = {
            "kind": np.repeat([EVENT_RECORD, EVENT_WAIT, D2D], count),
            "device": np.concatenate([device[maker], device[reader], device[reader]]),
            "stream": np.concatenate([columns["stream"][rows[node]] for node in (maker, reader, reader)]),
            "object": np.concatenate([event, event, device[maker]]),
            "seconds": np.concatenate([zeros, zeros, link]),
            "host_seconds": np.concatenate([zeros + event_seconds, zeros + event_seconds, zeros + step.copy_seconds]),
        }
        order = np.argsort(at, kind="stable")
        return (at[order], {name: values[order] for name, values in added.items()}), int(step.value_bytes[value].sum())


def _improve(judge: _Judge, starts: list[Array], room: Array) -> tuple[Array, Outcome, int]:
    """Replay the starts, and move single layers to other chips as long as the step becomes shorter."""
    layers, chips = judge.layers, len(room)
    best, outcome = min(((start, judge.outcome(start)) for start in starts), key=lambda pair: pair[1].seconds)
    tried = len(starts)
    better = True
    while better and tried < MOST_MOVES:
        better = False
        ends = np.flatnonzero(np.diff(best)) + 1
        beside_ends = np.unique(np.concatenate([ends, ends - 1, [0, len(best) - 1]]))
        for layer, number in itertools.product(beside_ends.tolist(), range(chips)):
            moved = best.copy()
            moved[layer] = number
            over = np.bincount(moved, layers.bytes, chips) > room
            if number == best[layer] or over.any() or not np.isfinite(layers.seconds[number, layer]):
                continue
            if tried >= MOST_MOVES:
                break
            other = judge.outcome(moved)
            tried += 1
            if other.seconds < outcome.seconds * (1 - 1e-9):
                best, outcome, better = moved, other, True
    return best, outcome, tried


def _bound(step: Step, seconds: Array) -> float:
    """Return seconds that no division undercuts.

    These are the host's calls, an equal share of the work, and the longest path of dependent work to a wait of the host
    in every step; all work at its price on the fastest chip.
    """
    fastest = seconds.min(axis=0)
    fastest = np.where(np.isfinite(fastest), fastest, 0.0)
    shares = float(fastest[step.kind == LAUNCH].sum()) / len(seconds)
    done = np.zeros(len(step))
    edges = np.flatnonzero((step.maker[step.read] >= 0) & (step.maker[step.read] < step.reader))
    order = edges[np.argsort(step.reader[edges], kind="stable")]
    bounds = np.searchsorted(step.reader[order], np.arange(len(step) + 1)).tolist()
    makers = step.maker[step.read[order]]
    for node in range(len(step)):
        before = makers[bounds[node] : bounds[node + 1]]
        done[node] = (float(done[before].max()) if len(before) else 0.0) + fastest[node]
    waits = (step.sync >= 0) | (step.waits > 0)
    path = float(done[waits].max(initial=0.0))
    threads = step.timeline.trace.columns["thread"][step.rows]
    calls = float(np.bincount(threads, step.issue).max())
    return max(calls, shares, path)


def _part(step: Step, layers: Layers, chip_of: Array, number: int, chip: Chip, seconds: Array) -> Part:
    trace = step.timeline.trace
    mine = chip_of == number
    nodes = mine[layers.of_node]
    held = np.zeros(len(step.persistent), dtype=bool)
    held[step.held[nodes[step.holder]]] = True
    modules = trace.columns["module"][step.rows[nodes]]
    roots = {_root(trace.modules[module]) for module in np.unique(modules[modules >= 0]).tolist()} - {""}
    work = float(seconds[number][nodes & (step.kind == LAUNCH)].sum())
    return Part(chip.name, _text(roots), int(mine.sum()), work, int(step.persistent_bytes[held].sum()))


def _root(name: str) -> str:
    """Return the element of a list of modules that a module is in, or else the module itself."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name


def _text(roots: set[str]) -> str:
    """Write modules in one line, members of a list as one: ``embed, layers.0-11``."""
    lists: dict[str, set[str]] = {}
    for name in sorted(roots, key=lambda name: (len(name), name)):
        lists.setdefault(MEMBER.sub(r"\1*", name), set()).add(name)
    return ", ".join(names_as_one(names) for names in lists.values())
