"""bringup doctor: what is wrong is said with its mend, and facts are complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from bringup import core, core_build


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if not name.startswith("BRINGUP_")}
    return subprocess.run(
        [sys.executable, "-m", "bringup", "doctor", *arguments],
        capture_output=True, text=True, timeout=240, env={**base, **environment},
    )  # fmt: skip


def test_a_whole_installation_has_no_problem_and_names_its_parts() -> None:
    done = doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("Nothing is wrong.\n") and done.stderr == ""
    facts = {line[:11].strip(): line[11:].strip() for line in done.stdout.splitlines() if line[:1].strip()}
    torch = core.torch_here()
    assert facts["torch"].startswith(f"{torch.version}, in ") and " build)" in facts["torch"]
    assert core_build.core_library(torch).file in facts["core"] and facts["device"].startswith("chip: edge8")


def test_everything_that_the_environment_gets_wrong_is_named() -> None:
    wrong = {"BRINGUP_CHP": "t4", "BRINGUP_CHIP": "t5", "BRINGUP_DEVICES": "many", "BRINGUP_DRIVER": "/nowhere.so"}
    done = doctor("--json", TORCH_DEVICE_BACKEND_AUTOLOAD="0", **wrong)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    beginnings = (
        "no chip is named 't5': did you mean t4",
        "bringup reads no variable BRINGUP_CHP: did you mean BRINGUP_CHIP?",
        "BRINGUP_DEVICES must be a whole number from 1 to 64, got 'many'",
        "TORCH_DEVICE_BACKEND_AUTOLOAD=0: `import torch` brings no device 'chip'",
        "BRINGUP_DRIVER=/nowhere.so is no file",
    )
    assert len(report["problems"]) == len(beginnings)
    assert all(problem.startswith(text) for problem, text in zip(report["problems"], beginnings, strict=True))
    assert report["facts"]["device"].startswith("chip: edge8")  # the rest was examined


def test_without_torch_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['torch'] = None; sys.argv = ['bringup', 'doctor']\n"
    program += "import bringup.cli; bringup.cli.main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "there is no torch in this environment" in done.stdout and "pip install torch" in done.stdout
