"""Notebooks: the magic, lines named by their cell, and what a value shows."""

from __future__ import annotations

from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import bringup
from tests.conftest import without_bringup

MODEL = """
import torch, bringup
from torch import nn
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to("chip")
x = torch.randn(32, 64)
"""
STEPS = """
for step in range(3):
    model(x.to("chip")).sum().item()
"""


def outputs(*cells: str, monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """Run cells in a fresh kernel; return the outputs of each."""
    for name in ("BRINGUP_CHIP", "BRINGUP_CHECK", "BRINGUP_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=240, kernel_name="python3", allow_errors=True).execute(env=without_bringup())
    return [cell.outputs for cell in notebook.cells]


def text(cell: list[Any]) -> str:
    return "".join(output.get("text", "") + output.get("evalue", "") for output in cell)


def html(cell: list[Any]) -> str:
    return "".join(output.get("data", {}).get("text/html", "") for output in cell)


def test_magic_shows_where_the_time_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, built, run, kept, other, changed, nothing, mistake = outputs(
        "%load_ext bringup",
        MODEL,
        "%%bringup --chip t4 -o prediction" + STEPS,
        "prediction.waits[0].file, prediction.waits[0].line, prediction",
        "%%bringup --chip a100-sxm-80" + STEPS + "1 + 1",
        "import gc; del model, x, prediction; gc.collect()\nbringup.use('l4')\ntorch.chip.get_device_name()",
        "%%bringup\n2 + 2",
        "%%bringup --chip t5\n2 + 2",
        monkeypatch=monkeypatch,
    )
    assert not text(loaded) and not text(built)
    assert "on t4" in html(run) and "read of a value at In[3]:3" in html(run), run
    assert "('In[3]', 3, <Prediction: " in kept[0]["data"]["text/plain"]
    assert "on a100-sxm-80" in html(other) and "recorded on edge8, predicted for a100-sxm-80" in text(other), other
    assert any(output.get("data", {}).get("text/plain") == "2" for output in other)
    assert changed[0]["data"]["text/plain"] == "'l4 (NVIDIA L4, 24 GB GDDR6)'", changed
    assert "launched nothing on the chip" in text(nothing)
    assert "no chip is named 't5': did you mean" in text(mistake) and "Traceback" not in text(mistake)


def test_errors_of_a_cell_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, failed, later = outputs(
        "%load_ext bringup",
        "%%bringup --chip t4\nimport torch\ntorch.ones(2, device='chip') + torch.ones(3, device='chip')",
        "%%bringup --chip t4\nimport torch\ntorch.ones(2, device='chip') + 1",
        monkeypatch=monkeypatch,
    )
    assert "must match the size" in text(failed) and not html(failed)
    assert [output["ename"] for output in failed if output["output_type"] == "error"][-1] == "CellFailedError"
    assert "on t4" in html(later)


def test_values_are_shown_as_tables() -> None:
    import torch

    with bringup.record() as trace:
        for _ in range(3):
            torch.ones(1 << 20, device="chip").sum().item()
    trace.about["chip"] = "<script>alert(1)</script>"
    prediction = bringup.price(trace, chip="t4")
    compared = prediction.compare(["t4", "a100-sxm-80"])
    assert [row.summary.chip for row in compared] == ["t4", "a100-sxm-80"] and compared[1].ratio > 1
    for value in (trace, prediction, prediction.timeline, compared):
        shown = value._repr_html_()
        assert "<script>" not in shown and shown.count("<div") == shown.count("</div>")
    assert "&lt;script&gt;" in trace._repr_html_() and "6" in trace._repr_html_()
    assert "a100-sxm-80" in compared._repr_html_() and "on t4" in prediction._repr_html_()
    plan = bringup.place(trace, chip="t4")
    assert "all on the chip" in plan._repr_html_()
