"""What a driver's device did during a recording: measured steps, their parts, and what ran on the host."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bringup.cost.signature import Signature
from bringup.recording.driver_rows import middle_half, seconds_of, typical
from bringup.recording.endless import watched
from bringup.recording.rows import BY_PROGRAM, LAUNCH, MEASURED, STEP
from bringup.text import duration, plain, size

MOST_OPERATORS = 5  # that the summary names
NEAR = 16  # rows in which a launch is looked for: threads of the program record theirs in between

Column = npt.NDArray[Any]


@dataclass(frozen=True)
class Steps:
    """The latest steps of a run on a driver: the seconds of each, and its rows of the ledger."""

    seconds: list[float]
    rows: list[list[dict[str, Any]]]


def facts() -> dict[str, Any]:
    """Return the driver's name, the measured step, the ledger, and the parts of a step, for the trace."""
    ledger = json.loads(torch.ops.bringup.driver_ledger())
    measured = json.loads(torch.ops.bringup.driver_marks())
    steps = steps_between(measured["marks"])
    middle = middle_half(steps.seconds)
    return {
        "name": str(torch.ops.bringup.driver_name()),
        "step_seconds": fmean(steps.seconds[number] for number in middle) if middle else None,
        "step_rows": typical([steps.rows[number] for number in middle]) if middle else measured["total"],
        **ledger,
    }


def columns_of_rows(columns: dict[str, Column], signatures: list[Signature]) -> dict[str, Column]:
    """Return for each row when the device began it, and how long it took, in nanoseconds; 0: it was not measured.

    A launch on the host takes its copies, too. The columns are left out if nothing was measured.
    """
    spans, times, ops = torch.ops.bringup.driver_spans()
    if not len(spans):
        return {}
    op = np.append(np.asarray([item.op for item in signatures]), "")[columns["signature"]]
    launches = columns["kind"] == LAUNCH
    begin, length = (np.zeros(len(launches), np.int64) for _ in MEASURED)
    places, numbers, hints = spans.numpy().T
    _, first, of_launch = np.unique(numbers, return_index=True, return_inverse=True)
    nanoseconds = np.rint(times.numpy() * 1e9).astype(np.int64)
    spent = np.zeros(len(first), np.int64)
    np.add.at(spent, of_launch, nanoseconds[:, 1])
    free = launches.copy()
    for number, part in enumerate(first.tolist()):
        row = _row_of(ops[places[part]], int(hints[part]), free, op)
        if row is not None:
            free[row] = False
            begin[row], length[row] = nanoseconds[part, 0], spent[number]
    return dict(zip(MEASURED, (begin, length), strict=True))


def _row_of(name: str, before: int, free: Column, op: Column) -> int | None:
    """Return the launch nearest to a number of rows: before it, or after it if the host waited for it."""
    behind, ahead = range(before - 1, max(before - 1 - NEAR, -1), -1), range(before, min(before + NEAR, len(free)))
    near = (row for row in (*behind, *ahead) if row < len(free))
    return next((row for row in near if free[row] and op[row] == name), None)


def steps_between(marks: list[dict[str, Any]]) -> Steps:
    """Return the steps from each of the marks that tell steps apart to the next one.

    They are the program's own marks, else the steps of the optimizer that steps most often, else the calls of the
    outermost module that launches most. The device's clock counts if the driver has one: the host may have launched
    many steps before they run.
    """
    ends = [number for number, mark in enumerate(marks) if _kind_of(mark) == _mark_of_steps(marks)]
    pairs = list(pairwise(ends))
    clock = "device_seconds" if any(mark["device_seconds"] for mark in marks) else "host_seconds"
    return Steps(
        [sum(mark[clock] for mark in marks[since:until]) for since, until in pairs],
        [[row for mark in marks[since:until] for row in mark["rows"]] for since, until in pairs],
    )


def _kind_of(mark: dict[str, Any]) -> tuple[int, int]:
    return mark["kind"], mark["object"]


def _mark_of_steps(marks: list[dict[str, Any]]) -> tuple[int, int] | None:
    """Return the kind and object of the marks that tell steps apart; None if none occurs twice."""
    counts = Counter(_kind_of(mark) for mark in marks)
    repeated = {key: count for key, count in counts.items() if count > 1}
    if (STEP, BY_PROGRAM) in repeated:
        return STEP, BY_PROGRAM
    optimizers = {key: count for key, count in repeated.items() if key[0] == STEP}
    if optimizers:
        return max(optimizers, key=lambda key: optimizers[key])
    launches: Counter[tuple[int, int]] = Counter()
    for mark in marks:
        launches[_kind_of(mark)] += sum(row["launches"] for row in mark["rows"])
    return max(repeated, key=lambda key: launches[key], default=None)


@contextmanager
def measured() -> Iterator[None]:
    """Measure the parts of the program's launches, and count them from now on. Say which kernel does not end.

    Raises:
        BringupError: BRINGUP_KERNEL_LIMIT is no time.
    """
    with watched():
        torch.ops.bringup.clear_driver_ledger()
        torch.ops.bringup.measure_driver(True)
        try:
            yield
        finally:
            torch.ops.bringup.measure_driver(False)


def sentences(facts: dict[str, Any], predicted_seconds: float) -> Iterator[str]:
    """Yield the lines that the summary of a run on a driver has beside the prediction."""
    seconds, on_host = facts["step_seconds"], facts["on_host"]
    if seconds is not None:
        steps = f"{duration(seconds)} a step   predicted: {duration(predicted_seconds)}"
        yield f"measured on {facts['name']}: {steps}"
        parts = {"on the device": 0.0, "on the host": 0.0, "between launches": 0.0}
        for row in facts["step_rows"]:
            parts["on the device"] += row["kernel_seconds"]
            parts["on the host"] += seconds_of(row)
            parts["between launches"] += row["between_seconds"]
        yield "of a step: " + ", ".join(f"{duration(value)} {name}" for name, value in parts.items())
    down, up = (size(sum(row[key] for row in on_host)) for key in ("bytes_down", "bytes_up"))
    launches = sum(row["launches"] for row in on_host)
    yield (
        f"on the device {sum(facts['on_device'].values()):,} launches, on the host {launches:,} "
        f"({len({row['op'] for row in on_host})} operators): {down} down, {up} up, "
        f"{duration(sum(map(seconds_of, on_host)))}"
    )
    for row in sorted(on_host, key=lambda row: (-row["launches"], row["op"]))[:MOST_OPERATORS]:
        moved = size(row["bytes_down"] + row["bytes_up"])
        yield plain(f"  {row['op']}  {row['launches']:,}x  {moved}  {duration(seconds_of(row))}  ({row['reason']})")
