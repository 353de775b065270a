"""Plans of recordings: baselines, memory, the error band, and mistakes."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bringup
from bringup.machine.files import load_chip, load_host
from bringup.placement.graph import step_graph
from bringup.placement.groups import GRANULARITIES, Groups
from bringup.placement.place import peak_of
from bringup.placement.placed import Factors, Replayer
from bringup.placement.search import lower_bound, search, turns_round
from bringup.recording.rows import H2D
from bringup.recording.trace import Trace
from bringup.timeline.replay import replay
from bringup.timeline.steady import step_seconds
from tests.placement.steps import PROGRAMS, recorded


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    return {name: recorded(name) for name in PROGRAMS}


def replayer_of(trace: Trace, chip: str) -> Replayer:
    return Replayer(step_graph(replay(trace, load_chip(chip), load_host())))


@pytest.mark.parametrize("name", PROGRAMS)
def test_replay_as_it_is_equals_the_summary(name: str, traces: dict[str, Trace]) -> None:
    replayer = replayer_of(traces[name], "t4")
    seconds = step_seconds(replayer.step.timeline)
    assert replayer.outcome(None).seconds == pytest.approx(seconds, rel=0.02)
    everywhere = np.ones(len(replayer.step), dtype=bool)
    assert replayer.outcome(everywhere).seconds == pytest.approx(replayer.outcome(None).seconds, rel=1e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_plan_is_no_worse_than_any_baseline(name: str, granularity: Any, traces: dict[str, Trace]) -> None:
    for chip in ("t4", "h100-sxm"):
        plan = bringup.place(traces[name], chip, granularity=granularity)
        baselines = [plan.all_host_seconds, *([plan.all_chip_seconds] if plan.fits else [])]
        if plan.proposes and name != "layers":
            assert plan.proposed_seconds <= min(baselines) * (1 + 1e-9)
        assert plan.bound_seconds <= plan.proposed_seconds
        calls = sum(entry.calls for entry in plan.entries)
        step = replayer_of(traces[name], chip).step
        assert calls == np.count_nonzero(Groups.of_step(step, granularity).group >= 0)


def test_weights_that_the_end_of_the_program_frees_were_on_the_chip() -> None:
    with bringup.record() as trace:
        model = torch.nn.Linear(1024, 1024, bias=False).to("chip").eval()
        for _ in range(2):
            x = torch.ones(8, 1024).to("chip")
            with torch.no_grad():
                y = model(x).sum()
        y.item()
        del model
    plan = bringup.place(trace, "t4")
    assert plan.baselines["all_chip"].resident_bytes == 4 << 20
    assert plan.baselines["all_host"].resident_bytes == 0


def test_tables_go_to_the_host_and_the_rest_stays(traces: dict[str, Trace]) -> None:
    plan = bringup.place(traces["tables"], "h100-sxm")
    assert plan.proposes and plan.proposed_seconds < 0.9 * min(plan.all_chip_seconds, plan.all_host_seconds)
    sides = {entry.module: entry.where for entry in plan.entries if entry.module}
    assert {sides[f"tables.{i}"] for i in range(8)} == {"host"}
    assert plan.moves[0].where == "host" and plan.moves[0].module == "tables.0-7" and plan.moves[0].groups == 8


def test_small_program_goes_to_the_host_as_a_whole(traces: dict[str, Trace]) -> None:
    plan = bringup.place(traces["cell"], "h100-sxm")
    assert plan.proposes and {entry.where for entry in plan.entries} == {"host"}
    assert plan.proposed_seconds == plan.all_host_seconds


def test_equal_layers_leave_one_by_one(traces: dict[str, Trace]) -> None:
    mib = 1 << 20
    for layers in (3, 7, 11):  # of 16 MiB each, beside activations
        plan = bringup.place(traces["layers"], "h100-sxm", capacity=(16 * layers + 8) * mib)
        sides = {entry.module: entry.where for entry in plan.entries if entry.module.startswith("layers.")}
        assert not plan.fits and plan.proposes
        assert plan.baselines["proposed"].resident_bytes <= (16 * layers + 8) * mib
        assert sum(side == "chip" for side in sides.values()) <= layers


def test_nothing_is_proposed_inside_the_band(traces: dict[str, Trace]) -> None:
    for chip in ("t4", "h100-sxm", "a100-sxm-80"):
        for trace in traces.values():
            plan = bringup.place(trace, chip)
            gain = 1 - plan.proposed_seconds / plan.all_chip_seconds
            assert not plan.proposes or gain > plan.band or not plan.fits
            assert plan.proposes or {entry.where for entry in plan.entries} == {"chip"}


def test_wrong_prices_cost_little_regret(traces: dict[str, Trace]) -> None:
    regrets = []
    for name in ("tables", "cell", "training"):
        replayer = replayer_of(traces[name], "h100-sxm")
        ties = np.arange(len(replayer.step))
        best = search(replayer, ties, 1 << 40)
        assert not turns_round(replayer, best.best, best.as_is, 0.15, "time") or name == "training"
        for seed in range(10):
            wrong = Factors(*np.random.default_rng(seed).lognormal(0, 0.15, 3).tolist())
            seconds = replayer.outcome(best.best.on_chip, wrong).seconds
            others = [replayer.outcome(item.on_chip, wrong).seconds for item in (best.as_is, best.all_host)]
            regrets.append(max(seconds / min(*others, seconds) - 1, 0.0))
    assert np.mean(regrets) <= 0.03


@pytest.mark.parametrize("name", PROGRAMS)
def test_bound_is_below_random_placements(name: str, traces: dict[str, Trace]) -> None:
    replayer = replayer_of(traces[name], "h100-sxm")
    bound, rng = lower_bound(replayer.step), np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9):
        division = rng.random(len(replayer.step)) < share
        assert bound <= replayer.outcome(division & ~replayer.step.must_be_host).seconds * (1 + 1e-9)


def test_objectives(traces: dict[str, Trace]) -> None:
    plans = {
        name: bringup.place(traces["tables"], "h100-sxm", objective=name) for name in ("time", "latency", "energy")
    }
    joules = {name: plan.baselines["proposed"].joules for name, plan in plans.items()}
    assert joules["energy"] is not None and joules["time"] is not None and joules["energy"] <= joules["time"]
    assert plans["latency"].proposed_seconds >= plans["time"].proposed_seconds * 0.99


def test_cost_is_that_of_the_chips_time(traces: dict[str, Trace]) -> None:
    plans = {name: bringup.place(traces["tables"], "h100-sxm", objective=name) for name in ("time", "cost")}
    price = load_chip("h100-sxm").price
    assert price is not None and price.usd_per_hour is not None
    assert plans["cost"].entries == plans["time"].entries
    proposed = plans["cost"].baselines["proposed"]
    assert proposed.dollars == pytest.approx(price.usd_per_hour / 3600 * proposed.seconds)


def test_peak_of_the_set_up_is_not_needed_by_steps() -> None:
    """Weights that a program draws as float32 and keeps as bfloat16."""
    with bringup.dry(), warnings.catch_warnings():
        warnings.simplefilter("ignore", bringup.DryWarning)
        with bringup.record() as trace, torch.no_grad():
            model = torch.nn.Sequential(*(torch.nn.Linear(4096, 4096, bias=False) for _ in range(8))).to("chip")
            model = model.to(torch.bfloat16)
            for _ in range(3):
                model(torch.zeros(16, 4096, dtype=torch.bfloat16).to("chip")).cpu()
                bringup.step()
    step = replayer_of(trace, "t4").step
    layer = 4096 * 4096 * 2
    assert step.persistent_bytes.sum() == 8 * layer
    assert 8 * layer <= peak_of(step) < 9 * layer
    assert bringup.place(trace, "t4", capacity=10 * layer).fits


def test_deadline_moves_only_what_it_has_to(traces: dict[str, Trace]) -> None:
    trace = traces["tables"]
    free = bringup.place(trace, "h100-sxm", objective="latency")
    easy = bringup.place(trace, "h100-sxm", deadline=1.0)
    assert not easy.proposes and {entry.where for entry in easy.entries} == {"chip"}
    between = (free.proposed_seconds + free.all_chip_seconds) / 2
    needed = bringup.place(trace, "h100-sxm", deadline=between)
    assert needed.proposes and needed.proposed_seconds <= between
    assert not bringup.place(trace, "h100-sxm", deadline=free.bound_seconds / 10).proposes


def test_percentile_lengthens_the_hosts_times(traces: dict[str, Trace]) -> None:
    plans = [bringup.place(traces["cell"], "h100-sxm", percentile=percentile) for percentile in (50, 99)]
    factor = 2.0095  # exp(0.3 * 2.3263)
    assert plans[1].all_host_seconds == pytest.approx(factor * plans[0].all_host_seconds, rel=0.01)
    with pytest.raises(bringup.BringupError, match="percentile must be above 0 and below 100, got 100"):
        bringup.place(traces["cell"], "h100-sxm", percentile=100)


def test_mistakes_are_one_sentence(traces: dict[str, Trace], tmp_path: Path) -> None:
    chip = load_chip("edge8")
    with pytest.raises(bringup.BringupError, match="below one layer: a step needs at least"):
        bringup.place(traces["layers"], "t4", capacity=1 << 20)
    with pytest.raises(bringup.BringupError, match="granularity must be operator, line, module"):
        bringup.place(traces["layers"], chip, granularity="layer")  # type: ignore[arg-type]
    without = chip.model_copy(update={"power": None})
    with pytest.raises(bringup.BringupError, match=r"has no \[power\]"):
        bringup.place(traces["layers"], without, objective="energy")
    without = chip.model_copy(update={"price": None})
    with pytest.raises(bringup.BringupError, match="has no price per hour"):
        bringup.place(traces["layers"], without, objective="cost")
    for damage, sentence in ((-(10**12), "has negative times, so nothing can be placed"), (np.nan, "is not finite")):
        columns = {name: values.copy() for name, values in traces["layers"].columns.items()}
        columns["bytes"] = np.where(columns["kind"] == H2D, damage, columns["bytes"])
        damaged = replace(traces["layers"], columns=columns)
        with pytest.raises(bringup.BringupError, match=sentence):
            bringup.place(damaged, "t4")
    with bringup.record() as empty:
        pass
    with pytest.raises(bringup.BringupError, match="no launches"):
        bringup.place(empty, "t4")


def test_command_prints_and_writes(
    traces: dict[str, Trace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bringup.cli import bringup as verbs

    monkeypatch.chdir(tmp_path)
    traces["tables"].save("trace.npz")

    def run(*arguments: str) -> str:
        trace = [] if "--break-even" in arguments else ["trace.npz"]
        verbs.main(["place", *trace, "--chip", "h100-sxm", *arguments], standalone_mode=False)
        return capsys.readouterr().out

    screen = run("--out", "plan.toml")
    assert "each where its own price is lower" in screen and "page: plan.html" in screen
    assert "timeline of one step after" in Path("plan.html").read_text(encoding="utf-8")
    assert "all on the chip" in screen and "1. tables.0-7 (8 groups" in screen and "plan: plan.toml" in screen
    data = json.loads(run("--json"))
    assert data["proposes"] and data["plan"] is None and data["moves"][0]["where"] == "host"
    names = {"chip", "host", "all_chip_seconds", "all_host_seconds", "cheapest_seconds", "proposed_seconds"}
    assert names | {"bound_seconds", "band", "proposes", "moves", "plan"} <= set(data)
    plan = bringup.Plan.load("plan.toml")
    assert plan.proposed_seconds == data["proposed_seconds"]
    assert "leave it as it is: the chip alone takes less than 1.0 s" in run("--deadline", "1s")
    assert "plan: stays.toml, which moves nothing" in run("--deadline", "1s", "--out", "stays.toml")
    assert "host times at percentile 99, 2.01 times their prices" in run("--percentile", "99")
    assert "is faster than xeon-8275cl" in run("--break-even", "--out", "sizes.html")
    assert "copied up and down" in Path("sizes.html").read_text(encoding="utf-8")
    with pytest.raises(bringup.BringupError, match="the plan is a TOML file, whose page gets its name"):
        run("--out", "plan.html")
    for arguments, message in (
        (("--break-even", "--offload", "--objective", "time"), "--break-even excludes --objective, --offload: leave"),
        (("--offload", "--out", "plan.toml"), "--offload excludes --out: leave"),
        (("--chips", "t4,l4", "--capacity", "1GiB"), "--chips excludes --chip, --capacity: leave"),
    ):
        with pytest.raises(bringup.BringupError, match=message):
            run(*arguments)
    with pytest.raises(bringup.BringupError, match="--break-even is of a chip and a host, not of a recording: leave"):
        verbs.main(["place", "trace.npz", "--break-even"], standalone_mode=False)
    assert {row["op"] for row in json.loads(run("--break-even", "--json"))["operators"]} >= {"add", "mm"}
