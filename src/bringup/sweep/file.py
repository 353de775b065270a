"""A sweep file: its programs and its axes. It is data, and reading it executes nothing."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from bringup.errors import BringupError
from bringup.files import parse_toml, read_text
from bringup.machine.files import DEFAULT_HOST, available_chips, available_hosts
from bringup.text import plain, short, visible
from bringup.units import MOST

Value = bool | int | float | str
MOST_VALUES = 100_000  # of one axis; the values themselves are held in memory

RESULTS = ("step_seconds", "device_seconds", "peak_bytes", "fits", "energy_joules", "cost_usd")
FIXED = ("key", "version", "band", "program", "chip", "host")
LATENCIES = tuple(f"{name}_{which}" for name in ("ttft", "tpot", "latency") for which in ("p50", "p99"))
SERVED = (  # further columns of a sweep with [serving]
    *(*LATENCIES, "goodput", "attainment", "tokens_per_second", "preemptions", "unstable"),
    *("cost_per_million_tokens", "joules_per_token"),
)
WHOLE = {"peak_bytes": "BIGINT", "fits": "BOOLEAN", "unstable": "BOOLEAN"}  # results that always have a value
RESERVED = {*FIXED, *RESULTS, "mode", "cluster", "dispatch_scale", "link_scale"}


Text = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(visible)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][\w-]{0,62}$")]
Scale = Annotated[float, Field(gt=0, le=1e6)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Program(_Table):
    """A script with its arguments, or a recording.

    Attributes:
        name: in the column `program`; by default that of the file.
        script: a script of Python, which is run dry, once for each combination of arguments.
        trace: a recording: the directory that `bringup run` has written, or its trace.npz.
        model: ``model.py:name`` of `bringup serve`, for a sweep with [serving].
        names: axis -> the argument (``--batch-size``) or environment variable (``BATCH``) of this script, if it is not
            two dashes and the axis's name.
        cuda: True for a program that says cuda.
        ranks: record one rank of so many.
    """

    name: Annotated[Text | None, Field(max_length=200)] = None
    script: Text | None = None
    trace: Text | None = None
    model: Text | None = None
    arguments: Annotated[list[Text], Field(max_length=1000)] = []
    names: dict[Name, Annotated[str, Field(pattern=r"^(--?[A-Za-z][\w-]*|[A-Za-z_]\w*)$")]] = {}
    cuda: bool = False
    ranks: Annotated[int, Field(ge=1, le=10**6)] | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Program:
        if sum(kind is not None for kind in (self.script, self.trace, self.model)) != 1:
            raise ValueError("a program has either a script or a trace, or a model that is served")
        if self.script is None and (self.arguments or self.names or self.cuda or self.ranks):
            kind = "trace" if self.model is None else "model"
            raise ValueError(f"a {kind} has no arguments, names, cuda or ranks: they belong to a script")
        return self

    @property
    def title(self) -> str:
        """The program's name in the table."""
        if self.name is not None:
            return self.name
        if self.model is not None:
            file, _, function = self.model.rpartition(".py")
            return Path(file).name + function
        path = Path(self.script or self.trace or "")
        return path.parent.name if path.name == "trace.npz" and path.parent.name else path.stem


class Search(_Table):
    """What the optimizer minimises, and the budgets that it keeps.

    Attributes:
        minimize: geometric mean over programs and hosts of a column: seconds, usd or joules.
        budgets: name -> expression over fields of the chip, such as ``0.1 * compute.cores + 2 <= 90``.
    """

    minimize: Literal["seconds", "usd", "joules"] = "seconds"
    trials: Annotated[int, Field(ge=1, le=10**6)] = 100
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    usd_per_hour: Annotated[Text | None, Field(max_length=1000)] = None
    tdp_w: Annotated[Text | None, Field(max_length=1000)] = None
    budgets: Annotated[dict[Name, Annotated[Text, Field(max_length=1000)]], Field(max_length=20)] = {}


