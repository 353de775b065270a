"""Every example runs, and the README tells the truth."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import NO_FLAX, NO_JAX, ROOT

Run = Callable[..., "subprocess.CompletedProcess[str]"]


# Of `bringup run`: options, arguments, what the program prints, and bounds of what summary.json says on one step.
EXAMPLES: dict[str, tuple[list[str], list[str], str, dict[str, tuple[float, float]]]] = {
    "digits.py": (
        ["-W", "error"],
        [],
        r"accuracy on 297 unseen digits: 9\d\.\d%",
        {"samples": (50, 50), "launches": (20, 60)},
    ),
    "train.py": ([], ["--batch-size", "48"], r"epoch 0  loss \d\.\d{4}", {"samples": (48, 48), "steps": (10, 10)}),
    "gpt.py": (
        ["--cuda", "--chip-time"],
        [],
        r"parameters on cuda:0\n(.*\n)*step 30: loss [23]\.\d+, 3\.\d+ ms per step",
        {"samples": (8, 8), "launches": (120, 150), "compiled_graphs": (0, 0), "step_seconds": (3.5e-3, 3.7e-3)},
    ),
    "gpt_jax.py": (
        ["--chip-time"],
        [],
        r"434,816 parameters on chip\n(.*\n)*step 30: loss [23]\.\d+, \d+\.\d+ ms per step",
        {"steps": (30, 30)},
    ),
    "gpt_flax.py": ([], [], r"parameters on chip\n(.*\n)*step 30: loss [23]\.\d+", {"steps": (30, 30)}),
    "gpt.py --compile": (
        ["--cuda", "--chip-time"],
        ["--compile"],
        r"step 30: loss [23]\.\d+",
        {"samples": (8, 8), "launches": (80, 125), "compiled_graphs": (1, 1), "step_seconds": (2e-3, 3.3e-3)},
    ),
    "bert.py": (
        ["--cuda"],
        [],
        r"trained on cuda:0; accuracy (9\d|100)%",
        {"samples": (64, 64), "launches": (120, 160)},  # dropout and attention are one launch each
    ),
    "generate.py": (["--cuda", "--chip-time"], [], r"measured: 32 tokens, 2\d\d\.\d tokens/s", {"samples": (1, 1)}),
    "search.py": ([], [], r"differ from the CPU's by at most (0\.0e\+00|\d\.\de-0[6-9])", {"steps": (2, 2)}),
    "kernel.py": (
        ["--chip", "a100-sxm-80", "--sanitize", "race,init"],
        [],
        r"largest difference \d\.\de-0[67]\nfused \d+\.\d us \((1|4|16) rows a program\), unfused \d+\.\d us",
        {"samples": (0, 1e9)},
    ),
    "kernel_bugs.py": (
        [],
        [],
        r"out_of_bounds: load out of bounds: argument 'x_ptr' at element 100.*\n"
        r"failed_assertion: device_assert failed: a value is too large, program \(2, 0, 0\).*\n"
        r"endless_lock: locked: a loop spins for ever.*\n"
        r"tensor_of_the_host: .*argument 'x_ptr' is on cpu.*\nrace: silent",
        {"samples": (0, 1e9)},
    ),
    "recommend.py": (
        ["--place", "auto"],
        [],
        r"mean score 0\.6924\d\d, highest 3\.4578",
        {"samples": (2048, 2048)},
    ),
    "overlap.py": (["--cuda"], [], r"overlap hides (1\d|2\d)%", {"link_seconds": (0.02, 0.05)}),
}


# Programs of TensorFlow and Keras, which tests/frontends/test_tensorflow.py runs where TensorFlow is installed.
OF_TENSORFLOW = {"back_ends_keras.py", "cnn_keras.py", "gan_tensorflow.py"}


def test_every_example_is_run() -> None:
    found = {path.name for path in (ROOT / "examples").glob("*.py") if not path.name.startswith("test_")}
    assert {name.split()[0] for name in EXAMPLES} | OF_TENSORFLOW == found


# Enough of them for a change; the others take minutes together.
FEW = ("train.py", "gpt.py", "kernel.py", "kernel_bugs.py")


@pytest.mark.parametrize(
    "example", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in EXAMPLES]
)
def test_example_runs_and_its_summary_is_as_expected(example: str, bringup_run: Run, tmp_path: Path) -> None:
    if example.startswith("kernel"):
        pytest.importorskip("triton", reason="needs bringup[triton]")
    if "jax" in example:
        pytest.importorskip("jax", reason=NO_JAX)
    if "flax" in example:
        for package in ("jax", "flax", "optax"):
            pytest.importorskip(package, reason=NO_FLAX)
    options, arguments, printed, bounds = EXAMPLES[example]
    script = str(ROOT / "examples" / example.split()[0])
    if options[:1] == ["-W"]:  # without any warning, and without bringup run
        done = subprocess.run([sys.executable, *options, script], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and done.stderr == "" and re.search(printed, done.stdout), done.stderr
        options = []
    done = bringup_run(*options, "--chip", "t4", "--out", "out", script, *arguments)
    assert done.returncode == 0, done.stderr
    assert re.search(printed, done.stdout), done.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    for name, (least, most) in bounds.items():
        assert least <= summary[name] <= most, (name, summary[name])
    assert summary["fits"] and not summary["graph_breaks"]


def test_readme_program_prints_what_the_readme_shows(python: Run) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    program = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", readme, re.DOTALL)
    assert program is not None
    done = python(program[1])
    assert done.stdout == program[2], done.stderr


@pytest.mark.slow
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
    lines = [printed.split("report: ")[0], shown[1].split("report: ")[0]]  # the README's are those of a narrow terminal
    assert lines[0].split() == lines[1].split(), done.stderr


@pytest.mark.slow
def test_prediction_benchmark_runs() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "predict.py"), "--rounds", "1", "--launches", "10000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "recording on / off" in done.stdout and "compare on 30 chips" in done.stdout


@pytest.mark.slow
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
