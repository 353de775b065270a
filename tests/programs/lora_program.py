"""A published fine-tuning program: LitGPT's LoRA of Llama-2-7B in bfloat16, in October 2023."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDE, HEADS, INNER, LAYERS, WORDS, RANK, TOKENS = 4096, 32, 11008, 32, 32000, 8, 1304


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(WIDE), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        full = x.float()
        normed = full * torch.rsqrt(torch.mean(full * full, dim=-1, keepdim=True) + 1e-5)
        return (self.weight * normed).to(x.dtype)


def frozen(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False).requires_grad_(False)


class LoRA(nn.Module):
    """The product with q, k and v, of which q and v have low-rank updates."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = frozen(WIDE, 3 * WIDE), nn.Dropout(0.05)
        self.a, self.b = nn.Parameter(torch.empty(2 * RANK, WIDE)), nn.Parameter(torch.empty(2 * WIDE, RANK, 1))
        self.rows = [*range(WIDE), *range(2 * WIDE, 3 * WIDE)]

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(self.dropout(x), self.a)
        update = F.conv1d(low.transpose(1, 2), self.b, groups=2).transpose(1, 2).transpose(0, 1)
        flat = update.new_zeros(update.shape[0] * update.shape[1], 3 * WIDE)
        flat = flat.index_copy(1, torch.tensor(self.rows, device=x.device), update.reshape(-1, 2 * WIDE))
        return self.linear(x) + flat.view(*update.shape[:2], -1).transpose(0, 1) * 2.0


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat((-second, first), -1) * sin).type_as(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2, self.qkv, self.out = Norm(), Norm(), LoRA(), frozen(WIDE, WIDE)
        self.gate, self.up, self.down = frozen(WIDE, INNER), frozen(WIDE, INNER), frozen(INNER, WIDE)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, _ = x.shape
        qkv = self.qkv(self.norm_1(x)).view(rows, length, HEADS, 3, WIDE // HEADS).permute(0, 2, 3, 1, 4)
        q, k, v = (part.reshape(rows, HEADS, length, -1) for part in qkv.split((1, 1, 1), 2))
        q, k = (torch.cat((rotary(part, cos, sin), part[..., WIDE:]), -1) for part in (q, k))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(rows, length, WIDE))
        normed = self.norm_2(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDE).requires_grad_(False)
        self.blocks, self.norm, self.head = nn.ModuleList(Block() for _ in range(LAYERS)), Norm(), frozen(WIDE, WORDS)
        angles = torch.empty(TOKENS, WIDE // HEADS, dtype=torch.float32)
        self.cos, self.sin = nn.Buffer(angles.cos(), persistent=False), nn.Buffer(angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> list[Tensor]:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return [self.head(part).float() for part in self.norm(x).split(128, 1)]


def step(model: Llama, optimizer: torch.optim.Optimizer, batch: int) -> None:
    ids = torch.randint(WORDS, (batch, TOKENS), device="cuda")
    logits, targets = model(ids), ids.split(128, 1)
    parts = [
        F.cross_entropy(one.flatten(0, 1), target.flatten(), reduction="none")
        for one, target in zip(logits, targets, strict=True)
    ]
    torch.cat(parts).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Llama()
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad])
    for _ in range(2):
        step(model, optimizer, batch=int(sys.argv[1]))
    print("peak", torch.cuda.max_memory_allocated())
