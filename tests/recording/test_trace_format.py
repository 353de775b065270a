"""docs/trace.md names what trace files hold: its tables and its example are compared with recordings."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bringup
from bringup.recording import trace_check
from bringup.recording.rows import COLUMNS, MEASURED, OPTIONAL, PHASES, WAITS_FOR
from bringup.recording.trace import VERSION
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "trace.md").read_text(encoding="utf-8")


def table(header: str) -> dict[str, list[str]]:
    """The table of the page whose first column has this header: names in the first cell -> the other cells."""
    body = re.search(rf"^\| {header} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert body, f"docs/trace.md has no table of {header}"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body[1].splitlines()]
    return {name: cells for first, *cells in rows for name in re.findall(r"`(\w+)`", first) or [first]}


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def description(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The members of the file, and its JSON."""
    with np.load(file) as members:
        columns = {name: members[name] for name in members.files}
    return columns, json.loads(columns.pop("description.json"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """A training step, and a compiled function."""
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)).to("chip")
    compiled = torch.compile(lambda x: (x * 2.0 + x.sum()).relu())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bringup.record(stacks=True) as trace:
        x = torch.randn(3, 4).to("chip")
        compiled(x)
        model(x).mean().backward()
        optimizer.step()
    file = tmp_path_factory.mktemp("trace") / "trace.npz"
    trace.columns |= {name: np.zeros(len(trace), OPTIONAL[name]) for name in MEASURED}  # as a driver's recording has
    trace.save(file)
    return description(file)


def test_every_column_has_its_row_and_type(recorded: Any) -> None:
    members, (columns, _) = table("member"), recorded
    assert set(members) == set(columns)
    for name, column in columns.items():
        assert members[name][0] == str(column.dtype), name
    assert set(COLUMNS) | set(OPTIONAL) < set(columns)
    phases = members["phase"][1]
    assert re.findall(r"(\d) `(\w+)`", phases) == [(str(i), name) for i, name in enumerate(PHASES)]


def test_every_row_kind_is_there_in_order() -> None:
    kinds = table("kind")
    assert list(kinds) == torch.ops.bringup.row_kinds()
    assert re.findall(r"(\d) `(\w+)`", kinds["host"][1]) == [(str(i), name) for i, name in enumerate(WAITS_FOR)]


def test_every_flag_has_its_bit() -> None:
    flags = {int(bit): cells for bit, cells in table("bit").items()}
    names = torch.ops.bringup.row_flags()
    assert {bit: cells[0] for bit, cells in flags.items()} == {1 << i: f"`{name}`" for i, name in enumerate(names)}
    kinds = set(torch.ops.bringup.row_kinds())
    assert all(set(re.findall(r"`(\w+)`", cells[1])) <= kinds for cells in flags.values())


def test_every_key_of_the_metadata_is_there(recorded: Any) -> None:
    _, about = recorded
    assert set(table("key")) == set(about) and table("key")["version"] == [f"the version of the format, {VERSION}"]
    keys = set(table("key of `about`"))
    assert set(about["about"]) <= keys and keys == set(trace_check._About.model_fields)
    assert set(trace_check._GraphBreak.model_fields) == {"line", "reason"}
    of_inputs = {"line", "workers", "batch_seconds", "rows", "maker", "by_library", "iterable"}
    assert set(trace_check._Input.model_fields) == of_inputs


def test_every_key_of_a_signature_is_there(recorded: Any) -> None:
    _, about = recorded
    keys = set(table("key of a signature"))
    assert keys == set(trace_check._Signature.model_fields)
    fused = [inner for data in about["signatures"] for inner in data.get("inner", ())]
    assert fused and all(set(data) <= keys for data in (*about["signatures"], *fused))
    tensors = [item for data in (*about["signatures"], *fused) for item in (*data["inputs"], *data["outputs"])]
    entries = table("entry")
    assert tensors and None not in tensors
    forms = {"text": str, "list of integers": list, "integer": int, "0 or 1": int}
    types = [forms[form] for form, _ in entries.values()]
    assert all(isinstance(value, kind) for item in tensors for kind, value in zip(types, item, strict=True))


def test_the_counters_of_a_triton_kernel_are_there() -> None:
    pytest.importorskip("triton")
    from types import SimpleNamespace

    from bringup.triton.executor import totals

    kernel: Any = SimpleNamespace(codes=(), largest=1)
    counters: Any = SimpleNamespace(blocks={}, spans={}, loaded={}, stored={}, atomics=0)
    said = PAGE.split("`args` of a Triton kernel")[1].split("\n\n")[0]
    assert all(f"`{name}`" in said for name in totals(kernel, counters))


def test_the_example_is_a_recording(python: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path) -> None:
    done = python(block("python"))
    assert done.returncode == 0, done.stderr
    _, about = description(tmp_path / "trace.npz")
    assert about["signatures"] == json.loads(block("json"))
    example = re.search(r"^\| (`kind` .*) \|\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert example
    names = re.findall(r"`(\w+)`", example[1])
    documented = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in example[2].splitlines()]
    rows = bringup.Trace.load(tmp_path / "trace.npz").table()

    def text(value: Any) -> str:
        return "" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)

    assert documented == [list(map(text, row)) for row in zip(*(rows[name] for name in names), strict=True)]
    same = set(rows) - set(names) - {"shapes", "host_ns"}
    assert all(len(set(map(str, rows[name]))) == 1 for name in same)
