"""Loads, stores and atomics of many programs at once. Bounds are always checked.

The bounds are those of the argument's allocation. Tiles that are contiguous along an axis are read and written in rows,
at the speed of memcpy. Other tiles are read and written element by element.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bringup.errors import BringupError
from bringup.triton.values import (
    Affine,
    Compare,
    Mask,
    Pointer,
    Value,
    as_tensor,
    broadcast_shapes,
    dtype_of,
    extremes,
    full,
    needed,
    numel,
    plain,
)


class KernelError(BringupError):
    """A kernel made an invalid access or failed an assertion; the message has the program and the source line."""


class Buffer:
    """The memory behind a pointer argument.

    Attributes:
        name: name of the argument.
        bytes: its complete allocation, as a CPU tensor of bytes.
        start: offset of the argument in the allocation, in bytes.
        address: device address of the allocation.
    """

    def __init__(self, name: str, memory: torch.Tensor, start: int, address: int) -> None:
        self.name, self.bytes, self.start, self.address = name, memory, start, address
        self._views: dict[str, tuple[torch.Tensor, int]] = {}

    def typed(self, element: str) -> tuple[torch.Tensor, int]:
        """Return the memory as elements, and the index of the argument's first element."""
        if element not in self._views:
            dtype = dtype_of(element)
            size = dtype.itemsize
            skip, total = self.start % size, self.bytes.numel()
            count = (total - skip) // size
            aligned = self.bytes if skip == 0 and count * size == total else self.bytes[skip : skip + count * size]
            self._views[element] = aligned.view(dtype), (self.start - skip) // size
        return self._views[element]


@dataclass
class Counters:
    """The counters of a launch.

    Attributes:
        loaded, stored: bytes by argument, without masked lanes.
        spans: by argument, the range of bytes [first, last) that was accessed.
        atomics: number of elements that atomics changed.
        blocks: for each block of the kernel, the number of programs that ran it.
    """

    loaded: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    stored: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    atomics: int = 0
    blocks: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def touch(self, argument: int, low: int, high: int, size: int) -> None:
        """Record that elements from `low` to `high` were read or written."""
        span = self.spans.get(argument)
        low, high = low * size, (high + 1) * size
        self.spans[argument] = (low, high) if span is None else (min(span[0], low), max(span[1], high))


