"""The steps of a program, as its recording shows them."""

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
        by: what they were found by: ``program`` (bringup.step), ``optimizer``, ``forward``, or ``whole``.
        ends: row after the last of each step; the first step begins with row ``start``.
    """

    by: str
    start: int
    ends: Array


def find_steps(columns: dict[str, Array]) -> Steps:
    """Find the steps: marked by the program, else steps of the first optimizer, else outermost module calls.

    An optimizer that is through before the chip's first launch works for a model on the host.
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
        own = optimizers[objects[optimizers] == chosen]
        return Steps("optimizer", min(first, int(own[0])), own + 1)
    if len(forwards):
        return Steps("forward", first, np.append(forwards[1:], rows))
    return Steps("whole", 0, np.asarray([rows]))
