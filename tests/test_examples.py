"""Every example runs, and the README tells the truth."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.conftest import ROOT

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
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
