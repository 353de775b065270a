"""A training step of a mixture of experts on many chips, with the structure that DeepSeek-V3 has published.

    bringup run --dry --ranks 256 --cluster dgx-h100x32 benchmarks/steps/moe.py v3 --layers 4 --experts-over 64
    bringup run --nproc 4 benchmarks/steps/moe.py tiny --experts-over 2

Attention with compressed queries and keys, a router with sigmoids and a bias for balance instead of a loss, an expert
that all tokens share, and experts divided over ranks: tokens travel by two all-to-alls whose sizes the router decides
(arXiv 2412.19437). FSDP2 shards the rest over all ranks. It knows nothing of bringup.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import ranks
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed import fsdp
from torch.distributed._functional_collectives import all_to_all_single, all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@dataclass(frozen=True)
class Size:
    """The dimensions of a model: of the compressed states, of a head's part with and without positions, of experts."""

    width: int
    layers: int
    dense_layers: int
    heads: int
    query_rank: int
    key_rank: int
    plain_depth: int
    turned_depth: int
    hidden: int
    experts: int
    chosen: int
    expert_hidden: int
    scale: float
    vocabulary: int


# arXiv 2412.19437, section 4.2
SIZES = {
    "tiny": Size(64, 3, 1, 4, 32, 16, 16, 8, 128, 8, 2, 32, 2.5, 256),
    "v3": Size(7168, 61, 3, 128, 1536, 512, 128, 64, 18432, 256, 8, 2048, 2.5, 129_280),
}


