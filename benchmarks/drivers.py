"""A driver against the CPU: losses of training, and operators in several layouts, with what ran where.

``BRINGUP_DRIVER=cuda python benchmarks/drivers.py losses|operators``
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable

import torch
from models import Block, ResNet18
from torch import nn
from torch.nn import functional

import bringup

BATCH, CONTEXT, WIDTH, HEADS, LAYERS, VOCABULARY, STEPS = 4, 32, 64, 4, 4, 256, 20


class LanguageModel(nn.Module):
    """Embeds tokens and predicts words from what ``body`` makes of them."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.body, self.norm, self.head = body, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (batch, length) to logits."""
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.body(x)))


class Padded(nn.Module):
    """An encoder that does not attend to the last places, as BERT does with padding."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, length, width) to the same shape."""
        padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        padding[:, -2:] = True
        return self.encoder(x, src_key_padding_mask=padding)


class First(nn.Module):
    """The first result of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, length, width) to the same shape."""
        return self.layer(x)[0]


class UNet(nn.Module):
    """Ronneberger et al. 2015, small: two levels, group and batch norm, with what images go through elsewhere."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.GroupNorm(4, channels), nn.SiLU())
        self.down = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels), nn.ReLU()
        )
        self.deep = nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(2 * channels, 2 * channels, 3, padding=2, dilation=2, groups=4), nn.GELU()
        )
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.last = nn.Conv2d(2 * channels, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, 3, H, W) to the same shape."""
        first = self.first(x)
        down = self.down(first)
        deep = functional.interpolate(self.deep(down), scale_factor=2, mode="bilinear")
        return self.last(torch.cat([self.up(down + deep), first], 1))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True)
    return Padded(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, VOCABULARY)
    )


def word_loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def class_loss(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(images), torch.arange(len(images), device=images.device))


def image_loss(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(model(images), images.roll(1, 2))


def tokens(generator: torch.Generator) -> torch.Tensor:
    return torch.randint(VOCABULARY, (BATCH, CONTEXT + 1), generator=generator)


def images(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(4, 3, 64, 64, generator=generator)


Loss = Callable[[nn.Module, torch.Tensor], torch.Tensor]
PROGRAMS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], torch.Tensor], Loss]] = {
    "mlp": (mlp, tokens, word_loss),
    "gpt": (lambda: LanguageModel(nn.Sequential(*(Block(WIDTH, HEADS) for _ in range(LAYERS)))), tokens, word_loss),
    "bert": (lambda: LanguageModel(encoder()), tokens, word_loss),
    "lstm": (lambda: LanguageModel(First(nn.LSTM(WIDTH, WIDTH, batch_first=True))), tokens, word_loss),
    "resnet": (lambda: ResNet18(10), images, class_loss),
    "unet": (UNet, images, image_loss),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    # For ResNet-18 on four images: with "sgd", weights that differ by 1e-7 change the CPU's loss by 5e-3 in 20 steps.
    "slow": lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True),
}


def train(device: str, program: str, optimizer: str) -> tuple[list[float], float, float]:
    """Return the losses, a sum over the parameters, and the seconds of the fastest step."""
    torch.manual_seed(0)
    make, draw, loss_of = PROGRAMS[program]
    model = make().to(device)
    generator = torch.Generator().manual_seed(1)
    stepper = OPTIMIZERS[optimizer](model.parameters())
    losses, fastest = [], float("inf")
    for _ in range(STEPS):
        data = draw(generator)
        start = time.perf_counter()
        stepper.zero_grad()
        loss = loss_of(model, data.to(device))
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


