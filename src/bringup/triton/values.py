"""The values of a kernel while many program instances run at once.

A tile of shape (d1, ..., dr) is a CPU tensor of shape [programs or 1, d1 or 1, ..., dr or 1]. Values that are equal for
all programs or constant along an axis are stored once. A scalar has shape [programs or 1]. Constants, and integers and
booleans that are equal for all programs, are Python numbers. Offsets are kept as sums (`Affine`) and masks as lists of
conditions (`Mask`) until a load or store.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, Union

import torch

from bringup.errors import BringupError

DTYPES = {
    "i1": torch.bool,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
    "f8E5M2": torch.float8_e5m2,
    "f8E4M3FN": torch.float8_e4m3fn,
    "f8E4M3FNUZ": torch.float8_e4m3fnuz,
    "f8E5M2FNUZ": torch.float8_e5m2fnuz,
}
WIDTHS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64}

Value = Any  # Tensor | Affine | Mask | Compare | Pointer | int | float | bool
Number = Union[int, float]


def dtype_of(element: str) -> torch.dtype:
    """Return the torch dtype of an element type.

    Raises:
        BringupError: torch has no such dtype.
    """
    if element not in DTYPES:
        raise BringupError(f"kernels cannot use {element} here: torch has no such dtype on the CPU")
    return DTYPES[element]


def float_of_bits(bits: int, element: str) -> float:
    """Return the float that has these bits."""
    dtype = dtype_of(element)
    width = dtype.itemsize
    if element == "f64":
        return float(struct.unpack("<d", bits.to_bytes(8, "little"))[0])
    raw = torch.frombuffer(bytearray(bits.to_bytes(width, "little")), dtype=torch.uint8)
    return float(raw.view(dtype).float())


def rounded(number: float, element: str) -> float:
    """Return the nearest number of a type; the decimal form of its largest number may be rounded beyond it."""
    return number if element == "f64" else float(torch.tensor(number, dtype=torch.float64).to(dtype_of(element)))


def wrapped(number: int, element: str) -> Number:
    """Return a Python integer as two's complement of the width of its type."""
    if element == "i1":
        return bool(number & 1)
    width = WIDTHS[element]
    number &= (1 << width) - 1
    return number - (1 << width) if number >> (width - 1) else number


def extremes(value: Value) -> tuple[int, int]:
    """Return the least and the greatest element of an integer or a tensor of integers."""
    if not isinstance(value, torch.Tensor):
        return value, value
    if value.numel() == 1:
        only = int(value)
        return only, only
    low, high = torch.aminmax(value)
    return int(low), int(high)


class Affine:
    """Integers ``base + sum(strides[axis] * iota(axis))`` over a tile.

    Attributes:
        base: an integer, or a tensor with size 1 along the axes of `strides`.
        strides: axis of the tile, from 0 -> integer.
        shape: shape of the tile.
        element: i32 or i64.
    """

    __slots__ = ("_bounds", "_tensor", "base", "element", "shape", "strides")

    def __init__(self, base: Value, strides: dict[int, int], shape: tuple[int, ...], element: str) -> None:
        self.base, self.strides, self.shape, self.element = base, strides, shape, element
        self._tensor: torch.Tensor | None = None
        self._bounds: tuple[int, int] | None = None

    def tensor(self) -> torch.Tensor:
        """Return the numbers."""
        if self._tensor is None:
            dtype = DTYPES[self.element]
            total: Any = self.base
            for axis, stride in self.strides.items():
                size = self.shape[axis]
                iota = torch.arange(0, size * stride, stride, dtype=dtype) if stride else torch.zeros(size, dtype=dtype)
                total = total + iota.view(-1, *(1,) * (len(self.shape) - axis - 1))
            if not isinstance(total, torch.Tensor):
                total = torch.tensor(total, dtype=dtype)
            missing = len(self.shape) + 1 - total.dim()
            self._tensor = total.view(*(1,) * missing, *total.shape) if missing else total
        return self._tensor

    def bounds(self) -> tuple[int, int]:
        """Return the least and the greatest number."""
        if self._bounds is None:
            low, high = extremes(self.base)
            for axis, stride in self.strides.items():
                reach = stride * (self.shape[axis] - 1)
                low, high = low + min(reach, 0), high + max(reach, 0)
            self._bounds = low, high
        return self._bounds

    def added(self, other: Value) -> Value:
        """Return the sum with an integer, a tensor or another `Affine`; an `Affine` if possible."""
        if isinstance(other, Affine):
            strides = dict(self.strides)
            for axis, stride in other.strides.items():
                strides[axis] = strides.get(axis, 0) + stride
            base, shape = other.base, tuple(map(max, self.shape, other.shape))
        else:
            strides, base, shape = self.strides, other, self.shape
        for one in (self.base, base):
            if isinstance(one, torch.Tensor) and any(one.shape[axis + 1] > 1 for axis in strides):
                return self.tensor() + plain(other)
        return Affine(self.base + base, strides, shape, self.element)

    def scaled(self, factor: int) -> Affine:
        """Return the product with an integer."""
        strides = {axis: stride * factor for axis, stride in self.strides.items()}
        return Affine(self.base * factor, strides, self.shape, self.element)

    def of_type(self, element: str) -> Affine:
        """Return the same numbers in a wider type."""
        base = self.base.to(DTYPES[element]) if isinstance(self.base, torch.Tensor) else self.base
        return Affine(base, self.strides, self.shape, element)

    def modulo(self, divisor: int) -> Value:
        """Return the remainders; an `Affine` if no row wraps."""
        if divisor <= 0 or len(self.strides) != 1:
            return torch.fmod(self.tensor(), divisor or 1)
        low, high = self.bounds()
        if low >= 0 and high < divisor:
            return self
        ((axis, stride),) = self.strides.items()
        start = self.base % divisor  # the base is not negative
        reach = stride * (self.shape[axis] - 1)
        if low >= 0 and stride > 0 and extremes(start)[1] + reach < divisor:
            return Affine(start, self.strides, self.shape, self.element)
        return torch.fmod(self.tensor(), divisor)


