"""What each operation of TTIR does, for many programs at once: one function per operation.

A lowering gets the operation and the types of the function's values and returns a step: a function of the values
(`env`, a list by number) and the context (`executor.Context`). Adding an operation means adding a decorated function.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from bringup.errors import BringupError
from bringup.kernels.ttir import Op, Type
from bringup.kernels.values import (
    WIDTHS,
    Affine,
    Compare,
    Mask,
    Pointer,
    Value,
    as_tensor,
    compared,
    conjunction,
    dtype_of,
    full,
    numel,
    plain,
    unsigned,
    wrapped,
)

Step = Callable[[list[Value], Any], None]
Lowering = Callable[[Op, list[Type]], Step]
LOWERINGS: dict[str, Lowering] = {}
Tensor = torch.Tensor


def lowering(*names: str) -> Callable[[Lowering], Lowering]:
    """Register the lowering of operations."""

    def register(function: Lowering) -> Lowering:
        for name in names:
            assert name not in LOWERINGS, name
            LOWERINGS[name] = function
        return function

    return register


def lower(op: Op, types: list[Type]) -> Step:
    """Return the step of an operation.

    Raises:
        BringupError: kernels cannot use it; the message has the line.
    """
    if op.name not in LOWERINGS:
        raise BringupError(f"{op.name}: bringup does not run this operation of Triton, used at {op.line}")
    return LOWERINGS[op.name](op, types)


# ---- constants, ranges, shapes


@lowering("arith.constant")
def _constant(op: Op, types: list[Type]) -> Step:
    (result,) = op.results
    kind, value = types[result], op.attributes["value"]
    if isinstance(value, list):
        value = torch.tensor(value, dtype=dtype_of(kind.element)).view(1, *kind.shape)
    elif kind.element == "i1":
        value = bool(value)
    elif kind.element in WIDTHS:
        value = wrapped(value, kind.element)
    else:
        dtype_of(kind.element)

    def step(env: list[Value], ctx: Any) -> None:
        env[result] = value

    return step


@lowering("tt.make_range")
def _make_range(op: Op, types: list[Type]) -> Step:
    (result,) = op.results
    kind = types[result]
    value = Affine(int(op.attributes["start"]), {0: 1}, kind.shape, "i32")

    def step(env: list[Value], ctx: Any) -> None:
        env[result] = value

    return step


@lowering("tt.get_program_id", "tt.get_num_programs")
def _program_id(op: Op, types: list[Type]) -> Step:
    (result,) = op.results
    axis = "xyz".index(op.words[0])
    name = "program" if op.name == "tt.get_program_id" else "grid"

    def step(env: list[Value], ctx: Any) -> None:
        env[result] = getattr(ctx, name)[axis]

    return step


def _reshaped(value: Value, shape: tuple[int, ...]) -> Value:
    """Return a value with new tile dimensions, given where nothing varies along what is changed."""
    if isinstance(value, Pointer):
        return Pointer(value.argument, _reshaped(value.offset, shape), value.element)
    value = plain(value)
    return value.reshape(value.shape[0], *shape) if isinstance(value, Tensor) else value


@lowering("tt.splat")
def _splat(op: Op, types: list[Type]) -> Step:
    (source,), (result,) = op.operands, op.results
    ones = (1,) * len(types[result].shape)

    def step(env: list[Value], ctx: Any) -> None:
        env[result] = _reshaped(env[source], ones)

    return step


def _expanded(value: Value, axis: int, shape: tuple[int, ...]) -> Value:
    if isinstance(value, Pointer):
        return Pointer(value.argument, _expanded(value.offset, axis, shape), value.element)
    if isinstance(value, Affine):
        base = value.base.unsqueeze(axis + 1) if isinstance(value.base, Tensor) else value.base
        strides = {old + (old >= axis): stride for old, stride in value.strides.items()}
        return Affine(base, strides, shape, value.element)
    if isinstance(value, Compare):
        limit = value.limit.unsqueeze(axis + 1) if isinstance(value.limit, Tensor) else value.limit
        return Compare(value.predicate, _expanded(value.affine, axis, shape), limit)
    if isinstance(value, Mask):
        return Mask(tuple(_expanded(part, axis, shape) for part in value.parts))
    return value.unsqueeze(axis + 1) if isinstance(value, Tensor) else value


@lowering("tt.expand_dims")
def _expand_dims(op: Op, types: list[Type]) -> Step:
    (source,), (result,) = op.operands, op.results
    axis, shape = int(op.attributes["axis"]), types[result].shape

    def step(env: list[Value], ctx: Any) -> None:
        env[result] = _expanded(env[source], axis, shape)

    return step


def _broadcast_to(value: Value, shape: tuple[int, ...]) -> Value:
    if isinstance(value, Pointer):
        return Pointer(value.argument, _broadcast_to(value.offset, shape), value.element)
    if isinstance(value, Affine):
        strides = {axis: stride for axis, stride in value.strides.items() if value.shape[axis] == shape[axis]}
        return Affine(value.base, strides, shape, value.element)
    if isinstance(value, Compare):
        return Compare(value.predicate, _broadcast_to(value.affine, shape), value.limit)
    if isinstance(value, Mask):
        return Mask(tuple(_broadcast_to(part, shape) for part in value.parts))
    return value


@lowering("tt.broadcast")
def _broadcast(op: Op, types: list[Type]) -> Step:
    (source,), (result,) = op.operands, op.results
    shape = types[result].shape

    def step(env: list[Value], ctx: Any) -> None:
        env[result] = _broadcast_to(env[source], shape)

    return step


def _tiled(value: Value, kind: Type, ctx: Any) -> Tensor:
    """Return a tensor with all of a tile's elements, for what moves them."""
    tensor = as_tensor(value, kind.element, len(kind.shape))
    return tensor.expand(tensor.shape[0], *kind.shape)


