"""StableHLO's reductions, windows and sorting."""

from __future__ import annotations

from typing import Any

import torch

from bringup.frontends.stablehlo.module import Op
from bringup.frontends.stablehlo.operators import Call, Tensor, body, nested, operator, wide
from bringup.frontends.stablehlo.shapes import padded
from bringup.frontends.stablehlo.tensors import Type

# Operations of a body that may run on whole tensors at once, and a comparator that sorting understands.
_ARGUMENT_BEST = (
    ("compare", "compare", "or", "compare", "compare", "and", "or", "select", "select"),
    ("compare", "compare", "compare", "and", "or", "select", "select"),  # of numbers without NaN
)
_OF_COMPARATORS = {"constant", "compare", "select", "and", "or", "bitcast_convert", "subtract", "call", "xor"}


def reduced(name: str, x: Tensor, dims: list[int], kind: Type) -> Tensor:
    """Reduce some dimensions by one of the operators that torch has for this."""
    if x.dtype == torch.bool:
        name = {"add": "or", "maximum": "or", "multiply": "and", "minimum": "and"}.get(name, name)
    if name == "add":
        return x.sum(dims, dtype=x.dtype)
    if name in ("maximum", "minimum"):
        if kind.is_unsigned:
            low = torch.iinfo(x.dtype).min
            return (torch.amax if name == "maximum" else torch.amin)(x ^ low, dims) ^ low
        return (torch.amax if name == "maximum" else torch.amin)(x, dims)
    if name in ("and", "or") and x.dtype == torch.bool:
        return (torch.all if name == "and" else torch.any)(x, dim=dims)
    assert name == "multiply"
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, dtype=x.dtype)
    return x


def _has_reduction(name: str, kind: Type) -> bool:
    whole = kind.dtype == torch.bool
    return name in ("add", "multiply", "maximum", "minimum") or (name in ("and", "or") and whole)


@operator("reduce", refusal=nested)
def reduce(call: Call, *operands: Tensor) -> Any:
    op, dims = call.op, list(call("dimensions"))
    count = len(operands) // 2
    items, initial = list(operands[:count]), list(operands[count:])
    if count == 1 and _has_reduction(name := body(op), call.source):
        x = reduced(name, items[0], dims, call.source) if dims else items[0]
        return x if call.op.prepared.get("neutral") else call.run(op.blocks[0], [initial[0], x])[0]
    if _is_argument_best(op) and len(dims) == 1:
        return _argument_best(items, dims[0], op.blocks[0].ops[0].attributes["comparison_direction"], call.source)
    order = [*dims, *(dim for dim in range(items[0].dim()) if dim not in dims)]
    items = [item.permute(order).flatten(0, len(dims) - 1) if dims else item.unsqueeze(0) for item in items]
    return folded(call, items, initial)


def folded(call: Call, items: list[Tensor], initial: list[Tensor]) -> tuple[Tensor, ...]:
    """Reduce the first dimension by the operation's block, which runs on half of what is left at once."""
    if not items[0].shape[0]:
        return tuple(start.expand(kind.shape) for start, kind in zip(initial, call.op.result_types, strict=True))
    while (size := items[0].shape[0]) > 1:
        half = size // 2
        pairs = [item[:half] for item in items], [item[half : 2 * half] for item in items]
        merged = call.run(call.op.blocks[0], [*pairs[0], *pairs[1]])
        rest = [item[2 * half :] for item in items]
        items = [torch.cat(pair) if size % 2 else pair[0] for pair in zip(merged, rest, strict=True)]
    return tuple(call.run(call.op.blocks[0], [*initial, *(item[0] for item in items)]))


def _is_argument_best(op: Op) -> bool:
    """Return True for the body that jax.lax.argmax and argmin make."""
    names = tuple(inner.name for inner in op.blocks[0].ops)
    return len(op.operands) == 4 and names in _ARGUMENT_BEST