COMPARISONS: dict[str, Any] = {
    "eq": torch.eq,
    "ne": torch.ne,
    "slt": torch.lt,
    "sle": torch.le,
    "sgt": torch.gt,
    "sge": torch.ge,
    "ult": torch.lt,
    "ule": torch.le,
    "ugt": torch.gt,
    "uge": torch.ge,
}
_SWAPPED = {
    "slt": "sgt",
    "sle": "sge",
    "sgt": "slt",
    "sge": "sle",
    "ult": "ugt",
    "ule": "uge",
    "ugt": "ult",
    "uge": "ule",
}


class Compare:
    """``affine < limit`` (or <=, >, >=), computed only when needed. The limit is an integer or a tensor."""

    __slots__ = ("_tensor", "affine", "limit", "predicate")

    def __init__(self, predicate: str, affine: Affine, limit: Value) -> None:
        self.predicate, self.affine, self.limit = predicate, affine, limit
        self._tensor: torch.Tensor | None = None

    def tensor(self) -> torch.Tensor:
        """Return the booleans."""
        if self._tensor is None:
            self._tensor = COMPARISONS[self.predicate](self.affine.tensor(), self.limit)
        return self._tensor

    def always(self) -> bool:
        """Return True if the comparison is true everywhere, as far as the bounds show."""
        low, high = self.affine.bounds()
        least, most = extremes(self.limit)
        name = self.predicate
        if name[0] == "u" and low < 0:
            return False
        if name[1:] == "lt":
            return high < least
        if name[1:] == "le":
            return high <= least
        return low > most if name[1:] == "gt" else low >= most

    def prefix(self) -> tuple[int, int] | None:
        """Return (axis, n) if it is true exactly for the first n positions along one axis, else None."""
        affine = self.affine
        uniform = isinstance(affine.base, int) and isinstance(self.limit, int) and len(affine.strides) == 1
        if not uniform or self.predicate[1:] not in ("lt", "le"):
            return None
        ((axis, stride),) = affine.strides.items()
        if stride != 1 or (self.predicate[0] == "u" and affine.base < 0):
            return None
        count = self.limit - affine.base + (self.predicate[1:] == "le")
        return axis, min(max(count, 0), affine.shape[axis])


class Mask:
    """Booleans that are true where all parts are true. Parts are comparisons and tensors."""

    __slots__ = ("_tensor", "parts")

    def __init__(self, parts: tuple[Value, ...]) -> None:
        self.parts = parts
        self._tensor: torch.Tensor | None = None

    def tensor(self) -> torch.Tensor:
        """Return the booleans."""
        if self._tensor is None:
            total = plain(self.parts[0])
            for part in self.parts[1:]:
                total = total & plain(part)
            self._tensor = total
        return self._tensor


def conjunction(a: Value, b: Value) -> Value:
    """Return a mask that is true where both masks are true."""
    if isinstance(a, bool):
        return b if a else False
    if isinstance(b, bool):
        return a if b else False
    parts = (*(a.parts if isinstance(a, Mask) else (a,)), *(b.parts if isinstance(b, Mask) else (b,)))
    return Mask(parts)


def needed(mask: Value) -> Value:
    """Return a mask without the parts that are true everywhere; True if no part is left."""
    if mask is None or isinstance(mask, (bool, torch.Tensor)):
        return True if mask is None else mask
    parts = mask.parts if isinstance(mask, Mask) else (mask,)
    left = tuple(part for part in parts if not (isinstance(part, Compare) and part.always()))
    if not left:
        return True
    return left[0] if len(left) == 1 else mask if len(left) == len(parts) else Mask(left)


