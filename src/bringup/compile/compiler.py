"""torch.compile on a chip: Inductor's CPU code computes, the graph's kernels are recorded.

Note [Retargeting]
Dynamo hands over a graph on ``chip``. Its devices are rewritten to ``cpu`` before AOTAutograd sees it, and stock
Inductor compiles it. What runs sees views of the chip's own memory, so nothing is copied but results. One autograd
function joins the two worlds; there is no double backward through it.

Note [Kernels]
What a compiler for the chip would launch is read off the graph that Inductor gets, after decompositions: products,
convolutions, attention and sorting are kernels of their own; so are reductions over other than the last dimensions,
with what is computed from their result element by element. What lies between them is fused, if it is connected: a
fused kernel reads and writes what crosses its border. This does not depend on the chip, so that a recording can be
priced on any; but for operators that the chip of the recording does not have: they end a fusion. Each kernel is one
launch, and its results are allocated and freed as a compiled program would.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import fx
from torch._dynamo.callback import on_compile_end
from torch._dynamo.eval_frame import skip_code
from torch.utils._python_dispatch import is_traceable_wrapper_subclass, transform_subclass

from bringup.cost import family_of
from bringup.device import load as _load
from bringup.device.torch_chip import real_device
from bringup.errors import BringupError
from bringup.recording import modules
from bringup.timeline import clock

FUSED = ("pointwise", "copy", "gather", "random")
_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep

graphs = 0  # compiled in this process

_transformed: Callable[[Any, Callable[[str, torch.Tensor], Any]], torch.Tensor] = transform_subclass


def _skip(module: ModuleType | None) -> None:
    """Keep Dynamo from compiling functions of ours that torch calls while it runs a compiled program."""
    found = [item.__code__ for item in vars(module).values() if isinstance(item, FunctionType)] if module else []
    while found:
        code = found.pop()
        skip_code(code)
        found += [item for item in code.co_consts if isinstance(item, CodeType)]


for _name_of_ours in ("timeline.clock", "device.torch_chip", "device.cuda"):
    _skip(sys.modules.get(f"bringup.{_name_of_ours}"))


on_compile_end(lambda _: clock.compiled())


def is_on_chip(inputs: Sequence[Any], graph: fx.GraphModule) -> bool:
    """Tell whether a graph of Dynamo computes on a chip."""
    values = [*inputs, *(node.meta.get("example_value") for node in graph.graph.nodes)]
    return any(isinstance(value, torch.Tensor) and real_device(value).type == "chip" for value in values)


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """Compile a graph of Dynamo on a chip. The arguments are those of ``torch._inductor.compile_fx.compile_fx``."""
    from functools import partial

    from torch._functorch import config as functorch_config
    from torch._inductor.compile_fx import compile_fx

    global graphs
    graphs += 1
    values = [*inputs, *(node.meta.get("example_value") for node in graph.graph.nodes)]
    index = next(
        (real_device(v).index or 0 for v in values if isinstance(v, torch.Tensor) and real_device(v).type == "chip"), 0
    )
    (returned,) = next(node for node in graph.graph.nodes if node.op == "output").args
    returned = returned if isinstance(returned, (list, tuple)) else [returned]
    stays = [_is_host(node) for node in returned]
    _retarget(graph)
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    fakes = [node.meta.get("example_value", x) for node, x in zip(placeholders, inputs, strict=True)]
    amp = torch.is_autocast_enabled("chip")
    # Inductor would let convolutions on CPUs change the layout of what is saved for the backward graph.
    options["config_patches"] = {**options.get("config_patches", {}), "layout_optimization": False}
    casts = torch.autocast("cpu", torch.get_autocast_dtype("chip")) if amp else nullcontext()
    with casts, functorch_config.patch(enable_autograd_cache=False):
        compiled: Any = compile_fx(graph, fakes, inner_compile=partial(_inner, index), **options)

    def run(arguments: list[Any]) -> Any:
        return compiled(*arguments)

    join: Any = _Joined.apply

    def call(*arguments: Any) -> Any:
        tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return join(run, stays, index, arguments, *tensors)
        _settle(index)
        return _finish(run([_lend(x) for x in arguments]), stays, index)

    return call


# ---- from the chip to the host and back


def _settle(index: int) -> None:
    """Wait for the chip. What is lent after that is read at once, also by torch's code around Inductor's."""
    if not torch.ops.bringup.is_dry():
        torch.ops.bringup.settle_stream(index)


def _lend(value: Any, requires_grad: bool = False) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    if is_traceable_wrapper_subclass(value):
        view = _transformed(value, lambda _, inner: _lend(inner))
    else:
        view = torch.ops.bringup.host_view(value) if real_device(value).type == "chip" else value
    return view.requires_grad_() if requires_grad else view


def _take(value: torch.Tensor, index: int) -> torch.Tensor:
    """Return the chip's tensor under a result of compiled code."""
    value = value.detach()
    if is_traceable_wrapper_subclass(value):
        return _transformed(value, lambda _, inner: _take(inner, index))
    if torch.ops.bringup.is_host_view(value):
        taken: torch.Tensor = torch.ops.bringup.chip_view(value)
        return taken
    return value.to(torch.device("chip", index))


