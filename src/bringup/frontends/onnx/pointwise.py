"""ONNX's operators that work on every element by itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch.nn import functional

from bringup.frontends.onnx.operators import Call, Tensor, operator, scalar, widened
from bringup.frontends.onnx.tensors import RANGES, torch_dtype

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": functional.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": functional.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}
VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}


def _register() -> None:
    for name, one in UNARY.items():
        operator(name)(widened(lambda _call, x, one=one: one(x)))
    for name, two in BINARY.items():
        operator(name)(widened(lambda _call, a, b, two=two: two(a, b)))
    for name, each in VARIADIC.items():
        operator(name)(widened(lambda _call, *items, each=each: reduce(each, items)))


_register()


@operator("Mean")
def mean(_call: Call, *items: Tensor) -> Tensor:
    return reduce(torch.add, items) / len(items)


@operator("Div")
@widened
def div(_call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


@operator("Pow", scalars=(1,))
@widened
def power(call: Call, base: Tensor, exponent: Tensor) -> Tensor:
    constant = call.constants.get(1)  # as in a square
    if constant is not None and exponent.dim() <= base.dim():
        return torch.pow(base, scalar(constant)).to(base.dtype)
    return torch.pow(base, exponent).to(base.dtype)


@operator("Mod")
@widened
def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if call("fmod", 0) else torch.remainder(a, b)


@operator("BitShift")
@widened
def bit_shift(call: Call, a: Tensor, b: Tensor) -> Tensor:
    shift = torch.bitwise_left_shift if call("direction") == "LEFT" else torch.bitwise_right_shift
    return shift(a, b)


@operator("PRelu")
def prelu(_call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator("IsInf")
def is_inf(call: Call, x: Tensor) -> Tensor:
    negative, positive = call("detect_negative", 1), call("detect_positive", 1)
    if negative and positive:
        return torch.isinf(x)
    if not negative and not positive:
        return torch.zeros_like(x, dtype=torch.bool)
    return torch.isposinf(x) if positive else torch.isneginf(x)


@operator("Clip", host=(1, 2))
@widened
def clip(_call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    bounds = [None if bound is None else scalar(bound) for bound in (low, high)]
    if bounds == [None, None]:
        return x
    if None not in bounds and bounds[0] > bounds[1]:  # type: ignore[operator]
        bounds[0] = bounds[1]
    return torch.clamp(x, *bounds)


@operator("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    return functional.elu(x, call("alpha", 1.0))


@operator("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    return functional.celu(x, call("alpha", 1.0))


@operator("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    alpha, gamma = call("alpha", 1.67326319217681884765625), call("gamma", 1.05070102214813232421875)  # ONNX's defaults
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


@operator("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, call("alpha", 0.01))


@operator("ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    return functional.threshold(x, call("alpha", 1.0), 0.0)


@operator("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(x * call("alpha", 0.2) + call("beta", 0.5), 0, 1)


@operator("Shrink")
def shrink(call: Call, x: Tensor) -> Tensor:
    bias, limit = call("bias", 0.0), call("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero)).to(x.dtype)


@operator("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=call("approximate", "none"))


@operator("Swish")
def swish(call: Call, x: Tensor) -> Tensor:
    alpha = call("alpha", 1.0)
    return functional.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@operator("Where")
def where(_call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@operator("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    if call("to") not in RANGES:
        return _convert(x, torch_dtype(call("to")), call)
    low, high = RANGES[call("to")]
    bits = x.to(torch.int32) & (high - low)  # torch holds numbers of four bits in bytes
    return torch.where(bits > high, bits - (high - low + 1), bits).to(torch_dtype(call("to")))


@operator("CastLike")
def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    return cast(call, x) if call("to") else _convert(x, like.dtype, call)


def _convert(x: Tensor, dtype: torch.dtype, call: Call) -> Tensor:
    narrow = dtype.is_floating_point and dtype.itemsize == 1
    if narrow and x.is_floating_point() and call("saturate", 1) and dtype != torch.float8_e8m0fnu:
        most = torch.finfo(dtype).max
        return torch.clamp(x, -most, most).to(dtype)
    if x.is_floating_point() and dtype in (torch.uint16, torch.uint32, torch.uint64):
        return x.to(torch.int64).to(dtype)
    return x.to(dtype)


@operator("Identity")
def identity(_call: Call, x: Any) -> Any:
    return x


@operator("Dropout", host=(1, 2), foldable=False)
def dropout(call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Any:
    share = 0.5 if ratio is None else scalar(ratio)
    if training is None or not scalar(training) or share == 0:
        return (x, torch.ones_like(x, dtype=torch.bool)) if call.has_output(1) else x
    result, mask = torch.native_dropout(x, share, True)
    return (result, mask) if call.has_output(1) else result
