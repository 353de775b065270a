"""An ONNX model as a module on the chip: `load_onnx`."""

from __future__ import annotations

import builtins
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bringup.device.choose import choose_from_environment
from bringup.device.load import register
from bringup.errors import BringupError
from bringup.frontends.onnx import (  # noqa: F401  (their operators register themselves)
    attention,
    control,
    images,
    normalization,
    pointwise,
    products,
    recurrent,
    reductions,
    shapes,
    signals,
    windows,
)
from bringup.frontends.onnx.graph import Graph, Node, OnnxError, read_model
from bringup.frontends.onnx.operators import OPERATORS, Call, Constant, Operator
from bringup.frontends.onnx.tensors import as_tensor
from bringup.limits import ONNX
from bringup.text import plain, quantity, short

Values = dict[str, Any]
MEASURES = ("Shape", "Size")
SHAPES = (*MEASURES, "SequenceLength")  # their results are on the host without a look at the chip's memory
_PYTHON = compile("call = lambda function, arguments: function(*arguments)", "onnx", "exec").co_consts[0]
FEW = 1 << 16  # elements of constants of which a node may be computed although its result's shape is not known before
DEEPEST = 64  # modules that a weight's name spells; chosen: models of transformers have ten
MOST_NAMED = 8  # operators without a translation that a message names


@dataclass(frozen=True)
class Step:
    """A node, ready to run.

    Attributes:
        call: calls a function from the node's own line, which is what a recording names.
        on_host: True if the host computes it, because shapes depend on it.
        read_on_host: positions of inputs that the host reads.
        constants: those of them that are constants.
        frees: values that no later node reads.
        while_compiling: computes a node of the host from what it reads; torch.compile takes the results for constants.
    """

    node: Node
    operator: Operator
    call: Callable[..., Any]
    on_host: bool
    read_on_host: frozenset[int]
    constants: dict[int, Constant]
    frees: tuple[str, ...]
    prepared: dict[str, Any]
    while_compiling: Callable[..., Any]


def load_onnx(path: str | os.PathLike[str], device: str | torch.device = "chip") -> OnnxModel:
    """Return an ONNX model as a `torch.nn.Module` whose weights are on the chip.

    Its inputs are tensors in the order of the model's inputs, or by name. It returns the model's output, or a tuple if
    there are several. Reading a model executes nothing.

    Args:
        path: a model file; external data lies beside it.
        device: where to put the weights.

    Raises:
        OnnxError: the file is malformed, or has operators without a translation.
    """
    graph = read_model(path)
    check_operators(graph, os.fspath(path))
    if str(device).partition(":")[0] == "chip":  # before it is registered, torch.device refuses the name
        register()
        if not torch.ops.bringup.is_configured():
            choose_from_environment()
    return OnnxModel(graph, os.path.basename(os.fspath(path))).to(device)


def check_operators(graph: Graph, file: str) -> None:
    """Raise OnnxError if nodes have no translation; the message names all their operators."""
    without = [node for node in graph.walk() if node.op not in OPERATORS]
    if not without:
        return
    first = {node.op: node for node in reversed(without)}
    counts = Counter(node.op for node in without).most_common()
    named = [f"{short(op)} ({quantity(count, 'node')}, {short(first[op].label)})" for op, count in counts[:MOST_NAMED]]
    rest = f", and {len(counts) - MOST_NAMED} more" if len(counts) > MOST_NAMED else ""
    raise OnnxError(
        f"{plain(file)}: {quantity(len(counts), 'operator')} without a translation: {', '.join(named)}{rest}"
    )


