"""Kernels of the chip that a program brings with torch.library."""

from collections.abc import Callable
from typing import Any

Run = Callable[..., Any]

PROGRAM = """
import torch, bringup

def mm(a, b):  # a library that reads the chip's memory
    return torch.empty(a.shape[0], b.shape[1], device=a.device).copy_(a.cpu() @ b.cpu())

def addcdiv_(self, a, b, *, value=1):  # other operators
    return self.copy_(self + value * a / b)

def scale(x, factor):
    return x.cpu().mul(factor).to(x.device), factor

def mul(x, other):
    return x.cpu().mul(other).to(x.device)

library = torch.library.Library("aten", "IMPL")
library.impl("mul.Tensor", mul, "PrivateUse1")
library.impl("mm", mm, "PrivateUse1")
torch.library.impl("aten::addcdiv_", "chip", addcdiv_)
own = torch.library.Library("acme", "DEF")
own.define("scale(Tensor x, float factor) -> (Tensor, float)")
own.impl("scale", scale, "PrivateUse1")
x, y = torch.rand(8, 4).to("chip"), torch.rand(4, 6).to("chip")
with bringup.record() as trace:
    z = x @ y
    try:
        x @ x
    except RuntimeError:
        pass
    x.addcdiv_(x, x + 1)
    torch.ops.acme.scale(x, 2.0)
    assert (x * 2).cpu().equal(x.cpu() * 2)  # a number in place of a tensor
ops = [trace.signatures[number].op for number in trace.columns["signature"] if number >= 0]
assert ops[0] == "aten::mm" and ops.count("aten::mm") == 1, ops
assert "aten::addcdiv_" not in ops and ops[-2:] == ["acme::scale", "aten::mul.Tensor"], ops
row = [number for number in trace.columns["signature"] if number >= 0][0]
signature = trace.signatures[row]
assert [tensor.shape for tensor in (*signature.tensors, *signature.results)] == [(8, 4), (4, 6), (8, 6)], signature
lines = [trace.lines[line] for line, number in zip(trace.columns["line"], trace.columns["signature"]) if number >= 0]
assert lines[0].endswith("program.py:25"), lines
print("done")
"""


def test_an_overridden_operator_has_a_row_unless_it_launches_others(python: Run) -> None:
    done = python(PROGRAM, BRINGUP_CHIP="t4")
    assert done.stdout == "done\n", done.stdout + done.stderr
