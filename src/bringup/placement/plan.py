"""A plan: where every group of launches runs, and what that was predicted to bring. `Plan.save` writes it as TOML."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from bringup.errors import BringupError
from bringup.files import parse_toml, read_text, write_text
from bringup.placement.groups import Granularity, Key
from bringup.text import duration, html_table, module_name, plain, short, size, visible

VERSION = 1
# What the baselines of a plan are.
NAMES = {
    "all_chip": "all on the chip",
    "all_host": "all on the host",
    "cheapest": "each where its own price is lower",
    "first_layers": "first layers on the chip (-ngl)",
    "proposed": "proposed",
}
Side = Literal["host", "chip"]
MOST_CALLS = 1 << 20  # of one group in a step; a recording holds 16 million rows


Text = Annotated[str, Field(max_length=4096), AfterValidator(visible)]  # a path or a module's name, as in a trace
Seconds = Annotated[float, Field(ge=0, le=1e9)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Entry(_Table):
    """A group of launches: those of an operator, a module or a line; where they run, or which calls on the host.

    Attributes:
        where: the side of all calls; with `calls_on_host`, the side of the others.
        calls: how often a step launches the group.
        calls_on_host: the numbers, from 0, of the calls of a step that run on the host.
    """

    where: Side
    op: Text = ""
    module: Text = ""
    line: Text = ""
    phase: Literal["forward", "backward", "optimizer"] = "forward"
    calls: Annotated[int, Field(ge=1, le=MOST_CALLS)] = 1
    calls_on_host: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MOST_CALLS)] = []

    @model_validator(mode="after")
    def _names_something(self) -> Entry:
        if not (self.op or self.module or self.line):
            raise ValueError("an entry needs an op, a module or a line")
        if self.calls_on_host and (max(self.calls_on_host) >= self.calls or self.where == "host"):
            raise ValueError("calls_on_host are numbers below calls, in an entry whose other calls are on the chip")
        return self

    @property
    def key(self) -> Key:
        """What tells the launches of this entry from others."""
        return Key(self.op, self.module, self.line, self.phase)

    def sides(self) -> list[bool]:
        """Return for every call of a step if it runs on the host."""
        on_host = set(range(self.calls)) if self.where == "host" else set(self.calls_on_host)
        return [call in on_host for call in range(self.calls)]


class Predicted(_Table):
    """What the plan was predicted to bring, per step."""

    all_chip_seconds: Seconds
    all_host_seconds: Seconds
    cheapest_seconds: Seconds
    proposed_seconds: Seconds
    bound_seconds: Seconds
    band: Annotated[float, Field(ge=0, le=10)]
    proposes: bool


class File(_Table):
    """The contents of a plan file."""

    version: Literal[1]
    program: Text
    chip: Text
    host: Text
    granularity: Granularity
    objective: Literal["time", "latency", "energy", "cost"]
    predicted: Predicted
    launches: Annotated[list[Entry], Field(min_length=1, max_length=1 << 20)]

    @model_validator(mode="after")
    def _entries_differ(self) -> File:
        counts = Counter(entry.key for entry in self.launches)
        if len(counts) < len(self.launches):
            twice = counts.most_common(1)[0][0]
            raise ValueError(
                f"two entries have the same launches ({short(' '.join(filter(None, vars(twice).values())))})"
            )
        return self


@dataclass(frozen=True)
class Move:
    """Groups that leave their side; ``seconds`` is what moving them back would cost per step."""

    where: Side
    module: str
    file: str
    line: int
    groups: int
    seconds: float


@dataclass(frozen=True)
class Baseline:
    """One way to run the step.

    Attributes:
        resident_bytes: persistent storages on the chip.
        copied_bytes: what crosses the link beside the program's own copies.
        joules: the chip's energy; None if the chip file has no power.
        dollars: what the chip costs in that time; None if the chip file has no price per hour.
    """

    seconds: float
    resident_bytes: int
    copied_bytes: int
    joules: float | None
    dollars: float | None = None


@dataclass(frozen=True)
class Plan:
    """Where every launch of a program runs.

    Attributes:
        all_chip_seconds: a step of the recorded program as it is. `fits` is False if the chip cannot hold it.
        all_host_seconds: a step with everything on the host.
        cheapest_seconds: a step with each launch where its own price is lower, copies not counted.
        proposed_seconds: a step of the best placement that was found.
        bound_seconds: a lower bound for every placement.
        band: how wrong prices may be, 0.15 for 15 %.
        proposes: True if the gain exceeds what prices that are wrong by the band could turn round. If not, the plan
            leaves the program as it is.
        moves: what leaves its side, the largest gain first; also if nothing is proposed.
        entries: all groups of launches.
        baselines: ``all_chip``, ``all_host``, ``cheapest`` and ``proposed``; ``first_layers`` if not all fits the chip.
        deadline_seconds: the latency that was asked for; None without one.
        percentile: that of the host's times for which all seconds are.
    """

    chip: str
    host: str
    program: str
    granularity: Granularity
    objective: Literal["time", "latency", "energy", "cost"]
    all_chip_seconds: float
    all_host_seconds: float
    cheapest_seconds: float
    proposed_seconds: float
    bound_seconds: float
    band: float
    proposes: bool
    fits: bool
    moves: list[Move]
    entries: Sequence[Entry] = field(repr=False)
    baselines: dict[str, Baseline] = field(repr=False, default_factory=dict)
    plan: str | None = None
    deadline_seconds: float | None = None
    percentile: float = 50.0

    def _repr_html_(self) -> str:
        """Return a table for a notebook: the baselines, and the moves."""
        rows = [
            (NAMES[name], duration(item.seconds), size(item.resident_bytes)) for name, item in self.baselines.items()
        ]
        rows += [
            (
                f"{module_name(move.module) or f'{move.file}:{move.line}'} to the {move.where}",
                duration(move.seconds),
                "",
            )
            for move in self.moves
        ]
        verdict = "proposed" if self.proposes else "leave the program as it is"
        return html_table(f"placement on {self.chip} and {self.host}: {verdict}", rows, ("", "step", "memory"))

    @property
    def step_seconds(self) -> float:
        """The predicted step of the plan as it is applied."""
        return self.proposed_seconds if self.proposes else self.all_chip_seconds

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as a TOML file, whole or not at all."""
        write_text(path, self.text())

    def text(self) -> str:
        """Return the plan as TOML."""
        predicted = {name: float(f"{getattr(self, name):.9g}") for name in Predicted.model_fields if name != "proposes"}
        data: dict[str, Any] = {
            "version": VERSION,
            **{name: getattr(self, name) for name in ("program", "chip", "host", "granularity", "objective")},
            "predicted": {**predicted, "proposes": self.proposes},
            "launches": [_written(entry) for entry in self.entries],
        }
        return f"# A placement of {self.program}, written by `bringup place`; docs/placement.md has the keys.\n" + (
            tomli_w.dumps(data)
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan file.

        Raises:
            BringupError: it is missing, too large, or not a plan; the message names the key.
        """
        name = str(path)
        data = parse_toml(read_text(path, "plan file"), name, "plan again")
        if data.get("version") != VERSION:
            version = short(repr(data.get("version")))
            raise BringupError(f"{name}: is a plan of version {version}, this bringup reads {VERSION}: plan again")
        try:
            file = File.model_validate(data)
        except ValidationError as error:
            raise BringupError(f"{name}: {_problem(error)}") from None
        predicted = file.predicted
        return cls(
            file.chip,
            file.host,
            file.program,
            file.granularity,
            file.objective,
            **predicted.model_dump(),
            fits=True,
            moves=[],
            entries=file.launches,
            plan=name,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers and moves as JSON types."""
        numbers = {name: float(f"{getattr(self, name):.9g}") for name in Predicted.model_fields if name != "proposes"}
        moves = [
            {name: getattr(move, name) for name in ("where", "module", "file", "line", "groups")}
            | {"seconds": float(f"{move.seconds:.9g}")}
            for move in self.moves
        ]
        about = {name: getattr(self, name) for name in ("chip", "host", "granularity", "objective", "proposes", "fits")}
        about |= {"deadline_seconds": self.deadline_seconds, "percentile": self.percentile}
        return {**about, **numbers, "moves": moves, "plan": self.plan}


def _written(entry: Entry) -> dict[str, Any]:
    data = entry.model_dump(exclude_defaults=True)
    return {"where": data.pop("where"), **data}


def _problem(error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    mistyped = next((item for item in errors if item["type"] == "extra_forbidden"), errors[0])
    where = ".".join(str(part) for part in mistyped["loc"])
    message = plain(mistyped["msg"]).removeprefix("Value error, ")
    if mistyped["type"] == "extra_forbidden":
        names = {*File.model_fields, *Predicted.model_fields, *Entry.model_fields}
        nearest = difflib.get_close_matches(str(mistyped["loc"][-1])[:80], names, n=1, cutoff=0.6)
        hint = f"did you mean {nearest[0]}?" if nearest else "leave it out"
        return f"{short(where)} is not a key of a plan: {hint}"
    simple = isinstance(mistyped["input"], (str, int, float, bool))
    value = f", got {short(repr(mistyped['input']))}" if simple else ""
    return f"{short(where) or 'the file'}: {message}{value}"


def refuse_other(plan: Plan, program: str, chip: str) -> None:
    """Refuse a plan for another program, named by its file, or for another chip.

    Raises:
        BringupError: the plan is for another one.
    """
    for what, planned, here in (("program", plan.program, Path(program).name), ("chip", plan.chip, chip)):
        if planned and planned != here:
            raise BringupError(
                f"{plan.plan or 'the plan'}: is a plan for {what} {short(planned)}, and this {what} is {short(here)}: "
                f"plan from a recording of this program on {chip}"
            )
