"""ONNX's matrix products, and products of quantized numbers."""

from __future__ import annotations

import torch
from torch.nn import functional

from bringup.frontends.onnx.operators import Call, Tensor, operator
from bringup.frontends.onnx.tensors import RANGES, torch_dtype
from bringup.frontends.onnx.windows import convolve


@operator("MatMul")
def matmul(_call: Call, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply; the model's planner adds a bias (`model._Planner.join`)."""
    return torch.matmul(a, b) if bias is None else functional.linear(a, b.t(), bias)


@operator("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = call("alpha", 1.0), call("beta", 1.0)
    a = a.t() if call("transA", 0) else a
    if c is not None and alpha == beta == 1 and c.dim() == 1 and a.is_floating_point() and call("transB", 0):
        return functional.linear(a, b, c)
    b = b.t() if call("transB", 0) else b
    if c is not None and a.is_floating_point():
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)
    product = torch.mm(a, b)
    product = product if alpha == 1 else (product * alpha).to(a.dtype)
    return product if c is None else product + (c if beta == 1 else (c * beta).to(a.dtype))


def _along(scale: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Return scales or zero points in a shape that goes with the tensor."""
    if block:
        repeated = scale.repeat_interleave(block, axis)
        return repeated.narrow(axis, 0, x.shape[axis])
    if scale.numel() == 1:
        return scale.reshape(())
    view = [1] * x.dim()
    view[axis] = -1
    return scale.reshape(view)


@operator("QuantizeLinear", scalars=(1, 2), foldable=False)
def quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis, block = call("axis", 1), call("block_size", 0)
    number = call("output_dtype", 0)
    dtype = zero.dtype if zero is not None else torch_dtype(number) if number else torch.uint8
    precision = call("precision", 0)
    scaled = x / _along(scale, x, axis, block).to(torch_dtype(precision) if precision else x.dtype)
    if dtype.is_floating_point:
        most = torch.finfo(dtype).max
        return torch.clamp(scaled, -most, most).to(dtype)
    bounds = torch.iinfo(dtype)
    low, high = RANGES.get(number, (bounds.min, bounds.max))
    rounded = torch.round(scaled.to(torch.float32) if scaled.dtype == torch.bfloat16 else scaled)
    if zero is not None and not _is_zero(call):
        rounded = rounded + _along(zero, x, axis, block).to(torch.int32)
    clamped = torch.clamp(rounded, low, high)
    return clamped.to(torch.int32).to(dtype) if dtype == torch.uint16 else clamped.to(dtype)


@operator("DequantizeLinear", scalars=(1, 2), foldable=False)
def dequantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis, block = call("axis", 1), call("block_size", 0)
    number = call("output_dtype", 0)
    dtype = torch_dtype(number) if number else scale.dtype
    wide = torch.int32 if x.dtype == torch.int32 or scale.dtype != torch.float32 else torch.float32  # exact in both
    if zero is None or zero.is_floating_point() or _is_zero(call):
        value = x.to(scale.dtype)
    else:
        value = (x.to(wide) - _along(zero, x, axis, block).to(wide)).to(scale.dtype)
    return (value * _along(scale, x, axis, block)).to(dtype)


@operator("DynamicQuantizeLinear", foldable=False)
def dynamic_quantize(_call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low = torch.clamp(torch.amin(x), max=0)
    high = torch.clamp(torch.amax(x), min=0)
    scale = (high - low) / 255
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    return torch.clamp(torch.round(x / scale) + zero, 0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


def _is_zero(call: Call) -> bool:
    """Return True if the zero point is a constant, and 0."""
    return 2 in call.constants and not any(call.constants[2].flat)


def _centred(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """Return whole numbers less their zero point, as int32."""
    value = x.to(torch.int32)
    if zero is None:
        return value
    return value - _along(zero.to(torch.int32), x, axis, 0)


def _integer_product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices of whole numbers, exactly."""
    if a.device.type != "cpu" and a.dim() == 2 and b.dim() == 2 and a.dtype == b.dtype == torch.int8:
        return torch._int_mm(a, b)
    return torch.matmul(a.to(torch.int32), b.to(torch.int32))


@operator("MatMulInteger")
def matmul_integer(
    _call: Call, a: Tensor, b: Tensor, zero_a: Tensor | None = None, zero_b: Tensor | None = None
) -> Tensor:
    if zero_a is None and zero_b is None:
        return _integer_product(a, b)
    return torch.matmul(_centred(a, zero_a, a.dim() - 2), _centred(b, zero_b, b.dim() - 1))


def _requantized(value: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    bounds = torch.iinfo(zero.dtype)
    return torch.clamp(torch.round(value * scale) + zero.to(torch.int32), bounds.min, bounds.max).to(zero.dtype)


@operator("QLinearMatMul")
def qlinear_matmul(
    _call: Call,
    a: Tensor,
    scale_a: Tensor,
    zero_a: Tensor,
    b: Tensor,
    scale_b: Tensor,
    zero_b: Tensor,
    scale: Tensor,
    zero: Tensor,
) -> Tensor:
    product = torch.matmul(_centred(a, zero_a, a.dim() - 2), _centred(b, zero_b, b.dim() - 1))
    factor = _along(scale_a, a, a.dim() - 2, 0) * _along(scale_b, b, b.dim() - 1, 0) / scale
    return _requantized(product, factor, zero)


def _integer_convolution(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve whole numbers; float64 holds their sums exactly."""
    more = None if bias is None else bias.to(torch.float64)
    return convolve(call, x.to(torch.float64), weight.to(torch.float64), more)


@operator("ConvInteger")
def conv_integer(
    call: Call, x: Tensor, weight: Tensor, zero_x: Tensor | None = None, zero_w: Tensor | None = None
) -> Tensor:
    result = _integer_convolution(call, _centred(x, zero_x, 1), _centred(weight, zero_w, 0), None)
    return result.to(torch.int32)


@operator("QLinearConv")
def qlinear_conv(
    call: Call,
    x: Tensor,
    scale_x: Tensor,
    zero_x: Tensor,
    weight: Tensor,
    scale_w: Tensor,
    zero_w: Tensor,
    scale: Tensor,
    zero: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    result = _integer_convolution(call, _centred(x, zero_x, 1), _centred(weight, zero_w, 0), bias)
    factor = scale_x * _along(scale_w, result, 1, 0) / scale
    return _requantized(result.to(torch.float32), factor, zero)
