"""The configurations of a sweep: one row for each combination of the axes, in a fixed order."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.core_build import replay_library
from bringup.errors import BringupError
from bringup.machine.files import load_chip, load_host
from bringup.machine.topology import Topology, load_cluster
from bringup.serving.arrivals import Stream, is_file, read_lengths, stream
from bringup.serving.blocks import SIZE, blocks_of
from bringup.serving.outcome import Objective
from bringup.sweep.file import FIXED, RESULTS, SERVED, WHOLE, Serving, Sweep, Value
from bringup.sweep.variants import check
from bringup.text import short

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host

Array = npt.NDArray[Any]
# Configurations per second of one core: measured on a Xeon at 2.1 GHz with eight recordings of 36 to 3,062 launches.
RATE = 1500
BLOCK = 8192  # rows of a part; pricing them takes about five seconds
PLAN_SECONDS = 0.3  # of one core for a plan of 1,421 launches; measured
ENGINE_SECONDS = 1.2  # of one core for the steps of an engine, which its rates share; measured with 8 layers
REQUESTS = 1500  # that one core serves per second then; measured
PACKAGE = Path(__file__).parent.parent
MOST_ROWS = 10**10  # the names of the parts are held in memory; chosen
# The rooms whose code and tables set the values of a row.
PRICING = ("machine", "cost", "recording", "pricing", "timeline", "analyse", "placement", "serving", "sweep")


def version() -> str:
    """Return the version of everything that prices depend on: a row with another one is priced again."""
    total = hashlib.sha256(replay_library().file.encode())
    for room in PRICING:
        for path in sorted(PACKAGE.joinpath(room).glob("*")):
            total.update(path.read_bytes() if path.suffix in (".py", ".csv") else b"")
    package = vars(sys.modules["bringup"])["__version__"]
    return f"{package}+{total.hexdigest()[:8]}"


@dataclass(frozen=True)
class Block:
    """Consecutive rows of one chip, which are priced as one and become one part."""

    chip: int
    first: int
    last: int

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.last - self.first


@dataclass(frozen=True)
class Grid:
    """The axes of a sweep with everything that they name, except for the recordings.

    Attributes:
        programs: their names.
        arguments: axis -> values, the argument axes. Each program has a recording for each combination of them.
        ranges: field -> values, the axes of chip fields.
        modes: None if the axis is not in the sweep; so are clusters and the scales.
        placements: where the launches of a program run; None if the axis is not in the sweep.
        serving: how programs are served; None if a row is a step.
        lengths: the requests of the file that lengths are drawn from, if [serving] names one.
        left_out: chips with a mode that they do not have; these rows do not exist.
    """

    programs: tuple[str, ...]
    arguments: tuple[tuple[str, tuple[Value, ...]], ...]
    chips: tuple[Chip, ...]
    hosts: tuple[Host, ...]
    ranges: tuple[tuple[str, tuple[float, ...]], ...]
    modes: tuple[str, ...] | None
    clusters: tuple[tuple[str, Topology], ...] | None
    link_scale: tuple[float, ...] | None
    dispatch_scale: tuple[float, ...] | None
    placements: tuple[str, ...] | None
    serving: Serving | None
    lengths: Stream | None  # the requests of the file that [serving] draws lengths from
    version: str

    @property
    def rates(self) -> tuple[float, ...] | None:
        """Requests per second."""
        return tuple(self.serving.rates) if self.serving else None

    @property
    def engines(self) -> tuple[int, ...] | None:
        """Chips per engine; None if the axis is not in the sweep."""
        return tuple(self.serving.chips_per_engine) if self.serving and self.serving.chips_per_engine else None

    @property
    def results(self) -> tuple[str, ...]:
        """The columns that are priced, beside the band."""
        return (*RESULTS, *SERVED) if self.serving else RESULTS

    @property
    def seconds_per_row(self) -> float:
        """CPU seconds that a row takes, about."""
        seconds = 1 / RATE
        if self.placements:
            seconds += PLAN_SECONDS * self.placements.count("best") / len(self.placements)
        if self.serving:
            seconds += ENGINE_SECONDS / len(self.serving.rates) + self.serving.requests / REQUESTS
        return seconds

    @property
    def recordings(self) -> int:
        """The number of recordings, which are numbered with the last argument axis first."""
        return len(self.programs) * math.prod(len(values) for _, values in self.arguments)

    def modes_of(self, chip: int) -> tuple[str, ...]:
        """Return the modes of a chip that the sweep has."""
        own = self.chips[chip].modes
        if self.modes is None:
            return ("eager" if "eager" in own else "graph",)
        return tuple(mode for mode in self.modes if mode in own)

    @property
    def left_out(self) -> list[str]:
        """The chips without one of the sweep's modes."""
        return [chip.name for n, chip in enumerate(self.chips) if self.modes and self.modes_of(n) != self.modes]

    def shape(self, chip: int) -> tuple[int, ...]:
        """Return the length of every axis for a chip; rows are numbered with the last axis first."""
        return (
            self.recordings,
            *(len(values) for _, values in self.ranges),
            len(self.modes_of(chip)),
            len(self.clusters or (None,)),
            len(self.hosts),
            len(self.link_scale or (1.0,)),
            len(self.dispatch_scale or (1.0,)),
            len(self.placements or (None,)),
            len(self.engines or (None,)),
            len(self.rates or (None,)),
        )

    @property
    def rows(self) -> int:
        """The number of configurations; `len` could not say one beyond 2**63."""
        return sum(math.prod(self.shape(chip)) for chip in range(len(self.chips)))

    def blocks(self) -> Iterator[Block]:
        """Yield the parts of the table in their order; they take equally long, whatever a row takes."""
        size = max(int(BLOCK / RATE / self.seconds_per_row + 0.5), 1)
        for chip in range(len(self.chips)):
            rows = math.prod(self.shape(chip))
            for first in range(0, rows, size):
                yield Block(chip, first, min(first + size, rows))

    @property
    def axes(self) -> tuple[str, ...]:
        """The columns of the axes, beside program, chip and host."""
        optional = {
            "mode": self.modes,
            "cluster": self.clusters,
            "link_scale": self.link_scale,
            "dispatch_scale": self.dispatch_scale,
            "placement": self.placements,
            "chips_per_engine": self.engines,
            "rate": self.rates,
        }
        present = (name for name, values in optional.items() if values is not None)
        return (*(name for name, _ in self.arguments), *(name for name, _ in self.ranges), *present)

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the table with their types in SQL."""
        types = dict.fromkeys((*FIXED, "mode", "cluster", "placement"), "VARCHAR")
        types |= dict.fromkeys(("band", *self.results), "DOUBLE") | WHOLE
        types |= dict.fromkeys(("link_scale", "dispatch_scale", "rate"), "DOUBLE") | {"chips_per_engine": "BIGINT"}
        types |= {name: _type(values) for name, values in (*self.arguments, *self.ranges)}
        return {name: types[name] for name in (*FIXED, *self.axes, *self.results)}

    def places(self, block: Block, rows: Array | None = None) -> tuple[Array, ...]:
        """Return for every axis of `shape` the numbers of the values of a block's rows."""
        numbers = np.arange(block.first, block.last) if rows is None else block.first + rows
        return np.unravel_index(numbers, self.shape(block.chip))

    def labels(self, block: Block) -> dict[str, Array]:
        """Return the columns of a block that say which configuration a row is."""
        recording, *of_ranges, mode, cluster, host, link, dispatch, placement, engine, rate = self.places(block)
        lengths = (len(self.programs), *(len(values) for _, values in self.arguments))
        program, *of_arguments = np.unravel_index(recording, lengths)
        labels: dict[str, Array] = {
            "program": _texts(self.programs)[program],
            "chip": np.full(block.rows, self.chips[block.chip].name, dtype=object),
            "host": _texts([item.name for item in self.hosts])[host],
        }
        for (name, values), place in zip(self.arguments, of_arguments, strict=True):
            text = self.columns[name] == "VARCHAR"
            labels[name] = (_texts(list(map(str, values))) if text else np.asarray(values))[place]
        for (name, numbers), place in zip(self.ranges, of_ranges, strict=True):
            labels[name] = np.asarray(numbers)[place]
        if self.modes is not None:
            labels["mode"] = _texts(self.modes_of(block.chip))[mode]
        if self.clusters is not None:
            labels["cluster"] = _texts([name for name, _ in self.clusters])[cluster]
        if self.link_scale is not None:
            labels["link_scale"] = np.asarray(self.link_scale)[link]
        if self.dispatch_scale is not None:
            labels["dispatch_scale"] = np.asarray(self.dispatch_scale)[dispatch]
        if self.placements is not None:
            labels["placement"] = _texts(self.placements)[placement]
        if self.rates is not None:
            labels["rate"] = np.asarray(self.rates)[rate]
        if self.engines is not None:
            labels["chips_per_engine"] = np.asarray(self.engines)[engine]
        return labels


