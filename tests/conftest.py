"""Shared by all tests: two chips, and no failure left over from the test before."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("BRINGUP_DEVICES", "2")
os.environ.setdefault("BRINGUP_CHIP", "edge8")  # the default; beside a real accelerator, a chip has to be asked for
os.environ.setdefault("JAX_PLATFORMS", "cpu,chip")  # JAX's own results are those of its CPU
ROOT = Path(__file__).parent.parent
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell's background jobs have it: programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import torch  # noqa: E402  (reads the environment)

NO_BROWSER = "there is no Chromium or Chrome on the PATH"
NO_AXE = "axe-core is not installed (pip install axe-core-python)"
NO_ONNX = "the package onnx is not installed (pip install onnx)"
NO_JAX = 'JAX is not installed, or this Python is too old for it (pip install "bringup[jax]")'
NO_TENSORFLOW = 'TensorFlow is not installed (pip install "bringup[tensorflow]")'
NO_FLAX = "Flax or Optax is not installed (pip install flax optax)"
NO_VERILATOR = "Verilator is not installed (apt-get install verilator)"
NO_SWEEP = 'DuckDB, Optuna or Ray is not installed (pip install "bringup[sweep]")'


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say aloud what was not tested for want of a tool: in a quiet run a skip is one letter."""
    tools = {
        "pages not opened": NO_BROWSER,
        "accessibility of pages not tested": NO_AXE,
        "the simulated array not tested": NO_VERILATOR,
        "ONNX models not run": NO_ONNX,
        "programs of JAX not run": NO_JAX,
        "programs of TensorFlow not run": NO_TENSORFLOW,
        "programs of Flax not run": NO_FLAX,
        "sweeps not tested": NO_SWEEP,
    }
    for title, reason in tools.items():
        skipped = [report for report in terminalreporter.getreports("skipped") if reason in str(report.longrepr)]
        if skipped:
            terminalreporter.section(title, yellow=True)
            terminalreporter.line(f"{len(skipped)} tests were skipped: {reason}", yellow=True)


def slow(*values: object) -> list[object]:
    """Parameters that only `make test-all` tries, beside those that are tried always. A tuple is several parameters."""
    each = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*parameters, marks=pytest.mark.slow) for parameters in each]


def without_bringup() -> dict[str, str]:
    """The environment of a process that is to choose for itself. Beside a real accelerator it asks for a chip."""
    kept = {"BRINGUP_CHIP"} if torch.cuda.is_available() or torch.xpu.is_available() else set()
    choices = ("BRINGUP_", "JAX_PLATFORMS")
    return {key: value for key, value in os.environ.items() if not key.startswith(choices) or key in kept}


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    yield
    if torch.chip.is_initialized():
        torch.chip.synchronize(0)
        if torch.chip.memory_reserved(0) > 1 << 30:  # such as after a test that fills the chip
            gc.collect()
            torch.chip.empty_cache()


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program in a fresh interpreter: what is decided once per process can be decided again there."""

    def run(program: str, timeout: float = 400, **environment: str) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "program.py"
        script.write_text(program, encoding="utf-8")
        return subprocess.run(
            [sys.executable, "program.py"],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            env={**without_bringup(), **environment},
        )

    return run


@pytest.fixture
def bringup_run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``bringup run`` with these arguments, in the test's directory."""

    def run(*arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bringup", "run", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            env=without_bringup(),
        )

    return run


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``bringup`` with these arguments in this process and the test's directory, for what ends before anything runs."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        from bringup.cli import main

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["bringup", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(sys.argv, ended.value.code, printed.out, printed.err)

    return run


def built_driver(name: str, folder: Path) -> str:
    """Compile a driver of tests/core, such as separate_driver.cpp; return the path of its library."""
    library = folder / f"{name}.so"
    source = Path(__file__).parent / "core" / f"{name}_driver.cpp"
    include = str(ROOT / "csrc")
    command = ["g++", "-std=c++20", "-shared", "-fPIC", "-I", include, str(source), "-ldl", "-o", str(library)]
    subprocess.run(command, check=True)
    return str(library)
