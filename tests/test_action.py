"""The action in .github/actions/report: its steps run on a repository with two branches, with a stand-in for gh."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, without_bringup

PROGRAM = """
import sys, torch
assert sys.argv[1] == "two words"
for _ in range(30):
    torch.ones(64, {width}, device="chip").sum().item()
"""
MARK = "<!-- bringup report -->\n"


def run(command: list[str], folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    settings = {**without_bringup(), **environment, "GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=400)


def git(folder: Path, *arguments: str) -> str:
    done = run(["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments], folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ (.*?) \}\}", lambda match: values.get(match[1], ""), text)


def repository(folder: Path, *versions: str) -> str:
    """A repository with a commit for each version of train.py, and a checkout of it; returns the first commit."""
    origin = folder / "origin"
    origin.mkdir()
    git(origin, "init", "-q", "-b", "main")
    (origin / "README").write_text("a project")
    for text in versions:
        if text:
            (origin / "train.py").write_text(text, encoding="utf-8")
        git(origin, "add", ".")
        git(origin, "commit", "-q", "-m", "a version")
    git(origin, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(folder, "clone", "-q", f"file://{origin}", "checkout")
    return git(origin, "rev-list", "--max-parents=0", "HEAD")


def steps(folder: Path, base: str, **inputs: str) -> dict[str, int]:
    """Run the action's steps; return their exit codes."""
    action = yaml.safe_load((ROOT / ".github" / "actions" / "report" / "action.yml").read_text(encoding="utf-8"))
    temp, tools, outputs = folder / "temp", folder / "tools", folder / "outputs"
    temp.mkdir()
    tools.mkdir()
    (tools / "bringup").write_text(f'#!/bin/sh\nexec {sys.executable} -m bringup "$@"\n', encoding="utf-8")
    (tools / "gh").write_text(f'#!/bin/sh\necho "$@" >> {folder}/gh\n', encoding="utf-8")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    defaults = {name: item["default"] for name, item in action["inputs"].items() if "default" in item}
    values = {f"inputs.{name}": value for name, value in {**defaults, **inputs}.items()}
    values |= {"github.event.pull_request.base.sha": base, "github.event.pull_request.number": "7"}
    github = {"GITHUB_STEP_SUMMARY": str(folder / "summary.md"), "RUNNER_TEMP": str(temp), "GITHUB_REPOSITORY": "o/r"}
    github |= {"PATH": f"{tools}:{os.environ['PATH']}", "GITHUB_OUTPUT": str(outputs)}
    codes = {}
    for step in action["runs"]["steps"]:
        outputs.write_text("")
        environment = {name: filled(text, values) for name, text in step["env"].items()}
        done = run(["bash", "-eo", "pipefail", "-c", step["run"]], folder / "checkout", **github, **environment)
        for line in outputs.read_text().splitlines():
            name, _, value = line.partition("=")
            values[f"steps.{step['id']}.outputs.{name}"] = value
        codes[step["name"]] = done.returncode
        assert done.returncode == 0 or step["name"] == "verdict", done.stderr
    return codes


def test_pull_request_is_compared_with_its_base(tmp_path: Path) -> None:
    base = repository(tmp_path, PROGRAM.format(width=64), PROGRAM.format(width=1 << 18))
    codes = steps(tmp_path, base, script="train.py 'two words'", chip="t4")
    assert codes["verdict"] == 1
    comment = (tmp_path / "temp" / "comment.md").read_text(encoding="utf-8")
    assert comment.startswith(f"{MARK}### after is ") and "slower than before" in comment
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("### bringup run train.py on t4") and comment in summary
    listed, posted = (tmp_path / "gh").read_text(encoding="utf-8").splitlines()
    assert "repos/o/r/issues/7/comments" in listed and posted.endswith("comment.md")


@pytest.mark.slow
def test_program_that_the_base_lacks_is_not_compared(tmp_path: Path) -> None:
    base = repository(tmp_path, "", PROGRAM.format(width=64))
    codes = steps(tmp_path, base, script="train.py 'two words'", chip="t4")
    assert codes["verdict"] == 0
    assert "There is no report of the base branch" in (tmp_path / "temp" / "comment.md").read_text(encoding="utf-8")
