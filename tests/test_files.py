"""Reading files of others, and writing files whole or not at all."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bringup.errors import BringupError
from bringup.files import read_bytes, read_text, refuse_unwritable, write_text
from bringup.text import plain, short

Refused = Callable[..., "subprocess.CompletedProcess[str]"]


def test_plain_escapes_what_controls_a_terminal() -> None:
    assert plain("a\x1b[2J\r\n\u202egpj.exe\udcff") == r"a\x1b[2J\r\n\u202egpj.exe\udcff"
    assert plain("naïve 日本 שלום [red] <b>") == "naïve 日本 שלום [red] <b>"
    assert short("x" * 100, 10) == "xxxxxxx..."


def test_file_that_grows_while_it_is_read_ends_at_the_limit() -> None:
    with pytest.raises(BringupError, match="is a device"):
        read_bytes("/dev/zero", "scorecard")
    with pytest.raises(BringupError, match=r"(is larger than 1\.00 MiB|cannot be read|no such)"):
        read_bytes("/proc/kcore", "chip file")  # a regular file, by what it says, of 128 TiB


def test_text_that_is_no_utf8_is_told(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BringupError, match=r"c\.toml: is not a chip file: it is not UTF-8 text"):
        read_text(tmp_path / "c.toml", "chip file")


def test_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half" * 10_000 + "\udcff")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["page.html"]
    os.umask(mask := os.umask(0))
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, problem in {
        tmp_path / "pipe": "is not a regular file",
        tmp_path: "is not a regular file",
        tmp_path / "nowhere" / "page.html": "cannot be written",
        tmp_path / ("x" * 300): "cannot be written",
    }.items():
        with pytest.raises(BringupError, match=problem):
            write_text(path, "text")
        with pytest.raises(BringupError, match=problem):
            refuse_unwritable(path)
    refuse_unwritable(tmp_path / "page.html")
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize(
    "command",
    [("check", "--only", "A1", "--json"), ("validate", "--html"), ("validate", "--programs", "--html")],
    ids=" ".join,
)
def test_unwritable_results_are_refused_beforehand(command: tuple[str, ...], tmp_path: Path, refused: Refused) -> None:
    done = refused(*command, "nowhere/x")
    sentence = "bringup: nowhere/x: cannot be written (No such file or directory)\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)
    assert not list(tmp_path.rglob("*"))


def test_link_with_the_name_of_a_temporary_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda size: "foreseen")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".bringup-foreseen").symlink_to("mine")
    with pytest.raises(BringupError, match=r"page\.html: cannot be written \(File exists\)"):
        write_text(tmp_path / "page.html", "text")
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / ".bringup-foreseen").is_symlink()
