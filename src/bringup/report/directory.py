"""A report's directory: its files appear together or not at all, and files of two runs are detected.

Note [Files that appear together]
All files are first written into a stage, a folder with a random name. Then they are moved to their final place:

- If the directory does not exist, the stage is beside it, and one rename creates the directory with all its files.
- If it exists, the stage is inside it (the directory may be a mount point, or its parent may be read-only). One rename
  calls the new files ``.bringup-new``: from then on they are the report. Then each of them replaces the old file.

No system call exchanges four files at once. A run that is killed between two of those renames leaves ``.bringup-new``,
and the next run or reader finishes the renames. A reader without write permission sees files of two runs and reports
this. It compares the id of the run, which is in every file, including the page of `bringup compare`.

A lock on the directory separates processes that replace or read files at the same time. It ends with its process, and
waiting for it has a time limit. If several runs use one directory, the complete report of the last one stays. Every
stage is locked by its run. A stage without a lock is left over from a killed run, and the next run removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from bringup.errors import BringupError
from bringup.files import OURS, current_directory, read_bytes

OUTPUTS = ("trace.npz", "summary.json", "timeline.pftrace.gz", "report.html")
ADDED = ("compare.html",)  # `bringup compare` adds it to a report later
PLANS = ("plan.toml", "plan.html")  # plans in a report's directory stay when the program runs again
CARD = ("scorecard.json", "scorecard.html", "scorecard.svg")
STAGE, NEW = f"{OURS}stage-", f"{OURS}new"
PATIENCE = 10.0  # seconds to wait for another process's renames, which take microseconds unless it is stopped
# Temporary files of a killed process: those of `files.written_whole`, and those of earlier versions.
_LEFT_OVER = re.compile(
    rf"\.({'|'.join(map(re.escape, (*OUTPUTS, *ADDED, *CARD)))})\.\d+|{re.escape(OURS)}[0-9a-f]{{16}}"
)
_RUN = re.compile(rb'(?:"run": "|name="bringup-run" content="|^\x1f\x8b.{8}timeline-)([0-9a-f]+)', re.DOTALL)


# ---- before the run


def prepare(out: str, allowed: tuple[str, ...] | None = (*OUTPUTS, *ADDED, *PLANS)) -> Path:
    """Check before a long run that the directory can take its report, and remove leftovers of killed runs.

    Args:
        out: as the user gave it.
        allowed: names of files that may already be in it; None allows all names.

    Returns:
        its absolute path, which stays valid if the program changes its working directory.

    Raises:
        BringupError: it is a file, holds other files, or cannot be written.
    """
    target = Path(out if os.path.isabs(out) else os.path.join(current_directory(), out))
    if os.pardir in target.parts:  # after a symbolic link, ".." is not the parent in the text
        target = Path(os.path.realpath(target))
    try:
        is_there = _is_there(out, target)
        for folder in (target, target.parent):
            _sweep(folder, files=folder == target)
        if is_there and allowed is not None:
            _refuse_foreign(out, target, allowed)
        if is_there:
            with locked(target):
                _finish(target)
        folder = next(path for path in (target, *target.parents) if path.is_dir())
        os.rmdir(tempfile.mkdtemp(prefix=f"{OURS}try-", dir=folder))
    except (OSError, ValueError) as error:
        raise BringupError(
            f"{out}: cannot take the report ({_reason(error)}): give another directory with --out"
        ) from None
    return target


def _is_there(out: str, target: Path) -> bool:
    if not target.is_dir() and os.path.lexists(target):
        problem = "is a file" if target.exists() else "is a link to nothing"
        raise BringupError(f"{out}: {problem}; the report needs a directory: give another one with --out")
    with suppress(FileNotFoundError):
        os.stat(target / f"{STAGE}12345678" / NEW / f"{OURS}0123456789abcdef")  # raises if the longest path is too long
    return target.is_dir()


def _refuse_foreign(out: str, target: Path, allowed: tuple[str, ...]) -> None:
    foreign = sorted(name for name in os.listdir(target) if name not in allowed and not name.startswith(OURS))
    if foreign:
        raise BringupError(
            f"{out}: is not a report's directory (it holds {foreign[0]}): give another one with --out, or empty it"
        )


def _sweep(folder: Path, *, files: bool) -> None:
    """Remove leftovers of killed runs: stages without a lock, and temporary files of a report."""
    names = os.listdir(folder) if os.access(folder, os.R_OK | os.W_OK | os.X_OK) else []
    for name in names:
        path = folder / name
        with suppress(OSError):  # another run has locked it, or it belongs to another user
            if name.startswith(STAGE):
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
                finally:
                    os.close(descriptor)
            elif files and _LEFT_OVER.fullmatch(name):
                path.unlink()


# ---- after the run


def write(target: Path, files: Mapping[str, Callable[[Path], None]]) -> None:
    """Write files and place them into a directory together, replacing older ones.

    Args:
        target: the directory; created if it does not exist.
        files: file name -> function that writes the file to a path.

    Raises:
        BringupError: a file cannot be written; the directory stays unchanged.
    """
    try:
        with _stage(target) as stage:
            new = stage / "report"
            new.mkdir()
            for name, save in files.items():
                _save(save, new / name, target / name)
            _swap(new, target)
    except OSError as error:
        raise BringupError(f"{target}: cannot be written ({_reason(error)}): give another directory") from None


def _save(save: Callable[[Path], None], path: Path, target: Path) -> None:
    try:
        save(path)
    except BringupError as error:  # the message names the final place, which the user knows
        raise BringupError(str(error).replace(str(path), str(target))) from None


def add(target: Path, name: str, text: str, run: str) -> None:
    """Add a page about a run to its report's directory.

    Raises:
        BringupError: it cannot be written, or the report now belongs to another run.
    """
    try:
        with _stage(target) as stage, locked(target):
            (stage / name).write_text(text, encoding="utf-8")
            check_run(target, run)
            os.replace(stage / name, target / name)
    except OSError as error:
        raise BringupError(f"{target / name}: cannot be written ({_reason(error)})") from None


@contextmanager
def _stage(target: Path) -> Iterator[Path]:
    """Create a stage in the directory, or beside it if it does not exist; remove the stage at the end. See the Note."""
    target.parent.mkdir(parents=True, exist_ok=True)
    while True:
        stage = tempfile.mkdtemp(prefix=STAGE, dir=target if target.is_dir() else target.parent)
        with suppress(FileNotFoundError):  # another run removed it before it was locked
            descriptor = os.open(stage, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            _lock(descriptor)
            if os.path.isdir(stage):
                break
            os.close(descriptor)
    try:
        yield Path(stage)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        os.close(descriptor)


def _swap(new: Path, target: Path) -> None:
    if not target.is_dir():
        try:
            with _uninterrupted():
                os.rename(new, target)
            return
        except OSError:
            if not target.is_dir():  # otherwise another run has created it
                raise
    with locked(target), _uninterrupted():
        _finish(target)
        os.rename(new, target / NEW)
        _finish(target)


def _finish(target: Path) -> None:
    """Replace the old files by the complete new ones of this run, or of a run that was killed while doing so."""
    new = target / NEW
    if new.is_symlink() or not new.is_dir():
        return
    if (new / "trace.npz").exists():
        for name in ADDED:  # they belong to the old report
            (target / name).unlink(missing_ok=True)
    for name in sorted(os.listdir(new)):
        with suppress(FileNotFoundError):
            os.replace(new / name, target / name)
    new.rmdir()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore the signals that end a program; the block takes microseconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# ---- readers


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Prevent other processes from replacing files of a directory during the block."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock a folder, or go on without the lock after `PATIENCE`: it only matters for processes at the same moment."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                return
            time.sleep(0.01)
        except OSError:  # the file system has no locks: the last run wins
            return


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[str], None]]:
    """Lock a report while it is read; yield a function that refuses files of another run than the id that it gets."""
    with locked(folder):
        with suppress(OSError):  # without write permission, only the ids are checked
            _finish(folder)
        yield lambda run: check_run(folder, run)


def check_run(folder: Path, run: str) -> None:
    """Refuse a directory that holds files of another run.

    Raises:
        BringupError: a file belongs to another run; the message names it.
    """
    for name in (*OUTPUTS[1:], *ADDED):
        other = _run_of(folder / name)
        if other is not None and other != run:
            raise BringupError(
                f"{folder}: holds files of two runs ({name} and trace.npz differ): "
                "run the program again, or give the trace file itself"
            )


def _run_of(path: Path) -> str | None:
    """Return the run's id in a file, "" if it has none; None if the file does not exist."""
    if not path.exists():
        return None
    match = _RUN.search(read_bytes(path, "report"))
    return match[1].decode() if match else ""


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