def compared(predicate: str, a: Value, b: Value, element: str) -> Value:
    """Compare integers; lazily where one side is affine."""
    if not isinstance(a, (torch.Tensor, Affine)) and not isinstance(b, (torch.Tensor, Affine)):
        if predicate[0] == "u":
            a, b = (value & ((1 << WIDTHS[element]) - 1) for value in (a, b))
        return bool({"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[predicate[-2:]])
    if predicate in _SWAPPED:
        if isinstance(b, Affine) and not isinstance(a, Affine):
            a, b, predicate = b, a, _SWAPPED[predicate]
        signed = predicate[0] == "s" or extremes(b.base if isinstance(b, Affine) else b)[0] >= 0
        if isinstance(a, Affine) and not isinstance(b, Affine) and signed:
            return Compare(predicate, a, b)
    a, b = plain(a), plain(b)
    if predicate[0] == "u":
        a, b = unsigned(a, element), unsigned(b, element)
    if not isinstance(a, torch.Tensor):
        a, b, predicate = b, a, _SWAPPED.get(predicate, predicate)
    return COMPARISONS[predicate](a, b)


def unsigned(value: Value, element: str) -> Value:
    """Return integers for unsigned comparison and division; 64-bit integers are shifted by half their range."""
    if element == "i1":
        return value
    if element == "i64":
        return value ^ (-(1 << 63))
    mask = (1 << WIDTHS[element]) - 1
    return value.to(torch.int64) & mask if isinstance(value, torch.Tensor) else value & mask


@dataclass(slots=True)
class Pointer:
    """Addresses: offsets in the memory of an argument, in elements, or plain addresses if `argument` is -1.

    Attributes:
        argument: number of the kernel's argument.
        offset: an integer, a tensor or an `Affine`.
        element: type of the elements.
    """

    argument: int
    offset: Value
    element: str


def plain(value: Value) -> Value:
    """Return a tensor or a number; lazy values are computed."""
    return value.tensor() if isinstance(value, (Affine, Compare, Mask)) else value


def as_tensor(value: Value, element: str, rank: int) -> torch.Tensor:
    """Return a tensor with rank + 1 dimensions, of size 1 where the value is constant."""
    value = plain(value)
    if isinstance(value, torch.Tensor):
        return value
    return torch.full((1,) * (rank + 1), value, dtype=dtype_of(element))


def full(value: Value, element: str, shape: tuple[int, ...], programs: int) -> torch.Tensor:
    """Return a tensor of shape [programs, *shape], expanded."""
    return as_tensor(value, element, len(shape)).expand(programs, *shape)


def restricted(value: Value, index: torch.Tensor, programs: int) -> Value:
    """Return a value restricted to some of the programs."""
    if isinstance(value, torch.Tensor):
        if not value.dim() or value.shape[0] != programs or programs == 1:
            return value
        chosen = value.index_select(0, index)
        is_number = len(index) == 1 and chosen.dim() == 1 and not chosen.is_floating_point()
        return chosen.item() if is_number else chosen
    if isinstance(value, Affine):
        return Affine(restricted(value.base, index, programs), value.strides, value.shape, value.element)
    if isinstance(value, Compare):
        return Compare(
            value.predicate, restricted(value.affine, index, programs), restricted(value.limit, index, programs)
        )
    if isinstance(value, Mask):
        return Mask(tuple(restricted(part, index, programs) for part in value.parts))
    if isinstance(value, Pointer):
        return Pointer(value.argument, restricted(value.offset, index, programs), value.element)
    return value


def merged(pieces: list[tuple[torch.Tensor, Value]], element: str, shape: tuple[int, ...]) -> Value:
    """Merge the values of disjoint sets of programs: pairs of the programs and their values."""
    first = pieces[0][1]
    lazy = isinstance(first, (torch.Tensor, Affine, Compare, Mask, Pointer))
    if not lazy and all(other.__class__ is first.__class__ and other == first for _, other in pieces):
        return first
    if isinstance(first, Pointer):
        offset = merged([(index, piece.offset) for index, piece in pieces], "i64", shape)
        return Pointer(first.argument, offset, first.element)
    tensors = [as_tensor(value, element, len(shape)) for _, value in pieces]
    sizes = tuple(max(tensor.shape[axis + 1] for tensor in tensors) for axis in range(len(shape)))
    order = torch.cat([index for index, _ in pieces])
    dtype = tensors[0].dtype if all(t.dtype == tensors[0].dtype for t in tensors) else torch.int64
    total = torch.empty((len(order), *sizes), dtype=dtype)
    for (index, _), tensor in zip(pieces, tensors, strict=True):
        total[index] = tensor.to(dtype).expand(len(index), *sizes)
    return total


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape to which all shapes broadcast."""
    shapes_: Any = torch.broadcast_shapes
    return tuple(shapes_(*shapes))


def numel(shape: tuple[int, ...]) -> int:
    """Return the number of elements of a tile."""
    return math.prod(shape)
