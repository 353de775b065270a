"""Host time of one launch over a long list of tensors: per tensor, against a list of a twentieth of its length.

Prints microseconds per tensor, medians over rounds that alternate between the two lengths, and their ratio. It is 1 if
the time is proportional to the length, and 20 if it is quadratic. The bar is 5.
"""

import argparse
import statistics
import time

import torch

import bringup

SHORT, LONG = 10_000, 200_000


def seconds(tensors: list[torch.Tensor]) -> float:
    """Time one recorded launch."""
    began = time.perf_counter()
    torch._foreach_add_(tensors, 1.0)
    took = time.perf_counter() - began
    torch.chip.synchronize()
    return took


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    lists = {number: [torch.zeros(1, device="chip") for _ in range(number)] for number in (SHORT, LONG)}
    with bringup.record():
        for tensors in lists.values():
            seconds(tensors)
        taken = [{number: seconds(tensors) / number for number, tensors in lists.items()} for _ in range(rounds)]
    for number in lists:
        print(f"{number:>8,} tensors  {statistics.median(round_[number] for round_ in taken) * 1e6:.3f} us per tensor")
    print(f"ratio {statistics.median(round_[LONG] / round_[SHORT] for round_ in taken):.2f} (bar 5)")


if __name__ == "__main__":
    main()
