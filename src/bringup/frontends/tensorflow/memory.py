"""Tensors of TensorFlow in the chip's memory.

The emulated chip's memory is the host's, too, so TensorFlow shares it: what its host reads and writes is right without
a copy. What copies between a host and a chip take is recorded when the program reads the values.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import dlpack

from bringup.frontends.stablehlo.execution import upload
from bringup.frontends.stablehlo.tensors import Type, as_tensor

DEVICE = "chip:0"
# Torch computes with signed numbers in their place.
_UNSIGNED = {"ui16": torch.uint16, "ui32": torch.uint32, "ui64": torch.uint64}

# The memory of each tensor that TensorFlow shares, by its address. The bytes have the tensor on the chip and live as
# long as TensorFlow uses them.
_shared: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def share(tensor: torch.Tensor, kind: Type) -> Any:
    """Return TensorFlow's tensor with the memory of a tensor on the chip. The caller waits for its values."""
    from tensorflow.experimental.dlpack import from_dlpack

    size = tensor.numel() * tensor.itemsize
    if not size:
        return from_dlpack(dlpack.to_dlpack(torch.empty(kind.shape, dtype=tensor.dtype)))  # type: ignore[attr-defined]
    # In a dry run, the chip has no memory. The zeros take none, before somebody writes to them.
    stands_in = torch.zeros(size, dtype=torch.uint8) if torch.ops.bringup.is_dry() else None
    address = tensor.data_ptr() if stands_in is None else stands_in.data_ptr()
    raw: Any = (ctypes.c_char * size).from_address(address)
    raw.tensor, raw.stands_in, raw.is_read = tensor, stands_in, False
    _shared[address] = raw
    host = torch.frombuffer(raw, dtype=torch.uint8).view(_UNSIGNED.get(kind.kind, tensor.dtype)).view(kind.shape)
    return from_dlpack(dlpack.to_dlpack(host))  # type: ignore[attr-defined]


def unshared(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors in memory of their own: copies of those whose memory TensorFlow shares already, or twice."""
    seen = set(_shared)
    own = []
    for tensor in tensors:
        tensor = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
        own.append(tensor)
    return own


def on_chip(value: Any, kind: Type) -> torch.Tensor | None:
    """Return the tensor on the chip whose memory a tensor of TensorFlow has; None if its values are on the host."""
    raw = _shared.get(_address(value))
    tensor = None if raw is None else raw.tensor
    return tensor if tensor is not None and (tensor.dtype, tuple(tensor.shape)) == (kind.dtype, kind.shape) else None


def copied(value: Any) -> torch.Tensor:
    """Return the values of a tensor of TensorFlow on the chip. The host does not wait for the copy."""
    return upload(as_tensor(value._numpy_internal()), DEVICE)


def read(value: Any) -> None:
    """Record that the host reads a tensor: it waits for the chip, and copies what it has not yet read."""
    raw = _shared.get(_address(value))
    if raw is None or raw.is_read:
        return
    raw.is_read = True
    host = raw.tensor.cpu()
    if raw.stands_in is not None:
        raw.stands_in.copy_(host.reshape(-1).view(torch.uint8))


def _address(value: Any) -> int:
    return int(value._numpy_internal().__array_interface__["data"][0])
