"""The step at a larger batch: the work that grows with it is priced again, and the trace is replayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup import pricing
from bringup.analyse.changes import replayed, same_step
from bringup.analyse.holders import storages
from bringup.cost import Signature
from bringup.cost.signature import Tensor
from bringup.pricing import WorkTable
from bringup.recording.rows import D2H, H2D, IN_OPTIMIZER, LAUNCH
from bringup.recording.trace import Trace
from bringup.recording.waits import VALUE_BYTES
from bringup.timeline import library
from bringup.timeline.batch import samples
from bringup.timeline.replay import Timeline
from bringup.timeline.steady import steady

Array = npt.NDArray[Any]
BUSY = 0.8  # of the step: from here on, the chip's time decides
FINER = 1.2  # the factor between the batches that are replayed
MOST_TIMES = 64  # chosen: larger batches than so many times the recorded one are no longer the same program
FACTORS = (("mat1", "mat2"), ("batch1", "batch2"), ("self", "mat2"), ("self", "vec"), ("mat", "vec"))
WITH_WEIGHTS = ("matmul", "convolution", "depthwise", "attention")  # beside data, these read much that does not grow


@dataclass(frozen=True)
class Larger:
    """A larger batch.

    Attributes:
        times: the batch as a multiple of the recorded one.
        samples: the batch; 0 if it is unknown.
        busy: the share of the step in which the chip is busy, 0 to 1.
        saved_seconds: the seconds that the recorded batch saves if it is part of the larger one.
    """

    times: float
    samples: int
    busy: float
    saved_seconds: float


@dataclass(frozen=True)
class Growth:
    """The part of the work that grows with the batch; all but the last two have one entry per signature.

    Attributes:
        work: True if the operations grow.
        moved: the share of the bytes that grows, 0 to 1.
        results: True if the number of results grows.
        sides: the side of each product that grows: 0 to 3 for batch, m, n and k; -1 for none.
        stored: for every storage, True if its size grows.
    """

    work: Array
    moved: Array
    results: Array
    sides: Array
    stored: Array


def larger_batch(timeline: Timeline) -> Larger | None:
    """Find a batch at which the chip is busy, by pricing the step at other batches; it has two significant digits.

    If it is not busy at `MOST_TIMES` the batch, it is that. None means that there is no such batch that fits the
    memory, that the step has launches on the host, or that nothing grows with the batch.
    """
    first, last, *_ = steady(timeline)
    launched = np.flatnonzero(timeline.trace.columns["kind"][first:last] == LAUNCH) + first
    if not len(launched) or (timeline.fallback[launched] >= 0).any():
        return None
    batch = samples(timeline, first, last)
    growth = find_growth(timeline, batch)
    if not growth.work.any():
        return None
    counts = np.bincount(timeline.trace.columns["signature"][launched], minlength=len(growth.work))
    host, _ = _step(timeline, replayed(timeline, seconds=np.zeros(len(timeline.seconds))))
    most = _most_times(timeline, growth)

    def chip_seconds(times: float) -> float:
        return float((counts * _priced(timeline, growth, times)).sum())

    times = _smallest(chip_seconds, BUSY * host, most)
    while times <= most:
        size = _two_digits(times * max(batch, 1))
        if size > most * max(batch, 1):  # rounded up
            if most < MOST_TIMES:
                break
            size = MOST_TIMES * max(batch, 1)
        times = size / max(batch, 1)
        step, busy = _step(timeline, _replayed(timeline, growth, times))
        if busy >= BUSY * step or times == MOST_TIMES:
            now, _ = _step(timeline, timeline)
            return Larger(times, size if batch else 0, busy / step, max(now - step / times, 0.0))
        times = min(times * FINER, MOST_TIMES)
    return None


def _two_digits(size: float) -> int:
    """Round up to a whole number with at most two significant digits."""
    unit = int(10 ** max(len(str(math.ceil(size))) - 2, 0))
    return math.ceil(size / unit) * unit


def _smallest(chip_seconds: Callable[[float], float], host: float, most: float) -> float:
    """Return the smallest factor up to `most` at which the chip's time is that of `host`, to about 1 %."""
    low, high = 1.0, most
    if chip_seconds(high) < host:
        return high
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if chip_seconds(middle) < host else (low, middle)
    return high


