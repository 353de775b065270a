"""Plans: what the host computes when a library of the chip sees an attention of a new shape.

cuDNN keeps its plans per thread, by the shapes and strides of the tensors (PyTorch,
aten/src/ATen/native/cudnn/MHA.cpp).
A program that decodes token by token has a new shape in every step.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.cost.attention import plan_of
from bringup.recording.rows import LAUNCH

if TYPE_CHECKING:
    from bringup.cost import Signature
    from bringup.recording.trace import Trace

Array = npt.NDArray[Any]


class Plans:
    """The plans that the threads of a program have so far."""

    def __init__(self) -> None:
        self.number: dict[Hashable, int] = {}
        self.of_signature: list[int] = []  # number of the plan, or -1
        self.built: set[tuple[int, int]] = set()  # (thread, number)

    def first_uses(self, trace: Trace) -> Array:
        """Return the rows that build a plan; traces of one program come one after another, with growing signatures."""
        self._add(trace.signatures[len(self.of_signature) :])
        columns = trace.columns
        rows = np.flatnonzero((columns["kind"] == LAUNCH) & (columns["object"] == 0))  # a replayed graph has its plans
        plan = np.asarray(self.of_signature, dtype=np.int64)[columns["signature"][rows]] if len(rows) else rows
        rows, plan = rows[plan >= 0], plan[plan >= 0]
        pairs = np.stack([columns["thread"][rows].astype(np.int64), plan], axis=1)
        keys, first = np.unique(pairs, axis=0, return_index=True)
        new = [
            row for key, row in zip(map(tuple, keys.tolist()), rows[first].tolist(), strict=True) if self._builds(key)
        ]
        return np.sort(np.asarray(new, dtype=np.int64))

    def _add(self, signatures: Sequence[Signature]) -> None:
        for signature in signatures:
            plan = plan_of(signature)
            self.of_signature.append(-1 if plan is None else self.number.setdefault(plan, len(self.number)))

    def _builds(self, key: tuple[int, int]) -> bool:
        if key in self.built:
            return False
        self.built.add(key)
        return True
