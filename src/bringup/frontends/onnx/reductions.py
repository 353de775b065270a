"""ONNX's operators along axes: sums, maxima, softmax, sorting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bringup.frontends.onnx.graph import OnnxError
from bringup.frontends.onnx.operators import Call, Tensor, axes_of, ints, operator, scalar, widened

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keepdim=keep)
    return torch.mean(x.to(torch.float64), axes, keepdim=keep).to(x.dtype)


def _largest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.amax(_filled(x, axes, largest=True), axes, keepdim=keep)


def _smallest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.amin(_filled(x, axes, largest=False), axes, keepdim=keep)


def _filled(x: Tensor, axes: list[int], largest: bool) -> Tensor:
    """Return a tensor with one element along axes that have none: the neutral element of max or min."""
    if x.numel() or all(x.shape[axis] for axis in axes):
        return x
    sizes = [1 if axis in axes and size == 0 else size for axis, size in enumerate(x.shape)]
    if x.dtype == torch.bool:
        return torch.full(sizes, not largest, device=x.device)
    bounds: Any = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
    most, least = (float("inf"), float("-inf")) if x.is_floating_point() else (bounds.max, bounds.min)
    return torch.full(sizes, least if largest else most, dtype=x.dtype, device=x.device)


REDUCTIONS: dict[str, Reduce] = {
    "ReduceL1": lambda x, axes, keep: _sum(torch.abs(x), axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.sqrt(_sum(x * x, axes, keep).to(_real(x))).to(x.dtype),
    "ReduceLogSum": lambda x, axes, keep: torch.log(_sum(x, axes, keep).to(_real(x))).to(x.dtype),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x.to(_real(x)), axes, keepdim=keep).to(x.dtype),
    "ReduceMax": _largest,
    "ReduceMean": _mean,
    "ReduceMin": _smallest,
    "ReduceProd": _prod,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
}


def _real(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.float64


def _reduce(call: Call, x: Tensor, axes: Tensor | None, reduction: Reduce) -> Tensor:
    chosen = call("axes") if axes is None else ints(axes)
    if not chosen:
        if call("noop_with_empty_axes", 0):
            return reduction(x.unsqueeze(0), [0], False)  # of each element alone
        chosen = None
    along = axes_of(x.dim(), chosen)
    if not along:  # a scalar
        return reduction(x.reshape(1), [0], False)
    return reduction(x, along, bool(call("keepdims", 1)))


def _register() -> None:
    for name, each in REDUCTIONS.items():
        operator(name, host=(1,))(widened(lambda call, x, axes=None, each=each: _reduce(call, x, axes, each)))


_register()


def _position(call: Call, x: Tensor, largest: bool) -> Tensor:
    axis, keep = call("axis", 0), bool(call("keepdims", 1))
    pick = torch.argmax if largest else torch.argmin
    if not call("select_last_index", 0):
        return pick(x, axis, keepdim=keep)
    return x.shape[axis] - 1 - pick(x.flip(axis), axis, keepdim=keep)


@operator("ArgMax")
def arg_max(call: Call, x: Tensor) -> Tensor:
    return _position(call, x, largest=True)


@operator("ArgMin")
def arg_min(call: Call, x: Tensor) -> Tensor:
    return _position(call, x, largest=False)


@operator("Softmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    return torch.softmax(x, call("axis", -1))


@operator("LogSoftmax")
def log_softmax(call: Call, x: Tensor) -> Tensor:
    return torch.log_softmax(x, call("axis", -1))


@operator("Hardmax")
def hardmax(call: Call, x: Tensor) -> Tensor:
    axis = call("axis", -1)
    return torch.zeros_like(x).scatter(axis, torch.argmax(x, axis, keepdim=True), 1)


@operator("LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    axis, order = call("axis", -1), call("p", 2)
    norm = torch.linalg.vector_norm(x, order, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def _cumulate(call: Call, x: Tensor, axis: Tensor, function: Callable[..., Tensor], first: int) -> Tensor:
    along = int(scalar(axis))
    if call("reverse", 0):
        x = x.flip(along)
    result = function(x, along, dtype=x.dtype)
    if call("exclusive", 0):
        edge = torch.full_like(result.narrow(along, 0, 1), first)
        result = torch.cat((edge, result.narrow(along, 0, x.shape[along] - 1)), along)
    return result.flip(along) if call("reverse", 0) else result


@operator("CumSum", host=(1,))
def cumsum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    return _cumulate(call, x, axis, torch.cumsum, 0)


@operator("CumProd", host=(1,))
def cumprod(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    return _cumulate(call, x, axis, torch.cumprod, 1)


@operator("TopK", host=(1,))
def topk(call: Call, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    axis, largest = call("axis", -1), bool(call("largest", 1))
    values, places = torch.sort(x, dim=axis, descending=largest, stable=True)  # equal values: the lower index first
    count = int(scalar(k))
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


@operator("Det")
def det(_call: Call, x: Tensor) -> Tensor:
    return torch.linalg.det(x)


@operator("Einsum")
def einsum(call: Call, *items: Tensor) -> Tensor:
    equation = call("equation")
    if equation is None:
        raise OnnxError("it needs an equation")
    return torch.einsum(equation.replace(" ", ""), *items)
