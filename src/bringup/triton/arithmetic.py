"""The elementwise operations of TTIR: integers, floats, comparisons, conversions."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from bringup.errors import BringupError
from bringup.triton import libdevice
from bringup.triton.lowering import Step, addresses, lowering
from bringup.triton.ttir import Op, Type
from bringup.triton.values import (
    WIDTHS,
    Affine,
    Pointer,
    Value,
    as_tensor,
    compared,
    conjunction,
    dtype_of,
    plain,
    unsigned,
    wrapped,
)

Tensor = torch.Tensor


# ---- arithmetic

INTEGERS: dict[str, tuple[Callable[[int, int], int], Any]] = {
    "arith.addi": (operator.add, torch.add),
    "arith.subi": (operator.sub, torch.sub),
    "arith.muli": (operator.mul, torch.mul),
    "arith.ori": (operator.or_, torch.bitwise_or),
    "arith.xori": (operator.xor, torch.bitwise_xor),
    "arith.andi": (operator.and_, torch.bitwise_and),
    "arith.maxsi": (max, torch.maximum),
    "arith.minsi": (min, torch.minimum),
}


def _both(a: Value, b: Value, element: str) -> tuple[Any, Any]:
    """Return both sides for torch's binary functions, which need at least one tensor."""
    a, b = plain(a), plain(b)
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return torch.full((1,), a, dtype=dtype_of(element)), b
    return a, b


def _needs_tensors(function: Any) -> bool:
    return function in (torch.maximum, torch.minimum, torch.fmax, torch.fmin, torch.atan2, torch.hypot, torch.nextafter)


@lowering(*INTEGERS)
def _integers(op: Op, types: list[Type]) -> Step:
    (x, y), (result,) = op.operands, op.results
    element, rank = types[result].element, len(types[result].shape)
    on_numbers, on_tensors = INTEGERS[op.name]
    name = op.name

    def step(env: list[Value], ctx: Any) -> None:
        a, b = env[x], env[y]
        if isinstance(a, (int, bool)) and isinstance(b, (int, bool)):
            env[result] = wrapped(on_numbers(a, b), element)
            return
        if element == "i1":
            env[result] = _booleans(name, a, b)
            return
        if isinstance(a, Affine) or isinstance(b, Affine):
            lazy = _lazily(name, a, b)
            if lazy is not None:
                env[result] = lazy
                return
        a, b = plain(a), plain(b)
        if _needs_tensors(on_tensors) or not isinstance(a, Tensor):
            a, b = as_tensor(a, element, rank), as_tensor(b, element, rank)
        env[result] = on_tensors(a, b)

    return step


def _booleans(name: str, a: Value, b: Value) -> Value:
    if name in ("arith.andi", "arith.muli", "arith.minsi"):
        return conjunction(a, b)
    a, b = torch.as_tensor(plain(a)), torch.as_tensor(plain(b))
    return a ^ b if name in ("arith.xori", "arith.addi", "arith.subi") else a | b


def _lazily(name: str, a: Value, b: Value) -> Value | None:
    if name == "arith.addi":
        return a.added(b) if isinstance(a, Affine) else b.added(a)
    if name == "arith.subi" and isinstance(a, Affine):
        return a.added(b.scaled(-1) if isinstance(b, Affine) else -b)
    if name == "arith.muli":
        if isinstance(a, Affine) and isinstance(b, int):
            return a.scaled(b)
        if isinstance(b, Affine) and isinstance(a, int):
            return b.scaled(a)
    return None