def _texts(values: Any) -> Array:
    column = np.empty(len(values), dtype=object)
    column[:] = list(values)
    return column


def _type(values: Any) -> str:
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return "BOOLEAN"
    if kinds == {int}:
        return "BIGINT"
    return "DOUBLE" if kinds <= {int, float} else "VARCHAR"


def of_sweep(sweep: Sweep) -> Grid:
    """Return the grid of a sweep file; every chip, host, cluster and range is read and checked.

    Raises:
        BringupError: one of them is not valid.
    """
    file = sweep.file
    chips = [load_chip(name) for name in sweep.chips]
    hosts = [load_host(name) for name in sweep.hosts]
    for what, items in (("chips", chips), ("hosts", hosts)):
        name, count = Counter(item.name for item in items).most_common(1)[0]
        if count > 1:
            raise BringupError(f"{sweep.path}: two {what} are called {short(name)}: give the files other names")
    try:
        ranges = {name: values for chip in chips for name, values in check(chip, sweep.ranges).items()}
    except BringupError as error:
        raise BringupError(f"{sweep.path}: {error}") from None
    clusters = None
    if file.clusters is not None:
        clusters = tuple((Path(name).stem, load_cluster(sweep.located(name))) for name in file.clusters)
    grid = Grid(
        programs=tuple(program.title for program in file.programs),
        arguments=tuple((name, tuple(values)) for name, values in file.arguments.items()),
        chips=tuple(chips),
        hosts=tuple(hosts),
        ranges=tuple(ranges.items()),
        modes=tuple(file.modes) if file.modes is not None else None,
        clusters=clusters,
        link_scale=tuple(file.link_scale) if file.link_scale is not None else None,
        dispatch_scale=tuple(file.dispatch_scale) if file.dispatch_scale is not None else None,
        placements=tuple(file.placements) if file.placements is not None else None,
        serving=file.serving,
        lengths=_requests(sweep),
        version=version(),
    )
    if not grid.rows:
        raise BringupError(f"{sweep.path}: no chip of the sweep has a mode of it: add the mode eager or graph")
    return grid


