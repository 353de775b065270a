"""Reads and checks an ONNX model: its nodes, inputs and weights as plain data. Nothing of the file is executed."""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.errors import BringupError
from bringup.files import read_bytes
from bringup.limits import ONNX
from bringup.text import plain, quantity, short

OPSETS = range(13, 25)  # the versions of ONNX's operators whose translations are tested
DOMAINS = ("", "ai.onnx")
Array = npt.NDArray[Any]
Signature = tuple[str, str, str]  # domain, name and overload of a function


class OnnxError(BringupError):
    """An ONNX model cannot be read or run."""


@dataclass(frozen=True)
class Input:
    """An input of a graph; a dimension is a number, the name of a dynamic axis, or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Node:
    """A node: an operator with the names of its inputs and outputs; an empty name is an input that is left out.

    Attributes:
        number: its position in the file, counted from 1.
        label: ``model.onnx:/layer1/conv/Conv``, the node's name as the file of a source line.
        attributes: by name; tensors are arrays, and graphs are a `Graph`.
        opset: the version of its operators.
    """

    op: str
    name: str
    number: int
    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    @property
    def graphs(self) -> list[Graph]:
        """Return the graphs among its attributes."""
        return [value for value in self.attributes.values() if isinstance(value, Graph)]

    @property
    def reads(self) -> list[str]:
        """Return the values that it needs, with those that its graphs take from outside."""
        return [name for name in self.inputs if name] + [name for graph in self.graphs for name in graph.captures]


@dataclass
class Graph:
    """Nodes in an order in which they can run.

    Attributes:
        weights: the initializers.
        captures: values that it takes from the graph around it.
        steps: the nodes as `model` runs them.
    """

    name: str
    inputs: list[Input]
    outputs: list[str]
    weights: dict[str, Array]
    nodes: list[Node]
    captures: list[str] = field(default_factory=list)
    steps: list[Any] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        """Yield all nodes, also those of graphs within nodes."""
        for node in self.nodes:
            yield node
            for graph in node.graphs:
                yield from graph.walk()


def read_model(path: str | os.PathLike[str]) -> Graph:
    """Read a model file and the files of its external data.

    Raises:
        OnnxError: it is missing, damaged, too large, malformed, or its opset is not supported.
    """
    onnx = require_onnx()
    file = os.fspath(path)
    content = read_bytes(file, "ONNX model", OnnxError)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError, whose module depends on its version
        raise OnnxError(f"{plain(file)}: is not an ONNX model, or is damaged ({short(str(error))})") from None
    if not model.graph.node and not model.graph.output:
        raise OnnxError(f"{plain(file)}: is not an ONNX model: it has no graph")
    return parse_model(model, file)


def require_onnx() -> Any:
    """Import onnx.

    Raises:
        OnnxError: it is not installed.
    """
    try:
        import onnx
        import onnx.inliner
    except ImportError:
        raise OnnxError('ONNX models need the package onnx: pip install "bringup[onnx]"') from None
    return onnx


def parse_model(model: Any, file: str) -> Graph:
    """Check a ``ModelProto`` and return its graph; `file` is its path, for messages and external data."""
    if not all(isinstance(text, str) for text in _texts(model)):  # protobuf gives such a text as bytes
        raise OnnxError(f"{plain(file)}: is damaged: it has names that are not UTF-8")
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    opset = next((opsets[domain] for domain in DOMAINS if domain in opsets), None)
    if opset is None or opset not in OPSETS:
        version = "no opset" if opset is None else f"opset {opset}"
        raise OnnxError(
            f"{plain(file)}: has {version}, and {OPSETS[0]} to {OPSETS[-1]} are supported: convert it with "
            "onnx.version_converter"
        )
    if model.functions:
        model = _inline(model, file)
    return _Parser(file, opset).graph(model.graph, outside={})


def _texts(message: Any) -> Iterator[Any]:
    """Yield all texts of a message."""
    for kind, value in message.ListFields():
        many = hasattr(value, "__len__") and not isinstance(value, str | bytes)
        if kind.type == kind.TYPE_STRING:
            yield from value if many else (value,)
        elif kind.type == kind.TYPE_MESSAGE:
            for part in value if many else (value,):
                yield from _texts(part)


def _inline(model: Any, file: str) -> Any:
    """Put the bodies of the model's own functions in the place of their calls."""
    functions = {_signature(item, item.name): item for item in model.functions}
    if len(functions) < len(model.functions):
        raise OnnxError(f"{plain(file)}: two of its functions have the same name and overload")
    sizes: dict[Signature, int] = {}

    def size(nodes: Iterable[Any], open_calls: tuple[Signature | None, ...]) -> int:
        if len(open_calls) > ONNX["nested calls"].most:
            limit = ONNX["nested calls"]
            raise OnnxError(f"{plain(file)}: its calls of functions are nested deeper than {limit.most} ({limit.why})")
        total = 0
        for node in nodes:
            graphs = [graph for item in node.attribute for graph in (item.g, *item.graphs) if graph.node]
            total += 1 + sum(size(graph.node, (*open_calls, None)) for graph in graphs)
            key = _signature(node, node.op_type)
            if key in open_calls:
                raise OnnxError(f"{plain(file)}: its function {short(key[1])} calls itself")
            if key in functions:
                for what in ("input", "output"):
                    most, count = len(getattr(functions[key], what)), len(getattr(node, what))
                    if count > most:
                        function = f"function {short(key[1])} has {quantity(most, what)}"
                        raise OnnxError(f"{plain(file)}: its {function}, and node {short(node.name)} has {count}")
                if key not in sizes:
                    sizes[key] = size(functions[key].node, (*open_calls, key))
                total += sizes[key]
            if total > ONNX["nodes"].most:
                limit = ONNX["nodes"]
                raise OnnxError(f"{plain(file)}: its functions expand to more than {limit.most:,} nodes ({limit.why})")
        return total

    size(model.graph.node, ())
    return require_onnx().inliner.inline_local_functions(model)


