"""The scorecards of JAX and TensorFlow: items pass for a reason, and fail when something is broken on purpose."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bringup.errors import BringupError
from bringup.frontends.stablehlo.operators import OPERATORS, Operator
from bringup.scorecard import card, jax, registry
from bringup.scorecard.registry import load, run_item
from tests.conftest import NO_JAX, NO_TENSORFLOW, ROOT, without_bringup

needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason=NO_JAX)
needs_tensorflow = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason=NO_TENSORFLOW)
JAX = load(framework="jax")
LONG = {"A3", "A4", "A5", "A10", "B1"}
Patch = pytest.MonkeyPatch


def chip() -> Any:
    import jax

    return jax.devices("chip")[0]


def few(monkeypatch: Patch) -> None:
    names = {
        "x": ("numpy.tanh", "numpy.sum"),
        "xy": ("numpy.matmul",),
        "p": ("numpy.linalg.inv",),
        "i": ("numpy.sort",),
    }
    monkeypatch.setattr(jax, "_OPERATORS", names)


def wrong(monkeypatch: Patch, name: str) -> None:
    """Let a translation be off by a tenth."""
    right = OPERATORS[name]

    def function(call: Any, *operands: Any) -> Any:
        return right.function(call, *operands) + 0.1

    monkeypatch.setitem(OPERATORS, name, Operator(function, right.as_they_are, right.refusal))


@needs_jax
@pytest.mark.parametrize("name", sorted(JAX.keys() - LONG))
def test_an_item_of_jax_passes(name: str) -> None:
    line = run_item(JAX[name], chip())
    assert line["verdict"] == "pass" and line["evidence"], line


@needs_jax
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LONG))
def test_a_long_item_of_jax_passes(name: str) -> None:
    line = run_item(JAX[name], chip())
    assert line["verdict"] == "pass", line


FAULTS: dict[str, Callable[[Patch], Any]] = {
    "A3": lambda p: wrong(p, "tanh"),
    "A4": lambda p: wrong(p, "tanh"),
    "A5": lambda p: wrong(p, "dot_general"),
    "A8": lambda p: wrong(p, "dot_general"),
    "A9": lambda p: wrong(p, "multiply"),
    "A10": lambda p: wrong(p, "multiply"),
    "C2": lambda p: p.setattr(jax, "_statistics", lambda device: {"bytes_limit": 1 << 20}),
    "C3": lambda p: p.setattr(jax, "_statistics", lambda device: {"bytes_in_use": 0}),
    "E1": lambda p: p.setattr(jax.summarize, "by_group", lambda *_a: []),
    "F1": lambda p: p.setattr(jax.summarize, "by_group", lambda *_a: []),
}


@needs_jax
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_fails_its_item_of_jax(name: str, monkeypatch: Patch) -> None:
    few(monkeypatch)
    FAULTS[name](monkeypatch)
    line = run_item(JAX[name], chip())
    assert line["verdict"] in ("fail", "partial") and line["score"] < 0.95 and line["hint"], line


@needs_tensorflow
@pytest.mark.slow
def test_items_of_tensorflow_pass_but_for_asynchronous_calls(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bringup", "check", "--framework", "tensorflow", "--json", "card.json"]
    done = subprocess.run(command, cwd=tmp_path, env=without_bringup(), capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    lines = json.loads((tmp_path / "card.json").read_text())["items"]
    failed = {line["id"] for line in lines if line["verdict"] != "pass"}
    assert failed == {"B1"}, [line for line in lines if line["verdict"] != "pass"]


def test_the_documentation_lists_the_items_of_frameworks() -> None:
    text = (ROOT / "docs" / "scorecard.md").read_text(encoding="utf-8")
    for framework in ("jax", "tensorflow"):
        for entry in load(framework=framework).values():
            assert f"| {framework} {entry.id} | {entry.level} | {entry.title} | {entry.about} |" in text, entry.id


def test_an_item_of_an_unknown_framework_is_refused() -> None:
    with pytest.raises(BringupError, match="framework must be one of torch, jax, tensorflow, got 'mxnet'"):
        registry.item("X9", "D", "x", hint="", framework="mxnet")


def test_cards_of_two_frameworks_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(json.dumps({"schema": 1, "framework": "jax", "items": []}))
    assert card.load(str(tmp_path / "card.json"), "jax")["items"] == []
    with pytest.raises(BringupError, match="is a scorecard of jax, and this one is of torch"):
        card.load(str(tmp_path / "card.json"))


@needs_jax
def test_mistakes_with_a_framework_are_one_sentence(tmp_path: Path) -> None:
    for arguments, words in (
        (("--framework", "jax", "--device", "tpu"), "--device tpu: JAX cannot use it"),
        (("--framework", "jax", "--only", "D2"), "there is no item 'D2'"),
    ):
        command = [sys.executable, "-m", "bringup", "check", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=without_bringup(), capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and words in done.stderr, done.stderr
