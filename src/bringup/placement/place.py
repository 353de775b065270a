"""Placement of a recording: from the trace to a plan."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bringup.analyse import holders
from bringup.analyse.program_class import program_class
from bringup.errors import BringupError
from bringup.machine.files import load_chip, load_host
from bringup.machine.schema import Chip, Host
from bringup.placement.graph import Step, step_graph
from bringup.placement.groups import GRANULARITIES, Granularity, Groups, Key
from bringup.placement.placed import Outcome, Replayer
from bringup.placement.plan import Baseline, Entry, Move, Plan
from bringup.placement.search import Candidate, Mask, Search, search, turns_round
from bringup.pricing.bands import bound, error_band
from bringup.recording.rows import D2H
from bringup.recording.trace import Trace
from bringup.report.lines import MEMBER, names_as_one
from bringup.text import size, split_line
from bringup.timeline.replay import HostClock, Timeline, replay

Array = npt.NDArray[Any]
Objective = Literal["time", "latency", "energy", "cost"]
# The band of chips without measurements: that of the operators of measured chips is 9 to 20 % (pricing/bands.csv).
UNMEASURED_BAND = 0.15
# The stated distribution of the host's times: all of a step are longer by one lognormal factor; its median is 1.
# Chosen: at the 99th percentile the host then takes twice its price, as on a machine that shares its cores.
SPREAD = 0.3
MOST_REPLAYED = 40  # moves whose gain is replayed; chosen: those of smaller nodes are added up from their prices


class TooSmallError(BringupError):
    """The chip's memory is below what any division of the program needs."""


@dataclass(frozen=True)
class Planned:
    """A plan, the replayer of its step, and the division that it proposes or, if it proposes nothing, would have."""

    plan: Plan
    replayer: Replayer
    on_chip: Mask | None


def place(
    trace: Trace,
    chip: str | os.PathLike[str] | Chip,
    host: str | os.PathLike[str] | Host | None = None,
    *,
    granularity: Granularity = "module",
    objective: Objective = "time",
    capacity: int | None = None,
    deadline: float | None = None,
    percentile: float = 50.0,
    host_clock: HostClock = "modelled",
) -> Plan:
    """Plan which launches of a recording run on the host and which on the chip. Nothing is run.

    Args:
        trace: from `record` or `Trace.load`.
        chip: name, file or loaded chip.
        host: name, file or loaded host (default: see `load_host`).
        granularity: what moves as one: an ``operator``'s launch, a ``line``'s launches, or those of a ``module``.
        objective: ``time`` of a step, ``latency`` of one step on an idle machine, or the chip's ``energy`` or ``cost``.
        capacity: bytes of the chip's memory that the program can have (default: what the chip file says).
        deadline: seconds that one step on an idle machine may take; the objective is then ``latency``.
        percentile: of the host's times, for which the plan is made; see `SPREAD`.
        host_clock: ``modelled`` or ``measured``.

    Raises:
        BringupError: the recording cannot be placed, or an argument is invalid.
    """
    return planned(
        trace,
        chip,
        host,
        granularity=granularity,
        objective=objective,
        capacity=capacity,
        deadline=deadline,
        percentile=percentile,
        host_clock=host_clock,
    ).plan


def planned(
    trace: Trace,
    chip: str | os.PathLike[str] | Chip,
    host: str | os.PathLike[str] | Host | None = None,
    *,
    granularity: Granularity = "module",
    objective: Objective = "time",
    capacity: int | None = None,
    deadline: float | None = None,
    percentile: float = 50.0,
    host_clock: HostClock = "modelled",
) -> Planned:
    """Plan as `place` does, and return what the plan's page shows beside it."""
    if granularity not in GRANULARITIES:
        raise BringupError(f"granularity must be {', '.join(GRANULARITIES)}, got {granularity!r}")
    described = chip if isinstance(chip, Chip) else load_chip(os.fspath(chip))
    _refuse_unknown(described, objective)
    if not 0 < percentile < 100:
        raise BringupError(f"percentile must be above 0 and below 100, got {percentile:g}")
    if deadline is not None and not (math.isfinite(deadline) and deadline > 0):
        raise BringupError(f"deadline must be a positive time, got {deadline:g} s")
    objective = "latency" if deadline is not None else objective
    replayer = replayer_of(trace, described, host, percentile=percentile, host_clock=host_clock)
    step = replayer.step
    groups = Groups.of_step(step, granularity)
    room = capacity_of(step, capacity)
    result = search(replayer, groups.ties(step, granularity), room, objective)
    band = band_of(step.timeline, result.as_is.outcome)
    chosen, proposes = _choose(replayer, result, band, objective)
    if deadline is not None:
        chosen, proposes = _in_time(result, deadline)
    plan = _plan(step, replayer, groups, result, chosen, proposes, band, granularity, objective)
    return Planned(replace(plan, deadline_seconds=deadline, percentile=percentile), replayer, chosen.on_chip)


