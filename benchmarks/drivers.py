"""A driver against the CPU: losses of training, and operators in several layouts, with what ran where.

``BRINGUP_DRIVER=cuda python benchmarks/drivers.py losses|operators [h100-sxm]``
"""

import json
import os
import sys
import time
from collections.abc import Callable

import torch
from models import Block
from torch import nn
from torch.nn import functional

import bringup

BATCH, CONTEXT, WIDTH, HEADS, LAYERS, VOCABULARY, STEPS = 8, 128, 256, 8, 4, 256, 8


class GPT(nn.Module):
    """Radford et al. 2019, small."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS) for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (batch, length) to logits."""
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.blocks(x)))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, VOCABULARY)
    )


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True),
}


def train(device: str, make: Callable[[], nn.Module], optimizer: str) -> tuple[list[float], float, float]:
    """Return the losses, a sum over the parameters, and the seconds of the fastest step."""
    torch.manual_seed(0)
    model = make().to(device)
    generator = torch.Generator().manual_seed(1)
    data = torch.randint(VOCABULARY, (STEPS, BATCH, CONTEXT + 1), generator=generator)
    stepper = OPTIMIZERS[optimizer](model.parameters())
    losses, fastest = [], float("inf")
    for tokens in data:
        start = time.perf_counter()
        tokens = tokens.to(device)
        stepper.zero_grad()
        loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        stepper.step()
        losses.append(loss.item())
        fastest = min(fastest, time.perf_counter() - start)
    total = sum(p.detach().cpu().double().abs().sum().item() for p in model.parameters())
    return losses, total, fastest


def ledger() -> str:
    facts = json.loads(torch.ops.bringup.driver_ledger())
    torch.ops.bringup.clear_driver_ledger()
    host = sorted(facts["on_host"], key=lambda row: -row["launches"])
    down, up = (sum(row[key] for row in host) / 2**20 for key in ("bytes_down", "bytes_up"))
    named = "; ".join(f"{row['op'][6:]} {row['launches']}x {row['reason']}" for row in host[:2])
    launches = f"device {sum(facts['on_device'].values())} host {sum(row['launches'] for row in host)}"
    return f"{launches} ({down:.1f} MiB down, {up:.1f} MiB up) {named}"


def losses() -> bool:
    good = True
    for name, make in (("mlp", mlp), ("gpt", GPT)):
        for optimizer in OPTIMIZERS:
            cpu, cpu_total, cpu_seconds = train("cpu", make, optimizer)
            chip, chip_total, chip_seconds = train("chip", make, optimizer)
            error = max(abs(a - b) / abs(a) for a, b in zip(cpu, chip, strict=True))
            weights = abs(cpu_total - chip_total) / cpu_total
            good &= error < 1e-4
            print(
                f"{name:4}{optimizer:6} loss {chip[-1]:.5f} error {error:.1e} weights {weights:.1e} "
                f"step {chip_seconds * 1e3:.2f} ms (cpu {cpu_seconds * 1e3:.1f}) {ledger()}",
                flush=True,
            )
    return good


def _layouts(rows: int, columns: int) -> dict[str, torch.Tensor]:
    base = torch.randn(rows, 2 * columns + 3)
    return {
        "contiguous": torch.randn(rows, columns),
        "strided": base[:, 1 : 2 * columns + 1 : 2],
        "transposed": torch.randn(columns, rows).t(),
        "offset": torch.randn(rows + 1, columns)[1:],
        "broadcast": torch.randn(1, columns).expand(rows, columns),
    }


