"""The design of a chip for a set of programs: which number buys most, and the best numbers within budgets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bringup.errors import BringupError
from bringup.sweep.expression import Expression
from bringup.sweep.file import Search, Sweep
from bringup.sweep.grid import Grid
from bringup.sweep.prices import Pricer
from bringup.sweep.programs import Source
from bringup.sweep.variants import fields, numbers_of, stated_numbers, variant

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

STEP = 1.1  # a number is made larger and smaller by a tenth; chosen
COLUMNS = {"seconds": "step_seconds", "usd": "cost_usd", "joules": "energy_joules"}


@dataclass(frozen=True)
class Gain:
    """What one number of a chip buys.

    Attributes:
        value: the chip's.
        changed: the better of a tenth more and a tenth less.
        gain: share of the time that it saves: the geometric mean over programs and hosts.
        programs: the same by program.
    """

    chip: str
    name: str
    value: float
    changed: float
    gain: float
    programs: dict[str, float]


@dataclass(frozen=True)
class Best:
    """The best design that an optimizer found.

    Attributes:
        values: field -> value.
        objective: geometric mean of the minimised column over programs and hosts.
        as_is: the same for the numbers of the chip file, with price and power by the same formulas; None if they
            have no value for it.
        budgets: name -> by how much the budget's left side is below its right one.
        trials: how many designs were priced, and how many of them kept the budgets.
    """

    chip: str
    values: dict[str, float]
    objective: float
    as_is: float | None
    budgets: dict[str, float]
    trials: int
    within: int
    minimize: str
    step_seconds: dict[str, float]


def with_modes(grid: Grid) -> list[Chip]:
    """Return the chips that have a mode of the sweep."""
    return [chip for number, chip in enumerate(grid.chips) if grid.modes_of(number)]


def by_program(pricer: Pricer, chip: Chip, column: str = "step_seconds") -> dict[str, float]:
    """Return the geometric mean of a column over the hosts, modes and arguments of each program."""
    names = pricer.grid.programs
    values = np.log(pricer.of_chip(chip, column)).reshape(len(names), -1).mean(axis=1)
    return {name: math.exp(value) for name, value in zip(names, values.tolist(), strict=True)}


def mean(values: Mapping[str, float]) -> float:
    """Return the geometric mean: each program counts the same, however long its step is."""
    return math.exp(sum(map(math.log, values.values())) / len(values))


def sensitivity(grid: Grid, traces: Sequence[Source]) -> list[Gain]:
    """Return for every chip what each of its numbers buys, the best first.

    Numbers that change nothing are left out, and so are those that a chip file does not state and chips without a mode
    of the sweep.

    Args:
        grid: programs, hosts and modes are taken from it, and the chips without their ranges.
        traces: the recordings, in the grid's order.
    """
    pricer = Pricer(grid, traces)
    gains: list[Gain] = []
    whole = dict(fields())
    for chip in with_modes(grid):
        before = by_program(pricer, chip)
        for name, value in stated_numbers(chip).items():
            best: Gain | None = None
            for changed in (value * STEP, value / STEP):
                changed = _rounded(changed, value) if whole.get(name) else changed
                try:
                    after = by_program(pricer, variant(chip, {name: changed}))
                except BringupError:  # beyond what the field can have
                    continue
                gain = 1 - mean(after) / mean(before)
                if gain > 0 and (best is None or gain > best.gain):
                    saved = {program: 1 - after[program] / before[program] for program in before}
                    best = Gain(chip.name, name, value, changed, gain, saved)
            gains += [best] if best else []
    order = {chip.name: number for number, chip in enumerate(grid.chips)}
    return sorted(gains, key=lambda item: (order[item.chip], -item.gain, item.name))


def _rounded(changed: float, value: float) -> int:
    """Return a whole number that differs from the value."""
    return math.ceil(changed) if changed > value else max(math.floor(changed), 1)


def optimize(
    sweep: Sweep,
    grid: Grid,
    traces: Sequence[Source],
    search: Search,
    *,
    advance: Callable[[], None] = lambda: None,
) -> list[Best]:
    """Return for every chip with a mode of a sweep its best numbers within the ranges and budgets.

    Args:
        sweep: the sweep file, which names the budgets.
        grid: the axes; its ranges are searched between their ends.
        traces: the recordings, in the grid's order.
        search: what to minimise.
        advance: called after every trial.

    Raises:
        BringupError: Optuna is missing, a budget is no comparison, or no design keeps the budgets.
    """
    if not grid.ranges:
        raise BringupError(f"{sweep.path}: has no ranges, so there is nothing to search: add [ranges]")
    formulas = {
        name: Expression(text, f"{sweep.path}: search.{name}")
        for name, text in (("usd_per_hour", search.usd_per_hour), ("tdp_w", search.tdp_w))
        if text is not None
    }
    budgets = {name: Expression(text, f"{sweep.path}: search.budgets.{name}") for name, text in search.budgets.items()}
    for budget in budgets.values():
        if not budget.is_comparison:
            raise BringupError(f"{budget.where}: {budget.text} compares nothing: write for example area <= 800")
    wrong = next((formula for formula in formulas.values() if formula.is_comparison), None)
    if wrong is not None:
        raise BringupError(f"{wrong.where}: {wrong.text} is a comparison: give the value alone")
    return [_search(grid, chip, traces, search, formulas, budgets, advance) for chip in with_modes(grid)]


def _search(
    grid: Grid,
    chip: Chip,
    traces: Sequence[Source],
    search: Search,
    formulas: Mapping[str, Expression],
    budgets: Mapping[str, Expression],
    advance: Callable[[], None],
) -> Best:
    optuna = _optuna()
    pricer = Pricer(grid, traces)
    column = COLUMNS[search.minimize]
    targets = {"usd_per_hour": "price.usd_per_hour", "tdp_w": "power.tdp_w"}

    def described(values: Mapping[str, float]) -> Chip:
        numbers = numbers_of(chip) | dict(values)
        computed = {targets[name]: formula.value(numbers) for name, formula in formulas.items()}
        return variant(chip, {**values, **computed})

    def beyond(values: Mapping[str, float]) -> dict[str, float]:
        numbers = numbers_of(described(values)) if values else numbers_of(chip)
        return {name: budget.value(numbers) for name, budget in budgets.items()}

    def objective(trial: Any) -> float:
        values = {name: _suggested(trial, name, choices) for name, choices in grid.ranges}
        over = beyond(values)
        trial.set_user_attr("beyond", over)
        for name, value in over.items():
            trial.set_constraint(name, value)
        trial.set_user_attr("values", values)
        advance()
        if any(value > 0 for value in over.values()):
            raise optuna.TrialPruned  # too large a chip is not priced
        return mean(by_program(pricer, described(values), column))

    try:
        as_is = mean(by_program(pricer, described({}), column))
    except BringupError:  # a formula has no valid value for it, but may have one for the designs
        as_is = math.nan
    missing = {"usd": ("usd_per_hour", "price"), "joules": ("tdp_w", "power")}.get(search.minimize)
    if math.isnan(as_is) and missing is not None and missing[0] not in formulas:
        raise BringupError(f"chip {chip.name} has no {missing[1]}: add search.{missing[0]}, or minimise seconds")

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=search.seed))
    study.optimize(objective, n_trials=search.trials)
    complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        raise BringupError(
            f"none of {search.trials} designs of {chip.name} keeps the budgets: widen the ranges, or raise the budgets"
        )
    best = min(complete, key=lambda trial: (trial.value, trial.number))
    values = best.user_attrs["values"]
    return Best(
        chip=chip.name,
        values=values,
        objective=best.value,
        as_is=None if math.isnan(as_is) else as_is,
        budgets={name: -over for name, over in best.user_attrs["beyond"].items()},
        trials=len(study.trials),
        within=len(complete),
        minimize=search.minimize,
        step_seconds=by_program(pricer, described(values)),
    )


def _suggested(trial: Any, name: str, choices: Sequence[float]) -> float:
    low, high = min(choices), max(choices)
    if isinstance(low, int):
        return int(trial.suggest_int(name, low, high))
    return float(trial.suggest_float(name, low, high, log=low > 0 and high / low >= 10))


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError:
        raise BringupError('a search needs Optuna: pip install "bringup[sweep]"') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