@lowering("arith.divsi", "arith.remsi", "arith.divui", "arith.remui", "arith.ceildivsi", "arith.floordivsi")
def _division(op: Op, types: list[Type]) -> Step:
    (x, y), (result,) = op.operands, op.results
    kind = types[result]
    divides, is_unsigned = "div" in op.name, op.name.endswith("ui")

    def step(env: list[Value], ctx: Any) -> None:
        a, b = env[x], env[y]
        if isinstance(a, int) and isinstance(b, int):
            if is_unsigned:
                bits = (1 << WIDTHS[kind.element]) - 1
                a, b = a & bits, b & bits
            quotient = 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
            env[result] = wrapped(quotient if divides else a - quotient * b, kind.element)
            return
        if isinstance(a, Affine) and isinstance(b, int) and not divides and (not is_unsigned or a.bounds()[0] >= 0):
            env[result] = a.modulo(b)
            return
        a, b = as_tensor(a, kind.element, len(kind.shape)), as_tensor(b, kind.element, len(kind.shape))
        if is_unsigned and WIDTHS[kind.element] < 64:
            a, b = unsigned(a, kind.element), unsigned(b, kind.element)
        elif is_unsigned and (bool((a < 0).any()) or bool((b < 0).any())):
            a, b = a.to(torch.uint64), b.to(torch.uint64)
            env[result] = _wide_division(a, b, divides)
            return
        b = torch.where(b == 0, 1, b)  # division by zero is undefined on a GPU too
        remainder_or_quotient = torch.div(a, b, rounding_mode="trunc") if divides else torch.fmod(a, b)
        env[result] = remainder_or_quotient.to(dtype_of(kind.element))

    return step


def _wide_division(a: Tensor, b: Tensor, divides: bool) -> Tensor:
    import numpy as np

    left, right = np.broadcast_arrays(a.numpy(), b.numpy())
    right = np.where(right == 0, np.uint64(1), right)
    bits = left // right if divides else left % right
    return torch.from_numpy(bits.view(np.int64).copy())


@lowering("arith.maxui", "arith.minui")
def _unsigned_extremum(op: Op, types: list[Type]) -> Step:
    (x, y), (result,) = op.operands, op.results
    kind = types[result]
    larger = op.name == "arith.maxui"

    def step(env: list[Value], ctx: Any) -> None:
        a, b = (as_tensor(env[v], kind.element, len(kind.shape)) for v in (x, y))
        first = unsigned(a, kind.element) > unsigned(b, kind.element)
        env[result] = torch.where(first if larger else ~first, a, b)

    return step


@lowering("arith.shli", "arith.shrsi", "arith.shrui")
def _shift(op: Op, types: list[Type]) -> Step:
    (x, y), (result,) = op.operands, op.results
    kind = types[result]
    width = WIDTHS[kind.element]
    bits = (1 << width) - 1
    name = op.name

    def step(env: list[Value], ctx: Any) -> None:
        a, b = env[x], env[y]
        if isinstance(a, int) and isinstance(b, int):
            if not 0 <= b < width:
                env[result] = 0
            elif name == "arith.shli":
                env[result] = wrapped(a << b, kind.element)
            else:
                env[result] = wrapped((a & bits if name == "arith.shrui" else a) >> b, kind.element)
            return
        if isinstance(a, Affine) and name == "arith.shli" and isinstance(b, int):
            env[result] = a.scaled(1 << b)
            return
        a, b = (as_tensor(v, kind.element, len(kind.shape)) for v in (a, b))
        if name == "arith.shli":
            env[result] = torch.where((b < 0) | (b >= width), 0, a << b.clamp(0, width - 1))
        elif name == "arith.shrsi":
            env[result] = a >> b.clamp(0, width - 1)
        elif width < 64:
            env[result] = (unsigned(a, kind.element) >> b.clamp(0, width).long()).to(a.dtype)
        else:
            low_bits = torch.where(b == 0, -1, (1 << (63 - (b - 1).clamp(0, 62))) - 1)
            env[result] = torch.where(b >= width, 0, (a >> b.clamp(0, 63)) & low_bits)

    return step


@lowering("tt.mulhiui")
def _high_product(op: Op, types: list[Type]) -> Step:
    (x, y), (result,) = op.operands, op.results
    kind = types[result]

    def step(env: list[Value], ctx: Any) -> None:
        a, b = (as_tensor(env[v], kind.element, len(kind.shape)) for v in (x, y))
        if kind.element == "i32":
            # The product of two 32-bit numbers fits into 64 bits; a sign bit in it has no effect.
            product = (a.long() & 0xFFFFFFFF) * (b.long() & 0xFFFFFFFF)
            env[result] = (product >> 32).to(torch.int32)
            return
        low = 0xFFFFFFFF
        a0, a1, b0, b1 = a & low, (a >> 32) & low, b & low, (b >> 32) & low
        middle = a1 * b0 + ((a0 * b0 >> 32) & low)
        other = (middle & low) + a0 * b1
        env[result] = a1 * b1 + ((middle >> 32) & low) + ((other >> 32) & low)

    return step


