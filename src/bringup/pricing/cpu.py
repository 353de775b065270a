"""CPUs: the launching thread computes, by a library that tiles for vectors, and the cache stays warm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.cost.work_table import WorkTable
from bringup.pricing.classes import ChipClass, Products, nothing, register
from bringup.pricing.constants import Constants
from bringup.pricing.tiles import best_tiles, with_attention

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

Array = npt.NDArray[Any]

# A CPU library's tiles are multiples of its vectors of 16 floats. It never divides k between cores.
CPU_TILES = [(m, n) for m in (16, 32, 64, 128) for n in (16, 32, 48, 64, 96, 128)]


def _products(table: WorkTable, chip: Chip, peaks: Array, constants: Constants) -> Products:
    small = np.ones(len(peaks))  # operands stay in registers for a whole panel
    tiled = best_tiles(table, chip, peaks, constants, menu=CPU_TILES, split_menu=(1,), small=small)
    return with_attention(tiled, table, chip, peaks, constants)


def _warm(table: WorkTable) -> Array:
    """Return True for operators without parameters, whose tensors stay in the cache between repetitions."""
    return ~table.is_family("matmul", "convolution", "optimizer", "gather")


CPU = ChipClass(
    products=_products,
    sustained=lambda constants: constants.matrix_sustained,
    overlap=lambda constants: 1.0,  # no overlap: the library first copies its operands into its own layout
    again_bytes=nothing,  # the cores work on few rows at a time
    warm=_warm,
    queues=False,
)

register(CPU, "cpu", matrix="tile")
