"""Plans in force: equal results, launches where planned, and a replay that equals the plan."""

import inspect
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bringup
from bringup.analyse.holders import memory_over_time, usage
from bringup.analyse.summarize import by_group
from bringup.placement.apply import unplanned
from bringup.recording.rows import D2H, H2D, LAUNCH, ON_HOST
from bringup.recording.trace import Trace
from bringup.recording.waits import own_waits
from bringup.report import figures, html, perfetto
from bringup.report.lines import placement_lines
from bringup.timeline.replay import replay
from bringup.timeline.steady import step_seconds
from tests.placement.steps import Tables
from tests.report.traces import read as read_trace

Program = Callable[[], torch.Tensor]


def tables() -> Program:
    model = Tables(rows=2000).to("chip").eval()
    dense, indices = torch.randn(2048, 13), torch.randint(0, 2000, (2048, 8, 20))
    return lambda: model(dense.to("chip"), indices.to("chip")).cpu()


def cell() -> Program:
    model = nn.LSTMCell(32, 32).to("chip")
    sequence = torch.randn(8, 2, 32)

    def run() -> torch.Tensor:
        state = None
        for item in sequence.to("chip"):
            state = model(item, state)
        return state[0].cpu()  # type: ignore[index]

    return run


def detector() -> Program:
    layers = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 8, 1)
    model = nn.Sequential(*layers).to("chip").eval()
    image = torch.randn(1, 3, 64, 64)

    def run() -> torch.Tensor:
        scores, _ = model(image.to("chip")).flatten(2).sigmoid().max(1)
        top, places = scores.topk(20, 1)
        kept = scores.gather(1, places).cumsum(1).sort(1)[0]
        return (top + kept).cpu()

    return run


def training() -> Program:
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to("chip")
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    x, y = torch.randn(16, 64), torch.randint(10, (16,))

    def run() -> torch.Tensor:
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(model(x.to("chip")), y.to("chip"))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach().cpu()

    return run


def loop() -> Program:
    """Calls of one line, of which a plan may divide the calls of a step."""
    weights = [torch.randn(64, 64).to("chip") for _ in range(6)]
    x = torch.randn(64, 64)

    def run() -> torch.Tensor:
        y = x.to("chip")
        for weight in weights:
            y = (y @ weight).tanh()
        return y.cpu()

    return run


def carried() -> Program:
    """A recurrent state, which each step hands to the next one in new storages."""
    model, head = nn.LSTMCell(32, 64).to("chip"), nn.Linear(64, 4).to("chip")
    inputs = torch.randn(8, 1, 32)
    state = [torch.zeros(1, 64).to("chip") for _ in range(2)]
    place = iter(range(8))

    def run() -> torch.Tensor:
        state[:] = model(inputs[next(place)].to("chip"), tuple(state))
        return head(state[0]).cpu()

    return run


PROGRAMS = {
    "tables": tables,
    "cell": cell,
    "detector": detector,
    "training": training,
    "loop": loop,
    "carried": carried,
}


def record(name: str, steps: int = 4) -> tuple[Trace, list[torch.Tensor]]:
    torch.manual_seed(0)
    run = PROGRAMS[name]()
    results = []
    with bringup.record() as trace:
        for _ in range(steps):
            with torch.no_grad():
                results.append(run())
            bringup.step()
        torch.chip.synchronize()
    return trace, results


def moved(plan: bringup.Plan, which: Callable[[int, Any], bool]) -> bringup.Plan:
    """The plan with other groups on the host, to try placements that nothing proposes."""
    entries = [
        entry.model_copy(update={"where": "host" if which(number, entry) else "chip", "calls_on_host": []})
        for number, entry in enumerate(plan.entries)
    ]
    return replace(plan, entries=entries)


def divisions(plan: bringup.Plan) -> dict[str, bringup.Plan]:
    return {
        "the plan's": plan,
        "all on the host": moved(plan, lambda number, entry: True),
        "alternating": moved(plan, lambda number, entry: number % 2 == 0),
        "all on the chip": moved(plan, lambda number, entry: False),
    }