def replayer_of(
    trace: Trace,
    chip: str | os.PathLike[str] | Chip,
    host: str | os.PathLike[str] | Host | None = None,
    *,
    percentile: float = 50.0,
    host_clock: HostClock = "modelled",
) -> Replayer:
    """Return the replayer of a recording's typical step; see `place` for the arguments."""
    described = chip if isinstance(chip, Chip) else load_chip(os.fspath(chip))
    machine = host if isinstance(host, Host) else load_host(None if host is None else os.fspath(host))
    timeline = replay(trace, described, machine, host_clock=host_clock)
    return Replayer(step_graph(timeline).slowed(slowness(percentile)))


def _refuse_unknown(chip: Chip, objective: Objective) -> None:
    """Refuse an objective of which the chip file says nothing.

    Raises:
        BringupError: it is one of them.
    """
    if objective == "energy" and chip.power is None:
        raise BringupError(f"{chip.name} has no [power], so its energy is not known: choose another objective")
    if objective == "cost" and (chip.price is None or chip.price.usd_per_hour is None):
        raise BringupError(f"{chip.name} has no price per hour, so its cost is not known: choose another objective")


def slowness(percentile: float) -> float:
    """Return how many times longer than its price the host takes at a percentile of its times."""
    return math.exp(SPREAD * NormalDist().inv_cdf(percentile / 100))


def _in_time(result: Search, deadline: float) -> tuple[Candidate, bool]:
    """Return what meets a deadline: the program as it is if it does, else the host alone, else the best candidate."""
    if result.fits and result.as_is.outcome.latency <= deadline:
        return result.as_is, False
    if result.all_host.outcome.latency <= min(deadline, result.best.outcome.latency):
        return result.all_host, True
    return result.best, result.best.outcome.latency <= deadline or not result.fits


def band_of(timeline: Timeline, outcome: Outcome) -> float:
    """Return how wrong prices may be: the error band of the chip for programs like this one."""
    band = error_band(timeline.chip, bound(outcome.busy_seconds, outcome.seconds), program_class(timeline.trace))
    return UNMEASURED_BAND if band.error is None else band.error


def capacity_of(step: Step, capacity: int | None) -> int:
    """Return the bytes that persistent storages can have: the chip's memory without what the step allocates.

    Raises:
        TooSmallError: it is less than one layer takes.
    """
    timeline = step.timeline
    peak = peak_of(step)
    total = timeline.chip.room_bytes if capacity is None else capacity
    persistent = float(step.persistent_bytes.sum())
    room = total - max(int(peak - persistent), 0)
    smallest = float(step.persistent_bytes.min()) if len(step.persistent) else 0.0
    if room < smallest or total <= 0:
        needed = total - room + smallest
        raise TooSmallError(
            f"{size(total)} of the chip's memory is below one layer: a step needs at least {size(needed)} "
            "(activations, workspaces, and the smallest parameter)"
        )
    return room


def peak_of(step: Step) -> int:
    """Return the most bytes that tensors hold in the step; what a program holds while it begins is not counted."""
    _, held = holders.memory_over_time(step.timeline.trace)
    return int(held[step.first : step.last].max(initial=0))


def _choose(replayer: Replayer, result: Search, band: float, objective: Objective) -> tuple[Candidate, bool]:
    """Return the division to apply, and True if it is proposed: it is better even if prices are wrong by the band."""
    if not result.fits:  # something has to leave the chip
        return result.best, True
    simple = min(result.as_is, result.all_host, key=lambda item: item.outcome.value(objective))
    if not turns_round(replayer, result.best, simple, band, objective):
        return result.best, True
    if simple is result.all_host and not turns_round(replayer, simple, result.as_is, band, objective):
        return simple, True
    return result.best, False