class OnnxModel(torch.nn.Module):
    """The nodes of an ONNX model, each called from a line of its own: ``model.onnx:/layer1/conv/Conv:12``.

    Attributes:
        graph: the model as it was read.
        inputs: its inputs.
        outputs: the names of its outputs.
    """

    _place: torch.Tensor  # on the model's device, even if it has no weights
    _owners: dict[str, tuple[torch.nn.Module, str]]

    def __init__(self, graph: Graph, name: str) -> None:
        super().__init__()
        self.graph = graph
        self.file = name
        self.inputs = graph.inputs
        self.outputs = graph.outputs
        self._owners = {}
        self.host: Values = {}  # constants whose values decide shapes
        self.register_buffer("_place", torch.empty(0), persistent=False)
        constants = {name: as_tensor(array) for name, array in graph.weights.items()}
        _Planner(self, constants).plan()
        graph.weights.clear()  # the module has them

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return f"{self.file}: {quantity(len(self.graph.steps), 'node')}"

    def keep(self, name: str, value: torch.Tensor, trainable: bool) -> None:
        """Hold a weight as a parameter, another constant as a buffer, in modules that its name spells.

        ``layer1.0.conv.weight`` is the parameter ``weight`` of the module ``layer1.0.conv``. What lies deeper than
        `DEEPEST` modules stays in one name, because torch walks through modules by recursion.
        """
        parts = [part or "_" for part in plain(name).replace("/", ".").strip(".").split(".")]
        parts[DEEPEST:] = ["_".join(parts[DEEPEST:])] * (len(parts) > DEEPEST)
        owner: torch.nn.Module = self
        for part in parts[:-1]:
            if part not in owner._modules:
                if hasattr(owner, part):
                    break
                owner.add_module(part, torch.nn.Module())
            owner = owner.get_submodule(part)
        last, number = parts[-1], 1
        while hasattr(owner, last):
            number += 1
            last = f"{parts[-1]}_{number}"
        if trainable:
            owner.register_parameter(last, torch.nn.Parameter(value, requires_grad=False))
        else:
            owner.register_buffer(last, value)
        self._owners[name] = owner, last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; inputs on the host are copied to the chip."""
        device = self._place.device
        self._turns = 0  # of loops
        values: Values = {}
        for name, value in self._bind(args, kwargs).items():
            on_host = isinstance(value, (np.ndarray, np.generic))  # as a tuple, which Dynamo reads
            tensor = as_tensor(np.asarray(value)) if on_host else value
            values[name] = _moved(tensor, device)
        results = self._run(self.graph, values, device)
        results = [_moved(value, device) for value in results]
        return results[0] if len(results) == 1 else tuple(results)

    def _bind(self, args: tuple[Any, ...], kwargs: Values) -> Values:
        names = [item.name for item in self.inputs]
        if len(args) > len(names):
            raise OnnxError(f"{self.file}: has {quantity(len(names), 'input')}, got {len(args)}")
        values = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name not in names or name in values:
                problem = "twice" if name in values else f"which it has not; it has {', '.join(map(short, names))}"
                raise OnnxError(f"{self.file}: got input {short(name)} {problem}")
            values[name] = value
        if missing := [short(name) for name in names if name not in values]:
            raise OnnxError(f"{self.file}: needs the input{'s' * (len(missing) > 1)} {', '.join(missing)}")
        return values

    def _constant(self, name: str, on_host: bool) -> Any:
        if on_host and name in self.host:
            return self.host[name]
        if name in self._owners:
            owner, attribute = self._owners[name]
            return getattr(owner, attribute)
        return self.host[name]

    def _run(self, graph: Graph, values: Values, device: torch.device) -> list[Any]:
        """Run the nodes of a graph; `values` holds its inputs and what it takes from around it."""
        for step in graph.steps:
            self._execute(step, values, device)
            for name in step.frees:
                values.pop(name, None)
        return [values[name] if name in values else self._constant(name, False) for name in graph.outputs]

    def _execute(self, step: Step, values: Values, device: torch.device) -> None:
        node, host = step.node, step.read_on_host
        if torch.compiler.is_compiling() and self._compute_while_compiling(step, values):
            return
        where = torch.device("cpu") if step.on_host else device
        arguments: list[Any] = []
        for place, name in enumerate(node.inputs):
            if not name:
                arguments.append(None)
                continue
            if place in step.constants and place in step.operator.host:
                arguments.append(step.constants[place])
                continue
            needs_host = step.on_host or place in host
            value = values[name] if name in values else self._constant(name, needs_host)
            arguments.append(value if place in host else _moved(value, where))

        def run(graph: Graph, items: list[Any]) -> list[Any]:
            inner: Values = {name: values[name] for name in graph.captures if name in values}
            inner |= zip((item.name for item in graph.inputs), items, strict=True)
            self._turns += 1
            if self._turns > ONNX["turns"].most:
                limit = ONNX["turns"]
                raise OnnxError(f"its loops run their graphs more than {limit.most:,} times ({limit.why})")
            return self._run(graph, inner, device)

        call = Call(node, run, where, step.constants, step.prepared)
        try:
            result = step.call(step.operator.function, (call, *arguments))
        except (torch.OutOfMemoryError, BringupError) as error:
            if isinstance(error, OnnxError) and not str(error).startswith(node.label.partition(":")[0]):
                raise OnnxError(f"{node.label} ({node.op}, node {node.number}): {error}") from None
            raise
        except Exception as error:  # attributes or values that the file may have, and torch or Python refuses
            shapes = ", ".join(_described(item) for item in arguments) or "no inputs"
            reason = short(str(error) or type(error).__name__, 400)
            raise OnnxError(f"{node.label} ({node.op}, node {node.number}) cannot run on {shapes}: {reason}") from error
        results = result if isinstance(result, tuple) else (result,)
        if any(node.outputs[len(results) :]):  # such as those of a branch whose graph has fewer
            outputs = quantity(len(results), "output")
            raise OnnxError(f"{node.label} ({node.op}, node {node.number}): gives {outputs}, not {len(node.outputs)}")
        for name, value in zip(node.outputs, results, strict=False):
            if name:
                values[name] = value

    def _compute_while_compiling(self, step: Step, values: Values) -> bool:
        """Compute a node of the host whose inputs torch.compile takes for constants; return False for another node."""
        node = step.node
        reads = [values.get(name) for name in node.inputs]
        if node.op in MEASURES and isinstance(reads[0], torch.Tensor):
            reads = [Constant(None, tuple(map(_fixed, reads[0].shape)), reads[0].dtype)]
        elif not step.on_host:
            return False
        if not all(value is None or isinstance(value, Constant) for value in reads):
            return False
        contents = tuple(None if value is None else (value.values, value.shape, value.dtype) for value in reads)
        for name, result in zip(node.outputs, step.while_compiling(contents), strict=False):
            values[name] = Constant(*result)
        return True


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor | Constant):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return "nothing" if value is None else type(value).__name__


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_moved(item, device) for item in value]
    if isinstance(value, torch.Tensor) and value.device.type != device.type:
        return value.to(device)
    return value.on(device) if isinstance(value, Constant) else value


def _fixed(size: int) -> int:
    """Return a size for which torch.compile makes a graph of its own: what follows from a symbol is no constant."""
    return len(range(size))  # Dynamo asks for the value of the symbol where a loop needs it


def _line(node: Node) -> Callable[..., Any]:
    """Return a function whose source line is the node."""
    code = _PYTHON.replace(co_filename=node.label, co_name=node.op, co_firstlineno=node.number)
    return FunctionType(code, {"__builtins__": builtins})


def _while_compiling(model: OnnxModel, node: Node, operator: Operator) -> Callable[..., Any]:
    """Return a function that computes a node on the host, for torch.compile: a look at a tensor would break the graph.

    Its argument has for each input values, shape and dtype, or None if it is a constant of the model or left out. The
    values of a tensor whose shape alone matters are None. It returns the same of each output.
    """

    def compute(contents: tuple[Any, ...]) -> list[Any]:
        host = torch.device("cpu")
        arguments: list[Any] = []
        for name, item in zip(node.inputs, contents, strict=True):
            if item is None:
                arguments.append(_moved(model._constant(name, True), host) if name else None)
            elif item[0] is None:
                arguments.append(torch.empty(item[1], dtype=item[2], device="meta"))
            else:
                arguments.append(Constant(*item).on(host))
        result = operator.function(Call(node, lambda *_: [], host), *arguments)
        results = result if isinstance(result, tuple) else (result,)
        return [(item.tolist(), tuple(item.shape), item.dtype) for item in results]

    compute._dynamo_marked_constant = True  # type: ignore[attr-defined]  # its decorator would import Dynamo
    return compute


class _TooMuch(Exception):
    """A node gives tensors that are too large to be computed when the model is loaded."""


class _Watch(TorchDispatchMode):
    """Raises _TooMuch if a call of torch gives a tensor that is too large; used on meta, where it is not allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self.left = ONNX["folding operations"].most

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call torch, and look at the sizes of the results."""
        result = function(*args, **(kwargs or {}))
        self.left -= 1
        tensors = [item for item in tree_leaves(result) if isinstance(item, torch.Tensor)]
        if self.left < 0 or any(_extent(item) > self.most for item in tensors):
            raise _TooMuch
        return result


def _extent(tensor: torch.Tensor) -> int:
    """Return the elements of a tensor as if it were not empty: what leads to an empty one may be large."""
    return math.prod(size or 1 for size in tensor.shape)


class _Planner:
    """Decides where each node runs and which values it frees; computes constants."""

    def __init__(self, model: OnnxModel, constants: Values) -> None:
        self.model = model
        self.constants: Values = {}
        self.weights = set(constants)
        self.on_host: set[str] = set()  # values that the host has without a look at the chip's memory
        self.read_on_host: set[str] = set()  # constants
        self.watch = _Watch()
        self.left = ONNX["folded elements"].most  # elements that may still be computed
        self.add(constants)

    def add(self, constants: Values) -> None:
        """Add constants of the file. Each may be computed anew twice: converted, and transposed."""
        self.constants |= constants
        self.left += 2 * sum(value.numel() for value in constants.values() if isinstance(value, torch.Tensor))

    def plan(self) -> None:
        model = self.model
        self.fold(model.graph)
        self.join(model.graph)
        needed = self.needed_on_host(model.graph)
        on_chip: set[str] = set(model.outputs)
        self.steps(model.graph, needed, on_chip)
        for name, value in self.constants.items():
            if name in self.read_on_host or not isinstance(value, torch.Tensor):
                model.host[name] = value
            if name in on_chip and isinstance(value, torch.Tensor):
                model.keep(name, value, name in self.weights and value.is_floating_point() and value.itemsize > 1)

    def fold(self, graph: Graph) -> None:
        """Compute the nodes whose inputs are constant, on the host."""
        remaining = []
        for node in graph.nodes:
            for inner in node.graphs:
                self.add({name: as_tensor(array) for name, array in inner.weights.items()})
                inner.weights.clear()
                self.fold(inner)
            operator = OPERATORS[node.op]
            constant = all(name in self.constants for name in node.reads)
            if not constant or not operator.foldable or node.graphs or not self.is_small(node, operator):
                remaining.append(node)
                continue
            call = Call(node, lambda *_: [], torch.device("cpu"))
            try:
                result = operator.function(call, *(self.constants[name] if name else None for name in node.inputs))
            except Exception:  # it fails when it runs, with the node's name
                remaining.append(node)
                continue
            results = result if isinstance(result, tuple) else (result,)
            values = {name: _own(value) for name, value in zip(node.outputs, results, strict=False) if name}
            if node.op == "Constant":
                self.add(values)
                continue
            self.constants |= values
            self.left -= sum(value.numel() for value in values.values() if isinstance(value, torch.Tensor))
        graph.nodes[:] = remaining

    def is_small(self, node: Node, operator: Operator) -> bool:
        """Return False for a node that may need much memory: the file is small, and the memory is not."""
        if node.op == "Constant":
            return True
        values = [self.constants[name] if name else None for name in node.inputs]
        sizes = [value.numel() for value in values if isinstance(value, torch.Tensor)]
        arguments = [
            value.to("meta") if isinstance(value, torch.Tensor) and place not in operator.host else value
            for place, value in enumerate(values)
        ]
        self.watch.most = max([ONNX["folded elements"].most, *sizes])
        try:  # shapes only: nothing is allocated
            with self.watch:
                result = operator.function(Call(node, lambda *_: [], torch.device("meta")), *arguments)
        except _TooMuch:
            return False
        except Exception:  # the shape depends on values, or the node is wrong
            return not operator.host and sum(sizes) <= min(FEW, self.left)
        return sum(value.numel() for value in tree_leaves(result) if isinstance(value, torch.Tensor)) <= self.left

    def join(self, graph: Graph) -> None:
        """Give a product with a constant matrix the bias that is added to it, as runtimes do when they load a model."""
        for inner in (inner for node in graph.nodes for inner in node.graphs):
            self.join(inner)
        reads = Counter(name for node in graph.nodes for name in node.reads)
        reads.update(graph.outputs)
        by_result = {node.outputs[0]: node for node in graph.nodes if node.op == "MatMul"}
        joined: dict[int, Node | None] = {}  # by number: what takes a node's place
        for node in graph.nodes:
            ways = (node.inputs, node.inputs[::-1]) if node.op == "Add" else ()
            for result, bias in ways:
                product = by_result.get(result)
                if product and reads[result] == 1 and self.is_bias(bias, product.inputs[1]):
                    joined[product.number] = replace(product, inputs=(*product.inputs, bias), outputs=node.outputs)
                    joined[node.number] = None
                    break
        graph.nodes[:] = [node for node in (joined.get(node.number, node) for node in graph.nodes) if node]

    def is_bias(self, name: str, matrix: str) -> bool:
        """Return True if both are constants, of which one has a floating-point number for each column of the other."""
        bias, weight = self.constants.get(name), self.constants.get(matrix)
        if not isinstance(bias, torch.Tensor) or not isinstance(weight, torch.Tensor):
            return False
        return bias.is_floating_point() and weight.dim() == 2 and bias.shape == weight.shape[1:]

    def needed_on_host(self, graph: Graph) -> set[str]:
        """Return the values whose content the host needs, and what they are computed from."""
        needed: set[str] = set()

        def visit(part: Graph) -> None:
            for node in reversed(part.nodes):
                for inner in node.graphs:
                    visit(inner)
                operator = OPERATORS[node.op]
                needed.update(name for place, name in enumerate(node.inputs) if name and place in operator.host)
                if needed.intersection(node.outputs) and node.op not in SHAPES and not node.graphs:
                    needed.update(name for name in node.inputs if name)

        visit(graph)
        return needed

    def steps(self, graph: Graph, needed: set[str], on_chip: set[str]) -> None:
        """Plan the nodes of a graph and of the graphs within."""
        last: dict[str, int] = {}
        for place, node in enumerate(graph.nodes):
            for name in (*node.reads, *node.outputs):
                last[name] = place
        frees: dict[int, list[str]] = {}
        for name, place in last.items():
            if name and name not in graph.outputs:
                frees.setdefault(place, []).append(name)
        planned = []
        for place, node in enumerate(graph.nodes):
            operator = OPERATORS[node.op]
            host = self.runs_on_host(node, operator, needed)
            if host or node.op in SHAPES:
                self.on_host.update(node.outputs)
            scalars = [
                position
                for position, name in enumerate(node.inputs)
                if position in operator.scalars and name in self.constants and self.constants[name].numel() == 1
            ]
            read = frozenset((*operator.host, *scalars))
            for position, name in enumerate(node.inputs):
                if name in self.constants:
                    (self.read_on_host if host or position in read else on_chip).add(name)
            for inner in node.graphs:
                on_chip.update(inner.outputs)
                self.steps(inner, needed, on_chip)
            constants = {
                position: Constant.from_tensor(self.constants[name])
                for position, name in enumerate(node.inputs)
                if position in read and isinstance(self.constants.get(name), torch.Tensor)
            }
            freed = tuple(frees.get(place, ()))
            computed = _while_compiling(self.model, node, operator)
            planned.append(Step(node, operator, _line(node), host, read, constants, freed, {}, computed))
        graph.steps[:] = planned

    def runs_on_host(self, node: Node, operator: Operator, needed: set[str]) -> bool:
        variable = [name for name in node.inputs if name and name not in self.constants]
        if node.graphs or node.op in SHAPES or not all(name in self.on_host for name in variable):
            return False
        is_needed = bool(needed.intersection(node.outputs))
        return is_needed or (bool(variable) and operator.foldable and not operator.grows)


def _own(value: Any) -> Any:
    """Return a tensor that holds its own memory, so that a small view does not keep a large one."""
    if isinstance(value, torch.Tensor) and value.numel() < value.untyped_storage().nbytes() // value.itemsize:
        return value.clone()
    return value.contiguous() if isinstance(value, torch.Tensor) else value
