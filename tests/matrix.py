"""Every pair of torch and Python in an environment of its own, and the tables of docs/install.md: `make matrix`.

    python -m tests.matrix                                      # all cells
    python -m tests.matrix --cells 2.13-3.11,2.14-3.11          # these; the records of the others stay
    python -m tests.matrix --cells 2.10-3.11 --check            # write nothing; exit with 1 if an item fails
    python -m tests.matrix --check --without cuda,uv            # leave items out
    python -m tests.matrix --jobs 2                             # two cells at a time
    CXX=clang++ python -m tests.matrix --cells 2.13-3.11        # compiled by clang

For each cell: install torch, then this checkout with its extras by pip, and run the tests of SMOKE and the operators
of torch's database. Then install the checkout alone by uv, and use it. No package that was there may change. The
environment is removed at the end. A CUDA build of torch takes 3 GB of downloads and 6 GB of disk. The Pythons of one
torch share them in the cache of uv. uv's own settings (UV_INDEX_URL, UV_FIND_LINKS) say
where another build comes from. docs/install.json keeps the records. A torch that cannot be installed within ten
minutes is no failure: the cell says so, and counts as not run.

Environments that have their torch already are used as they are, and kept: --environments is the folder that has them,
by their cells' names.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from uv import find_uv_bin

ROOT = Path(__file__).parent.parent
UV = find_uv_bin()  # once: it is not safe in several threads
PAGE, RECORDS = ROOT / "docs" / "install.md", ROOT / "docs" / "install.json"
BEGIN, END = "<!-- written by python -m tests.matrix -->\n", "<!-- end -->\n"
# torch -> its last release, and the Triton that is made for it.
RELEASES = {
    "2.10": ("2.10.0", "3.6.0"),
    "2.11": ("2.11.0", "3.6.0"),
    "2.12": ("2.12.1", "3.7.1"),
    "2.13": ("2.13.0", "3.7.1"),
    "2.14": ("2.14.1", "3.8.0"),
    "2.15": ("2.15.0", "3.9.0"),
}
INSTALL_S = 600
ROOM_BYTES = 15_000_000_000  # of a cell: torch's downloads, and what they unpack to
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
NO_TORCH = {("2.15", "3.10")}  # torch itself is not there for this Python
CELLS = [f"{torch}-{python}" for torch in RELEASES for python in PYTHONS if (torch, python) not in NO_TORCH]
# Three minutes in all: a part of every room, and what torch, Python or the compiler may break.
SMOKE = {
    "streams": (
        "tests/core/test_streams.py::test_launch_returns_before_the_kernel_has_run",
        "tests/core/test_streams.py::test_streams_overlap",
        "tests/core/test_streams.py::test_event_orders_streams",
        "tests/core/test_streams.py::test_event_times_the_kernels_between",
        "tests/core/test_streams.py::test_pinned_copies_are_asynchronous_and_pageable_ones_are_not",
        "tests/core/test_streams.py::test_eight_threads_with_a_stream_each",
        "tests/core/test_streams.py::test_first_use_in_many_threads",
        "tests/core/test_streams.py::test_data_loader_workers_fork_and_pin",
    ),
    "errors": (
        "tests/core/test_errors.py::test_backward_launch_names_the_forward_line",
        "tests/core/test_errors.py::test_shape_errors_raise_at_the_line_in_the_cpus_words",
        "tests/core/test_errors.py::test_dtypes_are_refused_at_the_line_and_leave_tensors_as_they_were",
        "tests/core/test_memory.py::test_out_of_memory_reports_and_the_process_goes_on",
    ),
    "record": (
        "tests/recording/test_trace.py::test_launches_have_phases",
        "tests/recording/test_trace.py::test_launches_have_lines_and_modules",
        "tests/recording/test_trace.py::test_backward_launches_have_the_module_of_their_forward",
        "tests/recording/test_trace.py::test_copies_waits_steps_and_calls_are_rows",
        "tests/recording/test_trace.py::test_module_calls_of_two_threads_are_both_marked",
        "tests/recording/test_trace.py::test_saved_trace_comes_back",
        "tests/core/test_waits.py::test_signal_handlers_that_write_do_not_stop_the_program",
        "tests/core/test_waits.py::test_any_number_of_threads_may_wait",
        "tests/core/test_waits.py::test_only_autograds_threads_work_for_the_one_that_runs_backward",
    ),
    "price": ("tests/core/test_interpreter_modes.py::test_core_records_prices_saves_and_compares[-OO]",),
    "dry": (
        "tests/device/test_dry.py::test_token_numbers_masks_and_positions_are_real",
        "tests/device/test_dry.py::test_a_number_is_the_value_and_says_that_it_is_dry",
        "tests/device/test_dry.py::test_predict_runs_dry_and_leaves_the_model_as_it_was",
    ),
    "programs": (
        "tests/programs/test_programs.py::test_autocast_policies",
        "tests/programs/test_programs.py::test_random_numbers_are_seeded_and_equal_the_cpus",
        "tests/programs/test_programs.py::test_fake_and_meta_tensors",
        "tests/programs/test_programs.py::test_attention_takes_the_fused_kernel",
        "tests/programs/test_programs.py::test_sparse_tensors",
        "tests/programs/test_programs.py::test_quantized_tensors",
        "tests/programs/test_programs.py::test_profiler_shows_the_kernels",
        "tests/programs/test_libraries.py::test_a_group_of_one",
    ),
    "cuda": ("tests/device/test_cuda.py",),
    "clock": ("tests/timeline/test_clock.py::test_sleep_passes_and_libraries_see_the_clock_but_deadlines_do_not",),
    "compile": (
        "tests/compile/test_compile.py::test_training_equals_the_cpu",
        "tests/compile/test_compile.py::test_sizes_may_change_without_a_graph_each",
        "tests/compile/test_compile.py::test_what_lies_between_products_is_one_launch",
        "tests/compile/test_compile.py::test_dry_run_allocates_and_records_and_computes_nothing",
        "tests/compile/test_compile.py::test_dynamo_compiles_no_function_of_ours",
    ),
    "Triton": (
        "tests/triton/test_tutorials.py::test_vector_add_equals_torch",
        "tests/triton/test_tutorials.py::test_layer_norm_forward_and_backward_equal_torch",
        "tests/triton/test_tutorials.py::test_attention_equals_torch",
        "tests/triton/test_libraries.py::test_inductors_triton_code_trains_a_gpt_as_the_cpu_does[chip]",
    ),
}


class NoTorch(Exception):
    """A cell's torch cannot be installed here."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and what installs into it."""

    home: Path

    @property
    def python(self) -> str:
        return str(self.home / "bin" / "python")

    def run(self, *command: str, **options: Any) -> str:
        """Run a command; return what it prints. Raises CalledProcessError and TimeoutExpired."""
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=INSTALL_S, **options).stdout

    def pip(self, *arguments: str) -> str:
        return self.run(self.python, "-m", "pip", *arguments)

    def uv(self, command: str, *arguments: str) -> str:
        return self.run(UV, "pip", command, "--python", self.python, *arguments)

    def packages(self) -> dict[str, str]:
        """The version of every package that is installed."""
        return {item["name"]: item["version"] for item in json.loads(self.uv("list", "--format", "json"))}

    def changed_since(self, before: dict[str, str]) -> str:
        """Return "passed" if every package of then is there in the same version, or which are not."""
        now = self.packages()
        changed = [
            f"{name} {version} is {now.get(name, 'gone')}"
            for name, version in before.items()
            if now.get(name) != version
        ]
        return ", ".join(changed) or "passed"


