"""A plan in force: the core asks, per launch, where it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from bringup.device import load
from bringup.errors import BringupError
from bringup.paths import Places
from bringup.placement.groups import Key, key_of
from bringup.placement.plan import Plan
from bringup.process import FACTS
from bringup.recording import modules
from bringup.recording.recording import current
from bringup.recording.rows import PHASES
from bringup.text import quantity, short

MOST_NAMED = 3  # entries that a sentence names


class InForce:
    """A plan that is in force, and the numbers of its entries by their keys."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.places = Places.of_process()
        self.numbers = {entry.key: number for number, entry in enumerate(plan.entries)}

    def group(self, op: str, module: str, line: str, phase: str) -> int:
        """Return the number of the entry that names a launch; -1 for none."""
        return self.numbers.get(key_of(self.plan.granularity, op, module, self.places.line(line), phase), -1)

    def facts(self) -> dict[str, Any]:
        """Return what a trace keeps of the plan: its step, and how many launches ran where it puts them."""
        as_planned, without, elsewhere, *calls = torch.ops.bringup.plan_counts()
        unused = [_name(entry.key) for entry, count in zip(self.plan.entries, calls, strict=True) if not count]
        return {
            "planned_seconds": self.plan.step_seconds,
            "launches_as_planned": as_planned,
            "launches_elsewhere": elsewhere,
            "launches_without_plan": without,
            "unused_entries": len(unused),
            "unused": unused[:MOST_NAMED],
            "lacking": torch.ops.bringup.ops_elsewhere(True),
            "captured": torch.ops.bringup.ops_elsewhere(False),
        }


def _name(key: Key) -> str:
    return short(" ".join(filter(None, (key.module or key.line, key.op, "" if key.phase == PHASES[0] else key.phase))))


def _some(names: list[str], count: int) -> str:
    return ", ".join(names[:MOST_NAMED]) + (", ..." if count > MOST_NAMED else "")


_in_force: InForce | None = None


def group_of(op: str, line: str, module: int, phase: int) -> int:
    """Return the number of the plan's entry for a launch; -1 for none. The core asks once per place of the program."""
    if _in_force is None:
        return -1
    name = modules.name_of(module) if module >= 0 else ""
    return _in_force.group(op, name, line, PHASES[phase])


@contextmanager
def placed(plan: Plan) -> Iterator[None]:
    """Run launches inside the block where a plan puts them; results stay the same.

    Raises:
        BringupError: another plan is in force.
    """
    global _in_force
    if _in_force is not None:
        raise BringupError("a plan is in force already: end its block before another one begins")
    load.register()
    names = nullcontext() if current() is not None else modules.named()
    _in_force = InForce(plan)
    sides = [entry.sides() for entry in plan.entries]
    with names:
        torch.ops.bringup.set_plan([len(calls) for calls in sides], [int(side) for calls in sides for side in calls])
        try:
            yield
        finally:
            torch.ops.bringup.end_plan()
            if (recording := current()) is not None:
                recording.about["placement"] = _in_force.facts()
            _in_force = None


def _facts(_: Places) -> Any:
    return lambda: {"placement": _in_force.facts()} if _in_force is not None else {}


FACTS.append(_facts)


def unplanned(facts: dict[str, Any] | None, plan: str | None) -> Iterator[str]:
    """Yield in sentences what kept a run from its plan."""
    if facts is None:
        return
    if facts["unused_entries"]:
        names = _some(facts["unused"], facts["unused_entries"])
        entries = "1 entry" if facts["unused_entries"] == 1 else f"{facts['unused_entries']:,} entries"
        yield f"{plan}: the program never called {entries} of the plan: {names}"
    if facts["launches_elsewhere"]:
        reasons = {"lacking": "the chip lacks ", "captured": "a graph was captured with "}
        why = [text + _some(facts[key], len(facts[key])) for key, text in reasons.items() if facts.get(key)]
        because = f": {', and '.join(why)}" if why else ""
        yield f"{plan}: {quantity(facts['launches_elsewhere'], 'launch')} ran elsewhere{because}"
    if facts["launches_without_plan"]:
        yield (
            f"{plan}: {quantity(facts['launches_without_plan'], 'launch')} had no plan and ran as without one: the "
            "recording from which it was made has no such launches in its typical step"
        )
