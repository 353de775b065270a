"""A report's directory: whole whatever ends the run, of one run, and where it was asked for."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bringup.errors import BringupError
from bringup.report import directory
from bringup.report.directory import ADDED, NEW, OUTPUTS, STAGE
from tests.conftest import without_bringup

Run = Callable[..., "subprocess.CompletedProcess[str]"]
OLD, FRESH = "0" * 16, "f" * 16
# Writes a report of the run argv[2] into argv[1], and is killed at step argv[3].
WRITER = """
import os, signal, sys
from bringup.report import directory
from pathlib import Path
target, run, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
steps = 0
def count(event, arguments):
    global steps
    if event.split(".")[0] in ("os", "open", "fcntl", "shutil", "tempfile"):
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
def text(path):
    path.write_text(f'"run": "{run}"')
directory.prepare(str(target))
sys.addaudithook(count)
directory.write(target, {name: text for name in directory.OUTPUTS})
"""


def text(run: str) -> str:
    return f'"run": "{run}"'


def saves(run: str) -> dict[str, Callable[[Path], object]]:
    return {name: lambda path: path.write_text(text(run)) for name in OUTPUTS}


def runs(target: Path) -> set[str]:
    """The ids in a directory that must hold all four files and nothing else, or not be there."""
    if not target.exists():
        return set()
    names = set(os.listdir(target))
    assert names - set(ADDED) == set(OUTPUTS), names
    return {(target / name).read_text() for name in names}


def written(target: Path, run: str, last: int = 0) -> int:
    return subprocess.run([sys.executable, "-c", WRITER, str(target), run, str(last)]).returncode


@pytest.mark.parametrize("is_there", [False, True])
def test_killed_between_any_two_steps_it_is_the_old_report_or_the_new_one(tmp_path: Path, is_there: bool) -> None:
    seen: list[tuple[bool, str]] = []
    for last in range(1, 100):
        place = tmp_path / str(last)
        place.mkdir()
        target = place / "r"
        if is_there:
            directory.write(target, saves(OLD))
            (target / "compare.html").write_text(text(OLD))
        code = written(target, FRESH, last)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        half_way = (target / NEW).is_dir()
        if target.is_dir():
            with directory.opened(target) as check:
                check((target / "trace.npz").read_text()[-17:-1])  # a reader finds one run
        assert directory.prepare(str(target)) == target
        assert not [name for name in os.listdir(place) if name.startswith(".")], "the next run tidies up"
        found = runs(target)
        assert len(found) == (1 if is_there or found else 0)
        seen.append((half_way, min(found, default="")))
    first, last_seen = seen[0], seen[-1]
    assert len(seen) > (12 if is_there else 8)
    assert first[1] == (text(OLD) if is_there else "") and last_seen[1] == text(FRESH)
    assert any(half_way for half_way, _ in seen) == is_there
    assert [run for _, run in seen] == sorted(run for _, run in seen), "once it is the new one, it stays the new one"


def test_reader_that_may_not_write_notices_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.write(tmp_path / "r", saves(OLD))
    (tmp_path / "r" / "summary.json").write_text(text(FRESH))
    with pytest.raises(BringupError, match=r"r: holds files of two runs \(summary\.json and trace\.npz differ\)"):
        directory.check_run(tmp_path / "r", OLD)
    (tmp_path / "r" / "summary.json").write_text("{}")
    with pytest.raises(BringupError, match="two runs"):
        directory.check_run(tmp_path / "r", OLD)
    (tmp_path / "r" / "summary.json").unlink()
    directory.check_run(tmp_path / "r", OLD)


def test_runs_at_once_never_interleave(tmp_path: Path) -> None:
    target = tmp_path / "r"
    stop = tmp_path / "stop"
    many = (
        f"{WRITER}\nimport os\nwhile not os.path.exists({str(stop)!r}):"
        " directory.write(target, {name: text for name in directory.OUTPUTS})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", many, str(target), str(i) * 16, "0"]) for i in range(3)]
    seen = set()
    while len(seen) < 3 and all(writer.poll() is None for writer in writers):
        if target.is_dir():
            with directory.opened(target):
                found = runs_beside_stages(target)
            assert len(found) == 1
            seen |= found
    stop.touch()
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(seen) == 3 and len(runs(target)) == 1 and sorted(os.listdir(tmp_path)) == ["r", "stop"]


def runs_beside_stages(target: Path) -> set[str]:
    return {(target / name).read_text() for name in os.listdir(target) if not name.startswith(STAGE)}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_fails_leaves_the_old_report(tmp_path: Path, error: BaseException) -> None:
    def fails(path: Path) -> None:
        path.write_text("half")
        raise error

    directory.write(tmp_path / "r", saves(OLD))
    with pytest.raises((KeyboardInterrupt, BringupError), match=r"^$|cannot be written \(No space left on device\)"):
        directory.write(tmp_path / "r", {**saves(FRESH), "report.html": fails})
    assert runs(tmp_path / "r") == {text(OLD)} and os.listdir(tmp_path) == ["r"]


def test_lock_that_a_stopped_process_holds_is_waited_for_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "PATIENCE", 0.05)
    directory.write(tmp_path / "r", saves(OLD))
    with directory.locked(tmp_path / "r"):
        directory.write(tmp_path / "r", saves(FRESH))
    assert runs(tmp_path / "r") == {text(FRESH)}


def test_page_of_another_run_is_not_added(tmp_path: Path) -> None:
    target = tmp_path / "r"
    directory.write(target, saves(OLD))
    directory.add(target, "compare.html", text(OLD), OLD)
    directory.write(target, saves(FRESH))
    assert set(os.listdir(target)) == set(OUTPUTS), "the comparison was of the old run"
    with pytest.raises(BringupError, match="two runs"):
        directory.add(target, "compare.html", text(OLD), OLD)
    assert runs(target) == {text(FRESH)}


def test_links_are_followed_to_the_directory_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "r").symlink_to("there")
    directory.write(directory.prepare(str(tmp_path / "r")), saves(OLD))
    assert (tmp_path / "r").is_symlink() and runs(tmp_path / "there") == {text(OLD)}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "summary.json").write_text("mine")
    (tmp_path / "there" / NEW).symlink_to(tmp_path / "mine")
    directory.prepare(str(tmp_path / "r"))
    assert (tmp_path / "mine" / "summary.json").read_text() == "mine"


def test_left_over_files_are_removed_and_those_of_others_are_not(tmp_path: Path) -> None:
    target = tmp_path / "r"
    directory.write(target, saves(OLD))
    (target / ".trace.npz.12345").write_text("of a kill")
    (target / f".bringup-{'a' * 16}").write_text("of a kill")
    (target / f"{STAGE}abcdefgh" / "report").mkdir(parents=True)
    (tmp_path / f"{STAGE}abcdefgh").mkdir()
    (tmp_path / ".summary.json.7").write_text("not in a report's directory")
    with directory.locked(tmp_path / f"{STAGE}abcdefgh"):
        directory.prepare(str(target))
        assert set(os.listdir(tmp_path)) == {"r", ".summary.json.7", f"{STAGE}abcdefgh"}, "its owner is alive"
    directory.prepare(str(target))
    assert set(os.listdir(tmp_path)) == {"r", ".summary.json.7"} and runs(target) == {text(OLD)}
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(BringupError, match=r"is not a report's directory \(it holds thesis.tex\)"):
        directory.prepare(str(target))


def test_directory_that_cannot_take_a_report_is_told_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("missing")
    for name, problem in {
        "file": "is a file; the report needs a directory",
        "file/r": r"cannot take the report \(Not a directory\)",
        "loop": "is a link to nothing",
        "nowhere": "is a link to nothing",
        "x" * 300: r"cannot take the report \(File name too long\)",
        "/".join(["x" * 200] * 20): r"cannot take the report \(File name too long\)",
        "a\0b": "cannot take the report",
        "/proc/r": "cannot take the report",
    }.items():
        with pytest.raises(BringupError, match=problem) as caught:
            directory.prepare(os.path.join(tmp_path, name))
        assert "\n" not in str(caught.value)
    directory.write(directory.prepare(str(tmp_path / "new" / "and" / "deep")), saves(OLD))
    assert runs(tmp_path / "new" / "and" / "deep") == {text(OLD)}


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_read_only_folder_is_told_before_the_run(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BringupError, match=r"cannot take the report \(Permission denied\)"):
        directory.prepare(str(tmp_path / "r"))


# ---- bringup run

PROGRAM = "import torch\nx = torch.ones(64, 64, device='chip')\nfor i in range(3): y = (x @ x).relu()\n"


def test_report_is_where_it_was_asked_for_when_the_program_goes_elsewhere(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "p.py").write_text(f"import os\nos.chdir('elsewhere')\n{PROGRAM}")
    done = bringup_run("p.py")
    assert done.returncode == 0 and "report: bringup-p/report.html" in done.stdout, done.stderr
    assert set(os.listdir(tmp_path / "bringup-p")) == set(OUTPUTS) and not os.listdir(tmp_path / "elsewhere")


def test_names_are_printed_as_they_are(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "[bold]p:x:.py").write_text(PROGRAM)
    done = bringup_run("[bold]p:x:.py")
    assert "report: bringup-[bold]p:x:/report.html" in done.stdout, done.stderr
    out = "[/x]\n\x1b]0;t\x07" + "long" * 40
    done = bringup_run("--out", out, "[bold]p:x:.py")
    shown = out.replace("\n", r"\n").replace("\x1b", r"\x1b").replace("\x07", r"\x07")
    assert done.returncode == 0 and f"report: {shown}/report.html" in done.stdout, done.stderr
    assert set(os.listdir(tmp_path / out)) == set(OUTPUTS)


def test_name_that_is_no_text_is_reported(tmp_path: Path) -> None:
    script = os.fsencode(tmp_path) + b"/p\xff<b>.py"
    with open(script, "w") as file:
        file.write(PROGRAM)
    command = [sys.executable, "-m", "bringup"]
    done = subprocess.run(
        [*command, "run", script], capture_output=True, text=True, cwd=tmp_path, env=without_bringup()
    )
    assert done.returncode == 0 and r"report: bringup-p\udcff<b>/report.html" in done.stdout, done.stderr
    folder = os.fsencode(tmp_path) + b"/bringup-p\xff<b>"
    assert {os.fsdecode(name) for name in os.listdir(folder)} == set(OUTPUTS)
    packed = (Path(os.fsdecode(folder)) / "timeline.pftrace.gz").read_bytes()
    assert rb"p\udcff<b>.py:" in gzip.decompress(packed)
    done = subprocess.run(
        [*command, "compare", folder], capture_output=True, text=True, cwd=tmp_path, env=without_bringup()
    )
    assert done.returncode == 0, done.stderr
    page = (Path(os.fsdecode(folder)) / "compare.html").read_text()
    assert "<b>.py" not in page and r"p\udcff&lt;b&gt;.py" in page


def test_full_disk_leaves_the_old_report_and_is_one_sentence(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(PROGRAM)
    assert bringup_run("p.py").returncode == 0
    before = {name: (tmp_path / "bringup-p" / name).read_bytes() for name in OUTPUTS}
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
    (tmp_path / "p.py").write_text(limit + PROGRAM)
    done = bringup_run("--out", "bringup-p", "p.py")
    sentence = rf"bringup: {re.escape(str(tmp_path))}/bringup-p/report\.html: cannot be written \(File too large\)\n"
    assert done.returncode == 2 and re.fullmatch(sentence, done.stderr), done.stderr
    assert {name: (tmp_path / "bringup-p" / name).read_bytes() for name in OUTPUTS} == before
    assert set(os.listdir(tmp_path / "bringup-p")) == set(OUTPUTS)


def test_directory_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(PROGRAM)
    script = f"cd gone && rmdir ../gone && {sys.executable} -m bringup run {tmp_path}/p.py"
    (tmp_path / "gone").mkdir()
    done = subprocess.run(script, shell=True, capture_output=True, text=True, cwd=tmp_path, env=without_bringup())
    assert done.returncode == 2 and done.stderr.startswith("bringup: ") and done.stderr.count("\n") == 1, done.stderr


def test_runs_that_start_at_once_in_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    many = "import sys\nfrom bringup.report import directory\nfor _ in range(300): directory.prepare(sys.argv[1])"
    starts = [
        subprocess.Popen([sys.executable, "-c", many, str(tmp_path / str(number))], stderr=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    assert [start.communicate()[1] for start in starts] == ["", "", ""]


def test_path_through_a_link_is_the_systems(tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "inner")
    assert directory.prepare(str(tmp_path / "link" / ".." / "r")) == tmp_path / "real" / "r"


def test_fork_of_the_program_leaves_the_report_to_its_parent(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(
        "import os, sys, time, torch\nx = torch.ones(8, device='chip')\n"
        "if os.fork() == 0:\n    sys.exit(0)\nos.wait()\nfor _ in range(20): x = x + 1\ntorch.chip.synchronize()\n"
    )
    done = bringup_run("p.py")
    assert done.returncode == 0 and done.stdout.count("report:") == 1, done.stdout + done.stderr
    assert json.loads((tmp_path / "bringup-p" / "summary.json").read_text())["launches"] >= 20
