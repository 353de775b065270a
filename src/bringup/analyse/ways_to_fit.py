"""Changes that would make a program fit, with their memory and their time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse import holders as memory
from bringup.analyse import unused_graphs
from bringup.analyse.holders import Storages
from bringup.analyse.summary import Summary, Way
from bringup.process import EXPANDABLE
from bringup.recording.rows import (
    ACTIVATIONS,
    GRADIENTS,
    IN_BACKWARD,
    IN_FORWARD,
    INPUTS,
    KEPT,
    LAUNCH,
    OPTIMIZER_STATE,
    OWNER,
    PARAMETERS,
    WORKSPACE,
)
from bringup.recording.trace import Trace
from bringup.timeline.replay import Timeline

Array = npt.NDArray[Any]
MOST_CHIPS = 1024
NEARLY = 0.9  # of the largest saving: more chips than this saving needs are not suggested
# 8-bit optimizers keep a float32 scale per block of 2,048 values (Dettmers et al. 2021, arXiv:2110.02861, section 2).
LEAST_SAVING = 0.05  # chosen: of the memory: a change that is not enough and saves less is no way
STATE_BYTES = 1 + 4 / 2048


@dataclass(frozen=True)
class _Change:
    """A change before it is judged: a scale for the size of every storage, extra bytes, and extra seconds per step.

    `freed` are the rows at which storages are freed, if the change frees some of them sooner.
    """

    text: str
    scale: Array
    extra_bytes: float
    extra_seconds: float
    freed: Array | None = None

    def __and__(self, other: _Change) -> _Change:
        return _Change(
            f"{self.text}, and {other.text}",
            self.scale * other.scale,
            self.extra_bytes + other.extra_bytes,
            self.extra_seconds + other.extra_seconds,
            self.freed if other.freed is None else other.freed,
        )


def ways(timeline: Timeline, summary: Summary) -> list[Way]:
    """List the three best changes: those that make the program fit, the cheapest first, then the largest savings.

    If no single change is enough, the first entry is all changes of the program with as many chips as needed.
    """
    trace, chip = timeline.trace, timeline.chip
    storages = memory.storages(trace, summary.memory.at.device if summary.memory.at else 0)
    free = summary.memory.free_bytes

    def judged(change: _Change) -> Way:
        held = storages if change.freed is None else replace(storages, freed=change.freed)
        need = int(held.peak(change.scale) + change.extra_bytes + free)
        saved = summary.memory.peak_bytes + free - need
        return Way(change.text, need, saved, need <= chip.room_bytes, summary.step_seconds + change.extra_seconds)

    program_changes = [
        *_without_graphs(trace, storages),
        *_smaller_state(trace, storages),
        *_checkpointed(timeline, summary, storages),
        *_half(timeline, summary, storages),
    ]
    sharded = list(_sharded(timeline, storages))
    alone = [judged(change) for change in [*program_changes, *_smaller_batch(timeline, summary, storages, free)]]
    alone += _enough([judged(change) for change in sharded])
    alone += _expandable(trace, summary)
    least = LEAST_SAVING * (summary.memory.peak_bytes + free)
    candidates = [way for way in alone if way.saved_bytes > (0 if way.fits else least)]
    candidates.sort(key=lambda way: (not way.fits, way.step_seconds if way.fits else -way.saved_bytes, way.change))
    if not any(way.fits for way in candidates) and program_changes and sharded:
        together = program_changes[0]
        for change in program_changes[1:]:
            together = together & change
        candidates[:0] = [way for way in _enough([judged(together & change) for change in sharded]) if way.fits]
    return candidates[:3]


def _expandable(trace: Trace, summary: Summary) -> Iterator[Way]:
    """Let segments grow, where what the allocator reserved on the chip of the recording decides that nothing fits."""
    need = summary.memory.expandable_bytes
    saved = summary.memory.expandable_gain(summary.room_bytes)
    if need is not None and saved > 0 and trace.about.get("chip") == summary.chip:
        fits = need <= summary.room_bytes
        yield Way(f"expandable segments ({EXPANDABLE})", need, saved, fits, summary.step_seconds)


def _enough(by_chip_count: list[Way]) -> list[Way]:
    """Return the way with the fewest chips that fits; else the first that saves nearly as much as the last one."""
    enough = NEARLY * by_chip_count[-1].saved_bytes if by_chip_count else 0.0
    fitting = (way for way in by_chip_count if way.fits)
    nearly = (way for way in by_chip_count if way.saved_bytes >= enough)
    return [way for way in (next(fitting, None) or next(nearly, None),) if way]


def _is_kind(storages: Storages, *kinds: int) -> Array:
    is_kind: Array = np.isin(storages.kind, kinds)
    return is_kind


def _smaller_batch(timeline: Timeline, summary: Summary, storages: Storages, free: int) -> Iterator[_Change]:
    """Split the batch: storages that grow with the batch shrink, and the host-bound time is paid per smaller batch."""
    batch = summary.samples
    if batch < 2:
        return
    scaled = _is_kind(storages, ACTIVATIONS, KEPT, INPUTS, WORKSPACE)
    capacity = timeline.chip.room_bytes - free

    def scale(size: int) -> Array:
        return np.where(scaled, size / batch, 1.0)

    low, high = 1, batch - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if storages.peak(scale(middle)) <= capacity else (low, middle - 1)
    low = next(size for size in range(low, 0, -1) if batch % size == 0)  # a whole number of batches can be accumulated
    times = batch // low
    bound = max(summary.step_seconds - summary.device_seconds, 0.0)
    trains = _is_kind(storages, GRADIENTS).any()
    often = f"with the gradients of {times:,} batches accumulated" if trains else f"{times:,} times as often"
    text = f"batch {low:,} instead of {batch:,}, {often}"
    yield _Change(text, scale(low), 0.0, (times - 1) * bound)


def _without_graphs(trace: Trace, storages: Storages) -> Iterator[_Change]:
    """Run forward passes under torch.no_grad() if no backward pass follows."""
    freed, line = unused_graphs.without_graphs(trace, storages)
    sooner = freed < storages.freed
    if sooner.any():
        where = unused_graphs.most_at(trace, line[sooner], storages.bytes[sooner])
        at = f" at {where}" if where else ""
        yield _Change(f"torch.no_grad() for the forward pass{at}", np.ones(len(freed)), 0.0, 0.0, freed)


def _smaller_state(trace: Trace, storages: Storages) -> Iterator[_Change]:
    state = _is_kind(storages, OPTIMIZER_STATE)
    width = _parameter_bytes(trace)
    if state.any() and width > 1:
        yield _Change("an 8-bit optimizer (such as bitsandbytes)", np.where(state, STATE_BYTES / width, 1.0), 0.0, 0.0)


def _half(timeline: Timeline, summary: Summary, storages: Storages) -> Iterator[_Change]:
    half = summary.what_if_of("half")
    if half is None or _parameter_bytes(timeline.trace) != 4:
        return
    dtype = half.dtype
    halved = ~_is_kind(storages, INPUTS)
    products = timeline.work.is_family("matmul", "convolution", "attention")
    if (products & np.isin(timeline.work.dtypes, ("float16", "bfloat16"))).any():  # autocast: activations are short
        halved = _is_kind(storages, PARAMETERS, GRADIENTS, OPTIMIZER_STATE)
    scale = np.where(halved, 0.5, 1.0)
    extra = min(half.step_seconds - summary.step_seconds, 0.0)
    yield _Change(f"the model in {dtype} (model.to(torch.{dtype}))", scale, 0.0, extra)


def _parameter_bytes(trace: Trace) -> int:
    """Return the bytes per element of most parameters; 0 if there are no parameters."""
    columns = trace.columns
    widths = columns["flags"][(columns["kind"] == OWNER) & (columns["bytes"] == PARAMETERS)]
    return int(np.bincount(widths).argmax()) if len(widths) else 0


def blocks(names: list[str]) -> tuple[list[str], Array, Array]:
    """Find modules in lists, such as ``layers.0`` and ``layers.1``.

    Returns:
        the names of the lists, and for every module the number of its list and of its list element (-1 for none).
    """
    pattern = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")
    lists: dict[str, int] = {}
    elements: dict[str, int] = {}
    list_of_module, element_of_module = [], []
    for name in names:
        match = pattern.search(name)
        if match is None:
            list_of_module.append(-1)
            element_of_module.append(-1)
            continue
        list_of_module.append(lists.setdefault(name[: match.start()], len(lists)))
        element_of_module.append(elements.setdefault(name[: match.end()], len(elements)))
    return list(lists), np.asarray([*list_of_module, -1]), np.asarray([*element_of_module, -1])


def _checkpointed(timeline: Timeline, summary: Summary, storages: Storages) -> Iterator[_Change]:
    """Checkpoint the elements of module lists: activations between elements stay, their forward pass runs again."""
    trace = timeline.trace
    columns = trace.columns
    backward = np.flatnonzero((columns["kind"] == LAUNCH) & (columns["phase"] == IN_BACKWARD))
    if not len(backward):
        return
    names, list_of_module, element_of_module = blocks(trace.modules)
    element = element_of_module[storages.module]
    next_backward = backward[np.minimum(np.searchsorted(backward, storages.allocated), len(backward) - 1)]
    survives = storages.freed > next_backward
    inside = (
        (storages.kind == ACTIVATIONS) & (element >= 0) & survives & ~_passed_on(trace, storages, element_of_module)
    )
    launches = (columns["kind"] == LAUNCH) & (columns["phase"] == IN_FORWARD)
    row_list = np.where(columns["module"] >= 0, list_of_module[columns["module"]], -1)
    steps = max(len(timeline.steps.ends), 1)
    for number in np.unique(list_of_module[storages.module[inside]]):
        members = inside & (list_of_module[storages.module] == number)
        again = launches & (row_list == number)
        seconds = float((timeline.end[again] - timeline.start[again]).sum()) / steps
        issue = int(again.sum()) / steps / max(summary.launches, 1) * summary.host_seconds
        largest_element = np.bincount(element[members], storages.bytes[members]).max(initial=0.0) / steps
        name = names[number] or "model"
        yield _Change(
            f"activation checkpointing of {name}.*",
            np.where(members, 0.0, 1.0),
            float(largest_element),
            seconds + issue,
        )


def _passed_on(trace: Trace, storages: Storages, element_of_module: Array) -> Array:
    """Return for every storage True if a forward launch of another list element reads it."""
    columns = trace.columns
    producer = np.full(int(max((trace.uses >> 1).max(initial=0), columns["object"].max(initial=0))) + 1, -1)
    producer[columns["object"][storages.allocated]] = element_of_module[storages.module]
    counts = np.diff(trace.offsets)
    forward = np.repeat((columns["kind"] == LAUNCH) & (columns["phase"] == IN_FORWARD), counts)
    module = np.repeat(columns["module"], counts)[forward]
    objects = trace.uses[forward] >> 1
    foreign = np.where(module >= 0, element_of_module[module], -1) != producer[objects]
    passed = np.zeros(len(producer), dtype=bool)
    passed[objects[foreign]] = True
    is_passed_on: Array = passed[columns["object"][storages.allocated]]
    return is_passed_on


def _sharded(timeline: Timeline, storages: Storages) -> Iterator[_Change]:
    """Use 2, 4, 8 ... chips.

    In training, the parameters are sharded and every chip gathers those of one block at a time (FSDP). In inference,
    every chip holds some of the layers.
    """
    chip = timeline.chip
    parameter_bytes = storages.bytes * _is_kind(storages, PARAMETERS)
    parameters = float(parameter_bytes.sum())
    if not parameters:
        return
    rate = (chip.interconnect.gb_s if chip.interconnect else min(chip.link.h2d_gb_s, chip.link.d2h_gb_s)) * 1e9
    _, _, element_of_module = blocks(timeline.trace.modules)
    element = element_of_module[storages.module]
    in_lists = element >= 0
    block_bytes = np.bincount(element[in_lists], parameter_bytes[in_lists])
    block = max(block_bytes.max(initial=0.0), parameter_bytes.max())
    trains = bool(_is_kind(storages, GRADIENTS).any())
    count = 2
    while count <= MOST_CHIPS:
        if trains:
            scale = np.where(_is_kind(storages, PARAMETERS, GRADIENTS, OPTIMIZER_STATE), 1 / count, 1.0)
            # Two gathers of the parameters and one scatter of the gradients; a ring moves (n - 1) / n of the bytes.
            seconds = 3 * parameters * (count - 1) / count / rate
            yield _Change(f"{count} chips, parameters sharded (FSDP)", scale, 2 * block, seconds)
        else:
            scale = np.where(_is_kind(storages, PARAMETERS, KEPT), 1 / count, 1.0)
            seconds = (count - 1) * chip.link.latency_us * 1e-6
            yield _Change(f"{count} chips, some layers on each", scale, block, seconds)
        count *= 2
