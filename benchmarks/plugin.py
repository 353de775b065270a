"""``pytest --chip``: the time of a suite of small tests under the plug-in over that on the plain CPU.

Run ``python benchmarks/plugin.py``. Figures and method: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUITE = """
import os, pytest, torch
from torch import nn
device = os.environ["DEVICE"]


@pytest.mark.parametrize("seed", range(150))
def test_training(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.LayerNorm(128), nn.Linear(128, 10)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        x, y = torch.randn(32, 64).to(device), torch.randint(10, (32,)).to(device)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 10


@pytest.mark.parametrize("seed", range(150))
def test_products(seed):
    x = torch.randn(20, 20).to(device)
    assert torch.allclose((x @ x).T, x.T @ x.T, atol=1e-3)
"""


def main() -> None:
    """Alternate the two and print the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    cases = {"cpu": [], "chip": ["--chip", "t4"]}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test_small.py").write_text(SUITE, encoding="utf-8")
        for _ in range(rounds):
            for name, options in cases.items():
                command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
                start = time.perf_counter()
                done = subprocess.run(
                    command, cwd=folder, env={**os.environ, "DEVICE": name}, capture_output=True, text=True, check=False
                )
                seconds[name].append(time.perf_counter() - start)
                if done.returncode != 0:
                    raise SystemExit(done.stdout)
    plain, chip = (statistics.median(seconds[name]) for name in cases)
    print(f"300 small tests: {plain:.2f} s on the CPU, {chip:.2f} s with --chip t4: {chip / plain:.2f} (bar 1.5)")


if __name__ == "__main__":
    main()
