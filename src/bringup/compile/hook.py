"""The compiler that torch.compile calls for a graph on the chip.

Dynamo's graph is rewritten to ``cpu`` (see retarget.py) and compiled by stock Inductor, whose code computes the
results. Inductor's input graph is also cut into kernels (see fusion.py). At run time a region records these kernels and
then calls Inductor's code (see region.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import fx
from torch._dynamo.callback import on_compile_end
from torch._dynamo.eval_frame import skip_code

from bringup.compile import collectives, lines
from bringup.compile.races import look_for_races
from bringup.compile.region import compile_region
from bringup.compile.retarget import Joined, finish, is_host, lend, retarget, settle
from bringup.device.torch_chip import real_device
from bringup.timeline import clock


def _skip(module: ModuleType | None) -> None:
    """Exclude a module's functions from compilation by Dynamo. torch calls them while it runs a compiled program."""
    codes = [item.__code__ for item in vars(module).values() if isinstance(item, FunctionType)] if module else []
    while codes:
        code = codes.pop()
        skip_code(code)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


_PARTS = ("devices", "streams", "memory", "random", "torch_chip", "cuda")  # cuda is only imported under --cuda
for _name in ("compile", "timeline.clock", *(f"device.{part}" for part in _PARTS)):
    _skip(sys.modules.get(f"bringup.{_name}"))


on_compile_end(lambda _: clock.compiled())


def is_on_chip(inputs: Sequence[Any], graph: fx.GraphModule) -> bool:
    """Return True if Dynamo's graph has a tensor on a chip."""
    return any(real_device(tensor).type == "chip" for tensor in _tensors(inputs, graph))


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """Compile Dynamo's graph for a chip, with the arguments of ``torch._inductor.compile_fx.compile_fx``."""
    from torch._functorch import config as functorch_config
    from torch._inductor.compile_fx import compile_fx

    lines.count_graph()
    devices = (real_device(tensor) for tensor in _tensors(inputs, graph))
    index = next((device.index or 0 for device in devices if device.type == "chip"), 0)
    (returned,) = next(node for node in graph.graph.nodes if node.op == "output").args
    returned = returned if isinstance(returned, (list, tuple)) else [returned]
    # Otherwise Inductor's CPU convolutions change the layout of tensors that are saved for the backward graph.
    patches = {**options.get("config_patches", {}), "layout_optimization": False}
    if collectives.are_in(graph, inputs):
        return collectives.compile_graph(graph, inputs, patches)
    stays = [is_host(node) for node in returned]
    look_for_races(graph, inputs)
    retarget(graph)
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    fakes = [node.meta.get("example_value", x) for node, x in zip(placeholders, inputs, strict=True)]
    amp = torch.is_autocast_enabled("chip")
    options["config_patches"] = patches
    replayed = bool(patches.get("triton.cudagraphs", False))  # of the modes reduce-overhead and max-autotune
    casts = torch.autocast("cpu", torch.get_autocast_dtype("chip")) if amp else nullcontext()
    with casts, functorch_config.patch(enable_autograd_cache=False):
        compiled: Any = compile_fx(graph, fakes, inner_compile=partial(compile_region, index, replayed), **options)

    def run(arguments: list[Any]) -> Any:
        return compiled(*arguments)

    join: Any = Joined.apply

    def call(*arguments: Any) -> Any:
        tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return join(run, stays, index, arguments, *tensors)
        settle(index)
        return finish(run([lend(x) for x in arguments]), stays, index)

    return call


def _tensors(inputs: Sequence[Any], graph: fx.GraphModule) -> list[torch.Tensor]:
    """Return a graph's example inputs and the example values of its nodes."""
    values = [*inputs, *(node.meta.get("example_value") for node in graph.graph.nodes)]
    return [value for value in values if isinstance(value, torch.Tensor)]
