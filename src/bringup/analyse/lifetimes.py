"""How long the frames of a model's forward pass hold its activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.recording.rows import LAUNCH
from bringup.recording.trace import Trace

Array = npt.NDArray[Any]


def held_until(trace: Trace, writer: Array, last_use: Array) -> Array:
    """Return the rows at which the program drops activations that no graph holds.

    If an activation is the result of a submodule, the innermost module whose call contains its last use, too, has it in
    a local variable, which lives until that call returns. A container, such as ``nn.Sequential``, holds one result at a
    time, so the result of an element is dropped after its last use. So is everything else.

    Args:
        trace: the recording.
        writer: for every activation, the row of the launch that writes it.
        last_use: the last row that uses it.
    """
    until = last_use.copy()
    thread, is_launch = trace.columns["thread"], trace.columns["kind"] == LAUNCH
    paths = [name.split(".") for name in trace.modules]
    for number in np.unique(thread[writer]):
        launches = np.flatnonzero(is_launch & (thread == number))
        of_thread = (thread[writer] == number) & (thread[last_use] == number) & is_launch[last_use]
        first, last = (np.searchsorted(launches, rows[of_thread]) for rows in (writer, last_use))
        until[of_thread] = launches[_held(paths, trace.columns["module"][launches], first, last)]
    return until


def _held(paths: list[list[str]], module: Array, first: Array, last: Array) -> Array:
    """Return the launch after which a value is dropped, for values from a `first` launch to a `last` one.

    Args:
        paths: the names of the modules, split.
        module: for every launch its module; -1 for none.
        first: for every value the launch that writes it.
        last: its last use.
    """
    until = last.copy()
    for depth in range(1, max(map(len, paths), default=0) + 1):
        # Deeper modules come later, so the innermost one decides.
        names = [tuple(path[:depth]) if len(path) >= depth else () for path in paths]
        place = {name: number for number, name in enumerate(dict.fromkeys(names))}
        inside = np.asarray([place[name] if name else -1 for name in names] + [-1])[module]
        is_local = np.asarray([len(path) > depth and not path[depth].isdigit() for path in paths] + [False])[module]
        run = np.cumsum(np.append(True, inside[1:] != inside[:-1]))[: len(inside)]
        end = np.searchsorted(run, run, side="right") - 1
        contained = (inside[first] >= 0) & (run[first] == run[last])
        until = np.where(contained, np.where(is_local[first], end[first], last), until)
    return until
