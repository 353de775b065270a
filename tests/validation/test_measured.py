"""Our own measurements: the reader, the recordings beside it, bands by class, and what the README says."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bringup
from bringup.analyse.program_class import CLASSES, CNN, LANGUAGE, program_class
from bringup.pricing import bands
from bringup.recording.rows import DEVICE_SYNC, LAUNCH, STEP
from bringup.timeline.replay import WhatIf, replay
from bringup.validation.measured import (
    ALLOCATED,
    BUSY,
    COMPILED,
    GRAPH,
    NEW_LENGTH,
    RESERVED,
    band_rows,
    read_measured,
    tables,
)
from bringup.validation.measured import STEP as STEP_TIME
from bringup.validation.recorded import TABLE, recordings
from tests.conftest import ROOT

GPT2 = "gpt2/infer/fp32/b1/s128"
PROGRAM = {
    **{"id": GPT2, "mode": "infer", "precision": "fp32", "compile": "", "free_us": "4000", "sync_us": "9"},
    **{"sync_first2_us": "9", "busy_union_us": "3000", "kernels": "300", "copies": "0"},
    **{"peak_allocated": str(2**30), "peak_reserved": "1e9"},
}
COMPILED_BERT = {"id": "bert-base/infer/fp32/b1/s128/compile=reduce-overhead", "compile": "reduce-overhead"}
OPERATOR = {
    **{"id": "mm/square/bf16/4096x4096x4096", "family": "mm", "dtype": "bf16", "eager_us": "210"},
    **{"graph_us": "200", "kernels": "1"},
}
TINY = {"kind": "tiny", "op": "add", "grad": False, "issue_us": 10.0}


def write(path: Path, *rows: dict[str, str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ours = tmp_path / "h100_bringup"
    write(ours / "programs.csv", PROGRAM, {**PROGRAM, "id": "another"}, {**PROGRAM, **COMPILED_BERT})
    write(ours / "operators.csv", OPERATOR, {**OPERATOR, "id": "mm/new/bf16/1x1x1"})
    lines = [TINY, {**TINY, "grad": True}, {"kind": "python", "loop_ns": 75.0}]
    (ours / "host.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return tmp_path


def test_every_figure_is_compared_with_its_prediction(folder: Path) -> None:
    found = {row.figure: row for row in read_measured(folder).comparisons}
    h100, item = bringup.load_chip("h100-sxm"), recordings()[f"operator/{OPERATOR['id']}"]
    once = replay(item.trace(1), h100, bringup.load_host("emerald-rapids-vm"), what_if=WhatIf(graph=True))
    assert found[GRAPH].predicted == pytest.approx(float(once.seconds.sum()))
    assert found[GRAPH].measured == pytest.approx(200e-6)
    assert found[GRAPH].error == pytest.approx(found[GRAPH].predicted / 200e-6 - 1)
    # 2 x 4096^3 flop at the data sheet's 989 TFLOP/s take 139 us, and no product reaches the sheet
    assert 139e-6 < found[GRAPH].predicted < 300e-6
    assert (found[STEP_TIME].kind, found[STEP_TIME].mode, found[STEP_TIME].dtype) == (LANGUAGE, "inference", "float32")
    assert (found[STEP_TIME].measured, found[BUSY].measured) == pytest.approx((4e-3, 3e-3))
    assert found["host issue"].measured == pytest.approx(10e-6) and found["host issue"].predicted > 0
    assert found["kernels of an operator"].predicted == 1


def test_decoding_at_a_new_length_has_the_plan_of_its_attention(folder: Path) -> None:
    name = next(name.removeprefix("program/") for name in recordings() if name.startswith("program/llama1b/decode"))
    times = {"mode": "decode", "sync_us": "50000", "sync_first2_us": "14000"}
    write(folder / "h100_bringup" / "programs.csv", {**PROGRAM, "id": name, **times})
    found = {row.figure: row for row in read_measured(folder).comparisons if row.source == "programs.csv"}
    plan = bringup.load_chip("h100-sxm").launch.attention_plan_ms
    assert (found[STEP_TIME].measured, found[NEW_LENGTH].measured) == pytest.approx((14e-3, 50e-3))
    assert plan is not None
    assert found[NEW_LENGTH].predicted - found[STEP_TIME].predicted == pytest.approx(plan * 1e-3, rel=0.01)


def test_compiled_programs_are_figures_of_their_own(folder: Path) -> None:
    (compiled,) = (row for row in read_measured(folder).comparisons if row.name == COMPILED_BERT["id"])
    assert (compiled.figure, compiled.measured) == (COMPILED, pytest.approx(4e-3))
    assert len(band_rows(read_measured(folder).comparisons)) == 1  # the eager one's


def test_graphs_are_replayed_in_every_step() -> None:
    item = recordings()[f"program/{COMPILED_BERT['id']}"]
    chip, host = bringup.load_chip("h100-sxm"), bringup.load_host("emerald-rapids-vm")
    one, three = (replay(item.trace(steps), chip, host).issued.max() for steps in (1, 3))
    launch = (host.dispatch.matmul_us + (host.dispatch.launch_us or 0)) * 1e-6  # one call replays a graph
    assert three - one >= 2 * launch


def test_what_cannot_be_read_is_named_and_the_rest_is_read(folder: Path) -> None:
    (folder / "h100_bringup" / "operators.csv").write_text("id,family\nmm,1\n")
    write(folder / "other" / "programs.csv", PROGRAM)
    found = read_measured(folder)
    assert {row.source for row in found.comparisons} == {"programs.csv", "host.jsonl"}
    text = "\n".join(found.skipped)
    assert (
        "operators.csv is skipped, because it is not in the format of our measurements: it has no column dtype" in text
    )
    assert "the machine of its folder is not known (known: h100_bringup)" in text
    assert "1 rows are skipped, because their programs are not recorded" in text


@pytest.mark.parametrize("cell", ["nan", "-1", "soon", "inf"])
def test_row_that_is_no_measurement_is_told(folder: Path, cell: str) -> None:
    write(folder / "h100_bringup" / "programs.csv", {**PROGRAM, "free_us": cell})
    found = read_measured(folder)
    assert "programs.csv is skipped" in found.skipped[-1] and {row.source for row in found.comparisons} != {
        "programs.csv"
    }


def test_code_in_a_folder_is_not_run(folder: Path) -> None:
    for name in ("programs", "ops"):
        (folder / "h100_bringup" / f"{name}.py").write_text("raise SystemExit('run')")
    assert read_measured(folder).comparisons


def test_command_shows_our_set_beside_a_publishers(folder: Path, tmp_path: Path) -> None:
    def validate(*arguments: str) -> str:
        command = [sys.executable, "-m", "bringup", "validate", "--data", str(folder), "--json", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    alone = json.loads(validate())
    assert alone["step"]["class language model"]["all"]["figures"] == 1 and "chip" not in alone
    publisher = folder / "neusight" / "test_linear.csv"
    publisher.parent.mkdir()
    publisher.write_text("OPName,Device,Latency,B,M,N,K\nlinear,Tesla T4,1.5,1,512,1024,768\n")
    assert {"chip", "operator", "step", "peak allocated"} <= json.loads(validate()).keys()
    validate("--bands", str(tmp_path / "bands.csv"))
    rows = [row for row in read_csv(tmp_path / "bands.csv") if row["chip"] == "h100-sxm"]
    programs = [(row["bound"], row["class"], row["rows"]) for row in rows if row["measured"] == "programs"]
    assert programs == [("", "", "1"), ("host-bound", "", "1"), ("host-bound", LANGUAGE, "1")]


def test_recorded_step_is_repeated_with_its_waits() -> None:
    item = recordings()[f"program/{GPT2}"]
    launches = np.count_nonzero(item.columns["kind"] == LAUNCH)
    looped, waiting = item.trace(3), item.trace(3, wait_each=True)
    assert looped.launches == waiting.launches == 3 * launches
    kinds = looped.columns["kind"]
    assert np.count_nonzero(kinds == STEP) == 3 and kinds[-1] == DEVICE_SYNC
    assert np.count_nonzero(waiting.columns["kind"] == DEVICE_SYNC) == 3
    assert len(looped.signatures) < launches  # only its own signatures, each once
    assert looped.columns["signature"][kinds == LAUNCH].max() == len(looped.signatures) - 1


def test_table_of_recordings_stays_small() -> None:
    assert TABLE.stat().st_size < 500_000 and len(recordings()) > 1500


def test_classes_follow_from_launches() -> None:
    expected = {
        "gpt2": LANGUAGE,
        "llama1b": LANGUAGE,
        "t5-base": LANGUAGE,
        "bert-base": LANGUAGE,
        **dict.fromkeys(("resnet50", "unet", "efficientnet_b0", "convnext_tiny", "mobilenet_v3_large"), CNN),
        **{"vit-base": "transformer", "swin_t": "transformer", "lstmcell": "RNN", "lstm": "RNN"},
        **{"dlrm": "recommender", "gnn": "graph network", "mlp": "other"},
    }
    assert set(expected.values()) == set(CLASSES)
    for name, item in recordings().items():
        group, _, program = name.partition("/")
        model = program.split("/")[0]
        if group == "program" and model in expected:
            assert program_class(item.trace(1)) == expected[model], name


def test_band_is_that_of_the_class() -> None:
    h100 = bringup.load_chip("h100-sxm")
    rows = {(row.bound, row.kind): row for row in bands.table() if row.chip == "h100-sxm"}
    own = bands.error_band(h100, bands.CHIP_BOUND, CNN)
    assert own.error == rows[bands.CHIP_BOUND, CNN].within and own.text.endswith("chip-bound CNNs")
    few = bands.error_band(h100, bands.CHIP_BOUND, "recommender")  # one was measured, which is too few
    assert few.text.endswith("chip-bound programs") and few.rows > 30
    unmeasured = bands.error_band(bringup.load_chip("rngd"), bands.CHIP_BOUND, CNN)
    assert unmeasured.error is None and unmeasured.text.startswith("not validated")
    spread = [round(100 * row.error) for row in bands.table() if (row.bound, row.kind) == (bands.CHIP_BOUND, CNN)]
    assert f"chip-bound CNNs were off by {min(spread)} to {max(spread)} % on the 2 measured chips" in unmeasured.text


def test_readme_has_the_errors_by_class() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## How far to trust it\n")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    shown = {row[0]: row[1:] for row in cells if len(row) == 5 and row[0] in CLASSES}
    rows = {(row.kind, row.bound): row for row in bands.table() if row.chip == "h100-sxm" and row.kind}
    assert shown.keys() == {kind for kind, _ in rows}
    for kind, values in shown.items():
        for count, error, its_bound in (
            (*values[:2], bands.CHIP_BOUND),
            (*values[2:], bands.HOST_BOUND),
        ):
            row = rows.get((kind, its_bound))
            assert (count, error) == (("-", "-") if row is None else (str(row.rows), f"{100 * row.error:.0f} %")), kind


@pytest.mark.skipif("BRINGUP_MEASUREMENTS" not in os.environ, reason="BRINGUP_MEASUREMENTS names no folder")
def test_our_measurements_give_the_shipped_bands_and_memory_holds(tmp_path: Path) -> None:
    found = read_measured(Path(os.environ["BRINGUP_MEASUREMENTS"]))
    if not found.comparisons:
        pytest.skip("BRINGUP_MEASUREMENTS has no folder h100_bringup")
    by_figure = tables(found.comparisons)
    assert by_figure[ALLOCATED]["size over 1 GiB"].mean <= 0.03 and by_figure[ALLOCATED]["all"].mean <= 0.03
    assert by_figure[RESERVED]["size over 1 GiB"].mean <= 0.08
    bands.write_table(tmp_path / "bands.csv", band_rows(found.comparisons))
    new, shipped = (read_csv(path) for path in (tmp_path / "bands.csv", bands.TABLE))
    for row, expected in zip(new, shipped, strict=True):
        assert (row["class"], row["rows"]) == (expected["class"], expected["rows"])
        assert abs(float(row["error"]) - float(expected["error"])) <= 0.02, row
        assert abs(float(row["within"] or 0) - float(expected["within"] or 0)) <= 0.02, row
    programs = [
        (bands.error_band(bringup.load_chip(row[0]), *row[1:3]).error, row[3]) for row in band_rows(found.comparisons)
    ]
    assert max(band for band, _ in programs if band) <= 0.25
    assert np.mean([band is not None and abs(error) <= band for band, error in programs]) >= bands.COVERED
