"""Runs a StableHLO module on the chip: `Program`."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

from bringup.errors import BringupError
from bringup.frontends.stablehlo import (  # noqa: F401  (their operators register themselves)
    algebra,
    callbacks,
    collectives,
    control,
    indexing,
    normalization,
    pointwise,
    products,
    random,
    reductions,
    shapes,
)
from bringup.frontends.stablehlo.module import Block, Module, Op, StableHloError, UntranslatedError
from bringup.frontends.stablehlo.operators import OPERATORS, Call, body
from bringup.frontends.stablehlo.tensors import Type
from bringup.limits import STABLEHLO
from bringup.lines import at_line
from bringup.text import plain, quantity, short

FEW = 8  # elements that the host computes if it has all operands, such as counters of loops and random keys; chosen
MOST_NAMED = 8  # operators without a translation that a message names
_HOST = torch.device("cpu")
Values = dict[int, torch.Tensor]


class Program:
    """A module, ready to run. Each operation is called from the line of the user's program that it comes from.

    What depends only on small constants, such as the counter of a loop, is computed by the host. So a loop that
    counts does not wait for the chip.

    Attributes:
        inputs, outputs: the types of what it takes and returns.

    Raises:
        UntranslatedError: operators have no translation; the message names all of them.
    """

    def __init__(self, module: Module, device: str | torch.device = "chip") -> None:
        _rename(module)
        check_operators(module)
        self.module = module
        self.inputs, self.outputs = module.inputs, module.outputs
        self._place = device
        self.__name__ = module.name
        self._moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # constants of the host, on the chip
        for block in module.functions.values():
            _find_neutral(block)

    def __call__(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the module; return its results on the chip."""
        return self.run(list(arguments))

    def run(self, arguments: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Run the module; return its results on the chip. The list is emptied, so that inputs can be freed early."""
        if len(arguments) != len(self.inputs):
            raise StableHloError(
                f"{self.module.name}: takes {quantity(len(self.inputs), 'input')}, got {len(arguments)}"
            )
        for number, (value, kind) in enumerate(zip(arguments, self.inputs, strict=True)):
            if tuple(value.shape) != kind.shape or value.dtype != kind.dtype:
                got = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
                raise StableHloError(f"{self.module.name}: input {number} is {kind}, got {got}")
        self.device = torch.device(self._place)  # only now: the name chip is refused before it is registered
        self._runs = 0
        with torch.no_grad():
            inputs = [value.to(self.device) for value in arguments]
            arguments.clear()
            results = self._call("main", inputs)
            return tuple(self._on_chip(value) for value in results)

    def _call(self, name: str, arguments: list[torch.Tensor]) -> list[torch.Tensor]:
        block = self.module.functions[name]
        values = dict(zip(block.arguments, arguments, strict=True))
        arguments.clear()
        return self._run(block, values)

    def _run(self, block: Block, values: Values) -> list[torch.Tensor]:
        """Run a block; `values` holds its arguments and captures, and is consumed."""
        self._runs += 1
        if self._runs > STABLEHLO["runs"].most:
            limit = STABLEHLO["runs"]
            raise StableHloError(
                f"{self.module.name}: its loops and calls run more than {limit.most:,} blocks ({limit.why})"
            )
        for op in block.ops:
            self._execute(op, values)
            for value in op.frees:
                values.pop(value, None)
        return [values[value] for value in block.returns]

    def _execute(self, op: Op, values: Values) -> None:
        operator = OPERATORS[op.name]
        arguments = [values[value] for value in op.operands]
        on_host = all(item.device.type == "cpu" for item in arguments) and all(
            math.prod(kind.shape) <= FEW for kind in op.result_types
        )
        if not on_host and not operator.as_they_are:
            arguments = [self._on_chip(item) for item in arguments]

        def run(inner: Block, items: list[torch.Tensor]) -> list[torch.Tensor]:
            held = {value: values[value] for value in inner.captures}
            held.update(zip(inner.arguments, items, strict=True))
            return self._run(inner, held)

        device = _HOST if on_host else self.device
        keep = (lambda item: item) if on_host else self._on_chip
        call = Call(op, run, self._call, device, keep)
        try:
            if op.line is None:  # the innermost frame with a line is then that of the call
                result = operator.function(call, *arguments)
            else:
                result = at_line(op.name, *op.line)(operator.function, (call, *arguments))
        except (torch.OutOfMemoryError, BringupError):
            raise
        except Exception as error:  # what torch refuses
            shown = ", ".join(map(str, op.operand_types)) or "no operands"
            reason = short(str(error) or type(error).__name__, 400)
            raise StableHloError(f"{_where(op, self.module)}: {op.name} cannot run on {shown}: {reason}") from error
        values.update(zip(op.results, result if isinstance(result, tuple) else (result,), strict=True))

    def _on_chip(self, value: torch.Tensor) -> torch.Tensor:
        """Return a value on the chip: scalars are filled there, constants only once."""
        if value.device.type == self.device.type:
            return value if value.device == self.device else value.to(self.device)
        if (held := self._moved.get(id(value))) is not None:
            return held[1]
        if value.numel() == 1:
            moved = torch.full(value.shape, value.item(), dtype=value.dtype, device=self.device)
        else:
            moved = value.to(self.device, non_blocking=value.numel() <= FEW)  # few bytes are staged at the call
        if hasattr(value, "is_constant"):
            self._moved[id(value)] = value, moved
        return moved


def _where(op: Op, module: Module) -> str:
    return f"{plain(op.line[0])}:{op.line[1]}" if op.line else module.name


# Where a custom call or a composite has the name of the operator that it stands for, and that operator's attributes.
_WRITTEN_AS = {"custom_call": ("call_target_name", "mhlo.attributes"), "composite": ("name", "composite_attributes")}


def _rename(module: Module) -> None:
    """Name the operators that XLA, or bringup's lowering, has written as custom calls or composites."""
    for block in module.functions.values():
        for op in block.walk():
            if op.name not in _WRITTEN_AS:
                continue
            key, inner = _WRITTEN_AS[op.name]
            dialect, _, name = str(op.attributes.get(key, "")).partition(".")
            name, attributes = "top_k" if name == "topk" else name, op.attributes.get(inner, {})
            if dialect in ("mhlo", "chlo", "bringup") and name in OPERATORS and attributes.get("largest", True):
                op.name, op.attributes = name, {**op.attributes, **attributes}


def check_operators(module: Module) -> None:
    """Raise UntranslatedError if operations have no translation; the message names all their operators."""
    missing: dict[str, list[Op]] = {}
    for block in module.functions.values():
        for op in block.walk():
            operator = OPERATORS.get(op.name)
            why = "" if operator is None else operator.refusal(op) if operator.refusal else ""
            if operator is None or why:
                missing.setdefault(f"{op.name} {why}".strip(), []).append(op)
    if not missing:
        return
    counts = Counter({name: len(ops) for name, ops in missing.items()}).most_common()
    named = []
    for name, count in counts[:MOST_NAMED]:
        where = _where(missing[name][0], module)
        named.append(f"{short(name)} ({quantity(count, 'operation')}, {where})")
    rest = f", and {len(counts) - MOST_NAMED} more" if len(counts) > MOST_NAMED else ""
    raise UntranslatedError(
        f"{module.name}: {quantity(len(counts), 'operator')} without a translation: {', '.join(named)}{rest}"
    )


def _find_neutral(block: Block) -> None:
    """Note with reductions whether their initial value is a constant that changes nothing; mark constants."""
    constants: dict[int, torch.Tensor] = {}
    for op in block.ops:
        if op.name == "constant":
            value = op.attributes["value"]
            value.is_constant = True
            constants[op.results[0]] = value
        if op.name == "broadcast_in_dim" and op.operands[0] in constants:  # JAX's windows begin with one
            constants[op.results[0]] = constants[op.operands[0]]
        if op.name in ("reduce", "reduce_window") and len(op.operands) == 2 and op.operands[1] in constants:
            value = constants[op.operands[1]]
            op.prepared["neutral"] = bool((value == neutral(body(op), op.operand_types[0])).all())
        for inner in op.blocks:
            _find_neutral(inner)


def neutral(name: str, kind: Type) -> Any:
    """Return the value that changes nothing in a reduction, as the tensor that holds the values has it."""
    if name in ("add", "or"):
        return 0
    if name == "multiply":
        return 1
    if name == "and":
        return True if kind.dtype == torch.bool else -1
    if kind.dtype == torch.bool:
        return name == "minimum"
    if kind.dtype.is_floating_point:
        return -math.inf if name == "maximum" else math.inf
    if kind.is_unsigned:
        return 0 if name == "maximum" else -1
    info = torch.iinfo(kind.dtype)
    return info.min if name == "maximum" else info.max
