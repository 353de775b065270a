"""Reads Triton's intermediate representation (TTIR) from the text of `str(module)`.

The text is read because Triton's Python bindings provide neither float constants nor arrays. Every operation is on one
line. The types of its results follow from the printed types by the rules of MLIR's assembly formats.
"""

from __future__ import annotations

import os
import re
import struct
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bringup.errors import BringupError
from bringup.limits import TTIR
from bringup.text import short


@dataclass(frozen=True)
class Type:
    """``tensor<16x!tt.ptr<f32>>`` has shape (16,), element ``f32`` and is a pointer; scalars have shape ()."""

    element: str
    shape: tuple[int, ...] = ()
    pointer: bool = False

    @property
    def numel(self) -> int:
        """Return the number of elements of the tile."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def __str__(self) -> str:
        element = f"!tt.ptr<{self.element}>" if self.pointer else self.element
        return f"tensor<{'x'.join(map(str, (*self.shape, element)))}>" if self.shape else element


@dataclass
class Op:
    """One operation. Operands and results are numbers of the function's values."""

    name: str
    operands: list[int]
    results: list[int]
    attributes: dict[str, Any]
    words: tuple[str, ...]  # words before the operands, such as slt, fadd, x
    line: str  # such as kernel.py:12
    regions: list[Region] = field(default_factory=list)
    targets: list[tuple[str, list[int]]] = field(default_factory=list)  # labels and arguments of a branch


@dataclass
class Block:
    """Operations in order, and the arguments of the block."""

    label: str
    arguments: list[int]
    ops: list[Op] = field(default_factory=list)


@dataclass
class Region:
    """Blocks; the first is the entry."""

    blocks: list[Block] = field(default_factory=list)

    @property
    def ops(self) -> list[Op]:
        """Return the operations of a region with one block."""
        return self.blocks[0].ops


@dataclass
class Function:
    """A kernel, or a device function that was not inlined."""

    name: str
    arguments: list[int]
    names: list[str]  # of the arguments
    body: Region
    types: list[Type]  # of every value
    line: str

    def walk(self) -> Iterator[Op]:
        """Yield every operation, followed by those of its regions."""
        pending = [op for block in reversed(self.body.blocks) for op in reversed(block.ops)]
        while pending:
            op = pending.pop()
            yield op
            for region in reversed(op.regions):
                for block in reversed(region.blocks):
                    pending += reversed(block.ops)


@dataclass
class Module:
    """The kernel (the public function) and the functions that it calls, by name.

    Attributes:
        text: the module's TTIR.
        file: the Python file of the kernel; empty if the text does not say.
    """

    kernel: Function
    functions: dict[str, Function]
    text: str
    file: str


_ALIAS = re.compile(r"^(#loc\d*) = loc\((.*)\)$", re.M)
_OP = re.compile(r'^(?:(%[^=]*?) = )?"?([a-z_]\w*\.[\w.]+)"?(.*)$', re.S)
_VALUE = re.compile(r"%[\w$.-]+(?:#\d+)?")
_WORD = re.compile(r"[A-Za-z_]\w*")
_FILE = re.compile(r'^"([^"]*)":(\d+):(\d+)$')
_TENSOR = re.compile(r"^tensor<((?:\d+x)*)(.+)>$")
_ASSIGNED = re.compile(r"(?<!\w)(\w+) = ([\w.-]+)")
_ENDS = {"scf.yield", "scf.condition", "tt.return", "tt.reduce.return", "tt.scan.return", "cf.br", "cf.cond_br"}
_OPENING, _CLOSING = "([{<", ")]}>"
MOST = {name: limit.most for name, limit in TTIR.items()}


# The errors of the readers below for texts that are not valid TTIR.
UNREADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, StopIteration, TypeError),
    *(ValueError, struct.error),
)


def parse(text: str) -> Module:
    """Read a module.

    Raises:
        BringupError: a line is not valid TTIR for this reader; the message has the line.
    """
    counts = {"letters": len(text), "letters in a line": max(map(len, text.splitlines()), default=0)}
    for name, count in counts.items():
        if count > MOST[name]:
            raise BringupError(f"this TTIR has {count:,} {name}, but bringup reads at most {MOST[name]:,}")
    parser = _Parser(text)
    try:
        return parser.module()
    except UNREADABLE as error:
        reason = short(f"{type(error).__name__}: {error}")
        line = short(parser.under_way, 200)
        raise BringupError(f"bringup cannot read TTIR at this line ({reason}): {line}") from error


