"""The grid: every combination once, with a key that names everything that it depends on."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from bringup import BringupError
from bringup.sweep import grid
from bringup.sweep.programs import combinations, script_runs
from tests import test_house
from tests.sweep.sweeps import SMALL, sweep_of

TEXT = SMALL + "[ranges]\nmemory.bandwidth_gb_s = [100, 300, 3]\ncompute.cores = {values = [10, 200]}\n"


def keys_of(folder: Path, text: str, recordings: tuple[str, ...] = ("first", "second")) -> list[str]:
    axes = grid.of_sweep(sweep_of(folder, text))
    keys = grid.Keys(axes, recordings)
    return [key for block in axes.blocks() for key in keys.of_block(block).tolist()]


def test_rows_are_the_product_of_the_axes(tmp_path: Path) -> None:
    axes = grid.of_sweep(sweep_of(tmp_path, TEXT))
    rows = set()
    for block in axes.blocks():
        labels = axes.labels(block)
        assert all(len(column) == block.rows for column in labels.values())
        rows |= set(zip(*(column.tolist() for column in labels.values()), strict=True))
    modes = [("t4", "eager"), ("t4", "graph"), ("h100-sxm", "eager"), ("h100-sxm", "graph"), ("tpu-v3", "graph")]
    expected = {
        (program, chip, host, bandwidth, cores, mode, scale)
        for program, (chip, mode), host, bandwidth, cores, scale in itertools.product(
            ("mlp", "big"), modes, ("xeon-8275cl", "epyc-9654"), (100.0, 200.0, 300.0), (10, 200), (1.0, 0.5)
        )
    }
    assert rows == expected and axes.rows == len(expected) == 240


def test_blocks_are_of_one_chip_and_cover_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = keys_of(tmp_path, TEXT)
    monkeypatch.setattr(grid, "BLOCK", 7)
    axes = grid.of_sweep(sweep_of(tmp_path, TEXT))
    blocks = list(axes.blocks())
    assert max(block.rows for block in blocks) == 7 and sum(block.rows for block in blocks) == 240
    assert keys_of(tmp_path, TEXT) == whole
    names = [grid.Keys(axes, ("a", "b")).part(block) for block in blocks]
    assert len(set(names)) == len(names)


def test_keys_differ_and_follow_what_they_name(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, TEXT)
    assert len(set(keys)) == len(keys)
    other = keys_of(tmp_path, TEXT, ("first", "changed"))
    same = np.asarray(keys) == np.asarray(other)
    assert same.sum() == len(keys) / 2, "rows of the other program keep their keys"
    longer = keys_of(tmp_path, TEXT.replace("[1.0, 0.5]", "[0.25, 1.0, 0.5]"))
    assert set(keys) < set(longer)
    without = keys_of(tmp_path, SMALL.replace('modes = ["eager", "graph"]\n', ""))
    assert set(without) < set(keys_of(tmp_path, SMALL)), "a chip's own mode is the same row, named or not"


def test_types_of_columns(tmp_path: Path) -> None:
    text = 'chips = ["t4"]\n[arguments]\nbatch = [1, 2]\nflag = [true, false]\nrate = [1, 0.5]\nkind = ["a", 1]\n'
    text += '[ranges]\ncompute.cores = [8, 16, 2]\n[[programs]]\nscript = "x.py"\n'
    columns = grid.of_sweep(sweep_of(tmp_path, text)).columns
    kinds = [columns[name] for name in ("batch", "flag", "rate", "kind", "compute.cores", "cost_usd", "fits")]
    assert kinds == ["BIGINT", "BOOLEAN", "DOUBLE", "VARCHAR", "BIGINT", "DOUBLE", "BOOLEAN"]


# What prices import that sets no value: it reads and checks files, loads libraries, or runs programs, whose recordings
# have digests of their own.
WITHOUT_VALUES = {
    *("core", "core_build", "core_cache", "device", "driver", "errors", "files", "imports", "limits", "paths"),
    *("process", "report", "text", "units"),
}


def test_version_covers_all_that_prices_import() -> None:
    rooms, waiting, seen = set(), ["bringup.sweep.prices"], {"bringup"}
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            rooms.add(name.split(".")[1])
            waiting += [module for module, _ in test_house.imports(name)]
    assert rooms - WITHOUT_VALUES == set(grid.PRICING)


def test_keys_follow_the_file_of_lengths(tmp_path: Path) -> None:
    text = 'chips = ["t4"]\n[serving]\nrates = [1]\nlengths = "asked.jsonl"\n[[programs]]\nmodel = "m.py"\n'
    rows = '{"prompt_tokens": 100, "output_tokens": 20}\n'
    (tmp_path / "asked.jsonl").write_text(rows, encoding="utf-8")
    first, again = keys_of(tmp_path, text, ("m",)), keys_of(tmp_path, text, ("m",))
    (tmp_path / "asked.jsonl").write_text(rows.replace("20", "21"), encoding="utf-8")
    assert first == again != keys_of(tmp_path, text, ("m",))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('lengths = "none.jsonl"', "sweep.toml: serving: .*none.jsonl: .*"),
        ('lengths = "fixed:512"', "write fixed:PROMPT:OUTPUT, in tokens"),
        ("", "need lengths"),
        ('lengths = "fixed:512:16"\nkv_tokens = 520', "kv_tokens = 520 holds less than the 527 tokens of the longest"),
        ('lengths = "fixed:512:16"\nslo = "fast"', "write ttft=2s"),
    ],
)
def test_requests_that_cannot_be_served_are_refused_at_once(line: str, sentence: str, tmp_path: Path) -> None:
    text = f'chips = ["t4"]\n[serving]\nrates = [1]\n{line}\n[[programs]]\nmodel = "m.py"\n'
    with pytest.raises(BringupError, match=sentence):
        grid.of_sweep(sweep_of(tmp_path, text))


def test_labels_of_arguments(tmp_path: Path) -> None:
    text = 'chips = ["t4"]\nmodes = ["eager", "graph"]\n[arguments]\nbatch = [1, 2]\nkind = ["a", 1]\n'
    text += '[[programs]]\nscript = "x.py"\n[[programs]]\nscript = "y.py"\n'
    sweep = sweep_of(tmp_path, text)
    axes = grid.of_sweep(sweep)
    labels = axes.labels(next(axes.blocks()))
    rows = list(zip(*(labels[name].tolist() for name in ("program", "batch", "kind")), strict=True))
    expected = [(program.title, *map(str, values)) for program, values in combinations(sweep)]
    assert [(program, str(batch), kind) for program, batch, kind in rows[::2]] == expected == sorted(expected, key=rank)
    assert axes.recordings == script_runs(sweep) == len(expected) == 8


def rank(row: tuple[str, ...]) -> tuple[bool, ...]:
    return (row[0] == "y", row[1] == "2", row[2] == "1")


def test_grid_counts_what_no_memory_holds(tmp_path: Path) -> None:
    values = str(list(range(1000)))
    arguments = "".join(f"axis{number} = {values}\n" for number in range(7))
    sweep = sweep_of(tmp_path, f'chips = ["t4"]\n[arguments]\n{arguments}[[programs]]\nscript = "x.py"\n')
    assert grid.of_sweep(sweep).rows == script_runs(sweep) == 10**21


def test_two_chips_of_one_name(tmp_path: Path) -> None:
    chips = Path(grid.__file__).parents[1] / "machine" / "chips"
    (tmp_path / "t4.toml").write_text((chips / "t4.toml").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(BringupError, match="two chips are called t4"):
        grid.of_sweep(sweep_of(tmp_path, SMALL.replace('"t4"', '"t4", "./t4.toml"')))
    with pytest.raises(BringupError, match="no chip is named 't5'"):
        grid.of_sweep(sweep_of(tmp_path, SMALL.replace('"t4"', '"t5"')))
    with pytest.raises(BringupError, match="no chip of the sweep has a mode of it"):
        only = SMALL.replace('["t4", "h100-sxm", "tpu-v3"]', '["tpu-v3"]').replace('["eager", "graph"]', '["eager"]')
        grid.of_sweep(sweep_of(tmp_path, only))