def _requests(sweep: Sweep) -> Stream | None:
    """Return the requests of the file that lengths are drawn from; None if there is none.

    Raises:
        BringupError: the requests of the sweep cannot be drawn, or one is longer than the stated cache.
    """
    serving = sweep.file.serving
    if serving is None:
        return None
    lengths = None
    try:
        if serving.slo is not None:
            Objective.parse(serving.slo)
        if serving.lengths is not None and is_file(serving.lengths):
            lengths = read_lengths(sweep.path.parent / serving.lengths)
        if any(program.model is not None for program in sweep.file.programs):
            random, arrivals = np.random.default_rng(serving.seed), f"poisson:{serving.rates[0]!r}"
            # The lengths are the same for each rate.
            longest = stream(arrivals, lengths or serving.lengths, serving.requests, random).longest
            if serving.kv_tokens is not None and longest > blocks_of(serving.kv_tokens, SIZE) * SIZE:
                raise BringupError(
                    f"kv_tokens = {serving.kv_tokens:,} holds less than the {longest:,} tokens of the longest request: "
                    "state a larger cache, or shorter lengths"
                )
    except BringupError as error:
        raise BringupError(f"{sweep.path}: serving: {error}") from None
    return lengths


@dataclass(frozen=True)
class Keys:
    """Names of rows by what they are computed from, so that no row is priced twice.

    Attributes:
        recordings: digests of the recordings, in the grid's order.
    """

    grid: Grid
    recordings: tuple[str, ...]

    @cached_property
    def _chips(self) -> list[str]:
        return [_digest(chip.model_dump(mode="json")) for chip in self.grid.chips]

    @cached_property
    def _hosts(self) -> list[str]:
        return [_digest(host.model_dump(mode="json")) for host in self.grid.hosts]

    @cached_property
    def _clusters(self) -> list[str]:
        clusters = self.grid.clusters
        return [""] if clusters is None else [_digest(repr(topology)) for _, topology in clusters]

    @cached_property
    def _lengths(self) -> str:
        return "" if self.grid.lengths is None else self.grid.lengths.digest

    def of_block(self, block: Block) -> Array:
        """Return the key of every row of a block."""
        grid = self.grid
        program, *of_ranges, mode, cluster, host, link, dispatch, placement, engine, rate = (
            place.tolist() for place in grid.places(block)
        )
        modes = grid.modes_of(block.chip)
        head = f"{grid.version} {self._chips[block.chip]}"
        names = [(name, [repr(value) for value in values]) for name, values in grid.ranges]
        fields = [
            " ".join(f"{name}={texts[number]}" for (name, texts), number in zip(names, numbers, strict=True))
            for numbers in zip(*of_ranges, strict=True)
        ] or [""] * block.rows
        links = [repr(float(value)) for value in grid.link_scale or (1.0,)]
        dispatches = [repr(float(value)) for value in grid.dispatch_scale or (1.0,)]
        placements, rates, engines = grid.placements or ("",), grid.rates or ("",), grid.engines or ("",)
        serving = grid.serving.model_dump_json(exclude={"rates", "chips_per_engine"}) if grid.serving else ""
        head += f" {serving} {self._lengths}"
        keys = np.empty(block.rows, dtype=object)
        for row in range(block.rows):
            of_program = f"{self.recordings[program[row]]} {fields[row]} {modes[mode[row]]}"
            of_host = f"{self._clusters[cluster[row]]} {self._hosts[host[row]]} {links[link[row]]}"
            of_service = f"{placements[placement[row]]} {rates[rate[row]]!r} {engines[engine[row]]}"
            text = f"{head} {of_program} {of_host} {dispatches[dispatch[row]]} {of_service}"
            keys[row] = hashlib.sha256(text.encode()).hexdigest()[:20]
        return keys

    def part(self, block: Block) -> str:
        """Return the file name of a block's part, which changes with everything that its rows depend on."""
        grid = self.grid
        axes = [
            grid.ranges,
            grid.modes_of(block.chip),
            grid.link_scale,
            grid.dispatch_scale,
            grid.programs,
            grid.arguments,
            grid.placements,
            [grid.serving.model_dump(), self._lengths] if grid.serving else None,
        ]
        digest = _digest(
            [
                *(grid.version, self._chips[block.chip], self._hosts, self._clusters, self.recordings, axes),
                *([host.name for host in grid.hosts], [name for name, _ in grid.clusters or ()], grid.columns),
                *(block.first, block.last),
            ]
        )
        return f"{_plain(grid.chips[block.chip].name)}-{block.first:09d}-{digest[:16]}.parquet"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:60]


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:32]
