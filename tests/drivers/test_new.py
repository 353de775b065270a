"""A driver that `bringup driver new` writes, and the one in docs/driver.md."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bringup.drivers.new import SKELETON, write
from bringup.errors import BringupError
from tests.conftest import ROOT, slow, without_bringup

Run = Callable[..., "subprocess.CompletedProcess[str]"]
PROGRAM = """
import torch
x = torch.arange(12.0).view(3, 4).to("chip")
side = torch.Stream("chip")
done = torch.Event("chip")
y = (x - 5).relu() @ x.t()
done.record()
done.wait(side)
with side:
    z = y.t().sort()[0]
torch.chip.synchronize()
print(z.cpu().equal(((x.cpu() - 5).relu() @ x.cpu().t()).t().sort()[0]), torch.ops.bringup.driver_name())
"""


def built(folder: Path, name: str) -> str:
    done = subprocess.run(["make", "-C", str(folder / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return str(folder / name / f"{name}.so")


def with_first_kernel(source: str) -> str:
    """Do what the comments of the skeleton say: remove the slashes, and the refusal."""
    head, _, tail = source.partition("int prepare(")
    tail = re.sub(r"^  //   ", "  ", tail, flags=re.MULTILINE)
    return head + "int prepare(" + tail.replace("  return BRINGUP_UNSUPPORTED;\n}", "}", 1)


def test_new_driver_builds_and_runs_on_the_host(tmp_path: Path, python: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("acme")
    assert sorted(path.name for path in (tmp_path / "acme").iterdir()) == ["Makefile", "acme.cpp"]
    done = python(PROGRAM, BRINGUP_DRIVER=built(tmp_path, "acme"))
    assert done.stdout.split() == ["True", "acme"], done.stderr


@pytest.mark.parametrize("mistake", [*slow(False), True])
def test_first_kernel_is_the_one_in_the_comments(
    tmp_path: Path, python: Run, monkeypatch: pytest.MonkeyPatch, mistake: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    write("acme")
    source = tmp_path / "acme" / "acme.cpp"
    text = with_first_kernel(source.read_text(encoding="utf-8"))
    source.write_text(text.replace("in[i] < 0 ? 0", "in[i] < 0 ? -1") if mistake else text, encoding="utf-8")
    program = "import json, torch\ntorch.ops.bringup.shadow([6], [1e-6], True, '')\n"
    program += "x = torch.tensor([-2.0, 3.0, -1.0]).to('chip')\nx.relu()\nx[::2].relu()\ntorch.chip.synchronize()\n"
    program += "print(torch.ops.bringup.shadow_report())\n"
    done = python(program, BRINGUP_DRIVER=built(tmp_path, "acme"))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (row,) = report["rows"]
    assert (row["op"], row["dtype"], row["compared"], row["wrong"]) == ("aten::relu", "float32", 1, int(mistake))
    assert row["refused"] == {"not contiguous": 1}
    assert report["first"].startswith("result 0: element 0 of 3 is -1, on the CPU 0") is mistake
    assert report["first"].endswith("program.py:4") is mistake


def test_driver_in_the_docs_runs(tmp_path: Path, python: Run) -> None:
    page = (ROOT / "docs" / "driver.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```cpp\n(.*?)```", page, re.DOTALL) if "bringup_driver_entry" in block)
    assert len(code.splitlines()) == 40
    (tmp_path / "forty.cpp").write_text(code, encoding="utf-8")
    library = tmp_path / "forty.so"
    command = ["g++", "-std=c++20", "-Wall", "-Werror", "-shared", "-fPIC", "-I", str(ROOT / "csrc")]
    subprocess.run([*command, str(tmp_path / "forty.cpp"), "-o", str(library)], check=True)
    done = python(PROGRAM, BRINGUP_DRIVER=str(library))
    assert done.stdout.split() == ["True", "acme"], done.stderr


@pytest.mark.parametrize("name", ["", "../acme", "a/b", "-x", "1a", "a b", "x" * 41, "opencl", "virtual"])
def test_names_that_are_none_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BringupError, match="name"):
        write(name)
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "bringup", "driver", "new", "acme"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=without_bringup(),
    )
    assert done.returncode == 2
    assert done.stderr == "bringup: acme exists already: choose another name, or remove it\n"
    assert not list((tmp_path / "acme").iterdir())


def test_folder_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.rename", full_disk)
    with pytest.raises(BringupError, match="acme: cannot be written"):
        write("acme")
    assert not list(tmp_path.iterdir())


def test_skeleton_names_its_driver_only_by_its_name() -> None:
    assert "acme" not in SKELETON.read_text(encoding="utf-8")
