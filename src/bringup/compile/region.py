"""The region that runs a compiled graph: it allocates results, records the kernels, and calls Inductor's code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from bringup.compile.fusion import Kernel, Root, computing_nodes, cut, name_of, part, root_of, roots_of, tensors_of
from bringup.compile.padding import pad_products
from bringup.cost import family_of
from bringup.errors import BringupError
from bringup.machine.vocabulary import PRODUCTS, TF32_DEFAULT
from bringup.process import process
from bringup.recording import modules


@dataclass(frozen=True)
class Sized:
    """A kernel for one set of sizes: its signature as the recorder's JSON, and its allocations.

    A product has the name of its operator, and a bias if one has an element per column.
    """

    kernel: Kernel
    text: str
    outputs: list[tuple[list[int], list[int], torch.dtype]]  # sizes and strides of `kernel.makes`
    product: str = ""
    has_bias: bool = False


def compile_region(index: int, replayed: bool, graph: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
    """Compile a graph by Inductor and wrap the code in a region. Inductor calls it for ``compile_fx_inner``.

    Args:
        index: the chip.
        replayed: True if the mode of torch.compile replays the kernels from a recorded graph.
        graph: Inductor's input.
        inputs: its example inputs.
        options: those of ``compile_fx_inner``.
    """
    from torch._inductor.compile_fx import compile_fx_inner

    if not any("call" in node.op for node in graph.graph.nodes):  # it only returns inputs
        return compile_fx_inner(graph, inputs, **options)
    original = fx.Graph()  # a copy, because Inductor's passes change the graph
    original.output(original.graph_copy(graph.graph, {}))
    if process.chip is not None and process.chip.kind == "gpu":
        pad_products(original, process.chip)
    backward, inference = (bool(options.get(name, False)) for name in ("is_backward", "is_inference"))
    region = Region(original, backward, not (backward or inference), index, replayed)
    compiled: Any = compile_fx_inner(graph, inputs, **options)
    if getattr(compiled, "current_callable", None) is None:
        raise BringupError(
            "torch.compile returned no callable for a graph on the chip: do not use cpp_wrapper or AOT modes"
        )
    region.run = compiled.current_callable
    compiled.current_callable = region
    return compiled


def draws(node: fx.Node) -> bool:
    """Return True if a node draws random numbers."""
    seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return seeded or family_of(name_of(node)) == "random"


class Region:
    """A compiled graph. A call allocates the results, records the kernels, and runs the code on the chip's memory."""

    run: Callable[[list[Any]], Any]

    def __init__(self, graph: fx.Graph, backward: bool, trains: bool, index: int, replayed: bool) -> None:
        self.backward = backward
        self.trains = trains  # True if the graph is a forward graph with a backward graph
        self.replayed = replayed
        self.device = torch.device("chip", index)
        self.values: dict[fx.Node, Any] = {node: node.meta.get("val") for node in graph.nodes}
        self.roots = roots_of(graph)
        self.kernels = cut(graph, self.roots)
        self.inputs = [node for node in graph.nodes if node.op == "placeholder"]
        (outputs,) = next(node for node in graph.nodes if node.op == "output").args
        self.outputs: list[Any] = list(outputs)
        self.random = any(draws(node) for node in computing_nodes(graph))
        self.sized: dict[tuple[Any, ...], list[Sized]] = {}
        self.tf32: tuple[str, ...] = TF32_DEFAULT  # torch's switches at the call
        self.cudnn = _attends_by_cudnn()  # the choice of a graph's attention is made when it is compiled

    def __call__(self, inputs: list[Any]) -> Any:
        """Record the kernels and run the code. Like Inductor's code, it may empty `inputs`."""
        ops = torch.ops.bringup
        sizes = self._bind(inputs)
        memory: dict[Root, torch.Tensor] = {
            (node, 0): ops.chip_view(value)
            for node, value in zip(self.inputs, inputs, strict=True)
            if isinstance(value, torch.Tensor) and ops.is_host_view(value)
        }
        replay = ops.next_replay() if self.replayed else 0
        graph_node = ops.latest_node() if self.trains else 0
        for step in self._plan(sizes):
            kernel = step.kernel
            if step.product:
                ops.keep_workspaces(step.product, step.has_bias, self.device.index)
            read = [memory[root] for root in kernel.reads if root in memory]
            new = [
                torch.empty_strided(size, stride, dtype=dtype, device=self.device)
                for size, stride, dtype in step.outputs
            ]
            memory |= zip(kernel.makes, new, strict=True)
            written = new + [memory[root] for root in kernel.changes if root in memory]
            if read or written:
                module = modules.number(kernel.module) if kernel.module else -1
                ops.record_compiled(step.text, read, written, kernel.line, module, self.backward, graph_node, replay)
            for root in kernel.frees:
                memory.pop(root, None)
        if ops.is_dry():
            values = dict(zip(self.inputs, inputs, strict=True))
            inputs.clear()
            return [self._promised(node, values, memory, sizes) for node in self.outputs]
        with self._generator() if self.random else nullcontext():
            results = self.run(inputs)
        ops.skip_host_time()  # it was the chip's work
        free = {root: tensor for root, tensor in memory.items() if root[0].op != "placeholder"}
        homes: dict[int, torch.Tensor] = {}
        return [self._placed(result, node, free, homes) for result, node in zip(results, self.outputs, strict=True)]

    def _placed(self, result: Any, node: Any, free: dict[Root, torch.Tensor], homes: dict[int, torch.Tensor]) -> Any:
        """Copy a result into the memory allocated for it; results that share memory are copied together.

        In Inductor's code, a tensor of the graph and its view may be separate tensors with different layouts.
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
        """Return a host view of a piece of the chip's memory. ``shape`` is the sizes, the strides and the offset."""
        start: Any = torch.empty(0, dtype=dtype, device=self.device)
        whole: torch.Tensor = torch.ops.bringup.host_view(start.set_(home.untyped_storage(), 0, (0,)))
        return whole.as_strided(*shape)

    def _promised(self, node: Any, inputs: dict[fx.Node, Any], memory: dict[Root, torch.Tensor], sizes: Any) -> Any:
        """Return a result of a dry run: an input, or memory of the right size."""
        if not isinstance(node, fx.Node):
            return node
        if node in inputs:
            return inputs[node]
        value = self.values[node]
        if not isinstance(value, torch.Tensor):
            return _resolve(value, sizes)
        home = memory[self.roots[node, 0]]
        size, stride = _resolve(list(value.size()), sizes), _resolve(list(value.stride()), sizes)
        return self._in(home, value.dtype, size, stride, _resolve(value.storage_offset(), sizes))

    @contextmanager
    def _generator(self) -> Iterator[None]:
        """Set torch's CPU generator to the state of the chip's inside the block, and advance the chip's generator."""
        ops = torch.ops.bringup
        before = torch.get_rng_state()
        torch.set_rng_state(ops.rng_state(self.device.index))
        try:
            yield
        finally:
            ops.set_rng_state(self.device.index, torch.get_rng_state())
            torch.set_rng_state(before)

    def _bind(self, inputs: list[Any]) -> dict[Any, int]:
        """Return the value of every symbolic size of the graph for these inputs."""
        sizes: dict[Any, int] = {}
        for node, argument in zip(self.inputs, inputs, strict=True):
            value = self.values[node]
            if isinstance(value, torch.SymInt):
                sizes[value.node.expr] = int(argument)
            elif isinstance(value, torch.Tensor):
                numbers = zip((*value.size(), *value.stride()), (*argument.size(), *argument.stride()), strict=True)
                sizes |= {symbol.node.expr: number for symbol, number in numbers if isinstance(symbol, torch.SymInt)}
        return sizes

    def _plan(self, sizes: dict[Any, int]) -> list[Sized]:
        self.tf32 = tuple(torch.ops.bringup.tf32_switches())
        key = (*sizes.values(), *self.tf32)
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
        outputs = []
        for node, result in kernel.makes:
            value = part(self.values[node], result)
            outputs.append((_resolve(list(value.size()), sizes), _resolve(list(value.stride()), sizes), value.dtype))
        product = "" if kernel.fused or family_of(data["op"]) != "matmul" else data["op"]
        has_bias = product == "aten::addmm" and len(data["inputs"][0][1]) == 1
        return Sized(kernel, json.dumps(data), outputs, product, has_bias)

    def _meta(self, node: fx.Node, result: int, sizes: dict[Any, int]) -> list[Any]:
        value = part(self.values[node], result)
        dtype = str(value.dtype).removeprefix("torch.")
        return [dtype, _resolve(list(value.size()), sizes), _resolve(list(value.stride()), sizes)]

    def _border(self, root: Root, kernel: Kernel, inner: list[Any], sizes: dict[Any, int]) -> list[Any]:
        """Return the signature of a fused kernel's input: the indexed rows of a gather, else the largest view."""
        read: list[list[Any]] = []
        for node, data in zip(kernel.nodes, inner, strict=True):
            for place, source in enumerate(tensors_of(node)):
                if self.roots.get(root_of(source)) != root:
                    continue
                if place == 0 and family_of(data["op"]) == "gather" and data["outputs"]:
                    dtype, shape, strides, *_ = data["outputs"][0]
                    read.append([self._meta(*root, sizes)[0] or dtype, shape, strides])
                else:
                    read.append(data["inputs"][place][:3])
        largest = max(read, key=lambda item: _count(item))
        return [*largest, kernel.reads.index(root), 0]

    def _signature(self, node: fx.Node, number: dict[Root, int], sizes: dict[Any, int]) -> dict[str, Any]:
        """Return an operator's signature in the recorder's form (csrc/record/recorder.cpp, text_of)."""
        target: Any = node.target
        inputs: list[Any] = []

        def described(value: Any) -> Any:
            if isinstance(value, fx.Node):
                argument = self.values[value]
                if not isinstance(argument, torch.Tensor):
                    return _resolve(argument, sizes)
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
        op = name_of(node)
        data: dict[str, Any] = {"op": op, "inputs": inputs, "outputs": outputs, "args": args}
        if self.tf32 != TF32_DEFAULT and family_of(op) in PRODUCTS:
            data["tf32"] = list(self.tf32)
        if not self.cudnn and family_of(op) == "attention":
            data["cudnn"] = False
        return data


def _attends_by_cudnn() -> bool:
    """Return True if attention may be cuDNN's, as torch's switches say (csrc/launch/signature.cpp)."""
    enabled: bool = torch._C._get_cudnn_sdp_enabled()
    return enabled and os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED") != "1"


def _count(meta: list[Any]) -> int:
    """Return the number of distinct elements; a dimension of stride 0 counts as one element."""
    count = 1
    for size, stride in zip(meta[1], meta[2], strict=True):
        count *= size if stride or not size else 1
    return count


def _resolve(value: Any, sizes: dict[Any, int]) -> Any:
    """Replace symbolic sizes by their values."""
    if isinstance(value, list):
        return [_resolve(item, sizes) for item in value]
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        expression = value.node.expr.xreplace(sizes)
        return float(expression) if isinstance(value, torch.SymFloat) else int(expression)
    return value
