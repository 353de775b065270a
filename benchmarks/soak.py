"""Mixed training on two streams with random frees: memory must not grow, results must stay those of the CPU.

``BRINGUP_DRIVER=opencl python benchmarks/soak.py [--minutes 10]`` does the same on another driver.
"""

import argparse
import copy
import ctypes
import random
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional


class Worker:
    """One model trained twice on one stream, and once on the CPU."""

    def __init__(self, seed: int, width: int) -> None:
        torch.manual_seed(seed)
        convolution, norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.cpu = nn.Sequential(convolution, norm, nn.GELU(), nn.Flatten(), nn.Linear(width * 64, 10))
        self.chip, self.again = (copy.deepcopy(self.cpu).to("chip") for _ in range(2))
        self.models = ((self.cpu, "cpu"), (self.chip, "chip"), (self.again, "chip"))
        self.optimizers = [torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9) for model, _ in self.models]
        self.stream = torch.chip.Stream()
        self.stream.wait_stream(torch.chip.current_stream())

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Train each model on one batch."""
        for (model, device), optimizer in zip(self.models, self.optimizers, strict=True):
            with torch.chip.stream(self.stream):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(x.to(device)), y.to(device))
                loss.backward()
                optimizer.step()

    def compare(self) -> float:
        """Return the largest difference of a parameter; then give the CPU the chip's: rounding must not add up."""
        self.stream.synchronize()
        with torch.no_grad():
            twins = zip(self.chip.state_dict().values(), self.again.state_dict().values(), strict=True)
            assert all(torch.equal(ours, other) for ours, other in twins), "the same training has other bits"
            pairs = list(zip(self.cpu.state_dict().values(), self.chip.state_dict().values(), strict=True))
            difference = max((ours.cpu() - theirs).abs().max().item() for theirs, ours in pairs)
            for theirs, ours in pairs:
                theirs.copy_(ours)
        return difference


def resident_kib(held: list[torch.Tensor]) -> int:
    """Return what the process holds, without tensors of random sizes and memory that is free but cached."""
    held.clear()
    torch.chip.synchronize()
    torch.chip.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)
    return int(
        next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    random.seed(0)
    workers = [Worker(1, 8), Worker(2, 16)]
    held: list[torch.Tensor] = []
    start, settled, steps, minute, worst = time.monotonic(), 0, 0, 0, 0.0
    warm_up = min(180.0, options.minutes * 18)
    while time.monotonic() - start < options.minutes * 60:
        worker = random.choice(workers)
        batch = random.choice([4, 8, 16])
        x, y = torch.randn(batch, 3, 8, 8), torch.randint(10, (batch,))
        worker.step(x, y)
        held.append(torch.full((random.randrange(1, 1 << 18),), float(steps % 1000), device="chip"))
        if random.random() < 0.5 or len(held) > 40:
            gone = held.pop(random.randrange(len(held)))
            low, high = gone.aminmax()
            assert low.item() == high.item(), "a held tensor was overwritten"
            del gone
        if steps % 50 == 0:
            worst = max(worst, worker.compare())
        if random.random() < 0.002:
            torch.chip.empty_cache()
        steps += 1
        if not settled and time.monotonic() - start > warm_up:
            settled = resident_kib(held)
        if settled and time.monotonic() - start > warm_up + 60 * (minute + 1):
            minute += 1
            print(f"minute {minute}: {steps} steps, resident {resident_kib(held) >> 10} MiB", flush=True)
    end = resident_kib(held)
    growth = end / settled - 1
    print(f"{steps} steps in {options.minutes:g} minutes on two streams")
    print(f"resident memory {settled >> 10} -> {end >> 10} MiB: {growth:+.2%} (bar +2 %)")
    print(f"largest difference of a parameter to the CPU within 50 steps: {worst:.2e} (bar 1e-3)")
    assert growth <= 0.02 and worst < 1e-3


if __name__ == "__main__":
    main()
