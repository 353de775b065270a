"""`bringup driver next` against what a kernel saves: five operators of the OpenCL driver are off, then on again.

Runs without and with a kernel take turns, so that both see the same machine. What is said is the median over the runs
without it; what is measured is the median difference of neighbours, with its quartiles. They differ if the kernel takes
another time than expected, or if the other parts of the step change.
``python benchmarks/next_kernel.py [PROGRAM] [--pairs 5]``, on a machine that does nothing else.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bringup.drivers.next import ranked
from bringup.recording.driver_rows import seconds_of
from bringup.recording.trace import Trace

PROGRAM = """
import torch
from torch import nn

class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.randn(4096, 256))

    def forward(self, x):
        return x + torch.relu(x * self.gate)

model = nn.Sequential(*(Gate() for _ in range(4))).to("chip")
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
x, y = torch.randn(4096, 256).to("chip"), torch.randn(4096, 256).to("chip")
for _ in range(20):
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()
"""
OFF = ("mul.Tensor", "relu", "threshold_backward", "mse_loss_backward", "_foreach_add_.List")
BAR = 0.25  # of what is measured, that what is said may be off


def recorded(operators: list[str], program: str, folder: str) -> Trace:
    environment = {**os.environ, "BRINGUP_OPENCL_OPERATORS": ",".join(operators)}
    command = [sys.executable, "-m", "bringup", "run", "--driver", "opencl", "--out", f"{folder}/report", program]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    return Trace.load(f"{folder}/report/trace.npz")


def step_seconds(trace: Trace) -> float:
    return float(trace.about["driver"]["step_seconds"])


def kernel_of(trace: Trace, op: str) -> float:
    rows = [row for row in trace.about["driver"]["step_rows"] if row["op"] == op and row["on_device"]]
    return float(sum(row["kernel_seconds"] for row in rows))


def said_of(trace: Trace, op: str) -> tuple[float, float]:
    """Return what the kernel would save, and what of it is the time on the host with its copies."""
    _, savings = ranked(trace)
    rows = [row for row in trace.about["driver"]["step_rows"] if row["op"] == op and not row["on_device"]]
    return sum(saving["saves_seconds"] for saving in savings if saving["op"] == op), sum(map(seconds_of, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", nargs="?")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    within = 0
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(arguments.program or f"{folder}/program.py").absolute())
        if not arguments.program:
            Path(program).write_text(PROGRAM, encoding="utf-8")
        off = [f"aten::{name}" for name in OFF]
        enabled = sorted(recorded(["all"], program, folder).about["driver"]["on_device"].keys() - set(off))
        for op in off:
            recorded([*enabled, op], program, folder)  # compiles the kernel, for the driver's cache
            pairs = [
                (recorded(enabled, program, folder), recorded([*enabled, op], program, folder))
                for _ in range(arguments.pairs)
            ]
            said, on_host = map(statistics.median, zip(*(said_of(before, op) for before, _ in pairs), strict=True))
            saved = sorted(step_seconds(before) - step_seconds(after) for before, after in pairs)
            measured, kernel = statistics.median(saved), statistics.median(kernel_of(after, op) for _, after in pairs)
            is_within = abs(said - measured) <= BAR * abs(measured)
            within += is_within
            quarter = len(saved) // 4
            print(
                f"{op}: said {said * 1e3:.2f} ms, measured {measured * 1e3:.2f} ms "
                f"({saved[quarter] * 1e3:.2f} to {saved[-1 - quarter] * 1e3:.2f}); "
                f"on the host {on_host * 1e3:.2f}, "
                f"kernel expected {(on_host - said) * 1e3:.2f}, took {kernel * 1e3:.2f}, "
                f"other parts of the step {(on_host - kernel - measured) * 1e3:+.2f}"
                f"{'' if is_within else '  off by more than a quarter'}",
                flush=True,
            )
            enabled.append(op)
    print(f"{within} of {len(off)} within {BAR:.0%}")


if __name__ == "__main__":
    main()
