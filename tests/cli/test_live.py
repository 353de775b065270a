"""The terminal's last line while a program runs."""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from bringup.cli import live
from bringup.machine.files import load_chip, load_host
from tests.conftest import without_bringup

PROGRAM = """
import time, torch
model = torch.nn.Linear(64, 64).to("chip")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(50):
    optimizer.zero_grad()
    model(torch.randn(8, 64).to("chip")).square().mean().backward()
    optimizer.step()
    time.sleep(0.06)
print("the program's own line")
"""
RUN = [sys.executable, "-m", "bringup", "run", "--chip", "t4", "--live", "train.py"]


def in_a_terminal(folder: Path) -> str:
    """What the program and the line write to a terminal of 100 columns and 30 rows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    process = subprocess.Popen(RUN, cwd=folder, env=without_bringup(), stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


def test_line_has_steps_memory_and_fallbacks_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM, encoding="utf-8")
    shown = in_a_terminal(tmp_path)
    line = r"t4: step \d+, [\d.]+ us each, memory [\d.]+ MiB, [\d.]+ MiB at the peak, no fallbacks"
    assert re.search(rf"\x1b7\x1b\[30;1H\x1b\[K\x1b\[2m{line}\x1b\[0m\x1b8", shown), shown
    assert "\x1b[1;29r" in shown and shown.rindex("\x1b[r") > shown.rindex("at the peak, no fallbacks")
    assert shown.index("the program's own line") < shown.rindex("\x1b[r") < shown.index("report: ")
    live = json.loads((tmp_path / "bringup-train" / "summary.json").read_text())
    done = subprocess.run(RUN, cwd=tmp_path, env=without_bringup(), capture_output=True, text=True)
    assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr  # quiet in pipes
    assert done.stderr == ""
    assert json.loads((tmp_path / "bringup-train" / "summary.json").read_text())["run"] == live["run"]


def test_line_and_the_programs_clocks_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("", encoding="utf-8")
    command = [*RUN[:-1], "--chip-time", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, env=without_bringup(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("bringup: --live reads the recording beside the program")


def test_time_of_a_step_stays_while_a_step_is_under_way() -> None:
    progress = live.Progress(load_chip("t4"), load_host(), "modelled")
    lines = []
    for steps, seconds in [(0, 5.0), (1, 7.0), *((1, 7.5),) * 20, (2, 9.0), *((2, 9.5),) * 20, (3, 11.0)]:
        progress.follow(steps, seconds)
        lines.append(progress.time(steps, seconds))
    assert lines[1] == "t4: 7.0 s predicted so far, 0 launches"
    assert set(lines[22:-1]) == {"t4: step 2, 2.0 s each"} and lines[-1] == "t4: step 3, 2.0 s each"


def test_terminal_that_has_gone_ends_the_line_only(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    monkeypatch.setattr(live, "INTERVAL", 0.001)
    progress: Any = live.Progress(load_chip("t4"), load_host(), "modelled")
    monkeypatch.setattr(progress, "line", lambda: "text")
    terminal = os.fdopen(theirs, "w")
    following = live.Live(progress, terminal)
    with following:
        os.read(ours, 1)
        os.close(ours)
        assert following.thread is not None
        following.thread.join(60)
        assert not following.thread.is_alive()
    with contextlib.suppress(OSError):
        terminal.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12
def test_child_of_a_fork_follows_nothing_and_later_forks_pay_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setattr(live, "INTERVAL", 0.001)
    progress: Any = live.Progress(load_chip("t4"), load_host(), "modelled")
    monkeypatch.setattr(progress, "line", lambda: "")
    with os.fdopen(theirs, "w") as terminal:
        following = live.Live(progress, terminal)
        live._hook_forks()
        registered: list[Any] = []
        for _ in range(3):
            with monkeypatch.context() as patch:
                patch.setattr(os, "register_at_fork", lambda **hooks: registered.append(hooks))
                with following:
                    child = os.fork()
                    if not child:  # the lock is free here, and no thread is to be ended
                        os._exit(not (following.reading.acquire(timeout=10) and following.thread is None))
                    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                    assert following.thread is not None and following.thread.is_alive()
            assert following.thread is None and live._following == live._held == []
            following = live.Live(progress, terminal)
        assert registered == [], "a later recording registers no further hooks"
    os.close(ours)
