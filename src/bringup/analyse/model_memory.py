"""The memory of a model by name: its parts, its peak, and the largest batch and length that fit a chip."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bringup.analyse.holders import Storages, memory_over_time, storages
from bringup.analyse.models import OPTIMIZERS, Model, Work, first_line, prepared, step
from bringup.device.dry import dry
from bringup.errors import BringupError
from bringup.recording.recording import record
from bringup.recording.rows import (
    ACTIVATIONS,
    BLAS_WORKSPACE,
    BUFFERS,
    GRADIENTS,
    INPUTS,
    KEPT,
    OPTIMIZER_STATE,
    OUTSIDE,
    PARAMETERS,
    WORKSPACE,
)
from bringup.recording.trace import Trace

Array = npt.NDArray[Any]
STEPS = 2  # the optimizer's state exists from the second step on
BATCHES = (2, 10)  # sizes are read at these; apart, because blocks are rounded to 512 bytes; 1 may need fewer copies
LENGTHS = (128, 512, 1024)  # three, because attention may grow with the square of the length
MOST = 1 << 20
PARTS = {
    "weights": (PARAMETERS, BUFFERS),
    "gradients": (GRADIENTS,),
    "optimizer": (OPTIMIZER_STATE,),
    "activations": (ACTIVATIONS, KEPT, INPUTS),
    "workspace": (WORKSPACE, OUTSIDE, BLAS_WORKSPACE),
}


@dataclass(frozen=True)
class ModelMemory:
    """The memory of one model, batch and length.

    Attributes:
        model, work: what is recorded.
        batch: number of sequences or images.
        tokens: tokens per sequence.
    """

    model: Model
    work: Work
    batch: int
    tokens: int

    @cached_property
    def trace(self) -> Trace:
        """The recording of two steps, or of one forward pass."""
        return recorded(self.model, self.work, self.batch, self.tokens)

    @cached_property
    def parts(self) -> dict[str, int]:
        """The most bytes that each of `PARTS` holds at once. Their peaks may lie at different moments."""
        held = storages(self.trace, 0)
        return {
            name: replace(held, before=0).peak(np.isin(held.kind, kinds).astype(float)) for name, kinds in PARTS.items()
        }

    @cached_property
    def peak_bytes(self) -> int:
        """The most bytes that all tensors hold at once."""
        return memory_over_time(self.trace)[0]

    def largest_batch(self, room: int) -> int | None:
        """Return the largest batch whose peak is at most `room` bytes; 0 if none is, None if it is not known."""
        return self._by_batch.largest(room, MOST) if self._by_batch else None

    def largest_length(self, room: int) -> int | None:
        """Return the same for the number of tokens per sequence, which the model limits, too."""
        if not self.model.most_tokens or not self._by_length:
            return None
        return self._by_length.largest(room, self.model.most_tokens)

    @cached_property
    def _by_batch(self) -> Growth | None:
        return growth({batch: recorded(self.model, self.work, batch, self.tokens) for batch in BATCHES})

    @cached_property
    def _by_length(self) -> Growth | None:
        most = min(self.model.most_tokens, LENGTHS[-1])
        lengths = sorted({max(length * most // LENGTHS[-1], 1) for length in LENGTHS})
        if len(lengths) < len(LENGTHS):
            return None
        return growth({length: recorded(self.model, self.work, self.batch, length) for length in lengths})


@dataclass(frozen=True)
class Growth:
    """The storages of recordings that differ in one number only; the sizes between and beyond follow from a polynomial.

    Attributes:
        points: the numbers that were recorded.
        sizes: one row per point, one column per storage, in bytes.
        storages: the storages of one of the recordings.
    """

    points: tuple[int, ...]
    sizes: Array
    storages: Storages

    def peak(self, value: int) -> int:
        """Return the peak in bytes for another number: Lagrange's polynomial through the points, per storage."""
        size = np.zeros(self.sizes.shape[1])
        for i, point in enumerate(self.points):
            others = [other for other in self.points if other != point]
            size += self.sizes[i] * float(np.prod([(value - other) / (point - other) for other in others]))
        return self.storages.peak(np.maximum(size, 0.0) / self.storages.bytes)

    def largest(self, room: int, most: int) -> int:
        """Return the largest number from 1 to `most` whose peak is at most `room` bytes; 0 if none is."""
        if self.peak(1) > room:
            return 0
        low, high = 1, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.peak(middle) <= room else (low, middle)
        return low


def growth(traces: dict[int, Trace]) -> Growth | None:
    """Return how storages grow; None if the recordings do not allocate and free in the same order."""
    by_point = {point: storages(trace, 0) for point, trace in traces.items()}
    first, *others = by_point.values()
    for other in others:
        if len(other.bytes) != len(first.bytes) or not (
            np.array_equal(_lives(other), _lives(first)) and np.array_equal(other.kind, first.kind)
        ):
            return None
    return Growth(tuple(by_point), np.stack([item.bytes for item in by_point.values()]).astype(float), first)


def _lives(held: Storages) -> Array:
    """Return how many allocations precede each free; the order of frees without an allocation between is no matter."""
    lives: Array = np.searchsorted(held.allocated, held.freed)
    return lives


def recorded(model: Model, work: Work, batch: int, tokens: int) -> Trace:
    """Record a model's steps in a dry run, on the chip of the process, whose memory should be as large as possible.

    Raises:
        BringupError: the model's own code raised an error.
    """
    with _clean(), dry(), record() as trace:
        try:
            module = prepared(model, work)
            trained = [item for item in module.parameters() if item.requires_grad]
            optimizer = OPTIMIZERS[work.optimizer](trained, lr=1e-4) if work.train else None
            for _ in range(STEPS if work.train else 1):
                result = step(module, work, model.inputs(batch, tokens), optimizer)
        except BringupError:
            raise
        except Exception as error:  # of the model's own code
            length = f" and {tokens} tokens" if tokens else ""
            raise BringupError(f"{model.title} cannot run with batch {batch}{length}: {first_line(error)}") from None
        torch.chip.synchronize()  # type: ignore[attr-defined]
        del result
    return trace


@contextmanager
def _clean() -> Iterator[None]:
    """Free what earlier recordings left behind, so that every recording begins with no memory."""
    gc.collect()
    torch.ops.bringup.clear_workspaces()
    torch.chip.empty_cache()  # type: ignore[attr-defined]
    yield
