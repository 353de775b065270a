"""ONNX's operators on windows of images: convolutions and pooling, with ONNX's padding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from bringup.frontends.onnx.operators import Call, Tensor, operator

CONVOLVE: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSE: dict[int, Any] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
MAX_POOL: dict[int, Any] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
AVERAGE_POOL: dict[int, Any] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@dataclass
class Window:
    """The windows of a node: one number per axis of the image."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]

    @classmethod
    def from_node(cls, call: Call, x: Tensor, kernel: list[int]) -> Window:
        """Read the attributes of a node, and work out its padding for an input."""
        rank = len(kernel)
        strides = call("strides") or [1] * rank
        dilations = call("dilations") or [1] * rank
        pads = call("pads") or [0] * 2 * rank
        window = cls(kernel, strides, dilations, pads[:rank], pads[rank:])
        automatic = call("auto_pad", "NOTSET")
        if automatic in ("SAME_UPPER", "SAME_LOWER"):
            for axis, size in enumerate(x.shape[2:]):
                reach = dilations[axis] * (kernel[axis] - 1) + 1
                total = max((-(-size // strides[axis]) - 1) * strides[axis] + reach - size, 0)
                small = total // 2
                lower = automatic == "SAME_LOWER"
                window.before[axis], window.after[axis] = (total - small, small) if lower else (small, total - small)
        elif automatic == "VALID":
            window.before, window.after = [0] * rank, [0] * rank
        return window

    def outputs(self, sizes: torch.Size, ceil: bool) -> list[int]:
        """Return how many windows there are along each axis."""
        counts = []
        for axis, size in enumerate(sizes):
            reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1
            room = size + self.before[axis] + self.after[axis] - reach
            count = (-(-room // self.strides[axis]) if ceil else room // self.strides[axis]) + 1
            if ceil and (count - 1) * self.strides[axis] >= size + self.before[axis]:
                count -= 1  # a window that begins in the padding at the end is left out
            counts.append(count)
        return counts

    def flat(self, extra: list[int] | None = None) -> list[int]:
        """Return the padding in the order of torch, from the last axis to the first."""
        more = extra or [0] * len(self.kernel)
        return [
            amount
            for axis in reversed(range(len(self.kernel)))
            for amount in (self.before[axis], self.after[axis] + more[axis])
        ]


@operator("Conv")
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return convolve(call, x, weight, bias)


def convolve(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with the attributes of a node."""
    window = Window.from_node(call, x, list(weight.shape[2:]))
    padding = window.before
    if window.before != window.after:
        x, padding = functional.pad(x, window.flat()), [0] * len(padding)
    return CONVOLVE[len(padding)](x, weight, bias, window.strides, padding, window.dilations, call("group", 1))


@operator("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = list(weight.shape[2:])
    rank = len(kernel)
    strides, dilations = call("strides") or [1] * rank, call("dilations") or [1] * rank
    extra = call("output_padding") or [0] * rank
    pads = list(call("pads") or [0] * 2 * rank)
    automatic, wanted = call("auto_pad", "NOTSET"), call("output_shape")
    whole = [
        (size - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1 + extra[axis]
        for axis, size in enumerate(x.shape[2:])
    ]
    if wanted is None and automatic in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * strides[axis] for axis, size in enumerate(x.shape[2:])]
    if wanted is not None:
        for axis, size in enumerate(wanted[-rank:]):
            total = whole[axis] - size
            small = total // 2
            upper = automatic != "SAME_UPPER"  # as ONNX puts it: the larger part comes first
            pads[axis], pads[rank + axis] = (total - small, small) if upper else (small, total - small)
    symmetric = all(
        pads[axis] >= 0 and 0 <= pads[axis] - pads[rank + axis] + extra[axis] < max(strides[axis], dilations[axis])
        for axis in range(rank)
    )
    if symmetric:  # torch's own padding, the difference as padding of the output
        more = [pads[axis] - pads[rank + axis] + extra[axis] for axis in range(rank)]
        return TRANSPOSE[rank](x, weight, bias, strides, pads[:rank], more, call("group", 1), dilations)
    result = TRANSPOSE[rank](x, weight, bias, strides, 0, 0, call("group", 1), dilations)
    if any(extra):
        flat = [amount for axis in reversed(range(rank)) for amount in (0, extra[axis])]
        result = functional.pad(result, flat)
        if bias is not None:
            raise_bias(result, bias, extra)
    for axis in range(rank):
        length = result.shape[2 + axis] - pads[axis] - pads[rank + axis]
        if pads[axis] < 0 or pads[rank + axis] < 0:
            flat = [0, 0] * (rank - axis)
            flat[-2:] = max(-pads[axis], 0), max(-pads[rank + axis], 0)
            result = functional.pad(result, flat)
        result = result.narrow(2 + axis, max(pads[axis], 0), length)
    return result


def raise_bias(result: Tensor, bias: Tensor, extra: list[int]) -> None:
    """Add the bias to the rows and columns that padding appended."""
    for axis, count in enumerate(extra):
        if count:
            edge = result.narrow(2 + axis, result.shape[2 + axis] - count, count)
            edge.copy_(bias.reshape(-1, *[1] * len(extra)).expand(edge.shape[1:]))


@operator("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    window = Window.from_node(call, x, call("kernel_shape"))
    rank = len(window.kernel)
    counts = window.outputs(x.shape[2:], bool(call("ceil_mode", 0)))
    extra = _missing(window, x, counts)
    small = all(before * 2 <= size for before, size in zip(window.before, window.kernel, strict=True))
    data = x if x.is_floating_point() else x.to(torch.float32)
    if window.before == window.after and not any(extra) and small:
        padding = window.before
    else:
        data, padding = functional.pad(data, window.flat(extra), value=float("-inf")), [0] * rank
    indexed = call.has_output(1)
    pooled = MAX_POOL[rank](data, window.kernel, window.strides, padding, window.dilations, return_indices=indexed)
    values, places = pooled if indexed else (pooled, None)
    values = values[_first(counts)].to(x.dtype)
    if places is None:
        return values
    return values, _flat_places(call, places[_first(counts)], x, data, window)


def _first(counts: list[int]) -> Any:
    """Return the index of the first elements along each axis."""
    return (..., *(slice(0, count) for count in counts))


def _missing(window: Window, x: Tensor, counts: list[int]) -> list[int]:
    """Return how much padding at the end the last windows need beyond the node's own."""
    ends = [
        (count - 1) * window.strides[axis] + window.dilations[axis] * (window.kernel[axis] - 1) + 1
        for axis, count in enumerate(counts)
    ]
    return [
        max(end - (size + window.before[axis] + window.after[axis]), 0)
        for axis, (end, size) in enumerate(zip(ends, x.shape[2:], strict=True))
    ]


def _flat_places(call: Call, places: Tensor, x: Tensor, padded: Tensor, window: Window) -> Tensor:
    """Return places in a padded image as ONNX counts them: in the whole input, by rows or by columns."""
    sizes, axes = x.shape[2:], len(window.kernel)
    parts: list[Tensor] = []
    rest = places
    for axis in reversed(range(axes)):
        offset = window.before[axis] if padded.shape != x.shape else 0
        parts.insert(0, rest % padded.shape[2 + axis] - offset)
        rest = torch.div(rest, padded.shape[2 + axis], rounding_mode="floor")
    order = reversed(range(axes)) if call("storage_order", 0) else range(axes)
    flat = torch.zeros_like(places)
    for axis in order:
        flat = flat * sizes[axis] + parts[axis]
    images = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * axes)
    return flat + images * math.prod(sizes)


@operator("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    window = Window.from_node(call, x, call("kernel_shape"))
    counts = window.outputs(x.shape[2:], bool(call("ceil_mode", 0)))
    extra = _missing(window, x, counts)
    whole = bool(call("count_include_pad", 0))
    plain = window.before == window.after and not any(extra) and set(window.dilations) == {1}
    if plain and all(2 * before <= size for before, size in zip(window.before, window.kernel, strict=True)):
        return AVERAGE_POOL[len(window.kernel)](
            x, window.kernel, window.strides, window.before, count_include_pad=whole
        )
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if whole:  # the node's own padding counts, and what the last windows need beyond it does not
        ones = functional.pad(ones, window.flat(), value=1.0)
        ones = functional.pad(ones, [amount for axis in reversed(extra) for amount in (0, axis)])
    else:
        ones = functional.pad(ones, window.flat(extra))
    data = functional.pad(x, window.flat(extra))
    return window_sums(data, window, counts) / window_sums(ones, window, counts)


def window_sums(x: Tensor, window: Window, counts: list[int]) -> Tensor:
    """Return the sum of each window of a padded image."""
    rank = len(window.kernel)
    kernel = torch.ones((1, 1, *window.kernel), dtype=x.dtype, device=x.device)
    images = x.reshape(-1, 1, *x.shape[2:])
    sums = CONVOLVE[rank](images, kernel, None, window.strides, 0, window.dilations)
    return sums[_first(counts)].reshape(*x.shape[:2], *counts)


@operator("LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    window = Window.from_node(call, x, call("kernel_shape"))
    counts = window.outputs(x.shape[2:], bool(call("ceil_mode", 0)))
    order = call("p", 2)
    data = functional.pad(torch.abs(x) ** order, window.flat(_missing(window, x, counts)))
    return window_sums(data, window, counts) ** (1 / order)


@operator("GlobalAveragePool")
def global_average_pool(_call: Call, x: Tensor) -> Tensor:
    return torch.mean(x, list(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(_call: Call, x: Tensor) -> Tensor:
    return torch.amax(x, list(range(2, x.dim())), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, call("p", 2), list(range(2, x.dim())), keepdim=True)


@operator("MaxUnpool", host=(2,))
def max_unpool(call: Call, x: Tensor, places: Tensor, sizes: Tensor | None = None) -> Tensor:
    window = Window.from_node(call, x, call("kernel_shape"))
    natural = [
        (size - 1) * window.strides[axis] + window.kernel[axis] - window.before[axis] - window.after[axis]
        for axis, size in enumerate(x.shape[2:])
    ]
    inner = [*x.shape[:2], *natural]
    outer = inner if sizes is None else [int(size) for size in sizes.tolist()]
    flat = torch.zeros(math.prod(outer), dtype=x.dtype, device=x.device)
    where = places.reshape(-1)
    if outer != inner:  # the places are those of the smaller image
        rest, flat_places, scale = where, torch.zeros_like(where), 1
        for axis in reversed(range(len(inner))):
            flat_places = flat_places + rest % inner[axis] * scale
            rest, scale = torch.div(rest, inner[axis], rounding_mode="floor"), scale * outer[axis]
        where = flat_places
    return flat.scatter(0, where, x.reshape(-1)).reshape(outer)
