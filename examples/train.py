"""Train a small network on random batches: the ``train.py`` of the documentation.

``bringup run --chip t4 examples/train.py --batch-size 64``; ``--nproc 4`` starts four ranks, as torchrun does.
"""

import argparse
import os

import torch
from torch import nn
from torch.nn import functional


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=int(os.environ.get("BATCH", "32")))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()

    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    model: nn.Module = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.LayerNorm(1024), nn.Linear(1024, 10))
    model = model.to("chip", dtype)
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group()
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    for epoch in range(options.epochs):
        for _ in range(options.steps):
            x, y = torch.randn(options.batch_size, 256), torch.randint(10, (options.batch_size,))
            loss = functional.cross_entropy(model(x.to("chip", dtype)).float(), y.to("chip"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}  loss {loss.item():.4f}")
    if "WORLD_SIZE" in os.environ:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
