"""Activations that autograd keeps for a backward pass that never comes; torch.no_grad() would free them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse.holders import Storages, memory_over_time, storages
from bringup.analyse.lifetimes import held_until
from bringup.analyse.summary import MemoryAdvice, Summary
from bringup.recording.rows import (
    BLAS_WORKSPACE,
    FORWARD,
    IN_BACKWARD,
    IN_FORWARD,
    LAUNCH,
    NEVER_RAN,
    NO_NODE,
    RAN,
    REBUILT,
    WITHIN,
)
from bringup.recording.trace import Trace
from bringup.text import quantity, size

Array = npt.NDArray[Any]
LEAST_SHARE = 0.02  # of the peak: a smaller saving is not worth a change
ALWAYS_LAUNCH = ("matmul", "convolution", "depthwise", "attention", "rnn", "sparse")  # families with a backward pass
LEAST_BYTES = 2 << 20  # the smallest segment that the caching allocator takes from the device


def memory_advice(trace: Trace, summary: Summary) -> list[MemoryAdvice]:
    """Advise torch.no_grad() if the peak of device memory falls without the graphs that no backward pass runs.

    Parts of a library's forward pass are left out: the program cannot put torch.no_grad() around them.
    """
    if summary.memory.at is None:
        return []
    handed_out = storages(trace, summary.memory.at.device)
    freed, line = without_graphs(trace, handed_out)
    ours = ~np.isin(line, trace.about.get("library_lines", []))
    freed = np.where(ours, freed, handed_out.freed)
    _, held_bytes = memory_over_time(trace)
    top = int(np.argmax(held_bytes))
    idle = (handed_out.allocated <= top) & (handed_out.freed > top) & (freed <= top)
    saved = handed_out.peak() - replace(handed_out, freed=freed).peak()
    if not is_worth_it(saved, summary):
        return []
    where = most_at(trace, line[idle], handed_out.bytes[idle])
    lines = len(np.unique(line[idle]))
    others = f" and {quantity(lines - 1, 'more line')}" if lines > 1 else ""
    kept_bytes, after = int(handed_out.bytes[idle].sum()), summary.peak_bytes - saved
    return [
        MemoryAdvice(
            f"{size(kept_bytes)} of the peak ({kept_bytes / summary.peak_bytes:.0%}) are activations that autograd "
            "keeps for a backward pass that never comes",
            f"the forward pass{f' at {where}' if where else ''}{others} builds a graph, which model.eval() does not "
            "prevent, and nothing calls backward on it",
            f"torch.no_grad() around it saves about {size(saved)}: the peak is then {size(after)}",
            where,
            kept_bytes,
            after,
            saved,
            key="unused-graph",
        )
    ]


def most_at(trace: Trace, line: Array, weight: Array) -> str:
    """Return the line with the largest total weight; empty if it is not known."""
    lines, place = np.unique(line, return_inverse=True)
    most = int(lines[int(np.bincount(place, weight).argmax())]) if len(lines) else -1
    return trace.lines[most] if most >= 0 else ""


def is_worth_it(saved: int, summary: Summary) -> bool:
    """Return True if so many bytes of the peak are worth a change of the program."""
    return saved >= max(LEAST_SHARE * summary.peak_bytes, LEAST_BYTES)


def without_graphs(trace: Trace, handed_out: Storages) -> tuple[Array, Array]:
    """Return for every storage the row at which it is freed without the graphs that no backward pass runs.

    Without its graph, an activation is freed where the program drops it, see `held_until`. If nothing reads it, it is a
    result that the program itself holds. Memory that an operator allocates for its backward pass only is not needed.

    Also return the lines of the forward passes that make these activations; -1 for other storages.
    """
    if not _products(trace, NEVER_RAN).any():
        return handed_out.freed, np.full(len(handed_out.freed), -1)
    number = trace.columns["object"][handed_out.allocated]
    row, storage, writes = _uses(trace)
    count = int(max(storage.max(initial=-1), number.max(initial=-1))) + 1
    unused = _unused(trace, _marked(number[handed_out.freed == len(trace)], count))
    written = unused[row] & writes & _in_graphs(trace, count)[storage]
    writer = np.full(count, -1, dtype=np.int64)
    writer[storage[written]] = row[written]
    last_use = np.full(count, -1, dtype=np.int64)
    np.maximum.at(last_use, storage, row)
    needed = _marked(storage[_runs(trace)[row]], count)
    is_read = _marked(storage[unused[row] & ~writes], count)
    dies = (writer >= 0) & is_read & ~needed
    until = np.full(count, len(trace))
    until[dies] = held_until(trace, writer[dies], last_use[dies])
    until = until[number]
    by = writer[number]
    inside = _next_launch(trace, handed_out.allocated)
    of_program = handed_out.kind != BLAS_WORKSPACE
    only_for_backward = (last_use[number] < 0) & np.append(unused, False)[inside] & of_program
    until = np.where(only_for_backward, handed_out.allocated, until)
    by = np.where(only_for_backward, inside, by)
    sooner = until < handed_out.freed
    line = np.where(sooner, _lines(trace, unused)[by], -1)
    return np.minimum(until, handed_out.freed), line


def _uses(trace: Trace) -> tuple[Array, Array, Array]:
    """Return the rows, storages and directions (True: written) of all uses."""
    return trace.use_rows, trace.uses >> 1, (trace.uses & 1) == 1


def _marked(storages_: Array, count: int) -> Array:
    marks = np.zeros(count, dtype=bool)
    marks[storages_] = True
    return marks


def nodes_of(trace: Trace) -> Array:
    """Return for every row its part in autograd's graph, `NO_NODE` for rows that are no launches."""
    nodes: Array = np.where(trace.columns["kind"] == LAUNCH, trace.columns["bytes"], NO_NODE)
    return nodes


