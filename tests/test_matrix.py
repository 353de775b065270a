"""The table of docs/install.md is that of the records of `make matrix`, and its tests are there."""

import json
import subprocess
import sys

from tests import matrix


def test_the_table_is_that_of_the_records() -> None:
    page, records = matrix.PAGE.read_text(encoding="utf-8"), json.loads(matrix.RECORDS.read_text(encoding="utf-8"))
    assert matrix.with_table(page, records) == page, "python -m tests.matrix writes it"
    assert {name.split()[0] for name in records} <= set(matrix.CELLS)


def test_every_smoke_test_is_there_and_runs_by_default() -> None:
    tests = [test for selection in matrix.SMOKE.values() for test in selection]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:xdist", *tests]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=matrix.ROOT)
    assert done.returncode == 0 and "deselected" not in done.stdout, done.stdout + done.stderr


def test_outcomes_in_the_table() -> None:
    passes = {
        "torch": "2.13.0+cu130",
        "compiler": "g++ 12",
        "operators": {"operators": 672, "unlike": {"istft": "no"}},
        "items": {"pip": "passed"},
    }
    records = {"2.13-3.11": passes, "2.14-3.11": {**passes, "items": {"dry": "failed: test_a", "import": "passed"}}}
    assert matrix.outcome_of("2.13-3.11", records) == "passes (CUDA 13.0)"
    assert matrix.outcome_of("2.14-3.11", records) == "fails: dry"
    assert (matrix.outcome_of("2.15-3.10", records), matrix.outcome_of("2.15-3.13", records)) == ("no torch", "not run")
    assert [matrix.build_of(version) for version in ("2.13.0+cpu", "2.12.1+cu126")] == ["CPU", "CUDA 12.6"]
    table = matrix.table(records)
    assert "| 2.13 | not run | passes (CUDA 13.0) | not run | not run |" in table
    assert "| 2.13 | 3.11 | 672 | 671, but istft |" in table
