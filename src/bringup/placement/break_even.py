"""Break-even sizes: from how many elements an operator is faster on the chip than on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bringup import pricing
from bringup.cost.signature import Signature
from bringup.cost.work_table import WorkTable
from bringup.recording.rows import COLUMNS, LAUNCH
from bringup.recording.trace import Trace
from bringup.timeline.replay import LAUNCH_LATENCY, on_host_seconds, row_inputs

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host

Shape = tuple[int, ...]
SIZES = tuple(1 << power for power in range(31))  # elements of the first input, up to 2**30


def _signature(op: str, inputs: list[Shape], output: Shape, **args: Any) -> dict[str, Any]:
    def tensor(shape: Shape, storage: int, written: int) -> list[Any]:
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
        return ["float32", list(shape), strides, storage, written]

    listed = [tensor(shape, place, 0) for place, shape in enumerate(inputs)]
    return {"op": op, "inputs": listed, "outputs": [tensor(output, -1, 1)], "args": args}


def _rows(size: int) -> Shape:
    """Return a matrix of this many elements; rows of 1,024, or fewer, as of a model's width."""
    width = min(size, 1024)
    return size // width, width


def _one(op: str, tag: str = "pointwise") -> Callable[[int], dict[str, Any]]:
    return lambda size: _signature(op, [_rows(size)], _rows(size), self={"tensor": 0}) | {"tag": tag}


def _add(size: int) -> dict[str, Any]:
    return _signature(
        "aten::add.Tensor", [_rows(size)] * 2, _rows(size), self={"tensor": 0}, other={"tensor": 1}, alpha=1
    ) | {"tag": "pointwise"}


def _mm(size: int) -> dict[str, Any]:
    side = max(int(size**0.5), 1)
    return _signature("aten::mm", [(side, side)] * 2, (side, side), self={"tensor": 0}, mat2={"tensor": 1})


def _softmax(size: int) -> dict[str, Any]:
    return _signature("aten::_softmax", [_rows(size)], _rows(size), self={"tensor": 0}, dim=1, half_to_float=False)


def _sum(size: int) -> dict[str, Any]:
    return _signature("aten::sum", [_rows(size)], (), self={"tensor": 0}, dtype=None) | {"tag": "reduction"}


OPERATORS: dict[str, Callable[[int], dict[str, Any]]] = {
    "add": _add,
    "gelu": _one("aten::gelu"),
    "softmax": _softmax,
    "sum": _sum,
    "mm": _mm,
}


@dataclass(frozen=True)
class BreakEven:
    """The sizes of one operator, in elements of its first input, from which the chip is faster; None: it never is.

    Attributes:
        resident: with inputs and result on the chip.
        copied: with inputs that go up, and a result that comes down.
        sizes, chip, copied_chip, host: seconds by size, for a plot.
    """

    op: str
    resident: int | None
    copied: int | None
    sizes: tuple[int, ...]
    chip: tuple[float, ...]
    copied_chip: tuple[float, ...]
    host: tuple[float, ...]


def break_even(chip: Chip, host: Host) -> list[BreakEven]:
    """Return the break-even sizes of `OPERATORS` in float32, each as a launch on an idle machine."""
    return [_of_operator(name, make, chip, host) for name, make in OPERATORS.items()]


def _of_operator(name: str, make: Callable[[int], dict[str, Any]], chip: Chip, host: Host) -> BreakEven:
    data = [make(size) for size in SIZES]
    signatures = [Signature.parse(item) for item in data]
    columns = {column: np.zeros(len(data), dtype=dtype) for column, dtype in COLUMNS.items()}
    columns["kind"][:], columns["signature"][:] = LAUNCH, np.arange(len(data))
    columns["line"][:], columns["module"][:] = -1, -1
    trace = Trace(columns, np.zeros(0, np.int64), np.zeros(len(data) + 1, np.int64), data, [], [])
    trace.signatures, trace.work = signatures, WorkTable.from_signatures(signatures)
    inputs = row_inputs(trace, chip, host)
    dispatch, link = host.dispatch, chip.link
    latency = LAUNCH_LATENCY if pricing.class_of(chip).queues else 0.0
    fixed = dispatch.copy_us * 1e-6 + link.latency_us * 1e-6
    up = np.asarray([sum(fixed + item.nbytes / (link.h2d_gb_s * 1e9) for item in s.tensors) for s in signatures])
    down = np.asarray([fixed + sum(t.nbytes for t in s.results) / (link.d2h_gb_s * 1e9) for s in signatures])
    on_chip = inputs.host_seconds + latency + inputs.seconds
    copied = up + on_chip + down + dispatch.synchronize_us * 1e-6
    on_host = on_host_seconds(trace, host)
    unsupported = inputs.fallback >= 0

    def first(seconds: Any) -> int | None:
        slower = np.flatnonzero((seconds >= on_host) | unsupported)
        after = int(slower[-1]) + 1 if len(slower) else 0
        return SIZES[after] if after < len(SIZES) else None

    times = (tuple(map(float, item)) for item in (on_chip, copied, on_host))
    return BreakEven(name, first(on_chip), first(copied), SIZES, *times)
