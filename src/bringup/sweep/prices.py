"""Prices the rows of a sweep: what `summarize` has of a step, without the rest, from what the rows share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup import pricing
from bringup.analyse import holders
from bringup.analyse.program_class import program_class
from bringup.pricing.bands import bound, error_band
from bringup.recording.trace import Trace
from bringup.sweep.grid import Block, Grid
from bringup.sweep.placements import CHIP, Placed, divided
from bringup.sweep.variants import variant
from bringup.timeline import library
from bringup.timeline.replay import Calls, WhatIf, replay
from bringup.timeline.steady import steady

if TYPE_CHECKING:
    from bringup.machine.schema import Chip
    from bringup.sweep.programs import Source
    from bringup.sweep.under_load import Service

Array = npt.NDArray[Any]
SHARED = (
    "signatures",
    "work",
    "steps",
    "step_work",
    "owned_storages",
    "use_rows",
    "waits",
)  # of a trace, on any cluster
MOST_VARIANTS = 1024  # chips that are held; each has some 10 KB


class _Program:
    """A recording with what all its rows share."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.calls = Calls(trace)
        self.peak = holders.usage(trace, trace.steps.ends)
        self.kind = program_class(trace)
        trace.step_work  # noqa: B018  (computed once, and shared)
        self._on: dict[str, Trace] = {}

    def on_cluster(self, name: str) -> Trace:
        """Return the recording on another cluster."""
        if name not in self._on:
            moved = replace(self.trace, about={**self.trace.about, "cluster": name})
            moved.__dict__.update({key: self.trace.__dict__[key] for key in SHARED if key in self.trace.__dict__})
            self._on[name] = moved
        return self._on[name]


class Pricer:
    """Prices rows of a grid in one process.

    Args:
        grid: the axes.
        traces: the recordings, in the grid's order.
    """

    def __init__(self, grid: Grid, traces: Sequence[Source]) -> None:
        self._traces = traces
        self._programs: dict[int, _Program] = {}
        self._served: tuple[Any, Service | None] = ((), None)
        self._begin(grid)

    def _begin(self, grid: Grid) -> None:
        self.grid = grid
        self._variants: dict[tuple[int, tuple[int, ...]], Chip] = {}
        self._bands: dict[tuple[int, str, str], float] = {}

    def of_chip(self, chip: Chip, column: str) -> Array:
        """Return a column for a chip as it is, on all axes but those of chips; the rows of a program are one block."""
        self._begin(replace(self.grid, chips=(chip,), ranges=()))
        return self.price(Block(0, 0, self.grid.rows))[column]

    def price(self, block: Block, rows: Array | None = None) -> dict[str, Array]:
        """Return the values of a block's rows, or of some of them; not a number stands for no value."""
        grid = self.grid
        program, *of_ranges, mode, cluster, host, link, dispatch, placement, engine, rate = (
            place.tolist() for place in grid.places(block, rows)
        )
        placements = grid.placements or (CHIP,)
        modes = grid.modes_of(block.chip)
        fields = list(zip(*of_ranges, strict=True)) or [()] * len(program)
        names = ("band", *grid.results)
        values = np.empty((len(program), len(names)))
        at: tuple[Any, ...] = ()
        for row in range(len(program)):
            if grid.serving is not None:
                service = self._service(program[row], block.chip, fields[row], host[row], engine[row])
                values[row] = service.row(grid.serving.rates[rate[row]])
                continue
            here = (program[row], fields[row], mode[row], cluster[row])
            if here != at:
                of_program = self._program(program[row])
                chip = self._variant(block.chip, fields[row])
                graph = modes[mode[row]] == "graph"
                trace = of_program.trace
                if grid.clusters is not None:
                    name, topology = grid.clusters[cluster[row]]
                    trace = of_program.on_cluster(name)
                    trace.__dict__["cluster"] = topology
                prices = pricing.price_table(trace.work, trace.signatures, chip, graph=graph)
                at = here
            if placements[placement[row]] != CHIP:
                placed = divided(trace, chip, grid.hosts[host[row]], placements[placement[row]], of_program.peak)
                values[row] = self._row(of_program, block.chip, chip, placed)
                continue
            what_if = WhatIf(
                graph=graph,
                link_scale=(grid.link_scale or (1.0,))[link[row]],
                dispatch_scale=(grid.dispatch_scale or (1.0,))[dispatch[row]],
            )
            line = replay(trace, chip, grid.hosts[host[row]], prices=prices, what_if=what_if, calls=of_program.calls)
            *_, since, until = steady(line)
            busy, *_ = library.shares(trace.columns["kind"], line.fallback, line.start, line.end, since, until)
            values[row] = self._row(of_program, block.chip, chip, Placed(until - since, busy, 0))
        columns = {name: values[:, place] for place, name in enumerate(names)}
        kinds = {"DOUBLE": np.float64, "BIGINT": np.int64, "BOOLEAN": np.bool_}
        return {name: column.astype(kinds[grid.columns[name]], copy=False) for name, column in columns.items()}

    def _row(self, program: _Program, base: int, chip: Chip, placed: Placed) -> tuple[float, ...]:
        peak, step, busy = program.peak, placed.seconds, placed.busy_seconds
        joules = chip.joules(step, busy)
        hourly = chip.price.usd_per_hour if chip.price else None
        return (
            math.nan if chip.invented else self._band(base, bound(busy, step), program.kind),
            step,
            busy,
            max(peak.peak_bytes - placed.moved_bytes, 0),
            holders.fits(program.trace, peak, chip, placed.moved_bytes),
            math.nan if joules is None else joules,
            hourly * step / 3600 if hourly else math.nan,
        )

    def _band(self, base: int, its_bound: str, kind: str) -> float:
        if (base, its_bound, kind) not in self._bands:
            error = error_band(self.grid.chips[base], its_bound, kind).error
            self._bands[base, its_bound, kind] = math.nan if error is None else error
        return self._bands[base, its_bound, kind]

    def _service(self, program: int, base: int, fields: tuple[int, ...], host: int, engine: int) -> Service:
        """Return what the rates of a program on a machine share; the last one is held."""
        from bringup.sweep.under_load import Service  # imports torch

        at = (base, program, fields, host, engine)
        if at != self._served[0] or self._served[1] is None:
            assert self.grid.serving is not None
            chip, machine = self._variant(base, fields), self.grid.hosts[host]
            chips, lengths = (self.grid.engines or (1,))[engine], self.grid.lengths
            self._served = (at, Service(self._traces[program], chip, machine, self.grid.serving, chips, lengths))
        service = self._served[1]
        assert service is not None
        return service

    def _program(self, number: int) -> _Program:
        if number not in self._programs:
            trace = self._traces[number]
            assert isinstance(trace, Trace), "a model is served"
            self._programs[number] = _Program(trace)
        return self._programs[number]

    def _variant(self, base: int, places: tuple[int, ...]) -> Chip:
        if not places:
            return self.grid.chips[base]
        if (base, places) not in self._variants:
            while len(self._variants) >= MOST_VARIANTS:
                self._variants.pop(next(iter(self._variants)))
            chosen = {name: values[place] for (name, values), place in zip(self.grid.ranges, places, strict=True)}
            self._variants[base, places] = variant(self.grid.chips[base], chosen)
        return self._variants[base, places]
