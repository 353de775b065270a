"""Rows of a sweep whose programs are divided between host and chip, as `bringup place` divides them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bringup.errors import BringupError
from bringup.placement.place import TooSmallError, planned, replayer_of
from bringup.text import short

if TYPE_CHECKING:
    from bringup.analyse.holders import Memory
    from bringup.machine.schema import Chip, Host
    from bringup.recording.trace import Trace

CHIP = "chip"  # everything where the program puts it; the others are ``host`` and ``best``


@dataclass(frozen=True)
class Placed:
    """A step of a divided program: its seconds, those in which the chip computes, and bytes that left the chip."""

    seconds: float
    busy_seconds: float
    moved_bytes: int


def check(name: str, trace: Trace, chip: Chip, host: Host) -> None:
    """Refuse a recording that cannot be placed.

    Raises:
        BringupError: it cannot be, for instance because it is one of several chips.
    """
    try:
        replayer_of(trace, chip, host)
    except BringupError as error:
        raise BringupError(f"placements: {short(name)}: {error}; or leave placements out") from None


def divided(trace: Trace, chip: Chip, host: Host, placement: str, peak: Memory) -> Placed:
    """Return a step with everything on the host (``host``), or as `bringup place` proposes it (``best``).

    A program for which nothing is proposed stays as it is, and so does one that no division makes fit.

    Args:
        trace: the recording.
        chip: the chip.
        host: the host.
        placement: ``host`` or ``best``.
        peak: the memory of the program as it is.

    Raises:
        BringupError: the recording cannot be placed; see `check`.
    """
    on_chip = None
    try:
        if placement == "host":
            replayer = replayer_of(trace, chip, host)
            on_chip = replayer.step.must_be_chip
        else:
            result = planned(trace, chip, host)
            replayer = result.replayer
            on_chip = result.on_chip if result.plan.proposes else None
    except TooSmallError:
        replayer = replayer_of(trace, chip, host)
    outcome = replayer.outcome(on_chip)
    moved = 0
    if on_chip is not None:
        moved = int(replayer.step.persistent_bytes.sum()) - outcome.resident_bytes
        moved = moved if on_chip.any() else peak.peak_bytes
    return Placed(outcome.seconds, outcome.busy_seconds, moved)
