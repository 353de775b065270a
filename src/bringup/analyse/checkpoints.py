"""Checkpoints that save no memory, because the region that they rebuild is itself the peak."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse.holders import Storages, memory_over_time, storages
from bringup.analyse.summary import MemoryAdvice, Summary
from bringup.analyse.unused_graphs import is_worth_it, nodes_of
from bringup.analyse.ways_to_fit import blocks
from bringup.recording.rows import FORWARD, IN_BACKWARD, IN_FORWARD, LAUNCH, REBUILT
from bringup.recording.trace import Trace
from bringup.text import size

Array = npt.NDArray[Any]
LEAST_REBUILT = 0.1  # of the peak: otherwise the peak is elsewhere, and smaller regions would not lower it
ONLY_REGION = 0.9  # of what a backward pass rebuilds: a region with less is one of several, and the others save memory
# A checkpoint does what it is for if it saves more than this share: of what its layers would save, and, if it has no
# layers, of the peak without it.
SAVES_AS_LAYERS, SAVES_ALONE = 0.5, 0.1


@dataclass(frozen=True)
class _Region:
    """A region that a checkpoint rebuilds in the backward pass.

    Attributes:
        begin: the first row of its backward pass.
        start: the row after the previous launch of the backward pass.
        launches: its launches.
        end: the row after the last of them.
        inside: indices of the storages that it allocates and that outlive it.
    """

    begin: int
    start: int
    launches: Array
    end: int
    inside: Array


def memory_advice(trace: Trace, summary: Summary) -> list[MemoryAdvice]:
    """Advise smaller regions if a checkpoint saves next to nothing and smaller regions lower the peak."""
    if summary.memory.at is None:
        return []
    handed_out = storages(trace, summary.memory.at.device)
    regions = [item for item in _regions(trace, handed_out) if _ran_before(trace, item)]
    _, held_bytes = memory_over_time(trace)
    top = int(np.argmax(held_bytes))
    live = (handed_out.allocated <= top) & (handed_out.freed > top)
    rebuilt = [int(handed_out.bytes[item.inside[live[item.inside]]].sum()) for item in regions]
    if sum(rebuilt) < LEAST_REBUILT * summary.peak_bytes:
        return []
    largest = regions[int(np.argmax(rebuilt))]
    if not _is_alone(handed_out, largest, regions):
        return []
    split = [_parts(trace, item) for item in regions]
    parts, are_layers = split[int(np.argmax(rebuilt))]
    peak, without = handed_out.peak(), _all_kept(handed_out, regions).peak()
    saved, saves = peak - _split(trace, handed_out, regions, [part for part, _ in split]).peak(), max(without - peak, 0)
    enough = SAVES_AS_LAYERS * (saves + saved) if are_layers else SAVES_ALONE * without
    if saves > enough or not is_worth_it(saved, summary):
        return []
    count = int(parts.max()) + 1
    line, module = (int(trace.columns[name][largest.launches[0]]) for name in ("line", "module"))
    where = trace.lines[line] if line >= 0 else ""
    first = f" that begins at {where}" if where else f" that begins in {trace.modules[module]}" if module >= 0 else ""
    how = f"each of its {count:,} layers" if are_layers else f"{count:,} parts of it, one after the other,"
    return [
        MemoryAdvice(
            f"{size(sum(rebuilt))} of the peak ({sum(rebuilt) / summary.peak_bytes:.0%}) are rebuilt at once by a "
            f"checkpoint, which saves {f'only {size(saves)}' if saves else 'nothing'}",
            f"the backward pass runs the region{first} again as a whole, so all of its activations live together",
            f"a checkpoint around {how} saves about {size(saved)}: the peak is then {size(summary.peak_bytes - saved)}",
            where,
            sum(rebuilt),
            summary.peak_bytes - saved,
            saved,
            key="whole-checkpoint",
        )
    ]


def _regions(trace: Trace, handed_out: Storages) -> list[_Region]:
    """List the regions: launches that a checkpoint runs again between two launches of the backward pass."""
    columns, nodes = trace.columns, nodes_of(trace)
    if not (nodes == REBUILT).any():
        return []
    is_launch, is_backward = columns["kind"] == LAUNCH, columns["phase"] == IN_BACKWARD
    runs: list[tuple[int, Array]] = []  # the row after the previous launch of the backward pass, and the launches
    for thread in np.unique(columns["thread"][nodes == REBUILT]):
        launches = np.flatnonzero(is_launch & (columns["thread"] == thread))
        stops = np.append(np.flatnonzero(is_backward[launches]), len(launches))
        rebuilt = np.flatnonzero(nodes[launches] == REBUILT)
        for stop in np.unique(stops[np.searchsorted(stops, rebuilt)]):
            since = np.searchsorted(stops, stop) - 1
            first, last = np.searchsorted(rebuilt, (stops[since] if since >= 0 else 0, stop))
            start = int(launches[stops[since]]) + 1 if since >= 0 else 0
            runs.append((start, launches[rebuilt[first] : rebuilt[last - 1] + 1]))
    in_pass = is_launch & is_backward
    for _, rows in runs:
        in_pass[rows] = True
    everything = np.flatnonzero(is_launch)
    begins = everything[in_pass[everything] & ~np.append(False, in_pass[everything][:-1])]
    return [_region(trace, handed_out, start, rows, begins) for start, rows in runs]


def _region(trace: Trace, handed_out: Storages, start: int, launches: Array, begins: Array) -> _Region:
    thread, phase = trace.columns["thread"], trace.columns["phase"]
    begin = int(begins[np.searchsorted(begins, launches[0], side="right") - 1])
    start, end = max(start, begin), int(launches[-1]) + 1
    first, last = np.searchsorted(handed_out.allocated, (start, end))
    inside = np.arange(first, last)
    rows = handed_out.allocated[inside]
    own = (thread[rows] == thread[launches[0]]) & (phase[rows] == IN_FORWARD) & (handed_out.freed[inside] >= end)
    return _Region(begin, start, launches, end, inside[own])


def _ran_before(trace: Trace, region: _Region) -> bool:
    """Return True if the forward pass has the same launches, which double backward passes have not."""
    signature = trace.columns["signature"]
    before = trace.columns["phase"][: region.begin] == IN_FORWARD
    return bool(np.isin(signature[region.launches], signature[: region.begin][before]).all())


def _is_alone(handed_out: Storages, region: _Region, regions: list[_Region]) -> bool:
    """Return True if the backward pass of a region rebuilds next to nothing else."""
    in_all = sum(int(handed_out.bytes[item.inside].sum()) for item in regions if item.begin == region.begin)
    return bool(handed_out.bytes[region.inside].sum() >= ONLY_REGION * in_all)


def _all_kept(handed_out: Storages, regions: list[_Region]) -> Storages:
    """Return the storages as without checkpoints: what is rebuilt exists when the backward pass begins."""
    allocated = handed_out.allocated.copy()
    for region in regions:
        allocated[region.inside] = region.begin
    return replace(handed_out, allocated=allocated)


def _parts(trace: Trace, region: _Region) -> tuple[Array, bool]:
    """Return for every launch of a region the number of a smaller region, and True if these are the model's layers.

    Layers are the module calls of a region, else the elements of module lists. Without any, the region is cut into as
    many parts as each of them has launches: that needs the least memory if all launches need as much (Chen et al.
    2016, arXiv:1604.06174, section 4.1).
    """
    columns, launches = trace.columns, region.launches
    within = np.arange(region.start, region.end)
    is_call = (columns["kind"][within] == FORWARD) & (columns["thread"][within] == columns["thread"][launches[0]])
    parts = _numbered(np.searchsorted(within[is_call][1:], launches, side="right"))
    if parts[-1] > 0:
        return parts, True
    _, _, element_of_module = blocks(trace.modules)
    element = element_of_module[columns["module"][launches]]
    named = np.flatnonzero(element >= 0)
    if len(named):
        latest = named[np.maximum(np.searchsorted(named, np.arange(len(launches)), side="right") - 1, 0)]
        parts = _numbered(element[latest])
        if parts[-1] > 0:
            return parts, True
    count = max(math.isqrt(len(launches)), 1)
    return np.arange(len(launches)) * count // len(launches), False


def _numbered(values: Array) -> Array:
    """Return for every value the number of its run of equal values."""
    numbers: Array = np.cumsum(np.append(0, values[1:] != values[:-1]))
    return numbers


def _split(trace: Trace, handed_out: Storages, regions: list[_Region], parts: list[Array]) -> Storages:
    """Return the storages as if every part of the regions had a checkpoint of its own.

    What a part reads of another is kept from the forward pass on. The rest of a part is rebuilt when its own backward
    pass begins.
    """
    allocated, numbers = handed_out.allocated.copy(), trace.columns["object"][handed_out.allocated]
    for region, part in zip(regions, parts, strict=True):
        if not len(region.inside):
            continue
        until = int(min(handed_out.freed[region.inside].max() + 1, len(trace)))
        uses = slice(trace.offsets[region.launches[0]], trace.offsets[until])
        row, storage = trace.use_rows[uses], trace.uses[uses] >> 1
        place = np.minimum(np.searchsorted(numbers[region.inside], storage), len(region.inside) - 1)
        ours = numbers[region.inside][place] == storage
        row, place = row[ours], place[ours]
        own = part[np.searchsorted(region.launches, handed_out.allocated[region.inside])]
        again = np.searchsorted(region.launches, row)
        in_region = (again < len(part)) & (row == region.launches[np.minimum(again, len(part) - 1)])
        passed_on = np.zeros(len(region.inside), dtype=bool)
        passed_on[place[in_region][part[again[in_region]] != own[place[in_region]]]] = True
        in_backward = (row >= region.end) & (trace.columns["phase"][row] == IN_BACKWARD)
        begins = np.full(int(part[-1]) + 1, until)
        inner = in_backward & ~passed_on[place]
        np.minimum.at(begins, own[place[inner]], row[inner])
        starts = np.where(passed_on, region.begin, begins[own])
        allocated[region.inside] = np.minimum(starts, handed_out.freed[region.inside])
    return replace(handed_out, allocated=allocated)
