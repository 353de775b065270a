"""Arithmetic over numbers of a chip, as sweep files state areas, prices and budgets. Nothing else can be computed."""

from __future__ import annotations

import ast
import difflib
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from bringup.errors import BringupError
from bringup.text import short

_BINARY: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_COMPARED: dict[type, Callable[[float, float], bool]] = {
    ast.LtE: operator.le,
    ast.Lt: operator.lt,
    ast.GtE: operator.ge,
    ast.Gt: operator.gt,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"min": min, "max": max, "sqrt": math.sqrt, "log2": math.log2}
MOST_DEPTH = 50  # of brackets and operators within each other


class Expression:
    """A formula such as ``0.1 * compute.cores + sqrt(cache.mib)``, or a comparison of two.

    Args:
        text: the formula.
        where: its place in the sweep file, for errors.

    Raises:
        BringupError: it is more than arithmetic.
    """

    def __init__(self, text: str, where: str) -> None:
        self.text = text
        self.where = where
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._error("is no formula") from None
        try:
            self._check(self._tree, 0)
        except RecursionError:
            raise self._error("is nested too deeply") from None

    @property
    def is_comparison(self) -> bool:
        """True for a budget such as ``area <= 800``."""
        return isinstance(self._tree, ast.Compare)

    def value(self, numbers: Mapping[str, float]) -> float:
        """Return the value; of a comparison, how far the left side is beyond the right one (negative: it holds).

        Raises:
            BringupError: a name is not among the numbers, or the value is not finite.
        """
        try:
            result = self._value(self._tree, numbers)
        except (ZeroDivisionError, OverflowError, ValueError, TypeError):
            raise self._error("has no value for these numbers") from None
        if isinstance(result, complex) or not math.isfinite(result):
            raise self._error("has no finite value for these numbers")
        return float(result)

    def _check(self, node: ast.AST, depth: int) -> None:
        inner: list[ast.AST] = []
        if depth > MOST_DEPTH:
            raise self._error("is nested too deeply")
        if isinstance(node, ast.Compare) and depth == 0 and len(node.ops) == 1 and type(node.ops[0]) in _COMPARED:
            inner = [node.left, node.comparators[0]]
        elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            inner = [node.left, node.right]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            inner = [node.operand]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            if node.keywords or not node.args:
                raise self._error(f"calls {node.func.id} in another way than with numbers")
            inner = list(node.args)
        elif not (_is_number(node) or _name(node)):
            raise self._error(f"has {short(ast.unparse(node))}: give numbers, + - * / **, {', '.join(_FUNCTIONS)}")
        for part in inner:
            self._check(part, depth + 1)

    def _value(self, node: ast.AST, numbers: Mapping[str, float]) -> float:
        if isinstance(node, ast.Constant):
            return float(node.value)  # type: ignore[arg-type]  # checked to be a number
        if isinstance(node, ast.Compare):
            left, right = self._value(node.left, numbers), self._value(node.comparators[0], numbers)
            beyond = left - right if isinstance(node.ops[0], (ast.LtE, ast.Lt)) else right - left
            return beyond if beyond or _COMPARED[type(node.ops[0])](left, right) else math.ulp(0.0)
        if isinstance(node, ast.BinOp):
            return _BINARY[type(node.op)](self._value(node.left, numbers), self._value(node.right, numbers))
        if isinstance(node, ast.UnaryOp):
            value = self._value(node.operand, numbers)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name)
            return _FUNCTIONS[node.func.id](*(self._value(part, numbers) for part in node.args))
        name = _name(node)
        if name not in numbers:
            nearest = difflib.get_close_matches(name[:80], list(numbers), n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else "give a field of the chip file"
            raise self._error(f"names {short(name)}, which is no number of the chip: {hint}")
        return numbers[name]

    def _error(self, problem: str) -> BringupError:
        return BringupError(f"{self.where}: {short(self.text)} {problem}")


def _is_number(node: Any) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool)


def _name(node: Any) -> str:
    """Return a dotted name such as ``memory.bandwidth_gb_s``; empty if it is none."""
    if isinstance(node, ast.Name):
        return node.id
    head = _name(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{head}.{node.attr}" if head else ""