@pytest.mark.parametrize("granularity", ["module", "operator", "line"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_results_are_equal_and_launches_are_where_planned(name: str, granularity: Any) -> None:
    trace, expected = record(name)
    plan = bringup.place(trace, "h100-sxm", granularity=granularity)
    for title, division in divisions(plan).items():
        with bringup.placed(division):
            placed, results = record(name)
        assert all(torch.equal(one, other) for one, other in zip(expected, results, strict=True)), title
        facts = placed.about["placement"]
        launched = facts["launches_as_planned"] + facts["launches_elsewhere"] + facts["launches_without_plan"]
        assert launched == trace.launches == placed.launches, title
        assert facts["launches_as_planned"] >= 0.7 * launched, title  # a first step may do other work than others
        assert not facts["launches_elsewhere"], title


@pytest.mark.parametrize("name", PROGRAMS)
def test_replay_of_a_placed_run_equals_its_plan(name: str) -> None:
    trace, _ = record(name)
    chip, host = bringup.load_chip("h100-sxm"), bringup.load_host()
    from bringup.placement.graph import step_graph
    from bringup.placement.groups import Groups
    from bringup.placement.place import _entries
    from bringup.placement.placed import Replayer

    step = step_graph(replay(trace, chip, host))
    plan = bringup.place(trace, chip, granularity="operator")
    groups = Groups.of_step(step, "operator")
    for title, division in divisions(plan).items():
        on_host = [entry.sides() for entry in division.entries]
        on_chip = torch.tensor(
            [g < 0 or not on_host[g][c] for g, c in zip(groups.group.tolist(), groups.call.tolist(), strict=True)]
        ).numpy()
        assert _entries(groups, on_chip) == list(division.entries), title
        planned = Replayer(step).outcome(on_chip & ~step.must_be_host).seconds
        with bringup.placed(division):
            placed, _ = record(name)
        assert step_seconds(replay(placed, chip, host)) == pytest.approx(planned, rel=0.01), title


def test_what_stays_on_the_host_crosses_no_link() -> None:
    trace, _ = record("tables")
    with bringup.placed(moved(bringup.place(trace, "h100-sxm"), lambda number, entry: True)):
        placed, _ = record("tables")
    columns = placed.columns
    ends = placed.steps.ends
    step = slice(int(ends[-2]), int(ends[-1]))
    kinds, place = columns["kind"][step], columns["object"][step]
    assert (place[(kinds == LAUNCH) | (kinds == H2D) | (kinds == D2H)] == ON_HOST).all()


def whole(build: Callable[[], Program], steps: int = 3) -> Trace:
    """Record a program with its set-up."""
    with bringup.record() as trace, torch.no_grad():
        run = build()
        for _ in range(steps):
            run()
            bringup.step()
        torch.chip.synchronize()
    return trace


def drawn() -> Program:
    """Tables whose weights the chip draws."""
    with torch.device("chip"):
        model = Tables(rows=2000).eval()
    dense, indices = torch.randn(64, 13), torch.randint(0, 2000, (64, 8, 20))
    return lambda: model(dense.to("chip"), indices.to("chip")).cpu()


@pytest.mark.parametrize("build", [tables, drawn])
def test_memory_leaves_out_what_only_the_host_uses(build: Callable[[], Program]) -> None:
    trace = whole(build)
    plan = bringup.place(trace, "h100-sxm")
    with bringup.placed(moved(plan, lambda number, entry: entry.module.startswith("tables."))):
        placed = whole(build)
    freed = 8 * 2000 * 64 * 4  # the tables
    before, after = (memory_over_time(recording)[1][-1] for recording in (trace, placed))
    assert before - after == pytest.approx(freed, rel=0.01)
    peak = usage(placed, placed.steps.ends)
    assert sum(owner.bytes for owner in peak.owners) == peak.peak_bytes
    timeline = bringup.price(placed, "h100-sxm").timeline
    counters = read_trace(b"".join(perfetto.trace(timeline, "").packets())).counters
    assert counters["chip:0 h100-sxm", "memory"][-1][1] == after
    if build is tables:  # they are never on the chip
        assert peak.peak_bytes <= usage(trace, trace.steps.ends).peak_bytes - freed
        assert not any(owner.module.startswith("tables.") for owner in peak.owners)


def test_report_of_a_placed_run_tells_host_and_chip_apart() -> None:
    trace, _ = record("tables")
    plan = moved(bringup.place(trace, "h100-sxm"), lambda number, entry: entry.module.startswith("tables."))
    with bringup.placed(plan):
        placed, _ = record("tables")
    prediction = bringup.price(placed, "h100-sxm")
    figure, note = figures.timeline(prediction.timeline)
    assert figure is not None and "fallbacks on the host" not in figure.y.lanes
    assert "24 of them run on the host, where a plan puts them" in note  # three launches for each of 8 tables
    modules = {name for name, *_ in by_group(prediction.timeline, "module")}
    assert "bottom.0" in modules and not any(name.startswith("tables.") for name in modules)
    assert len(own_waits(placed).rows) == len(trace.waits.rows) < len(placed.waits.rows)
    assert "Placed: planned" in html.page(prediction.timeline, prediction.summary)
    on_driver = replace(prediction.summary, measured_step_seconds=2e-3)
    assert [", measured 2.0 ms; " in line.text for line in placement_lines(on_driver)] == [True]


def test_launches_without_a_plan_are_counted_and_named() -> None:
    trace, _ = record("tables")
    plan = bringup.place(trace, "h100-sxm")
    with bringup.placed(plan):
        other, _ = record("cell")
    facts = other.about["placement"]
    assert facts["launches_without_plan"] == other.launches and facts["unused_entries"] == len(plan.entries)
    sentences = list(unplanned(facts, "plan.toml"))
    assert any("the program never called" in text for text in sentences)
    assert any("had no plan and ran as without one" in text for text in sentences)
    with pytest.raises(bringup.BringupError, match="in force already"), bringup.placed(plan), bringup.placed(plan):
        pass


def test_nothing_is_asked_without_a_plan() -> None:
    trace, _ = record("loop")
    assert not torch.ops.bringup.has_plan() and "placement" not in trace.about
    assert bringup.price(trace, "t4").placement is None


OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
)


def ways(name: str) -> list[dict[str, bool]]:
    """The ways in which an optimizer of torch can update its parameters."""
    takes = inspect.signature(getattr(torch.optim, name)).parameters
    options = [{"foreach": True}, {"foreach": False}, {"fused": True}]
    return [option for option in options if set(option) <= set(takes)] or [{}]


def trained(name: str, options: dict[str, bool]) -> tuple[Trace, list[torch.Tensor]]:
    """Record a training, and return its losses, parameters and the state of the optimizer, too."""
    torch.manual_seed(0)
    table = nn.Embedding(50, 16, sparse=name == "SparseAdam")
    model = nn.Sequential(table, nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)).to("chip")
    learned = [item for item in (table if table.sparse else model).parameters() if item.ndim == 2 or name != "Muon"]
    optimizer = getattr(torch.optim, name)(learned, **options)
    x, y = torch.randint(0, 50, (8,)), torch.randint(4, (8,))

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(model(x.to("chip")), y.to("chip"))
        value.backward()
        return value

    results = []
    with bringup.record() as trace:
        for _ in range(3):
            results.append(optimizer.step(loss).detach().cpu())
            bringup.step()
        torch.chip.synchronize()
    state = [value for items in optimizer.state.values() for value in items.values()]
    return trace, results + [item.detach().cpu() for item in (*model.parameters(), *state) if torch.is_tensor(item)]


