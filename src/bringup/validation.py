"""How far predictions are from published measurements: the error band of every report.

``measurements.csv`` holds single figures that others published, each with its source: chip, operator, dtype, dimensions
and microseconds. The band of a chip is the mean absolute percentage error over its own rows; a chip without rows has
that of its kind (GPUs, others), which says so.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bringup import pricing
from bringup.chip import available_chips, load_chip
from bringup.cost.signature import Signature

if TYPE_CHECKING:
    from bringup._schema import Chip

TABLE = Path(__file__).parent / "measurements.csv"


@dataclass(frozen=True)
class Measurement:
    """A published figure. ``dims``: m, n, k of a product (batch first if batched), or rows and row length."""

    chip: str
    op: str
    dtype: str
    dims: tuple[int, ...]
    seconds: float
    source: str

    def signature(self) -> Signature:
        """Build the launch that was measured."""
        data, args, result = _OPERATORS[self.op](self.dims)
        inputs = [[self.dtype, shape, _contiguous(shape), i, 0] for i, shape in enumerate(data)]
        outputs = [[self.dtype, result, _contiguous(result), -1, 1]]
        named = {name: {"tensor": i} for i, name in enumerate(args)}
        op = {"layer_norm": "native_layer_norm", "softmax": "_softmax"}.get(self.op, self.op.removesuffix("_scalar"))
        return Signature.parse({"op": f"aten::{op}", "inputs": inputs, "outputs": outputs, "args": named})


def _contiguous(shape: list[int]) -> list[int]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return strides[::-1]


def _unary(dims: tuple[int, ...]) -> tuple[list[list[int]], list[str], list[int]]:
    return [list(dims)], ["self"], list(dims)


def _binary(dims: tuple[int, ...]) -> tuple[list[list[int]], list[str], list[int]]:
    return [list(dims), list(dims)], ["self", "other"], list(dims)


_OPERATORS: dict[str, Any] = {
    "mm": lambda d: ([[d[0], d[2]], [d[2], d[1]]], ["self", "mat2"], [d[0], d[1]]),
    "bmm": lambda d: ([[d[0], d[1], d[3]], [d[0], d[3], d[2]]], ["self", "mat2"], [d[0], d[1], d[2]]),
    **dict.fromkeys(("add", "mul", "div", "sub", "pow"), _binary),
    **dict.fromkeys(("add_scalar", "mul_scalar", "div_scalar", "sub_scalar", "pow_scalar"), _unary),
    **dict.fromkeys(("relu", "gelu", "tanh", "sigmoid", "exp", "softmax", "layer_norm"), _unary),
}


@cache
def measurements() -> tuple[Measurement, ...]:
    """Read the published figures."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(
            Measurement(
                row["chip"],
                row["op"],
                row["dtype"],
                tuple(int(part) for part in row["dims"].split("x")),
                float(row["microseconds"]) * 1e-6,
                row["source"],
            )
            for row in csv.DictReader(file)
        )


def errors(rows: tuple[Measurement, ...], chip: Chip) -> list[float]:
    """Return predicted over measured, less one, for every row."""
    if not rows:
        return []
    signatures = [row.signature() for row in rows]
    prices = pricing.price_table(pricing.WorkTable.of(signatures), signatures, chip)
    return [float(got / row.seconds - 1) for got, row in zip(prices.seconds, rows, strict=True)]


def error_band(chip: Chip) -> tuple[float | None, str]:
    """Return the mean absolute error of a chip's predictions (0.18: 18 %), and where it comes from in words."""
    if chip.name in available_chips() and chip == _shipped(chip.name):
        return _shipped_band(chip.name)
    return _band(chip)


@cache
def _shipped(name: str) -> Chip:
    return load_chip(name)


@cache
def _shipped_band(name: str) -> tuple[float | None, str]:
    return _band(_shipped(name))


def _rows_of(name: str) -> tuple[Measurement, ...]:
    return tuple(row for row in measurements() if row.chip == name)


@cache
def _shipped_errors(name: str) -> tuple[float, ...]:
    return tuple(errors(_rows_of(name), _shipped(name)))


def _band(chip: Chip) -> tuple[float | None, str]:
    own = errors(_rows_of(chip.name), chip)
    if own:
        return float(np.mean(np.abs(own))), f"validated on {len(own)} measurements of operators"
    names = sorted({row.chip for row in measurements()})
    same = [name for name in names if (_shipped(name).kind == "gpu") == (chip.kind == "gpu")]
    pooled = [error for name in same for error in _shipped_errors(name)]
    if chip.invented or not pooled:
        return None, "invented chip: nothing to validate"
    what = "GPUs" if chip.kind == "gpu" else "NPUs and TPUs"
    return float(np.mean(np.abs(pooled))), f"described, not validated: the error over {len(same)} other {what}"
