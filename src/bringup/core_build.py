"""Describes and compiles the C++ libraries: the core, and the replay.

The name of a library's file says what it fits. The core's has a torch release, a hash of the sources, and a Python;
the replay's has the hash alone. `setup.py` runs this file by its path, so it imports nothing but Python's own modules.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
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
# csrc/drivers: libraries of their own, and what they link; that of drivers in Python has no name for users
DRIVERS = {"cuda": ("-ldl",), "opencl": ("-lOpenCL",), "rtl": ("-pthread",)}


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
    folders = [*site.getsitepackages(), sysconfig.get_path("platlib")]
    folders += [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
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
        title: its name in a sentence.
        others: pattern of the file names of the same library from other sources.
        command: returns the compiler's command that writes it to a path.
    """

    file: str
    title: str
    others: str
    command: Callable[[Path], list[str]]


def core_library(torch: Torch) -> Library:
    """Return the core for a torch, these sources and this Python."""
    replay = sources() / "record" / "timeline.cpp"
    files = [path for path in sources().rglob("*") if path.suffix in SOURCES or path.name in FLAGS]
    apart = {*(sources() / "drivers").glob("*"), *(sources() / "jax").rglob("*")}
    files = sorted(set(files) - {replay} - (apart - {sources() / "drivers" / "virtual.cpp"}))
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
        f"_replay.{_digest(files)}.{sysconfig.get_platform()}.so",
        "the library that replays recordings",
        f"_replay.*.{sysconfig.get_platform()}.so",
        lambda target: [
            *(*compiler(), *_flags("flags"), "-fPIC", "-shared", str(source)),
            *(*_flags("link_flags"), "-o", str(target)),
        ],
    )


def jax_library() -> Library:
    """Return the plug-in of JAX, which needs neither torch nor Python."""
    folder = sources() / "jax"
    files = [folder / "plugin.cpp", folder / "xla" / "pjrt_c_api.h", *(sources() / name for name in FLAGS)]
    return Library(
        f"_jax.{_digest(files)}.{sysconfig.get_platform()}.so",
        "the plug-in of JAX",
        f"_jax.*.{sysconfig.get_platform()}.so",
        lambda target: [
            *(*compiler(), *_flags("flags"), "-DNDEBUG", "-fPIC", "-shared", str(folder / "plugin.cpp")),
            *(*_flags("link_flags"), "-o", str(target)),
        ],
    )


def driver_library(name: str) -> Library:
    """Return a driver of `DRIVERS`, or that of drivers in Python, which needs neither torch nor Python."""
    folder = sources() / "drivers"
    shared = [*folder.glob("*.h"), folder / "virtual.cpp", sources() / "driver.h", sources() / "flags"]
    files = sorted([*shared, folder / f"{name}.cpp"])
    return Library(
        f"_driver-{name}.{_digest(files)}.{sysconfig.get_platform()}.so",
        f"the {name} driver",
        f"_driver-{name}.*.{sysconfig.get_platform()}.so",
        lambda target: [
            *(*compiler(), *_flags("flags"), "-DNDEBUG", "-fPIC", "-shared", str(folder / f"{name}.cpp")),
            *(*DRIVERS.get(name, ("-pthread",)), *_flags("link_flags"), "-o", str(target)),
        ],
    )


def simulation_library() -> Library:
    """Return the program that simulates the array of ``rtl``; more flags, such as ``-GN=16``, go to Verilator."""
    folder = sources() / "drivers"
    files = [*(folder / name for name in ("array.cpp", "array.sv", "delay.sv")), sources() / "flags"]
    return Library(
        f"_simulation.{_digest(files)}.{sysconfig.get_platform()}.bin",
        "the simulation of the array",
        f"_simulation.*.{sysconfig.get_platform()}.bin",
        _simulation_command,
    )


