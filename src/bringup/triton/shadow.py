"""Optional checks: races between the programs of a launch, and reads of uninitialised memory.

For every element that a launch accesses, the shadow stores the last program that wrote it, the program that read it,
and their source lines. The programs of a launch have no order. An access to an element that another program wrote is a
race, unless both are atomic or the write does not change the value. In kernels with locks the locks order the programs;
locks.py checks that a barrier is between the stores and the release.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bringup.recording.findings import Finding
from bringup.triton.locks import Locks
from bringup.triton.values import Pointer, Value, as_tensor, dtype_of, full, numel

Tensor = torch.Tensor
ATOMIC, SEVERAL = -2, -1

watching = 0  # number of active contexts with checks
trying = False  # True while autotune tries a configuration
_races: list[Finding] = []
_lock = threading.Lock()


@contextmanager
def watched() -> Iterator[None]:
    """Check all launches inside the block."""
    global watching
    watching += 1
    try:
        yield
    finally:
        watching -= 1


def add(finding: Finding) -> None:
    """Add a finding of the running program."""
    with _lock:
        _races.append(finding)


def take() -> list[Finding]:
    """Return the races since the last call."""
    with _lock:
        races = list(_races)
        _races.clear()
    return races


def _typed(content: Tensor, size: int | str) -> Tensor:
    """Return bytes as integers of a size, or of the size of an element type; empty if there are none."""
    count = size if isinstance(size, int) else dtype_of(size).itemsize
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[count]
    return content[: len(content) // count * count].view(kind)


class _Elements:
    """The shadow of an allocation, for elements of one size.

    Attributes:
        name: the argument that reached it first.
        shift: the index of that argument's first element.
    """

    def __init__(self, name: str, shift: int, count: int) -> None:
        self.name, self.shift = name, shift
        self.writer = torch.zeros(count, dtype=torch.int32)  # program + 1, or ATOMIC for several programs with atomics
        self.reader = torch.zeros(count, dtype=torch.int32)  # program + 1, or SEVERAL
        self.write_line = torch.zeros(count, dtype=torch.int16)
        self.read_line = torch.zeros(count, dtype=torch.int16)
        self.first_read = torch.zeros(count, dtype=torch.bool)  # read before the launch wrote it
        self.released = torch.zeros(
            count, dtype=torch.int32
        )  # of kernels with locks: number of the release, see locks.py


class Shadow:
    """The checks of one launch.

    Attributes:
        initial: argument -> source line of a read before the launch wrote to the argument.
        locks: the check of a kernel whose programs run one after the other; None for other kernels.
    """

    def __init__(self, kernel: str, sequential: bool, buffers: dict[int, Any], written: frozenset[int]) -> None:
        self.kernel = kernel
        self.contents = {
            buffer.address: buffer.bytes.clone() for place, buffer in buffers.items() if trying and place in written
        }
        self.marks: dict[int, Tensor] = {}
        self.locks = Locks(kernel) if sequential else None
        self.elements: dict[tuple[int, int], _Elements] = {}
        self.lines: list[str] = [""]
        self.initial: dict[int, str] = {}

    def read(self, ctx: Any, pointer: Pointer, mask: Value, shape: tuple[int, ...]) -> None:
        """Record a load."""
        shadow, index, program, _ = self._lanes(ctx, pointer, mask, shape)
        if not len(index):
            return
        writer = shadow.writer[index]
        self._first_read(ctx, pointer, shadow, index[writer == 0])
        self._report(
            ctx, pointer, index, program, (writer != 0) & (writer != program), "reads", "wrote", shadow, shadow.writer
        )
        if self.locks is not None:
            self.locks.access(shadow, index, int(program[0]), "reads", ctx.line)
            if self.locks.spinning:
                self.locks.wait(self._words(ctx, pointer, index))
        before = shadow.reader[index]
        shadow.reader[index] = torch.where((before == 0) | (before == program), program, SEVERAL).to(torch.int32)
        shadow.reader[index] = torch.where(shadow.reader[index] == program, program, SEVERAL).to(torch.int32)
        shadow.read_line[index] = self._line(ctx.line)

    def write(self, ctx: Any, pointer: Pointer, mask: Value, shape: tuple[int, ...], value: Value) -> None:
        """Record a store, before it is executed."""
        shadow, index, program, chosen = self._lanes(ctx, pointer, mask, shape)
        if not len(index):
            return
        memory, _ = ctx.memory.buffers[pointer.argument].typed(pointer.element)
        stored = full(value, pointer.element, shape, ctx.programs).to(memory.dtype).reshape(-1)
        stored = stored if chosen is None else stored[chosen]
        # Bounds are checked elsewhere.
        inside = (index >= 0) & (index < memory.numel())
        changes = torch.ones_like(inside)
        changes[inside] = memory[index[inside]] != stored[inside]
        writer = shadow.writer[index]
        self._report(
            ctx,
            pointer,
            index,
            program,
            changes & (writer != 0) & (writer != program),
            "writes",
            "wrote",
            shadow,
            shadow.writer,
        )
        reader = shadow.reader[index]
        self._report(
            ctx,
            pointer,
            index,
            program,
            changes & (reader != 0) & (reader != program),
            "writes",
            "reads",
            shadow,
            shadow.reader,
        )
        if self.locks is not None:
            self.locks.access(shadow, index, int(program[0]), "writes", ctx.line)
            if numel(shape) > 1:
                self.locks.store(shadow, index, int(program[0]), ctx.line, self._earlier(shadow, index, program))
        self._unmark(ctx, pointer, index)
        shadow.writer[index] = program
        shadow.write_line[index] = self._line(ctx.line)
        others = shadow.writer[index] != program
        if bool(others.any()):  # several programs store at the same time
            last = torch.zeros(memory.numel(), dtype=memory.dtype)
            last[index] = stored
            self._report(
                ctx, pointer, index, program, others & (last[index] != stored), "writes", "wrote", shadow, shadow.writer
            )

    def atomic(self, ctx: Any, pointer: Pointer, mask: Value, shape: tuple[int, ...]) -> None:
        """Record an atomic."""
        shadow, index, program, _ = self._lanes(ctx, pointer, mask, shape)
        if not len(index):
            return
        writer = shadow.writer[index]
        plain = (writer != 0) & (writer != program) & (writer != ATOMIC)
        self._report(ctx, pointer, index, program, plain, "changes", "wrote", shadow, shadow.writer)
        self._first_read(ctx, pointer, shadow, index[writer == 0])
        self._unmark(ctx, pointer, index)
        if self.locks is not None:
            self.locks.access(shadow, index, int(program[0]), "changes", ctx.line)
            words = self._words(ctx, pointer, index)
            if self.locks.spinning:
                self.locks.wait(words)
            elif len(words) == 1:
                self.locks.release(words[0], int(program[0]), ctx.line)
        shadow.writer[index] = ATOMIC
        shadow.write_line[index] = self._line(ctx.line)

    def _lanes(
        self, ctx: Any, pointer: Pointer, mask: Value, shape: tuple[int, ...]
    ) -> tuple[_Elements, Tensor, Tensor, Tensor | None]:
        """Return the shadow, and for the active lanes their elements, programs + 1 and indices."""
        buffer = ctx.memory.buffers[pointer.argument]
        memory, shift = buffer.typed(pointer.element)
        key = (buffer.address, memory.itemsize)
        if key not in self.elements:
            self.elements[key] = _Elements(buffer.name, shift, memory.numel())
        index = (full(pointer.offset, "i64", shape, ctx.programs).long() + shift).reshape(-1)
        program = (ctx.places() + 1).to(torch.int32).repeat_interleave(max(numel(shape), 1))
        chosen = None
        if mask is not True:
            chosen = torch.nonzero(as_tensor(mask, "i1", len(shape)).expand(ctx.programs, *shape).reshape(-1))[:, 0]
            index, program = index[chosen], program[chosen]
        inside = (index >= 0) & (index < memory.numel())
        if not bool(inside.all()):
            return self.elements[key], index[:0], program[:0], None
        return self.elements[key], index, program, chosen

    def rewrites(self, buffers: dict[int, Any]) -> dict[int, str]:
        """Return argument -> line for arguments with elements that the launch read first and then changed."""
        changed: dict[int, str] = {}
        for place, line in self.initial.items():
            address = buffers[place].address
            if address not in self.contents:
                continue
            for (owner, size), shadow in self.elements.items():
                if owner != address:
                    continue
                differs = _typed(self.contents[address], size) != _typed(buffers[place].bytes, size)
                if bool((shadow.first_read & (shadow.writer != 0) & differs).any()):
                    changed[place] = line
        return changed

    def _first_read(self, ctx: Any, pointer: Pointer, shadow: _Elements, index: Tensor) -> None:
        """Record a read of elements that the launch has not written."""
        if not len(index):
            return
        self.initial.setdefault(pointer.argument, ctx.line)
        shadow.first_read[index] = True
        buffer = ctx.memory.buffers[pointer.argument]
        marks = _typed(self._marks(buffer), pointer.element)
        if len(marks) and bool((marks[index] != 0).any()):
            reads = torch.zeros_like(self._marks(buffer))
            _typed(reads, pointer.element)[index] = marks[index]
            number = torch.ops.bringup.running_allocation(buffer.address)
            torch.ops.bringup.unwritten_read(number, reads, f"triton::{self.kernel}", ctx.line)

    def _unmark(self, ctx: Any, pointer: Pointer, index: Tensor) -> None:
        """Remove the marks of elements that are written (csrc/launch/unwritten.cpp)."""
        marks = _typed(self._marks(ctx.memory.buffers[pointer.argument]), pointer.element)
        if len(marks):
            marks[index] = 0

    def _marks(self, buffer: Any) -> Tensor:
        if buffer.address not in self.marks:
            number = torch.ops.bringup.running_allocation(buffer.address)
            self.marks[buffer.address] = torch.ops.bringup.unwritten_marks(number)
        return self.marks[buffer.address]

    def finish(self) -> None:
        """Add the races that are known at the end of the launch."""
        if self.locks is not None:
            with _lock:
                _races.extend(self.locks.races())

    @staticmethod
    def _words(ctx: Any, pointer: Pointer, index: Tensor) -> list[int]:
        """Return the addresses of elements."""
        buffer = ctx.memory.buffers[pointer.argument]
        memory, _ = buffer.typed(pointer.element)
        return [int(place) * memory.itemsize + buffer.address for place in index.tolist()]

    def _earlier(self, shadow: _Elements, index: Tensor, program: Tensor) -> tuple[int, str, str, str] | None:
        """Return element, program, verb and line of another program's earlier access to one of the elements."""
        for users, lines, verb in (
            (shadow.writer, shadow.write_line, "wrote"),
            (shadow.reader, shadow.read_line, "read"),
        ):
            lanes = torch.nonzero((users[index] != 0) & (users[index] != program))
            if len(lanes):
                place = int(index[int(lanes[0])])
                user = int(users[place])
                who = f"program {user - 1}" if user > 0 else "another program"
                return place - shadow.shift, who, verb, self.lines[int(lines[place])]
        return None

    def _line(self, line: str) -> int:
        if line not in self.lines:
            self.lines.append(line)
        return self.lines.index(line)

    def _report(
        self,
        ctx: Any,
        pointer: Pointer,
        index: Tensor,
        program: Tensor,
        bad: Tensor,
        does: str,
        did: str,
        shadow: _Elements,
        others: Tensor,
    ) -> None:
        if self.locks is not None or not bool(bad.any()):
            return
        lane = int(torch.nonzero(bad)[0])
        place, buffer = int(index[lane]), ctx.memory.buffers[pointer.argument]
        lines = shadow.write_line if others is shadow.writer else shadow.read_line
        other_line, other = self.lines[int(lines[place])], int(others[place])
        other_program = f"program {other - 1}" if other > 0 else "another program"
        _, shift = buffer.typed(pointer.element)
        with _lock:
            _races.append(
                Finding(
                    "race",
                    f"kernel {self.kernel}: program {int(program[lane]) - 1} {does} element {place - shift} of "
                    f"{buffer.name!r} at {ctx.line}, which {other_program} {did} at {other_line}, "
                    "and programs have no order",
                    ctx.line,
                    other_line,
                    "give every program its own elements, use an atomic, or split the kernel in two",
                )
            )
