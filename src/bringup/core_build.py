"""Compiles the C++ libraries, at installation or at first use into the user's cache: the core, and the replay.

The name of a library's file says what it fits. The core's has a torch release, a hash of the sources, and a Python;
the replay's has the hash alone. `setup.py` runs this file by its path, so it imports nothing but Python's own modules.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
OLDEST_TORCH = (2, 10)
NEWEST_TESTED = (2, 15)
TORCH_RANGE = f"torch {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} to {NEWEST_TESTED[0]}.{NEWEST_TESTED[1]}"
NEEDS_TORCH = f"this needs PyTorch ({TORCH_RANGE}), and this environment has none: pip install torch"
SOURCES, FLAGS = (".h", ".cpp", ".inc"), ("flags", "link_flags")
LIBRARIES = ("-lc10", "-ltorch_cpu", "-ltorch")
Tell = Callable[[str], None]


class BuildError(RuntimeError):
    """A library cannot be built; one sentence says why, and what to do."""


@dataclass(frozen=True)
class Torch:
    """A torch installation, as far as the core depends on it.

    Attributes:
        home: the folder of the package.
        version: as ``torch.__version__`` says it.
        abi: 1 if torch was built with the C++11 ABI of libstdc++.
    """

    home: Path
    version: str
    abi: int

    @property
    def release(self) -> str:
        """The version without its local part: builds of one release for CPU and CUDA have the same C++ interface."""
        public = self.version.split("+")[0]
        return public if re.fullmatch(r"[\d.]+", public) else self.version

    def refusal(self) -> str | None:
        """Return why this torch is too old for the core, None if it is not."""
        numbers = re.match(r"(\d+)\.(\d+)", self.version)
        if numbers is None or (int(numbers[1]), int(numbers[2])) >= OLDEST_TORCH:
            return None
        return (
            f"bringup needs torch {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or newer, and this environment has torch "
            f"{self.version}: upgrade torch"
        )

    @classmethod
    def at(cls, home: Path) -> Torch:
        """Read a torch installation without importing it."""
        version = re.search(r"^__version__ = '([^']+)'", (home / "version.py").read_text(encoding="utf-8"), re.M)
        if version is None:
            raise BuildError(f"{home / 'version.py'} names no version: is torch installed completely?")
        config = home / "share" / "cmake" / "Torch" / "TorchConfig.cmake"
        text = config.read_text(encoding="utf-8") if config.exists() else ""
        return cls(home, version[1], 0 if "_GLIBCXX_USE_CXX11_ABI=0" in text else 1)


def find_torch() -> Torch | None:
    """Return the torch of this environment, also from within pip's isolated build; None if there is none."""
    spec = importlib.util.find_spec("torch")
    homes = [Path(spec.origin).parent] if spec is not None and spec.origin else []
    folders = [*site.getsitepackages(), sysconfig.get_path("platlib"), site.getusersitepackages()]
    homes += [Path(folder) / "torch" for folder in folders]
    return next((Torch.at(home) for home in homes if (home / "version.py").exists()), None)


def sources() -> Path:
    """Return the folder of the C++ sources: in the installed package, or in the checkout."""
    packaged = PACKAGE / "csrc"
    return packaged if packaged.exists() else PACKAGE.parents[1] / "csrc"


@dataclass(frozen=True)
class Library:
    """A library that is compiled from the C++ sources.

    Attributes:
        file: its name, which holds all that it depends on.
        what: what it is, in a sentence.
        others: pattern of the names of the same library from other sources.
        command: the compiler's command that writes it to a path.
    """

    file: str
    what: str
    others: str
    command: Callable[[Path], list[str]]


def core_library(torch: Torch) -> Library:
    """Return the core for a torch, these sources and this Python."""
    files = sorted(path for path in sources().rglob("*") if path.suffix in SOURCES or path.name in FLAGS)
    prefix = f"_core.torch-{torch.release}."
    return Library(
        f"{prefix}{_digest(files, f'abi={torch.abi}')}{SUFFIX}",
        f"the C++ core for torch {torch.version}",
        f"{prefix}*{SUFFIX}",
        lambda target: command_line(torch, target),
    )


def replay_library() -> Library:
    """Return the replay's library, which needs neither torch nor Python."""
    record = sources() / "record"
    source = record / "timeline.cpp"
    files = [source, record / "rows.h", record / "rows.inc", *(sources() / name for name in FLAGS)]
    return Library(
        f"_replay.{_digest(files)}.so",
        "the library that replays recordings",
        "_replay.*.so",
        lambda target: [
            *compiler(),
            *_flags("flags"),
            "-fPIC",
            "-shared",
            str(source),
            *_flags("link_flags"),
            "-o",
            str(target),
        ],
    )


