"""ONNX's normalizations."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from bringup.frontends.onnx.operators import Call, Tensor, operator


@operator("BatchNormalization")
def batch_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Any:
    epsilon, momentum = call("epsilon", 1e-5), call("momentum", 0.9)
    if not call("training_mode", 0):
        return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    spread, middle = torch.var_mean(x, axes, correction=0)
    result = torch.batch_norm(x, scale, bias, None, None, True, 0.0, epsilon, False)
    return result, mean * momentum + middle * (1 - momentum), variance * momentum + spread * (1 - momentum)


@operator("InstanceNormalization")
def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    # torch.nn.functional refuses images of one element.
    return torch.instance_norm(x, scale, bias, None, None, True, 0.0, call("epsilon", 1e-5), False)


@operator("GroupNormalization")
def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, epsilon = call("num_groups"), call("epsilon", 1e-5)
    if scale.shape[0] != x.shape[1]:  # before opset 21, there is one per group
        scale, bias = (item.repeat_interleave(x.shape[1] // groups) for item in (scale, bias))
    return torch.group_norm(x, groups, scale, bias, epsilon)


@operator("LayerNormalization")
def layer_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    axis = call("axis", -1) % x.dim()
    epsilon = call("epsilon", 1e-5)
    sizes = list(x.shape[axis:])
    fits = list(scale.shape) == sizes and (bias is None or list(bias.shape) == sizes)
    if fits:
        result, mean, spread = torch.native_layer_norm(x, sizes, scale, bias, epsilon)
    else:
        result, mean, spread = torch.native_layer_norm(x, sizes, None, None, epsilon)
        result = result * scale if bias is None else result * scale + bias
    return result, mean, spread


@operator("RMSNormalization")
def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    axis = call("axis", -1) % x.dim()
    sizes = list(x.shape[axis:])
    if list(scale.shape) == sizes:
        return functional.rms_norm(x, sizes, scale, call("epsilon", 1e-5))
    return functional.rms_norm(x, sizes, None, call("epsilon", 1e-5)) * scale


@operator("MeanVarianceNormalization")
def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    spread, mean = torch.var_mean(x, call("axes", [0, 2, 3]), correction=0, keepdim=True)
    return (x - mean) / (torch.sqrt(spread) + 1e-9)  # ONNX's constant


@operator("LRN")
def local_response_normalization(call: Call, x: Tensor) -> Tensor:
    size = call("size")
    squares = (x * x).reshape(x.shape[0], 1, x.shape[1], -1)
    padded = functional.pad(squares, (0, 0, (size - 1) // 2, size - 1 - (size - 1) // 2))
    sums = functional.avg_pool2d(padded, (size, 1), stride=1).reshape(x.shape)
    return x / (call("bias", 1.0) + call("alpha", 1e-4) * sums) ** call("beta", 0.75)
