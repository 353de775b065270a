"""ONNX's data types and arrays as torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bringup.frontends.onnx.graph import OnnxError

# By the number that onnx.proto gives them. Numbers of two or four bits are held in bytes.
DTYPES = {
    1: ("float", torch.float32),
    2: ("uint8", torch.uint8),
    3: ("int8", torch.int8),
    4: ("uint16", torch.uint16),
    5: ("int16", torch.int16),
    6: ("int32", torch.int32),
    7: ("int64", torch.int64),
    9: ("bool", torch.bool),
    10: ("float16", torch.float16),
    11: ("double", torch.float64),
    12: ("uint32", torch.uint32),
    13: ("uint64", torch.uint64),
    14: ("complex64", torch.complex64),
    15: ("complex128", torch.complex128),
    16: ("bfloat16", torch.bfloat16),
    17: ("float8e4m3fn", torch.float8_e4m3fn),
    18: ("float8e4m3fnuz", torch.float8_e4m3fnuz),
    19: ("float8e5m2", torch.float8_e5m2),
    20: ("float8e5m2fnuz", torch.float8_e5m2fnuz),
    21: ("uint4", torch.uint8),
    22: ("int4", torch.int8),
    24: ("float8e8m0", torch.float8_e8m0fnu),
    25: ("uint2", torch.uint8),
    26: ("int2", torch.int8),
}
NAMED = dict(DTYPES.values())
RANGES = {21: (0, 15), 22: (-8, 7), 25: (0, 3), 26: (-2, 1)}  # numbers narrower than a byte
# Types that numpy lacks, by the names of ml_dtypes: the integer with the same bits.
_BITS = {
    "bfloat16": np.int16,
    "float8_e4m3fn": np.uint8,
    "float8_e4m3fnuz": np.uint8,
    "float8_e5m2": np.uint8,
    "float8_e5m2fnuz": np.uint8,
    "float8_e8m0fnu": np.uint8,
}
_NARROW = {"int4": np.int8, "uint4": np.uint8, "int2": np.int8, "uint2": np.uint8}


def torch_dtype(number: int) -> torch.dtype:
    """Return torch's data type for ONNX's number.

    Raises:
        OnnxError: torch has none.
    """
    if number not in DTYPES:
        raise OnnxError(f"the data type {number} of ONNX has no counterpart in torch")
    return DTYPES[number][1]


def as_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return an array as a tensor on the host, without a copy where numpy has the type.

    Raises:
        OnnxError: torch lacks the type.
    """
    array = np.asarray(array)
    name = array.dtype.name
    if name in _NARROW:
        return torch.from_numpy(array.astype(_NARROW[name]))
    if name in _BITS:
        return torch.from_numpy(np.ascontiguousarray(array).view(_BITS[name])).view(getattr(torch, name))
    try:
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except TypeError:
        raise OnnxError(f"the data type {name} has no counterpart in torch") from None


def as_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return a tensor's values; types that numpy lacks become float32."""
    host = tensor.detach().cpu()
    if host.dtype == torch.bfloat16 or (host.is_floating_point() and host.itemsize == 1):
        host = host.to(torch.float32)
    return host.numpy()
