"""What the items of JAX and TensorFlow share: arguments of operators, verdicts, and what a recording must have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from bringup.analyse import summarize
from bringup.scorecard.registry import Partial, require
from bringup.text import quantity


def values(dtype: Any = np.float32) -> dict[str, Any]:
    """Return arguments of operators by their letters: matrices of a data type, vectors of int32, and booleans.

    x and y are real matrices, u has values between -1 and 1, w positive ones, p is positive definite, i and j are whole
    numbers and b booleans.
    """
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-2, 2, (2, 6, 6))
    real = {"x": x, "y": y, "u": x / 2.5, "w": np.abs(y) + 0.5, "p": x @ x.T + 6 * np.eye(6)}
    whole = {name: rng.integers(1, 7, 9).astype(np.int32) for name in "ij"}
    return {name: value.astype(dtype) for name, value in real.items()} | whole | {"b": x > y}


def chosen(operators: Mapping[str, Iterable[str]], letters: str, leaves: Callable[[str], bool]) -> dict[str, list[str]]:
    """Return the operators by arguments that have these letters alone, without the names that `leaves` is true of."""
    return {
        key: [name for name in names if not leaves(name)]
        for key, names in operators.items()
        if set(key) <= set(letters)
    }


def verdict(failed: list[str], count: int) -> str:
    """Return the evidence that so many operators have the CPU's results.

    Raises:
        Partial, Failed: some operators failed, or all.
    """
    if failed:
        share = 1 - len(failed) / count
        require(share, f"none of {count} operators has the CPU's results")
        raise Partial(share, f"{len(failed)} of {count} operators fail: {', '.join(failed[:8])}")
    return f"{count} operators have the CPU's results"


def steps(prediction: Any) -> str:
    """Return the evidence that each of about 20 executions is a step with a time."""
    require(prediction.steps_by == "execution" and prediction.steps >= 18, "executions are not steps")
    require(prediction.step_seconds > 0, "a step takes no time")
    return f"{prediction.steps} steps of {prediction.step_seconds * 1e6:.0f} us"


def time_on_lines(prediction: Any, is_own: Callable[[str], bool], line: str) -> str:
    """Return the evidence that 95 % of the chip's time or more is on lines of the program, which are called `line`."""
    lines = summarize.by_group(prediction.timeline, "line")
    total = sum(seconds for _, _, seconds, _ in lines)
    own = sum(seconds for name, _, seconds, _ in lines if is_own(name))
    require(total and own > 0.95 * total, f"{own / max(total, 1e-30):.0%} of the time is on {line}s of the program")
    return f"{own / total:.1%} of the time is on {quantity(len(lines), line)}"
