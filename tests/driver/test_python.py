"""Drivers in Python: kernels on numpy arrays get what the schema says, and their mistakes are sentences."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bringup.driver import python as drivers
from bringup.errors import BringupError
from tests.conftest import ROOT

Run = Callable[..., "subprocess.CompletedProcess[str]"]
DRIVER = """
import ctypes
import numpy as np
from bringup.driver.python import Driver, kernel

def floats(*tensors):
    return None if tensors[0].dtype == np.float32 else "not float32"

class Acme(Driver):
    name = "acme-1"

    @kernel("aten::relu", "aten::relu_", when=lambda x, *out: floats(x) or (None if x.contiguous else "not contiguous"))
    def relu(self, x, *out):
        np.maximum(x, 0, out=out[0] if out else x)

    @kernel("aten::add.Tensor", when=lambda x, y, alpha, out: floats(x))
    def add(self, x, y, alpha, out):
        out[...] = x + alpha * y

    @kernel("aten::mm")
    def mm(self, a, b, out):
        np.matmul(a, b, out=out)

    @kernel("aten::sum.dim_IntList", when=lambda x, dims, keep, dtype, out: floats(x))
    def sum(self, x, dims, keep, dtype, out):
        x.sum(axis=dims, keepdims=keep, out=out)

    @kernel("aten::_foreach_add_.List")
    def foreach_add(self, tensors, others, alpha):
        for tensor, other in zip(tensors, others):
            tensor += alpha * other

    @kernel("aten::neg")
    def neg(self, x, out):  # by a library of C
        ctypes.memmove(out.ctypes.data, np.ascontiguousarray(-x).ctypes.data, out.nbytes)

    @kernel("aten::exp")
    def exp(self, x, out):
        raise ValueError("no exp today")

    @kernel("aten::tanh", when=lambda x, out: 1 / 0)
    def tanh(self, x, out):
        pass
"""
PROGRAM = """
import json, torch
x, w = torch.arange(-6.0, 6.0).view(3, 4), torch.arange(8.0).view(4, 2)
dx, dw = x.to("chip"), w.to("chip")
same = [
    (dx.relu() + dx.t().reshape(3, 4)).cpu().equal(x.relu() + x.t().reshape(3, 4)),
    (dx.t() + 2).cpu().equal(x.t() + 2),
    torch.add(dx, torch.tensor(3.0), alpha=2).cpu().equal(x + 6),
    (dx[1:, 1:3] @ dw[1:3]).cpu().equal(x[1:, 1:3] @ w[1:3]),
    dx.sum([0], keepdim=True).cpu().equal(x.sum([0], keepdim=True)),
    dx[:0].relu().cpu().shape == (0, 4),
    (-dx).cpu().equal(-x),
    dx.t().relu().cpu().equal(x.t().relu()),
    dx.double().relu().cpu().equal(x.double().relu()),
    dx.bfloat16().mm(dw.bfloat16()).cpu().equal(x.bfloat16() @ w.bfloat16()),
]
parameters = [torch.ones(3, device="chip", requires_grad=True) for _ in range(2)]
for p in parameters:
    p.grad = torch.ones(3, device="chip")
torch.optim.SGD(parameters, lr=0.5, foreach=True).step()
same += [p.detach().cpu().equal(torch.full((3,), 0.5)) for p in parameters]
errors = []
for function in (torch.exp, torch.tanh):
    try:
        function(dx).cpu()
    except RuntimeError as error:
        errors.append(str(error).splitlines()[0])
same.append((dx + 1).cpu().equal(x + 1))
ledger = json.loads(torch.ops.bringup.driver_ledger())
print(json.dumps([same, errors, ledger["on_device"], [[r["op"], r["reason"]] for r in ledger["on_host"]]]))
print(torch.ops.bringup.driver_name())
"""


def test_kernels_on_arrays_equal_the_cpu_and_failures_name_their_line(tmp_path: Path, python: Run) -> None:
    (tmp_path / "acme.py").write_text(DRIVER, encoding="utf-8")
    done = python(PROGRAM, BRINGUP_DRIVER=str(tmp_path / "acme.py"))
    assert done.returncode == 0, done.stderr
    same, errors, on_device, on_host = json.loads(done.stdout.splitlines()[0])
    assert all(same), same
    assert done.stdout.split()[-1] == "acme-1"
    assert re.search(r"a kernel raised ValueError: no exp today \(acme.py:\d+\), in aten::exp", errors[0])
    assert "a kernel raised ZeroDivisionError: division by zero (acme.py:" in errors[1]
    assert on_device["aten::_foreach_add_.List"] == 1 and on_device["aten::mm"] == 1
    assert ["aten::relu", "not contiguous"] in on_host and ["aten::relu", "not float32"] in on_host
    assert ["aten::mm", "a dtype that numpy does not have"] in on_host


def test_driver_of_the_docs_is_right(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "driver.md").read_text(encoding="utf-8").partition("### In Python")[2]
    source = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert source is not None
    (tmp_path / "acme.py").write_text(source[1], encoding="utf-8")
    command = [sys.executable, "-m", "bringup", "driver", "check", "acme.py", "--only", "nn.functional.relu"]
    done = subprocess.run([*command, "--dtype", "float32"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"aten::relu +float32 +right", done.stdout)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("x = 1", "has 0 classes derived from bringup.driver.python.Driver: write one"),
        ("import nothing_here", "cannot be loaded: ModuleNotFoundError"),
        ("def f(:", "cannot be loaded: SyntaxError"),
        (
            "from bringup.driver.python import Driver, kernel\nclass A(Driver):\n"
            "    @kernel('aten::mm', 'aten::mm')\n    def mm(self): pass",
            "has two kernels for aten::mm: remove one",
        ),
        ("from bringup.driver.python import kernel\nkernel(print)", "kernel needs the names of operators"),
    ],
)
def test_file_without_a_driver_is_refused_in_one_sentence(tmp_path: Path, source: str, problem: str) -> None:
    file = tmp_path / "acme.py"
    file.write_text(source, encoding="utf-8")
    with pytest.raises(BringupError) as raised:
        drivers.load(str(file), "")
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)
