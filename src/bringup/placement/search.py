"""The search for a placement: baselines, candidates of the cut, and the replay that judges them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from bringup.placement.cut import Costs, Memory, cheapest, crossings, overlapped, serial, total
from bringup.placement.graph import Step
from bringup.placement.placed import Factors, Outcome, Replayer
from bringup.recording.rows import D2H

Mask = npt.NDArray[np.bool_]
WEIGHTS = (1.0, 0.7, 0.5, 0.3, 0.0)  # chosen: further ones changed none of eight programs' plans
MANY = 20_000  # nodes, from which the search tries two weights; chosen: 100,000 nodes then take a few seconds
FEW_WEIGHTS = (1.0, 0.5)
BYTE_PRICES = (0.0, 1e-13, 1e-12, 1e-11)  # seconds per resident byte: 10 TB/s to 100 GB/s, the rates of memories
LEAVES = ("least used", "last", "first")  # storages that leave the chip until the others fit
MOST_BETWEEN = 8  # cuts between two weights; chosen: eight programs take at most four
CLIMBS = 3  # rounds over the largest groups, each turned round on its own; chosen: a fourth found nothing


@dataclass(frozen=True)
class Candidate:
    """A division of the step and its replay. `on_chip` is None for the recorded program as it is."""

    on_chip: Mask | None
    outcome: Outcome


@dataclass(frozen=True)
class Search:
    """What a search has found.

    Attributes:
        as_is: the recorded program; `fits` is False if the chip cannot hold it.
        all_host: everything on the host.
        cheaper: each node where its own price is lower, copies not counted.
        first_layers: the rule of llama.cpp's ``-ngl``: the first layers on the chip, as many as it holds.
        best: the candidate of least objective, baselines that fit among them.
        bound: a lower bound of the step's seconds for every division of it.
        tried: the number of divisions that were replayed.
    """

    as_is: Candidate
    fits: bool
    all_host: Candidate
    cheaper: Candidate
    first_layers: Candidate
    best: Candidate
    bound: float
    tried: int


def search(replayer: Replayer, ties: npt.NDArray[np.int64], capacity: int, objective: str = "time") -> Search:
    """Look for the division of least objective: ``time``, ``latency``, ``energy`` or ``cost``.

    Args:
        replayer: replays divisions of the step.
        ties: a number per node; nodes with equal numbers stay together.
        capacity: bytes of persistent storages that the chip can hold.
        objective: what to minimise.
    """
    step = replayer.step
    free = ~(step.must_be_host | step.must_be_chip)
    everywhere = np.ones(len(step), dtype=bool)
    as_is = Candidate(None, replayer.outcome(None))
    all_host = Candidate(step.must_be_chip, replayer.outcome(step.must_be_chip))
    cheap = np.where(free, step.chip < step.host, step.must_be_chip)
    cheaper = Candidate(cheap, replayer.outcome(cheap))
    fits = step.resident_bytes(everywhere) <= capacity
    tries: dict[bytes, Mask] = {}
    start = _together(step, cheap, ties)
    starts = [start] if step.resident_bytes(start) <= capacity else []
    layers = _together(step, _first_layers(step, capacity), ties)
    first_layers = Candidate(layers, replayer.outcome(layers))
    for division in itertools.chain(starts, _cuts(step, ties, capacity, objective)):
        tries.setdefault(np.packbits(division).tobytes(), division)
    candidates = [Candidate(division, replayer.outcome(division)) for division in tries.values()]
    candidates += [all_host, first_layers, *([as_is] if fits else [])]
    best = min(candidates, key=lambda item: item.outcome.value(objective))
    best = _climb(replayer, best, ties, capacity, objective)
    return Search(as_is, fits, all_host, cheaper, first_layers, best, lower_bound(step), len(candidates) + 1)


def lower_bound(step: Step) -> float:
    """Return seconds that no division of the step undercuts, see Note [The cut]; memory is taken as unlimited."""
    columns = step.timeline.trace.columns
    part = slice(step.first, step.last)
    one_thread = len(np.unique(columns["thread"][part])) == 1
    one_stream = len(np.unique(columns["stream"][step.rows])) == 1
    ties = np.arange(len(step))
    weights = WEIGHTS if len(step) < MANY else FEW_WEIGHTS
    bounds = [0.0]
    for weight in weights if one_thread and one_stream else [1.0]:
        costs = overlapped(step, weight)
        bounds.append(total(step, costs, cheapest(step, costs, ties)))
    return max(bounds)


def _cuts(step: Step, ties: npt.NDArray[np.int64], capacity: int, objective: str) -> Iterator[Mask]:
    chip = step.timeline.chip
    price = 0.0
    if objective == "energy" and chip.power is not None:
        idle = chip.joules(1.0, 0.0) or 1.0
        price = (chip.power.tdp_w - idle) / max(idle, 1e-3)  # a busy second costs as much energy as these idle ones
    many = len(step) >= MANY
    forms = (serial, overlapped)
    if step.resident_bytes(np.ones(len(step), dtype=bool)) <= capacity:
        for form in forms:
            yield from _by_weights(step, partial(form, step, busy_price=price), ties, many)
        return
    weights, prices = (FEW_WEIGHTS, BYTE_PRICES[:2]) if many else (WEIGHTS, BYTE_PRICES)
    for form, weight, byte_price in itertools.product(forms, weights, prices):
        yield from _within(step, form(step, weight, price), ties, capacity, byte_price)


def _by_weights(step: Step, costs: Callable[[float], Costs], ties: npt.NDArray[np.int64], many: bool) -> Iterator[Mask]:
    """Yield cuts of fixed weights, and of those at which the host's thread is as busy as the chip's stream.

    Of all cuts, one of the latter has the least maximum of both: where the lines of two cuts over the weight meet.
    """
    ends = (costs(0.0), costs(1.0))

    def busy(division: Mask) -> tuple[float, float]:
        stream, thread = (total(step, end, division) for end in ends)
        return stream, thread

    divisions = {weight: cheapest(step, costs(weight), ties) for weight in (FEW_WEIGHTS if many else WEIGHTS)}
    yield from divisions.values()
    points = [busy(division) for division in divisions.values()]
    left = min((point for point in points if point[1] <= point[0]), key=lambda point: point[0], default=None)
    right = min((point for point in points if point[1] > point[0]), key=lambda point: point[1], default=None)
    for _ in range(MOST_BETWEEN):
        if left is None or right is None:
            return
        rise = (left[1] - left[0]) - (right[1] - right[0])
        weight = (right[0] - left[0]) / rise if rise else -1.0
        if not 0.0 <= weight <= 1.0:
            return
        division = cheapest(step, costs(weight), ties)
        stream, thread = busy(division)
        if weight * thread + (1 - weight) * stream >= (weight * left[1] + (1 - weight) * left[0]) * (1 - 1e-9):
            return
        yield division
        left, right = ((stream, thread), right) if thread <= stream else (left, (stream, thread))


def _within(step: Step, costs: Costs, ties: npt.NDArray[np.int64], capacity: int, price: float) -> Iterator[Mask]:
    """Cut, ban storages until the others fit, and cut again: identical layers leave one by one, in every order."""
    first = cheapest(step, costs, ties, Memory(price))
    for leaves in LEAVES:
        division, banned = first, np.zeros(len(step.persistent), dtype=bool)
        while step.resident_bytes(division) > capacity and not banned.all():
            banned |= _beyond(step, costs, division, capacity, leaves)
            division = cheapest(step, costs, ties, Memory(price, banned))
        yield division


def _beyond(step: Step, costs: Costs, division: Mask, capacity: int, leaves: str) -> Mask:
    """Return the storages to give up: the last or the first of the program, or those of least use per byte."""
    used = division[step.holder]
    count = len(step.persistent)
    gain = np.bincount(step.held[used], np.maximum(costs.host - costs.chip, 0.0)[step.holder[used]], count)
    first = np.full(count, len(step))
    np.minimum.at(first, step.held[used], step.holder[used])
    resident = np.flatnonzero(first < len(step))
    per_byte = gain[resident] / np.maximum(step.persistent_bytes[resident], 1.0)
    alike = np.round(2 * np.log10(per_byte + 1e-30))  # half decades: layers of one kind differ by less
    orders = {"last": (first[resident],), "first": (-first[resident],), "least used": (first[resident], -alike)}
    order = resident[np.lexsort(orders[leaves])]
    beyond = np.cumsum(step.persistent_bytes[order]) > capacity
    banned = np.zeros(count, dtype=bool)
    banned[order[beyond]] = True
    return banned


def _first_layers(step: Step, capacity: int) -> Mask:
    """Return the rule of llama.cpp's ``-ngl``: the first layers are on the chip, as many as it holds."""
    order = np.argsort(step.holder, kind="stable")
    _, firsts = np.unique(step.held[order], return_index=True)
    grows = np.zeros(len(step))
    np.add.at(grows, step.holder[order][firsts], step.persistent_bytes[step.held[order][firsts]])
    fits: Mask = np.cumsum(grows) <= capacity
    return (fits & ~step.must_be_host) | step.must_be_chip


