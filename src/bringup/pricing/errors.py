"""Predicted over measured, and the error band of a chip that follows from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup import pricing
from bringup.cost.signature import Signature
from bringup.machine.files import available_chips, load_chip
from bringup.pricing.measurements import Measurement, measurements

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

# The part of the host's time for an operator that lies before its kernel starts; the rest (freeing arguments, returning
# to Python) overlaps with the kernel. Seen where a host-clock set grows from its floor: layer norm and GELU on the A100
# leave the floor at some 13 us of kernel time (github.com/PrincetonUniversity/LLMCompass at 2e015fd).
BEFORE_LAUNCH = 0.75


@dataclass(frozen=True)
class Group:
    """Measurements of one chip, ready to be priced again and again."""

    chip: str
    graph: bool
    rows: tuple[Measurement, ...]
    signatures: list[Signature]
    work: pricing.WorkTable
    measured: npt.NDArray[np.float64]
    floor: npt.NDArray[np.float64]
    warm: npt.NDArray[np.bool_]

    def predicted(self, chip: Chip, constants: pricing.Constants = pricing.DEFAULT) -> npt.NDArray[np.float64]:
        """Seconds as the set's clock would show them."""
        prices = pricing.price_table(
            self.work, self.signatures, chip, graph=self.graph, warm=self.warm, constants=constants
        )
        launch = pricing.launch_seconds(chip, graph=self.graph, constants=constants)
        hosted = np.maximum(self.floor, BEFORE_LAUNCH * self.floor + prices.seconds - launch)
        return np.where(self.floor > 0, hosted, prices.seconds)

    def errors(self, chip: Chip, constants: pricing.Constants = pricing.DEFAULT) -> npt.NDArray[np.float64]:
        """Predicted over measured, less one, for every row."""
        return self.predicted(chip, constants) / self.measured - 1


def grouped(rows: Iterable[Measurement]) -> list[Group]:
    """Put rows together that can be priced at once."""
    found: dict[tuple[str, bool], list[Measurement]] = defaultdict(list)
    for row in rows:
        found[row.chip, row.graph].append(row)
    groups = []
    for (chip, graph), own in sorted(found.items()):
        signatures = [row.signature() for row in own]
        groups.append(
            Group(
                chip,
                graph,
                tuple(own),
                signatures,
                pricing.WorkTable.of(signatures),
                np.asarray([row.seconds for row in own]),
                np.asarray([row.floor for row in own]),
                np.asarray([row.warm for row in own]),
            )
        )
    return groups


def errors(rows: Iterable[Measurement], chip: Chip | None = None) -> dict[Measurement, float]:
    """Predicted over measured, less one, for every row, on the rows' own chips unless one is given."""
    found: dict[Measurement, float] = {}
    for group in grouped(rows):
        off = group.errors(chip or load_chip(group.chip))
        found |= {row: float(error) for row, error in zip(group.rows, off, strict=True)}
    return found


@dataclass(frozen=True)
class Errors:
    """What errors come to; 0.1 is 10 %. ``mean`` and ``median`` are of absolute values, ``bias`` is signed."""

    figures: int
    mean: float
    median: float
    bias: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Errors:
        """Summarise."""
        array = np.asarray(list(values))
        size = np.abs(array)
        return cls(
            len(array),
            round(float(np.mean(size)), 4),
            round(float(np.median(size)), 4),
            round(float(np.mean(array)), 4),
        )


def summarize(off: dict[Any, float], key: Callable[[Any], str]) -> dict[str, Errors]:
    """Errors by a key of the rows, sorted."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row, error in off.items():
        groups[key(row)].append(error)
    return {name: Errors.of(values) for name, values in sorted(groups.items())}


def error_band(chip: Chip) -> tuple[float | None, str]:
    """Return the mean absolute error of a chip's predictions (0.18: 18 %), and where it comes from in words."""
    if chip.name in available_chips() and chip == load_chip(chip.name):
        return _shipped_band(chip.name)
    return _band(chip)


@cache
def _shipped_band(name: str) -> tuple[float | None, str]:
    return _band(load_chip(name))


def _rows_of(name: str) -> Sequence[Measurement]:
    return [row for row in measurements() if row.chip == name]


@cache
def _shipped_errors(name: str) -> tuple[float, ...]:
    return tuple(errors(_rows_of(name), load_chip(name)).values())


def _band(chip: Chip) -> tuple[float | None, str]:
    own = list(errors(_rows_of(chip.name), chip).values())
    if own:
        return float(np.mean(np.abs(own))), f"validated on {len(own)} measurements of operators"
    names = sorted({row.chip for row in measurements()})
    same = [name for name in names if (load_chip(name).kind == "gpu") == (chip.kind == "gpu")]
    pooled = [error for name in same for error in _shipped_errors(name)]
    if chip.invented or not pooled:
        return None, "invented chip: nothing to validate"
    what = "GPUs" if chip.kind == "gpu" else "NPUs and TPUs"
    return float(np.mean(np.abs(pooled))), f"described, not validated: the error over {len(same)} other {what}"
