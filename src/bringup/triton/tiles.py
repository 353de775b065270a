"""The operations of TTIR that create, move, load, store and multiply tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bringup.errors import BringupError
from bringup.triton.lowering import Step, addresses, lowering
from bringup.triton.ttir import Op, Type
from bringup.triton.values import (
    WIDTHS,
    Affine,
    Compare,
    Mask,
    Pointer,
    Value,
    as_tensor,
    dtype_of,
    full,
    plain,
    unsigned,
    wrapped,
)

Tensor = torch.Tensor


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
    """Return a value with new tile dimensions; it must be constant along the changed ones."""
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
    """Return a tensor with all elements of a tile, for operations that move them."""
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
        numbers = addresses(env[source], ctx)
        rank = len(types[source].shape)
        env[result] = (
            numbers.view(numbers.shape[0] if numbers.dim() else 1, *(1,) * rank) if numbers.dim() <= 1 else numbers
        )

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


def _old(before: Tensor, shape: tuple[int, ...]) -> Value:
    """Return the value before an atomic; one integer for all programs becomes a Python integer."""
    return before.item() if not shape and before.numel() == 1 and not before.is_floating_point() else before


@lowering("tt.atomic_rmw")
def _atomic(op: Op, types: list[Type]) -> Step:
    target, source, *rest = op.operands
    (result,) = op.results
    mask = rest[0] if rest else None
    kind, shape = op.words[0], types[target].shape
    if kind in ("and", "or", "xor") and types[source].element not in WIDTHS:
        raise BringupError(f"atomic {kind} needs integers, got {types[source].element}, used at {op.line}")

    def step(env: list[Value], ctx: Any) -> None:
        ctx.keeps_old = ctx.used(result)
        before = ctx.memory.atomic(ctx, kind, env[target], env[source], None if mask is None else env[mask], shape)
        env[result] = _old(before, shape)

    return step


@lowering("tt.atomic_cas")
def _compare_and_swap(op: Op, types: list[Type]) -> Step:
    (target, expected, new), (result,) = op.operands, op.results
    shape = types[target].shape

    def step(env: list[Value], ctx: Any) -> None:
        before = ctx.memory.compare_and_swap(ctx, env[target], env[expected], env[new], shape)
        env[result] = _old(before, shape)

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
            product = torch.bmm(a, b)
        elif not batched and isinstance(c, Tensor) and c.dtype == compute and c.shape == (a.shape[0], *kind.shape):
            if ctx.accumulates(result) and c is ctx.accumulator.get(result):
                product = c.baddbmm_(a, b)
            else:
                product = torch.baddbmm(c, a, b)
        else:
            product = torch.bmm(a, b)
            if batched:
                product = product.view(-1, *kind.shape)
            env[result] = (product + as_tensor(c, kind.element, len(kind.shape)).to(compute)).to(dtype)
            return
        if batched:
            product = product.view(-1, *kind.shape)
        product = product if dtype == compute else product.to(dtype)
        ctx.accumulator[result] = product
        env[result] = product

    return step


FOURS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])  # e2m1, by its bits


@lowering("tt.dot_scaled")
def _dot_scaled(op: Op, types: list[Type]) -> Step:
    """Decode operands with a scale per group along k to float32, and multiply them (OCP Microscaling Formats 1.0).

    A byte holds two e2m1 numbers, the first in its low half. A scale in e8m0 is a power of two, and 255 is NaN.
    """
    operands, scales = list(op.operands), []
    for place, scaled in enumerate(op.attributes["scaled"]):
        scales.append(operands.pop(place + 1) if scaled else None)
    x, y, z = operands
    (result,) = op.results
    if op.attributes.get("lhs_k_pack", True) in (False, "false") or op.attributes.get("rhs_k_pack", True) in (
        False,
        "false",
    ):
        raise BringupError(f"tl.dot_scaled packs pairs along k only (lhs_k_pack, rhs_k_pack), used at {op.line}")

    def decoded(value: Value, which: int, env: list[Value], ctx: Any) -> Tensor:
        kind, form, axis = types[(x, y)[which]], op.attributes[("lhs", "rhs")[which]], (2, 1)[which]
        tile = _tiled(value, kind, ctx)
        if form == "e2m1":
            pairs = torch.stack((tile & 15, tile >> 4 & 15), axis + 1).flatten(axis, axis + 1)
            tile = FOURS[pairs.long()]
        tile = tile.to(torch.float32)
        number = scales[which]
        if number is None:
            return tile
        scale = _tiled(env[number], types[number], ctx)
        if types[number].element == "i8":
            bits = scale.to(torch.int32) & 255
            scale = torch.where(bits == 255, torch.nan, torch.exp2((bits - 127).to(torch.float32)))
        scale = scale.to(torch.float32) if which == 0 else scale.to(torch.float32).mT
        return tile * scale.repeat_interleave(tile.shape[axis] // scale.shape[axis], axis)

    def step(env: list[Value], ctx: Any) -> None:
        product = torch.matmul(decoded(env[x], 0, env, ctx), decoded(env[y], 1, env, ctx))
        env[result] = (product + as_tensor(env[z], "f32", 2)).to(dtype_of(types[result].element))

    return step


# ---- assertions and printing


@lowering("tt.assert")
def _assert(op: Op, types: list[Type]) -> Step:
    condition = op.operands[0]
    message = str(op.attributes.get("message", ""))

    def step(env: list[Value], ctx: Any) -> None:
        holds = plain(env[condition])
        if isinstance(holds, Tensor) and not bool(holds.all()):
            program = int(torch.nonzero(~holds)[0, 0]) if holds.shape[0] > 1 else 0
            raise ctx.failed(f"device_assert failed: {message}", program)
        if holds is False:
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


@lowering("ttg.barrier", "gpu.barrier", "tt.debug_barrier")
def _barrier(op: Op, types: list[Type]) -> Step:
    def step(env: list[Value], ctx: Any) -> None:
        shadow = ctx.memory.shadow
        if shadow is not None and shadow.locks is not None:
            shadow.locks.barrier()

    return step


@lowering("ub.poison", "llvm.intr.assume")
def _nothing(op: Op, types: list[Type]) -> Step:
    def step(env: list[Value], ctx: Any) -> None:
        for result in op.results:
            env[result] = 0

    return step
