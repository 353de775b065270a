"""Host time of one launch on chip, against the whole time of the same op on the CPU.

Medians over rounds that alternate between the two, in one process. Prints microseconds and the median ratio of the
pairs, which is the bar.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch


def per_call_us(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e6


def cases() -> dict[str, tuple[float, Callable[[str], Callable[[], object]]]]:
    """Name -> (bar, device -> call)."""

    def add(device: str) -> Callable[[], object]:
        a, b = torch.randn(16, device=device), torch.randn(16, device=device)
        return lambda: a + b

    def relu(device: str) -> Callable[[], object]:
        a = torch.randn(16, device=device)
        return lambda: torch.relu(a)

    def view(device: str) -> Callable[[], object]:
        a = torch.randn(4, 4, device=device)
        return lambda: a.view(16)

    def transpose(device: str) -> Callable[[], object]:
        a = torch.randn(4, 4, device=device)
        return lambda: a.transpose(0, 1)

    def mm(device: str) -> Callable[[], object]:
        a, b = torch.randn(64, 64, device=device), torch.randn(64, 64, device=device)
        return lambda: a @ b

    def linear(device: str) -> Callable[[], object]:
        a, w, b = (torch.randn(*shape, device=device) for shape in ((64, 64), (64, 64), (64,)))
        return lambda: torch.nn.functional.linear(a, w, b)

    def add_large(device: str) -> Callable[[], object]:
        a, b = torch.randn(1 << 20, device=device), torch.randn(1 << 20, device=device)
        return lambda: a + b

    return {
        "add 16": (1.6, add),
        "relu 16": (1.6, relu),
        "view": (1.2, view),
        "transpose": (1.2, transpose),
        "mm 64x64": (0.4, mm),
        "linear 64": (0.4, linear),
        "add 1M": (0.1, add_large),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--calls", type=int, default=400)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    print(f"{'op':12}{'cpu us':>9}{'chip us':>9}{'ratio':>8}{'bar':>7}")
    for name, (bar, make) in cases().items():
        on_cpu, on_chip = make("cpu"), make("chip")
        calls = min(options.calls, 100) if name == "add 1M" else options.calls
        cpu, chip = [], []
        for _ in range(options.rounds):
            cpu.append(per_call_us(on_cpu, calls))
            torch.chip.synchronize()
            chip.append(per_call_us(on_chip, calls))
            torch.chip.synchronize()
        a, b = statistics.median(cpu), statistics.median(chip)
        ratio = statistics.median(y / x for x, y in zip(cpu, chip, strict=True))
        print(f"{name:12}{a:9.2f}{b:9.2f}{ratio:8.2f}{bar:7.1f}{'' if ratio <= bar else '  OVER'}")
    first_launch()


def first_launch() -> None:
    """A signature never launched before must not wait for its kernel."""
    a = torch.randn(3000, 3000, device="chip")
    torch.chip.synchronize()
    start = time.perf_counter()
    a @ a
    returned = time.perf_counter() - start
    torch.chip.synchronize()
    kernel = time.perf_counter() - start
    print(f"first a @ a of 3000x3000: returned after {returned / kernel:.1%} of the kernel's time (bar 5 %)")


if __name__ == "__main__":
    main()