def _argument_best(items: list[Tensor], dim: int, direction: str, kind: Type) -> tuple[Tensor, Tensor]:
    x, numbers = items
    x = x.to(torch.uint8) if x.dtype == torch.bool else wide(x, kind)
    best = (torch.argmax if direction.startswith("G") else torch.argmin)(x, dim, keepdim=True)
    return items[0].gather(dim, best).squeeze(dim), numbers.gather(dim, best).squeeze(dim)


def windows(x: Tensor, call: Call, fill: Tensor) -> tuple[Tensor, int]:
    """Return views of the windows, whose dimensions are the last ones, and the number of those dimensions."""
    rank = x.dim()
    ones = [1] * rank
    padding = call("padding") or [[0, 0]] * rank
    spread, apart = call("base_dilations") or ones, call("window_dilations") or ones
    low, high = [before for before, _ in padding], [after for _, after in padding]
    x = padded(x, fill, low, high, [step - 1 for step in spread])
    count = 0
    for dim, (size, stride) in enumerate(zip(call("window_dimensions"), call("window_strides") or ones, strict=True)):
        if size == 1 and stride == 1:
            continue
        reach = (size - 1) * apart[dim] + 1
        if reach > x.shape[dim]:  # no window fits
            shape = list(x.shape)
            shape[dim] = 0
            x = x.new_empty([*shape, size])
        else:
            x = x.unfold(dim, reach, stride)[..., :: apart[dim]]
        count += 1
    return x, count


