"""StableHLO's operators that make and move values: constants, slices, padding, concatenation."""

from __future__ import annotations

import torch

from bringup.frontends.stablehlo.operators import Call, Tensor, operator


@operator("constant")
def constant(call: Call) -> Tensor:
    value: Tensor = call("value")
    if value.numel() > 1 and not any(value.stride()):  # one value, expanded
        return call.once("value", lambda: call.on_chip(value.as_strided((), ())).expand(call.shape))
    return value


@operator("iota")
def iota(call: Call) -> Tensor:
    dim = call("iota_dimension")
    sizes = [1] * len(call.shape)
    sizes[dim] = call.shape[dim]
    return torch.arange(call.shape[dim], device=call.device).to(call.target.dtype).view(sizes).expand(call.shape)


@operator("broadcast_in_dim")
def broadcast_in_dim(call: Call, x: Tensor) -> Tensor:
    dims = call("broadcast_dimensions", [])
    sizes = [1] * len(call.shape)
    for dim, size in zip(dims, x.shape, strict=True):
        sizes[dim] = size
    if list(dims) != sorted(dims):
        x = x.permute(sorted(range(x.dim()), key=lambda place: dims[place]))
    return x.reshape(sizes).expand(call.shape)


@operator("reshape")
def reshape(call: Call, x: Tensor) -> Tensor:
    return x.reshape(call.shape)


@operator("transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call("permutation"))


@operator("reverse")
def reverse(call: Call, x: Tensor) -> Tensor:
    return x.flip(call("dimensions"))


@operator("slice")
def cut(call: Call, x: Tensor) -> Tensor:
    limits = zip(call("start_indices"), call("limit_indices"), call("strides"), strict=True)
    return x[tuple(slice(start, limit, stride) for start, limit, stride in limits)]


@operator("concatenate")
def concatenate(call: Call, *parts: Tensor) -> Tensor:
    return torch.cat(parts, call("dimension"))


@operator("dynamic_slice", as_they_are=True)
def dynamic_slice(call: Call, x: Tensor, *starts: Tensor) -> Tensor:
    """Return a slice. Where the host has the start, as in a loop with a counter, it is a view."""
    x = call.on_chip(x)
    for dim, (start, size) in enumerate(zip(starts, call("slice_sizes"), strict=True)):
        most = x.shape[dim] - size
        if not most:
            continue
        if start.device.type == "cpu":
            x = x.narrow(dim, min(max(int(start), 0), most), size)
        else:
            x = x.index_select(dim, start.to(torch.int64).clamp(0, most) + call.arange(f"{dim}", size, [size]))
    return x


@operator("dynamic_update_slice", as_they_are=True)
def dynamic_update_slice(call: Call, x: Tensor, part: Tensor, *starts: Tensor) -> Tensor:
    x, part = call.on_chip(x), call.on_chip(part)
    if x.shape == part.shape:
        return part
    result = x.clone()
    if all(start.device.type == "cpu" for start in starts):
        window = result
        for dim, start in enumerate(starts):
            size = part.shape[dim]
            window = window.narrow(dim, min(max(int(start), 0), x.shape[dim] - size), size)
        window.copy_(part)
        return result
    index = []
    for dim, start in enumerate(starts):
        size = part.shape[dim]
        shape = [-1] + [1] * (x.dim() - 1 - dim)
        begin = call.on_chip(start).to(torch.int64).clamp(0, x.shape[dim] - size)
        index.append(begin + call.arange(f"{dim}", size, shape))
    return result.index_put_(tuple(index), part)


def padded(x: Tensor, fill: Tensor, low: list[int], high: list[int], inner: list[int] | None = None) -> Tensor:
    """Spread the elements, surround them, then cut what negative padding takes away."""
    inner = inner or [0] * x.dim()
    if not any((*low, *high, *inner)):
        return x
    spread = [(size - 1) * (gap + 1) + 1 if size else 0 for size, gap in zip(x.shape, inner, strict=True)]
    sides = list(zip(low, spread, high, strict=True))
    wide = fill.expand([max(before, 0) + size + max(after, 0) for before, size, after in sides]).clone()
    wide[
        tuple(
            slice(max(before, 0), max(before, 0) + size, gap + 1)
            for (before, size, _), gap in zip(sides, inner, strict=True)
        )
    ] = x
    return wide[
        tuple(
            slice(max(-before, 0), size - max(-after, 0))
            for (before, _, after), size in zip(sides, wide.shape, strict=True)
        )
    ]


@operator("pad")
def pad(call: Call, x: Tensor, fill: Tensor) -> Tensor:
    return padded(x, fill, call("edge_padding_low"), call("edge_padding_high"), call("interior_padding"))