def losses(chosen: list[str]) -> bool:
    """Train each of the programs ``NAME`` or ``NAME/OPTIMIZER``; all of them by default."""
    good = True
    for pair in chosen or [f"{name}/{optimizer}" for name in PROGRAMS for optimizer in OPTIMIZERS]:
        name, _, optimizer = pair.partition("/")
        optimizer = optimizer or "sgd"
        cpu, cpu_total, cpu_seconds = train("cpu", name, optimizer)
        chip, chip_total, chip_seconds = train("chip", name, optimizer)
        error = max(abs(a - b) / abs(a) for a, b in zip(cpu, chip, strict=True))
        weights = abs(cpu_total - chip_total) / cpu_total
        good &= error < 1e-5
        print(
            f"{name:7}{optimizer:6} loss {chip[-1]:.5f} error {error:.1e} weights {weights:.1e} "
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
    "attention with a mask": lambda x, y: F.scaled_dot_product_attention(
        *(t.reshape(1, 2, -1, 6) for t in (x, y, x)),
        attn_mask=torch.linspace(-1, 1, 49, device=x.device, dtype=x.dtype).view(7, 7),
    ),
    "attention of grouped queries": lambda x, y: F.scaled_dot_product_attention(
        *(t.reshape(-1)[: heads * 18].reshape(1, heads, 3, 6) for t, heads in ((x, 4), (y, 2), (x, 2))),
        is_causal=True,
        enable_gqa=True,
    ),
    "fill by a mask": lambda x, y: x.index_put((y > 0,), torch.zeros((), device=x.device, dtype=x.dtype))
    + y.index_put((x[:, 0] > 0,), torch.ones(1, device=x.device, dtype=x.dtype)),
    "in place": lambda x, y: x.clone().mul_(2).add_(y, alpha=3).sub_(1),
    "power of tensors": lambda x, y: (x.abs() + 1) ** y,
    "remainder": lambda x, y: torch.remainder(x, 0.7) + torch.fmod(y, 0.7) + torch.floor_divide(x.detach(), 0.7),
    "trigonometry": lambda x, y: torch.sin(x) + torch.cos(y) + torch.atan(x) + torch.atan2(x, y.abs() + 1),
    "activations": lambda x, y: F.elu(x) * F.selu(y) + F.softplus(x),
    "more activations": lambda x, y: F.mish(y) * F.leaky_relu(x) + F.hardswish(y),
    "hard activations": lambda x, y: F.hardtanh(x) + F.hardsigmoid(y) + F.relu6(x) + F.threshold(y, 0.1, 2),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3) + torch.addcmul(x, x, y, value=0.5) + torch.addcdiv(x, x, y.abs() + 1),
    "logic": lambda x, y: (x > 0).logical_and(y > 0) ^ (x < y).logical_not(),
    "integers": lambda x, y: ((x * 10).to(torch.int32) * 3 - (y * 10).to(torch.int64)).clamp(-20, 20) & 7,
    "triangles": lambda x, y: x.tril(1) + y.triu(-1),
    "flip": lambda x, y: x.flip(0, 1) * y,
    "softmax of columns": lambda x, y: F.softmax(x, 0) + F.log_softmax(y, 0),
    "extremes": lambda x, y: x.max(1)[0] + y.amin(1) + x.max() + y.argmax(1),
    "variance": lambda x, y: x.var(0) + y.std(0, correction=0) + x.var(),
    "sums of dtypes": lambda x, y: (x > 0).sum(1) + (y * 10).to(torch.int64).sum(1) + (x > 1).any(1) + (y > -1).all(),
    "cumsum": lambda x, y: x.cumsum(0) + y.cumsum(1) + x.prod(1, keepdim=True),
    "rms_norm": lambda x, y: F.rms_norm(x, x.shape[-1:], y[0], 1e-5),
    "group_norm": lambda x, y: F.group_norm(x.reshape(1, 12, 7), 3, y[0], y[1]),
    "batch_norm": lambda x, y: F.batch_norm(x + y.detach(), None, None, y[0], y[1], training=True),
    "running batch_norm": lambda x, y: F.batch_norm(x, y[0].detach() * 0, y[1].detach() ** 2, training=False),
    "convolution": lambda x, y: F.conv2d(
        x.reshape(1, 2, 6, 7), y[:, :8].reshape(7, 2, 2, 2), y[:, 0], stride=2, padding=1
    ),
    "convolution by groups": lambda x, y: F.conv2d(
        x.reshape(1, 2, 6, 7), y[:4, :9].reshape(4, 1, 3, 3), dilation=2, padding=2, groups=2
    ),
    "convolution of channels last": lambda x, y: F.conv2d(
        x.reshape(1, 2, 6, 7).contiguous(memory_format=torch.channels_last), y[:4, :8].reshape(4, 2, 2, 2)
    ),
    "convolution over one dimension": lambda x, y: F.conv1d(x.reshape(3, 4, 7), y[:3].reshape(3, 4, 3), padding=1),
    "transposed convolution": lambda x, y: F.conv_transpose2d(
        x.reshape(1, 2, 6, 7), y[:4, :6].reshape(2, 3, 2, 2), stride=2, padding=1, output_padding=1
    ),
    "max_pool": lambda x, y: F.max_pool2d(x.reshape(1, 2, 6, 7), 3, 2, 1)
    + F.adaptive_max_pool2d(y.reshape(1, 2, 6, 7), (3, 4)),
    "avg_pool": lambda x, y: F.avg_pool2d(x.reshape(1, 2, 6, 7), 3, 2, 1, count_include_pad=False)
    + F.adaptive_avg_pool2d(y.reshape(1, 2, 6, 7), (3, 4)),
    "interpolate": lambda x, y: F.interpolate(x.reshape(1, 2, 6, 7), scale_factor=2)
    + F.interpolate(y.reshape(1, 2, 6, 7), (12, 14), mode="bilinear"),
    "gather": lambda x, y: x.gather(1, torch.tensor([[0, 2, 2], [5, 1, 0]], device=x.device)),
    "scatter": lambda x, y: x.scatter(1, torch.tensor([[0, 2, 4], [5, 1, 0]], device=x.device), y[:2, :3]),
    "scatter_add": lambda x, y: x.scatter_add(0, torch.tensor([[0, 2, 4], [0, 1, 4]], device=x.device), y[:2, :3]),
    "index_select": lambda x, y: x.index_select(1, torch.tensor([3, 0, 3], device=x.device)),
    "index_add": lambda x, y: x.index_add(0, torch.tensor([3, 0, 3], device=x.device), y[:3], alpha=2),
    "index_copy": lambda x, y: x.index_copy(0, torch.tensor([3, 0], device=x.device), y[:2]),
    "roll": lambda x, y: x.roll((3, -2), (0, 1)) + F.glu(y, 0 if y.shape[0] % 2 == 0 else 1).sum(),
    "index": lambda x, y: x[torch.tensor([[3, 0], [-1, 3]], device=x.device)] * y[0],
    "index_put": lambda x, y: x.index_put(
        (torch.tensor([3, 0, 3], device=x.device), torch.tensor([1, 1, 1], device=x.device)), y[0, :3], accumulate=True
    ),
    "weighted cross_entropy": lambda x, y: F.cross_entropy(
        x, torch.arange(x.shape[0], device=x.device) % 5, weight=y[0].detach().abs(), ignore_index=2, reduction="none"
    ),
    "losses": lambda x, y: F.mse_loss(x, y) + F.smooth_l1_loss(x, y, reduction="sum") + F.huber_loss(x, y, delta=0.5),
    "binary cross entropy": lambda x, y: F.binary_cross_entropy(torch.sigmoid(x), torch.sigmoid(y).detach()),
    "empty": lambda x, y: torch.cat([x[:0], x, y[:0]]) + (x[:0] * 2 + 1).sum() + y[:0].t() @ x[:0] @ y[0],
    "fill": lambda x, y: torch.zeros_like(x).fill_(3) + torch.full_like(x, 2),
}


