"""Compiled graphs that exchange tensors with other ranks: regions between collectives.

Inductor compiles for the host, whose views of the chip's memory no process group takes. So AOTAutograd divides these
graphs into a forward and a backward one, with what checkpoints compute again. Each is cut at its collectives, and at
operators that draw random numbers or attend. The pieces between are compiled as other graphs are (see hook.py); the
rest is launched as it is.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import TracingContext, tracing
from torch._inductor import config as inductor_config
from torch._inductor.decomposition import select_decomp_table
from torch._prims.rng_prims import get_device, run_and_save_rng_state, run_with_rng_state
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.fx.passes.split_module import split_module
from torch.utils._pytree import tree_leaves

from bringup.compile.fusion import computing_nodes, name_of
from bringup.compile.lines import line_of
from bringup.compile.region import Region, compile_region, draws
from bringup.compile.retarget import finish, lend, on_host, retarget, settle
from bringup.cost import family_of
from bringup.device.torch_chip import real_device
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


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Any], patches: dict[str, Any]) -> Callable[..., Any]:
    """Return a function that runs a graph on the chip; `patches` are those of Inductor's configuration."""
    compiler = partial(_compiled, patches)
    table = {op: rule for op, rule in select_decomp_table().items() if not _is_seeded(op)}
    divided = aot_autograd(
        decompositions=table,
        fw_compiler=partial(compiler, False, True),
        bw_compiler=partial(compiler, True, False),
        inference_compiler=partial(compiler, False, False),
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


def _compiled(
    patches: dict[str, Any], backward: bool, trains: bool, graph: fx.GraphModule, _: Sequence[Any]
) -> Callable[[list[Any]], Any]:
    """Return a function that runs one of AOTAutograd's graphs; its list of arguments is emptied."""
    if any(isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat)) for node in graph.graph.nodes):
        _say_once()
    else:
        graph = cut_at_collectives(graph)
    pieces = {
        name: Piece(piece, backward, trains, patches)
        for name, piece in graph.named_children()
        if isinstance(piece, fx.GraphModule) and _is_worth_compiling(piece.graph)
    }

    def run(arguments: list[Any]) -> Any:
        return _Launches(graph, pieces).boxed_run(arguments)  # which empties the list, so that tensors are freed early

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def _is_seeded(op: Any) -> bool:
    """Return True if an operator draws random numbers; inside of a region, they would not be those of the program."""
    return torch.Tag.nondeterministic_seeded in getattr(op, "tags", ())


def cut_at_collectives(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a graph of calls of its pieces: all nodes between two that are launched, and those between them."""
    place, inside = 0, False
    places: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        place += (can := _can_be_compiled(node)) != inside
        inside = can
        places[node.name] = place
    if not places:
        return graph
    return split_module(graph, graph, lambda node: places.get(node.name, 0), keep_original_order=True)


def _can_be_compiled(node: fx.Node) -> bool:
    """Return True if a region may have an operator: no collective, no random numbers, no attention."""
    if node.target is operator.getitem:  # of a node before, with which it stays
        source = node.args[0]
        return isinstance(source, fx.Node) and _can_be_compiled(source)
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace not in ("aten", "prims"):
        return False
    values = [value for each in (node, *node.all_input_nodes) for value in tree_leaves(each.meta.get("val"))]
    on_chip = all(real_device(x).type == "chip" or not x.dim() for x in values if isinstance(x, torch.Tensor))
    return on_chip and family_of(name_of(node)) not in ("random", "attention") and not draws(node)


def _is_worth_compiling(graph: fx.Graph) -> bool:
    """Return True if a piece can be compiled and has operators that may be fused."""
    called = [node for node in graph.nodes if node.op == "call_function"]
    return all(map(_can_be_compiled, called)) and len(list(computing_nodes(graph))) > 1


class Piece:
    """A piece of a graph between two collectives, compiled by Inductor for the host's views of the chip's memory."""

    def __init__(self, graph: fx.GraphModule, backward: bool, trains: bool, patches: dict[str, Any]) -> None:
        output = graph.graph.output_node()
        returned: Any = output.args[0]
        self.single = not isinstance(returned, (list, tuple))
        results = (returned,) if self.single else tuple(returned)
        output.args = (results,)
        # The other pieces expect the layouts of AOTAutograd's graph.
        output.meta["user_visible_output_idxs"] = list(range(len(results)))
        values = [value for node in graph.graph.nodes for value in tree_leaves(node.meta.get("val"))]
        devices = [real_device(value) for value in values if isinstance(value, torch.Tensor)]
        self.index = next((device.index or 0 for device in devices if device.type == "chip"), 0)
        self.stays = [is_on_host(node) for node in results]
        retarget(graph)
        inputs = [on_host(node.meta.get("val")) for node in graph.graph.nodes if node.op == "placeholder"]
        mode = next(value.fake_mode for value in values if isinstance(value, FakeTensor))
        FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*inputs)
        with tracing(TracingContext(mode)), inductor_config.patch(patches):
            self.code: Any = compile_region(self.index, False, graph, inputs, is_inference=True)
        region = getattr(self.code, "current_callable", None)
        if isinstance(region, Region):
            region.backward, region.trains = backward, trains

    def __call__(self, *arguments: Any) -> Any:
        """Return the results on the chip; arguments on the chip are lent to the code as the host's views."""
        settle(self.index)
        with torch.no_grad():
            results = finish(self.code([lend(x) for x in arguments]), self.stays, self.index)
        return results[0] if self.single else tuple(results)


def is_on_host(node: Any) -> bool:
    """Return True if a node of AOTAutograd's graph is a tensor on the host."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, torch.Tensor) and real_device(value).type == "cpu"


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
    """Calls the operators and the compiled pieces of a graph, each operator from its line of the program."""

    def __init__(self, graph: fx.GraphModule, pieces: dict[str, Piece]) -> None:
        super().__init__(graph)
        self._pieces = pieces

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        piece = self._pieces.get(target)
        return piece(*args) if piece else _Launches(getattr(self.module, target), {}).run(*args)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        target = _RANDOM.get(target, target)
        file, line = _place(self._node)
        if not file:
            return super().call_function(target, args, kwargs)
        return at_line("compiled", file, line)(super().call_function, (target, args, kwargs))

    def run_node(self, n: fx.Node) -> Any:
        self._node = n
        return super().run_node(n)


def _place(node: fx.Node) -> tuple[str, int]:
    """Return the line of the program for a node, which the node then keeps."""
    if "bringup_line" not in node.meta:
        node.meta["bringup_line"] = split_line(line_of(node))
    place: tuple[str, int] = node.meta["bringup_line"]
    return place


@lru_cache
def _say_once() -> None:
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return  # rank 0 says it for all
    print(
        "bringup: a compiled graph has collectives and symbolic sizes: its operators are launched one by one, without "
        "fusion",
        file=sys.stderr,
    )
