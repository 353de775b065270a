"""The chip in development: products on the simulated array equal the CPU's, and its cycles are those of its schedule.

The array has N x N cells. A product of (m, k) and (k, n) takes (F - 1) * max(m, 3N) + m + 3N cycles, where F is
ceil(k / N) * ceil(n / N): see the note on the schedule in csrc/drivers/array.cpp.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bringup import core, core_build
from tests.conftest import NO_VERILATOR, ROOT, slow, without_bringup

Run = Callable[..., "subprocess.CompletedProcess[str]"]
needs_verilator = pytest.mark.skipif(shutil.which("verilator") is None, reason=NO_VERILATOR)

PRODUCTS = """
import json, torch

def numbers(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8)

def cycles(m, k, n):
    folds = -(-k // N) * -(-n // N)
    return (folds - 1) * max(m, 3 * N) + m + 3 * N if m and folds else 0

def check(a, b, on_chip=lambda tensor: tensor.to("chip")):
    start, end = (torch.chip.Event(enable_timing=True) for _ in range(2))
    x, y = on_chip(a), on_chip(b)
    start.record()
    c = torch._int_mm(x, y)
    end.record()
    end.synchronize()
    expected = torch._int_mm(a, b)
    assert c.dtype == torch.int32 and torch.equal(c.cpu(), expected), (a.shape, b.shape)
    assert round(start.elapsed_time(end) * 1e6) == cycles(*a.shape, b.shape[1]), (a.shape, b.shape)  # at 1 GHz
    return c

def counts():
    ledger = json.loads(torch.ops.bringup.driver_ledger())
    return sum(ledger["on_device"].values()), sum(row["launches"] for row in ledger["on_host"])
"""


@pytest.fixture(scope="session")
def rtl() -> dict[str, str]:
    """The environment of a program on the driver."""
    driver = core.compiled(core_build.driver_library("rtl"))
    return {
        "BRINGUP_DRIVER": str(driver),
        "BRINGUP_RTL_SIMULATION": str(core.compiled(core_build.simulation_library())),
    }


def output(done: "subprocess.CompletedProcess[str]") -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_verilator
@pytest.mark.parametrize("size", [1, 2, 7, 8, 32])
def test_the_array_is_clean_under_lint(size: int) -> None:
    folder = core_build.sources() / "drivers"
    command = ["verilator", "--lint-only", "-Wall", "--top-module", "array", f"-GN={size}"]
    done = subprocess.run([*command, folder / "array.sv", folder / "delay.sv"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


SHAPES = """
sizes = (0, 1, 7, 8, 9, 33)
shapes = [(m, k, n) for m in sizes for k in sizes for n in sizes] + [(300, 5, 70), (2, 257, 3), (64, 128, 96)]
for m, k, n in shapes:
    check(numbers(m, k), numbers(k, n))
assert counts() == (len(shapes), 0), counts()
"""


@needs_verilator
def test_products_of_any_shape_equal_the_cpus(python: Run, rtl: dict[str, str]) -> None:
    output(python(f"N = 8\n{PRODUCTS}{SHAPES}", **rtl))


@needs_verilator
@pytest.mark.parametrize("size", slow(1, 3))
def test_arrays_of_other_sizes_equal_the_cpus(
    size: int, python: Run, rtl: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("array")
    program = core_build.compile_library(core_build.simulation_library(), folder, extra=[f"-GN={size}"])
    output(python(f"N = {size}\n{PRODUCTS}{SHAPES}", **{**rtl, "BRINGUP_RTL_SIMULATION": str(program)}))


@needs_verilator
def test_strides_offsets_and_extremes_equal_the_cpus(python: Run, rtl: dict[str, str]) -> None:
    done = python(
        f"N = 8\n{PRODUCTS}"
        """
a, b = numbers(40, 50), numbers(50, 60)
chips = {id(t): t.to("chip") for t in (a, b)}
views = [
    lambda a, b: (b.t(), a.t()),
    lambda a, b: (a[::2], b[:, ::3]),
    lambda a, b: (a[3:, 10:30], b[7:27, 1:]),
    lambda a, b: (a[:, :1], b[:1]),
    lambda a, b: (a[:1].expand(9, 50), b[:, :1].expand(50, 10)),
    lambda a, b: (a.as_strided((5, 6), (3, 7), 11), b.as_strided((6, 4), (1, 9), 2)),
]
for view in views:
    x, y = view(chips[id(a)], chips[id(b)])
    assert torch.equal(torch._int_mm(x, y).cpu(), torch._int_mm(*view(a, b)))
least = torch.full((9, 1000), -128, dtype=torch.int8)
assert check(least, least.t())[8, 8].item() == 1000 * 128 * 128
out = torch.empty(40, 60, dtype=torch.int32, device="chip")
torch._int_mm(chips[id(a)], chips[id(b)], out=out)
assert torch.equal(out.cpu(), torch._int_mm(a, b))
print(counts()[0])
""",
        **rtl,
    )
    assert output(done) == ["8"]


@needs_verilator
def test_quantised_network_equals_the_cpus(tmp_path: Path, rtl: dict[str, str]) -> None:
    script = tmp_path / "network.py"
    script.write_text(
        """
import torch

def quantised(x, scale):
    return (x.float() * scale).round().clamp(-127, 127).to(torch.int8)

def network(x, weights):
    for weight in weights[:-1]:
        x = quantised(torch.relu(torch._int_mm(x, weight)), 1 / 512)
    return torch._int_mm(x, weights[-1])

x = quantised(torch.randn(32, 64), 40)
weights = [quantised(torch.randn(*shape), 40) for shape in ((64, 48), (48, 48), (48, 10))]
on_chip = network(x.to("chip"), [weight.to("chip") for weight in weights])
assert torch.equal(on_chip.cpu(), network(x, weights))
""",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "bringup", "run", "--driver", "rtl", str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=without_bringup(),
    )
    lines = output(done)
    assert any(line.strip().startswith("on the device 3 launches, on the host ") for line in lines), done.stdout
    assert any("aten::relu" in line and "(the driver has no kernel for it)" in line for line in lines), done.stdout


@needs_verilator
def test_streams_share_the_array(python: Run, rtl: dict[str, str]) -> None:
    done = python(
        f"N = 8\n{PRODUCTS}"
        """
a, b = numbers(50, 60).to("chip"), numbers(60, 70).to("chip")
start, end, other = (torch.chip.Event(enable_timing=True) for _ in range(3))
start.record()
stream = torch.chip.Stream()
stream.wait_event(start)
with torch.chip.stream(stream):
    first = [torch._int_mm(a, b) for _ in range(5)]
    other.record()
second = [torch._int_mm(a, b) for _ in range(5)]
torch.chip.current_stream().wait_event(other)
end.record()
expected = torch._int_mm(a.cpu(), b.cpu())
assert all(torch.equal(c.cpu(), expected) for c in first + second)
end.synchronize()
assert round(start.elapsed_time(end) * 1e6) == 10 * cycles(50, 60, 70)
""",
        **rtl,
    )
    output(done)


SIGNALLED = """
import os, pathlib, signal, torch
a = torch.ones(4, 4, dtype=torch.int8).to("chip")
(child,) = [int(n) for path in pathlib.Path("/proc/self/task").glob("*/children") for n in path.read_text().split()]
os.kill(child, signal.SIGNAL)
c = torch._int_mm(a, a)
try:
    torch.chip.synchronize()
except RuntimeError as error:
    print(error)
print(torch._int_mm(a, a).sum().item())
"""


@needs_verilator
@pytest.mark.parametrize(
    ("signal", "why"),
    [
        ("SIGKILL", "chip:0: the simulation was ended by a signal: Killed"),
        ("SIGSTOP", "chip:0: the simulation hung for 0.5 s and was ended"),
    ],
)
def test_simulation_that_is_killed_or_hangs_is_one_error(
    signal: str, why: str, python: Run, rtl: dict[str, str]
) -> None:
    done = python(SIGNALLED.replace("SIGNAL", signal), BRINGUP_RTL_SECONDS="0.5", **rtl)
    error, next_sum = output(done)
    assert error.startswith(f"{why}, in aten::_int_mm(int8[4, 4], int8[4, 4]) on chip:0, launched at ")
    assert "program.py:6 (" in error
    assert next_sum == "64"  # a new simulation was started


@needs_verilator
@pytest.mark.slow
def test_array_that_gives_no_results_is_one_error(
    python: Run, rtl: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(core_build.sources(), tmp_path / "csrc")
    array = tmp_path / "csrc" / "drivers" / "array.sv"
    text = array.read_text(encoding="utf-8")
    array.write_text(text.replace("assign done = passing[2*N]", "assign done = 0 & passing[2*N]"), encoding="utf-8")
    monkeypatch.setattr(core_build, "sources", lambda: tmp_path / "csrc")
    program = core_build.compile_library(core_build.simulation_library(), tmp_path)
    done = python(
        'import torch\na = torch.ones(4, 4, dtype=torch.int8).to("chip")\ntorch._int_mm(a, a).cpu()\n',
        **{**rtl, "BRINGUP_RTL_SIMULATION": str(program)},
    )
    assert "chip:0: the array gave no results until cycle 32, in aten::_int_mm(" in done.stderr.splitlines()[-1]


@needs_verilator
def test_full_memory_of_the_chip_is_an_error_that_a_program_survives(python: Run, rtl: dict[str, str]) -> None:
    done = python(
        """
import torch
a = torch.ones(8, 8, dtype=torch.int8).to("chip")
try:
    torch.empty(9 << 30, dtype=torch.int8, device="chip")
except torch.OutOfMemoryError as error:
    print(str(error).splitlines()[0])
print(torch._int_mm(a, a).sum().item())
""",
        BRINGUP_CHIP="edge8",
        **rtl,
    )
    error, total = output(done)
    assert "chip:0 (edge8) is out of memory: requested 9.00 GiB" in error
    assert total == str(8 * 8 * 8)


def test_prediction_for_the_array_is_its_cycles_if_rows_hide_the_loading(python: Run) -> None:
    done = python(
        f"N = 8\n{PRODUCTS}"
        f"CHIP = {str(ROOT / 'examples' / 'rtl8.toml')!r}"
        """
import bringup
bringup.use(CHIP)
shapes = [(128, 128, 128), (1024, 64, 64), (256, 300, 500)]
with bringup.record() as trace:
    for m, k, n in shapes:
        torch._int_mm(numbers(m, k).to("chip"), numbers(k, n).to("chip"))
timeline = bringup.price(trace, chip=CHIP).timeline
predicted = [float(s) * 1e9 for s, row in zip(timeline.seconds, trace.columns["signature"])
             if row >= 0 and "_int_mm" in str(trace.signatures[row])]
for shape, number in zip(shapes, predicted, strict=True):
    assert abs(number / cycles(*shape) - 1) < 0.02, (shape, number)
"""
    )
    output(done)


def refusal(tmp_path: Path, **environment: str) -> tuple[int, str]:
    """Return the exit code and the last line of a run on the driver."""
    script = tmp_path / "ones.py"
    script.write_text('import torch\ntorch.ones(3, device="chip")\n', encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "bringup", "run", "--driver", "rtl", str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**without_bringup(), **environment},
    )
    return done.returncode, done.stderr.splitlines()[-1]


def test_without_verilator_one_sentence_has_the_command(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    tools.joinpath("g++").symlink_to(shutil.which("g++") or "/usr/bin/g++")
    environment = {"PATH": str(tools), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    sentence = "bringup: the rtl driver needs Verilator, and it is not installed: apt-get install verilator"
    assert refusal(tmp_path, **environment) == (2, sentence)


def test_wrong_settings_of_the_simulation_are_named(tmp_path: Path) -> None:
    missing = {"BRINGUP_RTL_SIMULATION": "/nowhere/array"}
    code, sentence = refusal(tmp_path, **missing)
    assert code == 1
    assert "the rtl driver says: the simulation /nowhere/array does not start: No such file or directory" in sentence
    code, sentence = refusal(tmp_path, BRINGUP_RTL_SECONDS="soon", **missing)
    assert code == 1
    assert "the rtl driver says: BRINGUP_RTL_SECONDS must be a positive number of seconds, got soon" in sentence
