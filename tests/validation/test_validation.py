"""Measurement sets, errors, fitting, whole programs, calibration."""

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bringup
from bringup import pricing
from bringup.machine.schema import Host
from bringup.pricing import bands
from bringup.pricing.errors import BEFORE_LAUNCH
from bringup.validation import (
    Errors,
    Measurement,
    calibration,
    errors,
    grouped,
    measurements,
    programs,
    read_folder,
    summarize,
)
from bringup.validation.constants_fit import STAGES, fit, generation, is_fitted, uninformed
from tests.conftest import ROOT

DOCS = ROOT / "docs" / "validation.md"
GROWTH = 0.02  # an error may differ from the documented one by two points
SETS = {
    "aiconfigurator/a100_sxm__gemm_perf.csv": (
        "gemm_dtype,m,n,k,latency\nbfloat16,64,128,256,0.01\nfp8,64,128,256,0.01\n"
    ),
    "aiconfigurator/h100_sxm__generation_attention_perf.csv": (
        "batch_size,isl,num_heads,num_key_value_heads,head_dim,kv_cache_dtype,window_size,step,latency\n"
        "8,1,32,8,128,bfloat16,0,1023,0.05\n8,1,32,8,128,bfloat16,0,1,0.01\n8,1,32,8,128,fp8,0,1,0.01\n"
    ),
    "neusight/test_linear.csv": "OPName,Device,Latency,B,M,N,K\nlinear,Tesla T4,1.5,1,512,1024,768\n",
    "neusight/test_ln.csv": "OPName,Device,Latency,B,H\nln,Tesla P4,0.5,4096,1024\n",
    "neusight/train_conv_sub20.csv": (
        "OPName,Device,Latency,B,Input_Channel,Output_Channel,Kernel_Szie,Input_Size,Stride,Padding\n"
        "conv,Tesla T4,0.4,8,16,32,3,56,1,1\n"
    ),
    "llmcompass/matmul_A100.csv": "64, 128, 256, 0.0300ms, 1Tflops\n1024, 1024, 1024, 0.0500ms, 1Tflops\n",
    "llmcompass/softmax_MI210.csv": "4096, 32, 5.0\n4096, 1024, 80.0\n",
    "vidur/mlp_median_sub2.csv": (
        "device,attn_pre_proj_ms,attn_post_proj_ms,mlp_up_proj_ms,mlp_down_proj_ms,add_ms,n_head,n_kv_head,n_embd,"
        "n_expanded_embd,use_gated_mlp,num_tokens,num_tensor_parallel_workers\n"
        "a40,1.0,0.5,2.0,1.0,,32,8,4096,11008,True,128,2\n"
    ),
    "pytorchsim_tpuv6e/tpuv6e.csv": "workload,dtype,latency_ns\ngemm_8x256x512,bf16,3000\nffn_gated_1x2x3,bf16,9\n",
    "pytorchsim_tpuv3/baseline_cycle.csv": "Workload,TPUv3\ngemm_256x256x512,3101\nbert_base,1\n",
    "tenstorrent/gemm_oob.csv": (
        "board,M,K,N,use_trace,dtype,time_avg_ns\nn150,512,1024,2048,True,BFLOAT16,20000\n"
        "n150,512,512,512,False,BFLOAT16,49000\n"
    ),
    "llmservingsim/H100__Llama-3.1-8B__layers.csv": (
        "layer_name,input,kv_cache,tp_size,latency(ns)\nq_proj,1,0,1,15000\nq_proj,512,0,1,40000\nrope,1,0,1,9\n"
    ),
}


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    for name, text in SETS.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_readers_understand_every_publisher(sets: Path) -> None:
    found = {(row.chip, row.op, row.dtype, row.dims): row for row in read_folder(sets).rows}
    assert found["a100-sxm-80", "mm", "bfloat16", (64, 128, 256)].seconds == pytest.approx(1e-5)
    attention = found["h100-sxm", "attention", "bfloat16", (8, 32, 8, 1, 1024, 128, 0)]
    assert attention.graph and attention.floor == pytest.approx(1e-5)
    assert ("t4", "mm", "float32", (512, 1024, 768)) in found
    assert ("p4", "layer_norm", "float32", (4096, 1024)) in found
    assert ("t4", "convolution", "float32", (8, 16, 32, 3, 56, 1, 1)) in found
    assert found["a100-sxm-80", "mm", "float16", (1024, 1024, 1024)].floor == pytest.approx(3e-5)
    assert ("a100-sxm-80", "mm", "float16", (64, 128, 256)) not in found, "the floor itself is not scored"
    softmax = found["mi210", "softmax", "float16", (4096, 1024)]
    assert softmax.seconds == pytest.approx(4096 * 1024 / 80e9)
    layers = {row.dims for row in read_folder(sets).rows if row.chip == "a40"}
    assert layers == {(128, 3072, 4096), (128, 4096, 2048), (128, 11008, 4096), (128, 4096, 5504)}
    assert ("tpu-v6e", "mm", "bfloat16", (8, 512, 256)) in found
    assert found["tpu-v3", "mm", "bfloat16", (256, 512, 256)].seconds == pytest.approx(3101 / 940e6)
    assert ("wormhole-n150", "mm", "bfloat16", (512, 2048, 1024)) in found
    assert ("h100-sxm", "mm", "bfloat16", (512, 4096, 4096)) in found
    assert len(found) == 15


