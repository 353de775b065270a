"""The cheapest division of a step between host and chip: a minimum cut.

Note [The cut]
Nodes on the source's side run on the chip. A node pays its chip's price or its host's, and a value that readers on the
other side need pays one copy. The step takes as long as the busier of two: the host's thread, and the chip's stream.
Their maximum is no sum, so it is approached by weights: ``weight * thread + (1 - weight) * stream`` is a sum for every
weight, and never more than the maximum. So the cut of every weight is a lower bound of the step's time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.errors import BringupError
from bringup.placement.graph import ALWAYS_ON_CHIP, OUTSIDE, Step
from bringup.recording.rows import D2H
from bringup.timeline.replay import LAUNCH_LATENCY

Array = npt.NDArray[Any]
LARGEST = (1 << 31) - 1  # scipy's flows are int32
SCALE = 1 << 30  # of the dearest cut that can be the cheapest; a unit is then below a nanosecond per second


@dataclass(frozen=True)
class Costs:
    """What a cut adds up, in seconds: per node on the chip and on the host, per value copied up and down.

    Attributes:
        constant: what every division pays.
    """

    chip: Array
    host: Array
    up: Array
    down: Array
    constant: float = 0.0


def overlapped(step: Step, weight: float, busy_price: float = 0.0) -> Costs:
    """Return the costs of which every cut is a lower bound, see Note [The cut]; the chip's and the link's work overlap.

    Args:
        step: the graph.
        weight: that of the host's thread; the chip's stream has the rest.
        busy_price: what a second of the chip's work costs beside its time, such as energy.
    """
    thread, stream = weight, 1.0 - weight
    up, down = step.link_seconds
    # The host's wait overlaps with the call that waits, and several copies may share one: only calls count for sure.
    return _with_downloads(
        step,
        chip=thread * (step.issue + step.waits) + (stream + busy_price) * step.chip,
        host=thread * (step.call + step.host),
        up=thread * step.copy_seconds + stream * up,
        down=thread * step.copy_seconds + stream * down,
        of_download=thread * (step.issue + step.waits) + stream * step.chip,
        on_host=thread * (step.call + step.host),
    )


def serial(step: Step, weight: float, busy_price: float = 0.0) -> Costs:
    """Return the costs where only calls overlap with kernels: copies and the host's work come one after the other."""
    up, down = step.link_seconds
    return _with_downloads(
        step,
        chip=weight * step.issue + (1.0 - weight + busy_price) * step.chip + step.waits + step.lag,
        host=step.call + step.host,
        up=step.copy_seconds + up,
        down=step.copy_seconds + step.sync_seconds + LAUNCH_LATENCY + down,
        of_download=step.issue + step.chip + step.waits + step.lag,
        on_host=step.call + step.host,
    )


def _with_downloads(
    step: Step, *, chip: Array, host: Array, up: Array, down: Array, of_download: Array, on_host: Array
) -> Costs:
    """Let the makers of values pay for the program's own downloads of them, which are not placed by themselves."""
    downloads = step.kind == D2H
    chip, host = np.where(downloads, 0.0, chip), np.where(downloads, 0.0, host)
    edges = downloads[step.reader]
    node, maker = step.reader[edges], step.maker[step.read[edges]]
    placed = maker >= 0
    np.add.at(chip, maker[placed], of_download[node[placed]])
    np.add.at(host, maker[placed], on_host[node[placed]])
    others = np.ones(len(step), dtype=bool)
    others[node[placed]] = False
    return Costs(chip, host, up, down, float(of_download[downloads & others].sum()))


def crossings(step: Step, on_chip: Array) -> tuple[Array, Array]:
    """Return the pairs of reader and value whose maker is on the other side, as a mask, and the sides of all makers."""
    maker = step.maker[step.read]
    side = np.where(maker >= 0, on_chip[np.maximum(maker, 0)], maker == ALWAYS_ON_CHIP)
    downloads = step.kind[step.reader] == D2H
    return (side != on_chip[step.reader]) & ~downloads, side


def total(step: Step, costs: Costs, on_chip: Array) -> float:
    """Return what a division costs, in seconds."""
    crossing, side = crossings(step, on_chip)
    down, up = (np.unique(step.read[crossing & which]) for which in (side, ~side))
    nodes = np.where(on_chip, costs.chip, costs.host).sum()
    return float(nodes + costs.down[down].sum() + costs.up[up].sum() + costs.constant)


@dataclass(frozen=True)
class Memory:
    """The price of memory in a cut: seconds per byte of a persistent storage, and storages that may not be used."""

    price: float = 0.0
    banned: Array | None = None