class Memory:
    """The memory behind the kernel's pointers."""

    def __init__(self, buffers: dict[int, Buffer], written: frozenset[int], shadow: Any = None) -> None:
        self.buffers = buffers
        changed = {buffers[argument].address for argument in written if argument in buffers}
        # Arguments that the launch does not write can be read in place.
        self.constant = {argument for argument, buffer in buffers.items() if buffer.address not in changed}
        self.shadow = shadow

    # ---- addresses

    def resolve(self, pointer: Pointer, mask: Value, at: Any, access: str) -> list[tuple[Pointer, Value]]:
        """Return the allocations that contain plain addresses, with a pointer and a mask for each."""
        if pointer.argument >= 0:
            return [(pointer, mask)]
        size = dtype_of(pointer.element).itemsize
        address = as_tensor(pointer.offset, "i64", 0)
        active = plain(mask)
        enabled = torch.ones_like(address, dtype=torch.bool) if active is None or active is True else active
        enabled = torch.broadcast_to(torch.as_tensor(enabled), broadcast_shapes(enabled.shape, address.shape))
        left = enabled.clone()
        parts: list[tuple[Pointer, Value]] = []
        while left.any():
            first = int(address.expand_as(left)[left][0])
            argument = self._holding(first)
            if argument is None:
                raise KernelError(f"{access} address {first:#x}, which is not memory of the chip{at.text()}")
            buffer = self.buffers[argument]
            inside = left & (address >= buffer.address) & (address < buffer.address + len(buffer.bytes))
            parts.append(
                (Pointer(argument, (address - buffer.address - buffer.start) // size, pointer.element), inside)
            )
            left &= ~inside
        return parts

    def _holding(self, address: int) -> int | None:
        for argument, buffer in self.buffers.items():
            if buffer.address <= address < buffer.address + len(buffer.bytes):
                return argument
        bytes_, base = torch.ops.bringup.allocation_at(address)
        if base < 0:
            return None
        number = 1000 + len(self.buffers)
        self.buffers[number] = Buffer("an address", bytes_, 0, base)
        return number

    # ---- loads

    def load(self, ctx: Any, pointer: Pointer, mask: Value, other: Value, shape: tuple[int, ...]) -> Value:
        """Return a tile; masked lanes have the value `other`, or 0."""
        mask = needed(mask)
        element = pointer.element
        dtype = dtype_of(element)
        if mask is False:
            return 0 if other is None else other
        if pointer.argument < 0:
            total = None
            for part, inside in self.resolve(pointer, mask, ctx, "a load reads"):
                piece = self.load(ctx, part, inside, other if total is None else total, shape)
                total = piece
            return total if total is not None else (0 if other is None else other)
        memory, shift = self.buffers[pointer.argument].typed(element)
        offset = pointer.offset
        if self.shadow is not None:
            self.shadow.read(ctx, pointer, mask, shape)
        if isinstance(offset, Affine):
            axis = _contiguous(offset)
            if axis is not None:
                length, prefix = offset.shape[axis], mask is not True and _prefix(mask, axis)
                if mask is True or prefix is not False:
                    count = length if mask is True else int(prefix)
                    rows = self._rows(ctx, pointer, offset, axis, count, memory, shift)
                    if rows is not None:
                        ctx.counters.loaded[pointer.argument] += (
                            ctx.programs * numel(shape) // length * count * dtype.itemsize
                        )
                        return _padded(rows, axis, length, count, other, dtype)
        index = plain(offset)
        ctx.counters.loaded[pointer.argument] += lanes(mask, shape, ctx.programs) * dtype.itemsize
        if not isinstance(index, torch.Tensor):
            index = torch.full((1,) * (len(shape) + 1), index)
        if mask is True:
            self.check(ctx, pointer, index, None, memory, shift, "load")
            return memory.index_select(0, (index.long() + shift).flatten()).view(index.shape)
        active = as_tensor(mask, "i1", len(shape))
        safe = torch.where(active, index.long(), -shift)
        if memory.numel() == 0 and active.any():
            self.check(ctx, pointer, index, active, memory, shift, "load")
        self.check(ctx, pointer, safe, active, memory, shift, "load", index)
        values = (
            memory.index_select(0, (safe.long() + shift).flatten()).view(safe.shape)
            if memory.numel()
            else torch.zeros(safe.shape, dtype=dtype)
        )
        filler = 0 if other is None else plain(other)
        if isinstance(filler, torch.Tensor):
            filler = filler.to(dtype)
        if dtype.itemsize == 1 and dtype.is_floating_point:
            filler = torch.as_tensor(filler).to(dtype).view(torch.uint8)
            return torch.where(active, values.view(torch.uint8), filler).view(dtype)
        return torch.where(active, values, filler)

    def _rows(
        self, ctx: Any, pointer: Pointer, offset: Affine, axis: int, count: int, memory: torch.Tensor, shift: int
    ) -> torch.Tensor | None:
        """Read rows of `count` elements; None if they are out of bounds, so that the caller checks every element."""
        if count == 0:
            return None
        strides = {other: stride for other, stride in offset.strides.items() if other != axis}
        low, high = Affine(offset.base, strides, offset.shape, offset.element).bounds()
        low, high = low + shift, high + shift + count - 1
        if low < 0 or high >= memory.numel():
            return None
        ctx.counters.touch(pointer.argument, low, high, memory.itemsize)
        sizes = [offset.shape[a] if a in strides else count if a == axis else 1 for a in range(len(offset.shape))]
        steps = [strides.get(a, 1 if a == axis else 0) for a in range(len(offset.shape))]
        view = _tiles(memory, offset.base, shift, sizes, steps)
        if view is not None:
            return view if pointer.argument in self.constant else view.clone()
        base = offset.base
        assert isinstance(base, torch.Tensor)
        inner = numel(tuple(sizes))
        starts = base.flatten().tolist() if base.numel() == base.shape[0] and inner >= 512 else None
        if starts is not None:  # a tile for each program
            return torch.stack([memory.as_strided(sizes, steps, start + shift) for start in starts])
        rows = Affine(base, strides, offset.shape, offset.element).tensor().long() + shift
        windows = memory.as_strided((memory.numel() - count + 1, count), (1, 1))
        read = windows.index_select(0, rows.flatten()).view(*rows.shape, count)
        return read.squeeze(axis + 1).movedim(-1, axis + 1) if rows.dim() > 1 else read

    # ---- stores

    def store(self, ctx: Any, pointer: Pointer, value: Value, mask: Value, shape: tuple[int, ...]) -> None:
        """Write a tile."""
        mask = needed(mask)
        if mask is False:
            return
        if pointer.argument < 0:
            for part, inside in self.resolve(pointer, mask, ctx, "a store writes"):
                self.store(ctx, part, value, inside, shape)
            return
        element = pointer.element
        dtype = dtype_of(element)
        memory, shift = self.buffers[pointer.argument].typed(element)
        offset = pointer.offset
        if self.shadow is not None:
            self.shadow.write(ctx, pointer, mask, shape, value)
        tile = full(value, element, shape, ctx.programs)
        if tile.dtype != dtype:
            tile = tile.to(dtype)
        if isinstance(offset, Affine):
            axis = _contiguous(offset)
            if axis is not None:
                length, prefix = shape[axis], mask is not True and _prefix(mask, axis)
                count = length if mask is True else int(prefix) if prefix is not False else 0
                if count and self._write_rows(ctx, pointer, offset, axis, count, memory, shift, tile):
                    ctx.counters.stored[pointer.argument] += (
                        ctx.programs * numel(shape) // length * count * dtype.itemsize
                    )
                    return
        ctx.counters.stored[pointer.argument] += lanes(mask, shape, ctx.programs) * dtype.itemsize
        index = as_tensor(offset, "i64", len(shape))
        if mask is True:
            self.check(ctx, pointer, index, None, memory, shift, "store")
            index = index.expand(ctx.programs, *shape)
            put(memory, (index.long() + shift).flatten(), tile.flatten())
            return
        active = as_tensor(mask, "i1", len(shape)).expand(ctx.programs, *shape)
        index = index.expand(ctx.programs, *shape)[active]
        if len(index):
            self.check(ctx, pointer, index, active, memory, shift, "store", index)
            put(memory, index.long() + shift, tile[active])

    def _write_rows(
        self,
        ctx: Any,
        pointer: Pointer,
        offset: Affine,
        axis: int,
        count: int,
        memory: torch.Tensor,
        shift: int,
        tile: torch.Tensor,
    ) -> bool:
        shape = offset.shape
        strides = {other: stride for other, stride in offset.strides.items() if other != axis}
        low, high = Affine(offset.base, strides, shape, offset.element).bounds()
        low, high = low + shift, high + shift + count - 1
        if (
            low < 0
            or high >= memory.numel()
            or any(a not in strides and a != axis and shape[a] > 1 for a in range(len(shape)))
        ):
            return False
        if isinstance(offset.base, torch.Tensor) and offset.base.numel() != offset.base.shape[0]:
            return False
        if any(stride == 0 and shape[a] > 1 for a, stride in strides.items()):
            return False
        sizes = [count if a == axis else shape[a] for a in range(len(shape))]
        steps = [strides.get(a, 1) for a in range(len(shape))]
        tile = tile.narrow(axis + 1, 0, count)
        view = _tiles(memory, offset.base, shift, sizes, steps)
        if view is not None and ((view.shape[0] > 1 and view.stride(0) == 0) or view.shape[0] == 1):
            view, tile = view[-1:], tile[-1:]  # all programs write to the same place; the last value remains
        if view is not None:
            view.copy_(tile)
        else:
            starts = offset.base.flatten().tolist()
            if numel(tuple(sizes)) < 128:
                return False
            for place, start in enumerate(starts):
                memory.as_strided(sizes, steps, start + shift).copy_(tile[place])
        ctx.counters.touch(pointer.argument, low, high, memory.itemsize)
        return True

    # ---- atomics

    def atomic(self, ctx: Any, kind: str, pointer: Pointer, value: Value, mask: Value, shape: tuple[int, ...]) -> Value:
        """Read, change and write every lane in order; return the values before each change."""
        element = pointer.element
        dtype = dtype_of(element)
        mask = needed(mask)
        before = torch.zeros((ctx.programs, *shape), dtype=dtype)
        if mask is False:
            return before
        for part, inside in self.resolve(pointer, mask, ctx, "an atomic changes"):
            memory, shift = self.buffers[part.argument].typed(element)
            index = as_tensor(part.offset, "i64", len(shape)).expand(ctx.programs, *shape)
            tile = full(value, element, shape, ctx.programs).to(dtype)
            active = None if inside is True else as_tensor(inside, "i1", len(shape)).expand(ctx.programs, *shape)
            chosen = index.flatten() if active is None else index[active]
            if not len(chosen):
                continue
            self.check(ctx, part, chosen, active, memory, shift, "atomic", chosen)
            if self.shadow is not None:
                self.shadow.atomic(ctx, part, inside, shape)
            place = chosen.long() + shift
            change = tile.flatten() if active is None else tile[active]
            ctx.counters.atomics += len(place)
            ctx.counters.stored[part.argument] += len(place) * dtype.itemsize
            old = exchanged(kind, memory, place, change, ctx.keeps_old)
            if old is not None:
                if active is None:
                    before = old.view(ctx.programs, *shape)
                else:
                    before[active] = old
        return before

    def compare_and_swap(
        self, ctx: Any, pointer: Pointer, expected: Value, new: Value, shape: tuple[int, ...]
    ) -> Value:
        """Compare and swap lane by lane; return the values before."""
        element = pointer.element
        dtype = dtype_of(element)
        before = torch.zeros((ctx.programs, *shape), dtype=dtype)
        for part, inside in self.resolve(pointer, True, ctx, "an atomic changes"):
            memory, shift = self.buffers[part.argument].typed(element)
            index = as_tensor(part.offset, "i64", len(shape)).expand(ctx.programs, *shape).flatten()
            self.check(ctx, part, index, None, memory, shift, "atomic", index)
            expected_values = full(expected, element, shape, ctx.programs).flatten().tolist()
            stored = full(new, element, shape, ctx.programs).flatten()
            active = (
                [True] * len(index)
                if inside is True
                else as_tensor(inside, "i1", len(shape)).expand_as(before).flatten()
            )
            flat = before.view(-1)
            ctx.counters.atomics += len(index)
            ctx.counters.stored[part.argument] += len(index) * dtype.itemsize
            for lane, place in enumerate((index.long() + shift).tolist()):
                if not active[lane]:
                    continue
                flat[lane] = memory[place]
                if flat[lane].item() == expected_values[lane]:
                    memory[place] = stored[lane]
            if self.shadow is not None:
                self.shadow.atomic(ctx, part, inside, shape)
        return before

    # ---- bounds

    def check(
        self,
        ctx: Any,
        pointer: Pointer,
        index: torch.Tensor,
        active: torch.Tensor | None,
        memory: torch.Tensor,
        shift: int,
        access: str,
        unmasked_index: torch.Tensor | None = None,
    ) -> None:
        """Raise unless every element lies in the allocation."""
        low, high = extremes(index) if index.numel() else (0, -1)
        if high < low:
            return
        if low + shift >= 0 and high + shift < memory.numel():
            ctx.counters.touch(pointer.argument, low + shift, high + shift, memory.itemsize)
            return
        wide = index.long()  # an allocation may have more elements than 32 bits can count
        outside = (wide + shift < 0) | (wide + shift >= memory.numel())
        first = int(torch.nonzero(outside.flatten())[0])
        offset = int(index.flatten()[first])
        program = 0
        if (
            active is not None
            and unmasked_index is not None
            and unmasked_index.dim() == 1
            and active.numel() != unmasked_index.numel()
        ):
            program = int(torch.nonzero(active.reshape(active.shape[0], -1))[first, 0])
        elif active is not None and unmasked_index is not None and unmasked_index.dim() == 1:
            program = first // max(active[0].numel(), 1)
        elif index.shape[0] > 1:
            program = int(torch.nonzero(outside)[0, 0]) if index.dim() > 1 else first * ctx.programs // index.numel()
        buffer = self.buffers[pointer.argument]
        reach = memory.numel() - shift
        raise KernelError(
            f"{access} out of bounds: argument {buffer.name!r} at element {offset}, its memory has elements "
            f"{-shift} to {reach - 1} ({str(memory.dtype).removeprefix('torch.')}){ctx.text(program)}"
        )


class Blank(Memory):
    """The memory of a dry run: bounds are checked and bytes are counted; loads return 0, stores do nothing."""

    def load(self, ctx: Any, pointer: Pointer, mask: Value, other: Value, shape: tuple[int, ...]) -> Value:
        """Count; return 0."""
        self._count(ctx, pointer, mask, shape, ctx.counters.loaded, "load")
        return False if pointer.element == "i1" else 0

    def store(self, ctx: Any, pointer: Pointer, value: Value, mask: Value, shape: tuple[int, ...]) -> None:
        """Count."""
        self._count(ctx, pointer, mask, shape, ctx.counters.stored, "store")

    def atomic(self, ctx: Any, kind: str, pointer: Pointer, value: Value, mask: Value, shape: tuple[int, ...]) -> Value:
        """Count; return 0."""
        ctx.counters.atomics += lanes(needed(mask), shape, ctx.programs) if needed(mask) is not False else 0
        self._count(ctx, pointer, mask, shape, ctx.counters.stored, "atomic")
        return torch.zeros((ctx.programs, *shape), dtype=dtype_of(pointer.element))

    def compare_and_swap(
        self, ctx: Any, pointer: Pointer, expected: Value, new: Value, shape: tuple[int, ...]
    ) -> Value:
        """Count; return the expected values."""
        ctx.counters.atomics += ctx.programs * numel(shape)
        return full(expected, pointer.element, shape, ctx.programs).clone()

    def _count(
        self, ctx: Any, pointer: Pointer, mask: Value, shape: tuple[int, ...], counts: dict[int, int], access: str
    ) -> None:
        mask = needed(mask)
        if mask is False or pointer.argument < 0:
            return
        memory, shift = self.buffers[pointer.argument].typed(pointer.element)
        counts[pointer.argument] += lanes(mask, shape, ctx.programs) * memory.itemsize
        if isinstance(pointer.offset, Affine):
            low, high = pointer.offset.bounds()
            if low + shift >= 0 and high + shift < memory.numel():
                ctx.counters.touch(pointer.argument, low + shift, high + shift, memory.itemsize)
                return
        index = as_tensor(pointer.offset, "i64", len(shape))
        active = None if mask is True else as_tensor(mask, "i1", len(shape))
        safe = index if active is None else torch.where(active, index.long(), -shift)
        self.check(ctx, pointer, safe, active, memory, shift, access, index)


def lanes(mask: Value, shape: tuple[int, ...], programs: int) -> int:
    """Count the active lanes of a mask."""
    everything = programs * numel(shape)
    if mask is True:
        return everything
    active = as_tensor(mask, "i1", len(shape))
    return int(torch.count_nonzero(active)) * (everything // max(active.numel(), 1))


def put(memory: torch.Tensor, index: torch.Tensor, values: torch.Tensor) -> None:
    """Write elements; the last one remains if several have the same index."""
    if memory.dtype.is_floating_point and memory.itemsize == 1:
        memory, values = memory.view(torch.uint8), values.contiguous().view(torch.uint8)
    memory.scatter_(0, index, values)


def exchanged(kind: str, memory: torch.Tensor, index: torch.Tensor, change: torch.Tensor, keeps_old: bool) -> Any:
    """Apply atomics in the order of their lanes; return the values before, if `keeps_old`."""
    distinct = len(index) == 1 or (keeps_old and len(torch.unique(index)) == len(index))
    if not keeps_old or distinct:
        old = memory.index_select(0, index) if keeps_old else None
        if kind in ("add", "fadd"):
            memory.index_add_(0, index, change)
        elif kind == "exch":
            put(memory, index, change)
        elif kind in ("max", "min", "fmax", "fmin") and memory.dtype != torch.bfloat16:
            extremum = np.maximum if "max" in kind else np.minimum
            extremum.at(memory.numpy(), index.numpy(), change.contiguous().numpy())
        elif kind in ("max", "min", "fmax", "fmin", "umax", "umin"):
            _one_by_one(kind, memory, index, change)
        elif distinct:
            memory[index] = _BITS[kind](memory[index], change)
        else:
            _one_by_one(kind, memory, index, change)
        return old
    return _one_by_one(kind, memory, index, change)


_BITS: dict[str, Any] = {"and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor}


def _one_by_one(kind: str, memory: torch.Tensor, index: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    old = torch.empty_like(change)
    mask = (1 << memory.itemsize * 8) - 1
    for lane, place in enumerate(index.tolist()):
        old[lane] = memory[place]
        a, b = memory[place], change[lane]
        if kind in ("add", "fadd"):
            memory[place] = a + b
        elif kind == "exch":
            memory[place] = b
        elif kind in ("max", "fmax"):
            memory[place] = torch.maximum(a, b)
        elif kind in ("min", "fmin"):
            memory[place] = torch.minimum(a, b)
        elif kind in ("umax", "umin"):
            larger = int(b) & mask > int(a) & mask
            memory[place] = b if larger == (kind == "umax") else a
        else:
            memory[place] = _BITS[kind](a, b)
    return old


def _contiguous(offset: Affine) -> int | None:
    """Return the axis along which the tile is contiguous; None if there is none."""
    for axis in reversed(range(len(offset.shape))):
        base = offset.base
        flat = not isinstance(base, torch.Tensor) or base.shape[axis + 1] == 1
        if offset.strides.get(axis) == 1 and offset.shape[axis] > 1 and flat:
            return axis
    return None


def _prefix(mask: Value, axis: int) -> int | bool:
    """Return the number of leading positions along an axis that are active; False if the mask has another form."""
    parts = mask.parts if isinstance(mask, Mask) else (mask,)
    least = None
    for part in parts:
        prefix = part.prefix() if isinstance(part, Compare) else None
        if prefix is None or prefix[0] != axis:
            return False
        least = prefix[1] if least is None else min(least, prefix[1])
    return least if least else False


def _tiles(memory: torch.Tensor, base: Value, shift: int, sizes: list[int], steps: list[int]) -> torch.Tensor | None:
    """Return the tiles of all programs as one view; None if they are not at regular distances."""
    if not isinstance(base, torch.Tensor):
        return memory.as_strided((1, *sizes), (0, *steps), base + shift)
    if base.numel() != base.shape[0]:
        return None
    starts = base.flatten()
    if len(starts) == 1:
        return memory.as_strided((1, *sizes), (0, *steps), int(starts) + shift)
    first, step = int(starts[0]), int(starts[1]) - int(starts[0])
    if step < 0 or (len(starts) > 2 and not bool((starts[1:] - starts[:-1] == step).all())):
        return None
    return memory.as_strided((len(starts), *sizes), (step, *steps), first + shift)


def _padded(rows: torch.Tensor, axis: int, length: int, count: int, other: Value, dtype: torch.dtype) -> torch.Tensor:
    if count == length:
        return rows
    shape = list(rows.shape)
    shape[axis + 1] = length
    filler = plain(other)
    if filler is None or not isinstance(filler, torch.Tensor):
        tile = torch.zeros(shape, dtype=dtype) if not filler else torch.full(shape, filler, dtype=dtype)
    else:
        tile = filler.to(dtype).expand(broadcast_shapes(filler.shape, tuple(shape))).clone()
    tile.narrow(axis + 1, 0, count).copy_(rows)
    return tile
