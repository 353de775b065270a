"""StableHLO's products and convolutions."""

from __future__ import annotations

import math

import torch

from bringup.frontends.stablehlo.operators import Call, Tensor, operator
from bringup.frontends.stablehlo.shapes import padded


@operator("dot_general")
def dot_general(call: Call, x: Tensor, y: Tensor) -> Tensor:
    numbers, dtype = call("dot_dimension_numbers"), call.target.dtype
    batch_x, batch_y = list(numbers.lhs_batching_dimensions), list(numbers.rhs_batching_dimensions)
    inner_x, inner_y = list(numbers.lhs_contracting_dimensions), list(numbers.rhs_contracting_dimensions)
    outer_x = [dim for dim in range(x.dim()) if dim not in batch_x + inner_x]
    outer_y = [dim for dim in range(y.dim()) if dim not in batch_y + inner_y]

    def form(value: Tensor, *groups: list[int]) -> Tensor:
        sizes = [math.prod(value.shape[dim] for dim in group) for group in groups]
        order = [dim for group in groups for dim in group]
        value = value if order == sorted(order) else value.permute(order)
        sizes = sizes if batch_x else sizes[1:]
        return (value if list(value.shape) == sizes else value.reshape(sizes)).to(dtype)

    a_BMK, b_BKN = form(x, batch_x, outer_x, inner_x), form(y, batch_y, inner_y, outer_y)
    if dtype == torch.bool:
        return (a_BMK.to(torch.float32) @ b_BKN.to(torch.float32) != 0).reshape(call.shape)
    result = a_BMK @ b_BKN
    return result if result.shape == call.shape else result.reshape(call.shape)


@operator("dot")
def dot(call: Call, x: Tensor, y: Tensor) -> Tensor:
    return x.to(call.target.dtype) @ y.to(call.target.dtype)


@operator("convolution")
def convolution(call: Call, x: Tensor, weight: Tensor) -> Tensor:
    numbers, dtype = call("dimension_numbers"), call.target.dtype
    x = x.permute([numbers.input_batch_dimension, numbers.input_feature_dimension, *numbers.input_spatial_dimensions])
    order = [numbers.kernel_output_feature_dimension, numbers.kernel_input_feature_dimension]
    weight = weight.permute([*order, *numbers.kernel_spatial_dimensions])
    result = [numbers.output_batch_dimension, numbers.output_feature_dimension, *numbers.output_spatial_dimensions]
    spatial = x.dim() - 2
    ones = [1] * spatial
    strides = list(call("window_strides") or ones)
    spread, apart = list(call("lhs_dilation") or ones), list(call("rhs_dilation") or ones)
    padding = call("padding") or [[0, 0]] * spatial
    groups, batches = call("feature_group_count"), call("batch_group_count")
    if turned := [2 + place for place, is_reversed in enumerate(call("window_reversal") or []) if is_reversed]:
        weight = weight.flip(turned)
    if batches > 1:  # each group of the batch has outputs of its own, as groups of features have
        x = x.reshape(batches, x.shape[0] // batches, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        groups = batches
    low, high = [before for before, _ in padding], [after for _, after in padding]
    even = low == high and min(low, default=0) >= 0 and spread == ones
    if not even:
        fill = call.once("zero", lambda: torch.zeros((), dtype=x.dtype, device=call.device))
        x = padded(x, fill, [0, 0, *low], [0, 0, *high], [0, 0, *(step - 1 for step in spread)])
        low = [0] * spatial
    x, weight = x.to(dtype), weight.to(dtype)
    if not spatial:
        return (x @ weight.transpose(0, 1)).permute(_inverse(result))
    y = torch.ops.aten.convolution(x, weight, None, strides, low, apart, False, [0] * spatial, groups)
    return y.permute(_inverse(result))


def _inverse(order: list[int]) -> list[int]:
    return [order.index(dim) for dim in range(len(order))]
