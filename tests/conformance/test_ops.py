"""torch's OpInfo database on chip, asynchronous, against the CPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bringup.files import tomllib
from tests.conformance import opinfo
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings("ignore")
EXPECTED = tomllib.loads(Path(__file__).with_name("expected_failures.toml").read_text(encoding="utf-8"))
FORWARD = ["float32", "float16", "bfloat16", "int64", "bool", "complex64"]
SWEEP = [
    "float64.forward",
    "int32.forward",
    "uint8.forward",
    "float64.backward",
    "complex64.backward",
    "bfloat16.backward",
]
BARS = {"float32.forward": 0.995, "float32.backward": 0.995} | {f"{name}.forward": 0.99 for name in FORWARD[1:]}


def cases(*runs: str) -> list[Any]:
    """One pytest case per operator of each run, strict about the listed failures."""
    found = []
    for run in runs:
        dtype, direction = run.split(".")
        listed = EXPECTED.get(run, {})
        for op in opinfo.ops(getattr(torch, dtype), backward=direction == "backward"):
            name = opinfo.full_name(op)
            marks = [pytest.mark.xfail(strict=True, reason=listed[name])] if name in listed else []
            found.append(pytest.param(op, getattr(torch, dtype), id=f"{dtype}-{name}", marks=marks))
    return found


@pytest.mark.parametrize(("op", "dtype"), cases(*[f"{name}.forward" for name in FORWARD]))
def test_op_forward_equals_cpu(op: Any, dtype: torch.dtype) -> None:
    opinfo.check_forward(op, dtype)


@pytest.mark.parametrize(("op", "dtype"), cases("float32.backward"))
def test_op_backward_equals_cpu(op: Any, dtype: torch.dtype) -> None:
    opinfo.check_backward(op, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "dtype"), cases(*[run for run in SWEEP if run.endswith("forward")]))
def test_sweep_forward_equals_cpu(op: Any, dtype: torch.dtype) -> None:
    opinfo.check_forward(op, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "dtype"), cases(*[run for run in SWEEP if run.endswith("backward")]))
def test_sweep_backward_equals_cpu(op: Any, dtype: torch.dtype) -> None:
    opinfo.check_backward(op, dtype)


@pytest.mark.parametrize("run", BARS)
def test_listed_failures_stay_within_the_bar(run: str) -> None:
    dtype, direction = run.split(".")
    names = {opinfo.full_name(op) for op in opinfo.ops(getattr(torch, dtype), backward=direction == "backward")}
    listed = set(EXPECTED.get(run, {}))
    assert listed <= names, f"no such operator: {listed - names}"
    assert 1 - len(listed) / len(names) >= BARS[run]


@pytest.mark.slow
def test_one_sample_of_each_op_passes_launch_blocking() -> None:
    program = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from bringup.files import tomllib
from tests.conformance import opinfo
bad = []
for op in opinfo.ops(torch.float32):
    try:
        opinfo.check_forward(op, torch.float32, most=1)
    except Exception as error:
        bad.append(f"{opinfo.full_name(op)}: {error}")
print(*bad, sep="\\n")
sys.exit(len(bad) > 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "BRINGUP_LAUNCH_BLOCKING": "1"},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_error_inputs_raise_the_cpu_error() -> None:
    checked, different = 0, []
    for op in opinfo.op_db:
        if op.error_inputs_func is None:
            continue
        for number, error_input in enumerate(op.error_inputs("cpu")):
            on_cpu = opinfo.raised(op, error_input.sample_input, lambda value: value)
            if on_cpu is None:
                continue
            checked += 1
            on_chip = opinfo.raised(op, error_input.sample_input, opinfo.Move("chip"))
            same = on_chip is not None and type(on_chip) is type(on_cpu) and opinfo.same_message(on_chip, on_cpu)
            if not same:
                different.append(f"{opinfo.full_name(op)} {number}: {on_chip!r:.200} instead of {on_cpu!r:.200}")
    assert checked > 600
    assert not different, f"{len(different)} of {checked}:\n" + "\n".join(different)
