"""Peak and sustained rates of a chip's engines, in flop/s and bytes/s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bringup.machine.vocabulary import matrix_dtype
from bringup.pricing.classes import class_of
from bringup.pricing.constants import DEFAULT, Constants

if TYPE_CHECKING:
    from bringup.cost.work_table import WorkTable
    from bringup.machine.schema import Chip

ENGINES = ("matrix", "vector", "special", "memory")
# Rates over float32 for dtypes without an entry in the chip file. float64 has half the rate on data-centre GPUs, int64
# takes two instructions, and a complex multiplication takes four multiplications (and two additions).
VECTOR_RATE = {"float64": 0.5, "complex128": 0.125, "complex64": 0.25, "int64": 0.5}


def matrix_rate(chip: Chip, dtype: str, constants: Constants = DEFAULT) -> float:
    """Return the sustained flop/s of products with inputs of a dtype."""
    share = chip.library.sustained.get(matrix_dtype(dtype), matrix_sustained(chip, constants))
    return matrix_peak(chip, dtype) * share


def matrix_sustained(chip: Chip, constants: Constants = DEFAULT) -> float:
    """Return the rate of the best large product over peak."""
    return class_of(chip).sustained(constants) if chip.matrix.sustained is None else chip.matrix.sustained


def matrix_peak(chip: Chip, dtype: str) -> float:
    """Return the peak flop/s of products of a dtype.

    A missing 16-bit dtype has the float32 rate, a missing complex64 a quarter of it, and a missing float8 the bfloat16
    rate. Other missing dtypes have the rate of the vector units.
    """
    table = chip.matrix.tflops
    dtype = matrix_dtype(dtype)
    if dtype in table:
        return table[dtype] * 1e12
    if dtype in ("float16", "bfloat16", "complex64") and "float32" in table:
        return table["float32"] * 1e12 * (0.25 if dtype == "complex64" else 1.0)
    if dtype == "float8_e4m3fn" and "bfloat16" in table:
        return table["bfloat16"] * 1e12
    return vector_rate(chip, dtype)


def engine_dtype(chip: Chip, dtype: str, switch: str) -> str:
    """Return the dtype that products are computed in: ``tf32`` for float32 if its switch is on and the chip follows it.

    Args:
        chip: the chip.
        dtype: the dtype of the inputs.
        switch: the switch of torch that allowed TF32, see `Work.tf32`.
    """
    return "tf32" if dtype == "float32" and switch in chip.ops.tf32 and "tf32" in chip.matrix.tflops else dtype


def by_dtype(dtypes: Sequence[str], value: Callable[[str], float]) -> npt.NDArray[np.float64]:
    """Return a value for each dtype of a sequence, computed once for equal ones."""
    values = {dtype: value(dtype) for dtype in set(dtypes)}
    return np.fromiter(map(values.__getitem__, dtypes), np.float64, len(dtypes))


def in_half(dtypes: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return a mask: True for floats of 16 bits."""
    return by_dtype(dtypes, lambda dtype: dtype in ("float16", "bfloat16")) > 0


def by_torch(table: WorkTable, chip: Chip) -> npt.NDArray[np.bool_]:
    """Return a mask: True for fused attention in torch's own kernels, if the chip file states their rate."""
    return (table.torchs_own > 0) & (table.hides_softmax > 0) & in_half(table.dtypes) & (chip.library.flash is not None)


def vector_rate(chip: Chip, dtype: str) -> float:
    """Return the flop/s of the vector units."""
    table = chip.vector.tflops
    return table[dtype] * 1e12 if dtype in table else table["float32"] * 1e12 * VECTOR_RATE.get(dtype, 1.0)


def special_rate(chip: Chip) -> float:
    """Return the evaluations of exp, tanh, ... per second; a quarter of the vector rate if the chip file has none."""
    tops = chip.vector.special_tops
    return chip.vector.tflops["float32"] * 0.25e12 if tops is None else tops * 1e12


def memory_rate(chip: Chip, constants: Constants = DEFAULT) -> float:
    """Return the sustained bytes/s of device memory."""
    share = constants.memory_sustained if chip.memory.sustained is None else chip.memory.sustained
    return chip.memory.bandwidth_gb_s * 1e9 * share


def cache_rate(chip: Chip, constants: Constants = DEFAULT) -> float:
    """Return the bytes/s that feed the tiles: those of the last cache, or of the scratchpads if there is no cache."""
    level = chip.cache or chip.scratchpad
    bandwidth = level.bandwidth_tb_s if level is not None else None
    return bandwidth * 1e12 if bandwidth is not None else memory_rate(chip, constants) * constants.cache_speedup


def memory_latency(chip: Chip, constants: Constants = DEFAULT) -> float:
    """Return the seconds of one access to device memory that waits for the access before."""
    if chip.irregular.latency_ns is not None:
        return chip.irregular.latency_ns * 1e-9
    return constants.memory_cycles * 1e-9 / chip.compute.clock_ghz


def sector_rate(chip: Chip, constants: Constants = DEFAULT) -> float:
    """Return the bytes/s of the last cache in sectors of which a kernel uses one element each."""
    if chip.irregular.sectors_tb_s is not None:
        return chip.irregular.sectors_tb_s * 1e12
    return memory_rate(chip, constants) * constants.sector_speedup


def launch_seconds(chip: Chip, *, graph: bool = False, constants: Constants = DEFAULT) -> float:
    """Return the seconds between the starts of queued empty kernels."""
    microseconds = chip.launch.graph_us if graph else chip.launch.eager_us
    if microseconds is not None:
        return microseconds * 1e-6
    return constants.graph_launch_seconds if graph else constants.launch_seconds
