"""The core works under every mode of the interpreter: without asserts and docstrings, strict, isolated."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bringup.cli import VERBS
from tests.conftest import without_bringup

MODES = ("-O", "-OO", "-Xdev", "-Werror", "-I")
FEW = ["-OO", *(pytest.param(mode, marks=pytest.mark.slow) for mode in MODES if mode != "-OO")]
TRAINS = """
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to("chip")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    loss = model(torch.ones(2, 8).to("chip")).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
PROGRAM = f"""
import sys
import bringup
with bringup.record() as trace:
    {TRAINS.strip().replace(chr(10), chr(10) + "    ")}
print((torch.arange(3.0, device="chip") * 2).tolist(), model[0].weight.grad.cpu().isfinite().all().item())
trace.save("t.npz")
again = bringup.Trace.load("t.npz")
first, second = bringup.price(trace, "t4"), bringup.price(again, "t4")
print(first.steps, first.step_seconds == second.step_seconds > 0, len(first.bottlenecks))

from bringup.cli import bringup as command
command.main(["compare", "t.npz", "--chips", "t4,a100-sxm-80"], standalone_mode=False)
for verb in ("run", "chips", "compare"):
    command.main([verb, "--help"], standalone_mode=False)
from bringup.scorecard.registry import load
print(len(load()), "items")
"""


def python(mode: str, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, mode, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=cwd, env=without_bringup())


@pytest.mark.parametrize("mode", FEW)
def test_core_records_prices_saves_and_compares(mode: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = python(mode, "program.py", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    first, second, *rest = done.stdout.splitlines()
    assert first == "[0.0, 2.0, 4.0] True"
    assert second.startswith("3 True ")
    text = "\n".join(rest)
    listed = VERBS["chips"] if mode == "-OO" else "List the chips that ship with bringup"  # -OO drops docstrings
    assert "a100-sxm-80" in text and "Run " in text and listed in text
    assert rest[-1].endswith(" items")


@pytest.mark.slow
def test_items_are_described_without_docstrings(tmp_path: Path) -> None:
    plain, bare = (python(mode, "-m", "bringup", "check", "--list", cwd=tmp_path) for mode in ("-B", "-OO"))
    assert bare.returncode == 0 and bare.stdout == plain.stdout and bare.stderr == "", bare.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", FEW)
def test_dry_run_is_reported(mode: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINS)
    done = python(mode, "-m", "bringup", "run", "--dry", "--chip", "t4", "--out", "r", "train.py", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["dry"] is True and summary["steps"] == 3 and summary["step_seconds"] > 0