def _signature(item: Any, name: str) -> Signature:
    """Return by what a node finds its function."""
    return "" if item.domain in DOMAINS else item.domain, name, item.overload


class _Parser:
    """Parses the graphs of one model; numbers its nodes."""

    def __init__(self, file: str, opset: int) -> None:
        self.file = file
        self.shown = plain(file)
        self.opset = opset
        self.onnx = require_onnx()
        self.count = 0
        self.types: dict[str, int] = {}  # of inputs and weights, by name
        self.names: set[str] = set()  # of all values
        self.renamed = 0
        self.sparse_elements = 0

    def graph(self, graph: Any, outside: dict[str, str]) -> Graph:
        """Parse a graph.

        Args:
            graph: a ``GraphProto``.
            outside: the names of the values around it, and their names in the result.
        """
        weights = {item.name: self.array(item, f"weight {short(item.name)}") for item in graph.initializer}
        weights |= {item.values.name: self.sparse(item) for item in graph.sparse_initializer}
        inputs = [self.input(item) for item in graph.input if item.name not in weights]
        for name in [item.name for item in inputs] + list(weights):
            if not name:
                raise OnnxError(f"{self.shown}: an input or weight of graph {short(graph.name)} has no name")
        produced = [*(item.name for item in inputs), *weights]
        produced += [name for node in graph.node for name in node.output if name]
        unique = {name: self.unique(name) for name in dict.fromkeys(produced)}
        if len(unique) < len(produced):
            twice = next(name for name, count in Counter(produced).items() if count > 1)
            raise OnnxError(f"{self.shown}: two nodes, inputs or weights have the name {short(twice)}")
        scope = {**outside, **unique}
        self.types |= {scope[item.name]: item.type.tensor_type.elem_type for item in graph.input}
        self.types |= {scope[item.name]: item.data_type for item in graph.initializer}
        inputs = [replace(item, name=scope[item.name]) for item in inputs]
        weights = {scope[name]: array for name, array in weights.items()}
        nodes = [self.node(node, scope) for node in graph.node]
        self.check_names(graph, nodes, scope)
        inside = set(unique.values())
        outputs = [scope[item.name] for item in graph.output]
        read = dict.fromkeys(name for node in nodes for name in node.reads)
        captures = [name for name in dict.fromkeys([*read, *outputs]) if name not in inside]
        ready = {item.name for item in inputs} | set(weights) | set(captures)
        return Graph(graph.name, inputs, outputs, weights, self.sort(nodes, ready), captures)

    def unique(self, name: str) -> str:
        """Return the name of a value, with a number if another graph of the model has it too, such as a sibling."""
        result = name
        while result in self.names:
            self.renamed += 1
            result = f"{name}_{self.renamed}"
        self.names.add(result)
        return result

    def check_names(self, graph: Any, nodes: list[Node], scope: dict[str, str]) -> None:
        missing = {
            name: node
            for item, node in zip(graph.node, nodes, strict=True)
            for name in item.input
            if name and name not in scope
        }
        if missing:
            name, node = next(iter(missing.items()))
            others = f", and {quantity(len(missing) - 1, 'other value')}" if len(missing) > 1 else ""
            raise OnnxError(
                f"{self.shown}: node {node.number} ({short(node.name)}) reads {short(name)}{others}, which nothing "
                "produces"
            )
        for item in graph.output:
            if item.name not in scope:
                raise OnnxError(f"{self.shown}: nothing produces the output {short(item.name)}")

    def sort(self, nodes: list[Node], ready: set[str]) -> list[Node]:
        """Return the nodes in an order in which each follows those whose outputs it reads."""
        if _is_sorted(nodes, ready):
            return nodes
        ordered: list[Node] = []
        waiting: dict[str, list[Node]] = {}
        missing: dict[int, int] = {}
        queue: deque[Node] = deque()
        for node in nodes:
            needed = {name for name in node.reads if name not in ready}
            missing[node.number] = len(needed)
            for name in needed:
                waiting.setdefault(name, []).append(node)
            if not needed:
                queue.append(node)
        while queue:
            ordered.append(queue.popleft())
            for name in ordered[-1].outputs:
                for node in waiting.pop(name, ()):
                    missing[node.number] -= 1
                    if not missing[node.number]:
                        queue.append(node)
        if len(ordered) < len(nodes):
            rest = [node for node in nodes if missing[node.number]]
            raise OnnxError(
                f"{self.shown}: its graph has a cycle, which holds back {quantity(len(rest), 'node')}: the first is "
                f"node {rest[0].number} ({short(rest[0].name)})"
            )
        return ordered

    def node(self, node: Any, scope: dict[str, str]) -> Node:
        self.count += 1
        if self.count > ONNX["nodes"].most:
            limit = ONNX["nodes"]
            raise OnnxError(f"{self.shown}: has more than {limit.most:,} nodes ({limit.why})")
        number = self.count
        name = plain(node.name or f"{node.op_type}_{number}")[: ONNX["letters"].most]
        attributes = {item.name: self.attribute(item, name, scope) for item in node.attribute if not item.ref_attr_name}
        inputs = tuple(scope.get(item, item) for item in node.input)  # an unknown name is refused by `check_names`
        outputs = tuple(scope.get(item, item) for item in node.output)
        # Torch holds numbers of four bits in bytes, so their type would be lost.
        if node.op_type == "QuantizeLinear" and len(inputs) > 2:
            attributes.setdefault("output_dtype", self.types.get(inputs[2], 0))
        elif node.op_type == "CastLike" and len(inputs) > 1:
            attributes["to"] = self.types.get(inputs[1], 0)
        op = node.op_type if node.domain in DOMAINS else f"{node.domain}.{node.op_type}"
        label = f"{os.path.basename(self.file)}:{name}"
        return Node(op, name, number, label, inputs, outputs, attributes, self.opset)

    def attribute(self, item: Any, owner: str, scope: dict[str, str]) -> Any:
        kinds = self.onnx.AttributeProto
        if item.type == kinds.GRAPH:
            return self.graph(item.g, scope)
        if item.type == kinds.TENSOR:
            return self.array(item.t, f"attribute {short(item.name)} of node {short(owner)}")
        if item.type == kinds.SPARSE_TENSOR:
            return self.sparse(item.sparse_tensor)
        value = self.onnx.helper.get_attribute_value(item)
        if item.type == kinds.STRING:
            return value.decode("utf-8", "backslashreplace")
        if item.type == kinds.STRINGS:
            return [text.decode("utf-8", "backslashreplace") for text in value]
        return list(value) if item.type in (kinds.FLOATS, kinds.INTS) else value

    def input(self, item: Any) -> Input:
        kind = item.type.tensor_type
        if not item.type.HasField("tensor_type") or not kind.elem_type:
            return Input(item.name, "", None)
        shape = None
        if kind.HasField("shape"):
            shape = tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in kind.shape.dim
            )
        return Input(item.name, self.dtype(kind.elem_type, f"input {short(item.name)}"), shape)

    def dtype(self, number: int, what: str) -> str:
        try:
            return str(self.onnx.TensorProto.DataType.Name(number)).lower()
        except ValueError:
            raise OnnxError(f"{self.shown}: {what} has the data type {number}, which ONNX does not define") from None

    def array(self, tensor: Any, what: str) -> Array:
        """Return a tensor's values, which may lie in a file of external data."""
        dtype = self.dtype(tensor.data_type, what)
        if dtype in ("string", "undefined"):
            raise OnnxError(f"{self.shown}: {what} has the data type {dtype}, which no chip computes with")
        shape = self.shape(tensor, what)
        if tensor.data_location == self.onnx.TensorProto.EXTERNAL:
            return self.external(tensor, what)
        if tensor.ByteSize() < math.prod(shape) // 4:  # the smallest value has two bits
            raise OnnxError(f"{self.shown}: {what} has fewer values than its shape {short(str(list(shape)))}")
        try:
            return np.array(self.onnx.numpy_helper.to_array(tensor))  # a copy: the original is read-only
        except (ValueError, TypeError) as error:
            raise OnnxError(f"{self.shown}: {what} is damaged ({short(str(error))})") from None

    def shape(self, tensor: Any, what: str) -> tuple[int, ...]:
        """Return the dimensions of a tensor, which an array can have even if one of them is 0."""
        shape, most = tuple(tensor.dims), ONNX["dimensions"].most
        if len(shape) > most:
            raise OnnxError(f"{self.shown}: {what} has {len(shape)} dimensions, and {most} are supported")
        if any(size < 0 for size in shape):
            raise OnnxError(f"{self.shown}: {what} has a negative dimension: {short(str(list(shape)))}")
        if math.prod(size or 1 for size in shape) > 1 << 59:  # elements of 16 bytes with addresses of 63 bits
            raise OnnxError(f"{self.shown}: {what} has fewer values than its shape {short(str(list(shape)))}")
        return shape

    def sparse(self, tensor: Any) -> Array:
        what = f"sparse weight {short(tensor.values.name)}"
        values, indices = self.array(tensor.values, what), self.array(tensor.indices, what)
        shape = self.shape(tensor, what)
        self.sparse_elements += math.prod(shape)
        if self.sparse_elements > ONNX["elements"].most:
            limit = ONNX["elements"]
            raise OnnxError(
                f"{self.shown}: {what} and those before it have more than {limit.most:,} elements ({limit.why})"
            )
        dense = np.zeros(shape, dtype=values.dtype)
        try:
            flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
            dense.reshape(-1)[flat] = values
        except (ValueError, IndexError, TypeError) as error:
            raise OnnxError(f"{self.shown}: {what} is damaged ({short(str(error))})") from None
        return dense

    def external(self, tensor: Any, what: str) -> Array:
        """Map the values from a file beside the model, of which only what is used is read."""
        entries = {item.key: item.value for item in tensor.external_data}
        location = entries.get("location", "")
        problem = partial("{}: {} is in the external file {}, {}".format, self.shown, what, short(location))
        folder = Path(os.path.abspath(self.file)).parent.resolve()
        target = Path(os.path.normpath(folder / location))
        try:
            outside = not location or os.path.isabs(location) or not target.resolve().is_relative_to(folder)
            missing = not outside and not target.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, or links in a circle
            raise OnnxError(problem(f"which cannot be opened ({short(str(error))})")) from None
        if outside:
            raise OnnxError(problem("which is outside of the model's folder"))
        if missing:
            raise OnnxError(problem("which is missing: put it beside the model"))
        dtype = self.onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = self.shape(tensor, what)
        count = math.prod(shape)
        bits = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}.get(dtype.name, dtype.itemsize * 8)
        needed = (count * bits + 7) // 8
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
        except ValueError:
            raise OnnxError(problem("at an offset or with a length that is no number")) from None
        if offset < 0 or length != needed or offset + length > target.stat().st_size:
            raise OnnxError(problem(f"which does not hold its {quantity(needed, 'byte')} at offset {offset}"))
        if not needed:
            return np.zeros(shape, dtype=dtype)
        try:
            content = np.memmap(target, dtype=np.uint8, mode="c", offset=offset, shape=(length,))
        except OSError as error:
            raise OnnxError(problem(f"which cannot be opened ({short(str(error))})")) from None
        if bits % 8 == 0:
            return content.view(dtype).reshape(shape)
        inline = self.onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=content.tobytes())
        return np.array(self.onnx.numpy_helper.to_array(inline))


def _is_sorted(nodes: list[Node], ready: set[str]) -> bool:
    """Return True if the order of the file is one in which the nodes can run, as ONNX demands."""
    produced = set(ready)
    for node in nodes:
        if not produced.issuperset(node.reads):
            return False
        produced.update(node.outputs)
    return True