def _together(step: Step, on_chip: Mask, ties: npt.NDArray[np.int64]) -> Mask:
    """Return a division in which nodes with equal ties run on the chip only if all of them do."""
    _, group = np.unique(ties, return_inverse=True)
    apart = np.bincount(group.ravel(), ~on_chip) > 0
    tied: Mask = (on_chip & ~apart[group.ravel()]) | step.must_be_chip
    return tied


def _climb(
    replayer: Replayer, best: Candidate, ties: npt.NDArray[np.int64], capacity: int, objective: str
) -> Candidate:
    """Turn round the nodes beside crossings, group by group, and keep what the replay says is better."""
    step = replayer.step
    if best.on_chip is None or len(step) >= MANY:
        return best
    for _ in range(CLIMBS):
        before = best
        assert best.on_chip is not None
        crossing, _side = crossings(step, best.on_chip)
        makers = step.maker[step.read[crossing]]
        beside = np.unique(ties[np.concatenate([step.reader[crossing], makers[makers >= 0]])])
        for group in beside[:64].tolist():  # chosen: more groups than any plan of eight programs has at its border
            nodes = (ties == group) & ~(step.must_be_host | step.must_be_chip) & (step.kind != D2H)
            division = best.on_chip ^ nodes
            if step.resident_bytes(division) > capacity:
                continue
            outcome = replayer.outcome(division)
            if outcome.value(objective) < best.outcome.value(objective):
                best = Candidate(division, outcome)
        if best is before:
            break
    return best


def turns_round(replayer: Replayer, new: Candidate, old: Candidate, band: float, objective: str) -> bool:
    """Return True if prices that are wrong by the band make the new division worse than the old one.

    The chip's, the host's and the calls' prices are wrong independently, each by a factor of ``1 + band`` or its
    inverse.
    """
    if new.outcome.value(objective) >= (1 - band) * old.outcome.value(objective):
        return True
    corners = itertools.product((1 + band, 1 / (1 + band)), repeat=3)
    return any(
        replayer.outcome(new.on_chip, factors).value(objective)
        >= replayer.outcome(old.on_chip, factors).value(objective)
        for factors in itertools.starmap(Factors, corners)
    )
