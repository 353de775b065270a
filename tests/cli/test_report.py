"""bringup report: a recording is reported again without running the program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bringup.cli.report import command
from bringup.errors import BringupError
from bringup.recording.trace import Trace

PROGRAM = """
import torch
weights = torch.ones(256, 256, device="chip")
for _ in range(3):
    weights = weights @ weights
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "products.py").write_text(PROGRAM)
    subprocess.run([sys.executable, "-m", "bringup", "run", "--chip", "t4", "products.py"], cwd=folder, check=True)
    return folder / "bringup-products"


def summary(*arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.output)  # type: ignore[no-any-return]


def test_report_equals_that_of_the_run(recorded: Path) -> None:
    first = json.loads((recorded / "summary.json").read_text())
    again = summary(str(recorded))
    assert {**first, "run": ""} == {**again, "run": ""}
    assert summary(str(recorded / "trace.npz")) == again


def test_report_on_another_chip_writes_its_files(recorded: Path, tmp_path: Path) -> None:
    other = summary(str(recorded), "--chip", "h100-sxm", "--out", str(tmp_path / "out"))
    assert other["chip"] == "h100-sxm"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["report.html", "summary.json", "timeline.json", "trace.npz"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["step_seconds"] == other["step_seconds"]


def test_a_recording_on_an_unnamed_chip_asks_for_its_file(recorded: Path, tmp_path: Path) -> None:
    trace = Trace.load(recorded / "trace.npz")
    trace.about["chip"] = "ours"
    trace.save(tmp_path / "trace.npz")
    with pytest.raises(BringupError, match="was recorded on ours, which does not ship with bringup: give its file"):
        CliRunner().invoke(command, [str(tmp_path / "trace.npz")], catch_exceptions=False)
