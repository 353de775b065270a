"""Compiled graphs that exchange tensors with other ranks: their operators are launched one by one.

Inductor compiles for the host, whose views of the chip's memory no process group takes. So AOTAutograd alone divides
these graphs into a forward and a backward one, with what checkpoints compute again. Both run as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._prims.rng_prims import get_device, run_and_save_rng_state, run_with_rng_state

from bringup.compile.lines import line_of
from bringup.lines import at_line
from bringup.text import split_line

_NAMESPACES = ("_c10d_functional", "c10d_functional", "_c10d_functional_autograd")


def are_in(graph: fx.GraphModule, inputs: Sequence[Any]) -> bool:
    """Return True if Dynamo's graph has collectives, or DTensors, whose operators may have some."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    nodes = [node for module in graph.modules() if isinstance(module, fx.GraphModule) for node in module.graph.nodes]
    values = [*inputs, *(node.meta.get("example_value") for node in nodes)]
    return any(isinstance(value, DTensor) for value in values) or any(
        str(node.target).partition(".")[0] in _NAMESPACES for node in nodes
    )


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """Return a function that launches a graph's operators on the chip."""
    _say_once()
    divided = aot_autograd(
        fw_compiler=_launched,
        bw_compiler=_launched,
        partition_fn=_divided,
        keep_inference_input_mutations=True,
    )
    compiled: Callable[..., Any] = divided(graph, inputs)
    return compiled


def _divided(joint: fx.GraphModule, *arguments: Any, **options: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Divide a joint graph, and put what is no tensor behind all saved tensors, where AOTAutograd looks for it.

    torch's own inserts states of random numbers behind meshes of devices.
    """
    forward, backward = min_cut_rematerialization_partition(joint, *arguments, **options)
    output = forward.graph.output_node()
    results = list(output.args[0])  # type: ignore[arg-type]
    number = options["num_fwd_outputs"]
    saved = sorted(results[number:], key=_kind)
    if saved != results[number:]:
        output.args = (tuple(results[:number] + saved),)
        states = backward.graph.find_nodes(op="placeholder")[: len(saved)]  # behind them are gradients
        last = [node for node in states if _kind(node) != 1][-1]
        for node in [node for node in states if _kind(node) == 1][::-1]:
            last.append(node)
        for graph in (forward, backward):
            graph.recompile()
    return forward, backward


def _kind(node: fx.Node) -> int:
    """Return 0 for a tensor, 1 for an object, and 2 for a size, in the order that AOTAutograd expects."""
    value = node.meta.get("val")
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return 2
    return 0 if value is None or isinstance(value, torch.Tensor) else 1


def _launched(graph: fx.GraphModule, _: Sequence[Any]) -> Callable[[list[Any]], Any]:
    places = {node: split_line(line_of(node)) for node in graph.graph.nodes}
    lines = {node: place for node, place in places.items() if place[0]}

    def run(arguments: list[Any]) -> Any:
        return _Launches(graph, lines).boxed_run(arguments)  # which empties the list, so that tensors are freed early

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def _and_random_state(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Call an operator that draws random numbers; return its generator's state before that, and the result."""
    return _generator(args, kwargs).get_rng_state(), op(*args, **kwargs)


def _with_random_state(state: torch.Tensor, op: Any, *args: Any, **kwargs: Any) -> Any:
    """Call an operator with a state of its generator, for a checkpoint that computes it again."""
    generator = _generator(args, kwargs)
    now = generator.get_rng_state()
    generator.set_rng_state(state)
    try:
        return op(*args, **kwargs)
    finally:
        generator.set_rng_state(now)


def _generator(args: Any, kwargs: Any) -> Any:
    """Return the module that has the state of the generator from which an operator draws: the chip's, or the host's."""
    device = get_device(args, kwargs)  # type: ignore[no-untyped-call]
    return torch if device == "cpu" else torch.chip  # type: ignore[attr-defined]


# torch's own know no chip.
_RANDOM: dict[Any, Any] = {run_and_save_rng_state: _and_random_state, run_with_rng_state: _with_random_state}


class _Launches(fx.Interpreter):
    """Calls the operators of a graph, each from its line of the program."""

    def __init__(self, graph: fx.GraphModule, lines: dict[fx.Node, tuple[str, int]]) -> None:
        super().__init__(graph)
        self._lines = lines

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        target = _RANDOM.get(target, target)
        if self._node not in self._lines:
            return super().call_function(target, args, kwargs)
        return at_line("compiled", *self._lines[self._node])(super().call_function, (target, args, kwargs))

    def run_node(self, n: fx.Node) -> Any:
        self._node = n
        return super().run_node(n)


@lru_cache
def _say_once() -> None:
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return  # rank 0 says it for all
    print(
        "bringup: a compiled graph has DTensors or collectives: its operators are launched one by one, without fusion",
        file=sys.stderr,
    )
