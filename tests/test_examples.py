"""Every example runs, and the README tells the truth."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("[!t]*.py")), ids=lambda path: path.name)
def test_example_runs(example: object) -> None:
    done = subprocess.run([sys.executable, "-W", "error", str(example)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.search(r"accuracy on 297 unseen digits: 9\d\.\d%", done.stdout)


def test_readme_program_prints_what_the_readme_shows(python: Run) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    program = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", readme, re.DOTALL)
    assert program is not None
    done = python(program[1])
    assert done.stdout == program[2], done.stderr


def test_launch_benchmark_runs() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "launch.py"), "--rounds", "1", "--calls", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "add 16" in done.stdout and "first a @ a" in done.stdout


def test_readme_run_prints_what_the_readme_shows(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"the program's own output \.\.\.\n\n(.*?)\n\$ bringup compare", readme, re.DOTALL)
    assert shown is not None
    command = [
        sys.executable,
        "-m",
        "bringup",
        "run",
        "--chip",
        "t4",
        "--out",
        str(tmp_path / "out"),
        "examples/digits.py",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    printed = done.stdout[done.stdout.index("step ") :]
    assert printed.split("report: ")[0] == shown[1].split("report: ")[0], done.stderr


def test_prediction_benchmark_runs() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "predict.py"), "--rounds", "1", "--launches", "10000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "recording on / off" in done.stdout and "compare on 30 chips" in done.stdout


def test_the_examples_pass_under_the_plug_in() -> None:
    command = [sys.executable, "-m", "pytest", "--chip", "t4", "examples"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0 and "2 tests, " in done.stdout, done.stdout


def test_the_example_has_nothing_to_sanitize(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bringup", "run", "--chip", "t4", "--sanitize", "race,init,leak,device"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "examples/digits.py"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout
