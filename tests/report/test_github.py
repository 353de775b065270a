"""Annotations and job summaries for GitHub Actions."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bringup.report.github import Note, Page, write
from tests.conftest import without_bringup

TRAIN = """
import torch

model = torch.nn.Linear(64, 64).to("chip")
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(10):
    loss = model(torch.randn(8, 64, device="chip")).sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    loss.item()
"""


def test_annotations_escape_what_could_end_them() -> None:
    assert str(Note("error", "50 %: a\nb", "a,b:c.py:12")) == (
        "::error file=a%2Cb%3Ac.py,line=12,title=bringup::50 %25: a\\nb"
    )
    assert str(Note("notice", "x")) == "::notice title=bringup::x"


def test_job_summary_is_appended_and_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "summary.md"
    file.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    write(Page("<img src=x> | a", [Note("warning", str(number)) for number in range(30)], ["text"]))
    assert file.read_text(encoding="utf-8") == "before\n### &lt;img src=x&gt; \\| a\n\ntext\n\n"
    assert capsys.readouterr().out.count("::warning") == 10  # GitHub shows no more


def run(tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**without_bringup(), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    command = [sys.executable, "-m", "bringup", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240)


def test_run_and_diff_annotate_lines(tmp_path: Path, bringup_run: Callable[..., object]) -> None:
    (tmp_path / "train.py").write_text(TRAIN, encoding="utf-8")
    options = ("--chip", "t4", "--max-step", "1us", "--output-format", "github")
    done = run(tmp_path, "run", *options, "--sanitize=sync", "--out", "a", "train.py")
    assert done.returncode == 3, done.stderr
    assert "::error title=bringup::a step takes " in done.stdout
    assert "::error file=train.py,line=11,title=bringup::train.py:11 makes the host wait" in done.stdout
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("### bringup run train.py on t4\n\n|  | t4 |\n| --- | --- |\n| step | ")
    (tmp_path / "train.py").write_text(TRAIN.replace("randn(8,", "randn(80000,"), encoding="utf-8")
    assert run(tmp_path, "run", "--chip", "t4", "--out", "b", "train.py").returncode == 0
    done = run(tmp_path, "diff", "a", "b", "--max-slower", "5%", "--output-format", "github")
    assert done.returncode == 1 and "::error title=bringup::b is " in done.stdout, done.stdout
    assert "::warning file=train.py,line=" in done.stdout
    assert "### b is " in (tmp_path / "summary.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_fit_and_check_annotate(tmp_path: Path) -> None:
    (tmp_path / "large.py").write_text("import torch\ntorch.empty(3 << 33, device='chip') + 1\n", encoding="utf-8")
    done = run(tmp_path, "fit", "--chips", "t4", "--output-format", "github", "large.py")
    assert done.returncode == 0 and "::warning title=bringup::large.py does not fit t4: " in done.stdout, done.stderr
    done = run(tmp_path, "check", "--only", "D1", "--chip", "t4", "--output-format", "github")
    assert done.returncode == 0 and "| D1 | " in (tmp_path / "summary.md").read_text(encoding="utf-8"), done.stderr
    done = run(tmp_path, "check", "--only", "D1", "--chip", "t4", "--output-format", "json")
    assert done.returncode == 0 and done.stdout.startswith("{"), done.stdout
