"""The commands of README.md and docs/ run as they stand, in a folder with the shipped example programs.

A block of commands has the language ``console``; lines that begin with ``$`` are run in the page's order. A comment
before a block changes that: ``<!-- not run: REASON -->``, or ``<!-- file: NAME -->`` for the contents of a file.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from bringup.cli import bringup
from tests.conftest import ROOT, without_bringup

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
QUICK = ("README.md", "run.md")  # the others take minutes together
BLOCK = re.compile(r"(?:^<!-- (not run|file): (.*?) -->\n+)?^ *```(\S*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
LANGUAGES = {"console", "text", "python", "toml", "json", "yaml", "cpp"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, with its comment."""

    place: str
    mark: str
    note: str
    language: str
    text: str

    def commands(self) -> list[str]:
        lines = self.text.splitlines() if self.language == "console" else []
        return [line.strip().removeprefix("$ ") for line in lines if line.strip().startswith("$ ")]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(f"{page.name}:{text.count(chr(10), 0, match.start()) + 1}", *(part or "" for part in match.groups()))
        for match in BLOCK.finditer(text)
    ]


ALL = [block for page in PAGES for block in blocks(page)]


def test_blocks_have_a_language_and_reasons() -> None:
    assert not [block.place for block in ALL if block.language not in LANGUAGES]
    assert not [block.place for block in ALL if block.language == "console" and not block.commands()]
    marked = [block for block in ALL if block.mark == "not run"]
    assert not [block.place for block in marked if block.language != "console" or len(block.note.split()) < 4]
    outside = re.compile(r"^ *(\$ )?(bringup|pytest|pip|make) (?!.*(\[|\.\.\.))", re.MULTILINE)  # not in a synopsis
    assert not [block.place for block in ALL if block.language == "text" and outside.search(block.text)]


def test_python_blocks_are_python() -> None:
    for block in ALL:
        if block.language == "python":
            compile(block.text, block.place, "exec")


def calls() -> list[tuple[str, list[str]]]:
    """The arguments of every call of bringup in a block, also of those that are not run."""
    found = []
    for block in ALL:
        for command in block.commands():
            words = shlex.split(command, comments=True)
            words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
            if words[:1] == ["bringup"]:
                found.append((f"{block.place}: {command}", words[1:]))
    return found


def test_verbs_and_options_exist() -> None:
    """Arguments are parsed, and nothing runs."""
    assert len(calls()) > 60
    for place, words in calls():
        context = bringup.make_context("bringup", list(words))
        command: click.Command = bringup
        while isinstance(command, click.Group) and (left := [*context._protected_args, *context.args]):
            name, inner, rest = command.resolve_command(context, left)
            assert inner is not None and name is not None, place
            context, command = inner.make_context(name, rest, parent=context), inner


def onnx_model(folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    weight = helper.make_tensor("w", floats, (8, 3, 3, 3), [0.1] * 216)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="/conv")
    ends = [
        helper.make_tensor_value_info("x", floats, ["n", 3, "h", "w"]),
        helper.make_tensor_value_info("y", floats, ["n", 8, "i", "j"]),
    ]
    graph = helper.make_graph([node], "model", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "resnet50.onnx")


def stablehlo_module(folder: Path) -> None:
    jax = pytest.importorskip("jax")
    lowered = jax.jit(lambda x: (x @ x.T).sum()).lower(jax.numpy.ones((8, 8)))
    (folder / "step.mlir").write_text(lowered.as_text())


def models(folder: Path) -> None:
    onnx_model(folder)
    stablehlo_module(folder)


def copied(source: str, name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copy(ROOT / source, folder / name) and None


# What a page's commands read beside the examples.
PREPARED: dict[str, Callable[[Path], None]] = {
    "clusters.md": copied("src/bringup/machine/nodes/dgx-h100.toml", "mine.toml"),
    "frameworks.md": models,
    "run.md": copied("src/bringup/machine/chips/edge8.toml", "mine.toml"),
    "sweeps.md": copied("src/bringup/machine/chips/edge8.toml", "mine.toml"),
}
RUN = [page for page in PAGES if any(block.commands() and block.mark != "not run" for block in blocks(page))]


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.name, marks=[] if page.name in QUICK else pytest.mark.slow) for page in RUN]
)
def test_commands_run_as_they_stand(page: Path, tmp_path: Path) -> None:
    """In a folder with the checkout's examples and chip files; train.py is that of the examples."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(ROOT / "src" / "bringup" / "machine", tmp_path / "src" / "bringup" / "machine")
    shutil.copy(ROOT / "examples" / "train.py", tmp_path)
    PREPARED.get(page.name, lambda folder: None)(tmp_path)
    tools = tmp_path / ".tools"
    tools.mkdir()
    for name, words in {"bringup": "-m bringup", "pytest": "-m pytest -p no:cacheprovider", "python": ""}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (tools / name).chmod(0o755)
    environment = {**without_bringup(), "PATH": f"{tools}:{os.environ['PATH']}"}
    for block in blocks(page):
        if block.mark == "file":
            (tmp_path / block.note).write_text(block.text)
        for command in block.commands() if block.mark != "not run" else ():
            done = subprocess.run(
                command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
            )
            assert done.returncode == 0, f"{block.place}: {command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
