"""ONNX's operators that move, cut, join or create tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from bringup.frontends.onnx.graph import OnnxError
from bringup.frontends.onnx.operators import Call, Tensor, axes_of, helper_device, ints, operator, scalar
from bringup.frontends.onnx.tensors import as_tensor, torch_dtype


@operator("Constant")
def constant(call: Call) -> Tensor:
    for name in ("value", "sparse_value"):
        if call(name) is not None:
            return as_tensor(call(name))
    for name, dtype in (("value_float", torch.float32), ("value_int", torch.int64)):
        for plural in (name, f"{name}s"):
            if call(plural) is not None:
                return torch.tensor(call(plural), dtype=dtype)
    raise OnnxError("a constant of strings has no counterpart in torch")


@operator("Shape")
def shape(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[call("start", 0) : call("end", None)], dtype=torch.int64)


@operator("Size")
def size(_call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("ConstantOfShape", host=(0,), grows=True)
def constant_of_shape(call: Call, sizes: Tensor) -> Tensor:
    value = as_tensor(call("value")) if call("value") is not None else torch.zeros(1)
    return torch.full(ints(sizes) or [], value.reshape(()).item(), dtype=value.dtype, device=call.device)


@operator("EyeLike", grows=True)
def eye_like(call: Call, x: Tensor) -> Tensor:
    dtype = torch_dtype(call("dtype")) if call("dtype") else x.dtype
    rows, columns = x.shape
    diagonal = torch.arange(columns, device=call.device) - torch.arange(rows, device=call.device)[:, None]
    return (diagonal == call("k", 0)).to(dtype)


@operator("Range", host=(0, 1, 2), grows=True)
def arange(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    first, last, step = scalar(start), scalar(limit), scalar(delta)
    count = max(math.ceil((last - first) / step), 0)
    return first + torch.arange(count, dtype=start.dtype, device=call.device) * step


@operator("Reshape", host=(1,))
def reshape(call: Call, x: Tensor, sizes: Tensor) -> Tensor:
    wanted = ints(sizes) or []
    if not call("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    axis = call("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Squeeze", host=(1,))
def squeeze(_call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes) or ()))


@operator("Unsqueeze", host=(1,))
def unsqueeze(_call: Call, x: Tensor, axes: Tensor) -> Tensor:
    wanted = ints(axes) or []
    rank = x.dim() + len(wanted)
    for axis in sorted(axis % rank for axis in wanted):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call("perm", list(reversed(range(x.dim())))))


@operator("Concat")
def concat(call: Call, *items: Tensor) -> Tensor:
    return torch.cat(items, call("axis"))


@operator("Split", host=(1,))
def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis, count = call("axis", 0), len(call.node.outputs)
    if (sizes.numel() if sizes is not None else call("num_outputs", count)) != count:
        raise OnnxError(f"a split must have as many parts as outputs, which are {count}")
    if sizes is not None:
        return torch.split(x, ints(sizes) or [], axis)
    each = -(-x.shape[axis] // count)
    parts = [min(each, max(x.shape[axis] - number * each, 0)) for number in range(count)]
    return torch.split(x, parts, axis)


@operator("Slice", host=(1, 2, 3, 4))
def slices(
    _call: Call, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    first, last = ints(starts) or [], ints(ends) or []
    along = axes_of(x.dim(), ints(axes))
    for axis, begin, end, step in zip(along, first, last, ints(steps) or [1] * len(first), strict=False):
        begin, end, step = slice(begin, end, step).indices(x.shape[axis])
        if step < 0:  # torch slices forwards only
            x, begin, end, step = x.flip(axis), x.shape[axis] - 1 - begin, x.shape[axis] - 1 - end, -step
        if (begin, end, step) != (0, x.shape[axis], 1):
            x = torch.ops.aten.slice(x, axis, begin, max(end, begin), step)
    return x


@operator("Expand", host=(1,), grows=True)
def expand(_call: Call, x: Tensor, sizes: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(ints(sizes) or ())))


@operator("Tile", host=(1,), grows=True)
def tile(_call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(ints(repeats) or [])


@operator("Pad", host=(1, 2, 3))
def pad(call: Call, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    amounts, along = ints(pads) or [], axes_of(x.dim(), ints(axes))
    before, after = [0] * x.dim(), [0] * x.dim()
    for number, axis in enumerate(along):
        before[axis], after[axis] = amounts[number], amounts[number + len(along)]
    mode = call("mode", "constant")
    if mode == "constant":
        fill = 0 if value is None else scalar(value)
        flat = [amount for axis in reversed(range(x.dim())) for amount in (before[axis], after[axis])]
        return functional.pad(x, flat, value=fill)
    for axis in range(x.dim()):
        if before[axis] or after[axis]:
            places = torch.arange(-before[axis], x.shape[axis] + after[axis], device=helper_device(x))
            x = x.index_select(axis, _repeated(places, x.shape[axis], mode).to(x.device))
    return x


def _repeated(places: Tensor, length: int, mode: str) -> Tensor:
    """Return the elements along an axis of this length that padding repeats at these places."""
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    if mode != "reflect":
        raise OnnxError(f"the mode {mode!r} of a pad is unknown")
    period = max(2 * (length - 1), 1)
    places = places % period
    return torch.where(places >= length, period - places, places)


@operator("Gather")
def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call("axis", 0) % x.dim()
    if indices.dim() == 0 and indices.device.type == "cpu":
        return x.select(axis, int(indices))
    places = _from_front(indices, x.shape[axis])
    if axis == 0 and x.dim() == 2 and x.is_floating_point():
        return functional.embedding(places, x)
    rows = x.index_select(axis, places.reshape(-1))
    return rows.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _from_front(indices: Tensor, length: int) -> Tensor:
    """Return indices counted from the front; all may be negative where a look would wait or break a compiled graph."""
    looks = indices.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and not bool((indices < 0).any()):
        return indices.to(torch.int64)
    return torch.where(indices < 0, indices + length, indices).to(torch.int64)


@operator("GatherElements")
def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call("axis", 0)
    return torch.gather(x, axis, _from_front(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    batch = call("batch_dims", 0)
    depth = indices.shape[-1]
    keys: list[Tensor] = []
    for axis in range(batch):
        view = [1] * (indices.dim() - 1)
        view[axis] = -1
        keys.append(torch.arange(x.shape[axis], device=x.device).reshape(view))
    keys += [_from_front(indices[..., place], x.shape[batch + place]) for place in range(depth)]
    return x[tuple(keys)]


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterElements", "Scatter")
def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis, how = call("axis", 0), call("reduction", "none")
    places = _from_front(indices, x.shape[axis])
    if how == "none":
        return torch.scatter(x, axis, places, updates)
    return torch.scatter_reduce(x, axis, places, updates, _REDUCTIONS[how], include_self=True)


@operator("ScatterND")
def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    how, depth = call("reduction", "none"), indices.shape[-1]
    keys = tuple(_from_front(indices[..., place], x.shape[place]) for place in range(depth))
    if how == "none":
        return torch.index_put(x, keys, updates)
    if how == "add":
        return torch.index_put(x, keys, updates, accumulate=True)
    flat = torch.zeros((), dtype=torch.int64, device=x.device)
    for place, key in enumerate(keys):
        flat = flat * x.shape[place] + key
    rows = x.reshape(math.prod(x.shape[:depth]), -1)
    values = updates.reshape(-1, rows.shape[1])
    places = flat.reshape(-1, 1).expand(values.shape)
    return torch.scatter_reduce(rows, 0, places, values, _REDUCTIONS[how], include_self=True).reshape(x.shape)


@operator("TensorScatter")
def tensor_scatter(call: Call, past: Tensor, update: Tensor, write: Tensor | None = None) -> Tensor:
    axis = call("axis", -2) % past.dim()
    length = update.shape[axis]
    places = torch.arange(length, device=past.device)
    start = torch.zeros(past.shape[0], dtype=torch.int64, device=past.device) if write is None else write
    where = start.reshape(-1, 1) + places
    if call("mode", "linear") == "circular":
        where = where % past.shape[axis]
    view = [past.shape[0]] + [1] * (past.dim() - 1)
    view[axis] = length
    return torch.scatter(past, axis, where.reshape(view).expand(update.shape), update)


@operator("OneHot", host=(1,))
def one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    count = int(scalar(depth))
    axis = call("axis", -1) % (indices.dim() + 1)
    places = torch.where(indices < 0, indices + count, indices).unsqueeze(axis)
    view = [1] * places.dim()
    view[axis] = count
    hot = places == torch.arange(count, device=indices.device, dtype=indices.dtype).reshape(view)
    return torch.where(hot, values[1], values[0])


@operator("Trilu", host=(1,))
def trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(scalar(k))
    return torch.triu(x, diagonal) if call("upper", 1) else torch.tril(x, diagonal)


@operator("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    side = call("blocksize")
    batch, channels, height, width = x.shape
    if call("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, side)
    parts = x.reshape(batch, side, side, channels // side**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(batch, channels // side**2, height * side, width * side)


@operator("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    side = call("blocksize")
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // side, side, width // side, side).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(batch, channels * side**2, height // side, width // side)


@operator("ReverseSequence")
def reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    time, batch = call("time_axis", 0), call("batch_axis", 1)
    view = [1] * x.dim()
    view[time] = -1
    places = torch.arange(x.shape[time], device=x.device).reshape(view)
    view = [1] * x.dim()
    view[batch] = -1
    length = lengths.reshape(view)
    places = torch.where(places < length, length - 1 - places, places)
    return torch.gather(x, time, places.expand(x.shape))


@operator("Compress")
def compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    axis = call("axis")
    flat = x.reshape(-1) if axis is None else x
    places = torch.nonzero(condition).reshape(-1)
    return flat.index_select(axis or 0, places)


@operator("NonZero")
def nonzero(_call: Call, x: Tensor) -> Tensor:
    return torch.nonzero(x).t() if x.dim() else torch.zeros(0, int(x != 0), dtype=torch.int64)


@operator("Unique")
def unique(call: Call, x: Tensor) -> tuple[Tensor, ...]:
    axis = call("axis")
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
    inverse = inverse.reshape(-1)
    places = torch.arange(inverse.numel(), device=x.device)
    first = torch.full_like(counts, inverse.numel()).scatter_reduce(0, inverse, places, "amin")
    if not call("sorted", 1):  # in the order of their first occurrence
        order = torch.argsort(first)
        values, first, counts = values.index_select(axis or 0, order), first[order], counts[order]
        inverse = torch.argsort(order)[inverse]
    return values, first, inverse, counts


@operator("CenterCropPad", host=(1,))
def center_crop_pad(call: Call, x: Tensor, sizes: Tensor) -> Tensor:
    for axis, size in zip(axes_of(x.dim(), call("axes")), ints(sizes) or [], strict=True):
        length = x.shape[axis]
        if size < length:
            x = x.narrow(axis, (length - size) // 2, size)
        elif size > length:
            flat = [0, 0] * (x.dim() - axis)
            flat[-2:] = (size - length) // 2, size - length - (size - length) // 2
            x = functional.pad(x, flat)
    return x


@operator("Col2Im", host=(1, 2))
def col2im(call: Call, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    kernel, rank = ints(block) or [], block.numel()
    pads = call("pads", [0] * 2 * rank)
    dilations, strides = call("dilations", [1] * rank), call("strides", [1] * rank)
    outer = [size + pads[axis] + pads[rank + axis] for axis, size in enumerate(ints(image) or [])]
    batch, channels = x.shape[0], x.shape[1] // math.prod(kernel)
    index = torch.zeros((), dtype=torch.int64, device=x.device)
    for axis in range(rank):
        blocks = (outer[axis] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1
        inside = torch.arange(kernel[axis], device=x.device) * dilations[axis]
        places = inside[:, None] + torch.arange(blocks, device=x.device) * strides[axis]
        view = [1] * (2 * rank)
        view[axis], view[rank + axis] = kernel[axis], blocks
        index = index * outer[axis] + places.reshape(view)
    values = x.reshape(batch * channels, -1)
    result = torch.zeros(batch * channels, math.prod(outer), dtype=x.dtype, device=x.device)
    result = result.index_add(1, index.reshape(-1), values).reshape(batch, channels, *outer)
    for axis in range(rank):
        result = result.narrow(2 + axis, pads[axis], outer[axis] - pads[axis] - pads[rank + axis])
    return result


@operator("BitCast")
def bit_cast(call: Call, x: Tensor) -> Tensor:
    return x.view(torch_dtype(call("to")))


@operator("SequenceConstruct")
def sequence_construct(_call: Call, *items: Tensor) -> list[Any]:
    return list(items)


@operator("SequenceEmpty")
def sequence_empty(_call: Call) -> list[Any]:
    return []


@operator("SequenceAt", host=(1,))
def sequence_at(_call: Call, items: list[Any], place: Tensor) -> Any:
    return items[int(scalar(place))]


@operator("SequenceInsert", host=(2,))
def sequence_insert(_call: Call, items: list[Any], item: Tensor, place: Tensor | None = None) -> list[Any]:
    at = len(items) if place is None else int(scalar(place))
    return [*items[:at], item, *items[at:]]


@operator("SequenceErase", host=(1,))
def sequence_erase(_call: Call, items: list[Any], place: Tensor | None = None) -> list[Any]:
    at = (-1 if place is None else int(scalar(place))) % len(items)
    return [*items[:at], *items[at + 1 :]]


@operator("SequenceLength")
def sequence_length(_call: Call, items: list[Any]) -> Tensor:
    return torch.tensor(len(items), dtype=torch.int64)


@operator("ConcatFromSequence")
def concat_from_sequence(call: Call, items: list[Tensor]) -> Tensor:
    return torch.stack(items, call("axis")) if call("new_axis", 0) else torch.cat(items, call("axis"))


@operator("SplitToSequence", host=(1,), foldable=False)
def split_to_sequence(call: Call, x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
    axis = call("axis", 0)
    if sizes is None:
        parts = torch.split(x, 1, axis)
        return list(parts) if call("keepdims", 1) else [part.squeeze(axis) for part in parts]
    lengths = ints(sizes) or []
    return list(torch.split(x, lengths[0] if sizes.dim() == 0 else lengths, axis))


@operator("Optional")
def optional(_call: Call, item: Any = None) -> Any:
    return item


@operator("OptionalGetElement")
def optional_get_element(_call: Call, item: Any) -> Any:
    return item


@operator("OptionalHasElement")
def optional_has_element(_call: Call, item: Any = None) -> Tensor:
    return torch.tensor(item is not None)
