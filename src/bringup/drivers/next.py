"""``bringup driver next``: the operators on the host that a kernel would save most of, from a measured recording."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.errors import BringupError
from bringup.machine.vocabulary import FAMILIES
from bringup.recording.driver_rows import seconds_of
from bringup.recording.rows import LAUNCH
from bringup.recording.trace import Trace

Array = npt.NDArray[Any]
BYTES, PRODUCTS = 1, 2  # among the terms of `_OpWork`
# How much a relative counts, if no correction counts 1. Chosen: with them, the other kernels say best what a kernel
# takes, of 31 kernels of a GPT and of a small network on the OpenCL driver (the median error is a factor of 1.38).
SAME_NAME, SAME_FAMILY = 10.0, 3.0


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
    be like the driver's other kernels: a time per result, byte, operation of products and special function, fitted to
    what they took, and then corrected by what its relatives took. Where there are none, it is taken to compute as fast
    as the host, so that only the copies are saved.

    Raises:
        BringupError: the recording is not one of a driver.
    """
    facts = trace.about.get("driver")
    if not isinstance(facts, dict) or "step_rows" not in facts:
        raise BringupError("this recording is not of a driver: record it with bringup run --driver")
    work = _mean_work(trace)
    kernels = [
        row for row in facts["step_rows"] if row["on_device"] and row["op"] in work and row["kernel_seconds"] > 0
    ]
    rates = _rates(kernels, work)
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in facts["step_rows"]:
        if not row["on_device"] and row["kernel_possible"]:
            rows.setdefault(row["op"], []).append(row)
    savings = [
        _saving(op, of_op, None if rates is None else _kernel_seconds(op, kernels, rates, work))
        for op, of_op in rows.items()
    ]
    savings = [saving for saving in savings if saving["saves_seconds"] > 0]
    return facts["step_seconds"], sorted(savings, key=lambda saving: (-saving["saves_seconds"], saving["op"]))


def _saving(op: str, rows: list[dict[str, Any]], kernel: float | None) -> dict[str, Any]:
    """Return the line of an operator, of which a launch would take ``kernel`` seconds; None: as long as the host."""
    launches = sum(row["launches"] for row in rows)
    on_host = sum(row["host_seconds"] for row in rows)
    return {
        "op": op,
        "saves_seconds": sum(map(seconds_of, rows)) - (on_host if kernel is None else launches * kernel),
        "launches": round(launches),
        "bytes": round(sum(row["bytes_down"] + row["bytes_up"] for row in rows)),
    }


@dataclass(frozen=True)
class _OpWork:
    """A mean launch of an operator.

    Attributes:
        base: its name without overload and direction: the same for ``add`` and ``add_``, and for ``gelu_backward`` and
            ``gelu``.
        family: of its cost rule.
        terms: its results, bytes, operations of products, and special functions. Additions and the like are not among
            them: they cost little beside the bytes of a pointwise kernel, and much in a reduction.
    """

    base: str
    family: str
    terms: Array


def _mean_work(trace: Trace) -> dict[str, _OpWork]:
    table = trace.work
    launched = trace.columns["signature"][trace.columns["kind"] == LAUNCH]
    counts = np.bincount(launched, minlength=len(trace.signatures))
    results = [max(len(signature.results), 1) for signature in trace.signatures]  # a list may take a kernel for each
    products = table.flops - table.vector_flops - table.special
    terms = np.stack([results, table.bytes, products, table.special], axis=1)
    sums: dict[str, Array] = {}
    launches: dict[str, int] = {}
    means: dict[str, _OpWork] = {}
    for number, count in enumerate(counts.tolist()):
        signature = trace.signatures[number]
        op = signature.op
        sums[op] = sums.get(op, np.zeros(terms.shape[1])) + count * terms[number]
        launches[op] = launches.get(op, 0) + count
        if launches[op]:
            base = re.sub("_(backward|data|forward)(?=_|$)", "", signature.base)
            means[op] = _OpWork(base, FAMILIES[table.family[number]], sums[op] / launches[op])
    return means


def _kernel_seconds(op: str, kernels: list[dict[str, Any]], rates: Array, work: dict[str, _OpWork]) -> float | None:
    """Return what a launch of a kernel for an operator would take, None if no kernel of the driver says it.

    The rates are those of all kernels. The correction is the mean, in logarithms, of what the operator's relatives took
    of what the rates say, and of 1. The nearer a relative, by name and size, the more it counts.
    """
    own = work.get(op)
    if own is None or (own.terms[PRODUCTS] > 0 and rates[PRODUCTS] == 0):  # no kernel says how fast it multiplies
        return None
    correction, weights = 0.0, 1.0
    for row in kernels:
        other = work[row["op"]]
        alike = SAME_NAME if other.base == own.base else SAME_FAMILY if other.family == own.family else 0.0
        expected = float(rates @ other.terms)
        if not alike or expected <= 0:
            continue
        weight = alike / (1 + abs(math.log((other.terms[BYTES] + 1) / (own.terms[BYTES] + 1))))
        correction += weight * math.log(row["kernel_seconds"] / row["launches"] / expected)
        weights += weight
    return float(rates @ own.terms) * math.exp(correction / weights)


def _rates(kernels: list[dict[str, Any]], work: dict[str, _OpWork]) -> Array | None:
    """Return the seconds per unit of each term that fit the driver's kernels best; None without kernels.

    The relative errors are minimised, and no rate is negative: of all subsets of the rates, the best one whose solution
    is not negative is taken.
    """
    if not kernels:
        return None
    seconds = np.asarray([row["kernel_seconds"] / row["launches"] for row in kernels])
    terms = np.stack([work[row["op"]].terms for row in kernels])
    best, least = np.zeros(terms.shape[1]), np.inf
    for count in range(terms.shape[1], 0, -1):
        for chosen in map(list, itertools.combinations(range(terms.shape[1]), count)):
            solution, *_ = np.linalg.lstsq(terms[:, chosen] / seconds[:, None], np.ones(len(seconds)), rcond=None)
            error = float(((terms[:, chosen] @ solution / seconds - 1) ** 2).sum())
            if (solution >= 0).all() and error < least * (1 - 1e-9):
                best, least = np.zeros(terms.shape[1]), error
                best[chosen] = solution
    return best