def assert_equal_with_parameters_on_the_host(name: str, options: dict[str, bool]) -> None:
    trace, expected = trained(name, options)
    plan = bringup.place(trace, "h100-sxm")
    phases = {"forward": "0", "backward": "1"}
    for title, division in {
        "a module": moved(plan, lambda number, entry: entry.module in phases.values()),
        "a module of which a phase stays": moved(plan, lambda number, entry: entry.module == phases.get(entry.phase)),
        "the optimizer": moved(plan, lambda number, entry: entry.phase == "optimizer"),
        "all but the optimizer": moved(plan, lambda number, entry: entry.phase != "optimizer"),
    }.items():
        assert {entry.where for entry in division.entries} == {"host", "chip"}, title
        with bringup.placed(division):
            placed, results = trained(name, options)
        assert len(results) == len(expected) > 3, title
        assert all(torch.equal(one, other) for one, other in zip(expected, results, strict=True)), title
        facts = placed.about["placement"]
        assert facts["launches_as_planned"] >= 0.7 * placed.launches and not facts["launches_elsewhere"], title


@pytest.mark.parametrize("options", ways("AdamW"), ids=str)
def test_parameters_on_the_host_are_updated_as_without_a_plan(options: dict[str, bool]) -> None:
    assert_equal_with_parameters_on_the_host("AdamW", options)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [(name, options) for name in OPTIMIZERS for options in ways(name)])
def test_each_optimizer_updates_as_without_a_plan(name: str, options: dict[str, bool]) -> None:
    assert_equal_with_parameters_on_the_host(name, options)


