"""The backward passes of a recorded program, and where the forward pass of each begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.recording.rows import ALLOC, FORWARD, FREE, H2D, IN_BACKWARD, IN_OPTIMIZER, LAUNCH, STEP, STREAM_SYNC

if TYPE_CHECKING:
    from bringup.recording.trace import Trace

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Passes:
    """The backward passes of a recording.

    What autograd's threads launch is part of a pass: a checkpoint computes its forward pass again there. A pass whose
    own launches are differentiated by a later pass (``create_graph=True``, as for a gradient penalty) is part of the
    later one.

    Attributes:
        firsts: the first launch of every pass.
        inside: True for every row that is part of a pass.
        born: for every storage, the first row that uses it.
    """

    firsts: Array
    inside: Array
    born: Array


def find_passes(trace: Trace) -> Passes:
    """Find the backward passes of a recording."""
    launches = np.flatnonzero(trace.columns["kind"] == LAUNCH)
    inside = _in_pass(trace)
    of_launch = inside[launches]
    firsts: Array = launches[of_launch & ~np.concatenate(([False], of_launch))[:-1]]
    born = np.full(len(trace.owned_storages), len(trace), dtype=np.int64)
    np.minimum.at(born, trace.uses >> 1, trace.use_rows)
    return Passes(firsts[~_joined(trace, firsts)], inside, born)


def forward_starts(trace: Trace, passes: Passes) -> Array:
    """Return the first row of the forward pass of every backward pass.

    Passes without a recorded forward pass, such as a second one through the same graph, are left out; if all are, the
    passes themselves are returned.
    """
    firsts = passes.firsts
    ends = np.append(firsts[1:], len(trace))
    previous = np.concatenate(([-1], firsts[:-1]))
    bounds = np.stack((previous, firsts, ends), axis=1).tolist()
    rows = np.unique([forward_start(trace, passes, *three) for three in bounds])
    starts: Array = rows[rows >= 0]
    return starts if len(starts) else firsts


def forward_start(trace: Trace, passes: Passes, since: int, first: int, end: int) -> int:
    """Return the first row of the forward pass after `since` that feeds backward launches from `first` to `end`.

    It begins at the first launch that reads a parameter, because data may be older than the pass, or at the module call
    and the uploads before this launch. If the recording has no parameters, tensors from before count as such.
    -1 if nothing after `since` feeds the backward pass.
    """
    offsets, owned, born = trace.offsets, trace.owned_storages, passes.born
    rows = np.flatnonzero(trace.columns["kind"][since + 1 : end] == LAUNCH) + since + 1
    any_owned = bool(owned.any())
    origins: dict[int, int] = {}  # storage -> the first launch that it depends on and that reads a parameter
    earliest = end
    for row, in_pass in zip(rows.tolist(), passes.inside[rows].tolist(), strict=True):
        uses = trace.uses[offsets[row] : offsets[row + 1]].tolist()
        reads = [use >> 1 for use in uses if not use & 1]
        origin = min((origins[number] for number in reads if number in origins), default=end)
        if in_pass:
            earliest = min(earliest, origin) if row >= first else earliest
            continue
        if origin == end and not (any(owned[number] for number in reads) if any_owned else reads):
            continue
        for number in (use >> 1 for use in uses if use & 1):
            if not owned[number] and (any_owned or born[number] > since):
                origins[number] = min(origin, row, origins.get(number, end))
    return _with_uploads(trace, earliest) if earliest < end else -1


def evaluations(trace: Trace, passes: Passes, marks: Array) -> Array:
    """Return the first backward launch of every evaluation of an optimizer's closure between the marks of its steps.

    Evaluations are told from passes that add up gradients by the optimizer, which changes parameters between them. If
    every step has one evaluation, there is none to return.
    """
    columns, firsts = trace.columns, passes.firsts
    before, after = firsts[:-1], firsts[1:]
    changed = np.concatenate(([0], np.cumsum(changes_parameters(trace))))
    stepped = np.concatenate(([0], np.cumsum(columns["kind"] == STEP)))
    again = (changed[after] > changed[before]) & (stepped[after] == stepped[before]) & (after < marks[-1])
    if not again.any():
        return firsts[:0]
    interval = np.searchsorted(marks, firsts)
    # In the first interval, passes before the one that is followed by another evaluation belong to the set-up.
    is_first = np.concatenate((again, [False])) & (interval == 0)
    is_first[1:] |= interval[1:] != interval[:-1]
    evaluated: Array = firsts[(is_first | np.concatenate(([False], again))) & (interval < len(marks))]
    return evaluated


def changes_parameters(trace: Trace) -> Array:
    """Return for every row True if it is a launch by which an optimizer changes parameters."""
    columns = trace.columns
    changes = np.zeros(len(trace), dtype=bool)
    changes[trace.use_rows[trace.owned_storages[trace.uses >> 1] & ((trace.uses & 1) == 1)]] = True
    changes &= (columns["kind"] == LAUNCH) & (columns["phase"] == IN_OPTIMIZER)
    return changes


def _in_pass(trace: Trace) -> Array:
    """Return for every row True if it is part of a backward pass: by its phase, or as a row of autograd's threads."""
    columns = trace.columns
    kind, thread = columns["kind"], columns["thread"]
    backward: Array = (kind == LAUNCH) & (columns["phase"] == IN_BACKWARD)
    host = np.flatnonzero(np.isin(kind, (LAUNCH, H2D, FORWARD)))
    if not backward.any():
        return backward
    of_autograd = np.setdiff1d(thread[backward], thread[host[:1]])
    inside: Array = backward | np.isin(thread, of_autograd)
    return inside


def _joined(trace: Trace, firsts: Array) -> Array:
    """Return for every backward pass True if it belongs to the one before, since a later pass differentiates both.

    The later pass reads what launches of the former one wrote. Gradients that add up are written, too.
    """
    if len(firsts) < 2:
        return np.zeros(len(firsts), dtype=bool)
    columns = trace.columns
    backward = (columns["kind"] == LAUNCH) & (columns["phase"] == IN_BACKWARD)
    row_of = trace.use_rows
    uses = np.flatnonzero(backward[row_of])
    numbers, written = trace.uses[uses] >> 1, (trace.uses[uses] & 1) == 1
    which = np.searchsorted(firsts, row_of[uses], side="right") - 1
    writer = np.full(len(trace.owned_storages), len(firsts), dtype=np.int64)
    np.minimum.at(writer, numbers[written], which[written])
    reader, source = which[~written], writer[numbers[~written]]
    later = source < reader
    change = np.zeros(len(firsts) + 1, dtype=np.int64)
    np.add.at(change, source[later] + 1, 1)
    np.add.at(change, reader[later] + 1, -1)
    joined: Array = np.cumsum(change)[:-1] > 0
    return joined


def _with_uploads(trace: Trace, row: int) -> int:
    """Return the first row of a forward pass from its first launch: that of its module call and its uploads of data."""
    columns = trace.columns
    kind = columns["kind"]
    owned = trace.owned_storages
    calls = np.flatnonzero(kind[:row] == FORWARD)
    launched = np.flatnonzero(kind[:row] == LAUNCH)
    if len(calls) and (not len(launched) or columns["module"][row] >= 0 or calls[-1] > launched[-1]):
        row = int(calls[-1])
    first = row
    while first > 0 and kind[first - 1] in (H2D, STREAM_SYNC, ALLOC, FREE):
        first -= 1
        storages = trace.uses[trace.offsets[first] : trace.offsets[first + 1]] >> 1
        if kind[first] == H2D:
            if owned[storages].any():
                break
            row = first
    return row
