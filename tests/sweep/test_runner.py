"""Whole sweeps: interrupted and resumed, changed, and with every kind of mistake."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bringup
from bringup import BringupError, Trace
from bringup.recording.rows import LAUNCH
from bringup.sweep import file, grid, parts, runner, table
from bringup.sweep.grid import Grid
from tests.sweep.sweeps import LARGE, SCRIPT, SMALL, cli, environment, needs_extras, scales, sweep_of
from tests.sweep.sweeps import table as rows_of

pytestmark = needs_extras
CHIP_FILE = (Path(grid.__file__).parents[1] / "machine" / "chips" / "t4.toml").read_text(encoding="utf-8")


def test_second_sweep_prices_nothing(folder: Path) -> None:
    sweep, out = sweep_of(folder), folder / "out"
    first = runner.run(sweep, out)
    rows = rows_of(out)
    assert first.rows == first.priced == len(rows) == 40 and first.left_out == ["tpu-v3"]
    again = runner.run(sweep, out, resume=True)
    assert (again.priced, again.copied, again.existing) == (0, 0, 40) and rows_of(out) == rows


def test_interrupted_sweep_goes_on(folder: Path) -> None:
    sweep = sweep_of(folder)
    runner.run(sweep, folder / "whole")

    def dies(grid: Grid, traces: Sequence[Trace], tasks: Iterator[runner.Task]) -> Iterator[runner.Priced]:
        yield next(runner.in_process(grid, traces, tasks))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(sweep, folder / "out", dies)
    partial = table.select(folder / "out")
    assert 0 < partial.priced < partial.total
    done = runner.run(sweep, folder / "out", resume=True)
    assert done.existing == partial.priced and done.priced == partial.total - partial.priced
    assert rows_of(folder / "out") == rows_of(folder / "whole")


def test_changed_chip_file_prices_only_its_rows_again(folder: Path) -> None:
    chip = folder / "mine.toml"
    chip.write_text(CHIP_FILE, encoding="utf-8")
    sweep, out = sweep_of(folder, SMALL.replace('"t4"', '"mine.toml"')), folder / "out"
    runner.run(sweep, out)
    before = rows_of(out)
    chip.write_text(CHIP_FILE.replace("bandwidth_gb_s = 320", "bandwidth_gb_s = 640"), encoding="utf-8")
    done = runner.run(sweep, out, resume=True)
    assert (done.priced, done.existing, done.copied) == (16, 24, 0)
    after = rows_of(out)
    assert len(after) == 40 and len(set(before) & set(after)) == 24, "old rows are not in the table"
    chip.write_text(CHIP_FILE, encoding="utf-8")
    done = runner.run(sweep, out, resume=True)
    assert (done.priced, done.copied) == (0, 16) and rows_of(out) == before, "nothing is lost, nothing priced twice"


def test_longer_axis_prices_only_new_rows(folder: Path) -> None:
    out = folder / "out"
    runner.run(sweep_of(folder), out)
    done = runner.run(sweep_of(folder, SMALL.replace("[1.0, 0.5]", "[1.0, 0.25, 0.5]")), out, resume=True)
    assert (done.priced, done.copied, done.existing) == (20, 40, 0)
    runner.run(sweep_of(folder, SMALL.replace("[1.0, 0.5]", "[1.0, 0.25, 0.5]")), folder / "whole")
    assert rows_of(out) == rows_of(folder / "whole")


def test_half_written_and_damaged_parts_are_made_again(folder: Path) -> None:
    sweep, out = sweep_of(folder), folder / "out"
    runner.run(sweep, out)
    rows = rows_of(out)
    first, second, third = sorted(out.glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-50])
    content = bytearray(second.read_bytes())
    content[40:400] = bytes(360)
    second.write_bytes(content)
    (out / ".bringup-0123456789abcdef").write_bytes(b"half")
    done = runner.run(sweep, out, resume=True)
    assert done.existing == 8 and done.priced == 32 and rows_of(out) == rows and third.exists()
    assert not (out / ".bringup-0123456789abcdef").exists()


def test_foreign_parquet_stays(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "requests.parquet").write_bytes(b"mine")
    sweep = sweep_of(folder)
    runner.run(sweep, folder / "out")
    runner.run(sweep, folder / "out", resume=True)
    assert (folder / "out" / "requests.parquet").read_bytes() == b"mine"
    assert not (folder / "out" / parts.EARLIER).exists() and table.select(folder / "out").priced == 40


def test_two_sweeps_in_one_directory(folder: Path) -> None:
    sweep, out = sweep_of(folder), folder / "out"
    with parts.locked(out), pytest.raises(BringupError, match="another sweep is writing there"):
        runner.run(sweep, out)
    runner.run(sweep, out)
    rows = rows_of(out)
    with pytest.raises(BringupError, match="has a sweep already: go on with --resume"):
        runner.run(sweep, out)
    assert rows_of(out) == rows


def test_scripts_are_recorded_once_for_each_argument(folder: Path) -> None:
    (folder / "train.py").write_text(SCRIPT, encoding="utf-8")
    text = 'chips = ["t4", "a40"]\n[arguments]\nbatch = [1, 64]\ndtype = ["float16"]\n'
    text += '[[programs]]\nscript = "train.py"\nnames = {batch = "--batch-size"}\n'
    said: list[str] = []
    done = runner.run(sweep_of(folder, text), folder / "out", say=said.append)
    assert done.rows == 4 and len(said) == 2 and "train.py --batch-size 64 --dtype float16: " in said[1]
    rows = table.select(folder / "out").dicts()
    assert {(row["batch"], row["dtype"]) for row in rows} == {(1, "float16"), (64, "float16")}
    recording = next(folder.glob("out/recordings/*.npz"))
    steps = [row["step_seconds"] for row in rows if row["chip"] == "t4"]
    assert bringup.price(Trace.load(recording), "t4").step_seconds in steps
    again = runner.run(sweep_of(folder, text), folder / "out", resume=True, say=said.append)
    assert again.priced == 0 and len(said) == 2
    runner.run(sweep_of(folder, text), folder / "other")
    assert rows_of(folder / "other") == rows_of(folder / "out"), "recorded again, the keys are the same"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('names = {batch = "--batchsize"}', "error: unrecognized arguments: --batchsize 1"),
        ('names = {batch = "UNUSED"}', "arguments.batch changes no program of the sweep"),
        ("cuda = true", "error: unrecognized arguments: --batch 1"),
    ],
)
def test_argument_that_a_script_does_not_have(text: str, sentence: str, folder: Path) -> None:
    script = SCRIPT.replace("ArgumentParser()", "ArgumentParser(allow_abbrev=False)")
    (folder / "train.py").write_text(script, encoding="utf-8")
    whole = f'chips = ["t4"]\n[arguments]\nbatch = [1, 2]\n[[programs]]\nscript = "train.py"\n{text}\n'
    with pytest.raises(BringupError) as error:
        runner.run(sweep_of(folder, whole), folder / "out")
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_recordings_that_cannot_be_placed_are_refused_before_pricing(folder: Path) -> None:
    trace = Trace.load(folder / "conv.npz")
    kind, device = trace.columns["kind"], trace.columns["device"].copy()
    device[np.flatnonzero(kind == LAUNCH)[::2]] = 1
    replace(trace, columns={**trace.columns, "device": device}).save(folder / "conv.npz")
    text = 'chips = ["t4"]\nplacements = ["chip", "best"]\n[[programs]]\ntrace = "mlp.npz"\n'

    def priced(*arguments: object) -> Iterator[runner.Priced]:
        raise AssertionError("nothing is priced")

    with pytest.raises(BringupError, match=r"placements: conv: the recording uses 2 chips: .*leave placements out"):
        runner.run(sweep_of(folder, text + '[[programs]]\ntrace = "conv.npz"\n'), folder / "out", priced)


def test_axis_without_effect_is_refused(folder: Path) -> None:
    with pytest.raises(BringupError, match="clusters are an axis, but no program has collectives"):
        runner.run(sweep_of(folder, 'clusters = ["dgx-h100"]\n' + SMALL), folder / "out")


def test_command_line(folder: Path) -> None:
    sweep_of(folder)
    plan = cli(folder, "plan", "sweep.toml", "--json")
    assert json.loads(plan.stdout)["rows"] == 40 and json.loads(plan.stdout)["axes"]["chip"] == 3
    assert "40 configurations, about" in cli(folder, "plan", "sweep.toml").stdout
    done = cli(folder, "sweep.toml", "--out", "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == json.loads(done.stdout)["priced"] == 40
    shown = cli(folder, "show", "out", "--pareto", "seconds,usd,joules", "--where", "fits", "--json")
    rows = json.loads(shown.stdout)
    assert rows and all(row["fits"] and row["cost_usd"] is not None for row in rows)
    assert "are left out" in shown.stderr
    text = cli(folder, "show", "out", "--pareto", "seconds")
    assert "h100-sxm" in text.stdout and text.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("sweep.toml", "--on", "nowhere"), "--on nowhere: is no engine: give process, local:N"),
        (("sweep.toml", "--on", "local:0"), "is no engine"),
        (("missing.toml",), "missing.toml: there is no such sweep file"),
        (("huge.toml",), "1,000,000,000 configurations, about 8 days: make it smaller, or confirm it with --yes"),
        (
            ("scripts.toml",),
            "1,000 configurations, about 666.7 ms after 1,000 dry runs of scripts: make it smaller, or confirm",
        ),
        (("sensitivity", "scripts.toml"), "1,000 dry runs of scripts: make it smaller, or confirm it with --yes"),
        (("vast.toml",), "at least 1e21 configurations, about 30,000 years or more after at least 1e21 dry runs"),
        (("show", "nothing", "--by", "chip"), "--by says which rows a Pareto front compares: give --pareto as well"),
        (("show", "nothing"), "nothing: has no part of a sweep"),
    ],
)
def test_mistake_is_one_sentence_and_exit_code_2(arguments: tuple[str, ...], sentence: str, folder: Path) -> None:
    sweep_of(folder)
    fields = ("memory.bandwidth_gb_s", "compute.clock_ghz", "power.tdp_w")
    ranges = "".join(f"{name} = [1, 900, 1000]\n" for name in fields)
    (folder / "huge.toml").write_text(f'chips = ["t4"]\n[[programs]]\ntrace = "mlp.npz"\n[ranges]\n{ranges}')
    axis = f"{list(range(1000))}"
    (folder / "scripts.toml").write_text(f'chips = ["t4"]\n[arguments]\nx = {axis}\n[[programs]]\nscript = "a.py"\n')
    axes = "".join(f"x{number} = {axis}\n" for number in range(7))
    (folder / "vast.toml").write_text(f'chips = ["t4"]\n[arguments]\n{axes}[[programs]]\nscript = "a.py"\n')
    done = cli(folder, *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and sentence in done.stderr
    assert not (folder / "bringup-sweep-huge").exists()


def _small_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))


def test_full_disk_is_one_sentence_and_loses_nothing(folder: Path) -> None:
    sweep, out = sweep_of(folder), folder / "out"
    runner.run(sweep, folder / "whole")
    done = cli(folder, "sweep.toml", "--out", "out", preexec_fn=_small_files)  # as on a disk with room for 3,000 bytes
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot be written" in done.stderr
    assert not list(out.glob(".bringup-????????????????")), "half-written parts are removed"
    assert runner.run(sweep, out, resume=True).rows == 40 and rows_of(out) == rows_of(folder / "whole")


def large(folder: Path) -> file.Sweep:
    """A sweep of some seconds in four parts."""
    return sweep_of(folder, LARGE.format(scales(100)))


def test_driver_killed_at_random_points(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "BLOCK", 175)
    sweep = large(folder)
    whole = runner.run(sweep, folder / "whole")
    assert whole.rows == 2800 and whole.parts == 16
    program = "import sys; from bringup.sweep import grid; grid.BLOCK = 175; from bringup.cli import main; main()"
    command = [sys.executable, "-c", program, "sweep", "sweep.toml", "--out", "out", "--resume", "--json"]
    seen: set[str] = set()
    for number in range(4):
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True)
        most = len(seen) + 1 + number % 2
        while process.poll() is None and len(list((folder / "out").glob("*.parquet"))) < most:
            time.sleep(0.005 * (1 + number % 3))
        process.kill()
        process.communicate()
        parts_now = {path.name for path in (folder / "out").glob("*.parquet")}
        assert seen <= parts_now, "whole parts stay"
        seen = parts_now
    output = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=True).stdout
    done = json.loads(output)
    assert done["priced"] + done["existing"] == 2800 and done["existing"] >= 175 * len(seen) - 175
    assert rows_of(folder / "out") == rows_of(folder / "whole")
    assert sorted(path.name for path in (folder / "out").glob("*.parquet")) == sorted(
        path.name for path in (folder / "whole").glob("*.parquet")
    )
    assert not [name for name in os.listdir(folder / "out") if name.startswith(".bringup-") and name != parts.LOCK]
