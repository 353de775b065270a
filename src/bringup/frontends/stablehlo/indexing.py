"""StableHLO's gather and scatter. Dimensions that are taken whole need no index."""

from __future__ import annotations

from typing import Any

import torch

from bringup.frontends.stablehlo.operators import Call, Tensor, body, nested, operator
from bringup.frontends.stablehlo.tensors import Type

_REDUCE = {"add": "sum", "multiply": "prod", "maximum": "amax", "minimum": "amin"}


def _batched(starts: Tensor, vector_dim: int) -> Tensor:
    """Return start indices as int64, the dimension of the vectors last."""
    starts = starts.to(torch.int64)
    return starts.unsqueeze(-1) if vector_dim == starts.dim() else starts.movedim(vector_dim, -1)


def _index(
    call: Call,
    sizes: list[int],
    operand: tuple[int, ...],
    starts: Tensor,
    start_map: list[int],
    batching: tuple[list[int], list[int]],
    windows: list[int],
) -> tuple[list[int], list[int], list[int], list[Tensor]]:
    """Return the dimensions with an index, those of them with windows, those that are taken whole, and the indices.

    The indices broadcast to the batch dimensions of `starts`, followed by the windows.
    """
    batch = starts.dim() - 1
    whole = [dim for dim in windows if dim not in start_map and sizes[dim] == operand[dim]]
    # A start in a dimension that is taken whole can only be 0.
    indexed = [dim for dim in range(len(operand)) if dim not in whole]
    partial = [dim for dim in indexed if dim in windows]
    indices = []
    for dim in indexed:
        index: Tensor | None = None
        if dim in start_map:
            start = starts[..., start_map.index(dim)]
            index = start.reshape([*start.shape, *([1] * len(partial))])
        if dim in batching[0]:
            shape = [1] * (batch + len(partial))
            shape[batching[1][batching[0].index(dim)]] = operand[dim]
            index = call.arange(f"batch {dim}", operand[dim], shape)
        if dim in partial and (sizes[dim] > 1 or index is None):
            shape = [1] * (batch + len(partial))
            shape[batch + partial.index(dim)] = sizes[dim]
            inner = call.arange(f"window {dim}", sizes[dim], shape)
            index = inner if index is None else index + inner
        if index is None:
            index = call.arange(f"zero {dim}", 1, [1] * (batch + len(partial)))
        indices.append(index)
    return indexed, partial, whole, indices


@operator("gather")
def gather(call: Call, x: Tensor, starts: Tensor) -> Tensor:
    numbers, sizes = call("dimension_numbers"), list(call("slice_sizes"))
    start_map = list(numbers.start_index_map)
    batching = list(numbers.operand_batching_dims), list(numbers.start_indices_batching_dims)
    vector_dim = numbers.index_vector_dim
    # Batching dimensions of the indices are counted with the dimension of the vectors.
    batching = batching[0], [dim - (dim > vector_dim) for dim in batching[1]]
    windows = [dim for dim in range(x.dim()) if dim not in (*numbers.collapsed_slice_dims, *batching[0])]
    starts = _batched(starts, vector_dim)
    batch = list(starts.shape[:-1])
    if start_map:
        limits = [x.shape[dim] - sizes[dim] for dim in start_map]
        starts = _clamped(call, starts, limits)
    indexed, partial, whole, indices = _index(call, sizes, tuple(x.shape), starts, start_map, batching, windows)
    if indexed:
        result = x.permute([*indexed, *whole])[tuple(indices)]
        result = result.expand([*batch, *(sizes[dim] for dim in partial), *(sizes[dim] for dim in whole)])
    else:
        result = x.permute(whole).expand([*batch, *x.shape])
    offsets = list(numbers.offset_dims)
    held = [*partial, *whole]
    order = [0] * len(call.shape)
    for place, dim in enumerate(dim for dim in range(len(call.shape)) if dim not in offsets):
        order[dim] = place
    for dim, window in zip(offsets, windows, strict=True):
        order[dim] = len(batch) + held.index(window)
    return result.permute(order)


def _clamped(call: Call, starts: Tensor, limits: list[int]) -> Tensor:
    if len(set(limits)) == 1:
        return starts.clamp(0, limits[0])
    most = call.once("limits", lambda: torch.tensor(limits, device=call.device))
    return torch.minimum(starts.clamp(min=0), most)