def _moving(op: Op, types: list[Type], move: Callable[[Tensor], Tensor]) -> Step:
    """Return the step of an operation that moves a tile's elements, addresses included."""
    (source,), (result,) = op.operands, op.results
    kind = types[source]

    def step(env: list[Value], ctx: Any) -> None:
        value = env[source]
        if isinstance(value, Pointer):
            offset = _tiled(value.offset, Type("i64", kind.shape), ctx)
            env[result] = Pointer(value.argument, move(offset), value.element)
        elif isinstance(value, (int, float)):
            env[result] = value
        else:
            env[result] = move(_tiled(value, kind, ctx))

    return step


@lowering("tt.reshape", "ttg.convert_layout")
def _reshape(op: Op, types: list[Type]) -> Step:
    shape = types[op.results[0]].shape
    return _moving(op, types, lambda tile: tile.reshape(tile.shape[0], *shape))


@lowering("tt.trans")
def _trans(op: Op, types: list[Type]) -> Step:
    order = [0, *(axis + 1 for axis in op.attributes["order"])]
    return _moving(op, types, lambda tile: tile.permute(order))


@lowering("tt.unsplat")
def _unsplat(op: Op, types: list[Type]) -> Step:
    return _moving(op, types, lambda tile: tile.reshape(tile.shape[0]))


@lowering("tt.join", "tt.cat")
def _join(op: Op, types: list[Type]) -> Step:
    (a, b), (result,) = op.operands, op.results
    kind = types[a]
    put = torch.stack if op.name == "tt.join" else torch.cat

    def step(env: list[Value], ctx: Any) -> None:
        first, second = _tiled(env[a], kind, ctx), _tiled(env[b], kind, ctx)
        programs = max(first.shape[0], second.shape[0])
        pair = [one.expand(programs, *kind.shape) for one in (first, second)]
        env[result] = put(pair, -1) if op.name == "tt.join" else put(pair, 1)

    return step


@lowering("tt.split")
def _split(op: Op, types: list[Type]) -> Step:
    (source,), (a, b) = op.operands, op.results
    kind = types[source]

    def step(env: list[Value], ctx: Any) -> None:
        tile = _tiled(env[source], kind, ctx)
        env[a], env[b] = tile[..., 0], tile[..., 1]

    return step