# The errors that rounding explains: results of half precision are compared with those of the CPU in half precision.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def _result(operator: Two, layout: str, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    x, y = (_layouts(7, 12)[name].to(dtype) for name in (layout, "contiguous"))
    a, b = (t.to(device).detach().requires_grad_() for t in (x, y))
    if layout == "strided":  # a copy to a device makes it dense
        a = x.repeat_interleave(2, 1).to(device)[:, ::2].detach().requires_grad_()
    result = operator(a, b)
    grads: tuple[torch.Tensor | None, ...] = ()
    if result.requires_grad:
        weights = torch.linspace(-1, 1, result.numel()).to(dtype).view(result.shape).to(device)
        grads = torch.autograd.grad((result * weights).sum(), [a, b], allow_unused=True)
    return [t.detach().cpu().double() for t in (result, *grads) if t is not None]


def operators(chosen: list[str]) -> bool:
    """Compare operators whose names contain one of the words; all of them by default."""
    right, wrong = 0, 0
    worst = dict.fromkeys(TOLERANCES, (0.0, ""))
    for name, operator in OPERATORS.items():
        if chosen and not any(word in name for word in chosen):
            continue
        for dtype, tolerance in TOLERANCES.items():
            for layout in ("contiguous", "strided", "transposed", "offset", "broadcast"):
                if dtype != torch.float32 and layout not in ("contiguous", "strided"):
                    continue
                try:
                    results = [_result(operator, layout, dtype, device) for device in ("cpu", "chip")]
                    for expected, computed in zip(*results, strict=True):
                        torch.testing.assert_close(computed, expected, rtol=tolerance, atol=tolerance)
                        worst[dtype] = max(worst[dtype], ((computed - expected).abs().max().item(), name))
                    right += 1
                except (AssertionError, RuntimeError) as error:
                    wrong += 1
                    print(f"WRONG {name} {layout} {dtype}: {str(error).strip().splitlines()[0][:120]}", flush=True)
    errors = ", ".join(f"{error:.1e} in {str(dtype)[6:]} ({name})" for dtype, (error, name) in worst.items())
    print(f"operators: {right} right, {wrong} wrong, worst errors {errors}; {ledger()}")
    return not wrong


def main() -> int:
    """Run the comparison that the command line names; return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("losses", "operators"))
    parser.add_argument("names", nargs="*", help="of programs (mlp, gpt/fused), or words of operators")
    parser.add_argument("--chip", default="h100-sxm")
    options = parser.parse_args()
    bringup.use(options.chip, driver=os.environ.get("BRINGUP_DRIVER"))
    print("driver", torch.ops.bringup.driver_name())
    return 0 if {"losses": losses, "operators": operators}[options.what](options.names) else 1


if __name__ == "__main__":
    sys.exit(main())
