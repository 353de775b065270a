"""The tests under the compiler's sanitizers: the core is built with one into a folder of its own.

    python -m tests.sanitizers address                                     # and undefined behaviour
    python -m tests.sanitizers thread
    python -m tests.sanitizers both                                        # builds the two cores at once
    python -m tests.sanitizers thread tests/core/test_streams.py -k event  # pytest's arguments instead of the selection

Only the core is instrumented. The sanitizers see what Python and torch allocate, free and lock, not what they read and
write. Reports are files, so that none is lost in a test's captured output or in a process that a test starts.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bringup import core_build

ROOT = Path(__file__).parent.parent
RANDOM_BITS = Path("/proc/sys/vm/mmap_rnd_bits")
CORE = (
    *("tests/core/test_streams.py", "tests/core/test_memory.py", "tests/core/test_errors.py"),
    *(
        "tests/core/test_threads.py",
        "tests/core/test_expandable.py",
        "tests/timeline/test_replay.py",
        "tests/recording/test_trace.py",
    ),
)
ONE_THREAD = ("tests/core/test_errors.py", "tests/core/test_expandable.py", "tests/timeline/test_replay.py")
FORWARD = "tests/conformance/test_ops.py::test_op_forward_equals_cpu"
# Of torch's database, what the core does with its own hands: memory, views, sizes that data decide, random numbers.
OPERATORS = """
as_strided as_strided_scatter cat clone contiguous diagonal_scatter empty_strided expand gather index_put item
linalg.svd lu masked_select multinomial nn.functional.dropout nonzero normal repeat_interleave resize_ roll
scatter_reduce.amax sort split_with_sizes to_sparse unbind unique
"""
# Beside libasan, libubsan of GCC does not read log_path: Python tells it when it starts.
TELL_UBSAN = """import ctypes
ctypes.CDLL({library!r}).__sanitizer_set_report_path({path!r})
"""
INSTRUMENTED = (
    *("-O1", "-g1", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS", "-UNDEBUG"),
    *("-fno-sanitize-recover=undefined", "-fno-wrapv"),  # with -fwrapv overflows would be defined
    "-Wno-maybe-uninitialized",  # GCC's own checks hide from it what is initialised
)
NO_SIGNAL = "expects the operating system's SIGSEGV, which a sanitizer turns into a report"
SLOW = "takes long here, and the core's part in it is in other tests"


@dataclass(frozen=True)
class Sanitizer:
    """A sanitizer, and the tests that run under it."""

    flags: str  # of -fsanitize
    libraries: tuple[str, ...]  # to be loaded before Python
    environment: dict[str, str]
    tests: tuple[str, ...]
    excluded: dict[str, str]  # test: why it cannot run


SANITIZERS = {
    "address": Sanitizer(
        flags="address,undefined",
        libraries=("libasan.so", "libubsan.so"),
        environment={
            "PYTHONMALLOC": "malloc",  # Python's own allocator would hide its objects' bounds
            # Python and torch free little at exit, so leaks cannot be told from what lives as long as the process.
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1:strict_string_checks=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        tests=(
            *CORE,
            *("tests/core/test_driver.py", "tests/device/test_dry.py"),
            "tests/triton/test_blocks.py",
            *(f"{FORWARD}[float32-{name}]" for name in OPERATORS.split()),
        ),
        excluded={
            "tests/core/test_memory.py::test_without_check_mode_freed_segments_are_not_readable": NO_SIGNAL,
            "tests/recording/test_sanitize.py::test_faults_of_the_program_itself_are_still_faults": NO_SIGNAL,
            "tests/device/test_dry.py::test_a_model_larger_than_this_machine_takes_no_memory": (
                "looks at the memory of its process, to which the sanitizer adds its own"
            ),
            **dict.fromkeys(
                (
                    "tests/core/test_driver.py::test_null_driver_takes_a_training_step",
                    "tests/core/test_threads.py::test_seeding_does_not_wait_for_threads_that_draw",
                    "tests/device/test_dry.py::test_dry_and_real_recordings_are_the_same[gpt2_small]",
                    "tests/device/test_dry.py::test_fit_finds_the_largest_batch",
                    "tests/device/test_dry.py::test_fit_names_the_chips_that_hold_it",
                    "tests/device/test_dry.py::test_fit_refuses_what_it_cannot_use",
                    "tests/device/test_dry.py::test_out_of_memory_is_a_report",
                    "tests/device/test_dry.py::test_run_dry_says_so",
                    "tests/device/test_dry.py::test_run_dry_strict_is_an_error_at_the_line",
                    "tests/device/test_dry.py::test_run_leaves_the_program_its_own_dry_argument",
                    "tests/recording/test_trace.py::test_launch_over_a_long_list[70000]",
                ),
                SLOW,
            ),
        },
    ),
    "thread": Sanitizer(
        flags="thread",
        libraries=("libtsan.so",),
        environment={
            "OMP_NUM_THREADS": "1",  # OpenMP's barriers are atomics that the sanitizer does not see
            "TSAN_OPTIONS": f"ignore_noninstrumented_modules=1:suppressions={ROOT / 'tests' / 'thread_sanitizer.supp'}",
        },
        tests=tuple(path for path in CORE if path not in ONE_THREAD),
        excluded={
            "tests/core/test_memory.py::test_without_check_mode_freed_segments_are_not_readable": NO_SIGNAL,
            "tests/recording/test_sanitize.py::test_faults_of_the_program_itself_are_still_faults": NO_SIGNAL,
            "tests/core/test_streams.py::test_data_loader_workers_fork_and_pin": (
                "forks a process that has threads and starts threads in the child, which the sanitizer does not support"
            ),
            **dict.fromkeys(
                (
                    "tests/recording/test_trace.py::test_launch_over_a_long_list[33000]",
                    "tests/recording/test_trace.py::test_launch_over_a_long_list[70000]",
                    "tests/recording/test_trace.py::test_the_core_and_python_agree_on_the_dtype_that_a_launch_computes_in",
                ),
                SLOW,
            ),
        },
    ),
}


def build(name: str) -> Path:
    """Build the package with an instrumented core. Return the folder that holds it."""
    package = ROOT / "build" / name / "python" / "bringup"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "src" / "bringup", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "csrc", package / "csrc")
    torch = core_build.find_torch()
    assert torch is not None
    for library in (core_build.core_library(torch), core_build.replay_library()):
        core_build.compile_library(library, package, (*INSTRUMENTED, f"-fsanitize={SANITIZERS[name].flags}"))
    return package.parent


def library(name: str) -> str:
    """Path of one of the compiler's libraries."""
    asked = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = asked.stdout.strip()
    if not os.path.isabs(path):
        sys.exit(f"the sanitizer's library {name} is not there: apt-get install g++")
    return path


