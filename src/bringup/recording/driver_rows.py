"""The rows of a driver's ledger (csrc/launch/ledger.cpp): launches of an operator, with bytes and measured seconds."""

from __future__ import annotations

from typing import Any

PARTS = ("down_seconds", "host_seconds", "up_seconds")  # of a launch on the host
_COUNTS = ("launches", "bytes_down", "bytes_up", "kernel_seconds", *PARTS, "between_seconds")
_KEY = ("op", "on_device", "reason", "kernel_possible")


def middle_half(seconds: list[float]) -> list[int]:
    """Return the numbers of the steps around the median, without a quarter of the steps at each end."""
    slowest_last = sorted(range(len(seconds)), key=lambda number: seconds[number])
    without = len(seconds) // 4
    return slowest_last[without : len(seconds) - without]


def typical(steps: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of a typical step: the mean of each number over the steps.

    So the parts add up to the mean of the steps. Medians would not: what disturbs a step hits another part each time.
    """
    kinds: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in (row for rows in steps for row in rows):
        means = kinds.setdefault(tuple(row[name] for name in _KEY), dict.fromkeys(_COUNTS, 0.0))
        for name in _COUNTS:
            means[name] += row[name] / len(steps)
    return [{**dict(zip(_KEY, key, strict=True)), **means} for key, means in kinds.items() if any(means.values())]


def seconds_of(row: dict[str, Any]) -> float:
    """Return the measured seconds of a row of launches on the host."""
    return float(sum(row[part] for part in PARTS))
