"""``bringup driver next``: the operators on the host that a kernel would save most of, from a measured recording."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.errors import BringupError
from bringup.recording.driver_rows import seconds_of
from bringup.recording.rows import LAUNCH
from bringup.recording.trace import Trace

Array = npt.NDArray[Any]


def recorded(program: str, arguments: Sequence[str], driver: str, chip: str | None) -> Trace:
    """Return a program's recording on a driver: of a run, or of ``trace.npz`` itself.

    Raises:
        BringupError: the program fails, or the recording is not one of a driver.
    """
    if program.endswith(".npz"):
        return Trace.load(program)
    with tempfile.TemporaryDirectory(prefix="bringup-") as folder:
        out = Path(folder, "report")
        command = [sys.executable, "-m", "bringup", "run", "--driver", driver, "--out", str(out)]
        command += ["--chip", chip] if chip else []
        done = subprocess.run([*command, program, *arguments], stdout=sys.stderr.fileno(), env=os.environ)
        if not (out / "trace.npz").exists():
            raise BringupError(f"{program} ended with exit code {done.returncode} and left no recording: see above")
        return Trace.load(out / "trace.npz")


def ranked(trace: Trace) -> tuple[float | None, list[dict[str, Any]]]:
    """Return the measured step in seconds, and what a kernel for each operator would save of it, the most first.

    A launch on the host is measured from the copies that it reads to those that it writes. A kernel for it is taken to
    be like the driver's other kernels: a time per launch, per byte and per operation, fitted to what they took. Where
    there are none, it is taken to compute as fast as the host, so that only the copies are saved.

    Raises:
        BringupError: the recording is not one of a driver.
    """
    facts = trace.about.get("driver")
    if not isinstance(facts, dict) or "step_rows" not in facts:
        raise BringupError("this recording is not of a driver: record it with bringup run --driver")
    work = _mean_work(trace)
    rates = _rates(facts["step_rows"], work)
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in facts["step_rows"]:
        if not row["on_device"] and row["kernel_possible"]:
            rows.setdefault(row["op"], []).append(row)
    savings = [_saving(op, of_op, rates, work.get(op)) for op, of_op in rows.items()]
    savings = [saving for saving in savings if saving["saves_seconds"] > 0]
    return facts["step_seconds"], sorted(savings, key=lambda saving: (-saving["saves_seconds"], saving["op"]))


def _saving(op: str, rows: list[dict[str, Any]], rates: Array | None, work: Array | None) -> dict[str, Any]:
    launches = sum(row["launches"] for row in rows)
    on_host = sum(row["host_seconds"] for row in rows)
    kernel = on_host if rates is None or work is None else launches * float(rates @ work)
    if rates is not None and work is not None and work[2] > 0 and rates[2] == 0:
        kernel = max(kernel, on_host)  # no kernel of the driver says how fast it multiplies
    return {
        "op": op,
        "saves_seconds": sum(map(seconds_of, rows)) - kernel,
        "launches": round(launches),
        "bytes": round(sum(row["bytes_down"] + row["bytes_up"] for row in rows)),
    }


def _mean_work(trace: Trace) -> dict[str, Array]:
    """Return for each operator the launches (1), bytes and operations of a mean launch."""
    table = trace.work
    launched = trace.columns["signature"][trace.columns["kind"] == LAUNCH]
    counts = np.bincount(launched, minlength=len(trace.signatures))
    of_signature = np.stack([np.ones(len(counts)), table.down_bytes + table.up_bytes, table.flops], axis=1)
    sums: dict[str, Array] = {}
    launches: dict[str, int] = {}
    for signature, count, values in zip(trace.signatures, counts.tolist(), of_signature, strict=True):
        sums[signature.op] = sums.get(signature.op, np.zeros(3)) + count * values
        launches[signature.op] = launches.get(signature.op, 0) + count
    return {op: values / launches[op] for op, values in sums.items() if launches[op]}


def _rates(rows: list[dict[str, Any]], work: dict[str, Array]) -> Array | None:
    """Return the seconds per launch, byte and operation that fit the driver's kernels best; None without kernels.

    The relative errors are minimised, weighted by the time of the kernels, and no rate is negative: of all subsets of
    the three rates, the best one whose solution is not negative is taken.
    """
    kernels = [row for row in rows if row["on_device"] and row["op"] in work and row["kernel_seconds"] > 0]
    if not kernels:
        return None
    seconds = np.asarray([row["kernel_seconds"] / row["launches"] for row in kernels])
    weights = np.sqrt([row["kernel_seconds"] for row in kernels]) / seconds
    terms = np.stack([work[row["op"]] for row in kernels])
    best, least = np.zeros(3), np.inf
    for count in (3, 2, 1):
        for chosen in map(list, itertools.combinations(range(3), count)):
            solution, *_ = np.linalg.lstsq(terms[:, chosen] * weights[:, None], seconds * weights, rcond=None)
            error = float((((terms[:, chosen] @ solution - seconds) * weights) ** 2).sum())
            if (solution >= 0).all() and error < least * (1 - 1e-9):
                best, least = np.zeros(3), error
                best[chosen] = solution
    return best
