"""The cases of `bringup driver check`: operators of torch's database by dtype, in many layouts, and optimizers.

A case runs on the device while the core compares every kernel of the driver with the CPU (csrc/launch/shadow.cpp). So
an error belongs to the operator whose kernel made it, whatever operator of the database reached it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bringup.drivers.shadow import TOLERANCES, on_cpu
from bringup.scorecard.framework import OTHERS, close, exactly, full_name, moved, opinfos
from bringup.scorecard.strided import LAYOUTS, Layout, laid_out, ways, with_layout

CPU, CHIP = torch.device("cpu"), torch.device("chip")
INTEGERS = (torch.int64, torch.int32, torch.bool)
DTYPES = (*TOLERANCES, *INTEGERS)
MOST = 128  # samples of an operator
STRIDE = 4  # of the samples whose gradients find out whether the driver has a kernel for them
VARIED = 6  # samples that also run in other layouts, if the driver has a kernel
UNWRITTEN = ("resize_", "resize_as_")  # their results have memory that was never written
ROUNDING = 4  # how much more than the CPU's rounding a driver may round: kRounding in csrc/launch/shadow.cpp
LARGE = 1 << 33  # an integer that float32 and int32 cannot hold beside 1


@dataclass(frozen=True)
class Case:
    """A part of the check: an operator of the database in one dtype, or an optimizer.

    Attributes:
        name: how people call it.
        run: runs it; yields after each use, with the error of a whole result or an empty text.
    """

    name: str
    run: Callable[[], Iterator[str]]


def cases(dtypes: tuple[torch.dtype, ...], only: tuple[str, ...]) -> list[Case]:
    """Return the cases of these dtypes; of these operators of the database, if some are named."""
    listed = []
    for dtype in dtypes:
        for op in opinfos(dtype):
            name = full_name(op)
            if op.name not in UNWRITTEN and (not only or op.name in only or name in only):
                listed.append(Case(f"{name} {_text(dtype)}", _operator(op, dtype)))
    return [*listed, *(_optimizers() if not only or "optimizers" in only else ())]


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compared() -> int:
    """Return the number of launches of the driver's kernels."""
    torch.chip.synchronize()  # type: ignore[attr-defined]
    return int(torch.ops.bringup.shadow_compared())


# ---- operators


Use = Callable[[torch.device], Any]


def _operator(op: Any, dtype: torch.dtype) -> Callable[[], Iterator[str]]:
    def run() -> Iterator[str]:
        differentiable = bool(op.supports_autograd) and dtype in op.supported_backward_dtypes("cpu")
        torch.manual_seed(0)
        before = compared()
        samples = list(itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=False), MOST))
        in_part = samples[::STRIDE] if differentiable else []
        for sample in samples:
            yield _compare(lambda device, sample=sample: _call(op, sample, device), dtype)  # type: ignore[misc]
        for sample in in_part:
            yield _compare(_gradients_of(op, sample, _unchanged), dtype)
        if compared() == before:
            return
        for sample in samples if differentiable else []:
            if not any(sample is another for another in in_part):
                yield _compare(_gradients_of(op, sample, _unchanged), dtype)
        layouts = {name: layout for name, layout in MORE_LAYOUTS.items() if name != "special" or _takes_special(op)}
        for sample in samples[:: math.ceil(len(samples) / VARIED)]:
            for use in _varied(op, sample, differentiable, layouts):
                yield _compare(use, dtype)

    return run


def _compare(use: Use, dtype: torch.dtype) -> str:
    """Run a use on the CPU and on the device; return how the whole results differ. What the CPU refuses is left out."""
    try:
        torch.manual_seed(0)
        with on_cpu():
            expected = use(CPU)
    except Exception:  # the CPU's refusal is the contract
        return ""
    before, not_comparable = compared(), _not_comparable()
    try:
        torch.manual_seed(0)
        result = use(CHIP)
        torch.chip.synchronize()  # type: ignore[attr-defined]
        if _not_comparable() > not_comparable:
            return ""
        expected, result = (torch.utils._pytree.tree_leaves(whole) for whole in (expected, result))
        tolerance = OTHERS.get(dtype) or 1e-3  # as the scorecard compares; integers are always compared exactly
        same = close(*_without_nonsense(expected, result), tolerance) or _is_rounding(use, expected, result, tolerance)
        error = "" if same else "the result differs from the CPU's, though each kernel is right on its own"
    except Exception as problem:
        error = (str(problem).splitlines() or [type(problem).__name__])[0]
    return error if compared() > before else ""


