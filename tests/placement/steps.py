"""Steps for tests: random graphs, and small programs that are recorded dry."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

import bringup
from bringup.machine.files import load_chip, load_host
from bringup.placement.graph import OUTSIDE, Step
from bringup.recording.rows import LAUNCH
from bringup.recording.trace import Trace


def random_step(rng: np.random.Generator, nodes: int, persistent: int = 0) -> Step:
    """A graph in which every node makes a value that random later nodes read; some use persistent storages."""
    pairs = [(maker, reader) for maker in range(nodes) for reader in range(maker + 1, nodes) if rng.random() < 0.2]
    uses = [(node, storage) for node in range(nodes) for storage in range(persistent) if rng.random() < 0.3]
    pair = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
    use = np.asarray(uses, dtype=np.int64).reshape(-1, 2).T
    columns = {"kind": np.full(nodes, LAUNCH)}
    timeline = SimpleNamespace(chip=load_chip("t4"), host=load_host(), trace=SimpleNamespace(columns=columns))
    seconds = lambda: rng.lognormal(-10, 1, nodes)
    return Step(
        timeline=timeline,  # type: ignore[arg-type]
        first=0,
        last=nodes,
        inputs=None,  # type: ignore[arg-type]
        rows=np.arange(nodes),
        issue=seconds(),
        chip=seconds(),
        call=np.zeros(nodes),
        host=seconds() * 2,
        waits=np.zeros(nodes),
        lag=np.zeros(nodes),
        must_be_host=rng.random(nodes) < 0.1,
        must_be_chip=np.zeros(nodes, dtype=bool),
        sync=np.full(nodes, -1),
        maker=np.append(np.arange(nodes), OUTSIDE),
        value_bytes=rng.lognormal(10, 3, nodes + 1),
        reader=pair[1],
        read=pair[0],
        holder=use[0],
        held=use[1],
        held_bytes=np.zeros(len(uses)),
        held_read=np.ones(len(uses), dtype=bool),
        held_written=np.zeros(len(uses), dtype=bool),
        persistent_bytes=rng.lognormal(15, 1, persistent),
        persistent=np.arange(persistent),
    )


class Tables(nn.Module):
    """Embedding tables beside a small network: the tables belong on the host."""

    def __init__(self, tables: int = 8, rows: int = 4000, width: int = 64, looked_up: int = 20) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, width, mode="sum") for _ in range(tables))
        self.bottom = nn.Sequential(nn.Linear(13, 512), nn.ReLU(), nn.Linear(512, width))
        self.top = nn.Sequential(nn.Linear(width * (tables + 1), 1024), nn.ReLU(), nn.Linear(1024, 1))

    def forward(self, dense: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        parts = [self.bottom(dense), *(table(indices[:, i]) for i, table in enumerate(self.tables))]
        return self.top(torch.cat(parts, 1))


def tables() -> Callable[[], Any]:
    model = Tables(rows=400_000).to("chip").eval()
    dense, indices = torch.zeros(2048, 13), torch.zeros(2048, 8, 20, dtype=torch.long)
    return lambda: model(dense.to("chip"), indices.to("chip")).cpu()


def cell() -> Callable[[], Any]:
    model = nn.LSTMCell(64, 64).to("chip")
    sequence = torch.zeros(16, 1, 64)

    def run() -> None:
        state = None
        for item in sequence.to("chip"):
            state = model(item, state)
        state[0].cpu()  # type: ignore[index]

    return run


class Layers(nn.Module):
    """Equal layers of products, too many for a small chip."""

    def __init__(self, layers: int = 12, width: int = 2048) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


def layers() -> Callable[[], Any]:
    model = Layers().to("chip")
    x = torch.zeros(16, 2048)
    return lambda: model(x.to("chip")).cpu()


def training() -> Callable[[], Any]:
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10)).to("chip")
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    x, y = torch.zeros(64, 256), torch.zeros(64, dtype=torch.long)

    def run() -> None:
        loss = nn.functional.cross_entropy(model(x.to("chip")), y.to("chip"))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return run


def cached() -> Callable[[], Any]:
    """Rows of two caches of 4 MiB are written, and half of each is read."""
    weight = torch.zeros(1024, 1024).to("chip")
    caches = [torch.zeros(1024, 1024).to("chip") for _ in range(2)]
    x = torch.zeros(1, 1024)

    def run() -> None:
        y = x.to("chip") @ weight
        for cache in caches:
            cache[511:512] = y
            y = y @ cache[:512].T @ cache[:512]
        y.cpu()

    return run


PROGRAMS = {"tables": tables, "cell": cell, "layers": layers, "training": training}


def recorded(name: str, steps: int = 3) -> Trace:
    """Record a program dry, which reads its results."""
    with bringup.dry(), warnings.catch_warnings():
        warnings.simplefilter("ignore", bringup.DryWarning)
        run = {**PROGRAMS, "cached": cached}[name]()
        with bringup.record() as trace:
            for _ in range(steps):
                if name == "training":
                    run()
                else:
                    with torch.no_grad():
                        run()
                bringup.step()
            torch.chip.synchronize()
    return trace
