"""Functions of the program that its modules call on the host, such as those of ``jax.debug.print``."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from bringup.frontends.stablehlo.module import Op, StableHloError
from bringup.frontends.stablehlo.operators import Call, Tensor, operator
from bringup.frontends.stablehlo.tensors import Type, as_tensor

Callback = Callable[..., Sequence[Any]]

_callbacks: dict[str, Callback] = {}


def add(callback: Callback) -> str:
    """Return the name by which a custom call calls a function. No module from elsewhere can know it."""
    name = secrets.token_hex(16)
    _callbacks[name] = callback
    return name


@operator("callback", refusal=lambda op: "" if _name(op) in _callbacks else "that this process does not have")
def call_back(call: Call, *items: Tensor) -> tuple[Tensor, ...]:
    """Copy the operands to the host, call the function, and copy what it returns to the chip."""
    callback = _callbacks[_name(call.op)]
    results = callback(*(_array(item, kind.kind) for item, kind in zip(items, call.op.operand_types, strict=True)))
    tensors = [as_tensor(np.asarray(result)) for result in results]
    kinds = call.op.result_types
    if len(tensors) != len(kinds) or not all(map(_fits, tensors, kinds)):
        returned = ", ".join(f"{str(item.dtype).removeprefix('torch.')}{list(item.shape)}" for item in tensors)
        raise StableHloError(f"a callback returned {returned or 'nothing'}, not {', '.join(map(str, kinds))}")
    return tuple(item.to(call.device, kind.dtype) for item, kind in zip(tensors, kinds, strict=True))


def _name(op: Op) -> str:
    return str(op.attributes.get("backend_config", ""))


def _fits(tensor: Tensor, kind: Type) -> bool:
    """Return True if a result has its type, or that of Python's numbers, which have 64 bits."""
    number = {torch.int64: not kind.dtype.is_floating_point, torch.float64: kind.dtype.is_floating_point}
    same = number.get(tensor.dtype, False) and kind.dtype is not torch.bool and not kind.dtype.is_complex
    return tuple(tensor.shape) == kind.shape and (tensor.dtype == kind.dtype or same)


def _array(tensor: Tensor, kind: str) -> Any:
    """Return a tensor's values as an array that has JAX's own data type."""
    host = tensor.detach().cpu().contiguous()
    if kind.startswith(("bf16", "f8")):
        import ml_dtypes  # comes with jaxlib

        bits = host.view(torch.uint8 if host.itemsize == 1 else torch.int16).numpy()
        return bits.view(getattr(ml_dtypes, str(host.dtype).removeprefix("torch.")))
    array = host.numpy()
    return array.view(f"u{array.dtype.itemsize}") if kind in ("ui16", "ui32", "ui64") else array