def _not_comparable() -> int:
    """Return the number of launches without which whole results are not comparable.

    They drew random numbers, which are not the CPU's. Or the CPU's own result was off by more than the tolerance, as
    that of group norm with weights that are not dense.
    """
    return int(torch.ops.bringup.shadow_drawn() + torch.ops.bringup.shadow_excused())


def _is_rounding(use: Use, expected: list[Any], result: list[Any], tolerance: float) -> bool:
    """True if whole results differ by no more than the CPU's own rounding, times `ROUNDING`, beyond the tolerance.

    Rounding errors of one operator may be large after the next ones. The CPU finds its own by computing in float64.
    """
    try:
        torch.manual_seed(0)
        with on_cpu(), exactly():
            exact = torch.utils._pytree.tree_leaves(use(CPU))
    except Exception:  # it does not compute in float64
        return False
    if not len(exact) == len(expected) == len(result):
        return False
    expected, result = _without_nonsense(expected, result)
    for a, b, c in zip(expected, result, exact, strict=True):
        tensors = all(isinstance(part, torch.Tensor) for part in (a, b, c))
        if not tensors or not (a.is_floating_point() or a.is_complex()) or not a.shape == b.shape == c.shape:
            if not close(a, b, tolerance):
                return False
            continue
        a, b, c = (part.detach().cpu().to_dense().to(torch.complex128) for part in (a, b, c))
        rounding = (a - c).abs().nan_to_num(0, 0, 0).amax() if a.numel() else 0
        near = (a - b).abs() <= tolerance * (1 + a.abs()) + ROUNDING * rounding
        if not bool((near | (a == b)).all()):
            return False
    return True


def _without_nonsense(expected: list[Any], result: list[Any]) -> tuple[list[Any], list[Any]]:
    """Replace elements that are NaN or infinite in both by 0, unless both are infinite: as each kernel is compared."""

    def cleaned(a: Any, b: Any) -> tuple[Any, Any]:
        tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        if not tensors or not (a.is_floating_point() or a.is_complex()) or a.shape != b.shape or a.layout != b.layout:
            return a, b
        a, b = a.detach().cpu().to_dense(), b.detach().cpu().to_dense()
        nonsense = ~(a.isfinite() | b.isfinite() | (a.isinf() & b.isinf()))
        return a.masked_fill(nonsense, 0), b.masked_fill(nonsense, 0)

    if len(expected) != len(result):
        return expected, result
    pairs = [cleaned(a, b) for a, b in zip(expected, result, strict=True)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _gradients_of(op: Any, sample: Any, layout: Layout) -> Use:
    return lambda device: _gradients(op, sample, device, layout)


def _call(op: Any, sample: Any, device: torch.device) -> Any:
    result = op(moved(sample.input, device), *moved(list(sample.args), device), **moved(sample.kwargs, device))
    return sample.output_process_fn_grad(result) if sample.output_process_fn_grad is not None else result


def _gradients(op: Any, sample: Any, device: torch.device, layout: Layout) -> Any:
    """Return the gradients of a weighted sum of the results; the weights are not all equal."""
    inputs, args = moved(sample.input, device), moved(list(sample.args), device)
    leaves = [leaf.requires_grad_() for leaf in _tensors((inputs, args)) if leaf.is_floating_point()]
    result = op(laid_out(inputs, layout), *laid_out(args, layout), **moved(sample.kwargs, device))
    if sample.output_process_fn_grad is not None:
        result = sample.output_process_fn_grad(result)
    results = [part for part in _tensors(result) if part.requires_grad and part.is_floating_point()]
    weights = [torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view(part.shape).to(device) for part in results]
    return torch.autograd.grad(results, leaves, weights, allow_unused=True)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [part for part in torch.utils._pytree.tree_leaves(value) if isinstance(part, torch.Tensor)]


def _strided(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same values with a gap after each."""
    return tensor.repeat_interleave(2, -1)[..., ::2] if tensor.dim() else tensor


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:0] if tensor.dim() else tensor


def _scalar(tensor: torch.Tensor) -> torch.Tensor:
    """Return one element, without dimensions."""
    return tensor.flatten()[0]


def _special(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values with NaN, infinities and zeros among them, or integers that float32 cannot hold."""
    changed = tensor.clone()
    if tensor.dtype.is_floating_point:
        extremes = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0], dtype=tensor.dtype, device=tensor.device)
        places = changed.view(-1)[: 2 * len(extremes) : 2]
        places.copy_(extremes[: len(places)])
    elif tensor.dtype == torch.int64:
        changed.view(-1)[::2].add_(LARGE)
    return changed


