"""The period of a recording: the series of launches, uploads and module calls that a program repeats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.recording.rows import FORWARD, H2D, LAUNCH, OWNER

if TYPE_CHECKING:
    from bringup.recording.trace import Trace

Array = npt.NDArray[Any]
MOST_CANDIDATES = 32
LEAST_MATCH = 0.9  # of a repeated part: an evaluation or a logged value may interrupt it
LEAST_COVER = 0.75  # of a recording: a program of several loops has no steps
NEARLY = 0.99  # of the best match: twice the period matches as well as the period
LEAST_LAUNCHES = 2  # one launch that is repeated is no step


@dataclass(frozen=True)
class Period:
    """A repeated series.

    Attributes:
        starts: the first row of every repetition.
        end: the row after the last repetition.
        calls: outermost module calls of one repetition.
    """

    starts: Array
    end: int
    calls: int


def find_period(trace: Trace) -> Period | None:
    """Return the shortest series that explains most of a recording; None if the recording repeats nothing.

    Launches are equal if they have the same operator, line and constants. Shapes may differ: lengths and the last batch
    do. Constants are parameters, buffers and other tensors that are read from the beginning to the end. They tell the
    layers of a model, which differ, from the steps of a program, which use the same layers again. Reads of values do
    not count, because programs print them now and then.
    """
    kind = trace.columns["kind"]
    rows = np.flatnonzero(np.isin(kind, (LAUNCH, H2D, FORWARD)))
    tokens = _tokens(trace)[rows]
    calls, launches = kind[rows] == FORWARD, kind[rows] == LAUNCH
    periods = []
    for length in _candidates(tokens):
        matches = np.flatnonzero(tokens[length:] == tokens[:-length])
        if len(matches) < length:  # less than two repetitions
            continue
        first, last = int(matches[0]), int(matches[-1]) + length + 1
        covers = len(matches) >= LEAST_MATCH * (last - first - length)
        one = slice(first, first + length)
        # A series inside of one module call, such as the cells of a recurrent network, is no step.
        whole = bool(calls[one].any() or not calls.any()) and int(launches[one].sum()) >= LEAST_LAUNCHES
        if not (covers and whole):
            continue
        starts = _starts(tokens, first, last, length)
        end = min(int(starts[-1]) + length, len(rows))
        row_after = int(rows[end]) if end < len(rows) else len(trace)
        period = Period(rows[starts], row_after, int(calls[one].sum()))
        if len(starts) * length >= LEAST_COVER * len(tokens) and _shares(trace, period):
            periods.append((len(matches) + length, length, period))
    if not periods:
        return None
    best = max(score for score, _, _ in periods)
    return min((item for item in periods if item[0] >= NEARLY * best), key=lambda item: item[1])[2]


def _starts(tokens: Array, first: int, last: int, length: int) -> Array:
    """Return where the repetitions begin, by the first token that a repetition has once, else at equal distances."""
    once, counts = np.unique(tokens[first : first + length], return_counts=True)
    unique = np.isin(tokens[first : first + length], once[counts == 1])
    if not unique.any():
        return np.arange(first, last - length + 1, length)
    after = int(np.argmax(unique))
    places = np.flatnonzero(tokens[first:last] == tokens[first + after]) + first - after
    return places[places >= first]


def _shares(trace: Trace, period: Period) -> bool:
    """Return True if repetitions read the same tensors, or none from before. Layers of one pass read different ones."""
    since = int(trace.offsets[period.starts[0]])
    uses = trace.uses[since : trace.offsets[period.end]]
    row_of = trace.use_rows[since : since + len(uses)]
    read = np.flatnonzero((uses & 1) == 0)
    older = ~np.isin(uses >> 1, uses[(uses & 1) == 1] >> 1)[read]
    repetition = np.searchsorted(period.starts, row_of[read][older], side="right")
    pairs = np.unique(np.stack((uses[read][older] >> 1, repetition)), axis=1)
    _, counts = np.unique(pairs[0], return_counts=True)
    return not len(counts) or int(counts.max()) > 1


def _candidates(tokens: Array) -> list[int]:
    """Return the most frequent distances between a token and its next occurrence."""
    order = np.argsort(tokens, kind="stable")
    again = tokens[order][1:] == tokens[order][:-1]
    counts = np.bincount(np.diff(order)[again]) if again.any() else np.zeros(0, np.int64)
    most = np.argsort(-counts, kind="stable")[:MOST_CANDIDATES]
    return [int(distance) for distance in most if counts[distance]]


def _tokens(trace: Trace) -> Array:
    """Return a number for every row that is equal for launches with equal operator, line and constants."""
    columns, rows = trace.columns, len(trace)
    ops = {op: number for number, op in enumerate(dict.fromkeys(item.op for item in trace.signatures))}
    op_of = np.asarray([*(ops[item.op] for item in trace.signatures), -1], dtype=np.int64)
    row_of = trace.use_rows
    is_constant = _constants(trace, row_of)
    with np.errstate(over="ignore"):
        mixed = np.zeros(rows, dtype=np.uint64)
        calls = np.where(columns["kind"] == FORWARD, columns["object"], -1)  # the class of the module
        for values in (columns["kind"], op_of[columns["signature"]], columns["line"], calls):
            mixed = _mix(mixed + values.astype(np.int64).view(np.uint64))
        numbers = trace.uses >> 1
        hashes = np.where(is_constant[numbers], _mix(numbers.view(np.uint64)), np.uint64(0))
        sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(hashes, dtype=np.uint64)))
        return mixed + sums[trace.offsets[1:]] - sums[trace.offsets[:-1]]


def _mix(values: Array) -> Array:
    """Spread 64-bit numbers, so that sums of different ones differ: splitmix64's finalizer (Steele et al., 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = values ^ (values >> np.uint64(31))
    return mixed


def _constants(trace: Trace, row_of: Array) -> Array:
    """Return for every storage True if it is a parameter or buffer, or is only read, for a third of the launches."""
    columns = trace.columns
    owned = columns["object"][columns["kind"] == OWNER]
    numbers, written = trace.uses >> 1, (trace.uses & 1) == 1
    size = int(max(numbers.max(initial=-1), owned.max(initial=-1))) + 1
    launched = np.cumsum(columns["kind"] == LAUNCH)
    at = launched[row_of]
    total = int(launched[-1]) if len(launched) else 0
    first_read, last_read, last_write = (np.full(size, value, dtype=np.int64) for value in (total + 1, -1, -1))
    np.minimum.at(first_read, numbers[~written], at[~written])
    np.maximum.at(last_read, numbers[~written], at[~written])
    np.maximum.at(last_write, numbers[written], at[written])
    constant = (last_write < first_read) & (3 * (last_read - first_read) >= total)
    constant[owned] = True
    return constant
