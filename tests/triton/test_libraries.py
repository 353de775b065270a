"""Libraries of kernels, unchanged: Inductor's Triton code, Liger, FlagGems."""

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import without_bringup

pytest.importorskip("triton", reason="needs bringup[triton]")

GPT = """
import copy, torch, torch.nn as nn, torch.nn.functional as F
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))
    def forward(self, x):
        q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in self.qkv(self.a(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.b(x))
torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(100, 32), Block(), Block(), nn.LayerNorm(32), nn.Linear(32, 100))
ids = torch.randint(0, 100, (4, 17))
def train(device):
    own = copy.deepcopy(model).to(device)
    optimizer = torch.optim.AdamW(own.parameters(), 1e-3)
    run = torch.compile(own) if device == "chip" else own
    x, y, losses = ids[:, :-1].to(device), ids[:, 1:].to(device), []
    for _ in range(5):
        loss = F.cross_entropy(run(x).flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
for a, b in zip(train("cpu"), train("chip")):
    print(f"{a:.6f} {b:.6f} {abs(a - b):.1e}")
"""


@pytest.mark.parametrize("name", ["chip", "cuda"])
def test_inductors_triton_code_trains_a_gpt_as_the_cpu_does(
    bringup_run: Callable[..., Any], tmp_path: Any, name: str
) -> None:
    (tmp_path / "gpt.py").write_text(GPT.replace("chip", name))
    options = ["--cuda"] if name == "cuda" else []
    done = bringup_run(*options, "--compile", "triton", "--out", "report", "gpt.py")
    assert done.returncode == 0, done.stderr
    losses = re.findall(r"^(\d\.\d+) (\d\.\d+) (\S+)$", done.stdout, re.M)
    assert len(losses) == 5 and all(float(off) < 5e-6 for *_, off in losses), done.stdout
    kernels = json.loads((tmp_path / "report" / "summary.json").read_text())["kernels"]
    lines = {item["line"] for item in kernels if item["op"].startswith("triton::triton_")}
    assert any(line.startswith("gpt.py:") for line in lines), "the program's line, not one of Inductor's code"
    assert not any("<string>" in line or "torchinductor" in line for line in lines)


def test_kernel_debug_runs_kernels_in_the_interpreter(bringup_run: Callable[..., Any], tmp_path: Any) -> None:
    (tmp_path / "debug.py").write_text(
        """
import torch, triton, triton.language as tl
@triton.jit
def k(x, n: tl.constexpr):
    value = tl.load(x + tl.arange(0, n))
    print("inside", value.shape, type(value.handle.data).__name__)
    tl.store(x + tl.arange(0, n), value + 1)
x = torch.zeros(4, device="chip")
k[(1,)](x, 4)
print(x.tolist())
"""
    )
    done = bringup_run("--kernel-debug", "--out", "report", "debug.py")
    assert "inside" in done.stdout and "ndarray" in done.stdout and "[1.0, 1.0, 1.0, 1.0]" in done.stdout, done.stderr


def compare(
    ours: Callable[..., Any], theirs: Callable[..., Any], *given: torch.Tensor, tolerance: float = 1e-4
) -> None:
    """Forward and backward, on the chip and by torch on the CPU."""
    on_chip = [x.to("chip").requires_grad_(x.is_floating_point()) for x in given]
    on_cpu = [x.clone().requires_grad_(x.is_floating_point()) for x in given]
    found, expected = ours(*on_chip), theirs(*on_cpu)
    pairs = list(zip(found, expected, strict=True)) if isinstance(found, tuple) else [(found, expected)]
    for a, b in pairs:
        torch.testing.assert_close(a.detach().cpu(), b.detach(), atol=tolerance, rtol=tolerance)
    grads = [torch.randn_like(b) for _, b in pairs]
    torch.autograd.backward([a for a, _ in pairs], [grad.to("chip") for grad in grads])
    torch.autograd.backward([b for _, b in pairs], grads)
    for a, b in zip(on_chip, on_cpu, strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad.cpu(), b.grad, atol=tolerance * 10, rtol=tolerance * 10)


def rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    def turned(x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        return torch.cat((-x[..., half:], x[..., :half]), -1)

    return q * cos[:, None] + turned(q) * sin[:, None], k * cos[:, None] + turned(k) * sin[:, None]


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["rms_norm", "layer_norm", "group_norm", "swiglu", "geglu", "cross_entropy", "fused_linear_cross_entropy", "rope"],
)
def test_liger_works_without_a_shim(name: str) -> None:
    from liger_kernel.transformers import functional

    torch.manual_seed(0)
    f = getattr(functional, f"liger_{name}")
    x, y, w, b = torch.randn(4, 16, 64), torch.randn(4, 16, 64), torch.rand(64), torch.rand(64)
    targets = torch.randint(0, 200, (32,))
    if name == "rms_norm":
        rms = lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w
        compare(lambda x, w: f(x, w, 1e-6), rms, x, w)
    elif name == "layer_norm":
        compare(lambda x, w, b: f(x, w, b, 1e-6), lambda x, w, b: F.layer_norm(x, (64,), w, b, 1e-6), x, w, b)
    elif name == "group_norm":
        x, w, b = torch.randn(4, 8, 64), torch.rand(8), torch.rand(8)
        compare(lambda x, w, b: f(x, w, b, 8, 4, 1e-6), lambda x, w, b: F.group_norm(x, 4, w, b, 1e-6), x, w, b)
    elif name == "swiglu":
        compare(f, lambda a, b: F.silu(a) * b, x, y)
    elif name == "geglu":
        compare(f, lambda a, b: F.gelu(a, approximate="tanh") * b, x, y)
    elif name == "cross_entropy":
        compare(f, F.cross_entropy, torch.randn(32, 200), targets)
    elif name == "fused_linear_cross_entropy":
        linear = lambda x, w, t: F.cross_entropy(x @ w.T, t)
        compare(f, linear, torch.randn(32, 16), torch.randn(200, 16), targets, tolerance=1e-3)
    else:
        angles = torch.arange(16)[:, None] * torch.randn(16)
        cos, sin = (torch.cat((t, t), -1)[None] for t in (angles.cos(), angles.sin()))
        q, k = torch.randn(2, 4, 16, 32), torch.randn(2, 2, 16, 32)
        compare(lambda q, k: f(q, k, cos.to("chip"), sin.to("chip")), lambda q, k: rope(q, k, cos, sin), q, k)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fla", "einops")), reason="needs fla-core and einops"
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["gla.chunk", "simple_gla.chunk", "delta_rule.fused_recurrent", "gated_delta_rule.chunk"]
)
def test_flash_linear_attention_works_without_a_shim(name: str) -> None:
    family, form = name.split(".")
    function = getattr(importlib.import_module(f"fla.ops.{family}"), f"{form}_{family}")
    naive = importlib.import_module(f"fla.ops.{family}.naive")
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 96, 2, 32) / 2 for _ in range(3))
    k, beta, gate = F.normalize(k, dim=-1), torch.rand(2, 96, 2), F.logsigmoid(torch.randn(2, 96, 2))
    if family == "gla":
        inputs, reference = (q, k, v, F.logsigmoid(torch.randn(2, 96, 2, 32))), naive.naive_recurrent_gla
    elif family == "simple_gla":
        inputs, reference = (q, k, v, gate), naive.naive_recurrent_simple_gla
    elif family == "delta_rule":
        inputs = (q, k, v, beta)

        def reference(*tensors: torch.Tensor) -> torch.Tensor:
            return naive.delta_rule_recurrence(*(t.transpose(1, 2) for t in tensors))[0].transpose(1, 2)
    else:
        inputs, reference = (
            (q, k, v, gate, beta),
            lambda q, k, v, g, b: naive.naive_recurrent_gated_delta_rule(q, k, v, b, g),
        )
    first = lambda made: made[0] if isinstance(made, tuple) else made
    compare(lambda *given: first(function(*given)), lambda *given: first(reference(*given)), *inputs, tolerance=1e-4)


FLAGGEMS = """
import torch
x, y = torch.randn(33, 50), torch.randn(50, 20)
a, b = x.to("chip"), y.to("chip")
for f in (lambda x, y: x @ y, lambda x, y: torch.softmax(x, 1), lambda x, y: (x * 2 + 1).relu().sum(0),
          lambda x, y: torch.nn.functional.layer_norm(x, (50,)), lambda x, y: x[:, :20].cumsum(1).max(1).values,
          lambda x, y: torch.where(x > 0, x, -x).exp().log(), lambda x, y: torch.cat((x, y.T), 0)):
    torch.testing.assert_close(f(a, b).cpu(), f(x, y), atol=1e-4, rtol=1e-4)
torch.manual_seed(3)
first = torch.rand(100, device="chip")
torch.manual_seed(3)
assert torch.equal(first, torch.rand(100, device="chip"))
print("right")
"""


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("flag_gems", "sqlalchemy")), reason="needs flag_gems"
)
def test_flaggems_operators_replace_torchs(bringup_run: Callable[..., Any], tmp_path: Any) -> None:
    (tmp_path / "ops.py").write_text(FLAGGEMS)
    done = bringup_run("--ops", "flaggems", "--out", "report", "ops.py")
    assert "right" in done.stdout, done.stderr[-2000:]
    assert "triton::" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("flag_gems", "sqlalchemy")), reason="needs flag_gems"
)
@pytest.mark.slow
def test_flaggems_conforms_but_for_its_own_faults(tmp_path: Any) -> None:
    command = [sys.executable, "-m", "bringup", "check", "--only", "D10", "--json", "card.json"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=500, env=without_bringup(), capture_output=True)
    (found,) = json.loads((tmp_path / "card.json").read_text())["items"]
    count = int(found["evidence"].split()[0])
    assert found["verdict"] == "pass" and count >= 200, found
    assert count / (count + int(re.search(r"(\d+) more", found["evidence"])[1])) >= 0.97, found


def test_flaggems_that_is_not_installed_is_said(bringup_run: Callable[..., Any], tmp_path: Any) -> None:
    if importlib.util.find_spec("flag_gems") is not None:
        pytest.skip("flag_gems is installed")
    (tmp_path / "ops.py").write_text("import torch\n")
    done = bringup_run("--ops", "flaggems", "--out", "report", "ops.py")
    assert done.returncode == 2 and "pip install flag_gems" in done.stderr


def test_custom_operator_of_a_kernel_has_gradients() -> None:
    from torch.library import triton_op, wrap_triton

    from tests.triton import tutorials

    @triton_op("bringup_tests::doubled", mutates_args={})
    def doubled(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        wrap_triton(tutorials.add_kernel)[(1,)](x, x, out, x.numel(), BLOCK=1024)
        return out

    doubled.register_autograd(lambda ctx, grad: grad * 2)
    x = torch.randn(100, device="chip", requires_grad=True)
    y = doubled(x)
    y.sum().backward()
    torch.testing.assert_close(y.detach().cpu(), x.detach().cpu() * 2)
    assert torch.equal(x.grad.cpu(), torch.full((100,), 2.0))