def interpreter(version: str) -> str | None:
    """The running Python if it is of this version, else the newest of pyenv's, or the one on the PATH."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return getattr(sys, "_base_executable", sys.executable)
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), key=lambda path: path.parts[-3])
    return str(pyenv[-1]) if pyenv else shutil.which(f"python{version}")


def compiler() -> str:
    """The first line of what the compiler says of its version."""
    command = [os.environ.get("CXX", "g++"), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def copy_checkout(target: Path) -> None:
    """Copy what the repository has: no build of this checkout may be found, and none is left in it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def make_environment(cell: str, environment: Environment) -> None:
    """Make a cell's environment, with torch, its Triton and pip. Raises NoTorch."""
    torch, version = cell.split("-")
    release, triton = RELEASES[torch]
    python = interpreter(version)
    if python is None:
        raise SystemExit(f"{cell}: there is no Python {version} on the PATH, nor one of pyenv's")
    free = shutil.disk_usage(environment.home.parent).free
    if free < ROOM_BYTES:
        raise NoTorch(f"{free / 1e9:.0f} GB are free in {environment.home.parent}, {ROOM_BYTES / 1e9:.0f} are needed")
    try:
        environment.run(UV, "venv", "--seed", "--python", python, str(environment.home))
        environment.uv("install", f"torch=={release}", "numpy")
        environment.uv("install", "--no-deps", f"triton=={triton}")
    except subprocess.CalledProcessError as error:
        raise NoTorch(last_line(error)) from None
    except subprocess.TimeoutExpired:
        raise NoTorch(f"torch {release} was not installed within {INSTALL_S // 60} minutes") from None


