"""The grid: every combination once, with a key that names everything that it depends on."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from bringup import BringupError
from bringup.sweep import grid
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
    assert rows == expected and len(axes) == len(expected) == 240


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
