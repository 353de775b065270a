"""The registry of lowerings: for each operation of TTIR, a function that runs it for many programs at once.

A lowering takes the operation and the types of the function's values. It returns a step, a function of the values
(`env`, a list by number) and the context (`executor.Context`). To add an operation, add a decorated function to
tiles.py or arithmetic.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bringup.errors import BringupError
from bringup.triton.ttir import Op, Type
from bringup.triton.values import (
    Pointer,
    Value,
    as_tensor,
    dtype_of,
)

Step = Callable[[list[Value], Any], None]
Lowering = Callable[[Op, list[Type]], Step]
LOWERINGS: dict[str, Lowering] = {}
Tensor = torch.Tensor


def lowering(*names: str) -> Callable[[Lowering], Lowering]:
    """Register a function as the lowering of these operations."""

    def register(function: Lowering) -> Lowering:
        for name in names:
            assert name not in LOWERINGS, name
            LOWERINGS[name] = function
        return function

    return register


def lower(op: Op, types: list[Type]) -> Step:
    """Return the step of an operation.

    Raises:
        BringupError: bringup does not support it; the message has the line.
    """
    if op.name not in LOWERINGS:
        raise BringupError(f"{op.name}: bringup does not support this operation of Triton, used at {op.line}")
    return LOWERINGS[op.name](op, types)


def addresses(pointer: Pointer, ctx: Any) -> Tensor:
    """Return device addresses."""
    offset = as_tensor(pointer.offset, "i64", 0).long()
    if pointer.argument < 0:
        return offset
    buffer = ctx.memory.buffers[pointer.argument]
    address: Tensor = offset * dtype_of(pointer.element).itemsize + buffer.address + buffer.start
    return address
