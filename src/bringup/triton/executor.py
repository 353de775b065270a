"""Runs all programs of a kernel's grid, many at a time.

Note [Divergence]
Divergent control flow uses no masks. Each branch runs on the subset of programs that took it. Its inputs are restricted
to those programs (`restricted`), and its results are merged afterwards (`merged`). A loop with different trip counts
runs with all programs until the first one has finished, then with the remaining ones.

Note [One at a time]
Programs with locks (compare-and-swap, atomics in a while loop) run one after the other, so a lock is always free. A
program that waits for a later one would spin for ever; this is detected and raises an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bringup.errors import BringupError
from bringup.text import short
from bringup.triton import arithmetic, lowering, tiles, ttir, work
from bringup.triton.lowering import Step, addresses
from bringup.triton.memory import Counters, KernelError, Memory
from bringup.triton.ttir import Block, Function, Module, Op, Region, Type
from bringup.triton.values import Pointer, Value, as_tensor, broadcast_shapes, dtype_of, merged, plain, restricted

CHUNK = 256 * 1024  # elements of the largest tile over all programs of a chunk, so that they stay in the L2 cache
MOST_PROGRAMS = 16384  # in a chunk
SPINS = 100_000  # iterations without any change after which a loop counts as endless
Tensor = torch.Tensor
OPERATIONS = (arithmetic, tiles)  # imported to register their lowerings


@dataclass
class Code:
    """A compiled block: its steps with their source lines, and its last operation."""

    number: int
    arguments: list[int]
    steps: list[tuple[Step, str]]
    end: Op
    free: tuple[int, ...] = ()  # values from outside that it or its inner regions read
    special: int = 0  # special functions of one program
    vector: int = 0
    products: tuple[tuple[int, int, int, str], ...] = ()  # m, n, k, dtype


@dataclass
class Context:
    """The programs that run at the same time.

    Attributes:
        programs: the number of programs.
        program: their ids along x, y, z: an integer if all are equal, else a tensor.
        grid: the size of the whole grid.
        index: their linear indices in the grid, x fastest: the first one, or a tensor.
        line: the source line of the current operation.
        accumulator: product -> the tensor that it returned last.
        keeps_old: True if the result of an atomic is read.
    """

    kernel: Kernel
    programs: int
    program: tuple[Value, Value, Value]
    grid: tuple[int, int, int]
    index: Value
    memory: Memory
    counters: Counters
    line: str = ""
    accumulator: dict[int, Tensor] = field(default_factory=dict)
    keeps_old: bool = False

    def used(self, value: int) -> bool:
        """Return True if an operation reads a value."""
        return value in self.kernel.used

    def accumulates(self, result: int) -> bool:
        """Return True if a product is added only to its own result of the previous iteration."""
        return result in self.kernel.accumulators

    def places(self) -> Tensor:
        """Return the linear indices of the programs in the grid."""
        if isinstance(self.index, Tensor):
            return self.index
        return torch.arange(self.index, self.index + self.programs)

    def ids(self, program: int) -> tuple[int, int, int]:
        """Return the ids of one of the programs."""
        place = int(self.places()[program])
        x, y, _ = self.grid
        return place % x, place // x % y, place // (x * y)

    def text(self, program: int = 0) -> str:
        """Return the program and its source line for a message."""
        where = f", at {self.line}" if self.line else ""
        return f", program {self.ids(program)} of grid {self.grid}{where}"

    def failed(self, message: str, program: int) -> KernelError:
        """Return an error of a program."""
        return KernelError(message + self.text(program))

    def part(self, lanes: Tensor) -> Context:
        """Return a context for some of the programs."""
        x, y, z = (restricted(value, lanes, self.programs) for value in self.program)
        return Context(
            self.kernel,
            len(lanes),
            (x, y, z),
            self.grid,
            self.places()[lanes],
            self.memory,
            self.counters,
            self.line,
        )


class Kernel:
    """A compiled kernel.

    Raises:
        BringupError: it uses an operation that bringup does not support; the message has the source line.
    """

    def __init__(self, module: Module) -> None:
        self.module = module
        self.name = module.kernel.name
        self.used: set[int] = set()
        self.accumulators: set[int] = set()
        self.codes: list[Code] = []
        self.compiling = ""  # the operation that is being compiled
        try:
            self._compile(module)
        except ttir.UNREADABLE as error:
            reason = short(f"{type(error).__name__}: {error}")
            raise BringupError(
                f"{self.name}: bringup cannot read {self.compiling or 'this kernel'} ({reason})"
            ) from error

    def _compile(self, module: Module) -> None:
        self.bodies = {name: _Body(self, function) for name, function in module.functions.items()}
        self.body = self.bodies[module.kernel.name]
        functions = list(module.functions.values())
        self.largest = max((kind.numel for function in functions for kind in function.types), default=1)
        self.written = _written(module.kernel, functions)
        self.sequential = any(_takes_turns(op) for function in functions for op in function.walk())
        types = module.kernel.types
        self.pointers = {place for place, value in enumerate(module.kernel.arguments) if types[value].pointer}
        self.follows = any(op.name == "tt.int_to_ptr" for function in functions for op in function.walk())

    def run(self, grid: tuple[int, int, int], arguments: Sequence[Value], memory: Memory) -> Counters:
        """Run every program of a grid.

        Args:
            grid: programs along x, y, z.
            arguments: the arguments without constants: `Pointer`s, integers, floats.
            memory: the memory behind the pointers.

        Raises:
            KernelError: an access is out of bounds, or an assertion fails.
        """
        counters = Counters()
        total = grid[0] * grid[1] * grid[2]
        chunk = 1 if self.sequential else min(max(CHUNK // self.largest, 1), MOST_PROGRAMS)
        for start in range(0, total, chunk):
            count = min(chunk, total - start)
            ctx = Context(self, count, _ids(start, count, grid), grid, start, memory, counters)
            try:
                self.body.run(list(arguments), ctx)
            except BringupError:
                raise
            except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
                raise KernelError(f"{self.name}: {error}{ctx.text()}") from error
        return counters


def _ids(start: int, count: int, grid: tuple[int, int, int]) -> tuple[Value, Value, Value]:
    x, y, _ = grid
    if count == 1:
        return start % x, start // x % y, start // (x * y)
    places = torch.arange(start, start + count)
    last = start + count - 1
    return (
        0 if x == 1 else (places % x).int(),
        start // x % y if start // x == last // x else (places // x % y).int(),
        start // (x * y) if start // (x * y) == last // (x * y) else (places // (x * y)).int(),
    )


def _takes_turns(op: Op) -> bool:
    """Return True if programs run one after the other because of this operation; see Note [One at a time]."""
    if op.name == "tt.atomic_cas":
        return True
    inner = [o for region in op.regions for block in region.blocks for o in block.ops]
    waits = {"tt.atomic_rmw", "tt.atomic_cas"}
    return op.name == "scf.while" and any(o.name in waits or o.attributes.get("isVolatile") is True for o in inner)


def _written(kernel: Function, functions: list[Function]) -> frozenset[int]:
    """Return the pointer arguments through which the kernel may write."""
    everything = frozenset(range(len(kernel.arguments)))
    if len(functions) > 1:
        return everything
    types = kernel.types
    origins: dict[int, frozenset[int]] = {
        value: frozenset([place]) for place, value in enumerate(kernel.arguments) if types[value].pointer
    }
    ops = list(kernel.walk())
    changed = True
    while changed:  # loops carry pointers; every round follows them through one more loop
        changed = False
        for op in ops:
            values = [
                *op.operands,
                *(v for region in op.regions for b in region.blocks for o in b.ops[-1:] for v in o.operands),
            ]
            sources = frozenset().union(*(origins.get(v, frozenset()) for v in values if types[v].pointer))
            inner = [v for region in op.regions for block in region.blocks for v in block.arguments]
            branches = [v for _, passed in op.targets for v in passed if types[v].pointer]
            if branches or op.name == "tt.int_to_ptr":
                return everything
            for value in (*op.results, *inner):
                before = origins.get(value)
                if types[value].pointer and (before is None or not sources <= before):
                    origins[value] = sources | (before or frozenset())
                    changed = True
    written: frozenset[int] = frozenset()
    for op in ops:
        if op.name in ("tt.store", "tt.atomic_rmw", "tt.atomic_cas"):
            written |= origins.get(op.operands[0], everything)
    return written


class _Body:
    """A compiled function."""

    def __init__(self, kernel: Kernel, function: Function) -> None:
        self.kernel, self.function, self.types = kernel, function, function.types
        self.regions: dict[int, Code] = {}
        uses: dict[int, int] = {}
        for op in function.walk():
            for value in (*op.operands, *(v for _, passed in op.targets for v in passed)):
                uses[value] = uses.get(value, 0) + 1
        kernel.used |= set(uses)
        for op in function.walk():
            if op.name == "scf.for":
                kernel.accumulators |= _accumulators(op, uses)
        self.blocks = {block.label: self.code(block) for block in function.body.blocks}
        self.entry = self.blocks[function.body.blocks[0].label]

    def run(self, arguments: list[Value], ctx: Context) -> list[Value]:
        """Run the function from the entry to its return; return its values."""
        env: list[Value] = [None] * len(self.types)
        for value, argument in zip(self.function.arguments, arguments, strict=True):
            env[value] = argument
        return self._from(self.entry, env, ctx)

    def _from(self, code: Code, env: list[Value], ctx: Context) -> list[Value]:
        while True:
            run(code, env, ctx)
            end = code.end
            if end.name == "tt.return":
                return [env[value] for value in end.operands]
            place = 0
            if end.name == "cf.cond_br":
                chosen = _uniform(env[end.operands[0]])
                if isinstance(chosen, Tensor):
                    return self._both(end, chosen, env, ctx)
                place = 0 if chosen else 1
            code = self._enter(end, place, env)

    def _enter(self, end: Op, place: int, env: list[Value]) -> Code:
        label, passed = end.targets[place]
        code = self.blocks[label]
        for value, argument in zip(code.arguments, [env[v] for v in passed], strict=True):
            env[value] = argument
        return code

    def _both(self, end: Op, chosen: Tensor, env: list[Value], ctx: Context) -> list[Value]:
        pieces: list[tuple[Tensor, list[Value]]] = []
        for place, lanes in enumerate((torch.nonzero(chosen)[:, 0], torch.nonzero(~chosen)[:, 0])):
            inner = [restricted(value, lanes, ctx.programs) for value in env]
            pieces.append((lanes, self._from(self._enter(end, place, inner), inner, ctx.part(lanes))))
        types = [
            self.types[v] for code in self.blocks.values() if code.end.name == "tt.return" for v in code.end.operands
        ]
        return [
            _together([(lanes, values[i]) for lanes, values in pieces], types[i], ctx) for i in range(len(pieces[0][1]))
        ]

    # ---- compiling

    def code(self, block: Block) -> Code:
        """Compile a block."""
        number = len(self.kernel.codes)
        code = Code(number, block.arguments, [], block.ops[-1])
        self.kernel.codes.append(code)
        defined, read = set(block.arguments), set()
        products = []
        for op in block.ops:
            values = {*op.operands, *(v for _, passed in op.targets for v in passed)}
            for region in op.regions:
                for inner in region.blocks:
                    values |= set(self.regions_free(inner))
            read |= values - defined
            defined |= set(op.results)
            if op is block.ops[-1]:
                break
            code.steps.append((self.step(op), op.line))
            if op.name == "tt.dot_scaled":
                products.append(work.scaled_product(op, self.types))
            elif op.name == "tt.dot":
                a, kind = self.types[op.operands[0]], self.types[op.results[0]]
                batch = kind.shape[0] if len(kind.shape) == 3 else 1
                m, n = kind.shape[-2:]
                products += [(m, n, a.shape[-1], a.element)] * batch
            else:
                code.special += work.special_functions(op, self.types)
                code.vector += work.vector_operations(op, self.types)
        code.free, code.products = tuple(sorted(read)), tuple(products)
        return code

    def regions_free(self, block: Block) -> set[int]:
        """Return the values that a block reads but does not define."""
        defined, read = set(block.arguments), set()
        for op in block.ops:
            values = set(op.operands)
            for region in op.regions:
                for inner in region.blocks:
                    values |= self.regions_free(inner)
            read |= values - defined
            defined |= set(op.results)
        return read

    def step(self, op: Op) -> Step:
        """Compile an operation."""
        self.kernel.compiling = f"{op.name}, used at {op.line or 'an unknown line'}"
        structured = {"scf.for": self._for, "scf.if": self._if, "scf.while": self._while, "tt.call": self._call}
        if op.name in structured:
            return structured[op.name](op)
        if op.name in ("tt.reduce", "tt.scan"):
            return self._reduce(op) if op.name == "tt.reduce" else self._scan(op)
        return lowering.lower(op, self.types)

    def _region(self, region: Region) -> Code:
        if len(region.blocks) != 1:
            raise BringupError("a return inside a loop is not supported by Triton either")
        return self.code(region.blocks[0])

    def _merge(
        self, results: list[int], pieces: list[tuple[Tensor, list[Value]]], env: list[Value], ctx: Context
    ) -> None:
        for place, result in enumerate(results):
            parts = [(lanes, values[place]) for lanes, values in pieces]
            env[result] = _together(parts, self.types[result], ctx)

    # ---- control flow

    def _for(self, op: Op) -> Step:
        body = self._region(op.regions[0])
        lower, upper, stride, *init = op.operands
        induction, *carried_arguments = body.arguments
        yields = body.end.operands
        accumulators = [
            inner.results[0]
            for inner in op.regions[0].ops
            if inner.name == "tt.dot" and inner.results[0] in self.kernel.accumulators
        ]
        dtype = dtype_of(self.types[induction].element)

        def iterate(
            first: int, last: int, low: Value, step_: Value, values: list[Value], env: list[Value], ctx: Context
        ) -> Any:
            plain_start = isinstance(low, int) and isinstance(step_, int)
            for i in range(first, last):
                env[induction] = low + i * step_ if plain_start else torch.as_tensor(low + i * step_).to(dtype)
                for argument, value in zip(carried_arguments, values, strict=True):
                    env[argument] = value
                run(body, env, ctx)
                values = [env[value] for value in yields]
            return values

        def step(env: list[Value], ctx: Context) -> None:
            low, high, by = _uniform(env[lower]), _uniform(env[upper]), _uniform(env[stride])
            values = [env[value] for value in init]
            for result in accumulators:
                ctx.accumulator.pop(result, None)
            if isinstance(low, int) and isinstance(high, int) and isinstance(by, int):
                values = iterate(0, len(range(low, high, by)), low, by, values, env, ctx)
                for result, value in zip(op.results, values, strict=True):
                    env[result] = value
                return
            trips = torch.div(torch.as_tensor(high - low + by - 1), by, rounding_mode="floor").clamp(min=0)
            trips = trips.reshape(-1).expand(ctx.programs)
            ids = torch.arange(ctx.programs)
            pieces: list[tuple[Tensor, list[Value]]] = []
            done, inner, part = 0, env, ctx
            while True:
                least = int(trips.min())
                values = iterate(done, least, low, by, values, inner, part)
                done = least
                over = torch.nonzero(trips == least)[:, 0]
                pieces.append((ids[over], [restricted(value, over, part.programs) for value in values]))
                lanes = torch.nonzero(trips != least)[:, 0]
                if not len(lanes):
                    break
                source, inner = inner, list(inner)
                for value in body.free:
                    inner[value] = restricted(source[value], lanes, part.programs)
                values = [restricted(value, lanes, part.programs) for value in values]
                low, by = (restricted(value, lanes, part.programs) for value in (low, by))
                trips, ids, part = trips[lanes], ids[lanes], part.part(lanes)
            self._merge(op.results, pieces, env, ctx)

        return step

    def _if(self, op: Op) -> Step:
        ways = [self._region(region) for region in op.regions]
        condition = op.operands[0]

        def step(env: list[Value], ctx: Context) -> None:
            chosen = _uniform(env[condition])
            if not isinstance(chosen, Tensor):
                if not chosen and len(ways) < 2:
                    return
                way = ways[0 if chosen else 1]
                run(way, env, ctx)
                for result, value in zip(op.results, way.end.operands, strict=False):
                    env[result] = env[value]
                return
            pieces: list[tuple[Tensor, list[Value]]] = []
            for way, lanes in zip(ways, (torch.nonzero(chosen)[:, 0], torch.nonzero(~chosen)[:, 0]), strict=False):
                inner = list(env)
                for value in way.free:
                    inner[value] = restricted(env[value], lanes, ctx.programs)
                run(way, inner, ctx.part(lanes))
                pieces.append((lanes, [inner[value] for value in way.end.operands]))
            self._merge(op.results, pieces, env, ctx)

        return step

    def _while(self, op: Op) -> Step:
        before, after = self._region(op.regions[0]), self._region(op.regions[1])
        condition, *passes = before.end.operands
        free = set(before.free) | set(after.free)

        def step(env: list[Value], ctx: Context) -> None:
            values = [env[value] for value in op.operands]
            ids = torch.arange(ctx.programs)
            pieces: list[tuple[Tensor, list[Value]]] = []
            inner, part = env, ctx
            for spins in range(1 << 62):
                for argument, value in zip(before.arguments, values, strict=True):
                    inner[argument] = value
                run(before, inner, part)
                passed = [inner[value] for value in passes]
                goes_on = _uniform(inner[condition])
                if isinstance(goes_on, Tensor):
                    over = torch.nonzero(~goes_on)[:, 0]
                    pieces.append((ids[over], [restricted(value, over, part.programs) for value in passed]))
                    lanes = torch.nonzero(goes_on)[:, 0]
                    source, inner = inner, list(inner)
                    for value in free:
                        inner[value] = restricted(source[value], lanes, part.programs)
                    passed = [restricted(value, lanes, part.programs) for value in passed]
                    ids, part = ids[lanes], part.part(lanes)
                elif not goes_on:
                    pieces.append((ids, passed))
                    break
                if spins == SPINS and not op.results and not passed:
                    raise part.failed(
                        f"{ctx.kernel.name}: a loop spins for ever: it waits for a program that has not run. Programs "
                        "run one after the other, so barriers over the whole grid are not supported",
                        0,
                    )
                for argument, value in zip(after.arguments, passed, strict=True):
                    inner[argument] = value
                run(after, inner, part)
                values = [inner[value] for value in after.end.operands]
            if len(pieces) == 1:
                for result, value in zip(op.results, pieces[0][1], strict=True):
                    env[result] = value
            else:
                self._merge(op.results, pieces, env, ctx)

        return _spinning(step) if _takes_turns(op) and _stores_nothing(op) else step

    def _call(self, op: Op) -> Step:
        name = op.words[0]

        def step(env: list[Value], ctx: Context) -> None:
            values = self.kernel.bodies[name].run([env[value] for value in op.operands], ctx)
            for result, value in zip(op.results, values, strict=True):
                env[result] = value

        return step

    # ---- reductions and scans

    def _combine(self, op: Op) -> tuple[str, Callable[..., list[Tensor]]]:
        """Return the name of the combining operation if it is a single one, and a function that combines two lists."""
        code = self._region(op.regions[0])
        self.kernel.codes.pop()  # its cost is part of the reduction
        count = len(op.operands)
        left, right = code.arguments[:count], code.arguments[count:]
        ops = op.regions[0].ops
        simple = ops[0].name if len(ops) == 2 and ops[0].operands == [*left, *right] else ""

        def combine(a: list[Tensor], b: list[Tensor], env: list[Value], ctx: Context) -> list[Tensor]:
            for value, operand in zip((*left, *right), (*a, *b), strict=True):
                env[value] = operand
            for step, line in code.steps:
                ctx.line = line or ctx.line
                step(env, ctx)
            results = [plain(env[value]) for value in code.end.operands]
            return [
                value if isinstance(value, Tensor) else torch.full_like(one, value)
                for value, one in zip(results, a, strict=True)
            ]

        return simple, combine

    def _sources(self, op: Op, env: list[Value], ctx: Context, axis: int) -> list[Tensor]:
        """Return the tiles, expanded along an axis and to the same number of programs."""
        tiles = []
        for value in op.operands:
            kind = self.types[value]
            tile = as_tensor(env[value], kind.element, len(kind.shape))
            tiles.append(tile)
        sizes = broadcast_shapes(*(tile.shape for tile in tiles))
        kind = self.types[op.operands[0]]
        sizes = tuple(kind.shape[axis] if place == axis + 1 else size for place, size in enumerate(sizes))
        return [tile.expand(sizes) for tile in tiles]

    def _reduce(self, op: Op) -> Step:
        axis = int(op.attributes["axis"])
        simple, combine = self._combine(op)
        fast = _REDUCTIONS.get(simple) if len(op.operands) == 1 else None
        kind = self.types[op.operands[0]]
        is_scalar = not self.types[op.results[0]].shape

        def step(env: list[Value], ctx: Context) -> None:
            tiles = self._sources(op, env, ctx, axis)
            if fast is not None and (kind.element != "i1" or simple in ("arith.ori", "arith.andi")):
                reduced = [fast(tiles[0], axis + 1)]
            else:
                tiles = [tile.movedim(axis + 1, -1) for tile in tiles]
                while tiles[0].shape[-1] > 1:
                    tiles = combine([t[..., 0::2] for t in tiles], [t[..., 1::2] for t in tiles], env, ctx)
                reduced = [tile[..., 0] for tile in tiles]
            for result, value in zip(op.results, reduced, strict=True):
                is_number = is_scalar and value.numel() == 1 and not value.is_floating_point()
                env[result] = value.item() if is_number else value

        return step

    def _scan(self, op: Op) -> Step:
        axis, reverse = int(op.attributes["axis"]), bool(op.attributes["reverse"])
        simple, combine = self._combine(op)
        fast = _SCANS.get(simple) if len(op.operands) == 1 else None

        def step(env: list[Value], ctx: Context) -> None:
            tiles = self._sources(op, env, ctx, axis)
            if reverse:
                tiles = [tile.flip(axis + 1) for tile in tiles]
            if fast is not None and tiles[0].dtype != torch.bool:
                tiles = [fast(tiles[0], axis + 1)]
            else:
                tiles = [tile.movedim(axis + 1, -1) for tile in tiles]
                distance, size = 1, tiles[0].shape[-1]
                while distance < size:
                    combined = combine(
                        [t[..., :-distance] for t in tiles], [t[..., distance:] for t in tiles], env, ctx
                    )
                    tiles = [
                        torch.cat([t[..., :distance], m.to(t.dtype)], -1) for t, m in zip(tiles, combined, strict=True)
                    ]
                    distance *= 2
                tiles = [tile.movedim(-1, axis + 1) for tile in tiles]
            if reverse:
                tiles = [tile.flip(axis + 1) for tile in tiles]
            for result, tile in zip(op.results, tiles, strict=True):
                env[result] = tile

        return step


def _stores_nothing(op: Op) -> bool:
    return not any(o.name == "tt.store" for region in op.regions for block in region.blocks for o in block.ops)


def _spinning(step: Step) -> Step:
    """Return a step that tells the shadow that its atomics wait for other programs."""

    def spin(env: list[Value], ctx: Context) -> None:
        locks = ctx.memory.shadow and ctx.memory.shadow.locks
        if locks is None:
            return step(env, ctx)
        locks.spinning += 1
        try:
            step(env, ctx)
        finally:
            locks.spinning -= 1

    return spin


def run(code: Code, env: list[Value], ctx: Context) -> None:
    """Run a block for all programs of a context."""
    ctx.counters.blocks[code.number] += ctx.programs
    for step, line in code.steps:
        ctx.line = line
        step(env, ctx)


def _uniform(value: Value) -> Value:
    """Return a number if all programs have the same value, else the value unchanged."""
    value = plain(value)
    if not isinstance(value, Tensor):
        return value
    flat = value.reshape(-1)
    first = flat[0]
    if flat.numel() == 1 or bool((flat == first).all()):
        return first.item()
    return flat


def _together(parts: list[tuple[Tensor, Value]], kind: Type, ctx: Context) -> Value:
    """Merge the values of disjoint sets of programs. Pointers to different arguments become addresses."""
    if kind.pointer and len({value.argument for _, value in parts}) > 1:
        parts = [(lanes, Pointer(-1, addresses(value, ctx), value.element)) for lanes, value in parts]
    return merged(parts, "i64" if kind.pointer else kind.element, kind.shape)


def _accumulators(loop: Op, uses: dict[int, int]) -> set[int]:
    """Return the products of a loop that are added to their own previous result."""
    block = loop.regions[0].blocks[0]
    yields = block.ops[-1].operands
    accumulators = set()
    for op in block.ops:
        if op.name != "tt.dot":
            continue
        old, result = op.operands[2], op.results[0]
        if old in block.arguments[1:] and uses.get(old) == 1 and uses.get(result) == 1:
            place = block.arguments.index(old) - 1
            if yields[place] == result:
                accumulators.add(result)
    return accumulators


def _largest(tile: Tensor, axis: int) -> Tensor:
    largest = tile.amax(axis)
    if tile.is_floating_point() and bool(torch.isnan(largest).any()):
        largest = torch.where(torch.isnan(tile), -torch.inf, tile).amax(axis)
        largest = torch.where(torch.isnan(tile).all(axis), torch.nan, largest)
    return largest


def _least(tile: Tensor, axis: int) -> Tensor:
    return -_largest(-tile, axis)


_REDUCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "arith.addf": lambda tile, axis: tile.sum(axis, dtype=tile.dtype),
    "arith.addi": lambda tile, axis: tile.sum(axis, dtype=tile.dtype),
    "arith.mulf": lambda tile, axis: tile.prod(axis),
    "arith.maxnumf": _largest,
    "arith.minnumf": _least,
    "arith.maximumf": lambda tile, axis: tile.amax(axis),
    "arith.minimumf": lambda tile, axis: tile.amin(axis),
    "arith.maxsi": lambda tile, axis: tile.amax(axis),
    "arith.minsi": lambda tile, axis: tile.amin(axis),
}
_SCANS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "arith.addf": lambda tile, axis: tile.cumsum(axis, dtype=tile.dtype),
    "arith.addi": lambda tile, axis: tile.cumsum(axis, dtype=tile.dtype),
    "arith.mulf": lambda tile, axis: tile.cumprod(axis, dtype=tile.dtype),
}


def totals(kernel: Kernel, counters: Counters) -> dict[str, Any]:
    """Return the work of a launch over all programs, in the form of a trace."""
    special = vector = 0
    products: dict[tuple[int, int, int, str], int] = {}
    for code in kernel.codes:
        times = counters.blocks.get(code.number, 0)
        special += times * code.special
        vector += times * code.vector
        for product in code.products:
            products[product] = products.get(product, 0) + times
    touched = {argument: last - first for argument, (first, last) in counters.spans.items()}
    return {
        "loaded": sum(counters.loaded.values()),
        "stored": sum(counters.stored.values()),
        "read_once": sum(min(count, touched.get(argument, count)) for argument, count in counters.loaded.items()),
        "written_once": sum(min(count, touched.get(argument, count)) for argument, count in counters.stored.items()),
        "atomics": counters.atomics,
        "special": special,
        "vector": vector,
        "tile": kernel.largest,
        "products": [[*product, count] for product, count in sorted(products.items()) if count],
    }