def test_a_damaged_set_is_named(sets: Path) -> None:
    (sets / "neusight" / "test_ln.csv").write_text("OPName,Device,Latency,B,H\nln,Tesla P4,soon,4096,1024\n")
    found = read_folder(sets)
    assert len(found.skipped) == 1 and "test_ln.csv is not in the format of neusight" in found.skipped[0]
    assert {"t4", "a40"} <= {row.chip for row in found.rows}, "the rest is read"


TPU = "pytorchsim_tpuv6e/tpuv6e.csv"
CONVOLUTION = "OPName,Device,Latency,B,Input_Channel,Output_Channel,Kernel_Szie,Input_Size,Stride,Padding\n"


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (TPU, "workload,latency_ns\ngemm_8x8x8,9\ngemm_8x8x8\n", "at line 3: 1 cells for 2 columns"),
        (TPU, "workload\ngemm_8x8x8\n", "at line 2: 'latency_ns'"),
        (TPU, "workload,latency_ns\ngemm_8x8x8,nan\n", "at line 2: a launch cannot take nan s"),
        (TPU, "workload,latency_ns\ngemm_8x8x8,inf\n", "a launch cannot take inf s"),
        (TPU, "workload,latency_ns\ngemm_8x8x8,-5\n", "a launch cannot take -5e-09 s"),
        (TPU, "workload,latency_ns\ngemm_8x8x8,0\n", "a launch cannot take 0 s"),
        (TPU, "workload,latency_ns\ngemm_8x8x8,1e-300\n", "a launch cannot take 1e-309 s"),
        (TPU, "workload,latency_ns\ngemm_8x8x0,9\n", "mm cannot have the sizes 8x0x8"),
        (TPU, "workload,latency_ns\ngemm_8x8,9\n", "at line 2: tuple index out of range"),
        (TPU, "workload,latency_ns\ngemm_8x8x" + "9" * 30 + ",9\n", "cannot have the sizes"),
        (TPU, b"workload,latency_ns\n\xff,9\n", "is not a measurement file: it is not UTF-8 text"),
        ("llmcompass/matmul_A100.csv", "128,128\n", "matmul_A100.csv is not in the format of llmcompass at line 1"),
        (
            "neusight/test_linear.csv",
            SETS["neusight/test_linear.csv"].replace("512", "inf"),
            "at line 2: cannot convert",
        ),
        ("neusight/train_conv_sub20.csv", CONVOLUTION + "conv,Tesla T4,1,8,16,32,3,56,0,1\n", "at line 2: integer div"),
        ("neusight/train_conv_sub20.csv", CONVOLUTION + "conv,Tesla T4,1,8,16,32,99,56,1,1\n", "cannot have the sizes"),
        ("aiconfigurator/FILES.json", "[" * 100_000, "a100_sxm__gemm_perf.csv is not in the format of aiconfigurator"),
        ("aiconfigurator/FILES.json", '{"file": 1}', "is not in the format of aiconfigurator"),
    ],
)
def test_row_that_is_no_measurement_is_named(sets: Path, name: str, text: str | bytes, problem: str) -> None:
    (sets / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    sentences = read_folder(sets).skipped
    assert any(problem in sentence for sentence in sentences) and not any("\n" in text for text in sentences)


def test_pipe_among_the_sets_is_told(sets: Path) -> None:
    os.mkfifo(sets / "neusight" / "test_pipe.csv")
    assert "test_pipe.csv: is a pipe" in read_folder(sets).skipped[0]


def test_a_folder_without_sets_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        bringup.BringupError, match="has no measurement set that bringup can read: it reads those of aiconfigurator"
    ):
        read_folder(tmp_path)
    with pytest.raises(bringup.BringupError, match="is not a directory"):
        read_folder(tmp_path / "missing")