def test_steps_that_differ_count_their_launches_without_a_plan() -> None:
    """A plan from steps of one kind, and a run in which some steps do more."""
    model, more = nn.Linear(8, 8).to("chip"), nn.LayerNorm(8).to("chip")
    x = torch.randn(4, 8).to("chip")

    def run(extra: set[int]) -> Trace:
        with bringup.record() as trace, torch.no_grad():
            for number in range(6):
                y = model(x)
                if number in extra:
                    more(y)
                bringup.step()
            torch.chip.synchronize()
        return trace

    plan = moved(bringup.place(run(set()), "h100-sxm"), lambda number, entry: True)
    with bringup.placed(plan):
        placed = run({2, 5})
    facts = placed.about["placement"]
    assert (facts["launches_as_planned"], facts["launches_without_plan"], facts["unused"]) == (6, 2, [])
    [sentence] = unplanned(facts, "plan.toml")
    assert sentence.startswith("plan.toml: 2 launches had no plan and ran as without one")


def test_operator_that_the_chip_lacks_is_named_and_refused_if_strict() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Softsign(), nn.Hardshrink()).to("chip")
    x = torch.randn(4, 8).to("chip")

    def run() -> Trace:
        with bringup.record() as trace, torch.no_grad():
            for _ in range(3):
                model(x)
                bringup.step()
            torch.chip.synchronize()
        return trace

    plan = bringup.place(run(), "h100-sxm", granularity="operator")
    everywhere = moved(plan, lambda number, entry: False)
    shrinks = moved(plan, lambda number, entry: entry.op == "aten::hardshrink")
    try:
        torch.ops.bringup.set_fallbacks(["aten::hardshrink"], [1 << 6], False)  # float32
        with bringup.placed(everywhere):
            facts = run().about["placement"]
        torch.ops.bringup.set_fallbacks(["aten::hardshrink"], [1 << 6], True)
        with bringup.placed(shrinks):
            assert run().about["placement"]["launches_elsewhere"] == 0
        with bringup.placed(everywhere), pytest.raises(NotImplementedError, match=r"aten::hardshrink .* leaves it to"):
            run()
    finally:
        torch.ops.bringup.set_fallbacks([], [], False)
    assert facts["launches_elsewhere"] == 3
    assert [*unplanned(facts, "plan.toml")] == ["plan.toml: 3 launches ran elsewhere: the chip lacks aten::hardshrink"]


def test_plan_of_fallbacks_runs_them_as_placed() -> None:
    trace, expected = record("detector")
    chip = bringup.load_chip("edge8")
    lacks = chip.model_copy(update={"ops": chip.ops.model_copy(update={"host": ["aten::topk", "aten::sort"]})})
    plan = bringup.place(trace, lacks, granularity="operator")
    sides = {entry.op.split(".")[0]: entry.where for entry in plan.entries}
    assert sides["aten::topk"] == sides["aten::sort"] == "host"
    with bringup.placed(plan):
        _, results = record("detector")
    assert all(torch.equal(one, other) for one, other in zip(expected, results, strict=True))


SCRIPT = """
import torch, bringup
torch.manual_seed(0)
model = torch.nn.LSTMCell(32, 32).to("chip")
x = torch.randn(4, 1, 32)
with torch.no_grad():
    for _ in range(3):
        state = None
        for item in x.to("chip"):
            state = model(item, state)
        print(state[0].cpu().double().sum().item())
        bringup.step()
"""


def test_run_applies_a_plan(bringup_run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(SCRIPT)
    plain = bringup_run("--chip", "h100-sxm", "small.py")
    assert plain.returncode == 0, plain.stderr
    trace = Trace.load(tmp_path / "bringup-small" / "trace.npz")
    bringup.place(trace, "h100-sxm").save(tmp_path / "bringup-small" / "plan.toml")
    done = bringup_run("--chip", "h100-sxm", "--place", "bringup-small/plan.toml", "small.py")
    assert done.returncode == 0, done.stderr
    assert plain.stdout.splitlines()[:3] == done.stdout.splitlines()[:3]
    assert (tmp_path / "bringup-small" / "plan.toml").exists()
    summary = json.loads((tmp_path / "bringup-small" / "summary.json").read_text())
    placement = summary["placement"]
    assert placement["replayed_seconds"] == pytest.approx(placement["planned_seconds"], rel=0.01)
    assert placement["launches_without_plan"] == placement["launches_elsewhere"] == 0
    assert "placed: planned" in done.stdout
    auto = bringup_run("--chip", "h100-sxm", "--place", "auto", "--out", "again", "small.py")
    assert auto.returncode == 0, auto.stderr
    again = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert again["placement"] == placement
    assert (tmp_path / "again" / "plan.toml").exists() and "plan: again/plan.toml" in auto.stderr
    refused = bringup_run("--chip", "t4", "--place", "bringup-small/plan.toml", "--out", "other", "small.py")
    assert refused.returncode == 2 and "is a plan for chip h100-sxm, and this chip is t4" in refused.stderr
