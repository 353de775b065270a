"""The steps of a recorded program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.recording.rows import BY_PROGRAM, FORWARD, LAUNCH, STEP

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Steps:
    """The program's steps.

    Attributes:
        by: the marks of the steps: ``program`` (bringup.step), ``optimizer``, ``forward``, or ``whole`` for none.
        start: the first row of the first step.
        ends: the row after the last row of each step.
    """

    by: str
    start: int
    ends: Array


def find_steps(columns: dict[str, Array]) -> Steps:
    """Return the program's marked steps, else the steps of the first optimizer, else the outermost module calls.

    An optimizer without a step after the chip's first launch trains a model on the host, and does not count.
    """
    kind, objects = columns["kind"], columns["object"]
    rows = len(kind)
    marks = np.flatnonzero((kind == STEP) & (objects == BY_PROGRAM))
    if len(marks):
        return Steps("program", 0, marks + 1)
    forwards = np.flatnonzero(kind == FORWARD)
    first = int(forwards[0]) if len(forwards) else 0
    optimizers = np.flatnonzero(kind == STEP)
    if len(optimizers):
        launched = int(np.argmax(kind == LAUNCH))
        on_chip = objects[optimizers[optimizers > launched]]
        chosen = on_chip[0] if len(on_chip) else objects[optimizers[0]]
        ends = optimizers[objects[optimizers] == chosen]
        return Steps("optimizer", min(first, int(ends[0])), ends + 1)
    if len(forwards):
        return Steps("forward", first, np.append(forwards[1:], rows))
    return Steps("whole", 0, np.asarray([rows]))
