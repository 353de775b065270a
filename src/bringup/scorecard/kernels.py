"""D. Kernels and numerics: custom operators, determinism, tolerances."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import torch

from bringup.scorecard import library as gems
from bringup.scorecard.framework import share
from bringup.scorecard.registry import Failed, NotApplicable, item, needs_accelerator, needs_chip, require


def _custom(device: torch.device) -> Any:
    """Define a custom operator with a fake kernel and a gradient."""
    name = f"bringup_check::cube_{uuid.uuid4().hex[:8]}"

    @torch.library.custom_op(name, mutates_args=())
    def cube(x: torch.Tensor) -> torch.Tensor:
        return x * x * x

    cube.register_fake(lambda x: torch.empty_like(x))
    cube.register_autograd(
        lambda ctx, grad: grad * 3 * ctx.saved_tensors[0] ** 2,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    return cube


@item(
    "D1",
    "D",
    "custom operators",
    hint="operators of torch.library must reach the device, with autograd and fake kernels",
)
def custom(device: torch.device) -> str:
    """A custom operator, registered with ``torch.library``, runs and has its gradient."""
    cube = _custom(device)
    x = torch.tensor([1.0, 2.0, 3.0], device=device, requires_grad=True)
    y = cube(x)
    y.sum().backward()
    require(y.device.type == device.type, f"its result is on {y.device}")
    require(y.tolist() == [1, 8, 27], f"x^3 of 1, 2, 3 is {y.tolist()}")
    require(x.grad is not None and x.grad.tolist() == [3, 12, 27], "its gradient is wrong")
    return "forward pass and gradient of a custom operator are right"


@item("D2", "T", "kernels in Triton", hint="register a Triton backend for the device")
def triton(device: torch.device) -> str:
    """A Triton kernel runs on the device's tensors."""
    if importlib.util.find_spec("triton") is None:
        raise Failed("triton is not installed")
    driver: Any = importlib.import_module("triton.runtime").driver

    try:
        target = str(driver.active.get_current_target())
    except Exception as error:
        raise Failed(f"triton has no driver for {device.type}: {(str(error).splitlines() or [''])[0]}") from None
    require(device.type in target, f"triton compiles for {target}, not for {device.type}")
    double = importlib.import_module("bringup.scorecard.double").kernel
    x = torch.arange(1000, dtype=torch.float32, device=device)
    out = torch.zeros_like(x)
    double[(4,)](x, out, 1000, BLOCK=256)
    require(torch.equal(out, x * 2), "a kernel that doubles 1,000 numbers has wrong results")
    return f"triton compiles for {target}, and the results of a kernel are right"


@item(
    "D10",
    "P",
    "a library of kernels",
    hint="the named operators have wrong results, or FlagGems does not support the device",
    seconds=400,
)
def library(device: torch.device) -> str:
    """FlagGems, a library in Triton, replaces torch's operators with the same results and gradients as on the CPU."""
    needs_accelerator(device, "operators in Triton")
    for name in ("triton", "flag_gems"):
        if importlib.util.find_spec(name) is None:
            raise NotApplicable(f"{name} is not installed here: pip install triton flag_gems")
    torch.set_num_threads(1)
    tried = gems.run(gems.enable(device), device)
    wrong = [name for name, problems in tried.items() if any(problems)]
    faulty = [name for name in wrong if name in gems.FAULTS]
    judged = [name for name in tried if name not in faulty]
    text = f"operators of FlagGems; {len(faulty)} more are wrong on every device ({', '.join(faulty)})"
    return share(judged, [name for name in wrong if name not in faulty], text if faulty else "operators of FlagGems")


@item(
    "D5",
    "T",
    "torch operators, custom operators and host code in one stream",
    hint="custom operators must be enqueued on the stream like others",
)
def mixed(device: torch.device) -> str:
    """Torch's operators, a custom operator and a computation on the host take turns on the same data."""
    cube = _custom(device)
    x = torch.full((4,), 2.0, device=device)
    for _ in range(3):
        x = cube(x) * 0.125  # cube(2) * 0.125 is 1
        x = (x.cpu() + 1).to(device)
    expected = 2.0
    for _ in range(3):
        expected = expected**3 * 0.125 + 1
    require(abs(x[0].item() - expected) < 1e-5, f"{x[0].item()} instead of {expected}")
    return "three rounds of all three have right results"


@item(
    "D8", "T", "deterministic results", hint="fix the order of accumulations under torch.use_deterministic_algorithms"
)
def deterministic(device: torch.device) -> str:
    """Under ``torch.use_deterministic_algorithms`` two runs of scatters and products have the same bits."""
    results = []
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for _ in range(2):
            torch.manual_seed(0)
            source = torch.randn(10000).to(device)
            where = torch.randint(10, (10000,)).to(device)
            total = torch.zeros(10, device=device).index_add(0, where, source)
            product = torch.randn(128, 512).to(device) @ torch.randn(512, 128).to(device)
            results.append((total.cpu(), product.cpu()))
    finally:
        torch.use_deterministic_algorithms(False)
    require(all(torch.equal(a, b) for a, b in zip(*results, strict=True)), "two runs differ")
    return "index_add and products repeat bit by bit"


@item("D9", "P", "tolerance per operator and dtype", hint="publish the errors of results against a float64 reference")
def tolerances(device: torch.device) -> str:
    """Errors of products, softmax and norms against a float64 reference stay within each dtype's rounding."""
    needs_accelerator(device, "tolerances, because it is the reference")
    texts = []
    for dtype, allowed in ((torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)):
        torch.manual_seed(0)
        x = torch.randn(64, 64, dtype=torch.float64)
        worst = 0.0
        for function in (
            lambda t: t @ t / 8,
            lambda t: t.softmax(-1),
            lambda t: torch.nn.functional.layer_norm(t, (64,)),
        ):
            exact = function(x.to(dtype).double())
            result = function(x.to(dtype).to(device)).double().cpu()
            worst = max(worst, float((result - exact).abs().max() / exact.abs().max()))
        require(worst <= allowed, f"{str(dtype).split('.')[-1]}: error {worst:.1e}, allowed {allowed:.0e}")
        texts.append(f"{str(dtype).split('.')[-1]} {worst:.1e}")
    return "largest errors: " + ", ".join(texts)


@item("D4", "T", "a violated limit raises a sentence with a line", hint="name the limit, the request, and the line")
def constraints(device: torch.device) -> str:
    """A dtype or an amount of memory that the chip does not have is refused with operator and line."""
    needs_chip(device, "the limits are read from a chip file")
    program = _VIOLATION.format(amount="torch.zeros(2, dtype=torch.float64, device='chip').cos()")
    dtype = _last_line(program, BRINGUP_CHIP="tpu-v5e", BRINGUP_STRICT="1")
    require("float64" in dtype and ".py:" in dtype, f"the error for a dtype that the chip lacks: {dtype}")
    memory = _last_line(_VIOLATION.format(amount="torch.empty(1 << 50, device='chip')"))
    require("out of memory" in memory and ".py:" in memory, f"the error for memory that the chip lacks: {memory}")
    return dtype[:150]


_VIOLATION = """
import torch
try:
    {amount}
except Exception as error:
    print(str(error).splitlines()[0])
"""


def _last_line(program: str, **environment: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "program.py"
        file.write_text(program, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(file)], capture_output=True, text=True, env={**os.environ, **environment}
        )
    return (done.stdout.strip().splitlines() or ["no error is raised"])[-1]