def test_what_has_no_reader_is_listed(sets: Path) -> None:
    (sets / "aiconfigurator" / "h100_sxm__unknown_perf.csv").write_text("a\n1\n")
    assert read_folder(sets).unread == ("aiconfigurator/h100_sxm__unknown_perf.csv",)


def test_host_clock_adds_what_comes_before_the_kernel() -> None:
    row = Measurement("t4", "add", "float32", (1 << 20, 16), 1e-3, "somewhere")
    device = row.seconds * (1 + errors([row])[row])
    launch = pricing.launch_seconds(bringup.load_chip("t4"))
    slow = replace(row, floor=1e-3)
    assert slow.seconds * (1 + errors([slow])[slow]) == pytest.approx(BEFORE_LAUNCH * 1e-3 + device - launch)
    hidden = replace(row, dims=(16, 16), floor=1e-3)
    assert errors([hidden])[hidden] == 0, "a kernel shorter than the host's own time is hidden by it"


def test_every_figure_has_a_source_and_a_chip() -> None:
    rows = measurements()
    assert len(rows) >= 300 and len({row.chip for row in rows}) >= 12
    assert all(row.source.startswith("github.com/") and " at " in row.source for row in rows)
    assert {row.chip for row in rows} <= set(bringup.available_chips())
    assert len({(row.chip, row.op, row.dtype, row.dims, row.source) for row in rows}) == len(rows)
    assert len(programs.runs()) >= 60
    for run in programs.runs():
        assert run.chip in bringup.available_chips() and run.model in programs.MODELS


def test_fitted_rows_are_a_named_part() -> None:
    rows = measurements()
    fitted = [row for row in rows if is_fitted(row)]
    assert 0.05 < len(fitted) / len(rows) < 0.25
    assert not any("LLMCompass" in row.source for row in fitted)
    assert all(any(stage.takes(row) for stage in STAGES) for row in fitted)
    assert generation("a100-pcie-40") == generation("a100-sxm-80") == "a100"
    assert generation("tpu-v3") != generation("tpu-v6e")


def test_fit_finds_a_constant_again() -> None:
    """Rows made by the model itself, and a constant that starts far off."""
    rows = [
        Measurement(chip, "relu", "float32", (1 << n, 1 << 10), 1.0, "model at 0")
        for chip in ("t4", "v100-pcie")
        for n in range(8, 16)
    ]
    rows = [row for row in rows if is_fitted(row)] or pytest.fail("no row is fitted")
    made = [
        replace(row, seconds=float(seconds))
        for group in grouped(rows)
        for row, seconds in zip(group.rows, group.predicted(bringup.load_chip(group.chip)), strict=True)
    ]
    found = fit(made, start=replace(pricing.DEFAULT, streams_pointwise=0.6))
    assert found.streams_pointwise == pytest.approx(pricing.DEFAULT.streams_pointwise, rel=0.02)
    without = fit([row for row in made if row.chip == "t4"], leave_out="t4")
    assert without == uninformed(), "nothing of a chip that is left out is known"


def _documented(section: str) -> dict[str, tuple[int, float]]:
    text = DOCS.read_text(encoding="utf-8")
    part = text.split(f"## {section}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+?) \| ([\d,]+) \| ([\d.]+) % \|", part, re.MULTILINE)
    return {name: (int(count.replace(",", "")), float(mean) / 100) for name, count, mean in rows}


def _compare(found: dict[str, Errors], section: str) -> None:
    documented = _documented(section)
    assert set(documented) == set(found), f"{section}: run the command above the table again"
    for name, (count, mean) in documented.items():
        assert count == found[name].figures, name
        assert abs(found[name].mean - mean) <= GROWTH, f"{name}: {found[name].mean:.1%}, documented {mean:.1%}"


