"""Several ranks on one clock: a receive ends when the other rank has sent, a collective begins when all reach it.

Each rank's recording is replayed alone. What its exchanges wait for follows from the other ranks' replays, and it is
replayed again with longer ones, until nothing changes. Dependencies lead forward in time, so a round settles at least
the first exchange that the round before it has changed. If all of those change again, ranks wait for each other in a
circle. Ranks that were not recorded wait for nobody, and nobody waits for them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.cost.collective import ranks_of
from bringup.errors import BringupError
from bringup.pricing.collective import is_collective
from bringup.recording.rows import LAUNCH
from bringup.recording.trace import Trace
from bringup.timeline.replay import HostClock, Timeline, replay

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host

Array = npt.NDArray[Any]
SETTLED = 1e-9  # seconds: a smaller change of an exchange is none


@dataclass(frozen=True)
class _Exchange:
    """The rows of one exchange: by rank, and the rank that sends, if it is between two."""

    rows: dict[int, int]
    sender: int | None


def exchanges(traces: Mapping[int, Trace]) -> list[_Exchange]:
    """Match the sends, receives and collectives of recorded ranks, in the order of each rank's calls."""
    pairs: dict[tuple[int, int], dict[str, list[int]]] = defaultdict(lambda: {"send": [], "recv": []})
    groups: dict[tuple[tuple[int, ...], int], dict[int, int]] = defaultdict(dict)
    for rank, trace in traces.items():
        seen: dict[tuple[int, ...], int] = defaultdict(int)
        members = {i: tuple(ranks_of(s)) for i, s in enumerate(trace.signatures) if is_collective(s)}
        signature = trace.columns["signature"]
        rows = np.flatnonzero((trace.columns["kind"] == LAUNCH) & np.isin(signature, list(members)))
        for row in rows.tolist():
            ranks, kind = members[int(signature[row])], trace.signatures[int(signature[row])].name
            if kind in ("send", "recv"):
                other = ranks[1] if ranks[0] == rank else ranks[0]
                pairs[(rank, other) if kind == "send" else (other, rank)][kind].append(row)
            elif sum(member in traces for member in ranks) > 1:
                groups[ranks, seen[ranks]][rank] = row
                seen[ranks] += 1
    matched = [
        _Exchange({sender: sent, receiver: received}, sender)
        for (sender, receiver), rows_of in pairs.items()
        for sent, received in zip(rows_of["send"], rows_of["recv"], strict=False)
    ]
    return matched + [_Exchange(rows_of, None) for rows_of in groups.values() if len(rows_of) > 1]


def peers(trace: Trace, rank: int) -> set[int]:
    """Return the ranks with which a rank exchanges tensors, which are those of other stages of its pipeline."""
    pairs = [ranks_of(s) for s in trace.signatures if is_collective(s) and s.name in ("send", "recv")]
    return {other for ranks in pairs for other in ranks} - {rank}


def together(
    traces: Mapping[int, Trace], chip: Chip, host: Host, *, host_clock: HostClock = "modelled"
) -> dict[int, Timeline]:
    """Replay the recordings of several ranks, by rank, so that they wait for each other.

    Raises:
        BringupError: ranks wait for each other in a circle, so that the program would hang.
    """
    timelines = {rank: replay(trace, chip, host, host_clock=host_clock) for rank, trace in traces.items()}
    alone = {rank: timeline.seconds for rank, timeline in timelines.items()}
    matched = exchanges(traces)
    of_rank: dict[int, dict[int, _Exchange]] = {rank: {} for rank in traces}  # rank: by row
    for exchange in matched:
        for rank, row in exchange.rows.items():
            if rank != exchange.sender:
                of_rank[rank][row] = exchange
    order = sorted(traces)
    before: set[tuple[int, int]] = set()  # ranks and rows whose wait the last round has changed
    while True:
        changed: set[tuple[int, int]] = set()
        for rank in (*order, *reversed(order)):
            seconds = alone[rank].copy()
            for row, exchange in of_rank[rank].items():
                wait = max(_reached(exchange, timelines)[0] - timelines[rank].start[row], 0.0)
                seconds[row] += wait / max(float(timelines[rank].stretch(row)), 1.0)
            rows = np.flatnonzero(np.abs(seconds - timelines[rank].seconds) > SETTLED)
            if len(rows):
                timelines[rank] = replay(traces[rank], chip, host, host_clock=host_clock, seconds=seconds)
                changed |= {(rank, row) for row in rows.tolist()}
        if not changed:
            return timelines
        if before and before <= changed:
            break
        before = changed
    late = dict(sorted(changed, reverse=True))  # the first row of each rank
    circle = _circle({rank: _reached(of_rank[rank][row], timelines)[1] for rank, row in late.items()})
    waits = [f"rank {rank} in {traces[rank].line_of(late[rank]) or 'a line that is not known'}" for rank in circle]
    raise BringupError(f"these ranks wait for each other, and would hang on real chips: {'; '.join(waits)}")


def _circle(waits_for: Mapping[int, int]) -> list[int]:
    """Return the ranks that wait for each other, without those that only wait for one of them."""
    rank, path = min(waits_for), []
    while rank in waits_for and rank not in path:
        path.append(rank)
        rank = waits_for[rank]
    return sorted(path[path.index(rank) :] if rank in path else waits_for)


def _reached(exchange: _Exchange, timelines: Mapping[int, Timeline]) -> tuple[float, int]:
    """Return when the sender has sent, or the last rank has reached the collective, and that rank."""
    if exchange.sender is not None:
        return float(timelines[exchange.sender].end[exchange.rows[exchange.sender]]), exchange.sender
    return max((float(timelines[rank].start[row]), rank) for rank, row in exchange.rows.items())
