"""Reading files that people exchange, and writing files whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bringup.errors import BringupError
from bringup.limits import BYTES
from bringup.text import size

StrPath = str | os.PathLike[str]
OURS = ".bringup-"  # how the names of our temporary files and folders begin
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # the process's own, even if a file was given as input


def current_directory() -> str:
    """Return the current directory.

    Raises:
        BringupError: it was removed.
    """
    try:
        return os.getcwd()
    except OSError:
        raise BringupError("the current directory was removed: change to another one (cd), and try again") from None


def read_bytes(path: StrPath, what: str, error: type[BringupError] = BringupError) -> bytes:
    """Return what a regular file holds.

    Args:
        path: a link to a regular file is one, too.
        what: key of `limits.BYTES`: what the file is meant to be, and so how large it may be.
        error: type of the error.

    Raises:
        BringupError: it is missing, no regular file, too large, or cannot be read.
    """
    try:
        _refuse_other_kinds(os.stat(path), path, what, error)  # opening a device may do something
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
        try:
            _refuse_other_kinds(os.fstat(descriptor), path, what, error)
            return _read(descriptor, path, what, error)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise error(f"{path}: there is no such {what}") from None
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read ({getattr(problem, 'strerror', None) or problem})") from None


def _refuse_other_kinds(found: os.stat_result, path: StrPath, what: str, error: type[BringupError]) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if os.path.normpath(path).startswith(_STREAMS):
        raise error(f"{path}: is an input stream; give the path of a {what}")
    if kind != stat.S_IFREG:
        raise error(f"{path}: is {_KINDS.get(kind, 'no regular file')}; give the path of a {what}")


def _read(descriptor: int, path: StrPath, what: str, error: type[BringupError]) -> bytes:
    limit = BYTES[what]
    pieces, total = [], 0
    while piece := os.read(descriptor, min(limit.most + 1 - total, 1 << 24)):
        pieces.append(piece)
        total += len(piece)
        if total > limit.most:
            raise error(f"{path}: is larger than {size(limit.most)}, the most that a {what} may have ({limit.why})")
    return b"".join(pieces)


def read_text(path: StrPath, what: str, error: type[BringupError] = BringupError) -> str:
    """Return the text of a regular file in UTF-8; the arguments and errors are those of `read_bytes`."""
    try:
        return read_bytes(path, what, error).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: is no {what}: it is not text in UTF-8 ({problem.reason})") from None


def refuse_unwritable(*paths: StrPath) -> None:
    """Refuse files that cannot be written, before hours of work whose result they should take.

    Raises:
        BringupError: there is no such folder, it cannot be written, or the path is no regular file's.
    """
    for path in paths:
        _made(Path(path)).unlink()


@contextmanager
def written_whole(path: StrPath) -> Iterator[str]:
    """Yield the name of a temporary file beside ``path``; it takes the name of ``path`` when the block ends well.

    The temporary name cannot be foreseen and is never followed if it is a link, for folders that others can write.
    """
    target = Path(path)
    temporary = _made(target)
    try:
        yield str(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise BringupError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _made(target: Path) -> Path:
    try:
        return _fresh(target)
    except (OSError, ValueError) as error:
        raise BringupError(f"{target}: cannot be written ({getattr(error, 'strerror', None) or error})") from None


def _fresh(target: Path) -> Path:
    """Make an empty file beside the target."""
    if target.exists() and not target.is_file():
        raise BringupError(f"{target}: is no regular file; give the path of a file to write")
    temporary = target.with_name(f"{OURS}{secrets.token_hex(8)}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    return temporary


def write_text(path: StrPath, text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_whole(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")
