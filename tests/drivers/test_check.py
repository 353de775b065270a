"""`bringup driver check`: planted mistakes are found, and a crash is a sentence about an operator."""

import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from bringup.drivers import cases, check, page, shadow
from bringup.errors import BringupError
from bringup.scorecard.framework import moved
from tests.conftest import ROOT

HERE = Path(__file__).parent
# A mistake in planted_driver.cpp -> the operator that it is in, and the operator of torch's database that reaches it.
PLANTED = {
    "relu_is_abs": ("relu", "nn.functional.relu"),
    "sub_adds": ("sub.Tensor", "sub"),
    "mean_is_sum": ("mean.dim", "mean"),
    "le_is_lt": ("le.Tensor", "le"),
    "maximum_is_minimum": ("maximum", "maximum"),
    "adam_decays_as_adamw": ("_fused_adam_", "optimizers"),
    "gelu_by_tanh": ("gelu", "nn.functional.gelu"),
    "layer_norm_drops_eps": ("native_layer_norm", "nn.functional.layer_norm"),
    "layer_norm_drops_bias": ("native_layer_norm", "nn.functional.layer_norm"),
    "mul_ignores_strides": ("mul.Tensor", "mul"),
    "copy_ignores_strides_of_the_target": ("copy_", "index_put"),
    "mm_ignores_strides": ("mm", "mm"),
    "exp_leaves_the_last_row": ("exp", "exp"),
    "tanh_writes_beyond_the_end": ("tanh", "tanh"),
    "sum_over_another_dimension": ("sum.dim_IntList", "sum"),
    "softmax_backward_of_logs": ("_softmax_backward_data", "softmax"),
    "nll_ignores_no_index": ("nll_loss_forward", "nn.functional.nll_loss"),
    "embedding_backward_keeps_the_padding": ("embedding_dense_backward", "nn.functional.embedding"),
    "add_ignores_alpha": ("add.Tensor", "add"),
    "add_keeps_its_first_alpha": ("add.Tensor", "add"),
    "sigmoid_starts_one_element_late": ("sigmoid", "sigmoid"),
    "mul_in_place_is_lost": ("mul_.Tensor", "mul"),
    "rsqrt_cannot_be_prepared": ("rsqrt", "rsqrt"),
    "sqrt_crashes": ("sqrt", "sqrt"),
    "log_never_ends": ("log", "log"),
}
FEW = ("layer_norm_drops_eps", "mul_ignores_strides", "tanh_writes_beyond_the_end", "sqrt_crashes")
MOST_MISSED = 1  # of all planted mistakes


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    library = tmp_path_factory.mktemp("planted") / "planted.so"
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", str(HERE / "planted_driver.cpp")]
    done = subprocess.run(
        [*command, "-I", str(ROOT / "csrc"), "-lOpenCL", "-o", str(library)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"the headers of OpenCL are not installed: {done.stderr.splitlines()[0]}")
    return str(library)


def checked(driver: str, mistake: str, only: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("BRINGUP_PLANTED", mistake)
    try:
        options = check.Options(driver, "edge8", 1, (only,), ("torch.float32",), seconds=60.0)
        return check.run(options, lambda name: None)
    except BringupError as error:
        if "OpenCL devices" in str(error):
            pytest.skip("this machine has no OpenCL device")
        raise


def wrong(result: dict[str, Any]) -> list[str]:
    return sorted({line["op"] for line in result["operators"] if line["verdict"] == "wrong"})


def test_a_crash_of_the_cpus_kernel_is_not_the_drivers(tmp_path: Path) -> None:
    share = check._Share(check.Options("acme", "edge8"), 0, lambda name: None)
    named = tmp_path / "named"
    assert share._crashed("the process died of SIGSEGV", 7, "ctc_loss", [], named) == 8
    assert len(share.lines) == 1
    shadow.cpu_file(named).touch()
    assert share._crashed("the process died of SIGSEGV", 8, "ctc_loss", [], named) == 9
    assert len(share.lines) == 1


def test_nan_for_infinity_in_whole_results_is_no_difference() -> None:
    inf, nan = float("inf"), float("nan")
    a, b = cases._without_nonsense([torch.tensor([nan, inf, inf, 1.0])], [torch.tensor([inf, nan, -inf, nan])])
    assert a[0].tolist()[:2] == b[0].tolist()[:2] == [0.0, 0.0]
    assert a[0].tolist()[2:] == [inf, 1.0] and b[0].tolist()[2] == -inf


def test_whole_results_may_differ_by_the_cpus_own_rounding() -> None:
    x = torch.rand(64) + 1e4

    def variance(device: torch.device) -> torch.Tensor:  # cancels: the mean of squares, less the square of the mean
        values = moved(x, device)
        return (values * values).mean() - values.mean() ** 2

    ours, exact = variance(torch.device("cpu")), x.double().var(correction=0)
    assert abs(ours - exact) > 1
    assert cases._is_rounding(variance, [ours], [exact.float()], 1e-3)
    assert not cases._is_rounding(variance, [ours], [ours + 10 * abs(ours - exact).float()], 1e-3)
    assert moved(x, torch.device("cpu")).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("mistake", FEW)
def test_planted_mistake_is_found_at_its_operator(planted: str, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, only = PLANTED[mistake]
    result = checked(planted, mistake, only, monkeypatch)
    assert wrong(result) == [f"aten::{op}"]
    assert not check.is_right(result)
    assert ElementTree.fromstring(page.junit(result)).get("failures") == "1"
    assert f"aten::{op}" in page.page(result)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_planted_mistakes_are_found_but_one(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missed = []
    for mistake, (op, only) in PLANTED.items():
        result = checked(planted, mistake, only, monkeypatch)
        if f"aten::{op}" not in wrong(result):
            missed.append(mistake)
    assert len(missed) <= MOST_MISSED, missed


@pytest.mark.slow
def test_unplanted_driver_is_right(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = checked(planted, "", "optimizers", monkeypatch)
    assert check.is_right(result), [line for line in result["operators"] if line["verdict"] == "wrong"]
    assert sum(line["verdict"] == "right" for line in result["operators"]) > 10