@lowering("tt.gather")
def _gather(op: Op, types: list[Type]) -> Step:
    (source, index), (result,) = op.operands, op.results
    axis = int(op.attributes["axis"])

    def step(env: list[Value], ctx: Any) -> None:
        tile = full(env[source], types[source].element, types[source].shape, ctx.programs)
        place = full(env[index], types[index].element, types[index].shape, ctx.programs)
        env[result] = torch.gather(tile, axis + 1, place.long())

    return step


@lowering("tt.histogram")
def _histogram(op: Op, types: list[Type]) -> Step:
    source, (result,) = op.operands[0], op.results
    mask = op.operands[1] if len(op.operands) > 1 else None
    (bins,) = types[result].shape
    dtype = dtype_of(types[result].element)

    def step(env: list[Value], ctx: Any) -> None:
        tile = full(env[source], types[source].element, types[source].shape, ctx.programs).long()
        weight = torch.ones_like(tile)
        if mask is not None:
            weight = weight * full(env[mask], "i1", types[mask].shape, ctx.programs)
        inside = (tile >= 0) & (tile < bins)
        counts = torch.zeros((ctx.programs, bins), dtype=torch.int64)
        env[result] = counts.scatter_add_(1, tile.clamp(0, bins - 1), weight * inside).to(dtype)

    return step


# ---- arithmetic

