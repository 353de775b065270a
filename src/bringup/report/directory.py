"""A report's directory: its files appear together or not at all, and a mixture of two runs is noticed.

Note [Files that appear together]
All files are written into a stage, a folder of ours whose name cannot be foreseen. Then they are swapped in:

- The directory is not there yet: the stage is beside it, and one rename makes the directory with all of its files.
- It is there: the stage is inside (the directory may be a mount point, or its parent read-only). One rename calls the
  new files ``.bringup-new``: from then on they are the report. Then each takes the place of its old form.

No system call exchanges four files at once. A run that is killed between two of those renames leaves ``.bringup-new``,
and the next run or reader goes on where it ended. A reader that may not write sees files of two runs and says so. It
knows by the run's id, which every file carries, the page of `bringup compare` too.

A lock of the directory keeps those apart that swap or read at the same time. It ends with its process, and nobody waits
for it long. Of several runs into one directory the report of the last one stays, whole. Every stage is locked by its
owner: one that is not is left over from a run that was killed, and the next run removes it.
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

OUTPUTS = ("trace.npz", "summary.json", "timeline.json", "report.html")
ADDED = ("compare.html",)  # to a report, later
CARD = ("scorecard.json", "scorecard.html", "scorecard.svg")
STAGE, NEW = f"{OURS}stage-", f"{OURS}new"
PATIENCE = 10.0  # seconds for the renames of others, which take microseconds, unless their process is stopped
# Files that a kill leaves: of `files.written_whole`, and of earlier versions.
_LEFT_OVER = re.compile(
    rf"\.({'|'.join(map(re.escape, (*OUTPUTS, *ADDED, *CARD)))})\.\d+|{re.escape(OURS)}[0-9a-f]{{16}}"
)
_RUN = re.compile(rb'(?:"run": |name="bringup-run" content=)"([0-9a-f]+)"')


# ---- before the run


def prepare(out: str, own: tuple[str, ...] | None = (*OUTPUTS, *ADDED)) -> Path:
    """Refuse a directory that cannot take the files, before hours of running; tidy up after runs that were killed.

    Args:
        out: as the user gave it.
        own: the names that it may hold already; None: any.

    Returns:
        its absolute path: the program may change to another directory.

    Raises:
        BringupError: it is a file, holds something else, or cannot be written.
    """
    target = Path(out if os.path.isabs(out) else os.path.join(current_directory(), out))
    if os.pardir in target.parts:  # which a link may lead elsewhere than the text says
        target = Path(os.path.realpath(target))
    try:
        is_there = _is_there(out, target)
        for folder in (target, target.parent):
            _sweep(folder, files=folder == target)
        if is_there and own is not None:
            _refuse_foreign(out, target, own)
        if is_there:
            with locked(target):
                _finish(target)
        folder = next(path for path in (target, *target.parents) if path.is_dir())
        os.rmdir(tempfile.mkdtemp(prefix=f"{OURS}try-", dir=folder))
    except (OSError, ValueError) as error:
        raise BringupError(f"{out}: cannot take the report ({_reason(error)}): give another with --out") from None
    return target


def _is_there(out: str, target: Path) -> bool:
    if not target.is_dir() and os.path.lexists(target):
        what = "a file" if target.exists() else "a link to nothing"
        raise BringupError(f"{out}: is {what}; the report needs a directory: give another with --out")
    with suppress(FileNotFoundError):
        os.stat(target / f"{STAGE}12345678" / NEW / f"{OURS}0123456789abcdef")  # is the longest path short enough?
    return target.is_dir()


def _refuse_foreign(out: str, target: Path, own: tuple[str, ...]) -> None:
    foreign = sorted(name for name in os.listdir(target) if name not in own and not name.startswith(OURS))
    if foreign:
        raise BringupError(
            f"{out}: is not a report's directory (it holds {foreign[0]}): give another with --out, or empty it"
        )


def _sweep(folder: Path, *, files: bool) -> None:
    """Remove what runs that were killed have left: stages without an owner, and a report's temporary files."""
    names = os.listdir(folder) if os.access(folder, os.R_OK | os.W_OK | os.X_OK) else []
    for name in names:
        path = folder / name
        with suppress(OSError):  # it has an owner, or is somebody else's
            if name.startswith(STAGE):
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
                finally:
                    os.close(descriptor)
            elif files and _LEFT_OVER.fullmatch(name):
                path.unlink()


# ---- after it


def write(target: Path, files: Mapping[str, Callable[[Path], None]]) -> None:
    """Write files, and put them into a directory together in place of those that are there.

    Args:
        target: the directory, made if it is not there.
        files: file name -> what writes it to a path.

    Raises:
        BringupError: a file cannot be written; the directory is as it was.
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
    except BringupError as error:  # people know the file by where it was to go
        raise BringupError(str(error).replace(str(path), str(target))) from None


def add(target: Path, name: str, text: str, run: str) -> None:
    """Put a page about a run into its report's directory.

    Raises:
        BringupError: it cannot be written, or the report is of another run by now.
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
    """Make a folder in the directory, or beside it if there is none, that is removed in the end; see the Note."""
    target.parent.mkdir(parents=True, exist_ok=True)
    while True:
        stage = tempfile.mkdtemp(prefix=STAGE, dir=target if target.is_dir() else target.parent)
        with suppress(FileNotFoundError):  # swept by another run before it was locked
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
            if not target.is_dir():  # else another run has made it
                raise
    with locked(target), _uninterrupted():
        _finish(target)
        os.rename(new, target / NEW)
        _finish(target)


def _finish(target: Path) -> None:
    """Put new files that are whole in the place of the old ones: of this run, or of one that was killed here."""
    new = target / NEW
    if new.is_symlink() or not new.is_dir():
        return
    if (new / "trace.npz").exists():
        for name in ADDED:  # to the old report
            (target / name).unlink(missing_ok=True)
    for name in (*OUTPUTS, *CARD):
        with suppress(FileNotFoundError):
            os.replace(new / name, target / name)
    new.rmdir()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore the signals that end a program, for microseconds."""
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
    """Keep others from swapping files of a directory inside the block."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock a folder, with patience: without the lock only two at the very same moment are in each other's way."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                return
            time.sleep(0.01)
        except OSError:  # a file system without locks: the last one wins
            return


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[str], None]]:
    """Keep a report as it is while it is read; yields what refuses files that are not of a run, by its id."""
    with locked(folder):
        with suppress(OSError):  # may not write: then the ids tell
            _finish(folder)
        yield lambda run: check_run(folder, run)


def check_run(folder: Path, run: str) -> None:
    """Refuse a directory that holds files of another run.

    Raises:
        BringupError: a file is of another run; the message names it.
    """
    for name in (*OUTPUTS[1:], *ADDED):
        other = _run_of(folder / name)
        if other is not None and other != run:
            raise BringupError(
                f"{folder}: holds files of two runs, {name} is not of the run that trace.npz is of: "
                "run the program again, or give the trace file itself"
            )


def _run_of(path: Path) -> str | None:
    """Return the id in a file, "" if it has none; None if there is no such file."""
    if not path.exists():
        return None
    match = _RUN.search(read_bytes(path, "report"))
    return match[1].decode() if match else ""


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