def _most_times(timeline: Timeline, growth: Growth) -> float:
    """Return the largest factor, at most `MOST_TIMES`, at which the memory of every device is large enough."""
    trace = timeline.trace
    handed_out = [storages(trace, device) for device in np.unique(trace.columns["device"]).tolist()]
    held = [(item, growth.stored[trace.columns["object"][item.allocated]]) for item in handed_out]

    def fits(times: float) -> bool:
        return all(item.peak(np.where(grows, times, 1.0)) <= timeline.chip.room_bytes for item, grows in held)

    low, high = 1.0, float(MOST_TIMES)
    if fits(high):
        return high
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _step(timeline: Timeline, other: Timeline) -> tuple[float, float]:
    """Return the seconds of the typical step in another replay, and those in which the chip is busy."""
    since, until = same_step(timeline, other)
    busy, *_ = library.shares(other.trace.columns["kind"], other.fallback, other.start, other.end, since, until)
    return until - since, busy


def _priced(timeline: Timeline, growth: Growth, times: float) -> Array:
    table = grown(timeline.work, growth, times)
    graph = "eager" not in timeline.chip.modes
    return pricing.price_table(table, timeline.trace.signatures, timeline.chip, graph=graph).seconds


def _replayed(timeline: Timeline, growth: Growth, times: float) -> Timeline:
    """Replay with the launches and copies of a larger batch; copies of single values stay as they are."""
    columns = timeline.trace.columns
    launched = columns["kind"] == LAUNCH
    more = _priced(timeline, growth, times) - _priced(timeline, growth, 1.0)
    seconds = timeline.seconds.copy()
    seconds[launched] += more[columns["signature"][launched]]
    copies = np.isin(columns["kind"], (H2D, D2H)) & (columns["bytes"] > VALUE_BYTES)
    latency = timeline.chip.link.latency_us * 1e-6
    seconds[copies] = latency + (seconds[copies] - latency) * times
    return replayed(timeline, seconds=seconds)


def grown(work: WorkTable, growth: Growth, times: float) -> WorkTable:
    """Return the work at a larger batch."""
    more = np.where(growth.work, times, 1.0)
    moved = 1.0 + growth.moved * (times - 1.0)
    columns = {name: getattr(work, name) * more for name in ("vector_flops", "special", "flops", "again_bytes")}
    columns |= {name: getattr(work, name) * moved for name in ("bytes", "converted_bytes", "bias_bytes")}
    columns["items"] = work.items * np.where(growth.results, times, 1.0)
    for side, name in enumerate(("batch", "m", "n", "k")):
        columns[name] = getattr(work, name) * np.where(growth.sides == side, times, 1.0)
    return replace(work, **columns)


def find_growth(timeline: Timeline, batch: int) -> Growth:
    """Follow the samples through the launches of the typical step.

    Parameters, and whatever an optimizer uses, do not grow. Of the other tensors that the step finds, those grow that
    have an axis of the batch's size or a multiple. A result grows if an input does, unless the batch is summed up.

    Args:
        timeline: the replayed trace.
        batch: the batch, 0 if it is unknown: then all tensors but parameters and optimizer state count as samples.
    """
    trace, owner = timeline.trace, timeline.work.owner
    first, last, *_ = steady(timeline)
    state = _state(trace)
    grows: dict[int, bool] = {}
    count = len(trace.signatures)
    growth = Growth(
        np.zeros(count, bool),
        np.zeros(count),
        np.zeros(count, bool),
        np.full(len(owner), -1),
        np.zeros(len(state), bool),
    )
    products: dict[int, list[int]] = {}
    for place, number in enumerate(owner.tolist()):
        products.setdefault(number, []).append(place)
    rows = np.flatnonzero(trace.columns["kind"][first:last] == LAUNCH) + first
    for row in rows.tolist():
        number = int(trace.columns["signature"][row])
        _follow(timeline, row, batch, state, grows, growth, products.get(number, []))
    growth.stored[[storage for storage, more in grows.items() if more]] = True
    return growth