def test_docs_show_the_errors_of_the_shipped_figures() -> None:
    off = errors(measurements())
    _compare(
        {**summarize(off, lambda row: row.chip), "all": Errors.from_values(off.values())}, "Errors, shipped figures"
    )


def test_docs_show_the_errors_of_whole_programs() -> None:
    pytest.importorskip("transformers")
    command = [sys.executable, "-m", "bringup", "validate", "--programs", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    chips = json.loads(done.stdout)["chip"]
    _compare({name: Errors(**kinds["all"]) for name, kinds in chips.items()}, "Errors, whole programs")


def _readme(column: int) -> dict[str, tuple[int, float]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## How far to trust it\n")[1].split("\n## ")[0]
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[column].replace(",", "").isdigit():
            found[cells[0]] = int(cells[column].replace(",", "")), float(cells[column + 1].removesuffix(" %")) / 100
    return found


@pytest.mark.slow
def test_bands_are_the_errors_of_whole_programs_by_bound(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    command = [sys.executable, "-m", "bringup", "validate", "--programs", "--bands", "bands.csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    new, shipped = (
        list(csv.DictReader(file.read_text().splitlines())) for file in (tmp_path / "bands.csv", bands.TABLE)
    )
    assert [(row["chip"], row["bound"], row["rows"]) for row in new] == [
        (row["chip"], row["bound"], row["rows"]) for row in shipped
    ]
    for row, expected in zip(new, shipped, strict=True):
        assert abs(float(row["error"]) - float(expected["error"])) <= GROWTH, row
        assert abs(float(row["within"] or 0) - float(expected["within"] or 0)) <= GROWTH, row


def test_a_band_holds_for_four_in_five() -> None:
    assert bands.within([0.3, -0.1, 0.2]) == 0.3  # of three, the largest
    assert bands.within([-0.4, 0.1, 0.2, 0.3]) == 0.4  # of four, too: no smaller one covers a fifth in 4 of 5 cases
    assert bands.within([step / 100 for step in range(1, 10)]) == 0.08
    draws = np.random.default_rng(0).exponential(size=(4_000, 20))
    covered = np.mean([errors[-1] <= bands.within(list(errors[:-1])) for errors in draws])
    assert 0.78 < covered < 0.85


def test_readme_shows_the_bands_of_summaries() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## How far to trust it\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    shown = {cells[0]: cells[7] for cells in rows if len(cells) == 8 and cells[0] in bringup.available_chips()}
    assert shown.keys() == {row.chip for row in bands.table()}
    for name, cell in shown.items():
        band = bands.error_band(bringup.load_chip(name), bands.CHIP_BOUND)
        assert band.error is not None and cell == ("operators " if band.measured == "operators" else "") + (
            f"{band.error:.0%}".replace("%", " %")
        )


def test_a_band_is_a_word_where_nothing_was_measured() -> None:
    t4 = bringup.load_chip("t4")
    on_chip, on_host = (bands.error_band(t4, bound) for bound in (bands.CHIP_BOUND, bands.HOST_BOUND))
    assert (on_chip.measured, on_chip.rows) == ("programs", 5) and on_chip.text.endswith(
        "validated on 5 chip-bound programs"
    )
    assert on_host.error is None and on_host.measured == "none"
    assert on_host.text == "not validated: no measurements of host-bound programs on t4"
    assert bands.error_band(bringup.load_chip("v100-pcie"), bands.CHIP_BOUND).error == bands.LABORATORIES
    few = bands.error_band(bringup.load_chip("tpu-v3"), bands.CHIP_BOUND)
    assert few.measured == "operators" and few.error is not None and few.error > 0.3
    assert bands.error_band(bringup.load_chip("rngd")).text.startswith("not validated")
    assert bands.error_band(bringup.load_chip("edge8")).text == "not validated: invented chip"
    edited = t4.model_copy(update={"compute": t4.compute.model_copy(update={"clock_ghz": 1.0})})
    again = bands.error_band(edited, bands.CHIP_BOUND)
    assert again.measured == "operators" and again.rows == 45


def test_readme_shows_the_documented_errors() -> None:
    """Docs and README agree; the tests around this one check the docs."""
    assert _readme(1) == _documented("Errors, shipped figures")
    assert _readme(5) == _documented("Errors, whole programs")
    assert _readme(3)["all"] == _documented("Errors, whole sets")["all"]


@pytest.mark.skipif("BRINGUP_MEASUREMENTS" not in os.environ, reason="BRINGUP_MEASUREMENTS names no measurement sets")
def test_docs_show_the_errors_of_whole_sets() -> None:
    from bringup.cli.validate import _publisher

    off = errors(read_folder(Path(os.environ["BRINGUP_MEASUREMENTS"])).rows)
    for name, found in summarize(off, lambda row: row.chip).items():
        assert abs(found.mean - _readme(3)[name][1]) <= GROWTH, name
    groups = summarize(off, lambda row: f"{_publisher(row)}, {row.chip}, {row.family}")
    _compare({**groups, "all": Errors.from_values(off.values())}, "Errors, whole sets")


def test_one_run_moves_the_scale_of_its_chip() -> None:
    first, second = (replace(programs.runs()[0], batch=batch) for batch in (1, 2))
    found = programs.with_one_run({first: 0.2, second: 0.2})
    assert list(found) == [second]
    assert found[second] == pytest.approx(1.2 ** (1 - programs.TRUST) - 1)


# ---- calibration


def test_calibration_finds_efficiencies_again() -> None:
    described = bringup.load_chip("edge8").model_copy(update={"name": "edge8"})
    planted = described.model_copy(update={"efficiency": {"_softmax": 0.5, "gelu": 1.5, "softmax": 0.5}})
    rows = [
        replace(row, chip="edge8", dims=tuple(4 * size if row.op != "attention" else size for size in row.dims))
        for row in calibration.suite("float32")
        if row.op in ("softmax", "gelu", "add")
    ]
    made = [
        replace(row, seconds=float(seconds))
        for group in grouped(rows)
        for row, seconds in zip(group.rows, group.predicted(planted), strict=True)
    ]
    found = calibration.fitted(described, made).efficiency
    assert found["_softmax"] == pytest.approx(0.5, rel=0.05)
    assert found["gelu"] == pytest.approx(1.5, rel=0.05)
    assert found["add"] == pytest.approx(1.0, rel=0.05)


def test_calibration_prices_weights_that_come_from_memory_as_a_program_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for row in calibration.suite("float32") if row.op in ("linear", "convolution", "mm")]
    monkeypatch.setattr(calibration, "timed", lambda call: 1e-3)
    monkeypatch.setattr(calibration, "_runner", lambda row, device: lambda: None)
    described = bringup.load_chip("h100-sxm")  # any with a cache
    chip = described.model_copy(update={"kind": "cpu"})
    timed_rows = calibration.measure(rows, torch.device("cpu"), "mine", lambda: None)
    for group in grouped([row for row in timed_rows if row.op != "mm"]):
        in_a_program = pricing.price_table(group.work, group.signatures, chip, graph=group.graph)
        assert group.predicted(chip) == pytest.approx(in_a_program.seconds)
    assert all(row.warm for row in timed_rows if row.op == "mm")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"mm": 2, "linear": 3, "convolution": 3, "add": 3, "softmax": 3, "max_pool": 1, "batch_norm": 1}
    rows = calibration.suite("float32")
    few = [row for op, count in wanted.items() for row in [row for row in rows if row.op == op][:count]]
    monkeypatch.setattr(calibration, "suite", lambda dtype: few)
    monkeypatch.setattr(calibration, "SECONDS", 0.001)
    monkeypatch.setattr(calibration, "PASSES", 1)
    monkeypatch.setattr(calibration, "STREAM_ELEMENTS", 1 << 20)


@pytest.mark.usefixtures("short")
def test_calibrate_writes_two_files_that_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bringup.cli.calibrate import command

    command.main(["--out", str(tmp_path), "--name", "mine"], standalone_mode=False)
    chip, host = bringup.load_chip(tmp_path / "mine.toml"), bringup.load_host(tmp_path / "this-host.toml")
    assert chip.kind == "cpu" and chip.matrix.tflops["float32"] > 0 and "convolution" in chip.efficiency
    assert host.compute.cores == chip.compute.cores
    assert "measured by bringup calibrate on " in chip.sources["memory"]
    assert "convolution" in capsys.readouterr().out
    x = torch.ones(64, 64, device="chip")
    torch.chip.synchronize()
    with bringup.record() as trace:
        (x @ x).relu()
        bringup.step()
    assert bringup.price(trace, tmp_path / "mine.toml", tmp_path / "this-host.toml").step_seconds > 0


def test_calibration_times_without_the_host_where_graphs_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for row in calibration.suite("float32") if row.op == "add"][:2]
    monkeypatch.setattr(calibration, "replayed", lambda call, device: 3e-6)
    measured = calibration.measure(rows, torch.device("cpu"), "mine", lambda: None)
    assert [(row.dims, row.seconds, row.graph) for row in measured] == [(row.dims, 3e-6, True) for row in rows]


