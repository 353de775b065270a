"""Which number of a chip buys most, and the best numbers within budgets."""

import json
from pathlib import Path

import pytest

from bringup import BringupError, Trace, load_chip, load_host
from bringup.analyse.summarize import summarize
from bringup.sweep import design, file, grid
from bringup.sweep.design import Best
from bringup.sweep.variants import numbers_of, stated_numbers, variant
from bringup.timeline.replay import WhatIf, replay
from tests.sweep.sweeps import cli, needs_extras, sweep_of

TEXT = """
chips = ["a100-sxm-80"]
modes = ["graph"]
[ranges]
memory.bandwidth_gb_s = [500, 4000, 8]
compute.cores = [20, 216, 8]
[search]
trials = 40
{}
[[programs]]
trace = "mlp.npz"
[[programs]]
trace = "conv.npz"
"""


def step(trace: Trace, numbers: dict[str, float]) -> float:
    chip = variant(load_chip("a100-sxm-80"), numbers)
    return summarize(replay(trace, chip, load_host(), what_if=WhatIf(graph=True))).step_seconds


def opened(folder: Path, text: str) -> tuple[file.Sweep, grid.Grid, list[Trace]]:
    sweep = sweep_of(folder, text)
    return sweep, grid.of_sweep(sweep), [Trace.load(folder / name) for name in ("mlp.npz", "conv.npz")]


def searched(folder: Path, options: str) -> Best:
    sweep, axes, traces = opened(folder, TEXT.format(options))
    assert sweep.file.search is not None
    (best,) = design.optimize(sweep, axes, traces, sweep.file.search)
    return best


def test_gain_is_that_of_the_chip_with_the_other_number(folder: Path) -> None:
    _, axes, traces = opened(folder, TEXT.format(""))
    gains = {item.name: item for item in design.sensitivity(axes, traces)}
    item = gains["memory.bandwidth_gb_s"]
    assert item.changed == pytest.approx(1.1 * item.value)
    for name, trace in zip(("mlp", "conv"), traces, strict=True):
        expected = 1 - step(trace, {item.name: item.changed}) / step(trace, {})
        assert item.programs[name] == pytest.approx(expected)
    both = (1 - item.programs["mlp"]) * (1 - item.programs["conv"])
    assert item.gain == pytest.approx(1 - both**0.5)
    assert gains["link.latency_us"].changed < gains["link.latency_us"].value, "less latency is the better direction"
    order = [item.gain for item in design.sensitivity(axes, traces)]
    assert order == sorted(order, reverse=True) and min(order) > 0
    assert "memory.device_gib" not in gains and "price.usd_per_hour" not in gains


def test_unstated_numbers_are_left_out(folder: Path) -> None:
    _, axes, traces = opened(
        folder, 'chips = ["t4"]\n[[programs]]\ntrace = "mlp.npz"\n[[programs]]\ntrace = "conv.npz"\n'
    )
    stated = stated_numbers(axes.chips[0])
    assert not stated.keys() - numbers_of(axes.chips[0]).keys() and len(stated) < len(numbers_of(axes.chips[0]))
    assert {item.name for item in design.sensitivity(axes, traces)} <= stated.keys()


def test_chip_without_the_modes_is_left_out(folder: Path) -> None:
    text = TEXT.format("").replace('["a100-sxm-80"]', '["tpu-v3", "t4"]').replace('["graph"]', '["eager"]')
    _, axes, traces = opened(folder, text)
    assert {item.chip for item in design.sensitivity(axes, traces)} == {"t4"}
    done = cli(folder, "sensitivity", "sweep.toml", "--json")
    assert done.stderr == "bringup: chip tpu-v3 has none of the sweep's modes, and is left out\n"


@needs_extras
def test_chip_without_a_price_is_null_in_json(folder: Path) -> None:
    text = TEXT.format('minimize = "usd"\nusd_per_hour = "1.05 - 0.01 * compute.cores"')  # it has 108 cores
    sweep, axes, traces = opened(folder, text.replace("[20, 216, 8]", "[20, 100, 5]"))
    assert sweep.file.search is not None
    (best,) = design.optimize(sweep, axes, traces, sweep.file.search)
    assert best.as_is is None and "NaN" not in json.dumps(vars(best))


