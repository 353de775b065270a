"""StableHLO's element types and arrays as torch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bringup.triton.values import DTYPES as MLIR_DTYPES

# Torch has few kernels for unsigned numbers beyond 8 bits: they are held as signed ones with the same bits.
DTYPES = {
    **MLIR_DTYPES,
    "ui8": torch.uint8,
    "ui16": torch.int16,
    "ui32": torch.int32,
    "ui64": torch.int64,
    "f8E8M0FNU": torch.float8_e8m0fnu,
    "complex<f32>": torch.complex64,
    "complex<f64>": torch.complex128,
}
_BITS = {1: np.dtype(np.int8), 2: np.dtype(np.int16), 4: np.dtype(np.int32), 8: np.dtype(np.int64)}
_HELD_AS_BITS = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")


@dataclass(frozen=True)
class Type:
    """The type of a value.

    Attributes:
        kind: StableHLO's name of its elements, such as ``f32`` or ``ui8``.
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Return the data type of the tensor that holds the value."""
        return DTYPES[self.kind]

    @property
    def bits(self) -> int:
        """Return the bits of an element."""
        return self.dtype.itemsize * 8

    @property
    def is_unsigned(self) -> bool:
        """True if a signed tensor holds unsigned numbers."""
        return self.kind in ("ui16", "ui32", "ui64")

    def __str__(self) -> str:
        return f"{self.kind}[{', '.join(map(str, self.shape))}]"


def as_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return an array as a tensor on the host."""
    array = np.array(array, order="C")  # a copy: torch refuses read-only arrays
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        return torch.from_numpy(array.view(_BITS[array.dtype.itemsize]))
    if array.dtype.name in _HELD_AS_BITS:
        return torch.from_numpy(array.view(_BITS[array.dtype.itemsize])).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array)


def as_array(tensor: torch.Tensor, kind: str) -> npt.NDArray[Any]:
    """Return a tensor's values as an array of this kind; types that numpy lacks become float32."""
    host = tensor.detach().cpu().contiguous()
    if kind.startswith(("bf16", "f8")):
        host = host.to(torch.float32)
    array = host.numpy()
    return array.view(np.dtype(f"u{array.dtype.itemsize}")) if kind in ("ui16", "ui32", "ui64") else array