def test_calibration_leaves_out_what_a_device_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for row in calibration.suite("float32") if row.op in ("add", "softmax")]
    ticks: list[int] = []

    def runner(row: Measurement, device: torch.device) -> Any:
        if row.op == "softmax":
            raise RuntimeError("out of memory")
        return lambda: None

    monkeypatch.setattr(calibration, "_runner", runner)
    monkeypatch.setattr(calibration, "replayed", lambda call, device: 3e-6)
    measured = calibration.measure(rows, torch.device("meta"), "mine", lambda: ticks.append(1))
    assert {row.op for row in measured} == {"add"}
    assert len(ticks) == len(rows) * calibration.PASSES


def test_calibrated_host_of_an_accelerator_has_the_times_of_backward_passes() -> None:
    small = dict.fromkeys(("launch", "views", "pointwise", "norm", "product", "host_launch"), 1e-5)
    rates = dict.fromkeys(("stream", "cached", "special", "upload", "download", "host_stream"), 1e11)
    times = {"copy_us": 9e-6, "synchronize_us": 6e-6, "event_us": 8e-6, "node_us": 8.5e-6, "convolution": 145e-6}
    base = calibration._Base(**small, **rates, of_host=times, node=2e-6, fresh=None)
    data = calibration._host_file(calibration.Machine("mine", 8, 2.0, 16.0, 32.0), base, "measured")
    dispatch = Host.model_validate({"name": "mine", **data}).dispatch
    assert (dispatch.node_us, dispatch.event_us, dispatch.synchronize_us, dispatch.backward) == (8.5, 8.0, 6.0, 1.0)
    assert dispatch.backward_families == {"convolution": 145.0}


