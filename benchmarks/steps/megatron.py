"""A training step of GPT on many chips, with the structure that Megatron-LM has published (arXiv 2205.05198).

    bringup run --dry --ranks 8 --cluster dgx-a100 benchmarks/steps/megatron.py 22b --microbatch 4 --recompute full

Products are divided over `--tensor` ranks, with an all-reduce in each direction, or with `--sequence` an all-gather and
a reduce-scatter. What Megatron has as one kernel is a compiled function here: bias with GELU, bias with dropout and
residual, scaled masked softmax. Weights are in float16, and gradients and the optimizer in float32.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import ranks
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Size:
    """The dimensions of a model."""

    width: int
    heads: int
    layers: int
    vocabulary: int = 51_200
    length: int = 2048


# arXiv 2205.05198, table 3
SIZES = {
    "tiny": Size(64, 8, 8, 256, 32),
    "22b": Size(6144, 64, 48),
    "175b": Size(12288, 96, 96),
    "530b": Size(20480, 128, 105),
    "1t": Size(25600, 160, 128),
}


class Tensors:
    """The ranks that share the products, and how their inputs and results are exchanged."""

    def __init__(self, group: Any, *, sequence: bool) -> None:
        self.group, self.sequence = group, sequence
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Add the parts of all ranks: whole on each, or a part of the sequence."""
        if self.size == 1:
            return x
        if not self.sequence:
            dist.all_reduce(x, group=self.group)
            return x
        part = x.new_empty(x.shape[0] // self.size, *x.shape[1:])
        dist.reduce_scatter_tensor(part, x.contiguous(), group=self.group)
        return part

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Return the whole sequence."""
        if self.size == 1 or not self.sequence:
            return x
        whole = x.new_empty(x.shape[0] * self.size, *x.shape[1:])
        dist.all_gather_into_tensor(whole, x.contiguous(), group=self.group)
        return whole


class _Column(torch.autograd.Function):
    """A product whose columns are divided: the input's gradient is reduced while that of the weight is computed."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, weight: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        context.tensors, context.weight = tensors, weight
        context.save_for_backward(x)
        return tensors.gather(x) @ weight.t()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (x,) = context.saved_tensors
        tensors, weight = context.tensors, context.weight
        whole = tensors.gather(x)
        into = gradient @ weight
        work = None
        if tensors.size > 1:
            if tensors.sequence:
                part = into.new_empty(x.shape)
                work = dist.reduce_scatter_tensor(part, into, group=tensors.group, async_op=True)
                into = part
            else:
                work = dist.all_reduce(into, group=tensors.group, async_op=True)
        accumulate(weight, gradient, whole)
        if work is not None:
            work.wait()
        return into, None, None


class _Row(torch.autograd.Function):
    """A product whose rows are divided: the results are reduced."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, weight: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        context.tensors, context.weight = tensors, weight
        context.save_for_backward(x)
        return tensors.reduce(x @ weight.t())

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (x,) = context.saved_tensors
        weight = context.weight
        whole = context.tensors.gather(gradient)
        into = whole @ weight
        accumulate(weight, whole, x)
        return into, None, None


def accumulate(weight: torch.Tensor, gradient: torch.Tensor, x: torch.Tensor) -> None:
    """Add a weight's gradient in float32. Megatron does it in the product's kernel, for which torch has no operator."""
    weight.main_grad += gradient.flatten(0, 1).t() @ x.flatten(0, 1)


class Parallel(nn.Module):
    """A linear layer whose weight is divided by columns or rows, without its bias, which a fused kernel adds."""

    def __init__(self, kind: Any, tensors: Tensors, rows: int, columns: int) -> None:
        super().__init__()
        self.kind, self.tensors = kind, tensors
        self.weight = nn.Parameter(torch.empty(columns, rows))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the result."""
        return self.kind.apply(x, self.weight, self.tensors)


def bias_gelu(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Add a bias and apply GELU, as one kernel."""
    return F.gelu(x + bias, approximate="tanh")


def bias_dropout_add(x: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Add a bias, drop, and add the residual, as one kernel."""
    return residual + F.dropout(x + bias, 0.1)


def masked_softmax(scores: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """Scale, mask and normalise scores, as one kernel."""
    return torch.softmax((scores * scale).masked_fill(mask, -65504.0), -1)


class Layer(nn.Module):
    """One layer; sequences are the first dimension."""

    def __init__(self, size: Size, tensors: Tensors, recompute: str, fused: dict[str, Any]) -> None:
        super().__init__()
        width, part = size.width, size.width // tensors.size
        self.heads, self.depth, self.recompute, self.fused = (
            size.heads // tensors.size,
            width // size.heads,
            recompute,
            fused,
        )
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = Parallel(_Column, tensors, width, 3 * part)
        self.qkv_bias = nn.Parameter(torch.empty(3 * part))
        self.dense, self.dense_bias = Parallel(_Row, tensors, part, width), nn.Parameter(torch.empty(width))
        self.up, self.up_bias = Parallel(_Column, tensors, width, 4 * part), nn.Parameter(torch.empty(4 * part))
        self.down, self.down_bias = Parallel(_Row, tensors, 4 * part, width), nn.Parameter(torch.empty(width))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Compute attention from its three inputs."""
        weights = self.fused["softmax"](torch.bmm(query.transpose(0, 1), key.permute(1, 2, 0)), mask, self.depth**-0.5)
        return torch.bmm(F.dropout(weights, 0.1), value.transpose(0, 1))

    def body(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Compute the layer."""
        mixed = self.qkv(self.norm1(x)) + self.qkv_bias
        length, batch, _ = mixed.shape
        parts = mixed.view(length, batch * self.heads, 3 * self.depth).split(self.depth, -1)
        if self.recompute == "selective":
            attended = checkpoint(self.attend, *parts, mask, use_reentrant=False)
        else:
            attended = self.attend(*parts, mask)
        attended = attended.transpose(0, 1).reshape(length, batch, -1)
        x = self.fused["dropout"](self.dense(attended), self.dense_bias, x)
        hidden = self.fused["gelu"](self.up(self.norm2(x)), self.up_bias)
        return self.fused["dropout"](self.down(hidden), self.down_bias, x)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Compute the result."""
        if self.recompute == "full":
            return checkpoint(self.body, x, mask, use_reentrant=False)
        return self.body(x, mask)


class Stage(nn.Module):
    """Layers from `first` to `last`, with the embedding or the loss's input if they are at an end."""

    def __init__(
        self, size: Size, tensors: Tensors, first: int, last: int, recompute: str, fused: dict[str, Any]
    ) -> None:
        super().__init__()
        self.tensors, self.vocabulary = tensors, size.vocabulary // tensors.size
        self.layers = nn.ModuleList(Layer(size, tensors, recompute, fused) for _ in range(first, last))
        self.words = nn.Embedding(self.vocabulary, size.width) if first == 0 else None
        self.places = nn.Parameter(torch.empty(size.length, 1, size.width)) if first == 0 else None
        self.norm = nn.LayerNorm(size.width) if last == size.layers else None
        self.output = Parallel(_Column, tensors, size.width, self.vocabulary) if last == size.layers else None
        self.register_buffer("mask", torch.empty(size.length, size.length, dtype=torch.bool), persistent=False)

    @torch.no_grad()
    def initialize(self) -> None:
        """Set parameters, and the float32 gradients of products."""
        self.mask.fill_(True).triu_(1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)
            parameter.main_grad = torch.zeros_like(parameter, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the result."""
        if self.words is not None:
            here = x.t() - self.tensors.rank * self.vocabulary
            outside = (here < 0) | (here >= self.vocabulary)
            x = self.words(here.masked_fill(outside, 0)).masked_fill(outside.unsqueeze(-1), 0.0)
            x = F.dropout(_Reduce.apply(x, self.tensors) + _part(self.places, self.tensors), 0.1)
        for layer in self.layers:
            x = layer(x, self.mask)
        return x if self.output is None else self.output(self.norm(x))


class _Reduce(torch.autograd.Function):
    """The sum over ranks, whose gradient is that of each."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        context.tensors = tensors
        return tensors.reduce(x)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return context.tensors.gather(gradient), None


def _part(x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    return x.chunk(tensors.size)[tensors.rank] if tensors.sequence else x


class _Sum(torch.autograd.Function):
    """The sum over ranks of numbers that each of them uses alike."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        x = x.clone()
        if tensors.size > 1:
            dist.all_reduce(x, group=tensors.group)
        return x

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def loss_of(logits: torch.Tensor, target: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """Return the mean cross entropy of words that are divided over the ranks, in float32."""
    logits, here = logits.float(), target.t() - tensors.rank * logits.shape[-1]
    largest = logits.detach().amax(-1, keepdim=True)
    if tensors.size > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=tensors.group)
    logits = logits - largest
    outside = (here < 0) | (here >= logits.shape[-1])
    right = logits.gather(-1, here.masked_fill(outside, 0).unsqueeze(-1)).squeeze(-1).masked_fill(outside, 0.0)
    return (_Sum.apply(logits.exp().sum(-1), tensors).log() - _Sum.apply(right, tensors)).mean()


class Optimizer:
    """Adam on float32 copies of the weights, one kernel for all; gradients are clipped to a norm of 1."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.copies = [nn.Parameter(parameter.detach().float()) for parameter in parameters]
        self.adam = torch.optim.AdamW(self.copies, lr=1e-4, fused=True)

    @torch.no_grad()
    def step(self, groups: list[Any]) -> None:
        """Update the weights from `main_grad`, and clear it."""
        for parameter, copy in zip(self.parameters, self.copies, strict=True):
            if parameter.grad is not None:
                parameter.main_grad += parameter.grad
                parameter.grad = None
            copy.grad = parameter.main_grad
        gradients = [copy.grad for copy in self.copies]
        norm = torch.stack(torch._foreach_norm(gradients)).norm() ** 2
        for group in groups:
            dist.all_reduce(norm, group=group)
        torch._foreach_mul_(gradients, (1.0 / norm.sqrt()).clamp(max=1.0))
        self.adam.step()
        torch._foreach_copy_(self.parameters, self.copies)
        torch._foreach_zero_(gradients)


def options() -> argparse.ArgumentParser:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=sorted(SIZES))
    parser.add_argument("--tensor", type=int, default=8)
    parser.add_argument("--pipeline", type=int, default=1)
    parser.add_argument("--schedule", default="1F1B")
    parser.add_argument(
        "--chunks", type=int, default=1, help="parts of the model per rank, if the schedule interleaves"
    )
    parser.add_argument("--microbatch", type=int, default=1, help="sequences of a microbatch")
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--recompute", choices=["none", "selective", "full"], default="full")
    parser.add_argument("--sequence", action="store_true", help="divide norms and dropout along the sequence")
    parser.add_argument("--shown", type=int, default=0, help="only this number of microbatches of this rank's stage")
    parser.add_argument("--layers", type=int, default=None, help="default: those of the size")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--device", default=None, help="default: the accelerator")
    return parser


def one_stage(stages: list[Stage], microbatches: int, group: Any, shape: tuple[int, ...]) -> None:
    """Train the chunks of a stage between two others on microbatches, one after the other."""
    ranks = dist.get_process_group_ranks(group)
    here = dist.get_rank(group)
    before, after = ranks[here - 1], ranks[(here + 1) % len(ranks)]
    example = next(stages[0].parameters())
    for _ in range(microbatches):
        for stage in stages:
            x = torch.empty(shape, dtype=example.dtype, device=example.device)
            dist.recv(x, before)
            y = stage(x.requires_grad_())
            dist.send(y.detach(), after)
            gradient = torch.empty_like(y)
            dist.recv(gradient, after)
            y.backward(gradient)
            dist.send(x.grad, before)


def main() -> None:
    """Train a few steps on random tokens and print the losses."""
    args = options().parse_args()
    size = SIZES[args.size] if args.layers is None else replace(SIZES[args.size], layers=args.layers)
    device = ranks.join(args.device)
    world, shared = dist.get_world_size(), args.tensor * args.pipeline
    if world != shared:
        raise SystemExit(f"{args.tensor} x {args.pipeline} ranks share the model, but there are {world}")
    mesh = init_device_mesh(device.type, (args.pipeline, args.tensor), mesh_dim_names=("pipeline", "tensor"))
    tensors = Tensors(mesh["tensor"].get_group(), sequence=args.sequence)
    fused = {"gelu": bias_gelu, "dropout": bias_dropout_add, "softmax": masked_softmax}
    if device.type != "cpu":
        fused = {name: torch.compile(function) for name, function in fused.items()}
    torch.manual_seed(0)

    schedule_type = get_schedule_class(args.schedule)
    chunks = args.chunks if issubclass(schedule_type, PipelineScheduleMulti) else 1
    number, count = mesh["pipeline"].get_local_rank(), args.pipeline * chunks
    each = [size.layers * i // count for i in range(count + 1)]
    own = range(number, count, args.pipeline)
    stages = []
    for i in own:
        with torch.device("meta"):
            stage = Stage(size, tensors, each[i], each[i + 1], args.recompute, fused)
        stage = stage.to(torch.float16 if device.type != "cpu" and args.size != "tiny" else torch.float32)
        stage.to_empty(device=device)
        stage.initialize()
        stages.append(stage)
    optimizer = Optimizer([parameter for stage in stages for parameter in stage.parameters()])

    def loss_function(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return loss_of(logits, target, tensors)

    pipeline = None
    if args.pipeline > 1 and not args.shown:
        group = mesh["pipeline"].get_group()
        parts = [PipelineStage(stage, i, count, device, group=group) for i, stage in zip(own, stages, strict=True)]
        pipeline = schedule_type(parts if chunks > 1 else parts[0], args.microbatches, loss_fn=loss_function)
    groups = [mesh[name].get_group() for name in ("tensor", "pipeline") if mesh[name].size() > 1]
    random = torch.Generator().manual_seed(1)
    batch = args.microbatch * args.microbatches
    for _ in range(args.steps):
        if args.shown:
            length = size.length // (args.tensor if args.sequence else 1)
            shape = (length, args.microbatch, size.width)
            one_stage(stages, args.shown, mesh["pipeline"].get_group(), shape)
            optimizer.step(groups)
            continue
        words = torch.randint(size.vocabulary, (batch, size.length + 1), generator=random)
        tokens, target = words[:, :-1].contiguous().to(device), words[:, 1:].contiguous().to(device)
        losses: list[torch.Tensor] = []
        if pipeline is None:
            for some, aim in zip(tokens.split(args.microbatch), target.split(args.microbatch), strict=True):
                losses.append(loss_function(stages[0](some), aim) / args.microbatches)
                losses[-1].backward()
        else:
            first = [tokens] if number == 0 else []
            last = {"target": target, "losses": losses} if number == args.pipeline - 1 else {}
            pipeline.step(*first, **last)
        optimizer.step(groups)
        if losses:
            print(f"rank {dist.get_rank()} loss {torch.stack(losses).sum().item():.6f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
