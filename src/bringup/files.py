"""Reading files that people exchange, and writing files atomically."""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bringup.errors import BringupError
from bringup.limits import BYTES
from bringup.text import short, size

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

StrPath = str | os.PathLike[str]
OURS = ".bringup-"  # prefix of our temporary files and folders
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# tomllib's time grows with the square of the number of parts of a key. Keys of our files have at most four parts.
_DEEP_KEY = re.compile(r"(?<![\w\"'-])(?:[\w\"'-]+[ \t]*\.[ \t]*){16}")
_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # refused even if the shell redirects a regular file to them


def current_directory() -> str:
    """Return the current directory.

    Raises:
        BringupError: the directory was removed.
    """
    try:
        return os.getcwd()
    except OSError:
        raise BringupError("the current directory was removed: change to another one (cd), and try again") from None


def read_bytes(path: StrPath, what: str, error: type[BringupError] = BringupError) -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: the file, or a link to it.
        what: the kind of file, a key of `limits.BYTES`, which bounds its size.
        error: the type of error to raise.

    Raises:
        BringupError: the file is missing, not a regular file, too large, or cannot be read.
    """
    try:
        _refuse_other_kinds(os.stat(path), path, what, error)  # before opening: to open a device can have effects
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # else a pipe would block here
        try:
            _refuse_other_kinds(os.fstat(descriptor), path, what, error)
            return _read(descriptor, path, what, error)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise error(f"{path}: there is no such {what}") from None
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read ({getattr(problem, 'strerror', None) or problem})") from None


def _refuse_other_kinds(status: os.stat_result, path: StrPath, what: str, error: type[BringupError]) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if os.path.normpath(path).startswith(_STREAMS):
        raise error(f"{path}: is an input stream; give the path of a {what}")
    if kind != stat.S_IFREG:
        raise error(f"{path}: is {_KINDS.get(kind, 'not a regular file')}; give the path of a {what}")


def _read(descriptor: int, path: StrPath, what: str, error: type[BringupError]) -> bytes:
    limit = BYTES[what]
    pieces, total = [], 0
    while piece := os.read(descriptor, min(limit.most + 1 - total, 1 << 24)):
        pieces.append(piece)
        total += len(piece)
        if total > limit.most:
            raise error(f"{path}: is larger than {size(limit.most)}, the largest size of a {what} ({limit.why})")
    return b"".join(pieces)


def read_text(path: StrPath, what: str, error: type[BringupError] = BringupError) -> str:
    """Return the text of a regular UTF-8 file; see `read_bytes` for the arguments and errors."""
    try:
        return read_bytes(path, what, error).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: is not a {what}: it is not UTF-8 text ({problem.reason})") from None


def parse_toml(text: str, path: StrPath, remedy: str, error: type[BringupError] = BringupError) -> dict[str, Any]:
    """Return the contents of a TOML file.

    Args:
        text: of the file.
        path: its path, for messages.
        remedy: for a file that is nested too deeply.
        error: the type of error to raise.

    Raises:
        BringupError: the text is not valid TOML, or nested too deeply.
    """
    try:
        if _DEEP_KEY.search(text):
            raise RecursionError
        return tomllib.loads(text)
    except ValueError as problem:
        raise error(f"{path}: is not valid TOML: {short(str(problem), 200)}") from None
    except RecursionError:
        raise error(f"{path}: is nested too deeply: {remedy}") from None


def refuse_unwritable(*paths: StrPath) -> None:
    """Raise an error for files that cannot be written, before the work that produces their contents.

    Raises:
        BringupError: the folder is missing or cannot be written, or the path is not that of a regular file.
    """
    for path in paths:
        _temporary_file(Path(path)).unlink()


@contextmanager
def written_whole(path: StrPath) -> Iterator[str]:
    """Yield the name of a temporary file beside ``path``, and rename it to ``path`` if the block raises no error.

    In a folder that others can write, the temporary name must not be predictable, and a link is never followed.
    """
    target = Path(path)
    temporary = _temporary_file(target)
    try:
        yield str(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise BringupError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_file(target: Path) -> Path:
    try:
        return _create_beside(target)
    except (OSError, ValueError) as error:
        raise BringupError(f"{target}: cannot be written ({getattr(error, 'strerror', None) or error})") from None


def _create_beside(target: Path) -> Path:
    """Create an empty file in the target's folder."""
    if target.exists() and not target.is_file():
        raise BringupError(f"{target}: is not a regular file; give the path of a file to write")
    temporary = target.with_name(f"{OURS}{secrets.token_hex(8)}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    return temporary


def write_text(path: StrPath, text: str) -> None:
    """Write a text file; after an error the old file is unchanged."""
    with written_whole(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")