F = functional
Two = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
OPERATORS: dict[str, Two] = {
    "add": lambda x, y: torch.add(x, y, alpha=0.5),
    "add number": lambda x, y: x + 2.5,
    "sub": lambda x, y: x - y,
    "rsub": lambda x, y: 1 - x,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / (y.abs() + 1),
    "row broadcast": lambda x, y: x * y[:1] + y[:, :1],
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "compare": lambda x, y: (x < y) | (x >= 0.5) | (x == y),
    "where": lambda x, y: torch.where(x > y, x, y),
    "masked_fill": lambda x, y: x.masked_fill(y > 0, -1.5),
    "relu": lambda x, y: F.relu(x),
    "tanh": lambda x, y: torch.tanh(x),
    "exp": lambda x, y: torch.exp(x),
    "log": lambda x, y: torch.log(x.abs() + 1),
    "sqrt": lambda x, y: torch.sqrt(x.abs() + 1),
    "rsqrt": lambda x, y: torch.rsqrt(x.abs() + 1),
    "reciprocal": lambda x, y: torch.reciprocal(x.abs() + 1),
    "neg": lambda x, y: -x,
    "abs": lambda x, y: x.abs(),
    "sigmoid": lambda x, y: torch.sigmoid(x),
    "silu": lambda x, y: F.silu(x),
    "gelu": lambda x, y: F.gelu(x),
    "gelu tanh": lambda x, y: F.gelu(x, approximate="tanh"),
    "pow": lambda x, y: (x.abs() + 1) ** 1.5 + x**2,
    "clamp": lambda x, y: x.clamp(-0.5, 0.7) + x.clamp(min=0.1),
    "to long": lambda x, y: (x * 10).to(torch.int64).to(torch.float32) + (x > 0),
    "copy": lambda x, y: x.t().contiguous(),
    "cat": lambda x, y: torch.cat([x, y, x], 1),
    "mm": lambda x, y: x @ y.t(),
    "bmm": lambda x, y: x.expand(3, -1, -1) @ y.t().expand(3, -1, -1),
    "addmm": lambda x, y: torch.addmm(y[:, :1].t(), x, y.t(), beta=0.5, alpha=2),
    "linear": lambda x, y: F.linear(x, y, y[:, 0]),
    "softmax": lambda x, y: F.softmax(x, -1),
    "log_softmax": lambda x, y: F.log_softmax(x, -1),
    "layer_norm": lambda x, y: F.layer_norm(x, x.shape[-1:], y[0], y[1]),
    "sum": lambda x, y: x.sum(0) + x.sum(),
    "mean": lambda x, y: x.mean(1, keepdim=True) + x.mean(),
    "norm": lambda x, y: torch.linalg.vector_norm(x) + torch.linalg.vector_norm(y, 1),
    "embedding": lambda x, y: F.embedding(torch.tensor([[0, 2, 1], [3, 3, 0]], device=x.device), x),
    "cross_entropy": lambda x, y: F.cross_entropy(x, torch.arange(x.shape[0], device=x.device) % x.shape[1]),
    "attention": lambda x, y: F.scaled_dot_product_attention(*(t.reshape(1, 2, -1, 6) for t in (x, y, x))),
    "in place": lambda x, y: x.clone().mul_(2).add_(y, alpha=3).sub_(1),
    "fill": lambda x, y: torch.zeros_like(x).fill_(3) + torch.full_like(x, 2),
}


def operators() -> bool:
    right, wrong, worst = 0, 0, (0.0, "")
    for name, operator in OPERATORS.items():
        for layout in ("contiguous", "strided", "transposed", "offset", "broadcast"):
            torch.manual_seed(0)
            x, y = _layouts(7, 12)[layout], _layouts(7, 12)["contiguous"]
            try:
                results = []
                for device in ("cpu", "chip"):
                    a, b = (t.to(device).detach().requires_grad_() for t in (x, y))
                    if layout == "strided":  # a copy to a device makes it dense
                        a = x.repeat_interleave(2, 1).to(device)[:, ::2].detach().requires_grad_()
                    result = operator(a, b)
                    grads = []
                    if result.requires_grad:
                        weights = torch.linspace(-1, 1, result.numel()).view(result.shape).to(device)
                        grads = torch.autograd.grad((result * weights).sum(), [a, b], allow_unused=True)
                    results.append([t.detach().cpu().double() for t in (result, *grads) if t is not None])
                for expected, found in zip(*results, strict=True):
                    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
                    worst = max(worst, ((found - expected).abs().max().item(), name))
                right += 1
            except (AssertionError, RuntimeError) as error:
                wrong += 1
                print(f"WRONG {name} {layout}: {str(error).strip().splitlines()[0][:120]}", flush=True)
    print(f"operators: {right} right, {wrong} wrong, worst error {worst[0]:.1e} ({worst[1]}); {ledger()}")
    return not wrong


def main() -> int:
    """Run the comparison that the command line names; return the exit code."""
    bringup.use(sys.argv[2] if len(sys.argv) > 2 else "h100-sxm", driver=os.environ.get("BRINGUP_DRIVER"))
    print("driver", torch.ops.bringup.driver_name())
    return 0 if {"losses": losses, "operators": operators}[sys.argv[1]]() else 1


if __name__ == "__main__":
    sys.exit(main())