@needs_extras
def test_the_chip_as_it_is_has_the_price_of_the_formula(folder: Path) -> None:
    best = searched(folder, 'minimize = "usd"\nusd_per_hour = "0.01 * compute.cores"')
    seconds = [step(Trace.load(folder / name), {}) for name in ("mlp.npz", "conv.npz")]
    assert best.as_is == pytest.approx((seconds[0] * seconds[1]) ** 0.5 * 0.01 * 108 / 3600)


@needs_extras
def test_search_keeps_budgets_and_is_repeatable(folder: Path) -> None:
    free = searched(folder, "")
    tight = searched(folder, '[search.budgets]\narea = "compute.cores + 0.02 * memory.bandwidth_gb_s <= 120"')
    assert free.objective < tight.objective and 0 < tight.within < tight.trials == 40 == free.within
    left = 120 - tight.values["compute.cores"] - 0.02 * tight.values["memory.bandwidth_gb_s"]
    assert tight.budgets["area"] == pytest.approx(left) and left >= 0
    assert isinstance(tight.values["compute.cores"], int)
    traces = [Trace.load(folder / name) for name in ("mlp.npz", "conv.npz")]
    product = step(traces[0], tight.values) * step(traces[1], tight.values)
    assert tight.objective == pytest.approx(product**0.5)
    assert tight == searched(folder, '[search.budgets]\narea = "compute.cores + 0.02 * memory.bandwidth_gb_s <= 120"')


@needs_extras
def test_search_near_the_best_of_the_grid(folder: Path) -> None:
    budget = '[search.budgets]\narea = "compute.cores + 0.02 * memory.bandwidth_gb_s <= 120"'
    best = searched(folder, budget)
    _, axes, traces = opened(folder, TEXT.format(""))
    ranges = dict(axes.ranges)
    means = [
        (step(traces[0], numbers) * step(traces[1], numbers)) ** 0.5
        for cores in ranges["compute.cores"]
        for bandwidth in ranges["memory.bandwidth_gb_s"]
        if cores + 0.02 * bandwidth <= 120
        for numbers in [{"compute.cores": cores, "memory.bandwidth_gb_s": bandwidth}]
    ]
    assert best.objective <= 1.02 * min(means)


@needs_extras
def test_price_and_power_follow_the_design(folder: Path) -> None:
    cheap = searched(folder, 'minimize = "usd"\nusd_per_hour = "0.01 * compute.cores"')
    assert cheap.as_is is not None and cheap.objective < cheap.as_is
    assert cheap.values["compute.cores"] < 60, "cores cost money"
    power = searched(
        folder, 'minimize = "joules"\ntdp_w = "3 * compute.cores"\n[search.budgets]\npower = "power.tdp_w < 150"'
    )
    assert power.values["compute.cores"] < 50 and power.budgets["power"] > 0


@needs_extras
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ('[search.budgets]\narea = "compute.cores"', "search.budgets.area: compute.cores compares nothing"),
        ('usd_per_hour = "1 < 2"', "search.usd_per_hour: 1 < 2 is a comparison"),
        ('[search.budgets]\narea = "compute.cores < 1"', "none of 40 designs of a100-sxm-80 keeps the budgets"),
        ('[search.budgets]\narea = "compute.core < 1"', "did you mean compute.cores?"),
    ],
)
def test_mistake_is_one_sentence(options: str, sentence: str, folder: Path) -> None:
    with pytest.raises(BringupError) as error:
        searched(folder, options)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_search_without_ranges(folder: Path) -> None:
    sweep, axes, traces = opened(folder, 'chips = ["t4"]\n[[programs]]\ntrace = "mlp.npz"\n')
    with pytest.raises(BringupError, match="has no ranges, so there is nothing to search"):
        design.optimize(sweep, axes, traces, file.Search())
