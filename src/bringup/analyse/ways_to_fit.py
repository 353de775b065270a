"""What would make a program fit: changes, with the memory that they leave and the time that they cost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.analyse import holders as memory
from bringup.analyse.holders import (
    ACTIVATIONS,
    GRADIENTS,
    INPUTS,
    KEPT,
    OPTIMIZER_STATE,
    PARAMETERS,
    WORKSPACE,
    Memory,
    Storages,
)
from bringup.recording.trace import IN_BACKWARD, IN_FORWARD, LAUNCH, OWNER, Trace

if TYPE_CHECKING:
    from bringup.analyse.summary import Summary
    from bringup.machine.schema import Chip
    from bringup.timeline.replay import Timeline

Array = npt.NDArray[Any]
MOST_CHIPS = 1024
# 8-bit optimizers keep a float32 scale per block of 2,048 values (Dettmers et al. 2021, arXiv:2110.02861, section 2).
STATE_BYTES = 1 + 4 / 2048


@dataclass(frozen=True)
class Way:
    """A change of the program or the machine.

    Attributes:
        change: what to do.
        peak_bytes: what the fullest device then holds and leaves in pieces.
        saved_bytes: less than now.
        fits: in the chip's memory.
        step_seconds: of the same work as one step now, about.
    """

    change: str
    peak_bytes: int
    saved_bytes: int
    fits: bool
    step_seconds: float


@dataclass(frozen=True)
class _Change:
    """A change before it is judged: what becomes of every storage, bytes on top of that, seconds on top of a step."""

    text: str
    scale: Array
    extra_bytes: float
    extra_seconds: float

    def __and__(self, other: _Change) -> _Change:
        return _Change(
            f"{self.text}, and {other.text}",
            self.scale * other.scale,
            self.extra_bytes + other.extra_bytes,
            self.extra_seconds + other.extra_seconds,
        )


def fits(trace: Trace, used: Memory, chip: Chip) -> bool:
    """Tell whether the program ran in the chip's memory, or would.

    On the chip that it was recorded on the allocator decided: it gives cached memory back before it goes beyond the
    capacity. For another chip what tensors held is compared.
    """
    if trace.about.get("out_of_memory"):
        return False
    own = trace.about.get("chip") == chip.name
    return (used.reserved_bytes if own else used.peak_bytes) <= chip.device_bytes


def ways(timeline: Timeline, summary: Summary) -> list[Way]:
    """List the three cheapest changes that make the program fit alone; those that do not, by what they save, last.

    If none does alone, all that the program can do for itself is put together with as many chips as it takes.
    """
    trace, chip = timeline.trace, timeline.chip
    every = memory.storages(trace, summary.memory.at.device if summary.memory.at else 0)
    free = next((item.bytes for item in summary.memory.owners if item.kind == "fragmentation"), 0)

    def judged(change: _Change) -> Way:
        need = int(every.peak(change.scale) + change.extra_bytes + free)
        saved = summary.memory.peak_bytes + free - need
        return Way(change.text, need, saved, need <= chip.device_bytes, summary.step_seconds + change.extra_seconds)

    own = [*_smaller_state(trace, every), *_checkpointed(timeline, summary, every), *_half(trace, summary, every)]
    sharded = list(_sharded(timeline, every))
    alone = [judged(change) for change in [*own, *_smaller_batch(timeline, summary, every, free)]]
    alone += _enough([judged(change) for change in sharded])
    found = [way for way in alone if way.saved_bytes > 0]
    found.sort(key=lambda way: (not way.fits, way.step_seconds if way.fits else -way.saved_bytes, way.change))
    if not any(way.fits for way in found) and own and sharded:
        together = own[0]
        for change in own[1:]:
            together = together & change
        found[:0] = [way for way in _enough([judged(together & change) for change in sharded]) if way.fits]
    return found[:3]


def _enough(more_and_more: list[Way]) -> list[Way]:
    """The first that fits, else the first that saves nearly what the last does."""
    enough = 0.9 * more_and_more[-1].saved_bytes if more_and_more else 0.0
    fitting = (way for way in more_and_more if way.fits)
    nearly = (way for way in more_and_more if way.saved_bytes >= enough)
    return [way for way in (next(fitting, None) or next(nearly, None),) if way]


def _of(every: Storages, *kinds: int) -> Array:
    found: Array = np.isin(every.kind, kinds)
    return found


def _smaller_batch(timeline: Timeline, summary: Summary, every: Storages, free: int) -> Iterator[_Change]:
    """Micro-batches: what scales with the batch shrinks, and the host-bound part of a step is paid for each of them."""
    batch = summary.samples
    if batch < 2:
        return
    scaled = _of(every, ACTIVATIONS, KEPT, INPUTS, WORKSPACE)
    capacity = timeline.chip.device_bytes - free

    def scale(size: int) -> Array:
        return np.where(scaled, size / batch, 1.0)

    low, high = 1, batch - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if every.peak(scale(middle)) <= capacity else (low, middle - 1)
    times = batch / low
    bound = max(summary.step_seconds - summary.device_seconds, 0.0)
    trains = _of(every, GRADIENTS).any()
    often = f"gradients of {times:.3g} accumulated" if trains else f"{times:.3g} times as often"
    text = f"batch {low:,} instead of {batch:,}, {often}"
    yield _Change(text, scale(low), 0.0, (times - 1) * bound)


def _smaller_state(trace: Trace, every: Storages) -> Iterator[_Change]:
    state = _of(every, OPTIMIZER_STATE)
    width = _parameter_bytes(trace)
    if state.any() and width > 1:
        yield _Change("an 8-bit optimizer (such as bitsandbytes)", np.where(state, STATE_BYTES / width, 1.0), 0.0, 0.0)


def _half(trace: Trace, summary: Summary, every: Storages) -> Iterator[_Change]:
    half = next((item for item in summary.what_if if item.change.startswith("float32 products in")), None)
    if half is None or _parameter_bytes(trace) != 4:
        return
    dtype = half.change.split()[-1]
    scale = np.where(_of(every, INPUTS), 1.0, 0.5)
    extra = min(half.step_seconds - summary.step_seconds, 0.0)
    yield _Change(f"the model in {dtype} (model.to(torch.{dtype}))", scale, 0.0, extra)


def _parameter_bytes(trace: Trace) -> int:
    """Bytes of an element of most parameters; 0 if there are none."""
    columns = trace.columns
    widths = columns["flags"][(columns["kind"] == OWNER) & (columns["bytes"] == PARAMETERS)]
    return int(np.bincount(widths).argmax()) if len(widths) else 0


def blocks(names: list[str]) -> tuple[list[str], Array, Array]:
    """Find repeated modules: ``layers.0``, ``layers.1``.

    Returns:
        the lists' names, and for every module its list and its number in the list's elements (-1: in none).
    """
    pattern = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")
    lists: dict[str, int] = {}
    elements: dict[str, int] = {}
    of_list, of_element = [], []
    for name in names:
        match = pattern.search(name)
        if match is None:
            of_list.append(-1)
            of_element.append(-1)
            continue
        of_list.append(lists.setdefault(name[: match.start()], len(lists)))
        of_element.append(elements.setdefault(name[: match.end()], len(elements)))
    return list(lists), np.asarray([*of_list, -1]), np.asarray([*of_element, -1])


def _checkpointed(timeline: Timeline, summary: Summary, every: Storages) -> Iterator[_Change]:
    """Activation checkpointing of repeated modules: what passes between them stays, their forward pass runs again."""
    trace = timeline.trace
    columns = trace.columns
    backward = np.flatnonzero((columns["kind"] == LAUNCH) & (columns["phase"] == IN_BACKWARD))
    if not len(backward):
        return
    names, of_list, of_element = blocks(trace.modules)
    element = of_element[every.module]
    survives = every.freed > backward[np.minimum(np.searchsorted(backward, every.made), len(backward) - 1)]
    inside = (every.kind == ACTIVATIONS) & (element >= 0) & survives & ~_passed_on(trace, every, of_element)
    launches = (columns["kind"] == LAUNCH) & (columns["phase"] == IN_FORWARD)
    row_list = np.where(columns["module"] >= 0, of_list[columns["module"]], -1)
    steps = max(len(timeline.steps.ends), 1)
    for number in np.unique(of_list[every.module[inside]]):
        members = inside & (of_list[every.module] == number)
        again = launches & (row_list == number)
        seconds = float((timeline.end[again] - timeline.start[again]).sum()) / steps
        issue = int(again.sum()) / steps / max(summary.launches, 1) * summary.host_seconds
        one = np.bincount(element[members], every.bytes[members]).max(initial=0.0) / steps
        name = names[number] or "model"
        yield _Change(f"activation checkpointing of {name}.*", np.where(members, 0.0, 1.0), float(one), seconds + issue)


def _passed_on(trace: Trace, every: Storages, of_element: Array) -> Array:
    """Tell of every storage whether a forward launch of another module than its own reads it."""
    columns = trace.columns
    made_by = np.full(int(max((trace.uses >> 1).max(initial=0), columns["object"].max(initial=0))) + 1, -1)
    made_by[columns["object"][every.made]] = of_element[every.module]
    counts = np.diff(trace.offsets)
    forward = np.repeat((columns["kind"] == LAUNCH) & (columns["phase"] == IN_FORWARD), counts)
    module = np.repeat(columns["module"], counts)[forward]
    used = trace.uses[forward] >> 1
    foreign = np.where(module >= 0, of_element[module], -1) != made_by[used]
    passed = np.zeros(len(made_by), dtype=bool)
    passed[used[foreign]] = True
    found: Array = passed[columns["object"][every.made]]
    return found


def _sharded(timeline: Timeline, every: Storages) -> Iterator[_Change]:
    """Take 2, 4, 8 ... chips.

    In training every chip gathers one block's parameters at a time (fully sharded data parallel); in inference every
    chip has some of the layers.
    """
    chip = timeline.chip
    held = every.bytes * _of(every, PARAMETERS)
    parameters = float(held.sum())
    if not parameters:
        return
    rate = (chip.interconnect.gb_s if chip.interconnect else min(chip.link.h2d_gb_s, chip.link.d2h_gb_s)) * 1e9
    _, _, of_element = blocks(timeline.trace.modules)
    element = of_element[every.module]
    block = max(np.bincount(element[element >= 0], held[element >= 0]).max(initial=0.0), held.max())
    trains = bool(_of(every, GRADIENTS).any())
    count = 2
    while count <= MOST_CHIPS:
        if trains:
            scale = np.where(_of(every, PARAMETERS, GRADIENTS, OPTIMIZER_STATE), 1 / count, 1.0)
            # Two gathers of the parameters and one scatter of the gradients, a ring of (n - 1) / n of them each.
            seconds = 3 * parameters * (count - 1) / count / rate
            yield _Change(f"{count} chips, parameters sharded (FSDP)", scale, 2 * block, seconds)
        else:
            scale = np.where(_of(every, PARAMETERS, KEPT), 1 / count, 1.0)
            seconds = (count - 1) * chip.link.latency_us * 1e-6
            yield _Change(f"{count} chips, some layers on each", scale, block, seconds)
        count *= 2