def _finish(results: Any, stays: list[bool], index: int) -> list[Any]:
    return [
        (result.detach().clone() if stay else _take(result, index)) if isinstance(result, torch.Tensor) else result
        for result, stay in zip(results, stays, strict=True)
    ]


class _Joined(torch.autograd.Function):
    """Autograd of the chip's tensors around autograd of the host's views of them."""

    @staticmethod
    def forward(ctx: Any, run: Any, stays: list[bool], index: int, arguments: Any, *tensors: torch.Tensor) -> Any:
        needs = iter(ctx.needs_input_grad[4:])
        _settle(index)
        with torch.enable_grad():
            lent = [_lend(x, next(needs)) if isinstance(x, torch.Tensor) else x for x in arguments]
            ctx.inputs = [x for x in lent if isinstance(x, torch.Tensor)]
            ctx.results = list(run(list(lent)))
        finished = _finish(ctx.results, stays, index)
        plain = [
            made
            for made, result in zip(finished, ctx.results, strict=True)
            if isinstance(made, torch.Tensor) and not result.requires_grad
        ]
        ctx.mark_non_differentiable(*plain)
        ctx.set_materialize_grads(False)
        ctx.index = index
        return tuple(finished)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if ctx.results is None:
            raise RuntimeError(
                "a compiled graph was asked for its gradients a second time: the first call needs retain_graph=True"
            )
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        wanted = [(result, grad) for result, grad in zip(ctx.results, grads, strict=True) if grad is not None]
        inputs = [x for x in ctx.inputs if x.requires_grad]
        found: Any = [None] * len(inputs)
        if wanted and inputs:
            _settle(ctx.index)
            found = torch.autograd.grad(
                [result for result, _ in wanted],
                inputs,
                [_lend(grad) for _, grad in wanted],
                retain_graph=keep,
                allow_unused=True,
            )
        taken = iter([None if grad is None else _take(grad, ctx.index) for grad in found])
        every = [next(taken) if x.requires_grad else None for x in ctx.inputs]
        if not keep:
            ctx.results = ctx.inputs = None
        return (None, None, None, None, *every)


# ---- Dynamo's graph


def _is_host(node: Any) -> bool:
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return isinstance(value, torch.Tensor) and real_device(value).type == "cpu"


def _on_host(value: Any) -> Any:
    """Return a fake CPU tensor with the metadata of the chip's."""
    if not isinstance(value, torch.Tensor) or real_device(value).type != "chip":
        return value
    if is_traceable_wrapper_subclass(value):
        return _transformed(value, lambda _, inner: _on_host(inner)).requires_grad_(value.requires_grad)
    mode = getattr(value, "fake_mode", None)
    with mode if mode is not None else nullcontext(), torch.enable_grad():
        made = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="cpu")
        made.requires_grad_(value.requires_grad)
        if value.requires_grad and not value.is_leaf:
            made = made.clone()
    for name in ("_dynamo_static_input_type", "_dynamo_weak_dynamic_indices", "_dynamo_dynamic_indices"):
        if hasattr(value, name):
            setattr(made, name, getattr(value, name))
    return made


