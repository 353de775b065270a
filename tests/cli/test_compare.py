"""bringup compare: the page links to reports, and chips that only run compiled graphs are told apart."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import bringup
from bringup.cli.compare import command
from bringup.errors import BringupError
from bringup.machine import files
from bringup.report.prediction import read_trace
from bringup.report.writer import write


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x = torch.randn(16, 16).to("chip")
    with bringup.record() as trace:
        for _ in range(3):
            x.relu()
            bringup.step()
    trace.about |= {"chip": "t4", "host": bringup.load_host().name, "host_clock": "modelled", "program": "p.py"}
    folder = tmp_path_factory.mktemp("runs") / "report"
    write(bringup.price(trace, "t4"), folder)
    return folder


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


def links(page: Path) -> dict[str, str]:
    found = re.findall(r'<td class="chipname"><a href="(.*?)">(.*?)</a>', page.read_text())
    return {chip: address for address, chip in found}


def test_page_links_to_the_report_of_the_run(report: Path) -> None:
    assert invoke(str(report), "--chips", "t4,l4").exit_code == 0
    assert links(report / "compare.html") == {"t4": "report.html"}
    assert invoke(str(report), "--chips", "t4,l4", "--host", "epyc-7763").exit_code == 0
    assert links(report / "compare.html") == {}, "the report is of another host"


def test_reports_are_written_and_linked(report: Path, tmp_path: Path) -> None:
    page, reports = tmp_path / "page.html", tmp_path / "all" / "reports"
    done = invoke(str(report), "--chips", "t4,tpu-v5e", "--html", str(page), "--reports", str(reports))
    assert done.exit_code == 0 and f"reports: {reports}" in done.stdout
    assert links(page) == {"t4": "all/reports/t4.html", "tpu-v5e": "all/reports/tpu-v5e.html"}
    for chip, address in links(page).items():
        assert f"p.py on {chip}: bringup" in (page.parent / address).read_text()
    with pytest.raises(BringupError, match=r"page\.html/x: cannot be created"):
        invoke(str(report), "--chips", "t4", "--reports", str(page / "x"))


def test_chips_that_only_run_graphs_are_marked(report: Path) -> None:
    shown = invoke(str(report), "--chips", "t4,tpu-v5e").stdout
    assert "tpu-v5e*" in shown and "t4*" not in shown and "* only runs compiled graphs" in shown
    assert "*" not in invoke(str(report), "--chips", "t4,l4").stdout
    listed = json.loads(invoke(str(report), "--chips", "t4,tpu-v5e", "--json").stdout)
    assert [row["graph_only"] for row in listed] == [False, True]


def test_clusters_of_one_chip_have_a_report_each(report: Path, tmp_path: Path) -> None:
    page, reports = tmp_path / "page.html", tmp_path / "reports"
    done = invoke(str(report), "--clusters", "dgx-h100,dgx-h100x2", "--html", str(page), "--reports", str(reports))
    assert done.exit_code == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:3]] == [
        ["dgx-h100", "h100-sxm"],
        ["dgx-h100x2", "h100-sxm"],
    ]
    assert f"page: {page}" in done.stdout and f"reports: {reports}" in done.stdout
    assert links(page) == {"dgx-h100": "reports/dgx-h100.html", "dgx-h100x2": "reports/dgx-h100x2.html"}
    assert "p.py on 2 clusters</h1>" in page.read_text() and "those of one chip of 1." not in page.read_text()


def test_cluster_files_have_reports_of_their_own_and_that_of_the_run(report: Path, tmp_path: Path) -> None:
    from bringup.machine.topology import load_cluster

    node = Path(str(files.__file__)).parent / "nodes" / "dgx-h100.toml"
    mine, other = tmp_path / "a+b.toml", tmp_path / "a b.toml"
    for path in (mine, other):
        path.write_text(node.read_text())
    assert load_cluster(mine).chips == 8
    page, reports = report / "compare.html", tmp_path / "reports"
    assert invoke(str(report), "--clusters", f"{mine},{other}", "--reports", str(reports)).exit_code == 0
    assert len(set(links(page).values())) == 2 == len(list(reports.iterdir()))
    trace = read_trace(report)
    trace.about["cluster"] = str(mine)
    write(bringup.price(trace, "h100-sxm"), tmp_path / "run")
    names = f"{os.path.relpath(mine)},{other}"
    assert invoke(str(tmp_path / "run"), "--clusters", names).exit_code == 0
    assert links(tmp_path / "run" / "compare.html") == {os.path.relpath(mine): "report.html"}


def test_list_without_clusters_is_refused(report: Path) -> None:
    with pytest.raises(BringupError, match="--clusters names no cluster: give one or more"):
        invoke(str(report), "--clusters", ",")