def _digest(files: Sequence[Path], more: str = "") -> str:
    digest = hashlib.sha256(more.encode())
    for path in files:
        digest.update(str(path.relative_to(sources())).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _flags(name: str) -> list[str]:
    # csrc is quoted by its own path: the sources may be anywhere.
    text = (sources() / name).read_text(encoding="utf-8")
    return shlex.split(text.replace("-iquote csrc", f"-iquote {shlex.quote(str(sources()))}"))


def compiler() -> list[str]:
    """Return the command of the C++ compiler: ``CXX``, else g++ or clang++.

    Raises:
        BuildError: there is none.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    if named and shutil.which(named[0]) is None:
        raise BuildError(f"the C++ core needs a compiler, and CXX={named[0]} cannot be found: unset CXX or correct it")
    for name in ("g++", "clang++") if not named else ():
        if shutil.which(name) is not None:
            return [name]
    if not named:
        raise BuildError("the C++ core needs a compiler, and neither g++ nor clang++ is there: apt-get install g++")
    return named


def compiler_version(command: Sequence[str]) -> str:
    """Return the compiler's name and version, such as ``g++-12.2.0``."""
    done = subprocess.run([*command, "-dumpfullversion", "-dumpversion"], capture_output=True, text=True)
    version = done.stdout.split()
    return f"{Path(command[0]).name}-{version[0] if version else 'unknown'}"


def command_line(
    torch: Torch, target: Path, extra: Sequence[str] = (), files: Sequence[Path] | None = None
) -> list[str]:
    """Return the command that compiles the core, or other C++ files that use torch, into a library.

    It needs no headers of Python: csrc/python/python.h declares what is used.
    """
    folder = sources()
    return [
        *compiler(),
        *_flags("flags"),
        *("-DNDEBUG", "-fwrapv", f"-D_GLIBCXX_USE_CXX11_ABI={torch.abi}", "-fPIC", "-shared"),
        *("-isystem", f"{torch.home}/include", "-isystem", f"{torch.home}/include/kineto"),
        *map(str, files or (folder / "core.cpp", folder / "drivers" / "virtual.cpp")),
        *(f"-L{torch.home}/lib", *LIBRARIES),  # torch has loaded them: the core needs no path
        *_flags("link_flags"),
        *(*extra, "-o", str(target)),
    ]


def compile_library(library: Library, folder: Path, extra: Sequence[str] = (), wait: Tell | None = None) -> Path:
    """Compile a library into a folder, whole or not at all, and return its path.

    Args:
        library: what to compile.
        folder: where it goes; the same library from other sources is removed there.
        extra: more flags for the compiler.
        wait: is called every second with the time passed.

    Raises:
        BuildError: the compiler is missing or refuses the sources; its output is then in ``<file>.log`` in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / library.file
    log = target.with_suffix(".log")
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".bringup-", suffix=".so")
    os.close(descriptor)
    try:
        command = [*library.command(Path(temporary)), *extra]
        with open(log, "w", encoding="utf-8") as output:
            print(*map(shlex.quote, command), file=output, flush=True)
            code = _wait(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT), wait)
        if code:
            raise BuildError(
                f"{library.what} does not compile with {compiler_version(compiler())}: "
                f"{_first_error(log)} (all of the compiler's output: {log})"
            )
        log.unlink()
        os.chmod(temporary, 0o755)
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    for stale in folder.glob(library.others):
        if stale != target:
            stale.unlink(missing_ok=True)
    return target


def _wait(process: subprocess.Popen[bytes], tell: Tell | None) -> int:
    start = time.monotonic()
    try:
        while True:
            try:
                return process.wait(1)
            except subprocess.TimeoutExpired:
                if tell is not None:
                    tell(f"{time.monotonic() - start:.0f} s")
    except BaseException:
        process.kill()
        process.wait()
        raise


def _first_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    return next((line.strip() for line in lines if "error" in line), lines[-1].strip() if lines else "no message")[:300]


# ---- the user's cache


def cache_folder() -> Path:
    """Return the folder of cached cores: below ``XDG_CACHE_HOME``, else below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "bringup" / "core"


def find(library: Library) -> Path | None:
    """Return a compiled library: that of the installation, else a cached one of this compiler, else of another."""
    packaged = PACKAGE / library.file
    if packaged.exists():
        return packaged
    cached = sorted(cache_folder().glob(f"*/{library.file}"))
    if len(cached) > 1:
        with contextlib.suppress(BuildError):
            version = compiler_version(compiler())
            cached.sort(key=lambda path: path.parent.name != version)
    return cached[0] if cached and _is_ours(cached[0]) else None


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
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for each in (folder, folder.parent):
            each.chmod(0o700)
        with _locked(folder):
            path = folder / library.file
            log = path.with_suffix(".log")
            if path.exists() and _is_ours(path):  # another process has built it meanwhile
                return path
            if log.exists() and not again:
                raise BuildError(
                    f"an earlier attempt to build {library.what} with {version} has failed ({log}): "
                    "BRINGUP_BUILD=1 tries again"
                )
            _tell(
                f"building {library.what} with {version}, once; this takes up to a minute (BRINGUP_BUILD=0 forbids it)"
            )
            start = time.monotonic()
            compile_library(library, folder, wait=_progress if sys.stderr.isatty() else None)
            _tell(f"built {library.what} ({time.monotonic() - start:.0f} s): {path}")
            return path
    except OSError as error:
        raise BuildError(
            f"{library.what} has to be built, and {folder} cannot be written ({error.strerror or error}): "
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
            _tell("another process is building it; waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _tell(sentence: str) -> None:
    print(f"bringup: {sentence}", file=sys.stderr, flush=True)


def _progress(passed: str) -> None:
    print(f"\r{passed}\r", end="", file=sys.stderr, flush=True)
