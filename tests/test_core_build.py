"""The core is found, built once, or missed in one sentence; packages hold what they must."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from bringup import core, core_build
from bringup.core_build import Torch

ROOT = Path(core_build.__file__).parents[2]
# Sources for which there is no core; the compiler copies that of this installation.
PROGRAM = """
import pathlib
from bringup import core_build
core_build.sources = lambda: pathlib.Path({sources!r})
import torch
print(torch.ones(2).sum().item(), torch._C._get_privateuse1_backend_name())
"""
COMPILER = """#!/bin/sh
if [ "$1" = -dumpfullversion ]; then echo 12.9.1; exit; fi
echo built >> {folder}/calls
while [ "$1" != -o ]; do shift; done
{action}
"""


class Setting:
    """Environment, compiler and cache of the processes of one test."""

    def __init__(self, folder: Path, action: str) -> None:
        self.folder = folder
        sources = folder / "csrc"
        sources.mkdir()
        for name in ("flags", "link_flags"):
            (sources / name).write_text("-O2")
        compiler = folder / "c++"
        compiler.write_text(COMPILER.format(folder=folder, action=action))
        compiler.chmod(0o755)
        self.program = PROGRAM.format(sources=str(sources))
        self.environment = {**os.environ, "CXX": str(compiler), "XDG_CACHE_HOME": str(folder / "cache")}

    def start(self, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", self.program]
        return subprocess.Popen(
            command, env={**self.environment, **environment}, stdout=-1, stderr=-1, text=True, cwd=self.folder
        )

    def run(self, **environment: str) -> tuple[str, str]:
        process = self.start(**environment)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return output.strip(), errors

    def calls(self) -> int:
        path = self.folder / "calls"
        return len(path.read_text().splitlines()) if path.exists() else 0


def copying(seconds: int = 0) -> str:
    return f'sleep {seconds}; cp {core.core_path()} "$2"'


def test_processes_build_the_core_once_and_say_so(tmp_path: Path) -> None:
    setting = Setting(tmp_path, copying(seconds=3))
    processes = [setting.start() for _ in range(3)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [output.strip() for output, _ in outputs] == ["2.0 chip"] * 3, outputs
    assert setting.calls() == 1
    errors = "".join(errors for _, errors in outputs)
    assert errors.count("building the C++ core for torch") == 1 and errors.count("built the C++ core for torch") == 1
    assert errors.count("another process is building it") <= 2
    assert setting.run() == ("2.0 chip", "")  # found, without a word
    assert setting.run(CXX="no-compiler", PATH="/nowhere")[0] == "2.0 chip"  # what is built needs no compiler
    (library,) = (tmp_path / "cache" / "bringup" / "core" / "c++-12.9.1").glob("_core*")
    assert library.name.startswith("_core.torch-")


def test_building_can_be_forbidden(tmp_path: Path) -> None:
    output, errors = (setting := Setting(tmp_path, copying())).run(BRINGUP_BUILD="0")
    assert output == "2.0 privateuseone" and setting.calls() == 0
    assert "is not built yet" in errors
    assert "UserWarning: the C++ core for torch" in errors


def test_a_failed_build_is_one_sentence_and_not_tried_again_unasked(tmp_path: Path) -> None:
    setting = Setting(tmp_path, "echo 'core.cpp:7:1: error: no such thing'; exit 1")
    output, errors = setting.run()
    assert output == "2.0 privateuseone"
    assert "c++-12.9.1: core.cpp:7:1: error: no such thing (all of the compiler's output: " in errors
    assert "an earlier attempt to build the C++ core for torch" in setting.run()[1] and setting.calls() == 1
    assert "no such thing" in setting.run(BRINGUP_BUILD="1")[1] and setting.calls() == 2


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"CXX": "", "PATH": "/nowhere"}, "neither g++ nor clang++ is there: apt-get install g++"),
        ({"CXX": "nocxx -v"}, "CXX=nocxx cannot be found: unset CXX or correct it"),
        ({"XDG_CACHE_HOME": "/proc/nowhere"}, "cannot be written (No such file or directory): set XDG_CACHE_HOME to"),
    ],
)
def test_what_prevents_a_build_is_said(tmp_path: Path, environment: dict[str, str], sentence: str) -> None:
    output, errors = Setting(tmp_path, copying()).run(**environment)
    assert output == "2.0 privateuseone"
    assert sentence in errors and "Traceback" not in errors


def test_a_core_that_others_can_write_is_built_anew(tmp_path: Path) -> None:
    setting = Setting(tmp_path, copying())
    setting.run()
    (library,) = (tmp_path / "cache").rglob("_core*")
    library.chmod(0o777)
    assert setting.run()[0] == "2.0 chip"
    assert setting.calls() == 2 and not library.stat().st_mode & 0o022


def test_an_interrupted_build_is_begun_anew(tmp_path: Path) -> None:
    setting = Setting(tmp_path, copying(seconds=30))
    process = setting.start()
    assert process.stderr is not None and "building the C++ core" in process.stderr.readline()
    time.sleep(0.5)
    process.kill()
    process.communicate()
    compiler = tmp_path / "c++"
    compiler.write_text(compiler.read_text().replace("sleep 30", "sleep 0"))
    output, errors = setting.run()
    assert output == "2.0 chip" and "earlier attempt" not in errors
    assert [path.name for path in (tmp_path / "cache").rglob("*.log")] == []


def test_installations_with_other_sources_share_the_cache(tmp_path: Path) -> None:
    setting = Setting(tmp_path, copying())
    setting.run()
    (tmp_path / "csrc" / "more.h").write_text("// of another version\n")
    assert setting.run()[0] == "2.0 chip" and setting.calls() == 2
    (tmp_path / "csrc" / "more.h").unlink()
    assert setting.run() == ("2.0 chip", "") and setting.calls() == 2


def test_a_library_that_does_not_load_is_named(tmp_path: Path) -> None:
    setting = Setting(tmp_path, 'echo nothing > "$2"')
    output, errors = setting.run()
    assert output == "2.0 privateuseone"
    assert "_core.torch-" in errors and "does not load" in errors and "delete it, and it is built anew" in errors


def test_names_tell_torch_releases_sources_and_python_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name(version: str, abi: int = 1) -> str:
        return core_build.core_library(Torch(tmp_path, version, abi)).file

    assert name("2.13.0+cpu") == name("2.13.0+cu130") != name("2.13.1")
    assert name("2.14.0a0+git12") != name("2.14.0a0+git13")  # no releases
    assert name("2.13.0", abi=0) != name("2.13.0")
    before = name("2.13.0")
    shutil.copytree(core_build.sources(), tmp_path / "csrc")
    monkeypatch.setattr(core_build, "sources", lambda: tmp_path / "csrc")
    assert name("2.13.0") == before
    with open(tmp_path / "csrc" / "driver.h", "a") as header:
        header.write("// changed\n")
    assert name("2.13.0") != before


def test_a_torch_that_is_too_old_is_refused() -> None:
    assert Torch(ROOT, "2.10.0", 1).refusal() is None and Torch(ROOT, "3.0.0", 1).refusal() is None
    refusal = Torch(ROOT, "2.9.1+cu128", 1).refusal()
    assert refusal == "bringup needs torch 2.10 or newer, and this environment has torch 2.9.1+cu128: upgrade torch"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a clone: what is built must not lie in the user's checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("csrc", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return folder


def build(checkout: Path, tmp_path: Path, command: str, **environment: str) -> Path:
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", command, "--dist-dir", str(tmp_path / "dist")],
        cwd=checkout, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "dist").iterdir()
    return file


def test_a_wheel_holds_one_core_the_sources_and_no_claim_on_torch(checkout: Path, tmp_path: Path) -> None:
    setting = Setting(tmp_path, copying())
    wheel = build(checkout, tmp_path, "bdist_wheel", CXX=setting.environment["CXX"])
    torch = core.torch_here()
    assert f"+torch{torch.release}-cp" in wheel.name and "linux" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(archive.read(name).decode() for name in names if name.endswith("METADATA"))
    libraries = [core_build.core_library(torch), core_build.jax_library(), core_build.replay_library()]
    assert sorted(name for name in names if name.endswith(".so")) == [f"bringup/{each.file}" for each in libraries]
    sources = {f"bringup/csrc/{name}" for name in ("driver.h", "flags", "drivers/array.sv", "drivers/rtl.cpp")}
    assert {*sources, "bringup/machine/chips/t4.toml"} <= set(names)
    requires = Parser().parsestr(metadata).get_all("Requires-Dist", [])
    assert not [each for each in requires if each.startswith("torch")]


def test_a_source_distribution_can_be_built(checkout: Path, tmp_path: Path) -> None:
    setting = Setting(tmp_path, copying())
    archive = build(checkout, tmp_path, "sdist")
    assert archive.name == "bringup-0.1.0.tar.gz"
    with tarfile.open(archive) as files:
        files.extractall(tmp_path, filter="data")
    folder = tmp_path / "bringup-0.1.0"
    assert not list(folder.rglob("*.so"))
    ours = [path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    assert [str(path) for path in ours if not (folder / path).exists()] == []
    shutil.rmtree(tmp_path / "dist")
    assert build(folder, tmp_path, "bdist_wheel", CXX=setting.environment["CXX"]).name.startswith("bringup-0.1.0+torch")
