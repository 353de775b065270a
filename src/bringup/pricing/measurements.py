"""Published measurements of single launches, and the signature of each launch."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bringup.cost.signature import Signature

TABLE = Path(__file__).parent / "measurements.csv"
LEAST_SECONDS, MOST_SECONDS = 1e-9, 1e5  # from a clock cycle to a day; published launches take 1 us to 12 s


@dataclass(frozen=True)
class Measurement:
    """The published time of one launch.

    Attributes:
        chip: name of a chip file.
        op: key of `OPERATORS`.
        dtype: dtype of the inputs.
        dims: m, n, k of a product (batch first if batched), rows and row length, ...; see `OPERATORS`.
        seconds: the measured time.
        source: the publication.
        floor: seconds that the host's clock includes beyond the device's time. This is the smallest time of the same
            chip and operator in the publication, or 0 if the device's clock was used.
        warm: True if repetitions used the same buffers, which stay in the last cache if they fit.
        graph: True if the launch was replayed from a recorded graph.
    """

    chip: str
    op: str
    dtype: str
    dims: tuple[int, ...]
    seconds: float
    source: str
    floor: float = 0.0
    warm: bool = False
    graph: bool = False

    def __post_init__(self) -> None:
        """Check the measurement.

        Raises:
            ValueError: the time is not finite and positive, or the operator cannot have these sizes.
        """
        if not (LEAST_SECONDS <= self.seconds <= MOST_SECONDS and 0 <= self.floor <= MOST_SECONDS):
            raise ValueError(f"a launch cannot take {self.seconds:g} s")
        _, data, result, _ = OPERATORS[self.op](self.dims)
        for shape in (*data.values(), result):
            if min(shape) < 1 or math.prod(shape) >= 2**62:
                raise ValueError(f"{self.op} cannot have the sizes {'x'.join(map(str, self.dims))}")

    @property
    def family(self) -> str:
        """The family under which tables of errors list the operator."""
        return FAMILIES.get(self.op, self.op)

    def signature(self) -> Signature:
        """Return the signature of the measured launch."""
        name, data, result, args = OPERATORS[self.op](self.dims)
        inputs = [[self.dtype, shape, _contiguous(shape), i, 0] for i, shape in enumerate(data.values())]
        outputs = [[self.dtype, result, _contiguous(result), -1, 1]]
        named = {**args, **{tensor: {"tensor": i} for i, tensor in enumerate(data)}}
        tag = "pointwise" if self.op in POINTWISE else ""
        data_of = {"inputs": inputs, "outputs": outputs, "args": named, "tag": tag}
        return Signature.parse({"op": f"aten::{name}", "tf32": [], **data_of})  # the publications turn TF32 off


Launch = tuple[str, dict[str, list[int]], list[int], dict[str, Any]]  # operator, inputs, result, other arguments


def _contiguous(shape: list[int]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def _mm(dims: tuple[int, ...]) -> Launch:
    m, n, k = dims
    return "mm", {"self": [m, k], "mat2": [k, n]}, [m, n], {}


def _bmm(dims: tuple[int, ...]) -> Launch:
    b, m, n, k = dims
    return "bmm", {"self": [b, m, k], "mat2": [b, k, n]}, [b, m, n], {}


def _linear(dims: tuple[int, ...]) -> Launch:
    m, n, k = dims
    return "addmm", {"self": [n], "mat1": [m, k], "mat2": [k, n]}, [m, n], {}


def _convolution(dims: tuple[int, ...]) -> Launch:
    batch, inner, outer, window, size, stride, padding = dims
    out = (size + 2 * padding - window) // stride + 1
    data = {"input": [batch, inner, size, size], "weight": [outer, inner, window, window]}
    return (
        "convolution",
        data,
        [batch, outer, out, out],
        {
            **{"groups": 1, "transposed": False},
            **{"stride": [stride, stride], "dilation": [1, 1]},
        },
    )


def _depthwise(dims: tuple[int, ...]) -> Launch:
    batch, channels, window, size, stride = dims
    name, data, result, args = _convolution((batch, channels, channels, window, size, stride, window // 2))
    return name, {**data, "weight": [channels, 1, window, window]}, result, {**args, "groups": channels}


def _batch_norm(dims: tuple[int, ...]) -> Launch:
    channels = [dims[1]]
    data = {"input": list(dims), "weight": channels, "bias": channels}
    return "native_batch_norm", data, list(dims), {"training": False}


def _max_pool(dims: tuple[int, ...]) -> Launch:
    batch, channels, size = dims
    half = (size - 1) // 2 + 1
    return "max_pool2d_with_indices", {"self": [batch, channels, size, size]}, [batch, channels, half, half], {}


def _attention(dims: tuple[int, ...]) -> Launch:
    batch, heads, kv_heads, rows, columns, depth, causal = dims
    data = {"query": [batch, heads, rows, depth]}
    data |= {name: [batch, kv_heads, columns, depth] for name in ("key", "value")}
    return "scaled_dot_product_attention", data, data["query"], {"is_causal": bool(causal)}


def _unary(name: str) -> Callable[[tuple[int, ...]], Launch]:
    return lambda dims: (name, {"self": list(dims)}, list(dims), {})


def _binary(name: str) -> Callable[[tuple[int, ...]], Launch]:
    return lambda dims: (name, {"self": list(dims), "other": list(dims)}, list(dims), {})


OPERATORS: dict[str, Callable[[tuple[int, ...]], Launch]] = {
    "mm": _mm,  # m, n, k
    "bmm": _bmm,  # batch, m, n, k
    "linear": _linear,  # m, n, k
    "depthwise": _depthwise,  # batch, channels, window, size, stride
    "batch_norm": _batch_norm,  # batch, channels, height, width
    "max_pool": _max_pool,  # batch, channels, size; windows of 3 with stride 2
    "sum": lambda dims: ("sum", {"self": list(dims)}, [1], {}),
    "convolution": _convolution,  # batch, channels in, channels out, window, size, stride, padding; all are square
    "attention": _attention,  # batch, heads, key heads, queries, keys, depth of a head, causal (0 or 1)
    **{name: _binary(f"{name}.Tensor") for name in ("add", "mul", "div", "sub")},
    **{f"{name}_scalar": _unary(f"{name}.Scalar") for name in ("add", "mul", "div", "sub")},
    **{"pow": _binary("pow.Tensor_Tensor"), "pow_scalar": _unary("pow.Tensor_Scalar")},
    **{name: _unary(name) for name in ("relu", "gelu", "tanh", "sigmoid", "exp")},
    "softmax": _unary("_softmax"),
    "layer_norm": _unary("native_layer_norm"),
}
FAMILIES = {
    **dict.fromkeys(("add", "mul", "div", "sub", "pow", "relu", "tanh", "sigmoid", "exp"), "pointwise"),
    **dict.fromkeys((f"{name}_scalar" for name in ("add", "mul", "div", "sub", "pow")), "pointwise"),
}
POINTWISE = {*FAMILIES, "gelu"}  # by torch's tag


@cache
def measurements() -> tuple[Measurement, ...]:
    """Return the published measurements that ship with bringup."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(
            Measurement(
                row["chip"],
                row["op"],
                row["dtype"],
                tuple(int(part) for part in row["dims"].split("x")),
                float(row["microseconds"]) * 1e-6,
                row["source"],
                float(row["floor_us"] or 0) * 1e-6,
                row["warm"] == "1",
                row["graph"] == "1",
            )
            for row in csv.DictReader(file)
        )