def environment_of(sanitizer: Sanitizer, package: Path, reports: Path) -> dict[str, str]:
    """Environment in which Python loads the instrumented core."""
    environment = {**os.environ, **sanitizer.environment, "PYTHONPATH": str(package)}
    environment["LD_PRELOAD"] = " ".join(library(name) for name in sanitizer.libraries)
    for name, options in sanitizer.environment.items():
        if name.endswith("SAN_OPTIONS"):
            environment[name] = f"{options}:log_path={reports / name[:4].lower()}"
    if "libubsan.so" in sanitizer.libraries:
        told = TELL_UBSAN.format(library=library("libubsan.so"), path=os.fsencode(reports / "ubsan"))
        (package / "sitecustomize.py").write_text(told, encoding="utf-8")
    return environment


def wrapper(name: str) -> list[str]:
    """What has to stand before the command: libtsan of GCC 12 knows the addresses of 28 random bits, not of more."""
    if name == "thread" and RANDOM_BITS.exists() and int(RANDOM_BITS.read_text()) > 28:
        return ["setarch", platform.machine(), "--addr-no-randomize"]
    return []


def run(name: str, package: Path, asked: list[str]) -> int:
    """Run the tests with the core of a folder. Return 0 if they passed and no process has reported anything."""
    sanitizer = SANITIZERS[name]
    reports = ROOT / "build" / name / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    command = [*wrapper(name), sys.executable, "-m", "pytest", *(asked or ["-n", "2", *sanitizer.tests])]
    command += [f"--deselect={test}" for test in sanitizer.excluded]
    code = subprocess.run(command, cwd=ROOT, env=environment_of(sanitizer, package, reports)).returncode
    written = sorted(reports.iterdir())
    for report in written:
        print(f"\n{report.relative_to(ROOT)}:\n{report.read_text(errors='replace')}")
    print(f"{name} sanitizer: {len(written)} processes have reported faults; pytest ended with {code}", flush=True)
    return 1 if written else code


def main() -> int:
    """Build and run the tests. Return 0 if they passed and no process has reported anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sanitizer", choices=(*SANITIZERS, "both"))
    arguments, asked = parser.parse_known_args()
    names = list(SANITIZERS) if arguments.sanitizer == "both" else [arguments.sanitizer]
    with ThreadPoolExecutor() as pool:
        packages = list(pool.map(build, names))
    return max(run(name, package, asked) for name, package in zip(names, packages, strict=True))


if __name__ == "__main__":
    sys.exit(main())