@operator("scatter", refusal=nested)
def scatter(call: Call, *items: Tensor) -> Any:
    """Return copies with updates; those that do not lie inside as a whole go to an element that is cut off."""
    count = len(items) // 2
    operands, starts, updates = list(items[:count]), items[count], list(items[count + 1 :])
    x = operands[0]
    numbers = call("scatter_dimension_numbers")
    start_map = list(numbers.scattered_dims_to_operand_dims)
    vector_dim = numbers.index_vector_dim
    batching = (
        list(numbers.input_batching_dims),
        [dim - (dim > vector_dim) for dim in numbers.scatter_indices_batching_dims],
    )
    windows = [dim for dim in range(x.dim()) if dim not in (*numbers.inserted_window_dims, *batching[0])]
    update_windows = list(numbers.update_window_dims)
    sizes = [1] * x.dim()
    for dim, place in zip(windows, update_windows, strict=True):
        sizes[dim] = updates[0].shape[place]
    starts = _batched(starts, vector_dim)
    batch = list(starts.shape[:-1])
    indexed, partial, whole, indices = _index(call, sizes, tuple(x.shape), starts, start_map, batching, windows)
    if not indexed:
        return _replaced(call, operands, updates)
    limits = call.once("most", lambda: torch.tensor([x.shape[d] - sizes[d] for d in start_map], device=call.device))
    inside = ((starts >= 0) & (starts <= limits)).all(-1) if start_map else None
    held = dict(zip(windows, update_windows, strict=True))
    outer = [dim for dim in range(updates[0].dim()) if dim not in update_windows]
    arranged = [*outer, *(held[dim] for dim in partial), *(held[dim] for dim in whole)]
    rows = 1
    flat: Tensor | None = None
    for dim, index in zip(indexed, indices, strict=True):
        flat = index if flat is None else flat * x.shape[dim] + index
        rows *= x.shape[dim]
    assert flat is not None
    if inside is not None:
        flat = torch.where(inside.reshape([*batch, *([1] * len(partial))]), flat, rows)
    flat = flat.expand([*batch, *(sizes[dim] for dim in partial)]).reshape(-1)
    order = [*indexed, *whole]
    tail = [x.shape[dim] for dim in whole]
    sources = [item.permute(order).reshape(rows, *tail) for item in operands]
    results = [torch.cat([source, source.new_zeros(1, *tail)]) for source in sources]
    values = [item.permute(arranged).reshape(-1, *tail) for item in updates]
    name = body(call.op)
    if count == 1 and _has_update(name, call.source):
        results = [_updated(results[0], flat, values[0], name)]
    elif flat.numel():
        results = _computed(call, results, flat, values, rows)
    shape, back = [x.shape[dim] for dim in order], [order.index(dim) for dim in range(x.dim())]
    return tuple(result[:rows].reshape(shape).permute(back) for result in results)


def _has_update(name: str, kind: Type) -> bool:
    """Return True if torch has this update."""
    is_bool = kind.dtype == torch.bool
    ordered = name in ("maximum", "minimum") and not kind.is_unsigned
    return name in ("return", "add", "multiply") or ordered or (is_bool and name in ("and", "or"))


def _updated(result: Tensor, flat: Tensor, values: Tensor, name: str) -> Tensor:
    """Update rows by one of the functions that torch has for this."""
    if name == "return":
        return result.index_copy_(0, flat, values)
    if name == "add" and result.dtype != torch.bool:
        return result.index_add_(0, flat, values)
    dtype = torch.uint8 if result.dtype == torch.bool else result.dtype
    how = _REDUCE.get(name, {"or": "amax", "and": "amin"}.get(name, ""))
    if result.dtype == torch.bool:
        how = "amax" if how in ("sum", "amax") else "amin"
    index = flat.view(-1, *([1] * (values.dim() - 1))).expand(values.shape)
    return result.to(dtype).scatter_reduce(0, index, values.to(dtype), how).to(result.dtype)


def _computed(call: Call, results: list[Tensor], flat: Tensor, values: list[Tensor], rows: int) -> list[Tensor]:
    """Update rows by the operation's block, which runs on all updates at once: first updates of rows, then second ones.

    How many updates a row has is read from the chip, unless the program says that it is one.
    """
    order = torch.sort(flat, stable=True).indices
    flat, values = flat[order], [item[order] for item in values]
    numbers = torch.arange(flat.numel(), device=flat.device)
    begins = torch.cat([flat.new_ones(1, dtype=torch.bool), flat[1:] != flat[:-1]])
    turn = torch.where(flat == rows, 0, numbers - torch.where(begins, numbers, 0).cummax(0).values)
    for number in range(1 if call("unique_indices") else int(turn.max().item()) + 1):
        merged = call.run(call.op.blocks[0], [*(result[flat] for result in results), *values])
        index = torch.where(turn == number, flat, rows)
        pairs = zip(results, merged, values, strict=True)
        results = [result.index_copy(0, index, new.expand(old.shape)) for result, new, old in pairs]
    return results


def _replaced(call: Call, operands: list[Tensor], updates: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the results of updates of whole operands, one after the other."""
    for parts in zip(*(part.reshape(-1, *operands[0].shape) for part in updates), strict=True):
        operands = call.run(call.op.blocks[0], [*operands, *parts])
    return tuple(operands)
