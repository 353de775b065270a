"""What a simulation found: percentiles, goodput, stability, cost and energy, as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.errors import BringupError
from bringup.serving.engine import History
from bringup.serving.requests import Request
from bringup.text import short
from bringup.units import parse_time

Array = npt.NDArray[Any]
WORDS = {"ttft": "time to first token", "tpot": "time per further token", "latency": "latency"}
LATENCIES = tuple(WORDS)
PERCENTILES = (50, 90, 99)
# A queue that grows by less than this share of the arrivals is taken for stable; chosen: in 1,000 requests, the square
# root of their number is 3 %.
GROWS = 0.05
SHORTEST = 1e-9  # seconds in which requests arrive one after the other; chosen: below it they arrive together


@dataclass(frozen=True)
class Objective:
    """The service level that a request has to keep, in seconds; None is no limit."""

    ttft: float | None = None
    tpot: float | None = None
    latency: float | None = None

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Read ``ttft=2s,tpot=50ms,latency=30s``, or a part of it."""
        limits: dict[str, float] = {}
        for part in text.split(","):
            name, equals, value = part.strip().partition("=")
            if name not in LATENCIES or not equals:
                raise BringupError(f"write ttft=2s,tpot=50ms or latency=30s, got {short(part) or 'nothing'}")
            limits[name] = parse_time(value)
        return cls(**limits)

    def limits(self) -> dict[str, float]:
        """Return the limits that are set."""
        limits = {name: getattr(self, name) for name in LATENCIES}
        return {name: limit for name, limit in limits.items() if limit is not None}


@dataclass(frozen=True)
class Money:
    """What engines cost per hour, and what they draw: together, in USD, and in watts idle and busy; None is unknown."""

    usd_per_hour: float | None = None
    idle_watts: float | None = None
    busy_watts: float | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of a simulation.

    Attributes:
        requests: those that were served.
        columns: arrays by name, one place per request: `LATENCIES` in seconds. A single token has no TPOT: nan.
        histories: of each engine.
        seconds: from the first arrival to the last token.
        busy_seconds: of all engines together.
        engines: how many there were.
        queue_growth: requests per second by which the queue grew while requests arrived; 0 for clients that wait.
        unstable: True if that is more than chance.
        preemptions: of all engines.
        steps: that all engines computed.
        kv_blocks: the blocks of an engine.
        peak_blocks: the most that an engine used.
        objective: the service level.
        money: cost and power.
        bands: percentiles with the steps' prices wrong by the band: (low, high), or None.
        band: the error band of a step; None if it is not known.
        largest_rate: requests per second that keep the objective; None if it was not searched, infinity if none is
            too large.
        dropped: requests that were turned away, or too late to be computed.
        about: what was simulated: model, chip and the like.
    """

    requests: Sequence[Request]
    columns: dict[str, Array]
    histories: Sequence[History]
    seconds: float
    busy_seconds: float
    engines: int
    queue_growth: float
    unstable: bool
    preemptions: int
    steps: int
    kv_blocks: int
    peak_blocks: int
    objective: Objective = field(default_factory=Objective)
    money: Money = field(default_factory=Money)
    bands: tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]] | None = None
    band: float | None = None
    largest_rate: float | None = None
    dropped: int = 0
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """All requests, served or not."""
        return len(self.requests) + self.dropped

    def percentiles(self) -> dict[str, dict[str, float]]:
        """Return mean and percentiles of TTFT, TPOT and latency, in seconds; no TPOT if no request has two tokens."""
        columns = {name: self.columns[name][~np.isnan(self.columns[name])] for name in LATENCIES}
        return {name: statistics(values) for name, values in columns.items() if len(values)}

    @property
    def output_tokens(self) -> int:
        """Tokens that all requests got."""
        return sum(request.generated for request in self.requests)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second, from the first arrival to the last token."""
        return self.output_tokens / self.seconds if self.seconds else 0.0

    @property
    def attainment(self) -> float:
        """The share of all requests that were served and keep the objective."""
        return float(self.keeps().sum()) / len(self)

    def keeps(self) -> Array:
        """Return for each served request True if it keeps the objective."""
        keeps = np.ones(len(self.requests), dtype=bool)
        for name, limit in self.objective.limits().items():
            keeps &= ~(self.columns[name] > limit)
        return keeps

    @property
    def goodput(self) -> float:
        """Requests per second that keep the objective."""
        return float(self.keeps().sum()) / self.seconds if self.seconds else 0.0

    @property
    def cost_per_million_tokens(self) -> float | None:
        """USD per million generated tokens, for the time that the engines were there."""
        if self.money.usd_per_hour is None or not self.output_tokens:
            return None
        return self.money.usd_per_hour * self.seconds / 3600 / self.output_tokens * 1e6

    @property
    def joules_per_token(self) -> float | None:
        """Energy of the chips per generated token: an upper bound, since a busy chip is taken to draw all its power."""
        if self.money.busy_watts is None or self.money.idle_watts is None or not self.output_tokens:
            return None
        share = self.busy_seconds / self.engines
        joules = self.money.idle_watts * self.seconds + (self.money.busy_watts - self.money.idle_watts) * share
        return joules / self.output_tokens

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        numbers: dict[str, Any] = {"requests": len(self), "dropped": self.dropped}
        numbers |= dict.fromkeys(LATENCIES) | self.percentiles()
        numbers |= {
            "goodput": self.goodput,
            "attainment": self.attainment,
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
            "steps": self.steps,
            "preemptions": self.preemptions,
            "kv_blocks": self.kv_blocks,
            "peak_kv_blocks": self.peak_blocks,
            "unstable": self.unstable,
            "queue_growth": self.queue_growth,
            "band": self.band,
            "low": self.bands[0] if self.bands else None,
            "high": self.bands[1] if self.bands else None,
            "cost_per_million_tokens": self.cost_per_million_tokens,
            "joules_per_token": self.joules_per_token,
            "largest_rate": None if self.largest_rate == math.inf else self.largest_rate,
            "cached_prompt_tokens": sum(request.read for request in self.requests),
        }
        return numbers | self.about

    def table(self) -> dict[str, Array]:
        """Return the requests as columns, as in requests.parquet."""
        names = ("number", "arrival", "prompt", "output", "priority", "begun", "first", "last", "read", "preemptions")
        columns = {name: np.asarray([getattr(request, name) for request in self.requests]) for name in names}
        columns["engine"] = np.asarray([request.engine for request in self.requests])
        return columns | self.columns | {"keeps_slo": self.keeps()}


