"""Every pair of torch and Python in an environment of its own, and the table of docs/install.md: `make matrix`.

    python -m tests.matrix                                      # all cells
    python -m tests.matrix --cells 2.13-3.11,2.14-3.11          # these; the records of the others stay
    python -m tests.matrix --cells 2.13-3.11 --installer uv     # installed by uv
    CXX=clang++ python -m tests.matrix --cells 2.13-3.11        # compiled by clang

For each cell: install torch, then this checkout with its extras, and run the tests of SMOKE. torch must be the same
before and after. The environment is removed. A CUDA build of torch takes 3 GB of downloads and 6 GB of disk; pip's own
settings (PIP_INDEX_URL, PIP_FIND_LINKS) say where another build comes from. docs/install.json keeps the records.

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
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
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
NO_TORCH = {("2.15", "3.10")}  # torch itself is not there for this Python
CELLS = [f"{torch}-{python}" for torch in RELEASES for python in PYTHONS if (torch, python) not in NO_TORCH]
# Three minutes in all: a part of every room, and what torch, Python or the compiler may break.
SMOKE = {
    "conformance": ("tests/conformance/test_sample.py",),
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
    "price": ("tests/core/test_interpreter_modes.py::test_core_records_prices_saves_and_compares[-O]",),
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


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and what installs into it."""

    home: Path
    installer: str

    @property
    def python(self) -> str:
        return str(self.home / "bin" / "python")

    def pip(self, *arguments: str) -> str:
        """Run pip or uv; return what it prints. Raises CalledProcessError."""
        uv = ["uv", "pip", arguments[0], "--python", self.python, *arguments[1:]]
        command = uv if self.installer == "uv" else [self.python, "-m", "pip", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def torch(self) -> str:
        """The version of torch that is installed."""
        listed = json.loads(self.pip("list", "--format", "json"))
        return str(next(item["version"] for item in listed if item["name"] == "torch"))


def interpreter(version: str) -> str | None:
    """The newest Python of a version on the PATH or among pyenv's."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), key=lambda path: path.parts[-3])
    return shutil.which(f"python{version}") or (str(pyenv[-1]) if pyenv else None)


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
    """Make a cell's environment, with torch and its Triton."""
    torch, version = cell.split("-")
    release, triton = RELEASES[torch]
    python = interpreter(version)
    if python is None:
        raise SystemExit(f"{cell}: there is no Python {version} on the PATH, nor one of pyenv's")
    make = ["uv", "venv", "--python", python] if environment.installer == "uv" else [python, "-m", "venv"]
    subprocess.run([*make, str(environment.home)], check=True, capture_output=True, text=True)
    environment.pip("install", f"torch=={release}", "numpy")
    environment.pip("install", "--no-deps", f"triton=={triton}")


def steps(cell: str, home: Path, installer: str, work: Path) -> Iterator[tuple[str, str]]:
    """Install into a cell's environment and try it. Yields the outcome of each item; first, torch's version."""
    environment, checkout = Environment(home, installer), work / "checkout"
    copy_checkout(checkout)
    if not home.exists():
        make_environment(cell, environment)
    before = environment.torch()
    yield "torch", before
    environment.pip("install", f"{checkout}[test,triton,demo]")
    yield "install", "passed" if environment.torch() == before else f"torch is {environment.torch()} now"
    program = "import torch, bringup; bringup.use('t4'); print(torch.ones(2, device='chip').sum().item())"
    done = subprocess.run([environment.python, "-c", program], capture_output=True, text=True, cwd=work)
    fine = done.returncode == 0 and done.stdout == "2.0\n"
    yield "import", "passed" if fine else (done.stderr.strip().splitlines() or ["prints something else"])[-1]
    for item, selection in SMOKE.items():
        yield item, smoke(environment, checkout, selection)


def smoke(environment: Environment, checkout: Path, selection: tuple[str, ...]) -> str:
    """Run tests of the copy with the installed bringup; return "passed", or which failed.

    Those that fail are tried once more, alone: tests that start programs may run out of time on a busy machine.
    """
    failed = failed_tests(environment, checkout, selection)
    failed = failed and failed_tests(environment, checkout, failed)
    return f"failed: {', '.join(failed)}" if failed else "passed"


def failed_tests(environment: Environment, checkout: Path, selection: tuple[str, ...]) -> tuple[str, ...]:
    """Run tests; return those that failed, or the selection if pytest itself did."""
    report = checkout / "report.xml"
    report.unlink(missing_ok=True)
    command = [environment.python, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["-W", "ignore:Guards may run slower:RuntimeWarning"]  # torch's, of Python 3.13.0
    done = subprocess.run([*command, *selection], cwd=checkout, capture_output=True, text=True)
    if done.returncode == 0:
        return ()
    print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
    cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    named = [f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}" for case in failed]
    return tuple(name for name in named if (checkout / name.partition("::")[0]).exists()) or selection


def try_cell(cell: str, home: Path, installer: str, work: Path) -> dict[str, Any]:
    """Return a cell's record: what it was made of, and the outcome of every item."""
    record: dict[str, Any] = {"torch": "", "compiler": compiler(), "installer": installer, "items": {}}
    try:
        for name, outcome in steps(cell, home, installer, work):
            print(f"{cell}  {name}: {outcome}", flush=True)
            (record if name == "torch" else record["items"])[name] = outcome
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr or error.stdout).strip().splitlines() or [str(error)]
        print(f"{cell}  install: {lines[-1]}", flush=True)
        record["items"]["install"] = f"failed: {lines[-1]}"
    return record


def record_name(cell: str, installer: str) -> str:
    """The name of a cell's record: those with another installer or compiler have their own."""
    return " ".join([cell, *([] if installer == "pip" else [installer]), *filter(None, [os.environ.get("CXX")])])


def outcome_of(cell: str, records: dict[str, Any]) -> str:
    """What the table says of a cell."""
    if tuple(cell.split("-")) in NO_TORCH:
        return "no torch"
    if cell not in records:
        return "not run"
    failed = [name for name, outcome in records[cell]["items"].items() if outcome != "passed"]
    return f"fails: {', '.join(failed)}" if failed else "passes"


def table(records: dict[str, Any]) -> str:
    """The table of docs/install.md."""
    lines = [
        "| torch | " + " | ".join(f"Python {python}" for python in PYTHONS) + " |",
        "|---" * (len(PYTHONS) + 1) + "|",
    ]
    for torch in RELEASES:
        lines.append(
            f"| {torch} | " + " | ".join(outcome_of(f"{torch}-{python}", records) for python in PYTHONS) + " |"
        )
    lines.append("")
    for name in records:
        record = records[name]
        made_of = f"torch {record['torch']}, {record['compiler']}, {record['installer']}"
        lines.append(f"- {name}: {made_of}: {outcome_of(name, records)}")
    return "\n".join(lines) + "\n"


def with_table(page: str, records: dict[str, Any]) -> str:
    """Return the page with its table written anew."""
    head, rest = page.split(BEGIN)
    return head + BEGIN + table(records) + END + rest.split(END)[1]


def main() -> None:
    """Try the cells that were asked for; keep their records and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default=",".join(CELLS), help="torch-Python, with commas between")
    parser.add_argument("--installer", choices=("pip", "uv"), default="pip")
    parser.add_argument("--environments", type=Path, help="the folder of those that are there already")
    asked = parser.parse_args()
    unknown = set(asked.cells.split(",")) - set(CELLS)
    if unknown:
        parser.error(f"no such cells: {', '.join(sorted(unknown))} (there are {', '.join(CELLS)})")
    os.environ.pop("PYTHONPATH", None)  # the sources of this checkout must not be found
    for cell in asked.cells.split(","):
        with tempfile.TemporaryDirectory(prefix=f"matrix-{cell}-") as folder:
            home = asked.environments.absolute() / cell if asked.environments else Path(folder) / "venv"
            record = try_cell(cell, home, asked.installer, Path(folder))
        records = json.loads(RECORDS.read_text(encoding="utf-8"))
        records[record_name(cell, asked.installer)] = record
        RECORDS.write_text(json.dumps(dict(sorted(records.items())), indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), records), encoding="utf-8")


if __name__ == "__main__":
    main()
