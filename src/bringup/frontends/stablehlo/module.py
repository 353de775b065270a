"""A StableHLO module as data, read with jaxlib's own MLIR bindings: functions, operations, types and lines."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from bringup.errors import BringupError
from bringup.files import read_text
from bringup.frontends.stablehlo.tensors import DTYPES, Type, as_tensor
from bringup.limits import STABLEHLO
from bringup.paths import is_library
from bringup.text import plain, short

TESTED = (0, 10)  # the newest minor release of jaxlib that our tests ran with
Line = tuple[str, int] | None  # file and number
_RETURNS = ("func.return", "stablehlo.return", "sdy.return")
_INSIDE = {"(": 1, "[": 1, "{": 1, "<": 1, ")": -1, "]": -1, "}": -1, ">": -1}
_NO_CODE = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|->|>=|=>')
# Numbers that make MLIR's parser or verifier allocate memory, and aliases whose print grows with powers of two.
_RESULT = re.compile(r"(%[\w$.-]+)#(\d+)")
_CONVOLUTION = re.compile(r"\[[\s,\d]*[bfio][\s,\dbfio]*\]")
_ATTRIBUTE = re.compile(r"(constant|[^#\w]value\s*=)?\s*\b(?:dense|sparse)<[^<>]*>\s*:\s*tensor<((?:\d+x)*)(i|complex)")
_ALIAS = re.compile(r"^\s*(?:![\w$.-]+\s*=|#[\w$.-]+\s*=\s*[\[{])", re.MULTILINE)
_MESH_AXIS = re.compile(r'"([^"]+)"=(\d+)')  # of sdy.mesh @mesh = <["x"=2, "y"=4], device_ids=[0, 2]>
_MESH_IDS = re.compile(r"device_ids=\[([\d, ]+)\]")
_RANK = re.compile(rf"<(?:\d+x){{{STABLEHLO['dimensions'].most + 1}}}")


class StableHloError(BringupError):
    """A StableHLO module is malformed, or has operators without a translation."""


class UntranslatedError(StableHloError):
    """A StableHLO module has operators without a translation."""


@dataclass
class Op:
    """An operation.

    Attributes:
        name: StableHLO's name without the dialect, such as ``dot_general``; ``chlo.erf`` is ``erf``.
        operands, results: numbers of values, unique in their function.
        line: the file and the line of the program that it comes from; None if it is the caller's.
        frees: values that no later operation of its block reads.
    """

    name: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    operand_types: tuple[Type, ...]
    result_types: tuple[Type, ...]
    attributes: dict[str, Any]
    blocks: tuple[Block, ...]
    line: tuple[str, int] | None
    frees: tuple[int, ...] = ()
    prepared: dict[str, Any] = field(default_factory=dict)


@dataclass
class Block:
    """Operations in order, with the values that they take and return.

    Attributes:
        captures: values of the blocks around it that it reads.
    """

    arguments: tuple[int, ...]
    types: tuple[Type, ...]
    ops: list[Op]
    returns: tuple[int, ...]
    captures: tuple[int, ...] = ()

    def walk(self) -> Iterator[Op]:
        """Yield the operations of the block and of the blocks within."""
        for op in self.ops:
            yield op
            for block in op.blocks:
                yield from block.walk()


@dataclass
class Module:
    """A module.

    Attributes:
        functions: the functions by name; ``main`` is where it begins.
        inputs, outputs: the types of what ``main`` takes and returns.
    """

    name: str
    functions: dict[str, Block]
    outputs: tuple[Type, ...]

    @property
    def inputs(self) -> tuple[Type, ...]:
        """Return the types of the inputs."""
        return self.functions["main"].types


def bindings() -> SimpleNamespace:
    """Import jaxlib's MLIR bindings.

    Raises:
        StableHloError: jaxlib is missing, or newer than what was tested.
    """
    try:
        from jaxlib import version
        from jaxlib.mlir import ir
        from jaxlib.mlir._mlir_libs import _jax_mlir_ext
        from jaxlib.mlir.dialects import chlo, func, sdy, stablehlo
    except ImportError as error:
        raise StableHloError(f"StableHLO needs jaxlib ({short(str(error))}): pip install 'bringup[jax]'") from None
    release = tuple(int(part) for part in version.__version__.split(".")[:2])
    if release > TESTED:
        raise StableHloError(
            f"jaxlib {version.__version__} is newer than {'.'.join(map(str, TESTED))}, the newest that was tested: "
            "pip install 'bringup[jax]'"
        )
    return SimpleNamespace(
        ir=ir, register_dialects=_jax_mlir_ext.register_dialects, chlo=chlo, func=func, sdy=sdy, stablehlo=stablehlo
    )


def read_file(path: str | os.PathLike[str]) -> Module:
    """Read a module from a text file, such as ``jax.jit(f).lower(x).as_text(debug_info=True)``; executes nothing.

    Raises:
        StableHloError: the file is malformed.
    """
    shown = plain(os.fspath(path))
    text = read_text(path, "StableHLO module")
    check_text(text, shown)
    mlir = bindings()
    with new_context(mlir):
        try:
            module = mlir.ir.Module.parse(text)
        except (ValueError, MemoryError, mlir.ir.MLIRError) as error:
            reason = short(" ".join(str(error).split()), 300)
            raise StableHloError(f"{shown}: is no StableHLO module in text form ({reason})") from None
        return read_module(module, shown)


def new_context(mlir: SimpleNamespace) -> Any:
    """Return a context of jaxlib's bindings that knows StableHLO's dialects."""
    context, registry = mlir.ir.Context(), mlir.ir.DialectRegistry()
    mlir.register_dialects(registry)
    context.append_dialect_registry(registry)
    context.load_all_available_dialects()
    for dialect in (mlir.stablehlo, mlir.chlo, mlir.sdy):
        dialect.register_dialect(context)
    return context


def check_text(text: str, shown: str) -> None:
    """Raise StableHloError if MLIR's parser could overflow the stack, or allocate more memory than the file has."""

    def refuse(what: str, name: str) -> None:
        limit = STABLEHLO[name]
        raise StableHloError(f"{shown}: {what.format(f'{limit.most:,}')} ({limit.why})")

    code, depth = _NO_CODE.sub(" ", text), 0
    for letter in re.findall(r"[()\[\]{}<>]", code):
        depth += _INSIDE[letter]
        if depth > STABLEHLO["brackets"].most:
            refuse("more than {} brackets are open at once", "brackets")
    if _RANK.search(code):
        refuse("a value has more than {} dimensions", "dimensions")
    if alias := _ALIAS.search(code):
        name = alias[0].split("=")[0].strip()
        raise StableHloError(f"{shown}: {short(name)} is an alias of a type or a list: write it where it is used")
    results: dict[str, int] = {}
    for name, number in _RESULT.findall(code):
        results[name] = max(results.get(name, 0), _number(number))
    if sum(results.values()) > STABLEHLO["results"].most:
        refuse("its operations have more than {} results", "results")
    numbers = [number for part in _CONVOLUTION.findall(code) for number in re.findall(r"\d+", part)]
    if any(_number(number) > STABLEHLO["dimensions"].most for number in numbers):
        refuse("a convolution has more than {} dimensions", "dimensions")
    for owner, sizes, kind in _ATTRIBUTE.findall(code):
        is_kept = owner and kind == "i"  # as one value that is expanded
        if not is_kept and math.prod(map(_number, sizes.split("x")[:-1])) > STABLEHLO["attribute"].most:
            refuse("an attribute has more than {} elements", "attribute")


