"""Chip time while the program runs: what `Event.elapsed_time` says during a recording."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bringup import timeline
from bringup.chip import load_host
from bringup.cost.signature import Signature
from bringup.errors import BringupError
from bringup.trace import COLUMNS, EVENT_RECORD, Trace, read_signature

if TYPE_CHECKING:
    from bringup._schema import Chip, Host


class ChipClock:
    """A replay that follows a recording: it takes the rows that were added since it was last asked."""

    def __init__(self, chip: Chip, host: Host, host_clock: timeline.HostClock = "modelled") -> None:
        self.chip = chip
        self.host = host
        self.host_clock = host_clock
        self.rows = 0
        self.data: list[dict[str, Any]] = []
        self.signatures: list[Signature] = []
        self.events: dict[int, float] = {}  # id -> seconds of its latest record
        self.replay: int | None = None

    def follow(self) -> None:
        """Replay what was recorded since the last call."""
        import torch

        ops = torch.ops.bringup
        if self.replay is None:
            self.replay = timeline.open_replay(self.chip)
        for text in ops.recorded_signatures(len(self.signatures)):
            data, signature = read_signature(text)
            self.data.append(data)
            self.signatures.append(signature)
        *values, _, _ = (column.numpy() for column in ops.recorded_columns(self.rows))
        columns = dict(zip(COLUMNS, values, strict=True))
        trace = Trace(columns, np.zeros(0, np.int64), np.zeros(1, np.int64), self.data, [], [])
        trace.__dict__["signatures"] = self.signatures
        inputs = timeline.row_inputs(trace, self.chip, self.host, host_clock=self.host_clock)
        _, _, end, _ = timeline.feed(self.replay, columns, inputs)
        for row in np.flatnonzero(columns["kind"] == EVENT_RECORD):
            self.events[int(columns["object"][row])] = float(end[row])
        self.rows += len(end)

    def close(self) -> None:
        """Forget the replay."""
        if self.replay is not None:
            timeline.close_replay(self.replay)


_clock: ChipClock | None = None


def start(chip: Chip, host: Host | None = None, host_clock: timeline.HostClock = "modelled") -> None:
    """Begin a clock with a recording."""
    global _clock
    stop()
    _clock = ChipClock(chip, host or load_host(), host_clock)


def stop() -> None:
    """End the clock with its recording."""
    global _clock
    if _clock is not None:
        _clock.close()
        _clock = None


def elapsed_ms(first: int, second: int) -> float:
    """Milliseconds of chip time between two events, by their ids. Called by the core."""
    if _clock is None:
        raise BringupError("no recording is under way")
    _clock.follow()
    missing = [event for event in (first, second) if event not in _clock.events]
    if missing:
        raise BringupError("elapsed_time needs two events that were recorded while the program is recorded")
    return (_clock.events[second] - _clock.events[first]) * 1e3
