"""The batch that a step works on, read from its launches."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.cost.signature import Signature, Tensor
from bringup.recording.rows import IN_BACKWARD, IN_FORWARD, LAUNCH, REBUILT
from bringup.recording.trace import Trace
from bringup.timeline.replay import Timeline

Array = npt.NDArray[Any]
PRODUCTS = ("convolution", "depthwise", "matmul", "attention")
DATA = ("input", "mat1", "batch1", "query", "self")  # names of the argument whose first axis has the samples
FACTORS = ("weight", "mat2")


@dataclass(frozen=True)
class _Result:
    """The first axis of a product's data; `in_batches` for a product of batches of matrices."""

    rows: int
    in_batches: bool


def samples(timeline: Timeline, first: int, last: int) -> int:
    """Return the batch of the rows from `first` to `last`; 0 if the launches of the forward pass do not agree on one.

    It is the first axis of an embedding's indices or of the first product, or the batch axis of a recurrent layer. That
    of every product and of the loss has to be a multiple of it, as rows of tokens and heads are. Of an axis with time
    first, a graph's nodes, or calls with different batches, not all are. A product of batches has heads times samples,
    so its first axis counts only as a multiple; its result may be read as samples and heads.
    """
    trace = timeline.trace
    columns, owned = trace.columns, trace.owned_storages
    launches = np.flatnonzero(columns["kind"][first:last] == LAUNCH) + first
    candidates: list[int] = []
    multiples: set[int] = set()
    rows_of: dict[int, int] = {}  # storage of a factor -> first axis of the data that it multiplies
    casts: dict[int, int] = {}  # copy of a parameter, such as autocast makes -> the parameter
    results: dict[int, _Result] = {}  # storage of a product's result
    related: set[int] = set()  # sizes of matrices that are decomposed or solved
    folded: set[int] = set()  # rows of products that are samples times something, such as tokens
    recurrent: set[int] = set()  # batches of recurrent layers
    calls: dict[int, int] = {}  # storage of a parameter -> how often it is a factor
    forward = launches[columns["phase"][launches] == IN_FORWARD]
    for row in forward[_tells(timeline)[columns["signature"][forward]] | _uses_owned(trace, forward)].tolist():
        number = int(columns["signature"][row])
        signature = trace.signatures[number]
        uses = trace.uses[trace.offsets[row] : trace.offsets[row + 1]].tolist()
        sources = {casts.get(use >> 1, use >> 1) for use in uses if not use & 1}
        if len(sources) == 1 and owned[min(sources)]:
            casts |= dict.fromkeys((use >> 1 for use in uses if use & 1), min(sources))
        candidates += _looked_up(signature)
        for result, size in _unfolded(trace, row, signature, results):
            folded.add(result.rows)
            candidates += [size] if result.in_batches else []
        family = timeline.work.works[number].family
        if family in ("linalg", "sparse"):  # samples depend on each other where a matrix has a row for each
            related |= {size for tensor in signature.tensors for size in tensor.shape[-2:]}
        if family == "rnn" and (size := _of_recurrent(signature)) > 1:  # one sequence may be a call without a batch
            candidates.append(size)
            multiples.add(size)
            recurrent.add(size)
        data = _first(signature, DATA) if family in PRODUCTS else None
        if data is None:
            continue
        in_batches = len(data.shape) == 3 and data.shape[0] > 1 and family in ("matmul", "attention")
        size = data.shape[1] if data.shape[0] == 1 and len(data.shape) == 3 and family == "matmul" else data.shape[0]
        results |= {use >> 1: _Result(size, in_batches) for use in uses if use & 1}
        later = family in ("convolution", "depthwise") and size > 1  # rows of the first product may be samples' parts
        candidates += [size] if (later or not multiples) and not in_batches else []
        multiples.add(size)
        factor = _first(signature, FACTORS)
        if factor is None or factor.storage < 0:
            continue
        storage = _storage(trace, row, factor)
        if storage < 0:
            continue
        storage = casts.get(storage, storage)
        if owned[storage] and columns["bytes"][row] != REBUILT:
            calls[storage] = calls.get(storage, 0) + 1
        mixes = len(data.shape) == 2 and data.shape[1] == size and not owned[storage]  # samples with samples
        if mixes or rows_of.setdefault(storage, size) != size:
            return 0
    multiples |= _loss(trace, launches, owned, recurrent)
    agreed = (
        size
        for size in candidates
        if size and size not in folded | related and not any(other % size for other in multiples)
    )
    size = next(agreed, 0)
    trains = bool((columns["phase"][launches] == IN_BACKWARD).any())
    in_turn = trains and min(calls.values(), default=0) > batches(timeline, first, last)
    return 0 if size == 1 and in_turn else size  # samples that come one by one, such as a game's steps, are not 1


def _tells(timeline: Timeline) -> Array:
    """Return for every signature True if its launches may tell the batch by themselves."""
    families = (*PRODUCTS, "linalg", "sparse", "rnn")
    return np.asarray(
        [
            work.family in families
            or any(len(tensor.shape) > 2 and not tensor.written for tensor in signature.tensors)
            or any(True for _ in _looked_up(signature))
            for signature, work in zip(timeline.trace.signatures, timeline.work.works, strict=True)
        ],
        dtype=bool,
    )


