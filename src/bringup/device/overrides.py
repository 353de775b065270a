"""Operators whose kernel for the chip the program brings, with ``torch.library``: they get rows in a recording."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

_KEYS = {"PrivateUse1", "chip"}


def patch_library() -> None:
    """Patch ``torch.library.Library.impl``, which every way to register a kernel calls."""
    library: Any = torch.library.Library
    register = library.impl

    @functools.wraps(register)
    def impl(self: Any, op_name: Any, fn: Any, dispatch_key: str = "", *args: Any, **kwargs: Any) -> Any:
        key = dispatch_key or self.dispatch_key
        if key in _KEYS and callable(fn) and fn is not torch.library.fallthrough_kernel:
            name = _name_of(self, op_name)
            torch.ops.bringup.watch_override(name)
            fn = _recorded(name, fn, with_keyset=bool(kwargs.get("with_keyset")))
        return register(self, op_name, fn, dispatch_key, *args, **kwargs)

    library.impl = impl


def _name_of(library: Any, operator: Any) -> str:
    """Return the name as the dispatcher spells it, for example ``aten::mm.out``."""
    if isinstance(operator, torch._ops.OpOverload):
        return operator._schema.name + (f".{operator._schema.overload_name}" if operator._schema.overload_name else "")
    return operator if "::" in operator else f"{library.ns}::{operator}"


def _recorded(name: str, kernel: Callable[..., Any], *, with_keyset: bool) -> Callable[..., Any]:
    """Return the kernel with a row for the operator, unless it launches others (csrc/launch/overrides.cpp)."""
    ops = torch.ops.bringup
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse3)

    @functools.cache
    def operator() -> Any:
        space, _, rest = name.partition("::")
        base, _, overload = rest.partition(".")
        return getattr(getattr(getattr(torch.ops, space), base), overload or "default")

    @functools.wraps(kernel)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        if not ops.is_recording():
            return kernel(*args, **kwargs)
        operator().redispatch(keys, *_as_tensors(operator(), args[with_keyset:]), **kwargs)
        try:
            result = kernel(*args, **kwargs)
        except BaseException:
            ops.end_override([], False)
            raise
        ops.end_override([item for item in _flat(result) if isinstance(item, torch.Tensor)], True)
        return result

    return recorded


def _as_tensors(operator: Any, args: tuple[Any, ...]) -> list[Any]:
    """Return positional arguments with tensors for the numbers that PyTorch passes in place of tensors (``x * 2``)."""
    values = zip(operator._schema.arguments, args, strict=False)
    return [
        torch.scalar_tensor(value) if isinstance(value, (int, float, complex)) and "Tensor" in str(item.type) else value
        for item, value in values
    ]


def _flat(result: Any) -> list[Any]:
    return [part for item in result for part in _flat(item)] if isinstance(result, (list, tuple)) else [result]
