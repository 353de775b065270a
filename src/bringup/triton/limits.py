"""Checks that a kernel fits the chip: tile memory, grid, dtypes of products."""

from __future__ import annotations

import warnings
from typing import Any

from bringup.errors import BringupError
from bringup.process import process
from bringup.triton.executor import Kernel
from bringup.triton.ttir import Block, Function, Op, Type
from bringup.triton.values import dtype_of


class KernelLimitWarning(UserWarning):
    """A kernel exceeds a limit in the chip file."""


def tile_bytes(function: Function) -> tuple[int, list[Type]]:
    """Return the most bytes of tiles that are live at once, and the largest of those tiles.

    Offsets, masks and values that are constant along an axis are computed where they are used, and do not count.
    """
    last: dict[int, int] = {}
    born: dict[int, int] = {}
    place = 0

    def visit(block: Block) -> None:
        nonlocal place
        for value in block.arguments:
            born[value] = place
        for op in block.ops:
            place += 1
            start = place
            for region in op.regions if op.name not in ("tt.reduce", "tt.scan") else ():
                for inner in region.blocks:
                    visit(inner)
                    # Values that a loop carries are live from its start to its end.
                    for value in inner.arguments:
                        last[value] = max(last.get(value, 0), place)
            for value in op.operands:
                last[value] = place
            if op.regions and op.name.startswith("scf"):
                for value, first in born.items():
                    if first < start and start <= last.get(value, -1) <= place and op.name != "scf.if":
                        last[value] = place
            for value in op.results:
                born[value] = place
            if op.name == "arith.constant":
                for value in op.results:
                    born.pop(value, None)

    for block in function.body.blocks:
        visit(block)
    events: dict[int, list[int]] = {}
    for value, first in born.items():
        kind = function.types[value]
        if kind.shape and not kind.pointer and kind.element[0] in "fb" and value in last:
            events.setdefault(first, []).append(value)
    alive: set[int] = set()
    most, largest = 0, []
    for now in range(place + 1):
        alive = {value for value in alive if last[value] >= now} | set(events.get(now, ()))
        total = sum(_bytes(function.types[value]) for value in alive)
        if total > most:
            most, largest = total, sorted((function.types[v] for v in alive), key=_bytes, reverse=True)
    return most, largest


def _bytes(kind: Type) -> int:
    return kind.numel * dtype_of(kind.element).itemsize


def staged_bytes(function: Function, stages: int) -> tuple[int, list[Type]]:
    """Return the shared memory that a GPU's compiler allocates for the operands of products, for the largest loop.

    Triton pipelines a loop by keeping ``num_stages`` copies of the operands of its products.
    """
    most, tiles = 0, []

    def visit(ops: list[Op], looped: bool) -> None:
        nonlocal most, tiles
        products = [op for op in ops if op.name == "tt.dot"]
        kinds = [function.types[value] for op in products for value in op.operands[:2]]
        total = sum(map(_bytes, kinds)) * (max(stages, 1) if looped else 1)
        if total > most:
            most, tiles = total, kinds
        for op in ops:
            for region in op.regions:
                for block in region.blocks:
                    visit(block.ops, looped or op.name == "scf.for")

    for block in function.body.blocks:
        visit(block.ops, False)
    return most, tiles


def check(kernel: Kernel, metadata: Any) -> None:
    """Check a kernel against the limits in the chip file.

    Raises:
        BringupError: it exceeds a limit and the chip file has ``[kernels] limits = "error"``.
    """
    chip = process.chip
    if chip is None or chip.kernels.limits == "off":
        return
    function = kernel.module.kernel
    if chip.scratchpad is not None:
        limit = round(chip.scratchpad.kib_per_core * 1024)
        stages = int(getattr(metadata, "num_stages", 1) or 1)
        need, tiles = staged_bytes(function, stages) if chip.kind == "gpu" else tile_bytes(function)
        if need > limit:
            contents = "operands of products" if chip.kind == "gpu" else "tiles that are live at once"
            times = f", {stages} stages" if chip.kind == "gpu" else ""
            listed = ", ".join(str(kind) for kind in tiles[:4])
            _refuse(
                chip.kernels.limits,
                f"{kernel.name} needs {need / 1024:.0f} KiB of scratchpad for {contents} ({listed}{times}); "
                f"{chip.name} has {limit / 1024:.0f} KiB per core: choose smaller blocks"
                + (" or fewer stages" if times else ""),
                need,
                limit,
            )
    for op in function.walk():
        if op.name == "tt.dot":
            dtype = str(dtype_of(function.types[op.operands[0]].element)).removeprefix("torch.")
            if dtype not in chip.ops.dtypes:
                _refuse(
                    chip.kernels.limits,
                    f"{kernel.name} multiplies {dtype} at {op.line}, but {chip.name} computes only in "
                    f"{', '.join(chip.ops.dtypes)}: convert the operands",
                )


def check_grid(name: str, grid: tuple[int, int, int]) -> None:
    """Check a grid against ``[kernels] grid`` in the chip file."""
    chip = process.chip
    if chip is None or chip.kernels.grid is None or chip.kernels.limits == "off":
        return
    for axis, (programs, limit) in enumerate(zip(grid, chip.kernels.grid, strict=False)):
        if programs > limit:
            _refuse(
                chip.kernels.limits,
                f"{name} is launched with a grid of {grid}; {chip.name} takes at most {limit} programs along "
                f"{'xyz'[axis]}: let each program do more, or fold the grid into another axis",
            )


def _refuse(level: str, message: str, need: int = 0, limit: int = 0) -> None:
    if level != "error":
        warnings.warn(message, KernelLimitWarning, stacklevel=2)
        return
    from triton.runtime.errors import OutOfResources

    class TooLarge(OutOfResources, BringupError):  # type: ignore[misc]  # autotune continues with the next configuration
        def __init__(self) -> None:
            OutOfResources.__init__(self, need, limit, "scratchpad")

        def __str__(self) -> str:
            return message

    raise TooLarge if need else BringupError(message)
