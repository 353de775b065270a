"""A training step of Llama 3 on many chips, with the structure that torchtitan has published.

    bringup run --dry --ranks 128 --cluster grand-teton benchmarks/steps/llama.py 8b --batch 2 --checkpoint selective
    bringup run --nproc 4 benchmarks/steps/llama.py tiny --tensor 2

RMS norm in float32, rotary embeddings as complex numbers, repeated keys and values, sequence parallel between products,
FSDP2 with parameters in bfloat16 and gradients reduced in float32, AdamW. It knows nothing of bringup.
"""

from __future__ import annotations

import argparse
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ranks
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed import fsdp
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts


@dataclass(frozen=True)
class Size:
    """The dimensions of a model."""

    width: int
    layers: int
    heads: int
    key_heads: int
    hidden: int
    vocabulary: int = 128_256


# github.com/pytorch/torchtitan at 9dec370, torchtitan/models/llama/__init__.py
SIZES = {
    "tiny": Size(64, 4, 4, 4, 128, 256),
    "8b": Size(4096, 32, 32, 8, 14336),
    "70b": Size(8192, 80, 64, 8, 28672),
    "405b": Size(16384, 126, 128, 8, 53248),
}


class Norm(nn.Module):
    """RMS norm in operators of its own, as it was before torch had a kernel for it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the result."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).type_as(x) * self.weight


def rotated(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn pairs of features by the angles of their positions."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns.view(1, x.shape[1], 1, -1)).flatten(3).type_as(x)


class Attention(nn.Module):
    """Causal attention in which several heads share keys and values."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.depth, self.copies = size.width // size.heads, size.heads // size.key_heads
        self.wq = nn.Linear(size.width, size.width, bias=False)
        self.wk = nn.Linear(size.width, size.key_heads * self.depth, bias=False)
        self.wv = nn.Linear(size.width, size.key_heads * self.depth, bias=False)
        self.wo = nn.Linear(size.width, size.width, bias=False)

    def forward(self, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """Compute the result."""
        batch, length, _ = x.shape
        query, key, value = (f(x).view(batch, length, -1, self.depth) for f in (self.wq, self.wk, self.wv))
        query, key = rotated(query, turns), rotated(key, turns)
        if self.copies > 1:
            key, value = (
                part.unsqueeze(3).expand(-1, -1, -1, self.copies, -1).reshape(batch, length, -1, self.depth)
                for part in (key, value)
            )
        mixed = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (query, key, value)), is_causal=True)
        return self.wo(mixed.transpose(1, 2).contiguous().view(batch, length, -1))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(size.width, size.hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(size.hidden, size.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the result."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """One layer."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = Norm(size.width), Norm(size.width)
        self.attention, self.feed_forward = Attention(size), FeedForward(size)

    def forward(self, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """Compute the result."""
        x = x + self.attention(self.attention_norm(x), turns)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """Layers from `first` to `last`; with the embedding if it has the first, with the output if it has the last."""

    def __init__(self, size: Size, length: int, first: int = 0, last: int | None = None) -> None:
        super().__init__()
        last = size.layers if last is None else last
        self.tok_embeddings = nn.Embedding(size.vocabulary, size.width) if first == 0 else None
        self.layers = nn.ModuleDict({str(i): Block(size) for i in range(first, last)})
        self.norm = Norm(size.width) if last == size.layers else None
        self.output = nn.Linear(size.width, size.vocabulary, bias=False) if last == size.layers else None
        depth = size.width // size.heads
        self.register_buffer("turns", torch.empty(length, depth // 2, dtype=torch.complex64), persistent=False)
        self.depth = depth

    @torch.no_grad()
    def initialize(self) -> None:
        """Set parameters and angles."""
        for name, parameter in self.named_parameters():
            nn.init.ones_(parameter) if "norm" in name else nn.init.normal_(parameter, std=0.02)
        device = self.turns.device
        steps = 1.0 / 500_000.0 ** (torch.arange(0, self.depth, 2, device=device).float() / self.depth)
        angles = torch.outer(torch.arange(len(self.turns), device=device).float(), steps)
        self.turns.copy_(torch.polar(torch.ones_like(angles), angles))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the result."""
        if self.tok_embeddings is not None:
            x = self.tok_embeddings(x)
        for layer in self.layers.values():
            x = layer(x, self.turns)
        if self.norm is not None and self.output is not None:
            x = self.output(self.norm(x))
        return x


def loss_of(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy in float32."""
    return F.cross_entropy(prediction.flatten(0, 1).float(), target.flatten(0, 1))


# ---- parallelism


def with_tensor_parallel(model: nn.Module, mesh: DeviceMesh, *, float8: bool) -> None:
    """Divide products over the mesh, and the sequence between them."""
    column: Any = ColwiseParallel
    row: Any = RowwiseParallel
    prepare: Any = PrepareModuleInput
    if float8:
        from torchao.float8.float8_tensor_parallel import (
            Float8ColwiseParallel,
            Float8RowwiseParallel,
            PrepareFloat8ModuleInput,
        )

        column, row, prepare = Float8ColwiseParallel, Float8RowwiseParallel, PrepareFloat8ModuleInput
    ends = {
        "tok_embeddings": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "output": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False),
    }
    present = {name for name, child in model.named_children() if child is not None}
    parallelize_module(model, mesh, {name: style for name, style in ends.items() if name in present})
    for layer in model.layers.values():
        plan = {
            "attention_norm": SequenceParallel(),
            "attention": prepare(input_layouts=(Shard(1), None), desired_input_layouts=(Replicate(), None)),
            "ffn_norm": SequenceParallel(),
            "feed_forward": prepare(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
            "attention.wo": row(output_layouts=Shard(1)),
            "feed_forward.w2": row(output_layouts=Shard(1)),
        }
        plan |= {f"attention.{name}": column() for name in ("wq", "wk", "wv")}
        plan |= {f"feed_forward.{name}": column() for name in ("w1", "w3")}
        parallelize_module(layer, mesh, plan)


KEPT = {
    torch.ops.aten.mm.default,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
    torch.ops.aten.abs.default,
    torch.ops.aten.max.default,
}


def every_second_product() -> Any:
    """Return contexts of a checkpoint that keep attention, reduced results, and every second product."""
    products: Counter[bool] = Counter()

    def policy(context: Any, op: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        if op == torch.ops.aten.mm.default:
            products[context.is_recompute] += 1
            if products[context.is_recompute] % 2 == 0:
                return CheckpointPolicy.PREFER_RECOMPUTE
        attention = "scaled_dot_product" in str(op)
        return CheckpointPolicy.MUST_SAVE if attention or op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def with_checkpoints(model: nn.Module, mode: str) -> None:
    """Recompute activations of every layer in the backward pass."""
    options = {"context_fn": every_second_product} if mode == "selective" else {}
    for name, layer in model.layers.items():
        model.layers[name] = checkpoint_wrapper(layer, preserve_rng_state=False, **options)


def with_fsdp(model: nn.Module, mesh: DeviceMesh, *, pipeline: bool) -> None:
    """Shard the parameters of every layer."""
    policy = fsdp.MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    last = len(model.layers) - 1
    for number, layer in enumerate(model.layers.values()):
        fsdp.fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=not pipeline and number < last)
    fsdp.fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=not pipeline)


def splits(layers: int, stages: int) -> list[tuple[int, int]]:
    """Return the layers of each stage: the first one has no extra layer, those after it do, while there are any."""
    each, extra = divmod(layers, stages)
    ends = [0, each]
    for _ in range(stages - 2):
        ends.append(ends[-1] + each + (extra > 0))
        extra -= extra > 0
    return list(zip(ends[:stages], [*ends[1:stages], layers], strict=True))


# ---- the step


class Job:
    """The model of this rank, and its step."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        size, world = SIZES[args.size], dist.get_world_size()
        if args.layers:
            size = replace(size, layers=args.layers)
        others = args.tensor * args.pipeline * args.context
        if world % others:
            raise SystemExit(f"{world} ranks are not divisible by {others}")
        self.args, self.device = args, device
        degrees = {"pipeline": args.pipeline, "data": world // others, "context": args.context, "tensor": args.tensor}
        self.mesh = init_device_mesh(device.type, tuple(degrees.values()), mesh_dim_names=tuple(degrees))
        if args.context > 1:
            self.mesh["data", "context"]._flatten("data_context")
        self.stage = self.mesh["pipeline"].get_local_rank()
        self.parts: list[Llama] = []
        self.schedule = None
        if args.pipeline > 1:
            kind = get_schedule_class(args.schedule)
            several = issubclass(kind, PipelineScheduleMulti)
            count = args.pipeline * (2 if several else 1)
            own = range(self.stage, count, args.pipeline)
            self.parts = [self.part(size, *splits(size.layers, count)[number]) for number in own]
            group = self.mesh["pipeline"].get_group()
            stages = [
                PipelineStage(part, number, count, device, group=group)
                for number, part in zip(own, self.parts, strict=True)
            ]
            microbatches = args.microbatches or args.pipeline
            self.schedule = kind(stages if several else stages[0], microbatches, loss_fn=loss_of)
        else:
            self.parts = [self.part(size, 0, None)]
        make = partial(torch.optim.AdamW, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, foreach=True)
        self.optimizers = [make(part.parameters()) for part in self.parts]

    def part(self, size: Size, first: int, last: int | None) -> Llama:
        """Build a part of the model on this rank."""
        args = self.args
        with torch.device("meta"):
            model = Llama(size, args.length, first, last)
        if args.float8:
            from torchao.float8 import Float8LinearConfig, convert_to_float8_training

            config = Float8LinearConfig(enable_fsdp_float8_all_gather=True)
            convert_to_float8_training(model, config=config, module_filter_fn=lambda _, name: name != "output")
        if args.tensor > 1:
            with_tensor_parallel(model, self.mesh["tensor"], float8=args.float8)
        if args.checkpoint != "none":
            with_checkpoints(model, args.checkpoint)
        if args.compile:
            for name, layer in model.layers.items():
                model.layers[name] = torch.compile(layer, fullgraph=True)
        data = self.mesh["data_context"] if args.context > 1 else self.mesh["data"]
        if data.size() > 1:
            with_fsdp(model, data, pipeline=args.pipeline > 1)
        model.to_empty(device=self.device)
        model.initialize()
        return model

    def step(self, tokens: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
        """Train on one batch; return the loss, on the last stage of a pipeline."""
        loss: torch.Tensor | None = None
        tokens, target = tokens.to(self.device), target.to(self.device)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if self.schedule is not None:
            last = self.stage == self.args.pipeline - 1
            losses: list[torch.Tensor] = []
            first = [tokens] if self.stage == 0 else []
            with self.divided(tokens, target):
                self.schedule.step(*first, **({"target": target, "losses": losses} if last else {}))
            loss = torch.stack(losses).mean() if last else None
        else:
            with self.divided(tokens, target):
                prediction = self.parts[0](tokens)
                loss = loss_of(prediction, target)
                del prediction
                loss.backward()
        self.clip()
        for optimizer in self.optimizers:
            optimizer.step()
        if self.args.float8:
            from torchao.float8 import precompute_float8_dynamic_scale_for_fsdp

            for part in self.parts:
                precompute_float8_dynamic_scale_for_fsdp(part)
        return loss

    def divided(self, tokens: torch.Tensor, target: torch.Tensor) -> Any:
        """Return the context of a step: of divided losses, and of divided sequences."""
        stack = ExitStack()
        if self.args.tensor > 1:
            stack.enter_context(loss_parallel())
        if self.args.context > 1:
            turns = [part.turns for part in self.parts]
            stack.enter_context(sdpa_kernel([SDPBackend.FLASH_ATTENTION]))
            stack.enter_context(
                context_parallel(
                    self.mesh["context"],
                    buffers=[tokens, target, *turns],
                    buffer_seq_dims=[1, 1, *[0] * len(turns)],
                    no_restore_buffers={tokens, target},
                )
            )
        return stack

    def clip(self) -> None:
        """Clip the norm of all gradients, of all stages, to 1."""
        parameters = [parameter for part in self.parts for parameter in part.parameters()]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if self.args.pipeline > 1:
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            norm = norm**2
            dist.all_reduce(norm, group=self.mesh["pipeline"].get_group())
            norm = norm**0.5
        nn.utils.clip_grads_with_norm_(parameters, 1.0, norm, foreach=True)


def options() -> argparse.ArgumentParser:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=sorted(SIZES))
    parser.add_argument("--batch", type=int, default=2, help="sequences per data-parallel rank")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--layers", type=int, default=None, help="default: those of the size")
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--pipeline", type=int, default=1)
    parser.add_argument("--context", type=int, default=1)
    parser.add_argument("--schedule", default="1F1B")
    parser.add_argument("--microbatches", type=int, default=None)
    parser.add_argument("--checkpoint", choices=["none", "selective", "full"], default="none")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--float8", action="store_true")
    parser.add_argument("--device", default=None, help="default: the accelerator")
    return parser


def main() -> None:
    """Train a few steps on random tokens and print the losses."""
    args = options().parse_args()
    device = ranks.join(args.device)
    torch.backends.cuda.enable_cudnn_sdp(False)  # as torch of 2024-12, which prefers its own kernels
    torch.manual_seed(0)
    job = Job(args, device)
    random = torch.Generator().manual_seed(1 + job.mesh["data"].get_local_rank())
    vocabulary = SIZES[args.size].vocabulary
    for _ in range(args.steps):
        tokens = torch.randint(vocabulary, (args.batch, args.length + 1), generator=random)
        loss = job.step(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        if loss is not None:
            value = loss.full_tensor() if hasattr(loss, "full_tensor") else loss
            print(f"rank {dist.get_rank()} loss {value.item():.9f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