def _number(digits: str) -> int:
    return int(digits[-20:]) if len(digits) <= 20 else 10**20  # Python refuses to read thousands of digits


def read_module(
    module: Any, shown: str, line: Callable[[Any], Line] | None = None, *, chips: int | None = None
) -> Module:
    """Return a module of jaxlib's bindings as data.

    Args:
        module: of jaxlib's bindings.
        shown: its name in messages.
        line: returns the line of a location; by default the innermost one that is not in a library.
        chips: the number of chips that run it together, by a `Team`; None: one chip runs it.

    Raises:
        StableHloError: it has no function ``main``, dynamic shapes, or types that no chip computes with.
    """
    mlir = bindings()
    with module.context, mlir.ir.Location.unknown():
        reader = _Reader(mlir, shown, line)
        sizes = ("mhlo.num_partitions", "mhlo.num_replicas")
        whole = module.operation.attributes
        reader.devices = math.prod(int(reader.attribute(whole[name])) for name in sizes if name in whole)
        if chips is not None:
            reader.devices, reader.together = chips, True
        reader.meshes = {
            str(op.attributes["sym_name"]).strip('"'): str(op)
            for op in module.body.operations
            if op.operation.name == "sdy.mesh"
        }
        bodies = {
            str(op.attributes["sym_name"]).strip('"'): op
            for op in module.body.operations
            if op.operation.name == "func.func" and op.regions[0].blocks
        }
        if "main" not in bodies:
            raise StableHloError(f"{shown}: has no function main")
        functions = {}
        for name, op in bodies.items():
            reader.numbers, reader.is_main = {}, name == "main"
            functions[name] = reader.block(op.operation.regions[0].blocks[0])
        kinds = mlir.ir.FunctionType(mlir.ir.TypeAttr(bodies["main"].attributes["function_type"]).value).results
        outputs = tuple(reader.type(kind) for kind in kinds)
    result = Module(shown, functions, outputs)
    _check_calls(result)
    return result


