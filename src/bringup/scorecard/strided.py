"""A. The framework, continued: operators on strided memory, in place, and with ``out=``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from bringup.scorecard.framework import close, comparing, full_name, moved, opinfos, samples
from bringup.scorecard.registry import Partial, item

Layout = Callable[[torch.Tensor], torch.Tensor]
CPU = torch.device("cpu")
GAP = 3  # elements before a tensor with an offset


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same values with another order of dimensions in memory."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.dim() > 1 else tensor


def _expanded(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that repeats its first row with stride 0."""
    return tensor[:1].expand(tensor.shape) if tensor.dim() > 0 and tensor.shape[0] > 1 else tensor


def _offset(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same values behind other elements of a larger storage."""
    storage = tensor.new_zeros(GAP + tensor.numel())
    place = storage[GAP:].view(tensor.shape)
    place.copy_(tensor)
    return place


LAYOUTS: dict[str, Layout] = {"transposed": _transposed, "expanded": _expanded, "offset": _offset}


def laid_out(value: Any, layout: Layout) -> Any:
    """Return an argument with every tensor that has elements in a layout."""
    if isinstance(value, torch.Tensor):
        return layout(value) if value.layout == torch.strided and value.numel() > 0 else value
    if type(value) in (list, tuple):
        return type(value)(laid_out(part, layout) for part in value)
    return value


def _on(device: torch.device, sample: Any) -> tuple[Any, list[Any], dict[str, Any]]:
    return moved(sample.input, device), moved(list(sample.args), device), moved(sample.kwargs, device)


def with_layout(layout: Layout) -> Callable[[Any, Any, torch.device], Any]:
    """Return a function that calls an operator with tensors in a layout."""

    def run(op: Any, sample: Any, device: torch.device) -> Any:
        inputs, args, kwargs = _on(device, sample)
        return op(laid_out(inputs, layout), *laid_out(args, layout), **kwargs)

    return run


def _in_place(op: Any, sample: Any, device: torch.device) -> Any:
    inputs, args, kwargs = _on(device, sample)
    changed = inputs.clone()
    return [op.inplace_variant(changed, *args, **kwargs), changed]


def _with_out(op: Any, sample: Any, device: torch.device) -> Any:
    inputs, args, kwargs = _on(CPU, sample)
    shapes = op(inputs, *args, **kwargs)
    is_single = isinstance(shapes, torch.Tensor)
    out = [torch.full_like(result, 1, device=device) for result in ([shapes] if is_single else shapes)]
    inputs, args, kwargs = _on(device, sample)
    op(inputs, *args, **kwargs, out=out[0] if is_single else tuple(out))
    return out


def ways(op: Any, sample: Any) -> Iterator[tuple[str, Callable[[Any, Any, torch.device], Any]]]:
    """Yield the ways to call an operator: in each layout, in place, and with ``out=``."""
    for name, layout in LAYOUTS.items():
        yield name, with_layout(layout)
    if op.inplace_variant is not None and isinstance(sample.input, torch.Tensor) and not sample.broadcasts_input:
        yield "in place", _in_place
    if op.supports_out and "out" not in sample.kwargs:
        yield "out=", _with_out


def _result(way: Callable[[Any, Any, torch.device], Any], op: Any, sample: Any, device: torch.device) -> Any:
    torch.manual_seed(0)
    result = way(op, sample, device)
    return sample.output_process_fn_grad(result) if sample.output_process_fn_grad is not None else result


def failures(device: torch.device, stride: int = 1) -> tuple[int, dict[str, list[str]]]:
    """Compare every n-th operator of torch's database with the CPU in every way that the CPU supports.

    Returns the number of comparisons, and by way the operators with another result.
    """
    failed: dict[str, list[str]] = {}
    tried = 0
    with comparing():
        for op in list(opinfos(torch.float32))[::stride]:
            for sample in list(samples(op, torch.float32, False))[:1]:
                for name, way in ways(op, sample):
                    try:
                        expected = _result(way, op, sample, CPU)
                    except Exception:  # the CPU refuses it, too
                        continue
                    tried += 1
                    try:
                        same = close(expected, _result(way, op, sample, device), 1e-3)
                    except Exception:  # the operator's verdict
                        same = False
                    if not same:
                        failed.setdefault(name, []).append(full_name(op))
    return tried, failed


@item(
    "A11",
    "D",
    "operators on strided memory",
    hint="kernels must use the strides and the offset of their tensors, and write into the tensor that they are given",
    seconds=600,
)
def strided(device: torch.device) -> str:
    """Operators have the CPU's results on transposed, expanded and offset tensors, in place, and with ``out=``."""
    tried, failed = failures(device)
    count = sum(map(len, failed.values()))
    text = f"{tried - count} of {tried} uses of operators"
    if failed:
        ways = "; ".join(f"{name}: {', '.join(ops[:4])}" for name, ops in failed.items())
        raise Partial(1 - count / max(tried, 1), f"{text}; not {ways}")
    return text