def _runs(trace: Trace) -> Array:
    """Return for every row True if it is a launch in a backward pass, or one whose node a backward pass runs."""
    in_backward = (trace.columns["kind"] == LAUNCH) & (trace.columns["phase"] == IN_BACKWARD)
    runs: Array = in_backward | np.isin(nodes_of(trace), (RAN, REBUILT, WITHIN))
    return runs


def _products(trace: Trace, node: int) -> Array:
    """Return for every row True if it is a product of the forward pass with this part in autograd's graph."""
    launched = (trace.columns["kind"] == LAUNCH) & (trace.columns["phase"] == IN_FORWARD)
    is_product = np.append(trace.work.is_family(*ALWAYS_LAUNCH), False)[trace.columns["signature"]]
    products: Array = is_product & launched & (nodes_of(trace) == node)
    return products


def _unused(trace: Trace, alive: Array) -> Array:
    """Return for every row True if it is a launch of a graph, or of a part of one, that no backward pass runs.

    Nodes that launch nothing in the backward pass, such as those of additions, never seem to run. So a part counts only
    if it has a product, whose backward pass always launches. Compiled autograd runs other launches than the nodes': it
    has products without a node that read what other launches of the graph read. A graph that lives when the recording
    ends counts only if the program has ended, without an error or a signal.

    Args:
        trace: the recording.
        alive: True for every storage that lives when the recording ends.
    """
    row, storage, writes = _uses(trace)
    edge = _in_graphs(trace, len(alive))[storage] & (nodes_of(trace) == NEVER_RAN)[row]
    launches, place = np.unique(row[edge], return_inverse=True)
    part = _connected(place, storage[edge], len(launches), len(alive))
    has_product, goes_on = (np.zeros(len(launches), dtype=bool) for _ in range(2))
    has_product[part[_products(trace, NEVER_RAN)[launches]]] = True
    goes_on[part[place[alive[storage[edge]]]]] = trace.about.get("failed") is not False or bool(
        trace.about.get("stopped_by")
    )
    by_others = _marked(storage[_products(trace, NO_NODE)[row] & ~writes], len(alive))[storage[edge]] & ~writes[edge]
    runs_compiled = np.zeros(len(launches), dtype=bool)
    runs_compiled[part[place[by_others]]] = True
    unused = np.zeros(len(trace), dtype=bool)
    unused[launches] = (has_product & ~goes_on & ~runs_compiled)[part]
    return unused


def _in_graphs(trace: Trace, count: int) -> Array:
    """Return for every storage True if a launch with a node writes it and it is neither parameter nor buffer."""
    row, storage, writes = _uses(trace)
    in_graphs = _marked(storage[writes & (nodes_of(trace) != NO_NODE)[row]], count)
    in_graphs[: len(trace.owned_storages)] &= ~trace.owned_storages[:count]
    return in_graphs


def _connected(member: Array, group: Array, members: int, groups: int) -> Array:
    """Return for every member the first member that is connected with it, where members of a group are connected."""
    first = np.arange(members)
    while True:
        least = np.full(groups, members)
        np.minimum.at(least, group, first[member])
        nearer = first.copy()
        np.minimum.at(nearer, member, least[group])
        np.minimum.at(nearer, first[member], least[group])
        nearer = nearer[nearer]
        if (nearer == first).all():
            return first
        first = nearer


def _next_launch(trace: Trace, rows: Array) -> Array:
    """Return the next launch of the same thread after each row; the number of rows if there is none."""
    thread, is_launch = trace.columns["thread"], trace.columns["kind"] == LAUNCH
    following = np.full(len(rows), len(trace))
    for number in np.unique(thread[rows]):
        launches = np.append(np.flatnonzero(is_launch & (thread == number)), len(trace))
        here = thread[rows] == number
        following[here] = launches[np.searchsorted(launches, rows[here])]
    return following


def _lines(trace: Trace, unused: Array) -> Array:
    """Return for every row the line to change: that of its outermost module call, if all of the call is unused."""
    columns = trace.columns
    kind, thread = columns["kind"], columns["thread"]
    lines = columns["line"].astype(np.int64)
    in_module, runs = columns["module"] >= 0, _runs(trace)
    for number in np.unique(thread[unused]):
        calls = np.flatnonzero((kind == FORWARD) & (thread == number))
        rows = np.flatnonzero((thread == number) & (kind == LAUNCH) & in_module)
        call = np.searchsorted(calls, rows) - 1
        rows, call = rows[call >= 0], call[call >= 0]
        runs_too = np.zeros(len(calls), dtype=bool)
        runs_too[call[runs[rows]]] = True
        moved = unused[rows] & ~runs_too[call] & (lines[calls[call]] >= 0)
        lines[rows[moved]] = lines[calls[call[moved]]]
    return lines