def _check_calls(module: Module) -> None:
    """Raise StableHloError if functions call missing ones, or call each other in a circle."""
    calls = {
        name: [op.attributes[key] for op in block.walk() for key in ("callee", "decomposition") if key in op.attributes]
        for name, block in module.functions.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path or len(path) > STABLEHLO["nested calls"].most:
            raise StableHloError(f"{module.name}: function {short(name)} calls itself, or calls are nested too deeply")
        if name not in calls:
            raise StableHloError(f"{module.name}: has no function {short(name)}, which {short(path[-1])} calls")
        if name not in done:
            for inner in calls[name]:
                visit(inner, (*path, name))
            done.add(name)

    visit("main", ())


class _Reader:
    """Reads the blocks of one module.

    Attributes:
        numbers: the number of each value of the current function.
        devices: of the program.
        together: True if chips run it together, and exchange values.
    """

    def __init__(self, mlir: SimpleNamespace, shown: str, line: Callable[[Any], Line] | None) -> None:
        self.mlir, self.ir, self.shown = mlir, mlir.ir, shown
        self.line = line or self._line
        self.forms: list[Any] = [
            form
            for form in vars(mlir.stablehlo).values()
            if isinstance(form, type) and issubclass(form, mlir.ir.Attribute) and "isinstance" in vars(form)
        ]
        self.numbers: dict[Any, int] = {}
        self.count = 0
        self.read = 0  # attributes
        self.devices = 1
        self.together = False
        self.meshes: dict[str, str] = {}  # as text
        self.lines: dict[Any, Line] = {}
        self.is_main = True

    def number(self, value: Any) -> int:
        return self.numbers.setdefault(value, len(self.numbers))

    def type(self, kind: Any, line: tuple[str, int] | None = None) -> Type:
        where = f"{plain(line[0])}:{line[1]}" if line else self.shown
        try:
            ranked = self.ir.RankedTensorType(kind)
        except ValueError:
            raise StableHloError(f"{where}: no chip computes with values of type {short(str(kind))}") from None
        element, shape = str(ranked.element_type), tuple(ranked.shape)
        if element not in DTYPES:
            raise StableHloError(f"{where}: torch has no data type for {short(element)}")
        if any(size < 0 for size in shape):
            raise StableHloError(f"{where}: the shape of {short(str(kind))} is dynamic: lower it with sizes")
        return Type(element, shape)

    def block(self, block: Any, depth: int = 0) -> Block:
        if depth > STABLEHLO["brackets"].most:
            raise StableHloError(f"{self.shown}: regions are nested too deeply")
        arguments = tuple(self.number(value) for value in block.arguments)
        types = tuple(self.type(value.type) for value in block.arguments)
        ops: list[Op] = []
        returns: tuple[int, ...] = ()
        for item in block.operations:
            operation = item.operation
            if operation.name in _RETURNS:
                returns = tuple(self.number(value) for value in operation.operands)
                break
            ops.append(self.op(operation, depth))
        inside = {*arguments, *(value for op in ops for value in op.results)}
        read = [value for op in ops for value in (*op.operands, *(v for inner in op.blocks for v in inner.captures))]
        captures = tuple(value for value in dict.fromkeys((*read, *returns)) if value not in inside)
        _plan_frees(ops, inside - set(returns))
        return Block(arguments, types, ops, returns, captures)

    def op(self, operation: Any, depth: int) -> Op:
        self.count += 1
        if self.count > STABLEHLO["operations"].most:
            limit = STABLEHLO["operations"]
            raise StableHloError(f"{self.shown}: has more than {limit.most:,} operations ({limit.why})")
        line = self.line(operation.location)
        dialect, _, short_name = operation.name.partition(".")
        name = short_name if dialect in ("stablehlo", "chlo", "func", "mhlo") else operation.name
        operand_types = tuple(self.type(value.type, line) for value in operation.operands)
        result_types = tuple(self.type(value.type, line) for value in operation.results)
        if name == "constant":
            attributes: dict[str, Any] = {"value": self.constant(operation, result_types[0])}
        else:
            attributes = {key: self.attribute(operation.attributes[key]) for key in operation.attributes}
        attributes["devices"], attributes["together"] = self.devices, self.together
        operands = tuple(self.number(value) for value in operation.operands)
        blocks = tuple(self.block(inner, depth + 1) for region in operation.regions for inner in region.blocks)
        results = tuple(self.number(value) for value in operation.results)
        return Op(name, operands, results, operand_types, result_types, attributes, blocks, line)

    def attribute(self, value: Any, depth: int = 0) -> Any:
        ir, kind = self.ir, type(value).__name__
        self.read += math.prod(ir.ShapedType(value.type).shape) if kind == "DenseIntElementsAttr" else 1
        if self.read > STABLEHLO["attributes"].most or depth > STABLEHLO["brackets"].most:
            raise StableHloError(f"{self.shown}: its attributes are too many, or nested too deeply")
        if kind in ("IntegerAttr", "BoolAttr", "FloatAttr", "StringAttr", "FlatSymbolRefAttr"):
            return value.value
        if kind in ("DenseI64ArrayAttr", "DenseI32ArrayAttr", "DenseBoolArrayAttr"):
            return list(value)
        if kind == "DenseIntElementsAttr":
            return np.array(value).reshape(ir.ShapedType(value.type).shape).tolist()
        if kind == "ArrayAttr":
            return [self.attribute(item, depth + 1) for item in value]
        if kind == "DictAttr":
            return {item.name: self.attribute(item.attr, depth + 1) for item in value}
        value = next((form(value) for form in self.forms if form.isinstance(value)), value)
        names = set(dir(type(value))) - set(dir(ir.OpaqueAttr)) - {"get", "isinstance"}
        if type(value).__name__ == "ReplicaGroupMeshAxesAttr":
            return self.groups(value)
        own = {name: getattr(value, name) for name in names if not name.startswith("_")}
        if set(own) == {"value"}:  # an enumeration, such as a direction
            return own["value"]
        return SimpleNamespace(**own) if own else str(value)

    def groups(self, value: Any) -> list[list[int]]:
        """Return groups of devices that are written as axes of a mesh of devices."""
        text = self.meshes.get(str(value.mesh).lstrip("@").strip('"'), "")
        sizes = {name: int(size) for name, size in _MESH_AXIS.findall(text)}
        ids = [int(number) for part in _MESH_IDS.findall(text) for number in part.split(",")]
        axes = []
        for item in value.axes:
            axis = self.mlir.stablehlo.AxisRefAttr(item)
            part = axis.sub_axis_info
            part = part and self.mlir.stablehlo.SubAxisInfoAttr(part)
            axes.append((axis.name, part.pre_size, part.size) if part else (axis.name, 1, sizes.get(axis.name, 0)))
        if not axes or any(name not in sizes for name, *_ in axes):
            raise StableHloError(f"{self.shown}: a collective names axes that no mesh has: {short(str(value))}")
        return mesh_groups(sizes, ids, axes)

    def constant(self, operation: Any, kind: Type) -> torch.Tensor:
        """Return a constant, as a scalar that is expanded if all of its values are equal."""
        if kind.dtype.is_complex:
            return self.evaluated(operation, kind)
        value = operation.attributes["value"]
        if not isinstance(value, self.ir.DenseElementsAttr):
            raise StableHloError(f"{self.shown}: a constant of type {kind} is not written as dense<...>")
        if value.is_splat:
            value = value.get_splat_value().value
            if kind.is_unsigned:
                value = (value & (1 << kind.bits) - 1) - ((value >> kind.bits - 1 & 1) << kind.bits)
            return torch.full((), value, dtype=kind.dtype).expand(kind.shape)
        if kind.kind not in ("f16", "f32", "f64") and not kind.kind.lstrip("u").startswith("i"):
            return self.evaluated(operation, kind)
        return as_tensor(np.array(value)).reshape(kind.shape)

    def evaluated(self, operation: Any, kind: Type) -> torch.Tensor:
        """Return a constant whose attribute the bindings cannot read: StableHLO's interpreter takes it apart."""
        ir, func, stablehlo = self.ir, self.mlir.func, self.mlir.stablehlo
        module = ir.Module.create()
        is_complex = kind.dtype.is_complex
        if is_complex:
            part = ir.ComplexType(ir.RankedTensorType(operation.results[0].type).element_type).element_type
        else:
            part = ir.IntegerType.get_unsigned(kind.bits)
        results = [ir.RankedTensorType.get(kind.shape, part)] * (2 if is_complex else 1)
        with ir.InsertionPoint(module.body):
            main = func.FuncOp("main", ([], results))
            with ir.InsertionPoint(main.add_entry_block()):
                value = operation.clone().results[0]
                parts = (
                    [stablehlo.real(value), stablehlo.imag(value)]
                    if is_complex
                    else [stablehlo.bitcast_convert(results[0], value)]
                )
                func.ReturnOp(parts)
        arrays = [np.array(item).reshape(kind.shape) for item in stablehlo.eval_module(module, [])]
        if is_complex:
            return torch.complex(*map(as_tensor, arrays))
        return as_tensor(arrays[0]).view(kind.dtype)

    def _line(self, location: Any) -> Line:
        """Return the innermost line that is not in a library; None in a function whose caller has it."""
        key = location, self.is_main
        if key not in self.lines:
            frames = list(_frames(location))
            own = [(file, line) for file, line in frames if not is_library(f"{file}:{line}")]
            if not own and self.is_main:
                own = [*frames, (self.shown, 1)]
            self.lines[key] = next(iter(own), None)
        line = self.lines[key]
        return (self.shown, line[1]) if line and line[0] == "-" else line  # "-" is the text that was parsed


def mesh_groups(sizes: dict[str, int], ids: Sequence[int], axes: Sequence[tuple[str, int, int]]) -> list[list[int]]:
    """Return the groups of devices along some axes of a mesh.

    Args:
        sizes: of the mesh's axes by name.
        ids: the devices of the mesh; none are all in their order.
        axes: names, and the part of the axis: the product of the sizes before it, and its size.
    """
    parts: list[tuple[str, int, int]] = []  # the mesh's axes, cut where one of `axes` begins or ends
    for name, size in sizes.items():
        cuts = {1, size} | {cut for axis, before, own in axes if axis == name for cut in (before, before * own)}
        parts += [(name, first, end // first) for first, end in pairwise(sorted(cuts))]
    array = np.array(ids or range(math.prod(sizes.values()))).reshape([size for *_, size in parts])
    chosen = [
        number
        for axis, before, own in axes
        for number, (name, first, _) in enumerate(parts)
        if name == axis and before <= first < before * own
    ]
    rest = [number for number in range(len(parts)) if number not in chosen]
    groups: list[list[int]] = (
        array.transpose(rest + chosen).reshape(-1, math.prod(parts[number][2] for number in chosen)).tolist()
    )
    return groups


def _frames(location: Any) -> Iterator[tuple[str, int]]:
    """Yield file and line of a location's frames, the innermost first."""
    waiting = [location]
    for _ in range(STABLEHLO["frames"].most):
        if not waiting:
            return
        place = waiting.pop()
        kind = type(place).__name__
        if kind == "FileLineColLoc":
            yield place.filename, place.start_line
        elif kind == "NameLoc":
            waiting.append(place.child_loc)
        elif kind == "CallSiteLoc":
            waiting += [place.caller, place.callee]
        elif kind == "FusedLoc":
            waiting += reversed(place.locations)


def _plan_frees(ops: list[Op], own: set[int]) -> None:
    """Note with each operation which of the block's own values nothing reads after it."""
    last: dict[int, int] = {}
    for place, op in enumerate(ops):
        inner = (value for block in op.blocks for value in block.captures)
        for value in (*op.operands, *inner, *op.results):
            last[value] = place
    for value, place in last.items():
        if value in own:
            ops[place].frees += (value,)