def _simulation_command(target: Path) -> list[str]:
    if shutil.which("verilator") is None:
        raise BuildError("the rtl driver needs Verilator, and it is not installed: apt-get install verilator")
    folder, generated = sources() / "drivers", target.parent / "verilated"
    verilate = ["verilator", "--cc", "-O3", "-Wno-fatal", "--top-module", "array", "--Mdir", str(generated)]
    verilate += [str(folder / "array.sv"), str(folder / "delay.sv")]
    compile_all = [*compiler(), *_flags("flags"), "-DNDEBUG", "-pthread", "-I", str(generated), "-o", str(target)]
    script = (
        f'{shlex.join(verilate)} "$@" && include=$(verilator --getenv VERILATOR_ROOT)/include && '
        f'{shlex.join(compile_all)} -isystem "$include" -isystem "$include/vltstd" {shlex.quote(str(generated))}/*.cpp '
        f'{shlex.quote(str(folder / "array.cpp"))} "$include/verilated.cpp" "$include/verilated_threads.cpp"'
    )
    return ["sh", "-c", script, "sh"]


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
    for command in [named] if named else [["g++"], ["clang++"]]:
        if shutil.which(command[0]) is not None:
            return command
    if named:
        raise BuildError(f"the C++ core needs a compiler, and CXX={named[0]} cannot be found: unset CXX or correct it")
    raise BuildError("the C++ core needs a compiler, and neither g++ nor clang++ is there: apt-get install g++")


def compiler_version(command: Sequence[str]) -> str:
    """Return the compiler's name and version, such as ``g++-12.2.0``."""
    name = Path([word for word in command if not word.startswith("-")][-1]).name  # of "ccache g++ -m64", g++
    for option in ("-dumpfullversion", "-dumpversion"):  # clang has the second alone
        try:
            done = subprocess.run([*command, option], capture_output=True, text=True)
        except OSError as error:
            raise BuildError(f"the C++ compiler {command[0]} cannot be started ({error.strerror or error})") from None
        if done.returncode == 0 and done.stdout.strip():
            return f"{name}-{done.stdout.split()[0]}"
    return f"{name}-unknown"


def command_line(torch: Torch, target: Path, files: Sequence[Path] | None = None) -> list[str]:
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
        *("-o", str(target)),
    ]


def compile_library(
    library: Library, folder: Path, extra: Sequence[str] = (), wait: Callable[[str], None] | None = None
) -> Path:
    """Compile a library into a folder, whole or not at all, and return its path.

    Args:
        library: what to compile.
        folder: where it goes.
        extra: more flags for the compiler.
        wait: is called every second with the time passed.

    Raises:
        BuildError: the compiler is missing or refuses the sources; its output is then in ``<file>.log`` in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / library.file
    version = compiler_version(compiler())
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bringup-") as temporary:
        built, output = Path(temporary, target.name), Path(temporary, "output")
        command = [*library.command(built), *extra]
        with open(output, "w", encoding="utf-8") as file:
            print(*map(shlex.quote, command), file=file, flush=True)
            code = _wait(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT), wait)
        log = log_of(target)
        if code:
            os.replace(output, log)
            raise BuildError(
                f"{library.title} does not compile with {version}: {_first_error(log)} "
                f"(all of the compiler's output: {log})"
            )
        os.chmod(built, 0o755)
        os.replace(built, target)
        log.unlink(missing_ok=True)  # of an earlier attempt
    return target


def log_of(target: Path) -> Path:
    """Return where the compiler's output is kept if it refuses the sources."""
    return target.with_suffix(".log")


def remove_others(library: Library, folder: Path) -> None:
    """Remove the same library from other sources."""
    for path in folder.glob(library.others):
        if path.name != library.file:
            path.unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], report: Callable[[str], None] | None) -> int:
    start = time.monotonic()
    try:
        while True:
            try:
                return process.wait(1)
            except subprocess.TimeoutExpired:
                if report is not None:
                    report(f"{time.monotonic() - start:.0f} s")
    except BaseException:
        process.kill()
        process.wait()
        raise


def _first_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    return next((line.strip() for line in lines if "error" in line), lines[-1].strip() if lines else "no message")[:300]
