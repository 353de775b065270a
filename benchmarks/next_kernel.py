"""`bringup driver next` against what a kernel saves: five operators of the OpenCL driver are off, then on again.

``python benchmarks/next_kernel.py [PROGRAM]``, on a machine that does nothing else.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bringup.drivers.next import ranked
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
TRIES = 3  # the fastest counts


def recorded(operators: list[str], program: str, folder: str) -> Trace:
    environment = {**os.environ, "BRINGUP_OPENCL_OPERATORS": ",".join(operators)}
    traces = []
    for _ in range(TRIES):
        command = [sys.executable, "-m", "bringup", "run", "--driver", "opencl", "--out", f"{folder}/report", program]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        traces.append(Trace.load(f"{folder}/report/trace.npz"))
    return min(traces, key=lambda trace: trace.about["driver"]["step_seconds"])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(*sys.argv[1:2]).absolute()) if sys.argv[1:] else f"{folder}/program.py"
        if not sys.argv[1:]:
            Path(program).write_text(PROGRAM, encoding="utf-8")
        off = [f"aten::{name}" for name in OFF]
        enabled = sorted(recorded(["all"], program, folder).about["driver"]["on_device"].keys() - set(off))
        before = recorded(enabled, program, folder)
        for op in off:
            seconds, savings = ranked(before)
            said = sum(saving["saves_seconds"] for saving in savings if saving["op"] == op)
            enabled.append(op)
            after = recorded(enabled, program, folder)
            saved = seconds - after.about["driver"]["step_seconds"]
            print(f"{op}: said {said * 1e3:.2f} ms, measured {saved * 1e3:.2f} ms of {seconds * 1e3:.2f}", flush=True)
            before = after


if __name__ == "__main__":
    main()
