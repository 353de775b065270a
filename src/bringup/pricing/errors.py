"""The errors of predictions against measurements of operators."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup import pricing
from bringup.cost.signature import Signature
from bringup.machine.files import load_chip
from bringup.pricing.measurements import Measurement

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

# Share of an operator's host time before its kernel starts. The rest (freeing arguments, returning to Python) overlaps
# with the kernel. It follows from the kernel time at which host-clock figures rise above their floor: about 13 us for
# layer norm and GELU on the A100 (github.com/PrincetonUniversity/LLMCompass at 2e015fd).
BEFORE_LAUNCH = 0.75


@dataclass(frozen=True)
class Group:
    """Measurements of one chip as arrays, so that they can be priced repeatedly."""

    chip: str
    graph: bool
    rows: tuple[Measurement, ...]
    signatures: list[Signature]
    work: pricing.WorkTable
    measured: npt.NDArray[np.float64]
    floor: npt.NDArray[np.float64]
    warm: npt.NDArray[np.bool_]

    def predicted(self, chip: Chip, constants: pricing.Constants = pricing.DEFAULT) -> npt.NDArray[np.float64]:
        """Return the predicted seconds, including the host's time if the measurement's clock includes it."""
        prices = pricing.price_table(
            self.work, self.signatures, chip, graph=self.graph, warm=self.warm, constants=constants
        )
        launch = pricing.launch_seconds(chip, graph=self.graph, constants=constants)
        hosted = np.maximum(self.floor, BEFORE_LAUNCH * self.floor + prices.seconds - launch)
        return np.where(self.floor > 0, hosted, prices.seconds)

    def errors(self, chip: Chip, constants: pricing.Constants = pricing.DEFAULT) -> npt.NDArray[np.float64]:
        """Return the relative error of every row: predicted over measured, less one."""
        return self.predicted(chip, constants) / self.measured - 1


def grouped(rows: Iterable[Measurement]) -> list[Group]:
    """Group rows that can be priced together: those of one chip, launched in one mode."""
    by_chip: dict[tuple[str, bool], list[Measurement]] = defaultdict(list)
    for row in rows:
        by_chip[row.chip, row.graph].append(row)
    groups = []
    for (chip, graph), members in sorted(by_chip.items()):
        signatures = [row.signature() for row in members]
        groups.append(
            Group(
                chip,
                graph,
                tuple(members),
                signatures,
                pricing.WorkTable.from_signatures(signatures),
                np.asarray([row.seconds for row in members]),
                np.asarray([row.floor for row in members]),
                np.asarray([row.warm for row in members]),
            )
        )
    return groups


def errors(rows: Iterable[Measurement], chip: Chip | None = None) -> dict[Measurement, float]:
    """Return the relative error of every row, priced on the argument's chip, else on the row's own chip."""
    by_row: dict[Measurement, float] = {}
    for group in grouped(rows):
        off = group.errors(chip or load_chip(group.chip))
        by_row |= {row: float(error) for row, error in zip(group.rows, off, strict=True)}
    return by_row


@dataclass(frozen=True)
class Errors:
    """Statistics of relative errors: mean and median absolute error, and ``bias``, the signed mean. 0.1 is 10 %."""

    figures: int
    mean: float
    median: float
    bias: float

    @classmethod
    def from_values(cls, values: Iterable[float]) -> Errors:
        """Return the statistics of these errors."""
        array = np.asarray(list(values))
        size = np.abs(array)
        return cls(
            len(array),
            round(float(np.mean(size)), 4),
            round(float(np.median(size)), 4),
            round(float(np.mean(array)), 4),
        )


def summarize(off: dict[Any, float], key: Callable[[Any], str]) -> dict[str, Errors]:
    """Return the statistics of errors grouped by a key of their rows, sorted by key."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row, error in off.items():
        groups[key(row)].append(error)
    return {name: Errors.from_values(values) for name, values in sorted(groups.items())}