_INT: dict[str, tuple[Callable[[int, int], int], Any]] = {
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
    """Return the two sides as torch's binary functions take them: at least one a tensor."""
    a, b = plain(a), plain(b)
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return torch.full((1,), a, dtype=dtype_of(element)), b
    return a, b


def _needs_tensors(function: Any) -> bool:
    return function in (torch.maximum, torch.minimum, torch.fmax, torch.fmin, torch.atan2, torch.hypot, torch.nextafter)


@lowering(*_INT)
def _integers(op: Op, types: list[Type]) -> Step:
    (x, y), (result,) = op.operands, op.results
    element, rank = types[result].element, len(types[result].shape)
    on_numbers, on_tensors = _INT[op.name]
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
        b = torch.where(b == 0, 1, b)  # what a GPU gives there is undefined, too
        found = torch.div(a, b, rounding_mode="trunc") if divides else torch.fmod(a, b)
        env[result] = found.to(dtype_of(kind.element))

    return step


def _wide_division(a: Tensor, b: Tensor, divides: bool) -> Tensor:
    import numpy as np

    left, right = np.broadcast_arrays(a.numpy(), b.numpy())
    right = np.where(right == 0, np.uint64(1), right)
    found = left // right if divides else left % right
    return torch.from_numpy(found.view(np.int64).copy())


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
            kept = torch.where(b == 0, -1, (1 << (63 - (b - 1).clamp(0, 62))) - 1)
            env[result] = torch.where(b >= width, 0, (a >> b.clamp(0, 63)) & kept)

    return step


@lowering("tt.mulhiui")
def _high_product(op: Op, types: list[Type]) -> Step:
    (x, y), (result,) = op.operands, op.results
    kind = types[result]

    def step(env: list[Value], ctx: Any) -> None:
        a, b = (as_tensor(env[v], kind.element, len(kind.shape)) for v in (x, y))
        if kind.element == "i32":
            # The product of two 32-bit numbers fits into 64 bits; that it looks negative does not matter.
            product = (a.long() & 0xFFFFFFFF) * (b.long() & 0xFFFFFFFF)
            env[result] = (product >> 32).to(torch.int32)
            return
        low = 0xFFFFFFFF
        a0, a1, b0, b1 = a & low, (a >> 32) & low, b & low, (b >> 32) & low
        middle = a1 * b0 + ((a0 * b0 >> 32) & low)
        other = (middle & low) + a0 * b1
        env[result] = a1 * b1 + ((middle >> 32) & low) + ((other >> 32) & low)

    return step


_FLOAT: dict[str, Any] = {
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


@lowering(*_FLOAT)
def _floats(op: Op, types: list[Type]) -> Step:
    (x, y), (result,) = op.operands, op.results
    element, rank = types[result].element, len(types[result].shape)
    function = _FLOAT[op.name]
    strict = _needs_tensors(function)
    # Python's numbers are doubles: what torch computes with one beside a tensor of halves is not rounded to a half.
    narrow = element in ("f16", "bf16")

    def step(env: list[Value], ctx: Any) -> None:
        a, b = env[x], env[y]
        if strict or narrow or not isinstance(a, Tensor):
            a = as_tensor(a, element, rank)
            if strict or narrow:
                b = as_tensor(b, element, rank)
        env[result] = function(a, b)

    return step


_UNARY: dict[str, Any] = {
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


@lowering(*_UNARY)
def _unary(op: Op, types: list[Type]) -> Step:
    (source,), (result,) = op.operands, op.results
    kind = types[source]
    function = _UNARY[op.name]

    def step(env: list[Value], ctx: Any) -> None:
        env[result] = function(as_tensor(env[source], kind.element, len(kind.shape)))

    return step


@lowering("math.fma")
def _fma(op: Op, types: list[Type]) -> Step:
    (x, y, z), (result,) = op.operands, op.results
    kind = types[result]

    def step(env: list[Value], ctx: Any) -> None:
        a, b, c = (as_tensor(env[v], kind.element, len(kind.shape)) for v in (x, y, z))
        if kind.element == "f32":  # one rounding, as the hardware's
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


def _select_pointers(chosen: Tensor, a: Pointer, b: Pointer, ctx: Any) -> Pointer:
    if a.argument == b.argument:
        rank = chosen.dim() - 1
        return Pointer(
            a.argument,
            torch.where(chosen, as_tensor(a.offset, "i64", rank), as_tensor(b.offset, "i64", rank)),
            a.element,
        )
    return Pointer(-1, torch.where(chosen, addresses(a, ctx), addresses(b, ctx)), a.element)


def addresses(pointer: Pointer, ctx: Any) -> Tensor:
    """Return device addresses."""
    offset = as_tensor(pointer.offset, "i64", 0).long()
    if pointer.argument < 0:
        return offset
    buffer = ctx.memory.buffers[pointer.argument]
    found: Tensor = offset * dtype_of(pointer.element).itemsize + buffer.address + buffer.start
    return found


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
        found = base[predicate[1:]](a, b)
        if predicate == "one":
            found = found & ~(torch.isnan(a) | torch.isnan(b))
        elif predicate[0] == "u" and predicate != "une":
            found = found | torch.isnan(a) | torch.isnan(b)
        env[result] = found

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
        made = value.to(dtype)
        if toward_zero and dtype.itemsize < before_dtype.itemsize:
            made = _toward_zero(value, made)
        env[result] = made

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


# ---- pointers and memory


@lowering("tt.addptr")
def _addptr(op: Op, types: list[Type]) -> Step:
    (source, amount), (result,) = op.operands, op.results
    size = dtype_of(types[source].element).itemsize

    def step(env: list[Value], ctx: Any) -> None:
        pointer, offset = env[source], env[amount]
        if pointer.argument < 0:
            env[result] = Pointer(-1, as_tensor(pointer.offset, "i64", 0) + plain(offset) * size, pointer.element)
            return
        old = pointer.offset
        if isinstance(old, Affine):
            total = old.added(offset)
        elif isinstance(offset, Affine):
            total = offset.added(old)
        else:
            total = old + plain(offset)
        env[result] = Pointer(pointer.argument, total, pointer.element)

    return step


@lowering("tt.int_to_ptr")
def _int_to_ptr(op: Op, types: list[Type]) -> Step:
    (source,), (result,) = op.operands, op.results

    def step(env: list[Value], ctx: Any) -> None:
        address = as_tensor(env[source], "i64", len(types[source].shape))
        env[result] = Pointer(-1, address, types[result].element)

    return step


@lowering("tt.ptr_to_int")
def _ptr_to_int(op: Op, types: list[Type]) -> Step:
    (source,), (result,) = op.operands, op.results

    def step(env: list[Value], ctx: Any) -> None:
        found = addresses(env[source], ctx)
        rank = len(types[source].shape)
        env[result] = found.view(found.shape[0] if found.dim() else 1, *(1,) * rank) if found.dim() <= 1 else found

    return step


@lowering("tt.load")
def _load(op: Op, types: list[Type]) -> Step:
    (result,) = op.results
    source, *rest = op.operands
    mask = rest[0] if rest else None
    other = rest[1] if len(rest) > 1 else None
    kind = types[result]
    is_scalar = not kind.shape and kind.element in WIDTHS

    def step(env: list[Value], ctx: Any) -> None:
        value = ctx.memory.load(
            ctx, env[source], None if mask is None else env[mask], None if other is None else env[other], kind.shape
        )
        if is_scalar and isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        env[result] = value

    return step


@lowering("tt.store")
def _store(op: Op, types: list[Type]) -> Step:
    target, source, *rest = op.operands
    mask = rest[0] if rest else None
    shape = types[target].shape

    def step(env: list[Value], ctx: Any) -> None:
        ctx.memory.store(ctx, env[target], env[source], None if mask is None else env[mask], shape)

    return step


@lowering("tt.atomic_rmw")
def _atomic(op: Op, types: list[Type]) -> Step:
    target, source, *rest = op.operands
    (result,) = op.results
    mask = rest[0] if rest else None
    kind, shape = op.words[0], types[target].shape

    def step(env: list[Value], ctx: Any) -> None:
        ctx.keeps_old = ctx.used(result)
        found = ctx.memory.atomic(ctx, kind, env[target], env[source], None if mask is None else env[mask], shape)
        is_integer = not shape and found.numel() == 1 and not found.is_floating_point()
        env[result] = found.item() if is_integer else found

    return step


@lowering("tt.atomic_cas")
def _compare_and_swap(op: Op, types: list[Type]) -> Step:
    (target, expected, new), (result,) = op.operands, op.results
    shape = types[target].shape

    def step(env: list[Value], ctx: Any) -> None:
        found = ctx.memory.compare_and_swap(ctx, env[target], env[expected], env[new], shape)
        is_integer = not shape and found.numel() == 1 and not found.is_floating_point()
        env[result] = found.item() if is_integer else found

    return step


# ---- products


@lowering("tt.dot")
def _dot(op: Op, types: list[Type]) -> Step:
    (x, y, z), (result,) = op.operands, op.results
    a_kind, b_kind, kind = types[x], types[y], types[result]
    depth = a_kind.shape[-1]
    batched = len(kind.shape) == 3
    if a_kind.element in WIDTHS:
        # Sums of products of bytes are exact in float32 up to a depth of 1,024.
        compute = torch.float32 if a_kind.element == "i8" and depth <= 1024 else torch.float64
    else:
        compute = torch.float64 if kind.element == "f64" else torch.float32
    dtype = dtype_of(kind.element)

    def step(env: list[Value], ctx: Any) -> None:
        a = _tiled(env[x], a_kind, ctx).to(compute)
        b = _tiled(env[y], b_kind, ctx).to(compute)
        c = env[z]
        if batched:
            programs = max(a.shape[0], b.shape[0])
            a = a.expand(programs, *a.shape[1:]).reshape(-1, *a.shape[2:])
            b = b.expand(programs, *b.shape[1:]).reshape(-1, *b.shape[2:])
        elif a.shape[0] != b.shape[0]:
            programs = max(a.shape[0], b.shape[0])
            a, b = a.expand(programs, *a.shape[1:]), b.expand(programs, *b.shape[1:])
        if isinstance(c, (int, float)) and c == 0:
            made = torch.bmm(a, b)
        elif not batched and isinstance(c, Tensor) and c.dtype == compute and c.shape == (a.shape[0], *kind.shape):
            if ctx.accumulates(result) and c is ctx.accumulator.get(result):
                made = c.baddbmm_(a, b)
            else:
                made = torch.baddbmm(c, a, b)
        else:
            made = torch.bmm(a, b)
            if batched:
                made = made.view(-1, *kind.shape)
            env[result] = (made + as_tensor(c, kind.element, len(kind.shape)).to(compute)).to(dtype)
            return
        if batched:
            made = made.view(-1, *kind.shape)
        made = made if dtype == compute else made.to(dtype)
        ctx.accumulator[result] = made
        env[result] = made

    return step


# ---- the rest


@lowering("tt.extern_elementwise")
def _extern(op: Op, types: list[Type]) -> Step:
    (result,) = op.results
    symbol = str(op.attributes["symbol"])
    function = external(symbol)
    if function is None:
        raise BringupError(f"{symbol}: bringup has no such function of libdevice, used at {op.line}")
    kinds = [types[value] for value in op.operands]
    dtype = dtype_of(types[result].element)

    def step(env: list[Value], ctx: Any) -> None:
        values = [as_tensor(env[v], kind.element, len(kind.shape)) for v, kind in zip(op.operands, kinds, strict=True)]
        env[result] = function(*values).to(dtype)

    return step


_EXTERNAL: dict[str, Any] = {
    **{name: getattr(torch, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "asin", "acos", "atan")},
    **{name: getattr(torch, name) for name in ("asinh", "acosh", "atanh", "exp", "exp2", "expm1", "log", "log2")},
    **{name: getattr(torch, name) for name in ("log10", "log1p", "sqrt", "rsqrt", "erf", "erfc", "floor", "ceil")},
    **{name: getattr(torch, name) for name in ("trunc", "lgamma", "hypot", "atan2", "copysign", "nextafter")},
    **{"erfinv": torch.erfinv, "abs": torch.abs, "fabs": torch.abs, "pow": torch.pow, "fmod": torch.fmod},
    **{"rint": torch.round, "nearbyint": torch.round, "fmax": torch.fmax, "fmin": torch.fmin},
    **{
        "max": torch.maximum,
        "min": torch.minimum,
        "isnan": torch.isnan,
        "isinf": torch.isinf,
        "finite": torch.isfinite,
    },
    **{"isfinited": torch.isfinite, "signbit": torch.signbit, "cbrt": lambda x: x.sign() * x.abs().pow(1 / 3)},
    **{"round": lambda x: torch.where(x.abs() % 1 == 0.5, x.trunc() + x.sign(), x.round())},
    **{"fma": lambda a, b, c: torch.addcmul(c, a, b), "rcp": torch.reciprocal, "exp10": lambda x: torch.pow(10.0, x)},
    **{
        "fdim": lambda a, b: (a - b).clamp(min=0),
        "ldexp": torch.ldexp,
        "powi": torch.pow,
        "tgamma": lambda x: _gamma(x),
    },
    **{"normcdf": torch.special.ndtr, "normcdfinv": torch.special.ndtri, "j0": torch.special.bessel_j0},
    **{"j1": torch.special.bessel_j1, "y0": torch.special.bessel_y0, "y1": torch.special.bessel_y1},
    **{"cyl_bessel_i0": torch.special.i0, "cyl_bessel_i1": torch.special.i1, "erfcx": torch.special.erfcx},
    **{"sinpi": lambda x: torch.sin(x * math.pi), "cospi": lambda x: torch.cos(x * math.pi)},
    **{"clz": lambda x: _leading_zeros(x), "popc": lambda x: _ones(x), "ffs": lambda x: _first_one(x)},
    **{
        "mul24": torch.mul,
        "fdividef": torch.div,
        "saturatef": lambda x: x.clamp(0, 1),
        "ilogb": lambda x: x.abs().log2().floor(),
    },
    **{"logb": lambda x: x.abs().log2().floor(), "remainder": lambda a, b: a - b * (a / b).round()},
    **{"llrint": torch.round, "llround": lambda x: _EXTERNAL["round"](x), "rhypot": lambda a, b: 1 / torch.hypot(a, b)},
    **{"float_as_int": lambda x: x.view(torch.int32), "int_as_float": lambda x: x.view(torch.float32)},
    **{"double_as_longlong": lambda x: x.view(torch.int64), "longlong_as_double": lambda x: x.view(torch.float64)},
}
for _operation in ("add", "sub", "mul", "div"):
    for _rounding in ("rn", "rz", "rd", "ru"):
        _EXTERNAL[f"{_operation}_{_rounding}"] = getattr(torch, _operation)


def external(symbol: str) -> Any:
    """Return torch's function for one of libdevice (``__nv_tanhf``); None if there is none."""
    name = symbol.removeprefix("__nv_").removeprefix("fast_")
    for form in (name, name.removesuffix("f"), name.removesuffix("d"), name.removeprefix("f"), name.removeprefix("d")):
        if form in _EXTERNAL:
            return _EXTERNAL[form]
    rounding = name.removeprefix("f").removeprefix("d")
    if rounding in ("sqrt_rn", "rcp_rn"):
        return torch.sqrt if rounding == "sqrt_rn" else torch.reciprocal
    return _EXTERNAL.get(name.removesuffix("ll"))


def _gamma(x: Tensor) -> Tensor:
    odd = (x < 0) & (x.floor() % 2 != 0)
    return torch.lgamma(x).exp() * torch.where(odd, -1.0, 1.0)


def _ones(x: Tensor) -> Tensor:
    width = x.itemsize * 8
    return sum(((x >> bit) & 1 for bit in range(width)), torch.zeros_like(x))


def _leading_zeros(x: Tensor) -> Tensor:
    width = x.itemsize * 8
    count, found = torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool)
    for bit in reversed(range(width)):
        found = found | ((x >> bit) & 1).bool()
        count = count + (~found).to(x.dtype)
    return count


def _first_one(x: Tensor) -> Tensor:
    return torch.where(x == 0, 0, _ones((x & -x) - 1) + 1)


@lowering("tt.assert")
def _assert(op: Op, types: list[Type]) -> Step:
    condition = op.operands[0]
    message = str(op.attributes.get("message", ""))

    def step(env: list[Value], ctx: Any) -> None:
        kept = plain(env[condition])
        if isinstance(kept, Tensor) and not bool(kept.all()):
            program = int(torch.nonzero(~kept)[0, 0]) if kept.shape[0] > 1 else 0
            raise ctx.failed(f"device_assert failed: {message}", program)
        if kept is False:
            raise ctx.failed(f"device_assert failed: {message}", 0)

    return step


@lowering("tt.print")
def _print(op: Op, types: list[Type]) -> Step:
    prefix = str(op.attributes.get("prefix", " ".join(op.words)))
    signed = op.attributes.get("isSigned", [])

    def step(env: list[Value], ctx: Any) -> None:
        for place, value in enumerate(op.operands):
            kind = types[value]
            tile = full(env[value], kind.element, kind.shape, ctx.programs)
            if kind.element in WIDTHS and place < len(signed) and not signed[place]:
                tile = unsigned(tile, kind.element)
            for program in range(ctx.programs):
                where = ", ".join(str(int(part)) for part in ctx.ids(program))
                print(f"pid ({where}) {prefix} {tile[program].tolist()}")

    return step


@lowering("ttg.barrier", "gpu.barrier", "tt.debug_barrier", "ub.poison", "llvm.intr.assume")
def _nothing(op: Op, types: list[Type]) -> Step:
    def step(env: list[Value], ctx: Any) -> None:
        for result in op.results:
            env[result] = 0

    return step


# ---- what an operation costs

SPECIAL = {"math.exp", "math.exp2", "math.expm1", "math.log", "math.log2", "math.log10", "math.log1p", "math.sin"}
SPECIAL |= {"math.cos", "math.tan", "math.tanh", "math.sqrt", "math.rsqrt", "math.erf", "tt.precise_sqrt", "math.powf"}
SPECIAL |= {"arith.divf", "tt.precise_divf", "tt.extern_elementwise"}
VECTOR = {*_FLOAT, *_INT, *_UNARY, "math.fma", "arith.select", "arith.cmpf", "arith.cmpi", "tt.clampf"} - SPECIAL


def special_functions(op: Op, types: list[Type]) -> int:
    """Count evaluations of exp, log, division, ... of one program."""
    return numel(types[op.results[0]].shape) if op.name in SPECIAL else 0


def vector_operations(op: Op, types: list[Type]) -> int:
    """Count operations of the vector units of one program: of tiles of floats, and reductions and scans of them."""
    if op.name in VECTOR and types[op.results[0]].shape:
        kind = types[op.operands[-1]]
        return numel(types[op.results[0]].shape) if kind.element not in WIDTHS else 0
    if op.name in ("tt.reduce", "tt.scan"):
        return sum(numel(types[value].shape) for value in op.operands if types[value].element not in WIDTHS)
    return 0
