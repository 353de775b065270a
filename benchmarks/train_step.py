"""A training step on chip against the same step on plain CPU tensors: medians of alternating pairs, and peak memory."""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from models import GPT, ResNet18
from torch.nn import functional


def resnet(device: str) -> Callable[[], torch.Tensor]:
    torch.manual_seed(0)
    model = ResNet18().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = torch.randn(8, 3, 64, 64).to(device), torch.randint(1000, (8,)).to(device)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def gpt(device: str) -> Callable[[], torch.Tensor]:
    torch.manual_seed(0)
    model = GPT().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    ids = torch.randint(512, (8, 129)).to(device)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


MODELS = {"resnet": resnet, "gpt": gpt}


def seconds(step: Callable[[], torch.Tensor], steps: int) -> tuple[float, float]:
    """Wall time of some steps and the last loss; the loss is read once, after the clock's last launch."""
    start = time.perf_counter()
    for _ in range(steps):
        loss = step()
    value = loss.item()
    return time.perf_counter() - start, value


def pairs(name: str, rounds: int, steps: int) -> None:
    on_cpu, on_chip = MODELS[name]("cpu"), MODELS[name]("chip")
    seconds(on_cpu, 2), seconds(on_chip, 2)
    cpu, chip = [], []
    for _ in range(rounds):
        a, loss_cpu = seconds(on_cpu, steps)
        b, loss_chip = seconds(on_chip, steps)
        cpu.append(a / steps), chip.append(b / steps)
    ratio = statistics.median(b / a for a, b in zip(cpu, chip, strict=True))
    print(
        f"{name:8}cpu {statistics.median(cpu) * 1e3:7.1f} ms  chip {statistics.median(chip) * 1e3:7.1f} ms  "
        f"ratio {ratio:.3f} (bar 1.05){'' if ratio <= 1.05 else '  OVER'}  loss {loss_cpu:.6f} / {loss_chip:.6f}"
    )


def peak(name: str, device: str) -> None:
    seconds(MODELS[name](device), 10)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would start at the parent's
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def peaks(name: str) -> None:
    kib = {}
    for device in ("cpu", "chip"):
        command = [sys.executable, __file__, "--peak", name, device]
        kib[device] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    ratio = kib["chip"] / kib["cpu"]
    over = "" if ratio <= 1.1 else "  OVER"
    print(
        f"{name:8}peak memory cpu {kib['cpu'] >> 10} MiB  chip {kib['chip'] >> 10} MiB  "
        f"ratio {ratio:.3f} (bar 1.1){over}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "DEVICE"), help="internal: one process, one device")
    options = parser.parse_args()
    if options.peak:
        peak(*options.peak)
        return
    for name in MODELS:
        pairs(name, options.rounds, options.steps)
        peaks(name)


if __name__ == "__main__":
    main()
