"""Chips with systolic arrays. Weights stay in an array while rows stream through it, and software moves the data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.cost import FAMILIES
from bringup.cost.work_table import WorkTable
from bringup.pricing import tiles
from bringup.pricing.classes import ChipClass, Products, register
from bringup.pricing.constants import Constants
from bringup.pricing.cpu import CPU
from bringup.pricing.rates import matrix_sustained, memory_rate

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

Array = npt.NDArray[Any]


def _products(table: WorkTable, chip: Chip, peaks: Array, constants: Constants) -> Products:
    """Price folds: blocks of weights that fill an array, through which all rows stream."""
    rows, columns, arrays = chip.matrix.rows or 1, chip.matrix.columns or 1, chip.matrix.arrays
    rates = peaks * matrix_sustained(chip, constants)
    folds = np.ceil(table.k / rows) * np.ceil(table.n / columns) * table.batch
    # Weights are loaded while the previous fold streams. If it has few rows, the next fold waits for its weights.
    per_fold = np.maximum(table.m, rows * constants.systolic_fill)
    cycles = folds * per_fold / np.minimum(arrays, folds) + 2 * rows
    cycle = 2.0 * rows * columns * arrays / rates  # at the sustained rate of this dtype
    none = np.zeros_like(cycles)
    return cycles * cycle, np.minimum(1.0, folds / arrays), none, none


def _exposed_seconds(table: WorkTable, chip: Chip, constants: Constants) -> Array:
    """Return the seconds for loading the smaller operand, before the array can start."""
    smaller = table.batch * table.k * np.minimum(table.m, table.n) * table.item
    return table.by_signature(smaller / memory_rate(chip, constants))


def _streams(constants: Constants) -> dict[str, float]:
    """Return 1 for every family, because software moves the data in blocks at the whole bandwidth."""
    return dict.fromkeys(FAMILIES, 1.0)


SYSTOLIC = ChipClass(
    products=_products,
    sustained=lambda constants: constants.systolic_sustained,
    overlap=lambda constants: constants.systolic_overlap,
    streams=_streams,
    exposed_seconds=_exposed_seconds,
)

register(SYSTOLIC, "tpu", "npu", "ipu", matrix="systolic")
# In a GPU or CPU with a systolic engine, the array computes products and the cores compute the rest.
register(replace(SYSTOLIC, pass_seconds=tiles.pass_seconds), "gpu", matrix="systolic")
register(
    replace(
        CPU,
        products=_products,
        sustained=SYSTOLIC.sustained,
        streams=_streams,
        exposed_seconds=_exposed_seconds,
    ),
    "cpu",
    matrix="systolic",
)