def latencies(requests: Sequence[Request]) -> dict[str, Array]:
    """Return the columns of `LATENCIES`; the first token comes before the others, so a single one has no TPOT: nan."""
    arrival, first, last = (
        np.asarray([getattr(request, name) for request in requests]) for name in ("arrival", "first", "last")
    )
    after = np.asarray([request.output - 1 if request.output > 1 else np.nan for request in requests])
    return {"ttft": first - arrival, "tpot": (last - first) / after, "latency": last - arrival}


def statistics(values: Array) -> dict[str, float]:
    """Return mean and percentiles."""
    named = {f"p{percent}": float(np.percentile(values, percent)) for percent in PERCENTILES}
    return {"mean": float(values.mean()), **named}


def growth(arrival: Array, begun: Array, ended: Array) -> tuple[float, bool]:
    """Return by how many requests per second the queue grew while they arrived, and if that is more than chance.

    A stable system soon reaches its usual number of requests, so only the second half of the arrivals counts.
    """
    since, until = float(arrival[len(arrival) // 2]), float(arrival[-1])
    if until - since < SHORTEST:
        return 0.0, False
    waited = ended if bool((begun >= ended).all()) else begun
    at = np.linspace(since, until, 65)
    inside = np.searchsorted(np.sort(arrival), at, side="right") - np.searchsorted(np.sort(waited), at, side="right")
    grown = float(np.polyfit((at - since) / (until - since), inside, 1)[0])
    arrived = len(arrival) - len(arrival) // 2
    unstable = bool(grown > max(GROWS * arrived, 2 * np.sqrt(arrived)))
    return max(grown, 0.0) / (until - since), unstable
