"""Compares the results of a kernel with a reference function in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bringup.errors import BringupError
from bringup.text import quantity


@dataclass(frozen=True)
class OutputError:
    """The error of one output.

    Attributes:
        output: index of the output.
        dtype: dtype of the kernel's result.
        largest: the largest absolute difference.
        relative: this difference divided by the largest value of the reference.
        ulps: this difference in units of the last place of the largest value in this dtype; 0 for integers.
        where: index of the largest difference.
        finite: True if the same elements are finite in both.
    """

    output: int
    dtype: str
    largest: float
    relative: float
    ulps: float
    where: tuple[int, ...]
    finite: bool

    def __str__(self) -> str:
        """Return the error in one line."""
        wrong = "" if self.finite else ", NaN or infinity in only one of kernel and reference"
        return (
            f"output {self.output} ({self.dtype}): largest error {self.largest:.3g} at {list(self.where)}, "
            f"{self.relative:.3g} of the largest value, {self.ulps:.3g} units of its last place{wrong}"
        )


def check(
    kernel: Callable[..., Any], reference: Callable[..., Any], args: Sequence[Any], **options: Any
) -> list[OutputError]:
    """Run a kernel on the chip and a reference on the CPU in float64; return the error of every output.

    Args:
        kernel: ``kernel[grid]`` of Triton, or a function that launches kernels. It gets tensors on the chip.
        reference: takes the same arguments, with floating-point tensors in float64. Both return their outputs, or both
            write them into their arguments; then the arguments that the kernel changed are compared.
        args: numbers, and tensors on any device, which are not changed.
        options: options of the kernel only, such as block sizes and ``num_warps``.

    Raises:
        BringupError: kernel and reference have different outputs.
    """
    on_chip = [x.detach().to("chip", copy=True) if isinstance(x, torch.Tensor) else x for x in args]
    exact = [_exact(x) if isinstance(x, torch.Tensor) else x for x in args]
    before = [x.cpu() if isinstance(x, torch.Tensor) else None for x in on_chip]
    outputs = _tensors(kernel(*on_chip, **options))
    expected = _tensors(reference(*exact))
    if not outputs:
        changed = [
            i for i, (x, old) in enumerate(zip(on_chip, before, strict=True)) if old is not None and not _same(x, old)
        ]
        outputs = [on_chip[i] for i in changed]
        expected = expected or [exact[i] for i in changed]
    if not outputs or len(outputs) != len(expected):
        raise BringupError(
            f"the kernel has {quantity(len(outputs), 'output')} and the reference {len(expected)}: return them from "
            "both, or write them into the same arguments in both"
        )
    return [_error(i, a.cpu(), b) for i, (a, b) in enumerate(zip(outputs, expected, strict=True))]


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor.clone()


def _tensors(value: Any) -> list[torch.Tensor]:
    """List the tensors in the result of a function; the launch of a kernel returns a compiled kernel, no tensor."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in values if isinstance(item, torch.Tensor)]


def _same(tensor: torch.Tensor, old: torch.Tensor) -> bool:
    return torch.equal(_bytes(tensor.cpu()), _bytes(old))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bytes, in which NaN is equal to itself."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _error(place: int, output: torch.Tensor, expected: torch.Tensor) -> OutputError:
    if output.shape != expected.shape:
        raise BringupError(f"output {place} has shape {list(output.shape)}, the reference's has {list(expected.shape)}")
    a, b = output.double(), expected.double()
    both = torch.isfinite(a) & torch.isfinite(b)
    difference = torch.where(both, (a - b).abs(), 0.0)
    worst = int(difference.argmax()) if difference.numel() else 0
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), output.shape)) if output.dim() else ()
    largest = float(difference.max()) if difference.numel() else 0.0
    scale = float(torch.where(torch.isfinite(b), b.abs(), 0.0).max()) if b.numel() else 0.0
    last_place = torch.finfo(output.dtype).eps * scale if output.dtype.is_floating_point else 0.0
    return OutputError(
        place,
        str(output.dtype).removeprefix("torch."),
        largest,
        largest / scale if scale else largest,
        largest / last_place if last_place else 0.0,
        where,
        bool((torch.isfinite(a) == torch.isfinite(b)).all()),
    )
