"""Recurrent layers: one launch for a stack of layers, as cuDNN and MIOpen have it.

The values are computed cell by cell, by torch's own decomposition; those launches get no rows. A chip file lists the
dtypes of such kernels under ``[ops.groups] rnn``; on other chips every cell is launched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from bringup.machine.vocabulary import TF32_DEFAULT
from bringup.process import process

_ops = torch.ops.bringup
_CALLERS_MODULE = -2
MODES = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@contextmanager
def _quiet() -> Iterator[None]:
    """Give this thread's launches no rows inside the block; its time is the emulation's."""
    _ops.be_quiet(True)
    try:
        yield
    finally:
        _ops.be_quiet(False)
        if _ops.is_recording():
            _ops.skip_host_time()


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _has_kernel(tensors: Sequence[torch.Tensor]) -> bool:
    """Return True if the recording's chip has a kernel for these tensors."""
    chip = process.chip
    return chip is not None and _dtype(tensors[0]) in chip.ops.groups.get("rnn", [])


class _Described:
    """A call: its mode, its tensors (input, states, weights) and its numbers."""

    def __init__(self, mode: str, data: torch.Tensor, states: Sequence[torch.Tensor], numbers: dict[str, Any]) -> None:
        self.mode = mode
        self.data = data
        self.states = states
        self.numbers = numbers
        self.in_grad_mode = torch.is_grad_enabled()  # at the call: inside of an autograd function it is always off

    def record(
        self, name: str, read: Sequence[torch.Tensor], written: Sequence[torch.Tensor], node: int | None
    ) -> None:
        """Record one launch; `node` is autograd's node of a forward pass (0 for none), None for a backward pass."""
        read = [tensor.detach() for tensor in read]
        written = [tensor.detach() for tensor in written]
        inputs = [
            [_dtype(tensor), list(tensor.shape), list(tensor.stride()), place, 0] for place, tensor in enumerate(read)
        ]
        outputs = [[_dtype(tensor), list(tensor.shape), list(tensor.stride()), -1, 1] for tensor in written]
        args = {"input": {"tensor": 0}, "state": {"tensor": 1}, "mode": self.mode, **self.numbers}
        data: dict[str, Any] = {"op": f"aten::{name}", "inputs": inputs, "outputs": outputs, "args": args}
        switches = _ops.tf32_switches()
        if tuple(switches) != TF32_DEFAULT:
            data["tf32"] = switches
        _ops.record_compiled(json.dumps(data), read, written, "", _CALLERS_MODULE, node is None, node or 0, 0)


class _Stack(torch.autograd.Function):
    """A stack of layers as one launch forward and one backward."""

    @staticmethod
    def forward(ctx: Any, call: _Described, run: Any, *tensors: torch.Tensor) -> Any:
        needs = ctx.needs_input_grad[2:]
        has_backward = call.in_grad_mode and any(needs)
        node = _ops.latest_node() if has_backward else 0  # before the cells make nodes of their own
        with _quiet(), torch.set_grad_enabled(has_backward):
            inputs = [tensor.detach().requires_grad_(need) for tensor, need in zip(tensors, needs, strict=True)]
            ctx.results = list(run(inputs))
        results = [result.detach() for result in ctx.results]
        ctx.inputs, ctx.call = inputs, call
        call.record(call.mode, tensors, results, node)
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        if ctx.results is None:
            raise RuntimeError(
                "backward runs a second time through a recurrent layer: pass retain_graph=True to the first call"
            )
        pairs = [(result, grad) for result, grad in zip(ctx.results, grads, strict=True) if grad is not None]
        inputs = [tensor for tensor in ctx.inputs if tensor.requires_grad]
        with _quiet():
            computed = torch.autograd.grad(
                [result for result, _ in pairs],
                inputs,
                [grad for _, grad in pairs],
                retain_graph=keep,
                allow_unused=True,
            )
        read = [*ctx.inputs, *(grad for _, grad in pairs)]
        ctx.call.record("rnn_backward", read, [grad for grad in computed if grad is not None], None)
        gradients = iter(computed)
        result = [next(gradients) if tensor.requires_grad else None for tensor in ctx.inputs]
        if not keep:
            ctx.results = ctx.inputs = None
        return (None, None, *result)


def _kernel(mode: str, packed: bool) -> Any:
    """Return the implementation of torch's operator for padded or packed sequences.

    Packed ones have the rows of one step after those of the step before, and the number of rows of every step.
    """
    operator = getattr(getattr(torch.ops.aten, mode), "data" if packed else "input")

    def run(data: torch.Tensor, *arguments: Any) -> Any:
        sizes, (hx, params, *numbers) = arguments[: int(packed)], arguments[int(packed) :]
        _, num_layers, _, _, bidirectional, *batch_first = numbers
        described = {"num_layers": num_layers, "bidirectional": bidirectional}
        described |= {"steps": len(sizes[0])} if packed else {"batch_first": batch_first[0]}

        def cells(data: torch.Tensor, state: Any, weights: list[torch.Tensor]) -> Any:
            return operator.decompose(data, *sizes, state, weights, *numbers)

        return _run(mode, cells, data, hx, params, described)

    return run


def _run(
    mode: str, cells: Any, data: torch.Tensor, hx: Any, params: list[torch.Tensor], described: dict[str, Any]
) -> Any:
    """Run `cells(data, state, weights)`, as one launch if the chip has such a kernel."""
    states = list(hx) if mode == "lstm" else [hx]
    tensors = [data, *states, *params]
    if not _has_kernel(tensors):
        return cells(data, hx, params)

    def of_tensors(inputs: list[torch.Tensor]) -> Any:
        state = inputs[1 : 1 + len(states)]
        return cells(inputs[0], state if mode == "lstm" else state[0], inputs[1 + len(states) :])

    return _Stack.apply(_Described(mode, data, states, described), of_tensors, *tensors)  # type: ignore[no-untyped-call]


_library: list[Any] = []  # torch forgets the kernels of a library that nothing refers to


def install() -> None:
    """Register the kernels for tensors on a chip."""
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for mode in MODES:
        for key in ("AutogradPrivateUse1", "PrivateUse1"):
            library.impl(f"{mode}.input", _kernel(mode, packed=False), key)
            library.impl(f"{mode}.data", _kernel(mode, packed=True), key)
    _library.append(library)