def _uses_owned(trace: Trace, rows: Array) -> Array:
    """Return True for all rows if one uses a module's storage, whose copies are the module's, too."""
    used = trace.uses[trace.offsets[rows[0]] : trace.offsets[rows[-1] + 1]] >> 1 if len(rows) else trace.uses[:0]
    return np.full(len(rows), bool(trace.owned_storages[used].any()))


def batches(timeline: Timeline, first: int, last: int) -> int:
    """Return how many batches the rows from `first` to `last` accumulate the gradients of; 1 if they do not.

    Each has a forward and a backward pass, and the forward passes have the same products at the same lines.
    """
    trace = timeline.trace
    columns = trace.columns
    if timeline.steps.evaluations > 1:  # of one batch, by the optimizer
        return 1
    rows = np.flatnonzero(columns["kind"][first:last] == LAUNCH) + first
    rows = rows[np.isin(columns["phase"][rows], (IN_FORWARD, IN_BACKWARD))]
    forward = (columns["phase"][rows] == IN_FORWARD) & (columns["bytes"][rows] != REBUILT)  # not those of checkpoints
    heavy = np.asarray([work.family in (*PRODUCTS, "gather") for work in timeline.work.works], dtype=bool)
    begins = forward & np.concatenate(([True], ~forward[:-1]))
    passes: list[list[tuple[int, int]]] = [[] for _ in range(int(begins.sum()))]
    counted = forward & heavy[columns["signature"][rows]] if len(rows) else forward
    for number, row in zip((np.cumsum(begins) - 1)[counted].tolist(), rows[counted].tolist(), strict=True):
        passes[number].append((int(columns["signature"][row]), int(columns["line"][row])))
    passes = [item for item in passes if item]  # between two passes, there may be launches of the program's own
    trains = len(rows) and not forward.all()
    return len(passes) if trains and len(passes) > 1 and all(item == passes[0] for item in passes) else 1


def _of_recurrent(signature: Signature) -> int:
    """Return the size of a recurrent layer's batch axis; 0 if its sequences are packed."""
    shape = signature.required("input").shape
    return shape[0 if signature.args.get("batch_first") else 1] if len(shape) == 3 else 0


def _unfolded(
    trace: Trace, row: int, signature: Signature, results: dict[int, _Result]
) -> Iterator[tuple[_Result, int]]:
    """Yield the products whose result the launch reads with its first axis split into several, and the first of them.

    Of a product of batches, the axes are ``[samples, heads, rows, columns]``.
    """
    for tensor in signature.tensors:
        if tensor.written or tensor.storage < 0 or len(tensor.shape) < 3:
            continue
        result = results.get(_storage(trace, row, tensor))
        if result is None or tensor.shape[0] == result.rows or (result.in_batches and len(tensor.shape) != 4):
            continue
        if result.rows in itertools.accumulate(tensor.shape[:-1], operator.mul):
            yield result, tensor.shape[0]


def _looked_up(signature: Signature) -> Iterator[int]:
    """Yield the first axis of an embedding's indices, also inside of a fused kernel."""
    for item in (signature, *signature.inner):
        indices = item.tensor("indices") if item.base == "embedding" else None
        if indices is not None and indices.shape:
            yield indices.shape[0]


def _first(signature: Signature, names: tuple[str, ...]) -> Tensor | None:
    tensors = map(signature.tensor, names)
    return next((tensor for tensor in tensors if tensor is not None and tensor.shape), None)


def _storage(trace: Trace, row: int, tensor: Tensor) -> int:
    """Return the number of the storage of a launch's tensor on the chip; -1 if the recording does not have it."""
    place = trace.offsets[row] + tensor.storage
    return int(trace.uses[place]) >> 1 if place < trace.offsets[row + 1] else -1


def _loss(trace: Trace, launches: Array, owned: Array, recurrent: set[int]) -> set[int]:
    """Return the first axis of the last reduction to a number before the first backward launch, if there is one.

    It is the second one if that is the batch of a recurrent layer, whose results have time first. Reductions of
    parameters, such as a penalty of their norm, do not count.
    """
    columns = trace.columns
    backward = launches[columns["phase"][launches] == IN_BACKWARD]
    if not len(backward):
        return set()
    for row in launches[launches < backward[0]][::-1].tolist():
        signature = trace.signatures[int(columns["signature"][row])]
        read = [tensor for tensor in signature.tensors if tensor.shape and tensor.storage >= 0]
        reduces = read and signature.results and not any(tensor.shape for tensor in signature.results)
        storages = [_storage(trace, row, tensor) for tensor in read]
        if reduces and not any(number >= 0 and owned[number] for number in storages):
            shape = read[0].shape
            return {shape[1]} if len(shape) > 1 and shape[1] in recurrent else {shape[0]}
    return set()
