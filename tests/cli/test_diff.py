"""bringup diff: two recordings compared, on the command line."""

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import bringup
from bringup.cli.diff import command
from bringup.errors import BringupError


def save(path: Path, width: int, *, steps: bool = True) -> str:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, width), nn.Linear(width, 8)).to("chip")
    x = torch.randn(16, 64).to("chip")
    with bringup.record() as trace:
        for _ in range(3):
            y = model(x) if steps else x + 1
            if steps:
                bringup.step()
    del y
    trace.about["chip"] = "t4"
    trace.save(path)
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    return save(folder / "narrow.npz", 64), save(folder / "wide.npz", 65536)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_json_has_pairs_and_lists(runs: tuple[str, str]) -> None:
    done = invoke(*runs, "--json")
    assert done.exit_code == 0
    written = json.loads(done.stdout)
    for key in ("step_seconds", "launches", "peak_bytes"):
        assert len(written[key]) == 2, key
    assert written["step_seconds"][0] < written["step_seconds"][1]
    assert written["peak_bytes"] == [bringup.price(bringup.Trace.load(run), "t4").peak_bytes for run in runs]
    assert written["new"] == written["gone"] == []
    longest = written["slower"][0]
    assert longest["name"] in {"aten::addmm", "0", "1"} or longest["by"] == "line"
    assert {"by", "name", "was", "seconds", "launches", "peak_bytes"} == set(longest)
    assert invoke(*runs, "--json").stdout == done.stdout


def test_terminal_begins_with_the_verdict(runs: tuple[str, str]) -> None:
    before, after = runs
    shown = invoke(*runs).stdout
    text = " ".join(shown.split())
    assert text.startswith(f"{after} is ") and f"slower than {before}: " in text and "most of the change is in" in text
    assert "aten::addmm" in shown and "memory at the peak" in shown
    assert f"{before} is as fast as {before}" in " ".join(invoke(before, before).stdout.split())


@pytest.mark.parametrize(
    ("limits", "code", "sentence"),
    [
        (("--max-slower", "1%"), 1, "slower than"),
        (("--max-memory", "+1KiB"), 1, "--max-memory allows +1KiB"),
        (("--max-slower", "1us", "--max-memory", "1%"), 1, "--max-slower allows 1us"),
        (("--max-slower", "100000%", "--max-memory", "+1GiB"), 0, ""),
    ],
)
def test_limits_give_exit_code_1_and_a_sentence(
    runs: tuple[str, str], limits: tuple[str, ...], code: int, sentence: str
) -> None:
    done = invoke(*runs, *limits)
    assert done.exit_code == code
    assert sentence in done.stderr and done.stderr.count("\n") == len(limits) // 2 * code
    assert invoke(runs[1], runs[0], *limits).exit_code == 0  # faster and smaller is no excess


def test_page_has_the_verdict_and_links_to_reports(runs: tuple[str, str], tmp_path: Path) -> None:
    reports = [tmp_path / name for name in ("before", "after")]
    for report, run in zip(reports, runs, strict=True):
        report.mkdir()
        (report / "trace.npz").write_bytes(Path(run).read_bytes())
    (reports[1] / "report.html").write_text("")
    page = tmp_path / "pages" / "diff.html"
    page.parent.mkdir()
    done = invoke(*map(str, reports), "--html", str(page))
    assert done.exit_code == 0 and done.stdout.endswith(f"page: {page}\n")
    text = page.read_text()
    assert re.findall(r'<a href="([^#"]*)">', text) == ["../after/report.html"]
    assert f"{reports[1]} is " in text and f"slower than {reports[0]}" in text
    assert '<td class="name">aten::addmm</td><td>slower</td>' in text and "y = model(x)" in text
    with pytest.raises(BringupError, match="nowhere"):
        invoke(*map(str, reports), "--html", str(tmp_path / "nowhere" / "diff.html"))


def test_limits_without_unit_are_refused(runs: tuple[str, str]) -> None:
    done = CliRunner().invoke(command, [*runs, "--max-slower", "5"])
    assert done.exit_code == 2 and "5% or +2ms" in done.output


def test_runs_with_and_without_steps_are_not_compared(runs: tuple[str, str], tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.npz", 64, steps=False)
    with pytest.raises(BringupError, match=r"whole\.npz has no steps and .*narrow\.npz has"):
        invoke(runs[0], whole)


def test_chip_of_both_runs_can_be_chosen(runs: tuple[str, str]) -> None:
    assert json.loads(invoke(*runs, "--chip", "h100-sxm", "--json").stdout)["chip"] == ["h100-sxm", "h100-sxm"]
