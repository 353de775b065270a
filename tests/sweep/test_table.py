"""Reading the table: conditions, fronts, and one sentence for each mistake."""

import json
from pathlib import Path

import numpy as np
import pytest

from bringup import BringupError
from bringup.sweep import parts, runner, table
from tests.sweep.sweeps import SMALL, needs_extras, sweep_of

pytestmark = needs_extras
RANGE = SMALL + "[ranges]\nmemory.bandwidth_gb_s = [1000, 4000, 7]\n"


@pytest.fixture
def out(folder: Path) -> Path:
    runner.run(sweep_of(folder, RANGE), folder / "out")
    return folder / "out"


def brute_force(points: np.ndarray) -> list[int]:
    beaten = [any((other <= point).all() and (other < point).any() for other in points) for point in points]
    return [number for number, lost in enumerate(beaten) if not lost]


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_front_is_that_of_all_pairs(columns: int) -> None:
    rng = np.random.default_rng(columns)
    for _ in range(30):
        points = rng.integers(0, 6, (rng.integers(0, 40), columns)).astype(float)
        assert table.front(points).tolist() == brute_force(points)


def test_rows_have_one_column_per_axis(out: Path) -> None:
    rows = table.select(out)
    assert list(rows.columns) == [
        *("key", "version", "band", "program", "chip", "host", "memory.bandwidth_gb_s", "mode", "dispatch_scale"),
        *("step_seconds", "device_seconds", "peak_bytes", "fits", "energy_joules", "cost_usd"),
    ]
    assert len(rows) == rows.total == rows.priced == 2 * 2 * 2 * 7 * (2 + 2 + 1)
    assert len(set(rows.columns["key"])) == len(rows)
    types = {type(value) for value in rows.dicts()[0].values()}
    assert types <= {str, float, int, bool, type(None)}


def test_condition_and_order(out: Path) -> None:
    rows = table.select(out, where="memory.bandwidth_gb_s < 2000 and chip = 't4' and fits", order="seconds", limit=3)
    assert len(rows) == 3 and set(rows.columns["chip"]) == {"t4"}
    assert max(rows.columns["memory.bandwidth_gb_s"]) < 2000
    assert rows.columns["step_seconds"] == sorted(rows.columns["step_seconds"])
    everything = table.select(out, where="chip = 't4' and \"memory.bandwidth_gb_s\" < 2000")
    assert rows.columns["step_seconds"] == sorted(everything.columns["step_seconds"])[:3]


def test_front_of_each_program(out: Path) -> None:
    rows = table.select(out, pareto=["seconds", "joules"], where="fits")
    everything = table.select(out, where="fits").dicts()
    expected = set()
    for program in ("mlp", "big"):
        own = [row for row in everything if row["program"] == program]
        points = np.asarray([[row["step_seconds"], row["energy_joules"]] for row in own])
        expected |= {own[number]["key"] for number in brute_force(points)}
    assert set(rows.columns["key"]) == expected and rows.without == 0
    assert set(table.select(out, pareto=["seconds"], by=[]).columns["program"]) != {"mlp", "big"}


def test_rows_without_a_price_are_counted(out: Path) -> None:
    rows = table.select(out, pareto=["usd"])
    unpriced = table.select(out, where="cost_usd is null")
    assert rows.without == len(unpriced) > 0 and all(value is not None for value in rows.columns["cost_usd"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pareto": ["secnds"]}, "the sweep has no column secnds: did you mean seconds?"),
        ({"pareto": ["chip"]}, "--pareto chip: is a text"),
        ({"order": "qqq"}, "the columns are key, version"),
        ({"where": "fitz"}, "fitz"),
        ({"where": "fits; drop view sweep"}, "--where fits; drop view sweep"),
        ({"where": "exists (select * from read_text('/etc/hostname'))"}, "Permission Error"),
    ],
)
def test_mistake_is_one_sentence(options: dict[str, object], sentence: str, out: Path) -> None:
    with pytest.raises(BringupError) as error:
        table.select(out, **options)  # type: ignore[arg-type]
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_damaged_part_is_named(out: Path) -> None:
    part = sorted(out.glob("*.parquet"))[1]
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(BringupError, match=rf"{part.name}: is damaged: run the sweep again with --resume"):
        table.select(out)


def test_other_parquet_is_no_sweep(tmp_path: Path) -> None:
    with parts.database() as connection:
        connection.execute(f"COPY (SELECT 1 AS seconds) TO '{tmp_path}/requests.parquet' (FORMAT parquet)")
    with pytest.raises(BringupError, match="has no part of a sweep"):
        table.select(tmp_path, pareto=["seconds"])


@pytest.mark.parametrize(("argument", "sentence"), [("batch", "has no column batch"), ([1], "sweep.json: is damaged")])
def test_list_with_a_column_that_the_parts_do_not_have(argument: object, sentence: str, out: Path) -> None:
    data = json.loads((out / parts.LIST).read_text(encoding="utf-8"))
    (out / parts.LIST).write_text(json.dumps({**data, "arguments": [argument]}), encoding="utf-8")
    with pytest.raises(BringupError, match=sentence):
        table.select(out, pareto=["seconds"])


def test_limit_counts_all_rows(out: Path) -> None:
    everything = table.select(out, where="chip = 't4'", pareto=["seconds", "joules"], order="joules")
    some = table.select(out, where="chip = 't4'", pareto=["seconds", "joules"], order="joules", limit=1)
    assert some.dicts() == everything.dicts()[:1] and some.chosen == len(everything) == everything.chosen > 1
    assert everything.columns["energy_joules"] == sorted(everything.columns["energy_joules"])
    plain = table.select(out, where="chip = 't4'", limit=3)
    assert (len(plain), plain.chosen) == (3, 2 * 2 * 2 * 7 * 2)


def test_directory_without_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(BringupError, match="has no part of a sweep"):
        table.select(tmp_path)
    (tmp_path / parts.LIST).write_text("{}", encoding="utf-8")
    with pytest.raises(BringupError, match="is damaged"):
        table.select(tmp_path)