@operator("reduce_window", refusal=nested)
def reduce_window(call: Call, *operands: Tensor) -> Any:
    items, initial = operands[: len(operands) // 2], operands[len(operands) // 2 :]
    name = body(call.op)
    if len(items) > 1 or not _has_reduction(name, call.source):
        tiles = [windows(x, call, fill) for x, fill in zip(items, initial, strict=True)]
        count = tiles[0][1]
        return folded(call, [_first(tile, count) for tile, _ in tiles], list(initial))
    x = items[0]
    if (dim := _cumulative(call)) is not None and call.op.prepared.get("neutral"):
        if name == "add":
            return torch.cumsum(x, dim, dtype=x.dtype)
        if name in ("maximum", "minimum") and not call.source.is_unsigned:
            return (torch.cummax if name == "maximum" else torch.cummin)(x, dim).values
        if name == "multiply":
            return torch.cumprod(x, dim, dtype=x.dtype)
    x, count = windows(x, call, initial[0])
    if count:
        x = reduced(name, x, list(range(x.dim() - count, x.dim())), call.source)
    return x if call.op.prepared.get("neutral") else call.run(call.op.blocks[0], [initial[0], x])[0]


def _first(x: Tensor, count: int) -> Tensor:
    """Return a tensor whose last dimensions are one, and the first."""
    return x.flatten(-count).movedim(-1, 0) if count else x.unsqueeze(0)


def _cumulative(call: Call) -> int | None:
    """Return the dimension along which the windows grow from the first element to all; None if they do not."""
    shape, padding = call.source.shape, call("padding")
    sizes = call("window_dimensions")
    long = [dim for dim, size in enumerate(sizes) if size > 1]
    plain = all(set(call(name) or [1]) == {1} for name in ("window_strides", "base_dilations", "window_dilations"))
    if len(long) != 1 or not plain or padding is None or call.source.dtype == torch.bool:
        return None
    dim = long[0]
    wanted = [[0, 0] if place != dim else [shape[dim] - 1, 0] for place in range(len(shape))]
    return dim if sizes[dim] == shape[dim] and padding == wanted else None


def _other_choice(op: Op) -> str:
    choice, scatter = op.blocks
    names = [inner.name for inner in choice.ops]
    adds = len(scatter.ops) == 1 and scatter.ops[0].name == "add"
    return "" if names == ["compare"] and adds else "with bodies other than a comparison and an addition"


@operator("select_and_scatter", refusal=_other_choice)
def select_and_scatter(call: Call, x: Tensor, source: Tensor, initial: Tensor) -> Tensor:
    direction = call.op.blocks[0].ops[0].attributes["comparison_direction"]
    most = direction.startswith("G")
    info: Any = torch.finfo(x.dtype) if x.dtype.is_floating_point else torch.iinfo(x.dtype)
    worst = info.min if most else info.max
    if x.dtype.is_floating_point:
        worst = float("-inf") if most else float("inf")
    fill = call.once("worst", lambda: torch.full((), worst, dtype=x.dtype, device=call.device))
    numbers = call.once("numbers", lambda: torch.arange(x.numel(), device=call.device).view(x.shape))
    nowhere = call.once("nowhere", lambda: torch.full((), x.numel(), dtype=torch.int64, device=call.device))
    tiles, count = windows(x, call, fill)
    places, _ = windows(numbers, call, nowhere)
    if not count:
        return source + initial
    tiles, places = tiles.flatten(-count), places.flatten(-count)
    best = (torch.argmax if most else torch.argmin)(tiles, -1, keepdim=True)
    index = places.gather(-1, best).flatten()
    total = initial.expand(x.numel() + 1).clone().index_add_(0, index, source.reshape(-1))
    return total[: x.numel()].view(x.shape)


def _other_order(op: Op) -> str:
    names = {inner.name for inner in op.blocks[0].walk()}
    return "" if names <= _OF_COMPARATORS - {"call"} else "with a comparator other than an order of its operands"


@operator("sort", refusal=_other_order)
def sort(call: Call, *items: Tensor) -> tuple[Tensor, ...]:
    dim = call("dimension")
    if "keys" not in call.op.prepared:
        call.op.prepared["keys"] = keys(call)
    order: Tensor | None = None
    for place, descending in reversed(call.op.prepared["keys"]):
        key = _sortable(items[place], call.op.operand_types[place])
        key = key if order is None else key.gather(dim, order)
        step = torch.sort(key, dim=dim, descending=descending, stable=True).indices
        order = step if order is None else order.gather(dim, step)
    assert order is not None
    return tuple(item.gather(dim, order) for item in items)


def _sortable(x: Tensor, kind: Type) -> Tensor:
    if x.dtype.is_floating_point and x.itemsize == 1:
        return x.to(torch.float16)
    return wide(x, kind)


def keys(call: Call) -> list[tuple[int, bool]]:
    """Return the operands that decide a sort, the most important first, and whether each descends.

    The comparator, which only compares, is tried on the host with operands that differ in one place or two. It may read
    constants of the blocks around it.
    """
    op = call.op
    block = op.blocks[0]
    kinds = op.operand_types
    low = [torch.zeros((), dtype=kind.dtype) for kind in kinds]
    high = [torch.ones((), dtype=kind.dtype) for kind in kinds]

    def before(first: list[Tensor], second: list[Tensor]) -> bool:
        pairs = [value for pair in zip(first, second, strict=True) for value in pair]
        return bool(call.run(block, pairs)[0])

    def mixed(places: set[int]) -> list[Tensor]:
        return [high[place] if place in places else low[place] for place in range(len(kinds))]

    deciding = {}
    for place in range(len(kinds)):
        rises, falls = before(low, mixed({place})), before(mixed({place}), low)
        if rises != falls:
            deciding[place] = falls
    ordered: list[tuple[int, bool]] = []
    for place, descending in deciding.items():
        at = 0
        for number, (other, other_descends) in enumerate(ordered):
            first, second = {other} if other_descends else set(), {other} if not other_descends else set()
            (second if descending else first).add(place)  # `place` alone would put the second before the first
            if before(mixed(first), mixed(second)):  # the other one decides
                at = number + 1
        ordered.insert(at, (place, descending))
    return ordered


@operator("top_k")
def top_k(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    key = _sortable(x, call.source)
    order = torch.sort(key, dim=-1, descending=True, stable=True).indices[..., : call("k")]
    return x.gather(-1, order), order.to(call.op.result_types[1].dtype)


@operator("map", refusal=nested)
def map_(call: Call, *items: Tensor) -> Tensor:
    return call.run(call.op.blocks[0], list(items))[0].expand(call.shape)