def test_suite_runs_what_it_describes() -> None:
    """Every case of the suite: the call gives the result that the signature has."""
    for row in {row.op: row for row in calibration.suite("float32")}.values():
        result = calibration._runner(row, torch.device("cpu"))()
        shape = list(row.signature().results[0].shape)
        assert list(result.shape) == (shape if row.op != "sum" else []), row.op


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "--device", "chip"], "chip is the virtual chip itself"),
        (["calibrate", "--device", "warp"], "torch cannot use the device 'warp'"),
        (["calibrate", "--out", "missing/folder"], "missing/folder is not a directory"),
        (["validate", "--chip", "nothing"], "no measurement has chip nothing"),
        (["validate", "--live"], "write one with `bringup calibrate`"),
        (["validate", "--leave-one-out"], "give --data DIR"),
        (["validate", "--programs", "--chip", "edge8"], "no whole program was measured on edge8"),
        (["validate", "--data", "missing"], "missing is not a directory"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, "-m", "bringup", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_validate_prints_and_plots(tmp_path: Path, sets: Path) -> None:
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "bringup", "validate", "--data", str(sets), "--html", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "unseen" in done.stdout and "neusight" in done.stdout.lower()
    text = page.read_text(encoding="utf-8")
    assert "chart-2" in text and "a40 mm float16 128x3072x4096" in text and "By chip" in text


def test_live_compares_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    from bringup.validation import live

    def tiny(_: Any) -> Any:
        return transformers.BertModel(
            transformers.BertConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
        )

    monkeypatch.setattr(live, "MODELS", {"bert-base": tiny})
    monkeypatch.setattr(live, "TRAINED", ())
    monkeypatch.setattr(live, "ROUNDS", 1)
    found = live.compare("cpu", bringup.load_chip("edge8"), bringup.load_host(), lambda total: lambda: None)
    assert [each.program.text for each in found.rows] == ["bert-base forward 1", "bert-base forward 4"]
    assert all(each.measured > 0 and each.predicted > 0 for each in found.rows)
    assert found.speed > 0
