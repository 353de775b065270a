"""Rows of a sweep with [serving]: what `bringup serve` has of a program, for one rate of requests."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from bringup.recording.trace import Trace
from bringup.serving.arrivals import Stream, stream
from bringup.serving.outcome import Objective
from bringup.serving.serve import Options, Simulation, TooLargeError
from bringup.sweep.file import LATENCIES, RESULTS, SERVED, Serving

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host
    from bringup.serving.outcome import Outcome
    from bringup.sweep.programs import Source


def options_of(serving: Serving, chips: int = 1, lengths: Stream | None = None) -> Options:
    """Return the options of `bringup serve` for the first rate of a sweep, with the requests of its file of lengths."""
    return Options(
        arrivals=f"poisson:{serving.rates[0]!r}",
        slo=Objective.parse(serving.slo) if serving.slo else Objective(),
        chips=chips,
        lengths=serving.lengths if lengths is None else lengths,
        **serving.model_dump(exclude={"rates", "chips_per_engine", "slo", "lengths"}),
    )


class Service:
    """A program on a machine, with all that its rates share.

    Args:
        source: of the program.
        chip: of the engine, which has `chips` of them.
        host: the host.
        serving: how the program is served.
        lengths: the requests of the file that it draws lengths from, if it names one.
    """

    def __init__(
        self, source: Source, chip: Chip, host: Host, serving: Serving, chips: int, lengths: Stream | None = None
    ) -> None:
        self.options = options_of(serving, chips, lengths)
        self.chip = chip
        self.needed_bytes = 0  # of a program that does not fit
        self.simulation: Simulation | None = None
        try:
            self.simulation = Simulation({1: source} if isinstance(source, Trace) else source, chip, host, self.options)
        except TooLargeError as error:
            self.needed_bytes = error.needed_bytes

    def row(self, rate: float) -> list[float]:
        """Return the band and the results at a rate; of a program that does not fit, there is only its memory."""
        simulation, options = self.simulation, self.options
        if simulation is None:
            values = dict.fromkeys(("band", *RESULTS, *SERVED), math.nan)
            values |= {"peak_bytes": self.needed_bytes, "fits": False, "unstable": False}
            return list(values.values())
        random = np.random.default_rng(options.seed)
        lengths = options.lengths if simulation.has_tokens else "fixed:1:1"
        outcome = simulation.run(stream(f"poisson:{rate!r}", lengths, options.requests, random))
        band = None if self.chip.invented else simulation.band()
        values = {"band": _or_nan(band), **_of_step(outcome), **_of_requests(outcome)}
        peak = simulation.peak_bytes(outcome)  # a stated KV cache may be larger than the chip's room
        values |= {"peak_bytes": peak, "fits": peak <= self.chip.room_bytes}
        return [values[name] for name in ("band", *RESULTS, *SERVED)]


def _of_step(outcome: Outcome) -> dict[str, float]:
    """Return the means over the steps; the chip is taken to compute during a whole step, as its energy is."""
    seconds = outcome.busy_seconds / outcome.steps
    tokens = outcome.output_tokens / outcome.steps
    cost = _or_nan(outcome.cost_per_million_tokens) / 1e6
    joules = _or_nan(outcome.joules_per_token)
    means = {"step_seconds": seconds, "device_seconds": seconds}
    return means | {"energy_joules": joules * tokens, "cost_usd": cost * tokens}


def _of_requests(outcome: Outcome) -> dict[str, float]:
    percentiles = outcome.percentiles()
    values = {
        name: percentiles.get(name.rpartition("_")[0], {}).get(name.rpartition("_")[2], math.nan) for name in LATENCIES
    }
    values |= {name: _or_nan(getattr(outcome, name)) for name in SERVED if name not in LATENCIES}
    return values


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
