"""The groups of launches that a plan names: by operator, source line or module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from bringup.placement.graph import Step
from bringup.recording.rows import D2H, H2D, PHASES

Array = npt.NDArray[Any]
Granularity = Literal["operator", "line", "module"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)
UPLOAD = "upload"  # the operator of the program's own copies to the chip


@dataclass(frozen=True)
class Key:
    """What tells the launches of a group from others; empty texts stand for any."""

    op: str = ""
    module: str = ""
    line: str = ""
    phase: str = "forward"


def key_of(granularity: str, op: str, module: str, line: str, phase: str) -> Key:
    """Return the key of a launch. Uploads, and launches outside of modules, are told apart by their lines.

    Launches without either, such as those that add up gradients, are told apart by their operators.
    """
    nameless = not line and (not module or granularity == "line")
    if op == UPLOAD or granularity == "operator" or nameless:
        return Key(op, module, line, phase)
    if granularity == "line" or not module:
        return Key("", "", line, phase)
    return Key("", module, "", phase)


@dataclass(frozen=True)
class Groups:
    """The nodes of a step by group.

    Attributes:
        keys: the groups.
        group: per node, its group; -1 for downloads, which are where their value is.
        call: per node, its number among the calls of its group in the step.
    """

    keys: list[Key]
    group: Array
    call: Array

    @classmethod
    def of_step(cls, step: Step, granularity: str) -> Groups:
        """Group the launches and uploads of a step."""
        trace = step.timeline.trace
        columns = trace.columns
        place: dict[Key, int] = {}
        calls: list[int] = []
        group, call = np.full(len(step), -1), np.zeros(len(step), dtype=np.int64)
        names = [*trace.modules, ""]
        lines = [*trace.lines, ""]
        rows = zip(
            *(columns[name][step.rows].tolist() for name in ("kind", "signature", "module", "line", "phase")),
            strict=True,
        )
        for node, (kind, signature, module, line, phase) in enumerate(rows):
            if kind == D2H:
                continue
            op = UPLOAD if kind == H2D else trace.signatures[signature].op
            key = key_of(granularity, op, names[module], lines[line], PHASES[phase])
            number = place.setdefault(key, len(place))
            if number == len(calls):
                calls.append(0)
            group[node], call[node] = number, calls[number]
            calls[number] += 1
        return cls(list(place), group, call)

    def ties(self, step: Step, granularity: str) -> Array:
        """Return a number per node; nodes with equal numbers stay together. Uploads are placed one by one."""
        own = len(self.keys) + np.arange(len(step))
        alone = (self.group < 0) | (step.kind == H2D) | step.must_be_host | step.must_be_chip
        ties: Array = own if granularity == "operator" else np.where(alone, own, self.group)
        return ties

    def members(self) -> Iterator[tuple[int, Array]]:
        """Yield every group with its nodes, in the order of calls."""
        order = np.argsort(self.group, kind="stable")
        bounds = np.searchsorted(self.group[order], np.arange(len(self.keys) + 1))
        for number in range(len(self.keys)):
            yield number, order[bounds[number] : bounds[number + 1]]