FLOATS: dict[str, Any] = {
    "arith.addf": torch.add,
    "arith.subf": torch.sub,
    "arith.mulf": torch.mul,
    "arith.divf": torch.div,
    "tt.precise_divf": torch.div,
    "arith.remf": torch.fmod,
    "arith.maximumf": torch.maximum,
    "arith.minimumf": torch.minimum,
    "arith.maxnumf": torch.fmax,
    "arith.minnumf": torch.fmin,
    "math.powf": torch.pow,
    "math.atan2": torch.atan2,
    "math.copysign": torch.copysign,
}


@lowering(*FLOATS)
def _floats(op: Op, types: list[Type]) -> Step:
    (x, y), (result,) = op.operands, op.results
    element, rank = types[result].element, len(types[result].shape)
    function = FLOATS[op.name]
    strict = _needs_tensors(function)
    # Python's numbers are doubles: torch does not round them to half precision beside a tensor of halves.
    narrow = element in ("f16", "bf16")

    def step(env: list[Value], ctx: Any) -> None:
        a, b = env[x], env[y]
        if strict or narrow or not isinstance(a, Tensor):
            a = as_tensor(a, element, rank)
            if strict or narrow:
                b = as_tensor(b, element, rank)
        env[result] = function(a, b)

    return step


UNARY: dict[str, Any] = {
    "arith.negf": torch.neg,
    "math.absf": torch.abs,
    "math.absi": torch.abs,
    "math.exp": torch.exp,
    "math.exp2": torch.exp2,
    "math.expm1": torch.expm1,
    "math.log": torch.log,
    "math.log2": torch.log2,
    "math.log10": torch.log10,
    "math.log1p": torch.log1p,
    "math.sin": torch.sin,
    "math.cos": torch.cos,
    "math.tan": torch.tan,
    "math.tanh": torch.tanh,
    "math.sqrt": torch.sqrt,
    "tt.precise_sqrt": torch.sqrt,
    "math.rsqrt": torch.rsqrt,
    "math.erf": torch.erf,
    "math.floor": torch.floor,
    "math.ceil": torch.ceil,
    "math.trunc": torch.trunc,
    "math.roundeven": torch.round,
    "math.isnan": torch.isnan,
    "math.isinf": torch.isinf,
    "math.isfinite": torch.isfinite,
}


@lowering(*UNARY)
def _unary(op: Op, types: list[Type]) -> Step:
    (source,), (result,) = op.operands, op.results
    kind = types[source]
    function = UNARY[op.name]

    def step(env: list[Value], ctx: Any) -> None:
        env[result] = function(as_tensor(env[source], kind.element, len(kind.shape)))

    return step


@lowering("math.fma")
def _fma(op: Op, types: list[Type]) -> Step:
    (x, y, z), (result,) = op.operands, op.results
    kind = types[result]

    def step(env: list[Value], ctx: Any) -> None:
        a, b, c = (as_tensor(env[v], kind.element, len(kind.shape)) for v in (x, y, z))
        if kind.element == "f32":  # one rounding, as in hardware
            env[result] = (a.double() * b.double() + c.double()).float()
        else:
            env[result] = torch.addcmul(c, a, b)

    return step


@lowering("tt.clampf")
def _clamp(op: Op, types: list[Type]) -> Step:
    (x, low, high), (result,) = op.operands, op.results
    kind = types[result]
    propagates = "all" in op.attributes.values() or "all" in op.words

    def step(env: list[Value], ctx: Any) -> None:
        a, b, c = (as_tensor(env[v], kind.element, len(kind.shape)) for v in (x, low, high))
        env[result] = torch.minimum(torch.maximum(a, b), c) if propagates else torch.fmin(torch.fmax(a, b), c)

    return step


