"""The fit of the model's constants: the rows used for fitting, and fits that leave out chips.

Every stage fits a few constants to the families that they describe. It minimises the mean absolute logarithm of
predicted over measured; each set, chip and family has the square root of its number of rows as weight. One row in eight
is used for fitting (all four products on TPU v3 are); the other rows are unseen. The sets of LLMCompass and
LLMServingSim and all whole programs are completely unseen.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from bringup.errors import BringupError
from bringup.machine.files import load_chip
from bringup.pricing import DEFAULT, Constants
from bringup.pricing.errors import grouped
from bringup.pricing.measurements import Measurement

FITTED = 8  # one row in this many is fitted
WHOLE = ("tpu-v3",)  # chips with so few rows that all of them are fitted
UNSEEN_SETS = ("LLMCompass", "LLMServingSim")
HALVES = ("bfloat16", "float16")


@dataclass(frozen=True)
class Stage:
    """Constants with their bounds, and the rows to which they are fitted."""

    bounds: dict[str, tuple[float, float]]
    takes: Callable[[Measurement], bool]


def _is_gpu_product(row: Measurement) -> bool:
    return row.op == "mm" and row.dtype in HALVES and not row.chip.startswith("tpu")


STAGES = (
    Stage(
        {
            "core_sustained": (0.8, 1.0),
            "streams_matmul": (0.7, 1.0),
            "cores_for_bandwidth": (0.15, 0.5),
            "overlap": (1.5, 2.2),
            "step_cycles": (10.0, 250.0),
            "tile_cycles": (200.0, 3000.0),
            "kernel_seconds": (0.3e-6, 3e-6),
            "small_tile": (4.0, 60.0),
            "tile_exposed": (0.01, 1.0),
        },
        _is_gpu_product,
    ),
    Stage({"small_tile_vector": (0.1, 30.0)}, lambda row: row.op in ("mm", "bmm") and row.dtype == "float32"),
    Stage(
        {"streams_pointwise": (0.5, 1.0), "streams_normalization": (0.4, 1.0), "streams_softmax": (0.4, 1.0)},
        lambda row: row.family in ("pointwise", "gelu", "layer_norm", "softmax") and not row.chip.startswith("tpu"),
    ),
    Stage(
        {"attention": (0.1, 1.0), "streams_attention": (0.6, 1.0)},
        lambda row: row.op == "attention" and not row.chip.startswith("tpu"),
    ),
    Stage(
        {"systolic_sustained": (0.5, 1.0), "systolic_overlap": (1.0, 8.0), "systolic_fill": (0.1, 1.0)},
        lambda row: row.op == "mm" and row.chip.startswith("tpu"),
    ),
)


def is_fitted(row: Measurement) -> bool:
    """Return True if the constants were fitted to this row."""
    if any(name in row.source for name in UNSEEN_SETS) or not any(stage.takes(row) for stage in STAGES):
        return False
    return row.chip in WHOLE or zlib.crc32(f"{row.chip} {row.op} {row.dims}".encode()) % FITTED == 0


def generation(chip: str) -> str:
    """Return the generation of a chip: ``a100`` for ``a100-pcie-40``; every TPU is a separate generation."""
    return chip if chip.startswith("tpu") else chip.split("-")[0]


def uninformed() -> Constants:
    """Return constants that do not depend on any row: the geometric middle of their bounds."""
    middles = {name: (low * high) ** 0.5 for stage in STAGES for name, (low, high) in stage.bounds.items()}
    return replace(DEFAULT, **middles)


def fit(rows: Iterable[Measurement], *, leave_out: str | None = None, start: Constants | None = None) -> Constants:
    """Fit all constants, stage by stage.

    Args:
        rows: measurements; only those with `is_fitted` are used.
        leave_out: a generation of chips whose rows are not used.
        start: initial constants; by default the shipped ones, or with `leave_out` the `uninformed` ones.

    Raises:
        BringupError: scipy is missing.
    """
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise BringupError("fitting constants needs scipy: pip install scipy") from None
    fitted_rows = [row for row in rows if is_fitted(row) and generation(row.chip) != leave_out]
    constants = start or (DEFAULT if leave_out is None else uninformed())
    for stage in STAGES:
        stage_rows = [row for row in fitted_rows if stage.takes(row)]
        if not stage_rows:
            continue
        names = list(stage.bounds)
        score = _score(stage_rows, names, stage.bounds, constants)
        result = minimize(
            score, np.zeros(len(names)), method="Powell", options={"maxiter": 6, "xtol": 1e-2, "ftol": 1e-4}
        )
        constants, _ = _moved(constants, names, stage.bounds, result.x)
    return constants


def _moved(
    constants: Constants, names: Sequence[str], bounds: dict[str, tuple[float, float]], logs: Any
) -> tuple[Constants, float]:
    """Return constants scaled and cut to their bounds, and by how much they exceeded them."""
    values, beyond = {}, 0.0
    for name, log in zip(names, logs, strict=True):
        value, (low, high) = float(getattr(constants, name) * np.exp(log)), bounds[name]
        beyond += max(0.0, float(np.log(value / high))) + max(0.0, float(np.log(low / value)))
        values[name] = float(np.clip(value, low, high))
    return replace(constants, **values), beyond


def _score(
    rows: list[Measurement], names: Sequence[str], bounds: dict[str, tuple[float, float]], constants: Constants
) -> Callable[[Any], float]:
    by_kind: dict[tuple[str, str, str], list[Measurement]] = defaultdict(list)
    for row in rows:
        by_kind[row.source, row.chip, row.family].append(row)
    groups = [group for kind_rows in by_kind.values() for group in grouped(kind_rows)]
    chips = {group.chip: load_chip(group.chip) for group in groups}
    weights = np.sqrt([len(group.rows) for group in groups])

    def score(logs: Any) -> float:
        moved, beyond = _moved(constants, names, bounds, logs)
        distances = [
            np.abs(np.log(group.predicted(chips[group.chip], moved) / group.measured)).mean() for group in groups
        ]
        return float(np.average(distances, weights=weights)) + 5 * beyond

    return score


def changed(constants: Constants) -> dict[str, tuple[float, float]]:
    """Return the constants that differ from the shipped ones: name -> (shipped, fitted), to three digits."""
    names = [field.name for field in fields(Constants)]
    pairs = {name: (getattr(DEFAULT, name), getattr(constants, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if f"{pair[0]:.3g}" != f"{pair[1]:.3g}"}
