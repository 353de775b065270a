"""`bringup driver` and `bringup drivers` on the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bringup.drivers import check, page
from tests.conftest import built_driver, without_bringup

Refused = Callable[..., "subprocess.CompletedProcess[str]"]
ROW: dict[str, Any] = {"compared": 0, "wrong": 0, "worst_error": 0.0, "first": "", "refused": {}}
TRAIN = """
import torch
model = torch.nn.Linear(4, 4).to("chip")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.ones(4, 4).to("chip")
for _ in range(4):
    optimizer.zero_grad()
    (model(x) * x).sum().backward()
    optimizer.step()
print("the program's own output")
"""


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> str:
    return built_driver("separate", tmp_path_factory.mktemp("separate"))


def bringup(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bringup", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=without_bringup(),
    )


def test_include_prints_the_folder_of_the_header(tmp_path: Path) -> None:
    done = bringup(tmp_path, "driver", "include")
    assert (Path(done.stdout.strip()) / "driver.h").is_file()


def test_drivers_says_what_is_missing(tmp_path: Path) -> None:
    done = bringup(tmp_path, "drivers", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert {"virtual", "opencl", "cuda"} <= rows.keys()
    assert rows["virtual"] == {"name": "virtual", "devices": ["edge8"], "usable": True, "why_not": ""}
    for row in rows.values():
        assert row["usable"] == bool(row["devices"]) == (not row["why_not"]), row
    if rows["rtl"]["usable"]:
        assert rows["rtl"]["devices"] == ["systolic array (Verilator)"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("check", "nothing.so"), "there is no driver 'nothing.so'"),
        (("check", "virtual"), "the virtual chip has no kernels of its own"),
        (("check", "cuda", "--only", "ad"), "torch's database has no operator 'ad'"),
        (("check", "cuda", "--dtype", "float"), "--dtype must be of float64"),
        (("next", "train.py"), "name the driver with --driver"),
        (("next", "missing.npz"), "missing.npz"),
    ],
)
def test_mistakes_are_one_sentence(refused: Refused, arguments: tuple[str, ...], sentence: str) -> None:
    done = refused("driver", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1


def test_next_prints_json_alone(tmp_path: Path, separate: str) -> None:
    (tmp_path / "train.py").write_text(TRAIN, encoding="utf-8")
    done = bringup(tmp_path, "driver", "next", "train.py", "--driver", separate, "--json")
    assert done.returncode == 0, done.stderr
    savings = json.loads(done.stdout)
    assert all(saving.keys() == {"op", "saves_seconds", "launches", "bytes"} for saving in savings)
    assert all(saving["saves_seconds"] > 0 and saving["launches"] > 0 for saving in savings)
    assert "the program's own output" in done.stderr


def test_shadow_compares_the_kernels_of_a_program(tmp_path: Path, separate: str) -> None:
    (tmp_path / "train.py").write_text(TRAIN, encoding="utf-8")
    done = bringup(tmp_path, "run", "--driver", separate, "--shadow", "train.py")
    assert done.returncode == 0, done.stderr
    assert "of 1 operators compared with the CPU, 0 wrong" in done.stdout
    assert "first divergence" not in done.stdout


def test_shadow_needs_a_driver(tmp_path: Path) -> None:
    done = bringup(tmp_path, "run", "--shadow", "train.py")
    assert done.returncode == 2 and "--shadow compares the kernels of a driver" in done.stderr


def test_result_counts_verdicts() -> None:
    operators: check.ByOperator = {}
    rows = [
        {**ROW, "op": "aten::add.Tensor", "dtype": "float32", "compared": 3, "refused": {"empty": 2}},
        {**ROW, "op": "aten::exp", "dtype": "float32", "compared": 2, "wrong": 1, "worst_error": 0.5, "first": "off"},
        {**ROW, "op": "aten::sort", "dtype": "int64", "refused": {"no kernel": 4}},
    ]
    check.add_rows(operators, rows)
    lines = [operator.line(*key) for key, operator in operators.items()]
    assert [(line["verdict"], line["reason"], line["samples"]) for line in lines] == [
        ("right", "empty", 3),
        ("wrong", "off", 2),
        ("refused", "no kernel", 0),
    ]
    result = {"driver": "x", "operators": lines, "checks": []}
    assert not check.is_right(result)
    assert check.sentence(result).startswith(
        "2 operators on the device; with their dtypes 1 right, 1 wrong (5 launches"
    )
    assert 'failures="1"' in page.junit(result) and 'skipped="1"' in page.junit(result)
