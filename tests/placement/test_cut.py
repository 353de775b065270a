"""The minimum cut equals the best of all divisions, and comes within 1 % of the exact optimum of the step's time."""

import itertools
from typing import Any

import numpy as np
import pytest

from bringup.machine.files import load_chip, load_host
from bringup.placement.cut import Costs, Memory, cheapest, overlapped, serial, total
from bringup.placement.graph import ALWAYS_ON_CHIP, OUTSIDE, Step, step_graph
from bringup.placement.search import WEIGHTS
from bringup.recording.rows import D2H
from bringup.timeline.replay import replay
from tests.placement.steps import PROGRAMS, random_step, recorded


def best_of_all(step: Step, costs: Costs, price: float = 0.0) -> float:
    """The least cost of all divisions, by trying each."""
    free = np.flatnonzero(~step.must_be_host)
    on_chip = np.zeros((1 << len(free), len(step)), dtype=bool)
    on_chip[:, free] = np.asarray(list(itertools.product([False, True], repeat=len(free))))
    sums = on_chip @ costs.chip + ~on_chip @ costs.host
    for value in np.unique(step.read):
        readers, maker = on_chip[:, step.reader[step.read == value]], on_chip[:, step.maker[value]]
        sums += np.where(maker & (~readers).any(1), costs.down[value], 0.0)
        sums += np.where(~maker & readers.any(1), costs.up[value], 0.0)
    for storage in range(len(step.persistent)):
        used = on_chip[:, step.holder[step.held == storage]].any(1)
        sums += used * price * step.persistent_bytes[storage]
    return float(sums.min())


@pytest.mark.parametrize("seed", range(200))
def test_cut_equals_the_best_of_all_divisions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    step = random_step(rng, int(rng.integers(1, 15)), persistent=int(rng.integers(0, 4)))
    form = serial if seed % 2 else overlapped
    costs, price = form(step, rng.random()), rng.choice([0.0, 1e-11])
    division = cheapest(step, costs, np.arange(len(step)), Memory(price))
    paid = total(step, costs, division)
    for storage in range(len(step.persistent)):
        paid += price * step.persistent_bytes[storage] * division[step.holder[step.held == storage]].any()
    assert paid == pytest.approx(best_of_all(step, costs, price), rel=1e-6)


def exact(step: Step, capacity: float = np.inf) -> float:
    """The least time without overlap of copies, by HiGHS: what runs on the host, copies, and the busier of two.

    Persistent storages of the chip take at most the capacity. Where HiGHS needs too long, a lower bound.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    calls, kernels = serial(step, 1.0), serial(step, 0.0)
    nodes = len(step)
    objective: list[float] = [0.0] * nodes
    upper = [0.0 if must else 1.0 for must in step.must_be_host]
    terms: list[tuple[int, int, float]] = []
    lowest: list[float] = []

    def constrain(low: float, *parts: tuple[int, float]) -> None:
        terms.extend((len(lowest), variable, factor) for variable, factor in parts)
        lowest.append(low)

    copies = []
    for reader, value in zip(step.reader.tolist(), step.read.tolist(), strict=True):
        if step.kind[reader] == D2H or step.maker[value] == OUTSIDE:
            continue
        copies.append((reader, value))
    number = {}
    for _, value in copies:
        if value not in number:
            number[value] = len(objective)
            objective += [0.0, 0.0]
            upper += [1.0, 1.0]
    for reader, value in copies:
        down, maker = number[value], int(step.maker[value])
        if maker == ALWAYS_ON_CHIP:
            constrain(1.0, (down, 1.0), (reader, 1.0))
        else:
            constrain(0.0, (down, 1.0), (maker, -1.0), (reader, 1.0))
            constrain(0.0, (down + 1, 1.0), (maker, 1.0), (reader, -1.0))
    longest = len(objective)
    objective.append(1e3)
    upper.append(np.inf)
    for costs in (calls, kernels):
        parts: list[tuple[int, float]] = [(longest, 1.0)]
        parts += [(node, -1e3 * float(costs.chip[node] - costs.host[node])) for node in range(nodes)]
        parts += [(at + 1, -1e3 * float(costs.up[value])) for value, at in number.items()]
        parts += [(at, -1e3 * float(costs.down[value])) for value, at in number.items()]
        constrain(1e3 * float(costs.host.sum() + costs.constant), *parts)
    if step.persistent_bytes.sum() > capacity:
        first = len(objective)
        objective += [0.0] * len(step.persistent)
        upper += [1.0] * len(step.persistent)
        for node, storage in zip(step.holder.tolist(), step.held.tolist(), strict=True):
            constrain(0.0, (first + storage, 1.0), (node, -1.0))
        shares = (step.persistent_bytes / capacity).tolist()
        constrain(-1.0, *((first + storage, -share) for storage, share in enumerate(shares)))
    rows, places, factors = (np.asarray(item) for item in zip(*terms, strict=True))
    matrix = coo_array((factors, (rows, places)), shape=(len(lowest), len(objective))).tocsr()
    done = milp(
        np.asarray(objective) / 1e3,
        integrality=np.asarray([1] * nodes + [0] * (len(objective) - nodes)),
        bounds=Bounds(0, np.asarray(upper)),
        constraints=LinearConstraint(matrix, np.asarray(lowest), np.inf),
        options={"mip_rel_gap": 1e-4, "time_limit": 60},
    )
    assert done.success or done.status == 1
    return float(done.fun if done.success else done.mip_dual_bound) / 1e3


def without_overlap(step: Step, on_chip: Any) -> float:
    return max(total(step, serial(step, weight), on_chip) for weight in (0.0, 1.0))


@pytest.mark.parametrize("chip", ["t4", "h100-sxm"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_cut_is_within_a_percent_of_the_exact_optimum(name: str, chip: str) -> None:
    step = step_graph(replay(recorded(name), load_chip(chip), load_host()))
    divisions = [cheapest(step, serial(step, weight), np.arange(len(step))) for weight in WEIGHTS]
    best = min(without_overlap(step, division) for division in divisions)
    assert best <= 1.01 * exact(step)
