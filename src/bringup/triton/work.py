"""Counts the work of one operation on the vector units from its types."""

from __future__ import annotations

from bringup.triton.arithmetic import FLOATS, INTEGERS, UNARY
from bringup.triton.ttir import Op, Type
from bringup.triton.values import WIDTHS, numel

SPECIAL = {"math.exp", "math.exp2", "math.expm1", "math.log", "math.log2", "math.log10", "math.log1p", "math.sin"}
SPECIAL |= {"math.cos", "math.tan", "math.tanh", "math.sqrt", "math.rsqrt", "math.erf", "tt.precise_sqrt", "math.powf"}
SPECIAL |= {"arith.divf", "tt.precise_divf", "tt.extern_elementwise"}
VECTOR = {*FLOATS, *INTEGERS, *UNARY, "math.fma", "arith.select", "arith.cmpf", "arith.cmpi", "tt.clampf"} - SPECIAL


def special_functions(op: Op, types: list[Type]) -> int:
    """Count the evaluations of exp, log, division, ... in one program."""
    return numel(types[op.results[0]].shape) if op.name in SPECIAL else 0


def vector_operations(op: Op, types: list[Type]) -> int:
    """Count the vector operations of one program: operations on tiles of floats, and their reductions and scans."""
    if op.name in VECTOR and types[op.results[0]].shape:
        kind = types[op.operands[-1]]
        return numel(types[op.results[0]].shape) if kind.element not in WIDTHS else 0
    if op.name in ("tt.reduce", "tt.scan"):
        return sum(numel(types[value].shape) for value in op.operands if types[value].element not in WIDTHS)
    return 0


def scaled_product(op: Op, types: list[Type]) -> tuple[int, int, int, str]:
    """Return m, n, k and element of ``tt.dot_scaled``: the wider operand's type; four bits count as eight."""
    m, n = types[op.results[0]].shape
    forms = {str(op.attributes[side]) for side in ("lhs", "rhs")}
    k = types[op.operands[0]].shape[-1] * (2 if op.attributes["lhs"] == "e2m1" else 1)
    wide = forms & {"fp16", "bf16"}
    return m, n, k, {"fp16": "f16", "bf16": "bf16"}[wide.pop()] if wide else "f8E4M3FN"