def parse_type(text: str) -> Type:
    """Read a type; `index` is an i64."""
    text = text.strip()
    if match := _TENSOR.match(text):
        inner = parse_type(match[2].split(", #")[0])
        return Type(inner.element, tuple(int(size) for size in match[1].split("x") if size), inner.pointer)
    if text.startswith("!tt.ptr<"):
        pointee = text[8:-1].split(",")[0].strip()
        inner = parse_type(pointee)
        # A pointer to a pointer points to an address.
        return Type("i64" if inner.pointer else inner.element, inner.shape, True)
    return Type("i64" if text == "index" else text)


def _depths(text: str) -> Iterator[tuple[int, str, int]]:
    """Yield (index, character, depth of brackets) outside strings; the ">" of an arrow is not a bracket."""
    depth, quoted, before = 0, False, ""
    for place, character in enumerate(text):
        if character == '"' and before != "\\":
            quoted = not quoted
        elif not quoted:
            if character in _OPENING:
                depth += 1
            elif character in _CLOSING and not (character == ">" and before == "-"):
                depth -= 1
            if not 0 <= depth <= MOST["brackets"]:
                raise ValueError("brackets do not match, or are nested too deeply")
            yield place, character, depth
        before = character


def _split(text: str, separator: str = ",") -> list[str]:
    """Split at a separator outside brackets."""
    parts, start = [], 0
    for place, character, depth in _depths(text):
        if character == separator and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def _type_part(text: str) -> tuple[str, str]:
    """Split an operation at the last `` : `` outside brackets, into its head and its types."""
    last = -1
    for place, character, depth in _depths(text):
        if character == ":" and depth == 0 and text[place - 1 : place + 2] == " : ":
            last = place
    return (text, "") if last < 0 else (text[: last - 1], text[last + 2 :])


def _without_location(text: str) -> tuple[str, str]:
    """Split the ``loc(...)`` off the end of a line."""
    if not text.endswith(")"):
        return text, ""
    depth = 0
    for place in range(len(text) - 1, -1, -1):
        depth += (text[place] == ")") - (text[place] == "(")
        if depth == 0:
            if text[:place].endswith("loc"):
                return text[: place - 3].rstrip(), text[place + 1 : -1]
            break
    return text, ""


def _number(text: str) -> Any:
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    body = _type_part(" " + text)[0].strip()
    if body.startswith("array<"):
        return [int(item) for item in body[6:-1].partition(":")[2].split(",") if item.strip()]
    try:
        return int(body, 0)
    except ValueError:
        return body.strip('"')


