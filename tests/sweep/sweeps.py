"""Sweeps for tests: two small recordings, sweep files over them, and tables as rows."""

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bringup
from bringup.recording.trace import Trace
from bringup.sweep import file, parts
from tests.conftest import NO_SWEEP, ROOT, without_bringup

missing = [name for name in ("duckdb", "optuna", "ray") if importlib.util.find_spec(name) is None]
needs_extras = pytest.mark.skipif(bool(missing), reason=NO_SWEEP)

SMALL = """
chips = ["t4", "h100-sxm", "tpu-v3"]
hosts = ["xeon-8275cl", "epyc-9654"]
modes = ["eager", "graph"]
dispatch_scale = [1.0, 0.5]

[[programs]]
trace = "mlp.npz"

[[programs]]
name = "big"
trace = "conv.npz"
"""
LARGE = """
chips = ["t4", "h100-sxm"]
hosts = ["xeon-8275cl", "epyc-9654"]
dispatch_scale = [{}]
[ranges]
memory.bandwidth_gb_s = [1000, 4000, 7]
[[programs]]
trace = "mlp.npz"
"""
SCRIPT = """
import argparse
import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--dtype", default="float32")
options = parser.parse_args()
model = nn.Linear(32, 32).to("chip", getattr(torch, options.dtype))
for step in range(3):
    model(torch.ones(options.batch_size, 32, device="chip", dtype=getattr(torch, options.dtype))).sum().backward()
"""


def recordings(folder: Path) -> tuple[Trace, Trace]:
    """Record a perceptron in training and a convolution, both dry; return them, and write them to the folder."""
    traces = []
    with warnings.catch_warnings(), bringup.dry(), torch.device("chip"):
        warnings.simplefilter("ignore", bringup.DryWarning)
        mlp = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
        optimizer = torch.optim.SGD(mlp.parameters(), 0.1)
        convolution = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU()).eval()

        def train() -> None:
            x = torch.ones(256, 64, device="cpu").to("chip")
            mlp(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        def infer() -> None:
            with torch.no_grad():
                convolution(torch.ones(8, 3, 64, 64)).cpu()

        for name, function in (("mlp", train), ("conv", infer)):
            with bringup.record() as trace:
                for _ in range(3):
                    function()
                    bringup.step()
            trace.save(folder / f"{name}.npz")
            traces.append(trace)
    return traces[0], traces[1]


def sweep_of(folder: Path, text: str = SMALL) -> file.Sweep:
    """Write a sweep file and read it."""
    path = folder / "sweep.toml"
    path.write_text(text, encoding="utf-8")
    return file.load(path)


def table(out: Path) -> list[tuple[Any, ...]]:
    """Return all rows of all parts of a directory, sorted."""
    with parts.database() as connection:
        return sorted(connection.execute(f"SELECT * FROM '{out}/*.parquet'").fetchall(), key=repr)


def cli(folder: Path, *arguments: str, timeout: float = 240, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``bringup sweep`` with these arguments in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "bringup", "sweep", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )


def environment() -> dict[str, str]:
    """The environment of a command line that imports this repository's sources."""
    return {**without_bringup(), "PYTHONPATH": str(ROOT / "src")}


def scales(count: int) -> str:
    """The values of an axis of so many places."""
    return ", ".join(f"{1 - number / 2000}" for number in range(count))
