"""What a report says of the machine that it was made on: nothing."""

import inspect
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import bringup
from bringup.paths import Places, is_library
from tests.conftest import slow, without_bringup

PROGRAM = """
import runpy, statistics, sys, torch
import near
sys.path.append(sys.argv[1])
import far
x = torch.ones(8, device="chip")
near.work(x)
far.work(x)
runpy.run_path(sys.argv[2])["work"](x)
statistics.fsum = lambda values: sum(values, x)
print(torch.empty(4, device="chip").sum().item(), statistics.fmean([x, x]).sum().item())
"""
WORKS = "def work(x):\n    return x + 1\n"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/data/project/train.py:12", "train.py:12"),
        ("/data/project/lib/util.py:3 (backward)", "lib/util.py:3 (backward)"),
        ("/scripts/run.py:1", "run.py:1"),
        ("/data/project/.venv/lib/python3.11/site-packages/torch/nn/x.py:7", "torch/nn/x.py:7"),
        (f"{sysconfig.get_path('stdlib')}/json/decoder.py:3", f"python{sys.version[:4]}/json/decoder.py:3"),
        ("/home/alicia/other/util.py:9", ".../util.py:9"),
        ("<string>:1", "<string>:1"),
        (":12", ":12"),
        ("", ""),
        ("/data/project/\udcff.py:1", r"\udcff.py:1"),
    ],
)
def test_line_is_relative_or_shortened(path: str, shown: str) -> None:
    assert Places("/data/project", "/scripts/run.py").line(path) == shown


def test_files_of_one_name_stay_apart() -> None:
    places = Places("/data/project", "/scripts/run.py")
    lines = ["/data/project/util.py:1", "/scripts/util.py:1", "/one/util.py:1", "/two/util.py:1", "/one/util.py:2"]
    assert [places.line(line) for line in lines] == [
        *("util.py:1", ".../2/util.py:1", ".../util.py:1", ".../3/util.py:1", ".../util.py:2")
    ]


@pytest.mark.parametrize("start", ["/", "/home", "/home/alicia"])
def test_no_path_is_relative_to_a_folder_above_a_home(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alicia")
    places = Places(start, "/scripts/run.py")
    shown = [places.file(f"/home/alicia/{name}") for name in ("x.py", "lib/y.py")]
    assert shown == (["x.py", "lib/y.py"] if start == "/home/alicia" else [".../x.py", ".../y.py"])
    assert Places("/", "/train.py").line("/train.py:3") == "train.py:3"


def test_paths_in_a_text_are_shortened_and_addresses_are_not() -> None:
    places = Places("/data/project", "/data/project/train.py")
    text = "at /data/project/lib/x.py:3, (/home/al/secret/y.py), see https://docs.pytorch.org/a/b and this/that"
    assert places.within(text) == "at lib/x.py:3, (.../y.py), see https://docs.pytorch.org/a/b and this/that"


@pytest.mark.parametrize("start", ["home/alicia/project", *slow("home/alicia", "elsewhere", "/")])
def test_files_of_a_report_hold_no_path_of_the_machine(tmp_path: Path, start: str) -> None:
    project, other, outside = (tmp_path / name for name in ("home/alicia/project", "other", "outside"))
    for folder in (project, other, outside, tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
    (project / "train.py").write_text(PROGRAM)
    (project / "near.py").write_text(WORKS)
    (other / "far.py").write_text(WORKS)
    (outside / "near.py").write_text(WORKS)
    out = tmp_path / "report"
    command = [sys.executable, "-m", "bringup"]
    environment = {**without_bringup(), "HOME": str(tmp_path / "home" / "alicia")}
    run = [*command, "run", "--sanitize=all", "--out", out, project / "train.py", other, outside / "near.py"]
    done = subprocess.run(run, cwd=tmp_path / start, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "init" in done.stdout, done.stderr
    done = subprocess.run([*command, "compare", out, "--chips", "t4"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = {line.rpartition(":")[0] for line in bringup.Trace.load(out / "trace.npz").lines}
    where = "project/" if start == "home/alicia" else ""
    assert lines == {
        *(f"{where}train.py", f"{where}near.py", "far.py", ".../near.py"),
        f"python{sys.version[:4]}/statistics.py",
    }
    for file in out.iterdir():
        data = file.read_bytes()
        for private in (
            os.fsencode(tmp_path),
            b"alicia",
            os.fsencode(sys.prefix),
            os.fsencode(sysconfig.get_path("stdlib")),
        ):
            assert private not in data, (file.name, private)
    assert len(list(out.iterdir())) == 5


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/home/alice", "..."),
        ("file:///home/alice/x.py", "file:.../x.py"),
        ("//home/alice/x.py", ".../x.py"),
        (r"C:\Users\alice\x.py", ".../x.py"),
        ("../../alice/x.py", ".../x.py"),
        ("<ipython /home/alice/x.py>", "<ipython .../x.py>"),
        ("<string>", "<string>"),
    ],
)
def test_no_form_of_a_path_names_a_user(path: str, shown: str) -> None:
    assert Places("/work/project", "train.py").line(f"{path}:1") == f"{shown}:1"
    assert Places("/work/project", "train.py").within("at http://a.org/b/c") == "at http://a.org/b/c"


def test_lines_of_libraries_are_told_from_the_programs() -> None:
    inside = sysconfig.get_path("purelib") + "/some_package/trainer.py:3"
    assert all(map(is_library, (inside, inspect.getfile(inspect) + ":3", "<string>:1", "<frozen runpy>:88")))
    assert not any(map(is_library, ("/home/me/train.py:12", "train.py:12", "<b>.py:8")))