def _result_types(name: str, types: str) -> list[Type]:
    """Return the types of the results from the text after the colon."""
    arrow = next((p for p, c, d in _depths(types) if c == ">" and types[p - 1] == "-" and d == 0), -1)
    if arrow >= 0:
        types = types[arrow + 1 :].strip()
        return [parse_type(item) for item in _split(types[1:-1] if types.startswith("(") else types)]
    if " to " in types:
        return [parse_type(types.rpartition(" to ")[2])]
    parts = [parse_type(item) for item in _split(types)]
    if not parts:
        return []
    if name in ("arith.cmpi", "arith.cmpf"):
        return [Type("i1", parts[0].shape)]
    if name == "tt.load":
        return [Type(parts[0].element, parts[0].shape)]
    return [parts[-1] if name == "arith.select" else parts[0]]


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.locations = dict(_ALIAS.findall(text))
        self.known_lines: dict[str, str] = {}
        self.visited = 0  # parts of the current location
        self.lines = [
            line.split("  // ")[0].rstrip() for line in text.splitlines() if line.strip() and not line.startswith("#")
        ]
        self.at = 0
        self.under_way = ""  # the line of the current operation
        self.types: list[Type] = []
        self.scope: ChainMap[str, list[int]] = ChainMap()

    def module(self) -> Module:
        functions, kernel = {}, None
        while self.at < len(self.lines):
            line = self.lines[self.at].strip()
            if line.startswith("tt.func"):
                function = self.function()
                functions[function.name] = function
                if line.startswith("tt.func public"):
                    kernel = function
            else:
                self.at += 1
        if kernel is None:
            raise BringupError("this TTIR has no public function: nothing to launch")
        own = next(self.frames("#loc"), ("", 0))  # the module's location is that of the kernel
        return Module(kernel, functions, self.text, own[0])

    # ---- locations

    def line_of(self, text: str) -> str:
        """Return the innermost line of the program, or of Triton's own library if there is no other."""
        if text not in self.known_lines:
            self.visited = 0
            frames = list(self.frames(text))
            program_frames = [
                frame for frame in frames if f"{os.sep}triton{os.sep}language{os.sep}" not in frame[0]
            ] or frames
            file, number = program_frames[0] if program_frames else ("", 0)
            self.known_lines[text] = f"{file.removeprefix(os.getcwd() + os.sep)}:{number}" if file else ""
        return self.known_lines[text]

    def frames(self, text: str) -> Iterator[tuple[str, int]]:
        self.visited += 1
        if self.visited > MOST["frames"]:
            raise ValueError("a location has too many frames")
        text = text.strip()
        if text.startswith("#"):
            yield from self.frames(self.locations.get(text, ""))
        elif match := _FILE.match(text):
            yield match[1], int(match[2])
        elif text.startswith("callsite("):
            callee, _, caller = text[9:-1].partition(" at ")
            yield from self.frames(callee)
            yield from self.frames(caller)
        elif text.startswith("fused"):
            for part in _split(text[text.index("[") + 1 : -1]):
                yield from self.frames(part)
        elif text.startswith('"') and text.endswith(")"):
            yield from self.frames(text[text.index("(") + 1 : -1])

    # ---- values

    def define(self, name: str, types: list[Type]) -> list[int]:
        first = len(self.types)
        self.types += types
        self.scope[name] = list(range(first, first + len(types)))
        return self.scope[name]

    def use(self, name: str) -> int:
        name, _, place = name.partition("#")
        try:
            return self.scope[name][int(place or 0)]
        except LookupError:
            raise LookupError(f"{name} is not defined") from None

    def uses(self, text: str) -> list[int]:
        return [self.use(name) for name in _VALUE.findall(text)]

    # ---- functions, regions, blocks

    def function(self) -> Function:
        header = self.under_way = self.lines[self.at].strip()
        self.at += 1
        self.types, self.scope = [], ChainMap()
        match = re.match(r'tt\.func (?:public |private )?@(?:"([^"]*)"|([\w.$-]+))\(', header)
        if not match:
            raise ValueError("a function has no name")
        inside = header[match.end() - 1 :]
        end = next(place for place, character, depth in _depths(inside) if character == ")" and depth == 0)
        arguments, names = [], []
        for item in _split(inside[1:end]):
            item, location = _without_location(item)
            name, _, kind = item.partition(": ")
            kind = kind.split(" {")[0]
            arguments += self.define(name.strip(), [parse_type(kind)])
            names.append(location.split('"')[1] if location.startswith('"') else name.strip()[1:])
        body, tail = self.region()
        location = _without_location(tail)[1]
        return Function(match[1] or match[2], arguments, names, body, self.types, self.line_of(location))

    def region(self) -> tuple[Region, str]:
        """Read up to the line that closes the region; return the region and this line."""
        self.scope = self.scope.new_child()
        region = Region([Block("", [])])
        while True:
            if self.at == len(self.lines):
                raise ValueError("the text ends early")
            line = self.under_way = self.lines[self.at].strip()
            if line.startswith("}"):
                self.scope = self.scope.parents
                if len(region.blocks) > 1 and not region.blocks[0].ops and not region.blocks[0].label:
                    del region.blocks[0]
                for block in region.blocks:
                    if not block.ops or block.ops[-1].name not in _ENDS:  # a yield without values is not printed
                        block.ops.append(Op("scf.yield", [], [], {}, (), ""))
                return region, line
            self.at += 1
            if line.startswith("^"):
                label, _, rest = line.rstrip(":").partition("(")
                arguments: list[int] = []
                for item in _split(rest[:-1]) if rest else []:
                    name, _, kind = _without_location(item)[0].partition(": ")
                    arguments += self.define(name.strip(), [parse_type(kind)])
                region.blocks.append(Block(label, arguments))
            else:
                region.blocks[-1].ops.append(self.op(line))

    def op(self, line: str) -> Op:
        match = _OP.match(line)
        if not match:
            raise BringupError(f"bringup cannot read this line of TTIR: {line}")
        results, name, rest = match[1], match[2], match[3].strip()
        if rest.endswith("{"):
            return self.structured(name, results, rest[:-1].rstrip())
        rest, location = _without_location(rest)
        op = Op(name, [], [], {}, (), self.line_of(location))
        if name in ("cf.br", "cf.cond_br"):
            condition, _, _ = rest.partition("^")
            op.operands = self.uses(condition)
            for target in re.finditer(r"(\^\w+)(?:\(([^()]*)\))?", rest):
                op.targets.append((target[1], self.uses(_type_part(target[2] or "")[0])))
            return op
        if name == "arith.constant":
            return self.constant(op, results, rest)
        if name == "tt.call":
            op.words = (re.findall(r'@"?([\w.$-]+)"?', rest)[0],)
            head, types = _type_part(rest)
            op.operands = self.uses(head.partition("(")[2])
        else:
            head, types = _type_part(rest)
            head = self.attributes(op, head)
            before = head.split("%")[0]
            op.words = tuple(_WORD.findall(before))
            op.operands = self.uses(head)
            for key, value in _ASSIGNED.findall(head):
                op.attributes[key] = value
            if name == "tt.dot_scaled":  # each scale may be missing
                op.attributes["scaled"] = [" scale " in item for item in _split(head)[:2]]
            if name == "tt.assert":
                op.attributes["message"] = head.partition('"')[2].rpartition('"')[0]
        self.give(op, results, _result_types(name, types))
        return op

    def give(self, op: Op, results: str | None, types: list[Type]) -> None:
        if not results:
            return
        names = [item.strip() for item in results.split(",")]
        place = 0
        for item in names:
            name, _, count = item.partition(":")
            width = int(count) if count else 1
            # tt.split has two results but prints one type.
            op.results += self.define(name, types[place : place + width] or types[-1:])
            place += width

    def attributes(self, op: Op, head: str) -> str:
        """Read the dictionaries of attributes into the operation; return the text without them."""
        start, depth_before, end = 0, 0, 0
        text = ""
        for place, character, depth in _depths(head):
            if character == "{" and depth_before == depth - 1 and depth <= 2:
                start = place
            if character == "}" and depth == depth_before - 1 and depth <= 1:
                for item in _split(head[start + 1 : place]):
                    key, _, value = item.partition(" = ")
                    op.attributes[key.strip()] = _number(value) if value else True
                text, end = text + head[end:start], place + 1
            depth_before = depth
        text = (text + head[end:]).replace("<>", "")
        return re.sub(r"\b(fastmath|overflow)<\w+>", "", text)

    def constant(self, op: Op, results: str | None, rest: str) -> Op:
        text, types = _type_part(rest)
        kind = parse_type(types) if types else Type("i1")
        text = text.strip()
        if text.startswith("dense<"):
            text = text[6:-1]
        op.attributes["value"] = _constant(text, kind.element)
        self.give(op, results, [kind])
        return op

    def structured(self, name: str, results: str | None, rest: str) -> Op:
        """Read an operation with regions."""
        op = Op(name, [], [], {}, (), "")
        outer = self.scope
        self.scope = outer.new_child()
        types: list[Type] = []
        inner: list[int] = []
        if name == "scf.for":
            head, _, tail = rest.partition(" iter_args(")
            names = _VALUE.findall(head)
            op.operands = [self.use(item) for item in names[1:4]]
            kind = self.types[op.operands[0]]
            carried: list[tuple[str, int]] = []
            if tail:
                pairs = tail[: tail.index(")")]
                paired = _VALUE.findall(pairs)  # argument, value, argument, value ...
                carried = [(paired[i], self.use(paired[i + 1])) for i in range(0, len(paired), 2)]
                op.operands += [value for _, value in carried]
            types = [self.types[value] for _, value in carried]
            inner += self.define(names[0], [kind])
            for argument, value in carried:
                inner += self.define(argument, [self.types[value]])
        elif name == "scf.while":
            pairs, _, signature = (
                rest.partition(") :") if rest.startswith("(%") else ("", "", rest.rpartition(" : ")[2])
            )
            paired = _VALUE.findall(pairs)  # argument, value, argument, value ...
            carried = [(paired[i], self.use(paired[i + 1])) for i in range(0, len(paired), 2)]
            op.operands = [value for _, value in carried]
            types = _result_types(name, signature)
            for argument, value in carried:
                inner += self.define(argument, [self.types[value]])
        elif name == "scf.if":
            op.operands = self.uses(rest.partition(" -> ")[0])
            types = _result_types(name, rest[rest.index("-> ") :]) if "->" in rest else []
        elif name in ("tt.reduce", "tt.scan", "tt.map_elementwise"):
            head = self.attributes(op, rest.removesuffix("("))
            op.operands = self.uses(head)
        else:
            raise BringupError(f"{name}: bringup does not support this operation of Triton")
        while True:
            region, line = self.region()
            self.at += 1
            if inner and not region.blocks[0].label:
                region.blocks[0].arguments = inner
            inner = []
            op.regions.append(region)
            if not line.endswith("{"):
                break
        self.scope = outer
        line, location = _without_location(line)
        op.line = self.line_of(location)
        if line.startswith("})"):
            types = _result_types(name, _type_part(line[2:])[1])
        self.give(op, results, types)
        return op


def _constant(text: str, element: str) -> Any:
    """Read a number as MLIR prints it; floats without an exact decimal form are bits in hexadecimal digits."""
    if text.startswith("["):
        return [_constant(item, element) for item in _split(text[1:-1])]
    if text in ("true", "false"):
        return text == "true"
    if not element.startswith(("f", "bf")):
        return int(text, 0)
    from bringup.triton.values import float_of_bits, rounded  # imports torch

    if text.startswith("0x"):
        return float_of_bits(int(text, 16), element)
    return rounded(float(text), element)
