"""Plan files: what is written is read again, and mistakes are one sentence that names the key."""

from pathlib import Path

import pytest

from bringup import BringupError, Plan

TEXT = """
version = 1
program = "train.py"
chip = "t4"
host = "xeon-8275cl"
granularity = "module"
objective = "time"

[predicted]
all_chip_seconds = 0.002
all_host_seconds = 0.003
cheapest_seconds = 0.0025
proposed_seconds = 0.001
bound_seconds = 0.0005
band = 0.15
proposes = true

[[launches]]
where = "host"
module = "tables.0"
calls = 2

[[launches]]
where = "chip"
line = "train.py:12"
phase = "backward"
calls = 3
calls_on_host = [0, 2]
"""


def load(text: str, tmp_path: Path) -> Plan:
    path = tmp_path / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return Plan.load(path)


def test_plan_is_read_and_written_again(tmp_path: Path) -> None:
    plan = load(TEXT, tmp_path)
    assert plan.step_seconds == 0.001 and plan.entries[1].sides() == [True, False, True]
    plan.save(tmp_path / "again.toml")
    again = Plan.load(tmp_path / "again.toml")
    assert list(again.entries) == list(plan.entries) and again.band == plan.band


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("version = 1", "version = 2", "is a plan of version 2, this bringup reads 1: plan again"),
        ('where = "host"', 'wher = "host"', "launches.0.wher is not a key of a plan: did you mean where?"),
        ('where = "host"', 'where = "gpu"', "launches.0.where: Input should be 'host' or 'chip', got 'gpu'"),
        ("band = 0.15", "band = nan", "predicted.band: Input should be a finite number"),
        (
            "all_chip_seconds = 0.002",
            "all_chip_seconds = -1.0",
            "predicted.all_chip_seconds: .* or equal to 0",
        ),
        ("calls = 3", "calls = 2", "launches.1: calls_on_host are numbers below calls"),
        ('line = "train.py:12"\nphase = "backward"', 'module = "tables.0"', "two entries have the same launches"),
        ('module = "tables.0"\n', "", "launches.0: an entry needs an op, a module or a line"),
        ("[predicted]", "[predicted", "is not valid TOML"),
    ],
)
def test_mistake_names_the_key(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BringupError, match=sentence):
        load(TEXT.replace(old, new), tmp_path)


def test_plan_of_another_program_or_chip_is_refused(tmp_path: Path) -> None:
    from bringup.placement.plan import refuse_other

    plan = load(TEXT, tmp_path)
    refuse_other(plan, "/home/me/train.py", "t4")
    with pytest.raises(BringupError, match=r"is a plan for program train.py, and this program is other.py"):
        refuse_other(plan, "other.py", "t4")
    with pytest.raises(BringupError, match="is a plan for chip t4, and this chip is edge8"):
        refuse_other(plan, "train.py", "edge8")
