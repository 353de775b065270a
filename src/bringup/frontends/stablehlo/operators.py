"""The registry of StableHLO's operators: one function per operator, from tensors to tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bringup.frontends.stablehlo.module import Block, Op
from bringup.frontends.stablehlo.tensors import Type

Tensor = torch.Tensor
Function = Callable[..., Any]


@dataclass(frozen=True)
class Operator:
    """How operations of one operator run.

    Attributes:
        function: takes a `Call` and the operands; returns the result, or a tuple of results.
        as_they_are: True if the function takes operands on the host and on the chip as they are.
        refusal: returns why an operation cannot run, "" if it can.
    """

    function: Function
    as_they_are: bool = False
    refusal: Callable[[Op], str] | None = None


@dataclass
class Call:
    """What a translation sees of its operation.

    Attributes:
        run: runs one of the operation's blocks on a list of values; returns its results.
        call: runs a function of the module by name.
        device: where the operation computes.
        on_chip: returns a value on the chip, if it is on the host.
    """

    op: Op
    run: Callable[[Block, list[Tensor]], list[Tensor]]
    call: Callable[[str, list[Tensor]], list[Tensor]]
    device: torch.device
    on_chip: Callable[[Tensor], Tensor]

    def __call__(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.op.attributes.get(name, default)

    @property
    def source(self) -> Type:
        """Return the type of the first operand."""
        return self.op.operand_types[0]

    @property
    def target(self) -> Type:
        """Return the type of the first result."""
        return self.op.result_types[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the first result."""
        return self.target.shape

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Return a tensor that depends on the operation alone, which is made at its first run on a device."""
        key = f"{name} on {self.device}"
        if key not in self.op.prepared:
            self.op.prepared[key] = make()
        return self.op.prepared[key]

    def arange(self, name: str, size: int, shape: list[int]) -> Tensor:
        """Return the numbers from 0 to `size` in this shape."""
        return self.once(name, lambda: torch.arange(size, device=self.device).view(shape))


OPERATORS: dict[str, Operator] = {}


def operator(
    *names: str, as_they_are: bool = False, refusal: Callable[[Op], str] | None = None
) -> Callable[[Function], Function]:
    """Register a function as the translation of these operators."""

    def add(function: Function) -> Function:
        for name in names:
            assert name not in OPERATORS, name
            OPERATORS[name] = Operator(function, as_they_are, refusal)
        return function

    return add


def wide(x: Tensor, kind: Type) -> Tensor:
    """Return unsigned numbers as signed ones with the same order: of more bits, or 64 bits moved by half the range."""
    if kind.kind == "ui64":
        return x ^ torch.iinfo(torch.int64).min
    return values(x, kind)


def values(x: Tensor, kind: Type) -> Tensor:
    """Return unsigned numbers of up to 32 bits with their values, in an integer of more bits."""
    if kind.kind == "ui32":
        return x.to(torch.int64) & 0xFFFFFFFF
    return x.to(torch.int32) & 0xFFFF if kind.kind == "ui16" else x


def body(op: Op) -> str:
    """Return the operator that a reducing block consists of: ``add``; ``return`` for the second argument; else ""."""
    block = op.blocks[0]
    if not block.ops and len(block.arguments) == 2 and block.returns == block.arguments[1:]:
        return "return"
    if len(block.ops) != 1 or len(block.arguments) != 2 or block.returns != block.ops[0].results:
        return ""
    inner = block.ops[0]
    return inner.name if sorted(inner.operands) == sorted(block.arguments) else ""


def nested(op: Op) -> str:
    """Return why a block cannot run on whole tensors: it reduces or branches itself; "" if it can."""
    has_blocks = [inner.name for block in op.blocks for inner in block.ops if inner.blocks]
    return f"with {has_blocks[0]} in its body" if has_blocks else ""