def turned(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn pairs of features by the angles of their positions; batch, length, heads, depth."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns.view(1, x.shape[1], 1, -1)).flatten(3).type_as(x)


class Attention(nn.Module):
    """Causal attention whose keys and values come from one short vector per token."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size, whole = size, size.plain_depth + size.turned_depth
        self.query_down = nn.Linear(size.width, size.query_rank, bias=False)
        self.query_norm = nn.RMSNorm(size.query_rank)
        self.query_up = nn.Linear(size.query_rank, size.heads * whole, bias=False)
        self.key_down = nn.Linear(size.width, size.key_rank + size.turned_depth, bias=False)
        self.key_norm = nn.RMSNorm(size.key_rank)
        self.key_up = nn.Linear(size.key_rank, size.heads * 2 * size.plain_depth, bias=False)
        self.out = nn.Linear(size.heads * size.plain_depth, size.width, bias=False)

    def forward(self, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """Compute the result."""
        size = self.size
        query = self.query_up(self.query_norm(self.query_down(x))).unflatten(-1, (size.heads, -1))
        query, query_turned = query.split([size.plain_depth, size.turned_depth], -1)
        short, key_turned = self.key_down(x).split([size.key_rank, size.turned_depth], -1)
        key, value = self.key_up(self.key_norm(short)).unflatten(-1, (size.heads, -1)).chunk(2, -1)
        key_turned = turned(key_turned.unsqueeze(2), turns).expand(-1, -1, size.heads, -1)
        query = torch.cat([query, turned(query_turned, turns)], -1)
        key = torch.cat([key, key_turned], -1)
        padded = F.pad(value, (0, size.turned_depth))  # kernels want values as deep as keys
        mixed = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (query, key, padded)), is_causal=True)
        return self.out(mixed[..., : size.plain_depth].transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the result."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Router(nn.Module):
    """Chooses experts by a sigmoid and a bias, which no gradient changes, and weighs them by the sigmoids alone."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.chosen, self.scale = size.chosen, size.scale
        self.to_experts = nn.Linear(size.width, size.experts, bias=False)
        self.register_buffer("balance", torch.zeros(size.experts), persistent=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the numbers of the chosen experts of each token, and their weights."""
        scores = self.to_experts(x).float().sigmoid()
        chosen = torch.topk(scores.detach() + self.balance, self.chosen, -1).indices
        weights = scores.gather(-1, chosen)
        return chosen, self.scale * weights / weights.sum(-1, keepdim=True)


class Experts(nn.Module):
    """The experts of this rank, and the way of tokens to those of other ranks and back."""

    def __init__(self, size: Size, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group, self.ranks = group, group.size()
        self.each = size.experts // self.ranks
        self.experts = nn.ModuleList(FeedForward(size.width, size.expert_hidden) for _ in range(self.each))

    def forward(self, tokens: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return each token's results of the chosen experts; tokens, chosen experts, width."""
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=self.each * self.ranks)
        counts_here = all_to_all_single(counts, None, None, self.group)  # by rank, then by expert of this rank
        sent = counts.view(self.ranks, -1).sum(1).tolist()
        by_rank = counts_here.view(self.ranks, -1)
        received = by_rank.sum(1).tolist()
        rows = tokens[order // chosen.shape[1]]
        rows = all_to_all_single_autograd(rows, received, sent, self.group)
        expert_of = torch.arange(self.each, device=tokens.device).repeat(self.ranks)
        expert_of = expert_of.repeat_interleave(by_rank.flatten(), output_size=len(rows))
        by_expert = expert_of.argsort(stable=True)
        parts = rows[by_expert].split(by_rank.sum(0).tolist())
        done = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        back = torch.empty_like(done).index_copy(0, by_expert, done)
        back = all_to_all_single_autograd(back, sent, received, self.group)
        return torch.empty_like(back).index_copy(0, order, back).view(*chosen.shape, -1)


class Mixture(nn.Module):
    """The shared expert and the chosen ones."""

    def __init__(self, size: Size, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.router, self.shared = Router(size), FeedForward(size.width, size.expert_hidden)
        self.routed = Experts(size, group)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the result."""
        tokens = x.flatten(0, 1)
        chosen, weights = self.router(tokens)
        results = self.routed(tokens, chosen)
        return self.shared(x) + (results * weights.unsqueeze(-1).type_as(results)).sum(1).view_as(x)


class Block(nn.Module):
    """One layer."""

    def __init__(self, size: Size, group: dist.ProcessGroup, number: int) -> None:
        super().__init__()
        self.attention_norm, self.feed_norm = nn.RMSNorm(size.width), nn.RMSNorm(size.width)
        self.attention = Attention(size)
        dense = number < size.dense_layers
        self.feed = FeedForward(size.width, size.hidden) if dense else Mixture(size, group)

    def forward(self, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """Compute the result."""
        x = x + self.attention(self.attention_norm(x), turns)
        return x + self.feed(self.feed_norm(x))


class Model(nn.Module):
    """Embedding, layers and output."""

    def __init__(self, size: Size, length: int, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocabulary, size.width)
        self.layers = nn.ModuleList(Block(size, group, number) for number in range(size.layers))
        self.norm = nn.RMSNorm(size.width)
        self.output = nn.Linear(size.width, size.vocabulary, bias=False)
        self.register_buffer("turns", torch.empty(length, size.turned_depth // 2, dtype=torch.complex64), False)
        self.depth = size.turned_depth

    @torch.no_grad()
    def initialize(self) -> None:
        """Set parameters, angles and balances."""
        for name, parameter in self.named_parameters():
            nn.init.ones_(parameter) if "norm" in name else nn.init.normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, Router):
                module.balance.zero_()
        device = self.turns.device
        steps = 1.0 / 10_000.0 ** (torch.arange(0, self.depth, 2, device=device).float() / self.depth)
        angles = torch.outer(torch.arange(len(self.turns), device=device).float(), steps)
        self.turns.copy_(torch.polar(torch.ones_like(angles), angles))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compute the result."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.turns)
        return self.output(self.norm(x))


def with_fsdp(model: Model, mesh: DeviceMesh) -> None:
    """Shard experts over the ranks that have the same ones, and all other parameters over all ranks."""
    policy = fsdp.MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    everyone = mesh["data", "expert"]._flatten("everyone")
    for layer in model.layers:
        if isinstance(layer.feed, Mixture):
            experts = layer.feed.routed
            fsdp.fully_shard(experts, mesh=mesh["data"], mp_policy=policy)
            experts.set_gradient_divide_factor(float(everyone.size()))  # their tokens come from all ranks
            experts.set_force_sum_reduction_for_comms(mesh.device_type == "cpu")  # gloo only sums
        fsdp.fully_shard(layer, mesh=everyone, mp_policy=policy)
    fsdp.fully_shard(model, mesh=everyone, mp_policy=policy)


def options() -> argparse.ArgumentParser:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=sorted(SIZES))
    parser.add_argument("--batch", type=int, default=1, help="sequences per rank")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--layers", type=int, default=None, help="default: those of the size")
    parser.add_argument("--experts-over", type=int, default=1, help="ranks over which experts are divided")
    parser.add_argument("--device", default=None, help="default: the accelerator")
    return parser


def main() -> None:
    """Train a few steps on random tokens and print the losses."""
    args = options().parse_args()
    device = ranks.join(args.device)
    size, world = SIZES[args.size], dist.get_world_size()
    if args.layers:
        size = replace(size, layers=args.layers)
    if world % args.experts_over or size.experts % args.experts_over:
        raise SystemExit(f"{world} ranks and {size.experts} experts are not both divisible by {args.experts_over}")
    mesh = init_device_mesh(
        device.type, (world // args.experts_over, args.experts_over), mesh_dim_names=("data", "expert")
    )
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Model(size, args.length, mesh["expert"].get_group())
    with_fsdp(model, mesh)
    model.to_empty(device=device)
    model.initialize()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, foreach=True)
    random = torch.Generator().manual_seed(1 + dist.get_rank())
    for _ in range(args.steps):
        tokens = torch.randint(size.vocabulary, (args.batch, args.length + 1), generator=random).to(device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        print(f"rank {dist.get_rank()} loss {loss.item():.9f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
