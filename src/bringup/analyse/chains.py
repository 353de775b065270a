"""Chains of launches without products, which a compiler fuses to one kernel each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup import pricing
from bringup.cost import Signature
from bringup.recording.rows import FREE, LAUNCH, STREAM_SYNC
from bringup.recording.trace import Trace
from bringup.timeline.replay import Timeline

Array = npt.NDArray[Any]
FUSED = ("pointwise", "copy", "random")
BY_ROWS = (
    *("_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data"),
    *("native_layer_norm", "_fused_rms_norm"),
)


@dataclass(frozen=True)
class Chains:
    """Chains of at least two neighbouring pointwise launches of one stream and thread.

    Attributes:
        first: the first row of each.
        seconds: the time of the fused kernel: one launch, and the longer of the chain's arithmetic and of its time in
            memory by the share of the bytes that is left.
        others: the other rows of all chains.
    """

    first: Array
    seconds: Array
    others: Array


def chains(timeline: Timeline, first: int, last: int, covered: Array) -> Chains:
    """Find the chains in the rows from `first` to `last` that a compiler covers, and price each as one kernel.

    Each launch of a chain shares memory with the one before. A fused kernel reads a tensor once, and only if the chain
    does not write it first; it writes a tensor once, unless it is a temporary that is freed and nothing else uses.
    """
    trace = timeline.trace
    kind, signature = trace.columns["kind"], trace.columns["signature"]
    # Launches, copies, events and waits of streams end a chain; rows of the allocator and of modules do not.
    rows = np.flatnonzero(kind[first:last] <= STREAM_SYNC) + first
    light = (kind[rows] == LAUNCH) & (timeline.fallback[rows] < 0)
    light &= covered[rows]
    light[light] = _fusible(timeline)[signature[rows[light]]]
    place = np.stack([trace.columns[name][rows].astype(np.int64) for name in ("device", "stream", "thread", "phase")])
    begins = np.ones(len(rows), dtype=bool)
    begins[1:] = ~(light[1:] & light[:-1] & (place[:, 1:] == place[:, :-1]).all(axis=0))
    begins |= ~_share_memory(timeline.trace, rows)
    chain = np.cumsum(begins) - 1
    length = np.bincount(chain, light, len(rows))
    inside = light & (length[chain] > 1)
    members, number_of = rows[inside], np.unique(chain[inside], return_inverse=True)[1]
    head = begins[inside]
    moved, least = _bytes(timeline, members, number_of)
    share = np.divide(least, moved, out=np.ones_like(moved), where=moved > 0)
    return Chains(members[head], _fused_seconds(timeline, members, number_of, share), members[~head])


def _fusible(timeline: Timeline) -> Array:
    """Return for every signature True if a compiler fuses it with its neighbours; see Note [Kernels] in compile/fusion.

    Softmax and the normalisation of rows become pointwise operators around reductions of rows, all in one kernel.
    The backward pass of a normalisation also sums over the rows, for its weights, and ends a kernel.
    """
    names = [item.base for item in timeline.trace.signatures]
    by_rows = np.asarray([name in BY_ROWS for name in names], dtype=bool)
    elsewhere = np.asarray([any(word in name for word in ("scatter", "index_put")) for name in names], dtype=bool)
    fusible: Array = (timeline.work.is_family(*FUSED) & ~elsewhere) | by_rows
    return fusible


def _fused_seconds(timeline: Timeline, members: Array, number_of: Array, share: Array) -> Array:
    launch = np.minimum(pricing.launch_seconds(timeline.chip), timeline.seconds[members])
    by_engine = timeline.prices.engines[:, timeline.trace.columns["signature"][members]]
    body = timeline.seconds[members] - launch
    arithmetic = np.minimum(by_engine[:-1].sum(axis=0), body)  # the last engine is memory
    count = len(share)
    moving, computing = (np.bincount(number_of, values, count) for values in (body, arithmetic))
    first = np.zeros(count)
    np.maximum.at(first, number_of, launch)
    seconds: Array = first + np.maximum(moving * share, computing)
    return seconds


def _share_memory(trace: Trace, rows: Array) -> Array:
    """Return for each row True if it uses a storage that the one before in the list uses, too."""
    uses, place = _uses_of(trace, rows)
    storage = uses >> 1
    key = place * (int(storage.max(initial=0)) + 1) + storage
    before = key + int(storage.max(initial=0)) + 1  # the same storage, used by the row after
    shared = np.zeros(len(rows), dtype=bool)
    shared[place[np.isin(key, before)]] = True
    return shared


def _uses_of(trace: Trace, rows: Array) -> tuple[Array, Array]:
    """Return the uses of these rows, and for each use the place of its row in the list."""
    first = trace.offsets[rows]
    count = trace.offsets[rows + 1] - first
    return trace.uses[_ranges(first, count)], np.repeat(np.arange(len(rows)), count)


def _ranges(first: Array, count: Array) -> Array:
    """Return ``[first[0], first[0] + 1, ...]``, `count[0]` numbers, then those of the next range, and so on."""
    begins = np.cumsum(count) - count
    numbers: Array = np.arange(int(count.sum())) + np.repeat(first - begins, count)
    return numbers


def _bytes(timeline: Timeline, rows: Array, chain: Array) -> tuple[Array, Array]:
    """Return for each chain the bytes that its launches move, and those that one kernel would move."""
    trace = timeline.trace
    count = int(chain.max()) + 1 if len(chain) else 0
    if not len(rows):
        return np.zeros(count), np.zeros(count)
    signatures, kind = np.unique(trace.columns["signature"][rows], return_inverse=True)
    sizes = [_use_bytes(trace.signatures[number]) for number in signatures.tolist()]
    lengths = np.asarray([len(item) for item in sizes])
    inside = _temporaries(timeline, rows, chain)
    common = np.minimum(lengths[kind], trace.offsets[rows + 1] - trace.offsets[rows])
    uses = trace.uses[_ranges(trace.offsets[rows], common)]
    amount = np.concatenate(sizes)[_ranges((np.cumsum(lengths) - lengths)[kind], common)]
    owner = np.repeat(chain, common)
    moved = np.bincount(owner, amount, count)
    order = np.lexsort((np.arange(len(uses)), uses >> 1, owner))
    uses, amount, owner = uses[order], amount[order], owner[order]
    new = np.ones(len(uses), dtype=bool)
    new[1:] = (owner[1:] != owner[:-1]) | (uses[1:] >> 1 != uses[:-1] >> 1)
    group = np.cumsum(new) - 1
    largest = np.maximum.reduceat(amount, np.flatnonzero(new))
    written = np.bincount(group, uses & 1) > 0
    read_first = (uses[new] & 1) == 0
    crosses = ~inside[uses[new] >> 1]
    least = np.bincount(owner[new], largest * crosses * (written.astype(float) + read_first), count)
    return moved, np.minimum(least, moved)


def _temporaries(timeline: Timeline, rows: Array, chain: Array) -> Array:
    """Return for every storage True if it is freed and only one chain uses it, but False for the chain's results."""
    trace = timeline.trace
    kind = trace.columns["kind"]
    freed = trace.columns["object"][kind == FREE]
    size = int(max((trace.uses >> 1).max(initial=-1), freed.max(initial=-1))) + 1
    chain_of_row = np.full(len(kind), -1)
    chain_of_row[rows] = chain
    lowest, highest = np.full(size, len(kind)), np.full(size, -2)
    np.minimum.at(lowest, trace.uses >> 1, chain_of_row[trace.use_rows])
    np.maximum.at(highest, trace.uses >> 1, chain_of_row[trace.use_rows])
    inside = np.zeros(size, dtype=bool)
    inside[freed] = True
    inside &= (lowest == highest) & (lowest >= 0)
    last = rows[np.append(chain[1:] != chain[:-1], True)] if len(rows) else rows
    uses, _ = _uses_of(trace, last)
    inside[uses[(uses & 1) == 1] >> 1] = False
    return inside


def _use_bytes(signature: Signature) -> Array:
    """Return the bytes behind each use of a launch: its storages in the order of its inputs, then its results."""
    largest: dict[int, float] = {}
    for tensor in signature.inputs:
        if tensor is not None and tensor.storage >= 0:
            largest[tensor.storage] = max(largest.get(tensor.storage, 0.0), float(tensor.nbytes))
    results = [float(tensor.nbytes) for tensor in signature.outputs if tensor is not None]
    return np.asarray([largest[place] for place in sorted(largest)] + results)
