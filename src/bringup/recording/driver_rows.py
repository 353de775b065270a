"""The rows of a driver's ledger (csrc/launch/ledger.cpp): launches of an operator, with bytes and measured seconds."""

from __future__ import annotations

from statistics import median
from typing import Any

PARTS = ("down_seconds", "host_seconds", "up_seconds")  # of a launch on the host
_COUNTS = ("launches", "bytes_down", "bytes_up", "kernel_seconds", *PARTS, "between_seconds")
_KEY = ("op", "on_device", "reason", "kernel_possible")


def typical(steps: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of a typical step: for each kind of row, the median of each of its numbers over the steps."""
    kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for rows in steps:
        for row in rows:
            kinds.setdefault(tuple(row[name] for name in _KEY), []).append(row)
    medians = []
    for key, rows in kinds.items():
        absent = [0.0] * (len(steps) - len(rows))
        numbers = {name: median([*(row[name] for row in rows), *absent]) for name in _COUNTS}
        if any(numbers.values()):
            medians.append({**dict(zip(_KEY, key, strict=True)), **numbers})
    return medians


def seconds_of(row: dict[str, Any]) -> float:
    """Return the measured seconds of a row of launches on the host."""
    return float(sum(row[part] for part in PARTS))
