"""``bringup chips``: the list, `check` with all mistakes at once, and `new` from a specification or from answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import bringup
from bringup.cli.chips import command
from bringup.errors import BringupError, ChipFileError
from bringup.machine.new import UNSOURCED

SPECIFICATION: dict[str, Any] = {
    "vendor": "me",
    "description": "a chip",
    "kind": "npu",
    "compute": {"cores": 8, "clock_ghz": 1.2},
    "matrix": {"tflops": {"bfloat16": 10}},
    "vector": {"tflops": {"float32": 1}},
    "memory": {"device_gib": 8, "bandwidth_gb_s": 100},
    "link": {"kind": "pcie", "h2d_gb_s": 6, "d2h_gb_s": 6, "latency_us": 10},
}


def run(*arguments: str, answers: str | None = None) -> Result:
    return CliRunner().invoke(command, list(arguments), input=answers, catch_exceptions=False)


def specified(folder: Path, **changes: Any) -> str:
    path = folder / "spec.json"
    path.write_text(json.dumps({**SPECIFICATION, **changes}))
    return str(path)


def test_list_has_units_dtypes_prices_and_validation_in_words() -> None:
    lines = run().stdout.splitlines()
    assert lines[0].split() == ["chip", "GiB", "GB/s", "TFLOP/s", "dtype", "USD/h", "error", "predictions"]
    rows = {line.split()[0]: line.rstrip().split(maxsplit=5) for line in lines[1:-1]}
    assert set(rows) == set(bringup.available_chips())
    assert rows["h20"] == ["h20", "96", "4000", "296", "float8_e4m3fn", "not validated"]
    assert rows["a10"][5].split(maxsplit=1) == ["0.86", "not validated"]
    assert lines[-1].startswith(f"{len(rows)} chips; hosts: ")
    prices = {row["name"]: row["usd_per_hour"] for row in json.loads(run("--json").stdout)}
    assert prices["a10g"] == 1.006 and prices["h20"] is None


def test_real_prices_per_hour_have_a_date_or_a_commit() -> None:
    for chip in map(bringup.load_chip, bringup.available_chips()):
        if chip.price and chip.price.usd_per_hour and not chip.invented:
            source = chip.sources["price.usd_per_hour"]
            assert " at " in source or "202" in source, chip.name


def test_check_prints_json_of_valid_files_and_of_mistakes(tmp_path: Path) -> None:
    valid = json.loads(run("check", "t4", "--json").stdout)
    assert valid["mistakes"] == [] and valid["name"] == "t4" and valid["device_gib"] == 16
    (tmp_path / "bad.toml").write_text('kind = "gpu"\n')
    done = run("check", str(tmp_path / "bad.toml"), "--json")
    assert done.exit_code == 2
    mistakes = json.loads(done.stdout)["mistakes"]
    assert {"text": "vendor is missing: add it, with its source", "required": True} in mistakes and len(mistakes) > 5


def test_check_lists_all_mistakes_and_marks_required_keys(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        'vendor = "x"\nkind = "gpux"\n[compute]\nclock_ghz = -1\n[memory]\nbandwidth_gb_s = 3\n'
        '[price]\nusd = 0\n[sources]\n"foo.bar" = "x"\nmemory = "x"\n'
    )
    done = run("check", str(path))
    lines = done.stderr.splitlines()
    assert done.exit_code == 2 and lines[0] == f"bringup: {path}: {len(lines) - 1} mistakes (* is a required key)"
    assert [line[:4] for line in lines[1:]] == ["  * "] * 11 + ["    "] * 4
    assert "  * memory.device_gib is missing: add it, with its source" in lines
    assert "  * compute.cores is missing: add it, with its source" in lines
    assert "    price.usd: Input should be greater than 0, got 0" in lines
    assert "    compute.clock_ghz has no source: add it under [sources], or say invented = true" in lines
    assert "    [sources] names foo.bar, which is not a number of this file" in lines


def test_check_names_a_mistyped_key_and_not_what_follows_from_it(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    text = (Path(bringup.__file__).parent / "machine" / "chips" / "t4.toml").read_text(encoding="utf-8")
    path.write_text(text.replace("device_gib = 16", "device_gb = 16"))
    done = run("check", str(path))
    assert done.stderr.splitlines()[1:] == ["    device_gb is not a key of [memory]: did you mean device_gib?"]


def test_new_file_is_valid_and_has_the_given_sources(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    done = run("new", str(path), "--json", specified(tmp_path, sources={"compute": "sheet, page 1"}))
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"{path}: written; 7 numbers without a source, marked as assumed." in done.stdout
    chip = bringup.load_chip(path)
    assert (chip.compute.cores, chip.matrix.kind, chip.modes) == (8, "tile", ["eager", "graph"])
    assert chip.sources["compute"] == "sheet, page 1" and chip.sources["link.latency_us"] == UNSOURCED
    assert run("check", str(path)).exit_code == 0


def test_new_file_is_not_written_over_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    with pytest.raises(BringupError, match="exists already"):
        run("new", str(path), "--json", specified(tmp_path))
    assert path.read_text() == "mine"


def test_new_file_with_mistakes_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    spec = specified(tmp_path, cores=8, memory={"device_gib": -1}, invented=True)
    with pytest.raises(ChipFileError) as caught:
        run("new", str(path), "--json", spec)
    told = str(caught.value)
    assert "cores is not a key of a chip file" in told and "memory.bandwidth_gb_s is missing" in told
    assert "memory.device_gib: Input should be greater than 0" in told and not path.exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "is not valid JSON"), ("[]", "must be a JSON object"), ("[" * 9**5, "is not valid JSON")],
)
def test_specification_that_is_none_is_told(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(BringupError, match=problem):
        run("new", str(tmp_path / "mine.toml"), "--json", str(tmp_path / "spec.json"))


def test_new_file_takes_answers(tmp_path: Path) -> None:
    answers = "me\na chip\nnpu\n8\n1.2\n1\n10\n0\n1\n8\n100\npcie\n6\n\n10\nsheet, page 2\n"
    assert run("new", str(tmp_path / "mine"), answers=answers).exit_code == 0
    chip = bringup.load_chip(tmp_path / "mine.toml")
    assert (chip.link.d2h_gb_s, chip.matrix.tflops) == (6, {"float32": 1, "bfloat16": 10})
    assert set(chip.sources.values()) == {"sheet, page 2"} and not chip.invented