class Serving(_Table):
    """Programs under a stream of requests. Lists are axes; the others are options of `bringup serve`.

    Attributes:
        rates: requests per second, as ``--arrivals poisson:RATE``.
    """

    rates: Annotated[list[Annotated[float, Field(ge=1e-6, le=1e9)]], Field(max_length=MOST_VALUES)]
    chips_per_engine: list[Annotated[int, Field(ge=1, le=4096)]] | None = None
    requests: Annotated[int, Field(ge=1, le=10**6)] = 1000
    lengths: Text | None = None
    slo: Text | None = None
    prefill: Text = "chunked:2048"
    max_requests: Annotated[int, Field(ge=1, le=2**20)] = 256
    kv_tokens: Annotated[int, Field(ge=1, le=2**40)] | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0


Axis = Annotated[list[Any], Field(max_length=MOST_VALUES)]


class File(_Table):
    """The contents of a sweep file."""

    programs: Annotated[list[Program], Field(max_length=1000)]
    chips: Annotated[list[Text], Field(max_length=10_000)] | Literal["all"]
    hosts: Annotated[list[Text], Field(max_length=1000)] | Literal["all"] = [DEFAULT_HOST]
    modes: list[Literal["eager", "graph"]] | None = None
    clusters: Annotated[list[Text], Field(max_length=1000)] | None = None
    dispatch_scale: Annotated[list[Scale], Field(max_length=MOST_VALUES)] | None = None
    link_scale: Annotated[list[Scale], Field(max_length=MOST_VALUES)] | None = None
    placements: list[Literal["chip", "host", "best"]] | None = None
    serving: Serving | None = None
    arguments: Annotated[dict[Name, Axis], Field(max_length=20)] = {}
    ranges: Annotated[dict[str, Any], Field(max_length=50)] = {}
    search: Search | None = None

    @model_validator(mode="after")
    def _axes_have_values(self) -> File:
        axes: dict[str, Any] = {name: getattr(self, name) for name in ("programs", "chips", "hosts", "modes")}
        axes |= {name: getattr(self, name) for name in ("clusters", "dispatch_scale", "link_scale", "placements")}
        if self.serving is not None:
            axes |= {f"serving.{name}": getattr(self.serving, name) for name in ("rates", "chips_per_engine")}
        axes |= {f"arguments.{name}": values for name, values in self.arguments.items()}
        for name, values in axes.items():
            if values == []:
                raise ValueError(f"{name} is empty, so the sweep would have no configuration: give it a value")
            if isinstance(values, list) and values and not isinstance(values[0], Program):
                twice = [value for value, count in Counter(map(repr, values)).items() if count > 1]
                if twice:
                    raise ValueError(f"{name} names {short(twice[0])} twice: give each value once")
        columns = RESERVED | ({"placement"} if self.placements else set())
        columns |= {*SERVED, "rate", "chips_per_engine"} if self.serving else set()
        for name, values in self.arguments.items():
            if name.casefold() in columns:  # as SQL compares names
                raise ValueError(f"arguments.{name} is the name of another column: choose another name")
            columns.add(name.casefold())
            for value in values:
                if not isinstance(value, (bool, int, float, str)) or (isinstance(value, str) and not value):
                    raise ValueError(f"arguments.{name} has {short(repr(value))}: give texts, numbers, true or false")
                if isinstance(value, str):
                    visible(value)
                if isinstance(value, int) and abs(value) >= 2**63:
                    raise ValueError(f"arguments.{name} has {short(repr(value))}: give a smaller number")
        for program in self.programs:
            idle = next((name for name in program.names if name not in self.arguments), None)
            if idle is not None:
                raise ValueError(f"names has {idle}, which is no axis under arguments: add its values there")
        titles = Counter(program.title for program in self.programs)
        if len(titles) < len(self.programs):
            raise ValueError(f"two programs have the name {short(titles.most_common(1)[0][0])}: give them a name each")
        recordings = [program.title for program in self.programs if program.script is None]
        if self.arguments and recordings:
            raise ValueError(f"arguments are an axis, but {short(recordings[0])} is no script: give its script instead")
        self._refuse_what_does_not_go_together()
        return self

    def _refuse_what_does_not_go_together(self) -> None:
        others = [name for name in ("modes", "clusters", "link_scale", "dispatch_scale") if getattr(self, name)]
        models = [program.title for program in self.programs if program.model is not None]
        if self.placements and others:
            raise ValueError(f"placements are planned for a chip as it runs by default: leave {others[0]} out")
        if models and self.serving is None:
            raise ValueError(f"{short(models[0])} is a model, which is served: add rates = [...] under [serving]")
        if self.serving is not None:
            others += ["placements"] if self.placements else []
            if others:
                raise ValueError(f"{others[0]} is no axis of programs that are served: leave it out")
            if len(models) < len(self.programs):
                for name in ("lengths", "kv_tokens", "chips_per_engine", "dtype", "prefill", "max_requests"):
                    if name in self.serving.model_fields_set:
                        raise ValueError(f"serving.{name} is of language models: leave it out, or the other programs")


