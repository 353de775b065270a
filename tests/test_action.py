"""The action in .github/actions/report: its steps run on a repository with two branches, with a stand-in for gh."""

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from tests.conftest import ROOT, without_bringup

PROGRAM = """
import torch
for _ in range(30):
    torch.ones(64, {width}, device="chip").sum().item()
"""


def run(command: list[str], folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    settings = {**without_bringup(), **environment, "GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=240)


def git(folder: Path, *arguments: str) -> str:
    done = run(["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments], folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ (.*?) \}\}", lambda match: values[match[1]], text)


def test_pull_request_is_compared_with_its_base(tmp_path: Path) -> None:
    action = yaml.safe_load((ROOT / ".github" / "actions" / "report" / "action.yml").read_text(encoding="utf-8"))
    origin, checkout, temp, tools = (tmp_path / name for name in ("origin", "checkout", "temp", "tools"))
    for folder in (origin, temp, tools):
        folder.mkdir()
    git(origin, "init", "-q", "-b", "main")
    for width in (64, 1 << 18):
        (origin / "train.py").write_text(PROGRAM.format(width=width), encoding="utf-8")
        git(origin, "add", ".")
        git(origin, "commit", "-q", "-m", str(width))
    base = git(origin, "rev-parse", "HEAD~1")
    git(origin, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(tmp_path, "clone", "-q", f"file://{origin}", "checkout")
    (tools / "bringup").write_text(f'#!/bin/sh\nexec {sys.executable} -m bringup "$@"\n', encoding="utf-8")
    (tools / "gh").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/gh\n', encoding="utf-8")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    values = {
        "inputs.script": "train.py",
        **{f"inputs.{name}": item["default"] for name, item in action["inputs"].items() if "default" in item},
        "inputs.chip": "t4",
        "github.event.pull_request.base.sha": base,
        "github.event.pull_request.number": "7",
        "github.token": "secret",
    }
    outputs = tmp_path / "outputs"
    github = {"GITHUB_OUTPUT": str(outputs), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    github |= {"RUNNER_TEMP": str(temp), "GITHUB_REPOSITORY": "o/r", "PATH": f"{tools}:{os.environ['PATH']}"}
    codes = {}
    for step in action["runs"]["steps"]:
        written = dict(line.split("=", 1) for line in outputs.read_text().splitlines()) if outputs.exists() else {}
        values |= {f"steps.diff.outputs.{name}": value for name, value in written.items()}
        replaced = {name: filled(text, values) for name, text in step["env"].items()}
        done = run(["bash", "-eo", "pipefail", "-c", step["run"]], checkout, **github, **replaced)
        codes[step["name"]] = done.returncode
        assert done.returncode == 0 or step["name"] == "verdict", done.stderr
    assert codes["verdict"] == 1
    comment = (temp / "comment.md").read_text(encoding="utf-8")
    assert comment.startswith("### after is ") and "slower than before" in comment
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("### bringup run train.py on t4") and comment in summary
    assert (tmp_path / "gh").read_text(encoding="utf-8").startswith("pr comment 7 --repo o/r --body-file ")