def steps(cell: str, home: Path, work: Path, without: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Install into a cell's environment and try it, but for the items of SMOKE, or "uv", that are left out.

    Yields torch's version, the outcome of every item, and the figures of "operators".
    """
    environment, checkout = Environment(home), work / "checkout"
    copy_checkout(checkout)
    if not home.exists():
        make_environment(cell, environment)
    before = environment.packages()
    yield "torch", environment.run(environment.python, "-c", "import torch; print(torch.__version__)").strip()
    environment.pip("install", f"{checkout}[test,triton,demo]")
    yield "pip", environment.changed_since(before)
    yield "import", used(environment, work)
    figures = json.loads(environment.run(environment.python, "-m", "tests.conformance.forward", cwd=checkout))
    yield "operators", figures
    yield from smoke(environment, checkout, {item: tests for item, tests in SMOKE.items() if item not in without})
    if "uv" in without:
        return
    environment.uv("uninstall", "bringup")
    before = environment.packages()
    environment.uv("install", str(checkout))
    yield "uv", environment.changed_since(before)
    yield "first use", used(environment, work)


def used(environment: Environment, work: Path) -> str:
    """Use the chip with nothing in the caches; return "passed", or the last line of the error."""
    program = "import torch, bringup; bringup.use('t4'); print(torch.ones(2, device='chip').sum().item())"
    with tempfile.TemporaryDirectory(dir=work) as cache:
        settings = os.environ | {"XDG_CACHE_HOME": cache}
        command = [environment.python, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, cwd=work, env=settings)
    fine = done.returncode == 0 and done.stdout == "2.0\n"
    return "passed" if fine else (done.stderr.strip().splitlines() or ["prints something else"])[-1]


def smoke(environment: Environment, checkout: Path, items: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    """Run tests of the copy with the installed bringup. Yield for each item "passed", or which failed.

    Those that fail are tried once more, by item: tests that start programs may run out of time on a busy machine, and
    one that ends the process fails all that run with it.
    """
    failed = failed_tests(environment, checkout, tuple(test for tests in items.values() for test in tests))
    for item, tests in items.items():
        if own := tuple(test for test in failed if test.startswith(tests)):
            own = failed_tests(environment, checkout, own)
        yield item, f"failed: {', '.join(own)}" if own else "passed"


def failed_tests(environment: Environment, checkout: Path, selection: tuple[str, ...]) -> tuple[str, ...]:
    """Run tests; return those that failed, or the selection if pytest itself did."""
    report = checkout / "report.xml"
    report.unlink(missing_ok=True)
    command = [environment.python, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["-W", "ignore:Guards may run slower:RuntimeWarning"]  # torch's, of Python 3.13.0
    command += ["-W", "ignore:AnnAssign.__init__ missing:DeprecationWarning"]  # Triton's, of Python 3.13
    done = subprocess.run([*command, *selection], cwd=checkout, capture_output=True, text=True)
    if done.returncode == 0:
        return ()
    print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
    cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    named = [f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}" for case in failed]
    return tuple(name for name in named if (checkout / name.partition("::")[0]).exists()) or selection


def try_cell(cell: str, home: Path, work: Path, without: Collection[str] = ()) -> dict[str, Any]:
    """Return a cell's record: what it was made of, the outcome of every item, and the figures of the operators."""
    record: dict[str, Any] = {"torch": "", "compiler": compiler(), "operators": {}, "items": {}}
    try:
        for name, outcome in steps(cell, home, work, without):
            print(f"{cell}  {name}: {outcome}", flush=True)
            (record if name in record else record["items"])[name] = outcome
    except NoTorch as error:
        print(f"{cell}  NOT TESTED: {error}", flush=True)
    except subprocess.CalledProcessError as error:
        print(f"{cell}  {' '.join(map(str, error.cmd))}: {last_line(error)}", flush=True)
        record["items"]["commands"] = f"failed: {last_line(error)}"
    except subprocess.TimeoutExpired as error:
        print(f"{cell}  {error}", flush=True)
        record["items"]["commands"] = f"failed: {error}"
    return record


def last_line(error: subprocess.CalledProcessError) -> str:
    """The last line that a failed command printed."""
    return (str(error.stderr or error.stdout).strip().splitlines() or [str(error)])[-1]


def record_name(cell: str) -> str:
    """The name of a cell's record: those of another compiler have their own."""
    return " ".join([cell, *filter(None, [os.environ.get("CXX")])])


def outcome_of(cell: str, records: dict[str, Any]) -> str:
    """What the table says of a cell."""
    if tuple(cell.split("-")) in NO_TORCH:
        return "no torch"
    if cell not in records:
        return "not run"
    failed = [name for name, outcome in records[cell]["items"].items() if outcome != "passed"]
    return f"fails: {', '.join(failed)}" if failed else f"passes ({build_of(records[cell]['torch'])})"


def build_of(version: str) -> str:
    """What a torch was built for, by its version: "CPU", or "CUDA 12.8"."""
    local = version.partition("+")[2]
    return f"CUDA {local[2:-1]}.{local[-1]}" if local.startswith("cu") else local.upper()


def table(records: dict[str, Any]) -> str:
    """The tables of docs/install.md."""
    lines = [
        "| torch | " + " | ".join(f"Python {python}" for python in PYTHONS) + " |",
        "|---" * (len(PYTHONS) + 1) + "|",
    ]
    for torch in RELEASES:
        cells = [outcome_of(f"{torch}-{python}", records) for python in PYTHONS]
        lines.append(f"| {torch} | {' | '.join(cells)} |")
    others = [name for name in records if name not in CELLS]
    for compiler in sorted(
        {records[name]["compiler"] for name in records} - {records[name]["compiler"] for name in others}
    ):
        lines += ["", f"Compiled by {compiler}."]
    lines += [f"- {name}: compiled by {records[name]['compiler']}: {outcome_of(name, records)}" for name in others]
    lines += ["", "| torch | Python | float32 operators of its database | equal to the CPU's |", "|---|---|---|---|"]
    for cell in (cell for cell in CELLS if records.get(cell, {}).get("operators")):
        torch, python = cell.split("-")
        figures = records[cell]["operators"]
        equal = figures["operators"] - len(figures["unlike"])
        but = f", but {', '.join(figures['unlike'])}" if figures["unlike"] else ""
        lines.append(f"| {torch} | {python} | {figures['operators']} | {equal}{but} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, records: dict[str, Any]) -> str:
    """Return the page with its table written anew."""
    head, rest = page.split(BEGIN)
    return head + BEGIN + table(records) + END + rest.split(END)[1]


def keep(name: str, record: dict[str, Any]) -> None:
    """Keep a cell's record and write the tables anew."""
    records = json.loads(RECORDS.read_text(encoding="utf-8")) | {name: record}
    RECORDS.write_text(json.dumps(dict(sorted(records.items())), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), records), encoding="utf-8")


def main() -> None:
    """Try the cells that were asked for; keep their records and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default=",".join(CELLS), help="torch-Python, with commas between")
    parser.add_argument("--check", action="store_true", help="write no records; exit with 1 if an item fails")
    parser.add_argument("--without", default="", help="items to leave out, with commas between; only with --check")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--environments", type=Path, help="the folder of those that are there already")
    asked = parser.parse_args()
    unknown = set(asked.cells.split(",")) - set(CELLS)
    if unknown:
        parser.error(f"no such cells: {', '.join(sorted(unknown))} (there are {', '.join(CELLS)})")
    without = set(filter(None, asked.without.split(",")))
    if unknown := without - {*SMOKE, "uv"}:
        parser.error(f"no such items: {', '.join(sorted(unknown))} (there are {', '.join([*SMOKE, 'uv'])})")
    if without and not asked.check:
        parser.error("a record has all items: --without needs --check")
    os.environ["PIP_CONSTRAINT"] = os.devnull  # what this machine wants of its own torch
    os.environ.pop("PYTHONPATH", None)  # the sources of this checkout must not be found
    writing = threading.Lock()

    def tried(cell: str) -> bool:
        """Try a cell, keep its record, and return whether nothing failed."""
        with tempfile.TemporaryDirectory(prefix=f"matrix-{cell}-") as folder:
            home = asked.environments.absolute() / cell if asked.environments else Path(folder) / "venv"
            record = try_cell(cell, home, Path(folder), without)
        if record["torch"] and not asked.check:
            with writing:
                keep(record_name(cell), record)
        return set(record["items"].values()) <= {"passed"}

    cells = asked.cells.split(",")
    with ThreadPoolExecutor(asked.jobs) as pool:
        fine = list(pool.map(tried, cells))
    failed = [cell for cell, passed in zip(cells, fine, strict=True) if not passed]
    raise SystemExit(f"failed: {', '.join(failed)}" if failed and asked.check else 0)


if __name__ == "__main__":
    main()
