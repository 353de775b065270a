"""The classes of chips: the interface that pricing and the replay use, and the registry.

A class of chips is one file that registers a `ChipClass`. `bringup.pricing` imports the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.cost import FAMILIES
from bringup.cost.work_table import WorkTable
from bringup.pricing.constants import Constants

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

Array = npt.NDArray[Any]
Products = tuple[Array, Array, Array, Array]  # see `ChipClass.products`

# Filled share of the last cache up to which a second pass hits, and from which it misses. From layer norm and softmax
# by row length on P100, V100, T4 and A100 (github.com/sitar-lab/NeuSight).
CACHE_HOLDS = (0.25, 0.5)


def named_streams(constants: Constants) -> dict[str, float]:
    """Return the share of the sustained bandwidth of each family, from `Constants`."""
    return {family: getattr(constants, f"streams_{family}", 1.0) for family in FAMILIES}


def missed_bytes(table: WorkTable, chip: Chip) -> Array:
    """Return for every signature the bytes of later passes that miss the last cache."""
    if chip.cache is None:
        return np.zeros(len(table.works))
    filled = table.in_flight * chip.compute.cores / (chip.cache.mib * 2**20)
    low, high = CACHE_HOLDS
    missed = np.where(table.again_bytes > 0, np.clip((filled - low) / (high - low), 0.0, 1.0), 0.0)
    return table.again_bytes * missed


def nothing(table: WorkTable, *_: object) -> Array:
    """Return 0 for every signature."""
    return np.zeros(len(table.works))


def never_warm(table: WorkTable) -> Array | None:
    """Return None, because launches do not find their tensors in the last cache."""
    return None


@dataclass(frozen=True, kw_only=True)
class ChipClass:
    """The parts of the analytic model that differ between classes of chips.

    Arrays have one entry per signature; those of `products` have one per product.

    Attributes:
        products: (table, chip, peaks, constants) -> seconds of every product, the share of the cores that it keeps
            busy, further seconds that overlap with nothing, and the number of kernels that add its parts. ``peaks`` is
            the peak flop/s for every product's dtype.
        sustained: rate of the best large product over peak, for a chip file without this value.
        overlap: the p of Note [The analytic model].
        streams: family -> share of the sustained bandwidth that its kernels reach.
        again_bytes: bytes of later passes over a row that come from memory. Default: those that miss the last cache.
        pass_seconds: latency of later passes over a row. Default: none.
        core_seconds: (table, chip, reached, constants) -> seconds in which the cores compute offsets or wait for single
            accesses; ``reached`` is the share of the cores that a launch reaches. Default: none.
        sector_seconds: seconds in which the last cache moves sectors of scattered elements. Default: none.
        exposed_seconds: seconds in which neither engines nor memory work. Default: none.
        warm: True where a launch finds its tensors in the last cache if they fit there. Default: None, nowhere.
        bias_apart: True if a kernel of its own adds the bias of a convolution. PyTorch calls cuDNN and MIOpen so
            (_convolution and convolution_backward in aten/src/ATen/native/Convolution.cpp).
        queues: True if the host continues while a launch runs; False if the launching thread computes.
    """

    products: Callable[[WorkTable, Chip, Array, Constants], Products]
    sustained: Callable[[Constants], float]
    overlap: Callable[[Constants], float]
    streams: Callable[[Constants], dict[str, float]] = named_streams
    again_bytes: Callable[[WorkTable, Chip], Array] = missed_bytes
    pass_seconds: Callable[[WorkTable, Chip, Constants], Array] = nothing
    core_seconds: Callable[[WorkTable, Chip, Array, Constants], Array] = nothing
    sector_seconds: Callable[[WorkTable, Chip, Constants], Array] = nothing
    exposed_seconds: Callable[[WorkTable, Chip, Constants], Array] = nothing
    warm: Callable[[WorkTable], Array | None] = never_warm
    bias_apart: bool = False
    queues: bool = True


_classes: dict[tuple[str, str], ChipClass] = {}


def register(chip_class: ChipClass, *kinds: str, matrix: str) -> None:
    """Set the class of chips with one of these kinds and this kind of matrix engine, in the words of the chip file."""
    for kind in kinds:
        assert (kind, matrix) not in _classes, f"{kind} chips with a {matrix} engine already have a class"
        _classes[kind, matrix] = chip_class


def class_of(chip: Chip) -> ChipClass:
    """Return the class of a chip."""
    return _classes[chip.kind, chip.matrix.kind]