MORE_LAYOUTS: dict[str, Layout] = {"strided": _strided, "empty": _empty, "0-dim": _scalar, "special": _special}


def _takes_special(op: Any) -> bool:
    """True if NaN and infinity have one right result: not as integers, and not beside the padding of convolutions."""
    return "conv" not in op.name and op.name not in ("byte", "char", "short", "int", "long")


def _varied(op: Any, sample: Any, differentiable: bool, more: dict[str, Layout]) -> Iterator[Use]:
    """Yield the uses of a sample in other layouts, in place, with ``out=``, with one tensor twice, other numbers."""
    for _, way in ways(op, sample):
        yield lambda device, way=way: way(op, sample, device)  # type: ignore[misc]
    for way in map(with_layout, more.values()):
        yield lambda device, way=way: way(op, sample, device)  # type: ignore[misc]
    yield lambda device: _twice(op, sample, device)
    yield lambda device: _other_numbers(op, sample, device)
    if differentiable:
        layouts: tuple[Layout, ...] = (LAYOUTS["transposed"], LAYOUTS["offset"], _strided)
        for layout in layouts:
            yield _gradients_of(op, sample, layout)


def _twice(op: Any, sample: Any, device: torch.device) -> Any:
    """Give the first tensor also as each other argument of its shape."""
    inputs = moved(sample.input, device)

    def replaced(value: Any) -> Any:
        alike = isinstance(value, torch.Tensor) and isinstance(inputs, torch.Tensor)
        return inputs if alike and (value.shape, value.dtype) == (inputs.shape, inputs.dtype) else value

    return op(inputs, *(replaced(value) for value in moved(list(sample.args), device)), **moved(sample.kwargs, device))


def _other_numbers(op: Any, sample: Any, device: torch.device) -> Any:
    """Change the numbers among the arguments: a kernel that is ready must not keep those of its first launch."""

    def changed(value: Any) -> Any:
        if isinstance(value, float):
            return value + 0.5
        return value + 1 if type(value) is int else value

    inputs, args = moved(sample.input, device), moved(list(sample.args), device)
    kwargs = moved(sample.kwargs, device)
    return op(inputs, *map(changed, args), **{name: changed(value) for name, value in kwargs.items()})


# ---- optimizers


def _optimizers() -> Iterator[Case]:
    """Yield the optimizers, whose operators on lists the database does not have."""
    kinds: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "SGD": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
        "Adam": lambda weights: torch.optim.Adam(weights, 0.01, weight_decay=0.01),
        "AdamW": lambda weights: torch.optim.AdamW(weights, 0.01),
        "RMSprop": lambda weights: torch.optim.RMSprop(weights, 0.01, momentum=0.5, centered=True),
        "Adagrad": lambda weights: torch.optim.Adagrad(weights, 0.01),
        "fused SGD": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9, fused=True),
        "fused Adam": lambda weights: torch.optim.Adam(weights, 0.01, weight_decay=0.01, fused=True),
        "fused AdamW": lambda weights: torch.optim.AdamW(weights, 0.01, maximize=True, fused=True),
    }
    for name, kind in kinds.items():
        yield Case(name, lambda kind=kind: _optimise(kind))  # type: ignore[misc]


def _optimise(kind: Callable[[Any], torch.optim.Optimizer]) -> Iterator[str]:
    for clips in (False, True):

        def use(device: torch.device, clips: bool = clips) -> Any:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(device)
            optimizer = kind(model.parameters())
            x = torch.randn(16, 4).to(device)
            for _ in range(3):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                if clips:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.param_groups[0]["lr"] *= 0.5
            return [weight.detach() for weight in model.parameters()]

        yield _compare(use, torch.float32)
