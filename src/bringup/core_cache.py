"""The user's cache of C++ libraries: one that fits is found there, or built once for all processes."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bringup.core_build import PACKAGE, BuildError, Library, compile_library, compiler, compiler_version, log_of


def cache_folder() -> Path:
    """Return the folder of cached libraries: below ``XDG_CACHE_HOME``, else below ``~/.cache``.

    Raises:
        BuildError: there is neither of them as an absolute path.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # as the XDG base directory specification has it
        base = os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        raise BuildError("there is no home directory to cache C++ libraries in: set XDG_CACHE_HOME to an absolute path")
    return Path(base) / "bringup" / "core"


def find(library: Library) -> Path | None:
    """Return a compiled library: that of the installation, else a cached one of this compiler, else of another."""
    packaged = PACKAGE / library.file
    if packaged.exists():
        return packaged
    with contextlib.suppress(BuildError):
        cached = sorted(filter(_is_ours, cache_folder().glob(f"*/{library.file}")))
        if len(cached) > 1:
            with contextlib.suppress(BuildError):
                version = compiler_version(compiler())
                cached.sort(key=lambda path: path.parent.name != version)
        return cached[0] if cached else None
    return None


def _is_ours(path: Path) -> bool:
    """Return True if nobody else can have written the file: it will be loaded into this process."""
    return all(
        status.st_uid in (os.getuid(), 0) and not status.st_mode & 0o022
        for status in (os.stat(path), os.stat(path.parent), os.stat(path.parent.parent))
    )


def build_into_cache(library: Library, *, again: bool = False) -> Path:
    """Compile a library into the user's cache, once for all processes that ask at the same time; return its path.

    What happens is told on stderr.

    Args:
        library: what to compile.
        again: try it, too, if the same compiler has failed before.

    Raises:
        BuildError: the cache cannot be written, or the library cannot be built.
    """
    version = compiler_version(compiler())
    folder = cache_folder() / version
    path = folder / library.file
    with _writable(folder, library), _locked(folder):
        if path.exists() and _is_ours(path):  # another process has built it meanwhile
            return path
        if log_of(path).exists() and not again:
            raise BuildError(
                f"an earlier attempt to build {library.title} with {version} has failed ({log_of(path)}): "
                "BRINGUP_BUILD=1 tries again"
            )
        library.command(path)  # raises if a tool is missing
        _print(f"building {library.title} with {version}, once; this takes up to a minute (BRINGUP_BUILD=0 forbids it)")
        start = time.monotonic()
        compile_library(library, folder, wait=_progress if sys.stderr.isatty() else None)
        _print(f"built {library.title} ({time.monotonic() - start:.0f} s): {path}")
        return path


@contextlib.contextmanager
def _writable(folder: Path, library: Library) -> Iterator[None]:
    """Create the folder, for this user alone; say in one sentence if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for each in (folder, folder.parent):
            each.chmod(0o700)
        yield
    except OSError as error:
        raise BuildError(
            f"{library.title} has to be built, and {folder} cannot be written ({error.strerror or error}): "
            "set XDG_CACHE_HOME to a folder that can be"
        ) from None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. The system takes it from a process that dies."""
    import fcntl

    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _print("another process is building it; waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _print(sentence: str) -> None:
    print(f"bringup: {sentence}", file=sys.stderr, flush=True)


def _progress(passed: str) -> None:
    print(f"\r{passed}\r", end="", file=sys.stderr, flush=True)
