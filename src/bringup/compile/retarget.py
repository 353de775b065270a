"""Rewriting of Dynamo's graph from ``chip`` to ``cpu``, and views of chip tensors for the compiled code.

Note [Retargeting]
The devices in Dynamo's graph are rewritten from ``chip`` to ``cpu`` before AOTAutograd runs, and stock Inductor
compiles the graph. The compiled code gets host views of the chip's memory, so only results are copied. The autograd
function `Joined` connects the chip's tensors with these views; it does not support double backward.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass, transform_subclass

from bringup.compile.attention import attend
from bringup.device.torch_chip import real_device
from bringup.device.torch_versions import fake_mode_for_inductor

_transformed: Callable[[Any, Callable[[str, torch.Tensor], Any]], torch.Tensor] = transform_subclass

# ---- Dynamo's graph


def is_host(node: Any) -> bool:
    """Return True if a node of Dynamo's graph is a tensor on the host."""
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return isinstance(value, torch.Tensor) and real_device(value).type == "cpu"


def on_host(value: Any) -> Any:
    """Return a fake CPU tensor with the metadata of a chip tensor; any other value unchanged."""
    mode = fake_mode_for_inductor()
    of_another_mode = mode is not None and getattr(value, "fake_mode", mode) is not mode
    if not isinstance(value, torch.Tensor) or (real_device(value).type != "chip" and not of_another_mode):
        return value
    if is_traceable_wrapper_subclass(value):
        return _transformed(value, lambda _, inner: on_host(inner)).requires_grad_(value.requires_grad)
    mode = mode or getattr(value, "fake_mode", None)
    with mode if mode is not None else nullcontext(), torch.enable_grad():
        fake = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="cpu")
        fake.requires_grad_(value.requires_grad)
        if value.requires_grad and not value.is_leaf:
            fake = fake.clone()
    for name in ("_dynamo_static_input_type", "_dynamo_weak_dynamic_indices", "_dynamo_dynamic_indices"):
        if hasattr(value, name):
            setattr(fake, name, getattr(value, name))
    return fake


def _histc(data: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Compute a histogram of integers, too, which torch's CPU kernel refuses (see csrc/torch/ops.cpp)."""
    return torch.histc(data if data.is_floating_point() else data.float(), *args, **kwargs).to(data.dtype)


def retarget(graph: fx.GraphModule) -> None:
    """Rewrite a graph on ``chip`` to ``cpu`` in place; parameters become views of the chip's memory."""

    def moved(value: Any) -> Any:
        if isinstance(value, torch.device) and value.type in ("chip", "cuda"):
            return torch.device("cpu")
        if isinstance(value, str) and re.fullmatch(r"(chip|cuda)(:\d+)?", value):
            return "cpu"
        return value

    for module in graph.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in module.graph.nodes:
            node.args = fx.node.map_aggregate(node.args, moved)
            node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
            if node.target is torch.nn.functional.scaled_dot_product_attention:
                node.target = attend
            if node.target in (torch.histc, "histc"):
                node.op, node.target = "call_function", _histc
            if node.op == "call_method" and node.target in ("cuda", "chip"):
                node.target, node.args, node.kwargs = "cpu", node.args[:1], {}
            if "example_value" in node.meta:
                node.meta["example_value"] = torch.utils._pytree.tree_map(on_host, node.meta["example_value"])
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if real_device(tensor).type == "chip":
                delattr(module, name)
                module.register_buffer(name, lend(tensor))
        module.recompile()


# ---- inputs and results of compiled code


def settle(index: int) -> None:
    """Wait for the chip, because the compiled code and torch's code around it read the views immediately."""
    if not torch.ops.bringup.is_dry():
        torch.ops.bringup.settle_stream(index)


def lend(value: Any, requires_grad: bool = False) -> Any:
    """Return a host view of a chip tensor; any other value unchanged."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    if is_traceable_wrapper_subclass(value):
        view = _transformed(value, lambda _, inner: lend(inner))
    else:
        view = torch.ops.bringup.host_view(value) if real_device(value).type == "chip" else value
    return view.requires_grad_() if requires_grad else view


def take(value: torch.Tensor, index: int) -> torch.Tensor:
    """Return the chip tensor behind a host view, or copy another result of compiled code to the chip."""
    value = value.detach()
    if is_traceable_wrapper_subclass(value):
        return _transformed(value, lambda _, inner: take(inner, index))
    if torch.ops.bringup.is_host_view(value):
        tensor: torch.Tensor = torch.ops.bringup.chip_view(value)
        return tensor
    return value.to(torch.device("chip", index))


def finish(results: Any, stays: list[bool], index: int) -> list[Any]:
    """Return the results of compiled code on the chip, or on the host where `stays` is True."""
    return [
        (result.detach().clone() if stay else take(result, index)) if isinstance(result, torch.Tensor) else result
        for result, stay in zip(results, stays, strict=True)
    ]


@contextmanager
def _in_one_backward() -> Iterator[None]:
    """Make checkpoints take a backward pass inside another one for the same, so that they recompute once."""
    group = getattr(torch._C, "_get_graph_exec_group", lambda: "torch without such groups")()
    if group is not None:
        yield
        return
    torch._C._set_graph_exec_group(torch._C._current_graph_task_id())  # type: ignore[arg-type]
    try:
        yield
    finally:
        torch._C._set_graph_exec_group(None)


class Joined(torch.autograd.Function):
    """Connects autograd of chip tensors with autograd of their host views."""

    @staticmethod
    def forward(ctx: Any, run: Any, stays: list[bool], index: int, arguments: Any, *tensors: torch.Tensor) -> Any:
        """Run compiled code on host views. `tensors` repeats the tensor arguments, because autograd needs them."""
        needs = iter(ctx.needs_input_grad[4:])
        settle(index)
        with torch.enable_grad():
            lent = [lend(x, next(needs)) if isinstance(x, torch.Tensor) else x for x in arguments]
            ctx.inputs = [x for x in lent if isinstance(x, torch.Tensor)]
            ctx.results = list(run(list(lent)))
        finished = finish(ctx.results, stays, index)
        plain = [
            tensor
            for tensor, result in zip(finished, ctx.results, strict=True)
            if isinstance(tensor, torch.Tensor) and not result.requires_grad
        ]
        ctx.mark_non_differentiable(*plain)
        ctx.set_materialize_grads(False)
        ctx.index = index
        return tuple(finished)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Run the compiled backward graph on host views of the gradients."""
        if ctx.results is None:
            raise RuntimeError(
                "backward runs a second time through a compiled graph: pass retain_graph=True to the first call"
            )
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        pairs = [(result, grad) for result, grad in zip(ctx.results, grads, strict=True) if grad is not None]
        inputs = [x for x in ctx.inputs if x.requires_grad]
        input_grads: Any = [None] * len(inputs)
        if pairs and inputs:
            settle(ctx.index)
            with _in_one_backward():
                input_grads = torch.autograd.grad(
                    [result for result, _ in pairs],
                    inputs,
                    [lend(grad) for _, grad in pairs],
                    retain_graph=keep,
                    allow_unused=True,
                )
        on_chip = iter([None if grad is None else take(grad, ctx.index) for grad in input_grads])
        tensor_grads = [next(on_chip) if x.requires_grad else None for x in ctx.inputs]
        if not keep:
            ctx.results = ctx.inputs = None
        return (None, None, None, None, *tensor_grads)
