"""--chip-time: the program's own clocks show the predicted machine's."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

TRAINING = """
import time, torch
from time import perf_counter
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 10)).cuda()
optimizer = torch.optim.AdamW(model.parameters())
x, y = torch.randn(64, 256).cuda(), torch.randint(10, (64,)).cuda()
for step in range(12):
    if step == 2:
        torch.cuda.synchronize()
        began, also = perf_counter(), time.time_ns()
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loss.item()
torch.cuda.synchronize()
print("samples/s", 640 / (perf_counter() - began), (time.time_ns() - also) / 1e9)
"""


@pytest.mark.parametrize("options", [["--dry"], []])
def test_throughput_that_a_program_prints_is_the_reports(bringup_run: Run, tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "train.py").write_text(TRAINING)
    done = bringup_run("--cuda", "--chip-time", *options, "--chip", "t4", "train.py")
    found = re.search(r"samples/s ([0-9.]+) ([0-9.e-]+)", done.stdout)
    assert found, done.stderr
    summary = json.loads((tmp_path / "bringup-train" / "summary.json").read_text())
    assert float(found[1]) == pytest.approx(64 / summary["step_seconds"], rel=0.02)
    assert float(found[2]) == pytest.approx(640 / float(found[1]), rel=0.02)
    assert summary["chip_time"] is True
    assert "the program's clocks showed chip time" in done.stdout


def test_sleep_passes_and_libraries_see_the_clock_but_deadlines_do_not(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        """
import queue, threading, time, torch
import torch.utils.benchmark as benchmark
x = torch.randn(64, 64, device="chip")
began, process = time.perf_counter(), time.process_time()
time.sleep(0.2)
assert 0.1999 < time.perf_counter() - began < 0.21, time.perf_counter() - began
assert time.process_time() - process < 0.01
try:
    queue.Queue().get(timeout=0.05)  # computes a deadline with the real clock
except queue.Empty:
    pass
threading.Event().wait(0.05)
took = benchmark.Timer("x @ x", globals={"x": x}).timeit(50).median
assert 0 < took < 1e-3, took
y = x.clone()
for _ in range(2):
    y = y @ x
t = time.monotonic()
y.sum().item()
assert 0 < time.monotonic() - t < 0.01
print("done")
"""
    )
    done = bringup_run("--chip-time", "--chip", "t4", "program.py")
    assert done.stdout.startswith("done"), done.stderr


def test_waiting_for_another_process_passes(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        """
import subprocess, time, torch
torch.ones(2, device="chip")
began = time.perf_counter()
subprocess.run(["sleep", "0.3"])
print("waited", time.perf_counter() - began)
"""
    )
    done = bringup_run("--chip-time", "--dry", "program.py")
    found = re.search(r"waited ([0-9.]+)", done.stdout)
    assert found and 0.25 < float(found[1]) < 1.0, done.stdout + done.stderr


def test_same_program_same_prints(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINING)
    first, second = (bringup_run("--cuda", "--chip-time", "--dry", "train.py").stdout for _ in range(2))
    assert first.splitlines()[0] == second.splitlines()[0] and "samples/s" in first


def test_clocks_are_real_again_afterwards(python: Run) -> None:
    done = python(
        """
import time, torch, bringup
from bringup import clock
real = time.perf_counter, time.sleep
with bringup.record(), clock.shown():
    assert time.perf_counter is not real[0]
    torch.ones(2, device="chip")
assert (time.perf_counter, time.sleep) == real
print("done")
"""
    )
    assert done.stdout == "done\n", done.stderr


def test_a_monitor_that_waits_beside_the_program_is_in_no_step(bringup_run: Run, tmp_path: Path) -> None:
    beside = """import threading
def monitor():
    time.sleep(0.5)
    time.perf_counter()
threading.Thread(target=monitor).start()
"""
    (tmp_path / "train.py").write_text(
        TRAINING.replace("torch.manual_seed", "import time\n" + beside + "torch.manual_seed")
    )
    done = bringup_run("--cuda", "--chip-time", "--chip", "t4", "train.py")
    found = re.search(r"samples/s ([0-9.]+) ", done.stdout)
    assert found, done.stderr
    summary = json.loads((tmp_path / "bringup-train" / "summary.json").read_text())
    assert float(found[1]) == pytest.approx(64 / summary["step_seconds"], rel=0.02)