def _histc(data: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Count integers, too, as kernels of accelerators do and torch's for the CPU does not (see csrc/ops.cpp)."""
    return torch.histc(data if data.is_floating_point() else data.float(), *args, **kwargs).to(data.dtype)


def _retarget(graph: fx.GraphModule) -> None:
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
            if node.target in (torch.histc, "histc"):
                node.op, node.target = "call_function", _histc
            if node.op == "call_method" and node.target in ("cuda", "chip"):
                node.target, node.args, node.kwargs = "cpu", node.args[:1], {}
            if "example_value" in node.meta:
                node.meta["example_value"] = torch.utils._pytree.tree_map(_on_host, node.meta["example_value"])
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if real_device(tensor).type == "chip":
                delattr(module, name)
                module.register_buffer(name, _lend(tensor))
        module.recompile()


# ---- the graph that Inductor gets

Root = tuple[fx.Node, int]  # who made the memory: a node and which of its results


@dataclass
class Kernel:
    """A launch: one operator, or several fused."""

    nodes: list[fx.Node]
    fused: bool
    reads: list[Root] = field(default_factory=list)
    makes: list[Root] = field(default_factory=list)
    changes: list[Root] = field(default_factory=list)  # memory of the graph's inputs
    frees: list[Root] = field(default_factory=list)  # after it
    line: str = ""
    module: str = ""


@dataclass(frozen=True)
class Sized:
    """A kernel for one set of sizes: the recorder's signature, and what it allocates."""

    kernel: Kernel
    text: str
    made: list[tuple[list[int], list[int], torch.dtype]]


def _inner(index: int, graph: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
    from torch._inductor.compile_fx import compile_fx_inner

    original = fx.Graph()  # Inductor's passes change theirs
    original.output(original.graph_copy(graph.graph, {}))
    region = _Region(original, bool(options.get("is_backward", False)), index)
    compiled: Any = compile_fx_inner(graph, inputs, **options)
    if getattr(compiled, "current_callable", None) is None:
        raise BringupError(
            "torch.compile returned no callable for a graph on chip: leave cpp_wrapper and AOT modes out"
        )
    region.run = compiled.current_callable
    compiled.current_callable = region
    return compiled


class _Region:
    """A compiled graph in place of its code: allocates, records, and runs the code on views of the chip's memory."""

    run: Callable[[list[Any]], Any]

    def __init__(self, graph: fx.Graph, backward: bool, index: int) -> None:
        self.backward = backward
        self.device = torch.device("chip", index)
        self.values: dict[fx.Node, Any] = {node: node.meta.get("val") for node in graph.nodes}
        self.roots = _roots(graph)
        self.kernels = _kernels(graph, self.roots)
        self.inputs = [node for node in graph.nodes if node.op == "placeholder"]
        (outputs,) = next(node for node in graph.nodes if node.op == "output").args
        self.outputs: list[Any] = list(outputs)
        self.random = any(family_of(_name(node)) == "random" for node in _computing(graph))
        self.sized: dict[tuple[int, ...], list[Sized]] = {}

    def __call__(self, inputs: list[Any]) -> Any:
        ops = torch.ops.bringup
        sizes = self._bind(inputs)
        memory: dict[Root, torch.Tensor] = {
            (node, 0): ops.chip_view(value)
            for node, value in zip(self.inputs, inputs, strict=True)
            if isinstance(value, torch.Tensor) and ops.is_host_view(value)
        }
        for step in self._plan(sizes):
            kernel = step.kernel
            read = [memory[root] for root in kernel.reads if root in memory]
            made = [
                torch.empty_strided(size, stride, dtype=dtype, device=self.device) for size, stride, dtype in step.made
            ]
            memory |= zip(kernel.makes, made, strict=True)
            written = made + [memory[root] for root in kernel.changes if root in memory]
            if read or written:
                module = modules._numbered(kernel.module) if kernel.module else -1
                ops.record_compiled(step.text, read, written, kernel.line, module, self.backward)
            for root in kernel.frees:
                memory.pop(root, None)
        if ops.is_dry():
            given = dict(zip(self.inputs, inputs, strict=True))
            inputs.clear()
            return [self._promised(node, given, memory, sizes) for node in self.outputs]
        with self._generator() if self.random else nullcontext():
            results = self.run(inputs)
        free = {root: tensor for root, tensor in memory.items() if root[0].op != "placeholder"}
        homes: dict[int, torch.Tensor] = {}
        return [self._placed(result, node, free, homes) for result, node in zip(results, self.outputs, strict=True)]

    def _placed(self, result: Any, node: Any, free: dict[Root, torch.Tensor], homes: dict[int, torch.Tensor]) -> Any:
        """Move a result into the memory that was allocated for it; results that share memory, together.

        What is one tensor and its view in the graph may be two in Inductor's code, each in a layout of its own.
        """
        if not isinstance(result, torch.Tensor) or torch.ops.bringup.is_host_view(result):
            return result
        memory = result.untyped_storage()
        if memory.data_ptr() not in homes:
            home = free.pop(self.roots.get((node, 0), (node, 0)), None)
            if home is None or home.untyped_storage().nbytes() < memory.nbytes():
                home = torch.empty(memory.nbytes(), dtype=torch.uint8, device=self.device)
            whole = torch.empty(0, dtype=torch.uint8).set_(memory)
            self._in(home, torch.uint8, [memory.nbytes()], [1], 0).copy_(whole)
            homes[memory.data_ptr()] = home
        home = homes[memory.data_ptr()]
        return self._in(home, result.dtype, list(result.size()), list(result.stride()), result.storage_offset())

    def _in(self, home: torch.Tensor, dtype: torch.dtype, *shape: Any) -> torch.Tensor:
        """Return the host's view of a tensor in a piece of the chip's memory: sizes, strides, offset."""
        start: Any = torch.empty(0, dtype=dtype, device=self.device)
        whole: torch.Tensor = torch.ops.bringup.host_view(start.set_(home.untyped_storage(), 0, (0,)))
        return whole.as_strided(*shape)

    def _promised(self, node: Any, given: dict[fx.Node, Any], memory: dict[Root, torch.Tensor], sizes: Any) -> Any:
        """Return what a dry run has in place of a result."""
        if not isinstance(node, fx.Node):
            return node
        if node in given:
            return given[node]
        value = self.values[node]
        if not isinstance(value, torch.Tensor):
            return _resolve(value, sizes)
        home = memory[self.roots[node, 0]]
        size, stride = _resolve(list(value.size()), sizes), _resolve(list(value.stride()), sizes)
        return self._in(home, value.dtype, size, stride, _resolve(value.storage_offset(), sizes))

    @contextmanager
    def _generator(self) -> Iterator[None]:
        """Let the code draw from the chip's generator."""
        ops = torch.ops.bringup
        before = torch.get_rng_state()
        torch.set_rng_state(ops.rng_state(self.device.index))
        try:
            yield
        finally:
            ops.set_rng_state(self.device.index, torch.get_rng_state())
            torch.set_rng_state(before)

    def _bind(self, inputs: list[Any]) -> dict[Any, int]:
        """Give every symbol of the graph's sizes its value."""
        sizes: dict[Any, int] = {}
        for node, given in zip(self.inputs, inputs, strict=True):
            value = self.values[node]
            if isinstance(value, torch.SymInt):
                sizes[value.node.expr] = int(given)
            elif isinstance(value, torch.Tensor):
                found = zip((*value.size(), *value.stride()), (*given.size(), *given.stride()), strict=True)
                sizes |= {symbol.node.expr: real for symbol, real in found if isinstance(symbol, torch.SymInt)}
        return sizes

    def _plan(self, sizes: dict[Any, int]) -> list[Sized]:
        key = tuple(sizes.values())
        if key not in self.sized:
            self.sized[key] = [self._size(kernel, sizes) for kernel in self.kernels]
        return self.sized[key]

    def _size(self, kernel: Kernel, sizes: dict[Any, int]) -> Sized:
        number = {root: place for place, root in enumerate(kernel.reads)}
        inner = [self._signature(node, number, sizes) for node in kernel.nodes]
        data = inner[0]
        if kernel.fused:
            names = list(dict.fromkeys(item["op"].split("::")[-1].split(".")[0].lstrip("_") for item in inner))
            data = {
                "op": "fused::" + "_".join(names),
                "inputs": [self._border(root, kernel, inner, sizes) for root in kernel.reads],
                "outputs": [[*self._meta(*root, sizes), -1, 1] for root in (*kernel.makes, *kernel.changes)],
                "args": {},
                "inner": inner,
            }
        made = []
        for node, result in kernel.makes:
            value = _part(self.values[node], result)
            made.append((_resolve(list(value.size()), sizes), _resolve(list(value.stride()), sizes), value.dtype))
        return Sized(kernel, json.dumps(data), made)

    def _meta(self, node: fx.Node, result: int, sizes: dict[Any, int]) -> list[Any]:
        value = _part(self.values[node], result)
        dtype = str(value.dtype).removeprefix("torch.")
        return [dtype, _resolve(list(value.size()), sizes), _resolve(list(value.stride()), sizes)]

    def _border(self, root: Root, kernel: Kernel, inner: list[Any], sizes: dict[Any, int]) -> list[Any]:
        """Describe what a fused kernel reads of one tensor: its picked rows, if it is indexed; else what it views."""
        read: list[list[Any]] = []
        for node, data in zip(kernel.nodes, inner, strict=True):
            for place, source in enumerate(_tensors(node)):
                if self.roots.get(_root(source)) != root:
                    continue
                if place == 0 and family_of(data["op"]) == "gather" and data["outputs"]:
                    dtype, shape, strides, *_ = data["outputs"][0]
                    read.append([self._meta(*root, sizes)[0] or dtype, shape, strides])
                else:
                    read.append(data["inputs"][place][:3])
        largest = max(read, key=lambda item: _count(item))
        return [*largest, kernel.reads.index(root), 0]

    def _signature(self, node: fx.Node, number: dict[Root, int], sizes: dict[Any, int]) -> dict[str, Any]:
        """Describe an operator as the recorder does (csrc/recorder.cpp, text_of)."""
        target: Any = node.target
        inputs: list[Any] = []

        def described(value: Any) -> Any:
            if isinstance(value, fx.Node):
                known = self.values[value]
                if not isinstance(known, torch.Tensor):
                    return _resolve(known, sizes)
                root = self.roots[value, 0]
                inputs.append([*self._meta(value, 0, sizes), number.get(root, len(number) + len(inputs)), 0])
                return {"tensor": len(inputs) - 1}
            if isinstance(value, (list, tuple)):
                return [described(item) for item in value]
            if isinstance(value, (torch.SymInt, torch.SymFloat)):
                return _resolve(value, sizes)
            return value if isinstance(value, (bool, int, float, str)) else None

        names = [argument.name for argument in target._schema.arguments] if hasattr(target, "_schema") else []
        args = {name: described(value) for name, value in zip(names, node.args)}  # noqa: B905 (defaults are left out)
        args |= {name: described(value) for name, value in node.kwargs.items()}
        value = self.values[node]
        results = value if isinstance(value, (list, tuple)) else [value]
        outputs = [[*self._meta(node, i, sizes), -1, 1] for i, x in enumerate(results) if isinstance(x, torch.Tensor)]
        return {"op": _name(node), "inputs": inputs, "outputs": outputs, "args": args}


def _part(value: Any, result: int) -> Any:
    return value[result] if isinstance(value, (list, tuple)) else value


def _count(meta: list[Any]) -> int:
    count = 1
    for size, stride in zip(meta[1], meta[2], strict=True):
        count *= size if stride or not size else 1
    return count


def _resolve(value: Any, sizes: dict[Any, int]) -> Any:
    if isinstance(value, list):
        return [_resolve(item, sizes) for item in value]
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        expression = value.node.expr.xreplace(sizes)
        return float(expression) if isinstance(value, torch.SymFloat) else int(expression)
    return value


def _name(node: fx.Node) -> str:
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return f"hop::{getattr(target, '__name__', target)}"
    overload = target._schema.overload_name
    return target._schema.name + (f".{overload}" if overload else "")


def _root(node: fx.Node) -> Root:
    """Name the value of a node; elements of tuples have the tuple's node."""
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem" and node.args[1:]:
        source, place = node.args
        if isinstance(source, fx.Node) and isinstance(place, int):
            return source, place
    return node, 0


def _tensors(node: fx.Node) -> list[fx.Node]:
    """List a node's tensor arguments, in order and as often as they stand there."""
    found: list[fx.Node] = []

    def note(value: fx.Node) -> fx.Node:
        if isinstance(value.meta.get("val"), torch.Tensor):
            found.append(value)
        return value

    fx.node.map_arg((node.args, node.kwargs), note)
    return found


def _is_view(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    aliases = [a.alias_info for a in target._schema.arguments if a.alias_info is not None]
    return any(not alias.is_write for alias in aliases) or _name(node) == "aten::_unsafe_view"


def _computing(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the nodes that launch something."""
    for node in graph.nodes:
        if node.op != "call_function" or _root(node)[0] is not node or _is_view(node):
            continue
        value = node.meta.get("val")
        values = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(x, torch.Tensor) for x in values):
            yield node


def _roots(graph: fx.Graph) -> dict[Root, Root]:
    """Tell for every value whose memory it has. ``copy_`` into an input writes that one's."""
    roots: dict[Root, Root] = {}
    for node in graph.nodes:
        source, place = _root(node)
        if source is not node:
            roots[node, 0] = roots.get((source, place), (source, place))
        elif node.op == "call_function" and (_is_view(node) or _name(node) == "aten::copy_"):
            first = _tensors(node)[0]
            roots |= {(node, i): roots[first, 0] for i in range(_results(node))}
        else:
            roots |= {(node, i): (node, i) for i in range(_results(node))}
    return roots


def _is_fusible(node: fx.Node) -> bool:
    name = _name(node)
    if isinstance(node.target, torch._ops.OpOverload) and _load.chosen is not None:
        values = node.meta["val"]
        every = values if isinstance(values, (list, tuple)) else [values]
        first = next(x for x in every if isinstance(x, torch.Tensor))
        if not _load.chosen.supports(name, family_of(name), str(first.dtype).removeprefix("torch.")):
            return False
    family = family_of(name)
    if family == "reduction":
        return _over_rows(node)
    return family in FUSED and "scatter" not in name and "index_put" not in name and "backward" not in name


def _over_rows(node: fx.Node) -> bool:
    """Does a reduction keep all dimensions but the last ones, so that a kernel can go on with the row?"""
    tensors = _tensors(node)
    if not tensors or "cum" in _name(node):
        return False
    rank = tensors[0].meta["val"].dim()
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, (list, tuple)) or not dims or rank < 2:
        return False
    reduced = sorted(dim % rank for dim in dims if isinstance(dim, int))
    return reduced == list(range(rank - len(reduced), rank)) and len(reduced) < rank


def _kernels(graph: fx.Graph, roots: dict[Root, Root]) -> list[Kernel]:
    """Cut a graph into kernels: see Note [Kernels].

    The depth of a node counts the kernels of their own that lie before it. Connected nodes of one depth are fused: a
    way from one to another passes through nodes of that depth only, so no cycle comes about.
    """
    computing = list(_computing(graph))
    made_by = {(node, i): node for node in computing for i in range(_results(node))}
    fusible = {node: _is_fusible(node) for node in computing}
    depth: dict[fx.Node, int] = {}
    group: dict[fx.Node, fx.Node] = {}
    reductions: dict[tuple[int, Root, Any], fx.Node] = {}

    def joins(node: fx.Node, b: fx.Node) -> bool:
        """Can a node be computed where one that it reads is? What follows a reduction, if it has its result's size."""
        return fusible[node] and (fusible[b] or (_is_reduction(b) and _elements(node) == _elements(b)))

    def leader(node: fx.Node) -> fx.Node:
        while group[node] is not node:
            node = group[node]
        return node

    for node in computing:
        group[node] = node
        before = [made_by[roots[source, 0]] for source in _tensors(node) if roots[source, 0] in made_by]
        depth[node] = max((depth[b] + (not joins(node, b)) for b in before), default=0)
        for b in before:
            if joins(node, b) and depth[b] == depth[node]:
                group[leader(node)] = leader(b)
        if not fusible[node] and _is_reduction(node):  # two over the same rows read them once
            source = _tensors(node)[0]
            twin = reductions.setdefault((depth[node], roots[source, 0], _elements(node)), node)
            group[leader(node)] = leader(twin)
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in computing:
        members.setdefault(leader(node), []).append(node)
    kernels = [_kernel(nodes, roots) for nodes in members.values()]
    kernels.sort(key=lambda kernel: (depth[kernel.nodes[0]], kernel.fused))
    kernels = _without_constants(graph, kernels, fusible, roots)
    needed = _needed_later(graph, kernels, roots)
    for kernel in kernels:
        kernel.makes = [root for root in kernel.makes if root in needed or not kernel.fused]
        kernel.frees = [root for root in (*kernel.reads, *kernel.makes) if needed.get(root) is kernel]
    return kernels


def _is_reduction(node: fx.Node) -> bool:
    return family_of(_name(node)) == "reduction" and "cum" not in _name(node) and bool(_tensors(node))


def _elements(node: fx.Node) -> Any:
    """Return the number of elements of a node's (first) result."""
    return _part(node.meta["val"], 0).numel()


def _without_constants(
    graph: fx.Graph, kernels: list[Kernel], fusible: dict[fx.Node, bool], roots: dict[Root, Root]
) -> list[Kernel]:
    """Leave out what is made of nothing (fills, ranges) and read by fusible operators alone: each computes its own."""
    output = next(node for node in graph.nodes if node.op == "output")
    kept = {roots[node, 0] for node in output.all_input_nodes if (node, 0) in roots}
    for kernel in kernels:
        if not all(fusible[node] for node in kernel.nodes):
            kept |= set(kernel.reads)
    constant = [
        kernel
        for kernel in kernels
        if not kernel.reads
        and not kernel.changes
        and not kept & set(kernel.makes)
        and fusible[kernel.nodes[0]]
        and not any(family_of(_name(node)) == "random" for node in kernel.nodes)
    ]
    gone = {root for kernel in constant for root in kernel.makes}
    for kernel in kernels:
        kernel.reads = [root for root in kernel.reads if root not in gone]
    return [kernel for kernel in kernels if kernel not in constant]


def _results(node: fx.Node) -> int:
    value = node.meta.get("val")
    return len(value) if isinstance(value, (list, tuple)) else 1


def _kernel(nodes: list[fx.Node], roots: dict[Root, Root]) -> Kernel:
    own = {(node, i) for node in nodes for i in range(_results(node))}
    kernel = Kernel(nodes, len(nodes) > 1)
    for node in nodes:
        for source in _tensors(node):
            root = roots[source, 0]
            copied_over = _name(node) == "aten::copy_" and source is node.args[0]
            if root not in own and root not in kernel.reads and not copied_over:
                kernel.reads.append(root)
        if _name(node) == "aten::copy_":
            kernel.changes.append(roots[node, 0])
        else:
            kernel.makes += [
                (node, i) for i in range(_results(node)) if isinstance(_part(node.meta["val"], i), torch.Tensor)
            ]
        kernel.line = kernel.line or _line(node)
        kernel.module = kernel.module or _module(node)
    return kernel


def _needed_later(graph: fx.Graph, kernels: list[Kernel], roots: dict[Root, Root]) -> dict[Root, Kernel | None]:
    """Tell for memory that crosses kernels which uses it last; None for what the graph returns or was given."""
    last: dict[Root, Kernel | None] = {}
    for kernel in kernels:
        for root in kernel.reads:
            if root[0].op != "placeholder":
                last[root] = kernel
        if not kernel.fused:
            for root in kernel.makes:
                last.setdefault(root, kernel)
    output = next(node for node in graph.nodes if node.op == "output")
    for node in output.all_input_nodes:
        if (node, 0) in roots:
            last[roots[node, 0]] = None
    return last


_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ')


def _line(node: fx.Node) -> str:
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [(file, line) for file, line in frames if not file.startswith((_TORCH, _OURS)) and "<" not in file]
    if not own:
        return ""
    file, line = own[-1]
    here = os.getcwd() + os.sep
    return f"{file.removeprefix(here)}:{line}"


def _module(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}).values())
    if not stack:
        return ""
    path, kind = stack[-1]
    name = re.sub(r"\._modules\['([^']+)'\]|\[['\"]?([^'\"\]]+)['\"]?\]", lambda m: f".{m[1] or m[2]}", path)
    name = re.sub(r"^L\.self\.?|^L\.\w+\.?", "", name)
    return name or getattr(kind, "__name__", str(kind).split(".")[-1])


# ---- what the report says of it


def breaks_since(count: int) -> list[dict[str, str]]:
    """List Dynamo's graph breaks after the first `count`: where, and why."""
    from torch._dynamo.utils import graph_break_reasons

    found: dict[tuple[str, str], None] = {}
    for item in graph_break_reasons[count:]:
        own = [f for f in item.user_stack if not f.filename.startswith((_TORCH, _OURS))] or list(item.user_stack)
        line = f"{own[-1].filename.removeprefix(os.getcwd() + os.sep)}:{own[-1].lineno}" if own else ""
        found[line, " ".join(item.reason.split("\n")[0].split())] = None
    return [{"line": line, "reason": reason} for line, reason in found]
