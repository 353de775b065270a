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
    assert summary(str(recorded)) == first
    assert summary(str(recorded / "trace.npz")) == first


def test_views_have_the_bytes_of_the_run(recorded: Path, tmp_path: Path) -> None:
    page, events = tmp_path / "page.html", tmp_path / "events.pftrace.gz"
    done = CliRunner().invoke(command, [str(recorded), "--html", str(page), "--perfetto", str(events)])
    assert done.output == f"page: {page}\ntimeline: {events}\n"
    assert page.read_bytes() == (recorded / "report.html").read_bytes()
    assert events.read_bytes() == (recorded / "timeline.pftrace.gz").read_bytes()
    done = CliRunner().invoke(command, [str(recorded), "--out", str(tmp_path / "out")])
    for name in ("summary.json", "timeline.pftrace.gz", "report.html", "trace.npz"):
        assert (tmp_path / "out" / name).read_bytes() == (recorded / name).read_bytes(), name


def test_terminal_is_the_view_without_another(recorded: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(command, [str(recorded)]).output
    assert shown.startswith("run ") and CliRunner().invoke(command, [str(recorded), "--terminal"]).output == shown
    page = tmp_path / "page.html"
    both = CliRunner().invoke(command, [str(recorded), "--terminal", "--html", str(page)]).output
    assert both == f"{shown}page: {page}\n"
    done = CliRunner().invoke(command, [str(recorded), "--terminal", "--json"])
    assert done.exit_code == 2 and "--json and --terminal exclude each other" in done.output


def test_a_page_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(BringupError, match="nowhere"):  # and not that there is no trace
        CliRunner().invoke(command, ["no trace", "--html", str(tmp_path / "nowhere" / "x")], catch_exceptions=False)


def test_findings_host_and_clock_are_those_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "reads.py").write_text("import torch\nx = torch.empty(4, device='chip')\nprint((x + 1).sum().item())\n")
    arguments = ("--sanitize", "init", "--host", "epyc-7763", "--chip", "t4", "reads.py")
    done = subprocess.run([sys.executable, "-m", "bringup", "run", *arguments], cwd=tmp_path)
    assert done.returncode == 1
    again = summary(str(tmp_path / "bringup-reads"))
    assert again == json.loads((tmp_path / "bringup-reads" / "summary.json").read_text())
    assert again["host"] == "epyc-7763" and again["findings"]


def test_report_on_another_chip_writes_its_files(recorded: Path, tmp_path: Path) -> None:
    other = summary(str(recorded), "--chip", "h100-sxm", "--out", str(tmp_path / "out"))
    assert other["chip"] == "h100-sxm"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["report.html", "summary.json", "timeline.pftrace.gz", "trace.npz"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["step_seconds"] == other["step_seconds"]


def test_a_recording_on_an_unnamed_chip_asks_for_its_file(recorded: Path, tmp_path: Path) -> None:
    trace = Trace.load(recorded / "trace.npz")
    trace.about["chip"] = "ours"
    trace.save(tmp_path / "trace.npz")
    with pytest.raises(BringupError, match="was recorded on ours, which does not ship with bringup: give its file"):
        CliRunner().invoke(command, [str(tmp_path / "trace.npz")], catch_exceptions=False)