@lowering("arith.select")
def _select(op: Op, types: list[Type]) -> Step:
    (condition, x, y), (result,) = op.operands, op.results
    kind = types[result]
    rank = len(kind.shape)

    def step(env: list[Value], ctx: Any) -> None:
        chosen, a, b = plain(env[condition]), env[x], env[y]
        if isinstance(chosen, bool):
            env[result] = a if chosen else b
            return
        if rank and chosen.dim() == 1:
            chosen = chosen.view(-1, *(1,) * rank)
        if isinstance(a, Pointer):
            env[result] = _select_pointers(chosen, a, b, ctx)
            return
        if kind.element == "i1":
            env[result] = torch.where(chosen, as_tensor(a, "i1", rank), as_tensor(b, "i1", rank))
            return
        a, b = plain(a), plain(b)
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            a, b = as_tensor(a, kind.element, rank), as_tensor(b, kind.element, rank)
        if a.itemsize == 1 and a.is_floating_point():
            env[result] = torch.where(chosen, a.view(torch.uint8), b.view(torch.uint8)).view(a.dtype)
        else:
            env[result] = torch.where(chosen, a, b)

    return step


@lowering("arith.cmpi")
def _compare_integers(op: Op, types: list[Type]) -> Step:
    (x, y), (result,) = op.operands, op.results
    predicate, element = op.words[0], types[x].element

    def step(env: list[Value], ctx: Any) -> None:
        a, b = env[x], env[y]
        if isinstance(a, Pointer):
            a, b = addresses(a, ctx), addresses(b, ctx)
        env[result] = compared(predicate, a, b, element)

    return step


@lowering("arith.cmpf")
def _compare_floats(op: Op, types: list[Type]) -> Step:
    (x, y), (result,) = op.operands, op.results
    predicate, kind = op.words[0], types[x]
    rank = len(kind.shape)
    base = {"eq": torch.eq, "ne": torch.ne, "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge}

    def step(env: list[Value], ctx: Any) -> None:
        a, b = as_tensor(env[x], kind.element, rank), as_tensor(env[y], kind.element, rank)
        if predicate in ("ord", "uno"):
            either = torch.isnan(a) | torch.isnan(b)
            env[result] = either if predicate == "uno" else ~either
            return
        holds = base[predicate[1:]](a, b)
        if predicate == "one":
            holds = holds & ~(torch.isnan(a) | torch.isnan(b))
        elif predicate[0] == "u" and predicate != "une":
            holds = holds | torch.isnan(a) | torch.isnan(b)
        env[result] = holds

    return step


# ---- conversions


@lowering("arith.extsi", "arith.index_cast", "arith.extui", "arith.trunci", "arith.sitofp", "arith.uitofp")
def _from_integers(op: Op, types: list[Type]) -> Step:
    (source,), (result,) = op.operands, op.results
    before, after = types[source], types[result]
    dtype, keeps_sign = dtype_of(after.element), op.name in ("arith.extsi", "arith.index_cast", "arith.sitofp")
    to_float = op.name.endswith("fp")

    def step(env: list[Value], ctx: Any) -> None:
        value = env[source]
        if isinstance(value, (int, bool)):
            if not keeps_sign and before.element != "i1":
                value &= (1 << WIDTHS[before.element]) - 1
            elif keeps_sign and before.element == "i1":
                value = -int(value)
            env[result] = float(value) if to_float else wrapped(int(value), after.element)
            return
        widens = isinstance(value, Affine) and not to_float and op.name != "arith.trunci"
        if widens and (keeps_sign or value.bounds()[0] >= 0):
            env[result] = value.of_type(after.element)
            return
        value = plain(value)
        if before.element == "i1" and keeps_sign:
            value = -value.to(torch.int8)
        elif not keeps_sign and op.name != "arith.trunci" and before.element != "i1":
            value = _as_unsigned(value, before.element, to_float)
        if after.element == "i1":
            value = (value & 1).bool()
        env[result] = value.to(dtype)

    return step


def _as_unsigned(value: Tensor, element: str, to_float: bool) -> Tensor:
    if element != "i64":
        narrow: Tensor = unsigned(value, element)
        return narrow
    if not to_float:
        return value
    half = (value >> 1) & ((1 << 63) - 1)
    return torch.where(value < 0, half.double() * 2 + (value & 1), value.double())


@lowering("arith.truncf", "arith.extf", "tt.fp_to_fp")
def _between_floats(op: Op, types: list[Type]) -> Step:
    (source,), (result,) = op.operands, op.results
    before, after = types[source], types[result]
    dtype, toward_zero = dtype_of(after.element), "rtz" in op.words or op.attributes.get("rounding") == "rtz"
    before_dtype = dtype_of(before.element)

    def step(env: list[Value], ctx: Any) -> None:
        value = as_tensor(env[source], before.element, len(before.shape))
        converted = value.to(dtype)
        if toward_zero and dtype.itemsize < before_dtype.itemsize:
            converted = _toward_zero(value, converted)
        env[result] = converted

    return step


def _toward_zero(value: Tensor, rounded: Tensor) -> Tensor:
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32}[rounded.itemsize]
    too_far = rounded.double().abs() > value.double().abs()
    return torch.where(too_far, rounded.view(bits) - 1, rounded.view(bits)).view(rounded.dtype)