def cheapest(step: Step, costs: Costs, ties: Array, memory: Memory | None = None) -> Array:
    """Return the cheapest division: for every node, True if it runs on the chip.

    Args:
        step: the graph.
        costs: what to add up.
        ties: a number per node; nodes with equal numbers stay together.
        memory: prices of persistent storages; None if they all fit.

    Raises:
        BringupError: scipy is missing.
    """
    try:
        from scipy.sparse import coo_array, csr_array
        from scipy.sparse.csgraph import breadth_first_order, maximum_flow
    except ModuleNotFoundError:
        raise BringupError('placement needs scipy: pip install "bringup[place]"') from None
    _, group = np.unique(ties, return_inverse=True)
    group = group.ravel()
    groups = int(group.max(initial=-1)) + 1
    always_chip, always_host = (
        np.bincount(group, mask & (step.kind != D2H), groups) > 0 for mask in (step.must_be_chip, step.must_be_host)
    )
    sides = [np.bincount(group, values, groups) for values in (costs.host, costs.chip)]
    lists: list[tuple[Array, Array, Array]] = []  # from, to, seconds

    def add(start: Array, end: Array, seconds: Array | float) -> None:
        lists.append((start, end, np.broadcast_to(np.asarray(seconds, dtype=np.float64), start.shape)))

    source, sink = groups, groups + 1
    numbers = np.arange(groups)
    add(np.full(groups, source), numbers, np.where(always_chip & ~always_host, np.inf, sides[0]))
    add(numbers, np.full(groups, sink), np.where(always_host, np.inf, sides[1]))

    edges = (step.kind[step.reader] != D2H) & (step.maker[step.read] != OUTSIDE)
    maker = step.maker[step.read[edges]]
    of_maker = np.where(maker >= 0, group[np.maximum(maker, 0)], source)
    of_reader, value = group[step.reader[edges]], step.read[edges]
    apart = of_maker != of_reader
    pairs = np.unique(np.stack([value[apart], of_maker[apart], of_reader[apart]]), axis=1)
    value, of_maker, of_reader = pairs
    values, place, readers = np.unique(value, return_inverse=True, return_counts=True)
    single = (readers == 1)[place.ravel()]
    add(of_maker[single], of_reader[single], costs.down[value[single]])
    add(of_reader[single], of_maker[single], costs.up[value[single]])
    shared = np.flatnonzero(readers > 1)  # one copy serves all readers: a node of its own for each direction
    number = np.zeros(len(values), dtype=np.int64)
    number[shared] = np.arange(len(shared))
    firsts = np.searchsorted(value, values[shared])
    downward = sink + 1 + 2 * np.arange(len(shared))
    add(of_maker[firsts], downward, costs.down[values[shared]])
    add(downward + 1, of_maker[firsts], costs.up[values[shared]])
    down_of_edge = sink + 1 + 2 * number[place.ravel()[~single]]
    add(down_of_edge, of_reader[~single], np.inf)
    add(of_reader[~single], down_of_edge + 1, np.inf)
    size = sink + 1 + 2 * len(shared)
    if memory is not None:
        storages = size + np.arange(len(step.persistent))
        size += len(step.persistent)
        banned = np.zeros(len(storages), dtype=bool) if memory.banned is None else memory.banned
        add(storages, np.full(len(storages), sink), np.where(banned, np.inf, memory.price * step.persistent_bytes))
        users = np.unique(np.stack([group[step.holder], step.held]), axis=1)
        add(users[0], size - len(step.persistent) + users[1], np.inf)

    start, end, seconds = (np.concatenate(parts) for parts in zip(*lists, strict=True))
    everything = np.isfinite(seconds) & ((start == source) | (end == sink))
    dearest = max(float(seconds[everything & (start == source)].sum()), float(seconds[everything].max(initial=0.0)))
    scale = SCALE / max(dearest, 1e-12)
    graph = coo_array((np.minimum(seconds * scale, LARGEST), (start, end)), shape=(size, size)).tocsr()
    graph.sum_duplicates()
    capacity = csr_array(
        (np.minimum(np.rint(graph.data), LARGEST).astype(np.int32), graph.indices, graph.indptr), shape=graph.shape
    )
    flow = maximum_flow(capacity, source, sink).flow
    residual = capacity - flow
    residual.eliminate_zeros()
    reached = breadth_first_order(residual, source, return_predecessors=False)
    on_chip = np.zeros(size, dtype=bool)
    on_chip[reached] = True
    side: Array = on_chip[group]
    return side & ~step.must_be_host
