"""`bringup driver next` against what a kernel saves: five kernels of the OpenCL driver are off, then on one by one.

PoCL lists its processor several times, as devices without and with the kernels. The steps of all devices take turns in
one process, so that a machine that others use disturbs all alike. What is said comes from the device before the kernel.
What is saved is measured twice: by the parts of the steps (the launches on the host, less those of the kernel on the
next device), and by whole steps, as the median difference of neighbours with its quartiles.
``python benchmarks/next_kernel.py [--rounds 80]``
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

NAMES = ("mul.Tensor", "relu", "threshold_backward", "mse_loss_backward", "_foreach_add_.List")
OFF = [f"aten::{name}" for name in NAMES]
os.environ["POCL_DEVICES"] = " ".join(["pthread"] * (len(OFF) + 1))

import torch  # noqa: E402
from torch import nn  # noqa: E402

import bringup  # noqa: E402
from bringup.drivers.next import ranked  # noqa: E402
from bringup.recording.driver_rows import middle_half, seconds_of, typical  # noqa: E402
from bringup.recording.measured import measured  # noqa: E402
from bringup.recording.rows import BY_PROGRAM, STEP  # noqa: E402

BAR = 0.25  # of what is measured, that what is said may be off
LEFT_OUT = "it is left out"  # the core's reason for the kernels that are off


class Gate(nn.Module):
    """x + relu(x * gate)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(4096, 256))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (4096, 256) to the same shape."""
        return x + torch.relu(x * self.gate)


def step_on(device: int) -> Callable[[], None]:
    model = nn.Sequential(*(Gate() for _ in range(4))).to(f"chip:{device}")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    x, y = torch.randn(4096, 256).to(f"chip:{device}"), torch.randn(4096, 256).to(f"chip:{device}")

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()

    return step


def devices() -> list[Callable[[], None]]:
    """Return a step on each device; the first one has none of the kernels, and the last one has all."""
    steps = []
    for device in range(len(OFF) + 1):
        torch.ops.bringup.leave_out_kernels(OFF[device:])
        torch.chip.set_device(device)
        steps.append(step_on(device))
        steps[-1]()  # asks the driver for its kernels, and compiles them
        torch.chip.synchronize()
    torch.ops.bringup.leave_out_kernels([])
    return steps


def rows_of_steps(marks: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the rows of the ledger between the first and the second mark of the program, and of each pair after it."""
    ends = [number for number, mark in enumerate(marks) if (mark["kind"], mark["object"]) == (STEP, BY_PROGRAM)]
    steps = []
    for since, until in zip(ends[::2], ends[1::2], strict=True):
        rows = [row for mark in marks[since:until] for row in mark["rows"]]
        steps.append([{**row, "kernel_possible": row["kernel_possible"] or row["reason"] == LEFT_OUT} for row in rows])
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=80)
    rounds = parser.parse_args().rounds
    bringup.use("edge8", driver="opencl", devices=len(OFF) + 1)
    steps = devices()
    seconds: list[list[float]] = [[] for _ in steps]
    rows: list[list[list[dict[str, Any]]]] = [[] for _ in steps]
    with bringup.record() as trace:
        for _ in range(rounds):
            with measured():
                for device, step in enumerate(steps):
                    torch.chip.set_device(device)
                    bringup.step()
                    start = time.perf_counter()
                    step()
                    torch.chip.synchronize()
                    seconds[device].append(time.perf_counter() - start)
                    bringup.step()
                marks = json.loads(torch.ops.bringup.driver_marks())["marks"]
            for device, of_step in enumerate(rows_of_steps(marks)):
                rows[device].append(of_step)

    def facts(device: int) -> dict[str, Any]:
        middle = middle_half(seconds[device])
        mean = statistics.fmean(seconds[device][number] for number in middle)
        return {"step_seconds": mean, "step_rows": typical([rows[device][number] for number in middle])}

    within = 0
    for device, op in enumerate(OFF):
        before, after = facts(device), facts(device + 1)
        trace.about["driver"] = before
        said = sum(saving["saves_seconds"] for saving in ranked(trace)[1] if saving["op"] == op)
        on_host = sum(seconds_of(row) for row in before["step_rows"] if row["op"] == op)
        kernel = sum(row["kernel_seconds"] for row in after["step_rows"] if row["op"] == op)
        saved = sorted(a - b for a, b in zip(seconds[device], seconds[device + 1], strict=True))
        quarter, parts = len(saved) // 4, on_host - kernel
        is_within = abs(said - parts) <= BAR * abs(parts)
        within += is_within
        print(
            f"{op}: said {said * 1e3:.2f} ms, measured {parts * 1e3:.2f} ms (ratio {said / parts:.2f}); "
            f"on the host {on_host * 1e3:.2f}, kernel expected {(on_host - said) * 1e3:.2f}, took {kernel * 1e3:.2f}; "
            f"whole steps {statistics.median(saved) * 1e3:.2f} "
            f"({saved[quarter] * 1e3:.2f} to {saved[-1 - quarter] * 1e3:.2f})"
            f"{'' if is_within else '  off by more than a quarter'}",
            flush=True,
        )
    print(f"{within} of {len(OFF)} within {BAR:.0%}")


if __name__ == "__main__":
    main()
