"""Train a small GPT on its own source, as people do on a GPU: cuda, autocast, GradScaler, pinned memory, ms per step.

``bringup run --cuda --chip-time --chip t4 examples/gpt.py``, or with ``--compile`` at the end.
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

BATCH, CONTEXT, WIDTH, HEADS, LAYERS, STEPS = 8, 64, 128, 4, 2, 30

torch.manual_seed(1337)
torch.backends.cuda.matmul.allow_tf32 = True
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float16


class Block(nn.Module):
    """Attention and a perceptron, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, length, WIDTH) to the same."""
        batch, length, _ = x.shape
        heads = self.attention(self.norm1(x)).view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*heads.unbind(), is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Radford et al. 2019, small; bytes are its tokens."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of (batch, length) tokens."""
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        logits = self.head(self.norm(self.blocks(x)))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


text = Path(__file__).read_bytes()
data = torch.tensor(list(text))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    starts = torch.randint(len(data) - CONTEXT - 1, (BATCH,))
    rows = torch.stack([data[start : start + CONTEXT + 1] for start in starts])
    x, y = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    if device == "cuda":
        return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)
    return x, y


model = GPT(256).to(device)
print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on {next(model.parameters()).device}")
if "--compile" in sys.argv:
    model = torch.compile(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=device == "cuda")
scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

x, y = batch()
last = time.perf_counter()
for step in range(STEPS):
    with torch.autocast(device, dtype):
        loss = model(x, y)
    x, y = batch()  # while the device computes
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    if step % 10 == 9:
        value = loss.item()
        now = time.perf_counter()
        print(f"step {step + 1}: loss {value:.3f}, {(now - last) * 100:.2f} ms per step")
        last = now