@dataclass(frozen=True)
class Sweep:
    """A sweep file that was read.

    Attributes:
        path: of the file; paths in it are relative to its folder.
        ranges: field of the chip -> its values.
    """

    path: Path
    file: File
    ranges: dict[str, tuple[float, ...]]

    @property
    def chips(self) -> list[str]:
        """The chips, as names or paths."""
        return available_chips() if self.file.chips == "all" else [self.located(name) for name in self.file.chips]

    @property
    def hosts(self) -> list[str]:
        """The hosts, as names or paths."""
        return available_hosts() if self.file.hosts == "all" else [self.located(name) for name in self.file.hosts]

    def located(self, name: str) -> str:
        """Return the path of a file that the sweep file names, or the name of a chip, host or cluster itself."""
        return str(self.path.parent / name) if name.endswith(".toml") or "/" in name else name


def load(path: str | Path) -> Sweep:
    """Read a sweep file.

    Raises:
        BringupError: the file is missing or malformed; one sentence with the key and the remedy.
    """
    file = Path(path)
    data = parse_toml(read_text(file, "sweep file"), file, "docs/sweeps.md has an example")
    try:
        contents = File.model_validate(data)
    except ValidationError as error:
        raise BringupError(f"{file}: {_mistake(error)}") from None
    ranges: dict[str, tuple[float, ...]] = {}
    for field, value in _leaves(contents.ranges, ""):
        try:
            ranges[field] = _values(value)
        except ValueError as error:
            raise BringupError(f"{file}: ranges.{short(field)}: {error}") from None
    return Sweep(file, contents, ranges)


def _leaves(table: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, dict) and set(value) != {"values"}:
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((prefix + key, value))
    return leaves


def _values(text: Any) -> tuple[float, ...]:
    """Return the values of a range: low, high and their number, or a table with ``values``."""
    numbers = text["values"] if isinstance(text, dict) else text
    if not isinstance(numbers, list) or any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
        raise ValueError("give [low, high, number of values], or {values = [...]}")
    if any(not abs(number) <= MOST for number in numbers):
        raise ValueError(f"a number is not finite, or beyond {MOST:g}: give a smaller one")
    if isinstance(text, dict):
        if not numbers or len(set(numbers)) < len(numbers):
            raise ValueError("values is empty, or names a number twice: give each number once")
        return tuple(numbers)
    if len(numbers) != 3:
        raise ValueError("give [low, high, number of values], or {values = [...]}")
    low, high, count = numbers
    if not isinstance(count, int) or not 1 <= count <= MOST_VALUES:
        raise ValueError(f"the number of values, {short(str(count))}, must be a whole number from 1 to {MOST_VALUES:,}")
    if not low < high and not (low == high and count == 1):
        raise ValueError(f"{low:g} to {high:g} is empty: give the lower end first")
    if count == 1 and low < high:
        raise ValueError("one value cannot reach from the low to the high end: give at least two")
    return (*(low + (high - low) * place / max(count - 1, 1) for place in range(count - 1)), high)


def _mistake(error: ValidationError) -> str:
    first = min(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    key = short(".".join(str(part) for part in first["loc"]))
    if first["type"] == "extra_forbidden":
        table: Any = {1: File, 2: Search, 3: Program}.get(len(first["loc"]), File)
        table = Serving if first["loc"][0] == "serving" else table
        names = list(table.model_fields)
        nearest = difflib.get_close_matches(str(first["loc"][-1])[:80], names, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else f"its keys are {', '.join(names)}"
        return f"{key} is not a key of a sweep file: {hint}"
    if first["type"] == "missing":
        return f"{key} is missing: docs/sweeps.md has an example"
    simple = isinstance(first["input"], (str, int, float, bool))
    value = f", got {short(repr(first['input']))}" if simple else ""
    message = plain(first["msg"]).removeprefix("Value error, ")
    return f"{key}: {message}{value}" if key else message