@lowering("arith.fptosi", "arith.fptoui")
def _to_integers(op: Op, types: list[Type]) -> Step:
    (source,), (result,) = op.operands, op.results
    before, after = types[source], types[result]
    dtype = dtype_of(after.element)

    def step(env: list[Value], ctx: Any) -> None:
        value = as_tensor(env[source], before.element, len(before.shape))
        if op.name == "arith.fptoui" and WIDTHS[after.element] < 64:
            env[result] = value.double().trunc().to(torch.int64).to(dtype)
        elif op.name == "arith.fptoui":
            large = value.double() >= 2.0**63
            env[result] = torch.where(large, (value.double() - 2.0**63).long() ^ -(1 << 63), value.double().long())
        else:
            env[result] = value.to(dtype) if after.element != "i1" else value != 0

    return step


@lowering("tt.bitcast", "arith.bitcast")
def _bitcast(op: Op, types: list[Type]) -> Step:
    (source,), (result,) = op.operands, op.results
    before, after = types[source], types[result]
    dtype = dtype_of(after.element)

    def step(env: list[Value], ctx: Any) -> None:
        value = env[source]
        if isinstance(value, Pointer):
            old, new = dtype_of(value.element).itemsize, dtype.itemsize
            offset = value.offset
            if old != new:
                offset = (
                    plain(offset) * old // new
                    if old > new
                    else torch.as_tensor(plain(offset))
                    .reshape(torch.as_tensor(plain(offset)).shape or (1,))
                    .mul(old)
                    .div(new, rounding_mode="floor")
                )
            env[result] = Pointer(value.argument, offset if value.argument >= 0 else value.offset, after.element)
            return
        tile = as_tensor(value, before.element, len(before.shape))
        if "i1" in (before.element, after.element):
            env[result] = tile.to(dtype)
        else:
            env[result] = tile.contiguous().view(dtype)

    return step


def _select_pointers(chosen: Tensor, a: Pointer, b: Pointer, ctx: Any) -> Pointer:
    if a.argument == b.argument:
        rank = chosen.dim() - 1
        return Pointer(
            a.argument,
            torch.where(chosen, as_tensor(a.offset, "i64", rank), as_tensor(b.offset, "i64", rank)),
            a.element,
        )
    return Pointer(-1, torch.where(chosen, addresses(a, ctx), addresses(b, ctx)), a.element)


# ---- libdevice


@lowering("tt.extern_elementwise")
def _extern(op: Op, types: list[Type]) -> Step:
    (result,) = op.results
    symbol = str(op.attributes["symbol"])
    function = libdevice.external(symbol)
    if function is None:
        raise BringupError(f"{symbol}: bringup does not have this function of libdevice, used at {op.line}")
    kinds = [types[value] for value in op.operands]
    dtype = dtype_of(types[result].element)

    def step(env: list[Value], ctx: Any) -> None:
        values = [as_tensor(env[v], kind.element, len(kind.shape)) for v, kind in zip(op.operands, kinds, strict=True)]
        env[result] = function(*values).to(dtype)

    return step
