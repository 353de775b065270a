"""Eight whole programs: the exact optimum, wrong prices, memory, and plans in force. Minutes long."""

import gc
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import bringup
from bringup.machine.files import load_host
from bringup.machine.schema import Host
from bringup.placement.graph import Step, step_graph
from bringup.placement.groups import Groups
from bringup.placement.place import _choose, band_of, capacity_of
from bringup.placement.placed import Replayer
from bringup.placement.search import _cuts, search
from bringup.recording.rows import LAUNCH
from bringup.recording.trace import Trace
from bringup.timeline.replay import replay
from bringup.timeline.steady import step_seconds
from tests.conftest import ROOT
from tests.placement.test_cut import exact, without_overlap

sys.path.insert(0, str(ROOT / "benchmarks"))
from placed_programs import PROGRAMS, chip_for, recorded

pytestmark = pytest.mark.slow
CHIPS = ("t4", "h100-sxm")
APPLIED = ("dlrm", "detector", "t5", "lstm", "llm", "resnet")
WRONG = 0.15  # sigma of the lognormal error of all prices of chip, host and calls; half of it per kind of launch


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    torch.manual_seed(0)
    devices = torch.chip.device_count()
    gc.collect()
    bringup.use("h100-sxm", devices=devices)  # which has the memory
    recordings = {name: recorded(name) for name in PROGRAMS}
    gc.collect()
    bringup.use("edge8", devices=devices)
    return recordings


def step_of(trace: Trace, program: str, chip: str) -> Step:
    return step_graph(replay(trace, chip_for(program, chip), load_host()))


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_cut_is_within_a_percent_of_the_exact_optimum(name: str, chip: str, traces: dict[str, Trace]) -> None:
    step = step_of(traces[name], name, chip)
    room = capacity_of(step, None)
    divisions = list(_cuts(step, np.arange(len(step)), room, "time"))
    best = min(without_overlap(step, item) for item in divisions if step.resident_bytes(item) <= room)
    assert best <= 1.01 * exact(step, room)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_plan_is_never_worse_than_a_baseline(name: str, chip: str, traces: dict[str, Trace]) -> None:
    plan = bringup.place(traces[name], chip_for(name, chip), granularity="operator")
    room = capacity_of(step_of(traces[name], name, chip), None)
    fitting = [item.seconds for item in plan.baselines.values() if item.resident_bytes <= room]
    assert plan.bound_seconds <= plan.proposed_seconds <= min(fitting) * (1 + 1e-9)
    assert plan.baselines["proposed"].resident_bytes <= room


def test_llm_of_13b_parameters_is_no_slower_than_by_the_layer_rule(traces: dict[str, Trace]) -> None:
    for granularity in ("module", "operator"):
        plan = bringup.place(traces["llm"], "t4", granularity=granularity)  # type: ignore[arg-type]
        assert not plan.fits and plan.proposes
        assert plan.proposed_seconds <= plan.baselines["first_layers"].seconds * (1 + 1e-9)


def wrong(step: Step, seed: int) -> Step:
    """The step with wrong prices."""
    rng = np.random.default_rng(seed)
    trace, inputs = step.timeline.trace, step.inputs
    chip, host, calls = rng.lognormal(0, WRONG, 3)
    kinds = len(trace.signatures)
    by_kind = [np.append(rng.lognormal(0, WRONG / 2, kinds), 1.0) for _ in range(2)]
    columns = trace.columns
    signature = np.where(columns["kind"] == LAUNCH, columns["signature"], kinds)
    seconds = inputs.seconds * chip * by_kind[0][signature]
    of_node = signature[step.rows]
    return replace(
        step,
        inputs=replace(inputs, seconds=seconds, host_seconds=inputs.host_seconds * calls, parts=inputs.parts * host),
        chip=step.chip * chip * by_kind[0][of_node],
        host=step.host * host * by_kind[1][of_node],
        **{name: getattr(step, name) * calls for name in ("issue", "call", "waits")},
    )


def test_wrong_prices_cost_little_and_nothing_is_proposed_inside_the_band(traces: dict[str, Trace]) -> None:
    regrets = []
    for name, chip in zip(PROGRAMS, CHIPS * 4, strict=True):
        step = step_of(traces[name], name, chip)
        replayer, room, ties = (
            Replayer(step),
            capacity_of(step, None),
            Groups.of_step(step, "module").ties(step, "module"),
        )
        right = search(replayer, ties, room)
        for seed in range(50):
            misled = Replayer(wrong(step, seed))
            result = search(misled, ties, room)
            band = band_of(step.timeline, result.as_is.outcome)
            chosen, proposes = _choose(misled, result, band, "time")
            gain = 1 - chosen.outcome.seconds / result.as_is.outcome.seconds
            assert not proposes or not result.fits or gain > band, name
            seconds = replayer.outcome(chosen.on_chip).seconds
            regrets.append(max(seconds / right.best.outcome.seconds - 1, 0.0))
    assert np.mean(regrets) <= 0.03


def run(name: str, steps: int = 3) -> tuple[Trace, list[torch.Tensor]]:
    torch.manual_seed(0)
    with torch.no_grad():
        step = PROGRAMS[name](True)
        results = []
        with bringup.record() as trace:
            for _ in range(steps):
                results.append(step())
                bringup.step()
            torch.chip.synchronize()
    return trace, results


def slower(factor: float) -> Host:
    """A host that computes so many times slower, so that plans divide small programs, too."""
    host = load_host()
    compute = host.compute.model_copy(
        update={
            "vector_tflops": host.compute.vector_tflops / factor,
            "memory_gb_s": host.compute.memory_gb_s / factor,
            "kernel_us": host.compute.kernel_us * factor**0.5,
        }
    )
    return host.model_copy(update={"compute": compute})


@pytest.mark.parametrize("factor", [1, 16])
@pytest.mark.parametrize("granularity", ["module", "operator"])
@pytest.mark.parametrize("name", APPLIED)
def test_placed_program_is_equal_and_as_planned(name: str, granularity: Any, factor: float) -> None:
    trace, expected = run(name)
    chip, host = chip_for(name, "h100-sxm"), slower(factor)
    step = step_graph(replay(trace, chip, host))
    held = int(step.persistent_bytes.sum())
    little = chip.room_bytes - capacity_of(step, None) + held * 2 // 3  # too little for the program
    plan = bringup.place(trace, chip, host, granularity=granularity, capacity=little if name == "llm" else None)
    if not plan.proposes:
        plan = bringup.place(trace, chip, host, granularity=granularity, capacity=little)
    assert plan.proposes and any(entry.where == "host" or entry.calls_on_host for entry in plan.entries)
    with bringup.placed(plan):
        placed, results = run(name)
    assert all(torch.equal(one, other) for one, other in zip(expected, results, strict=True))
    facts = placed.about["placement"]
    assert facts["launches_as_planned"] >= 0.99 * placed.launches
    assert step_seconds(replay(placed, chip, host)) == pytest.approx(plan.proposed_seconds, rel=0.01)
