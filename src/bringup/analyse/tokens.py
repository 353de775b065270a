"""The tokens of a language model's step, and the ranks that share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.cost.collective import ranks_of
from bringup.cost.signature import Signature
from bringup.recording.rows import IN_BACKWARD, IN_FORWARD, LAUNCH, REBUILT
from bringup.timeline.replay import Timeline

Array = npt.NDArray[Any]
REDUCTIONS = ("all_reduce", "reduce_scatter")


@dataclass(frozen=True)
class Tokens:
    """The tokens of a step.

    Attributes:
        count: tokens that the rank looks up, in all batches of a step; None if it looks up none.
        sharing: ranks that work on the same tokens, as those of tensor parallelism do.
        in_pipeline: True if ranks send each other tensors, so that more ranks may work on the same tokens.
    """

    count: int | None
    sharing: int
    in_pipeline: bool


def tokens(timeline: Timeline, first: int, last: int) -> Tokens:
    """Return the tokens in the rows from `first` to `last`.

    They are the elements of an embedding's indices, which are a batch of sequences. If several embeddings look them up,
    as those of positions do, the largest number counts. Ranks share tokens if their group adds up activations in
    the forward pass; data-parallel ranks add up gradients after it.
    """
    trace, columns = timeline.trace, timeline.trace.columns
    launches = np.flatnonzero(columns["kind"][first:last] == LAUNCH) + first
    signature, phase = columns["signature"][launches], columns["phase"][launches]
    forward = (phase == IN_FORWARD) & (columns["bytes"][launches] != REBUILT)
    backward = np.flatnonzero(phase == IN_BACKWARD)
    by_table: dict[int, int] = {}  # by the storage of an embedding's vectors
    looked_up = np.asarray([_indices(item) for item in trace.signatures], dtype=np.int64)
    for row in launches[forward & (looked_up[signature] > 0)].tolist():
        number = int(columns["signature"][row])
        uses = trace.uses[trace.offsets[row] : trace.offsets[row + 1]].tolist()
        table = uses[0] >> 1 if uses else -1  # the first argument, also of a fused kernel
        by_table[table] = by_table.get(table, 0) + int(looked_up[number])
    count = max(by_table.values(), default=0)
    before_backward = np.arange(len(launches)) <= (backward[-1] if len(backward) else len(launches))
    used = {int(number) for number in np.unique(signature)}
    acting = {int(number) for number in np.unique(signature[forward & before_backward])}
    collectives = {i: trace.signatures[i] for i in used if trace.signatures[i].op.startswith("c10d::")}
    sizes = [
        len(ranks_of(item))
        for i, item in collectives.items()
        if i in acting and item.name in REDUCTIONS and int(item.args["bytes"]) >= max(count, 1)
    ]
    in_pipeline = any(item.name in ("send", "recv") for item in collectives.values())
    return Tokens(count or None, max(sizes, default=1), in_pipeline)


def _indices(signature: Signature) -> int:
    """Return how many tokens an embedding looks up, also inside of a fused kernel; 0 for others."""
    sizes = [
        indices.numel
        for item in (signature, *signature.inner)
        if item.base == "embedding" and (indices := item.tensor("indices")) is not None and len(indices.shape) == 2
    ]
    return max(sizes, default=0)