def _follow(
    timeline: Timeline,
    row: int,
    batch: int,
    state: Array,
    grows: dict[int, bool],
    growth: Growth,
    products: list[int],
) -> None:
    """Note which results of a launch grow, and its signature's growth if no launch of it had data before."""
    number = int(timeline.trace.columns["signature"][row])
    signature, family = timeline.trace.signatures[number], timeline.work.works[number].family
    inputs, outputs = _tensors(timeline.trace, row, signature)
    for tensor, storage in inputs:
        if storage not in grows:
            grows[storage] = not state[storage] and _has_batch(tensor, batch)
    data = [tensor for tensor, storage in inputs if grows[storage]]
    sides = [_side(signature, family, data, place) for place in range(len(products))]
    summed = bool(sides) and all(side == 3 for side in sides)
    from_data = (bool(data) or not inputs) and not summed
    for tensor, storage in outputs:
        grows[storage] = from_data and not state[storage] and _has_batch(tensor, batch)
    written = any(grows[storage] for _, storage in outputs)
    if growth.work[number] or not (data or written):
        return
    growth.work[number], growth.results[number] = True, written
    tensors = [*inputs, *outputs]
    in_all = sum(tensor.nbytes for tensor, _ in tensors)
    of_data = sum(tensor.nbytes for tensor, storage in tensors if grows[storage])
    partly = family in WITH_WEIGHTS or not written
    growth.moved[number] = of_data / max(in_all, 1) if partly else 1.0
    growth.sides[products] = sides


def _state(trace: Trace) -> Array:
    """Return for every storage True if it does not depend on the batch: parameters, gradients, optimizer state."""
    columns = trace.columns
    size = int(max((trace.uses >> 1).max(initial=-1), columns["object"].max(initial=-1))) + 1
    state = np.zeros(size, dtype=bool)
    state[: len(trace.owned_storages)] = trace.owned_storages
    counts = np.diff(trace.offsets)
    in_optimizer = (columns["kind"] == LAUNCH) & (columns["phase"] == IN_OPTIMIZER)
    state[trace.uses[np.repeat(in_optimizer, counts)] >> 1] = True
    return state


def _tensors(trace: Trace, row: int, signature: Signature) -> tuple[list[tuple[Tensor, int]], list[tuple[Tensor, int]]]:
    """Return the tensors on the chip that a launch reads, and those that it writes, each with its storage."""
    uses = (trace.uses[trace.offsets[row] : trace.offsets[row + 1]] >> 1).tolist()
    inputs = [tensor for tensor in signature.tensors if 0 <= tensor.storage < len(uses)]
    results = [tensor for tensor in signature.outputs if tensor is not None]
    begin = len({tensor.storage for tensor in inputs})
    fresh = list(zip(results, uses[begin:], strict=False))
    read = [(tensor, uses[tensor.storage]) for tensor in inputs]
    return read, [*fresh, *((tensor, storage) for tensor, storage in read if tensor.written)]


def _has_batch(tensor: Tensor, batch: int) -> bool:
    """Return True if a tensor may hold samples: one of its axes is a multiple of the batch."""
    return any(size and size % batch == 0 for size in tensor.shape) if batch else tensor.numel > 1


def _side(signature: Signature, family: str, data: list[Tensor], place: int) -> int:
    """Return the side of a launch's product that grows with the batch: 0 to 3 for batch, m, n and k; -1 for none."""
    if not data:
        return -1
    if family == "attention":
        return 0
    if family != "matmul":  # a convolution's last product backward is that of the filter
        masks = signature.args.get("output_mask") or [True]
        of_filter = "backward" in signature.base and len(masks) > 1 and masks[1] and place == int(bool(masks[0]))
        return 3 if of_filter else 1
    return next(_matrix_sides(signature, data), 1)


def _matrix_sides(signature: Signature, data: list[Tensor]) -> Iterator[int]:
    """Yield the grown sides by the factors; the samples are the axis in which a factor's memory is outermost."""
    names = next((pair for pair in FACTORS if all(signature.tensor(name) for name in pair)), ())
    for name, sides in zip(names, ((0, 1, 3), (0, 3, 2)), strict=False):
        factor = signature.tensor(name)
        if factor is not None and factor in data and factor.shape:
            axis = max(range(len(factor.shape)), key=lambda i: (factor.shape[i] > 1, factor.strides[i], -i))
            yield sides[axis + 3 - len(factor.shape)] if len(factor.shape) > 1 else sides[-1]