def _plan(
    step: Step,
    replayer: Replayer,
    groups: Groups,
    result: Search,
    chosen: Candidate,
    proposes: bool,
    band: float,
    granularity: Granularity,
    objective: Objective,
) -> Plan:
    everywhere = np.ones(len(step), dtype=bool)
    on_chip = everywhere & ~step.must_be_host if chosen.on_chip is None else chosen.on_chip
    applied = on_chip if proposes else everywhere & ~step.must_be_host
    trace = step.timeline.trace
    shown = {"all_chip": result.as_is, "all_host": result.all_host, "cheapest": result.cheaper}
    shown |= {} if result.fits else {"first_layers": result.first_layers}
    shown["proposed"] = chosen
    latency = objective == "latency"
    price = step.timeline.chip.price
    per_hour = price.usd_per_hour if price else None

    def seconds(candidate: Candidate) -> float:
        return candidate.outcome.latency if latency else candidate.outcome.seconds

    return Plan(
        chip=step.timeline.chip.name,
        host=step.timeline.host.name,
        program=str(trace.about.get("program", "")),
        granularity=granularity,
        objective=objective,
        all_chip_seconds=seconds(result.as_is),
        all_host_seconds=seconds(result.all_host),
        cheapest_seconds=seconds(result.cheaper),
        proposed_seconds=seconds(chosen),
        bound_seconds=min(result.bound, seconds(chosen)),
        band=band,
        proposes=proposes,
        fits=result.fits,
        moves=_moves(step, replayer, groups, on_chip, seconds(chosen), latency),
        entries=_entries(groups, applied),
        baselines={
            name: Baseline(
                seconds(item),
                item.outcome.resident_bytes,
                item.outcome.copied_bytes,
                None if math.isnan(item.outcome.joules) else item.outcome.joules,
                None if per_hour is None else per_hour * seconds(item) / 3600,
            )
            for name, item in shown.items()
        },
    )


def _entries(groups: Groups, on_chip: Array) -> list[Entry]:
    entries = []
    for number, nodes in groups.members():
        key = groups.keys[number]
        on_host = ~on_chip[nodes]
        names = {"op": key.op, "module": key.module, "line": key.line, "phase": key.phase, "calls": len(nodes)}
        if on_host.all() or not on_host.any():
            entries.append(Entry(where="host" if on_host.all() else "chip", **names))  # type: ignore[arg-type]
        else:
            calls = groups.call[nodes][on_host].tolist()
            entries.append(Entry(where="chip", calls_on_host=calls, **names))  # type: ignore[arg-type]
    return entries


def _moves(step: Step, replayer: Replayer, groups: Groups, on_chip: Array, seconds: float, latency: bool) -> list[Move]:
    """Return what runs on the host, merged over modules of a list, with the seconds that it saves."""
    trace = step.timeline.trace
    columns = trace.columns
    merged: dict[tuple[str, str], list[tuple[Key, Array]]] = {}
    for number, nodes in groups.members():
        gone = nodes[~on_chip[nodes] & ~step.must_be_host[nodes]]
        if not len(gone):
            continue
        key = groups.keys[number]
        row = step.rows[gone[0]]
        module = trace.modules[columns["module"][row]] if columns["module"][row] >= 0 else ""
        line = trace.line_of(row)
        merged.setdefault((MEMBER.sub(r"\1*", module), line), []).append((replace(key, module=module, line=line), gone))
    gains = {place: _gain(step, [nodes for _, nodes in parts]) for place, parts in merged.items()}
    largest = sorted(merged, key=lambda place: -gains[place])
    moves = []
    for rank, place in enumerate(largest):
        parts = merged[place]
        nodes = np.concatenate([part for _, part in parts])
        gain = gains[place]
        if rank < MOST_REPLAYED:
            back = on_chip.copy()
            back[nodes] = True
            outcome = replayer.outcome(back)
            gain = (outcome.latency if latency else outcome.seconds) - seconds
        file, number = split_line(place[1])
        moves.append(Move("host", names_as_one({key.module for key, _ in parts}), file, number, len(parts), gain))
    return sorted(moves, key=lambda move: (-move.seconds, move.module, move.file, move.line))


def _gain(step: Step, parts: list[Array]) -> float:
    nodes = np.concatenate(parts)
    nodes = nodes[step.kind[nodes] != D2H]
    chip = np.maximum(step.issue, step.chip)[nodes].sum()
    return float(chip - (step.call + step.host)[nodes].sum())
