"""Serving a model or a program under load: from the options to the requests as they were served."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bringup.analyse.holders import fits, needed_bytes, ran_out, usage
from bringup.errors import BringupError
from bringup.machine.files import load_chip, load_host
from bringup.machine.topology import cluster_of
from bringup.pricing.bands import CHIP_BOUND, error_band
from bringup.pricing.collective import collective_seconds
from bringup.recording.trace import Trace
from bringup.report.prediction import read_trace
from bringup.serving import batches
from bringup.serving.arrivals import Stream, stream
from bringup.serving.blocks import SIZE, Blocks, blocks_of
from bringup.serving.engine import Engine, Limits, Speculation
from bringup.serving.fleet import ROUTERS, Handover, Router, simulate
from bringup.serving.forward import (
    DTYPES,
    ForwardSteps,
    Recorded,
    built,
    has_tokens,
    load,
    record_batches,
    record_forward,
)
from bringup.serving.outcome import Money, Objective, Outcome, growth, latencies
from bringup.serving.requests import Request
from bringup.serving.steps import Chunk, Rows, Scaled, StepTable
from bringup.text import quantity, size

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host

# Share of the chip's memory that an engine takes: the default of vLLM (vllm/config/cache.py, gpu_memory_utilization).
UTILIZATION = 0.9
UNMEASURED_BAND = 0.15  # operators of measured chips are off by 9 to 20 % (pricing/bands.csv)
ATTAINMENT = 0.99  # share of the requests that keep the objective at the largest rate; chosen
RATE_STEPS = 8  # halvings of the interval of rates; chosen: it is then within 0.4 %


class TooLargeError(BringupError):
    """A model, a program or a request that the memory cannot hold; `needed_bytes` of each chip."""

    def __init__(self, message: str, needed_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


@dataclass(frozen=True)
class Options:
    """How a model is served.

    Attributes:
        arrivals, lengths, requests: see `arrivals.stream`.
        slo: what a request has to keep.
        prefill: ``chunked:BUDGET`` or ``separate:BUDGET``, the tokens of a step.
        policy: ``fcfs`` or ``priority``.
        max_requests: that an engine runs at the same time, or in a batch.
        kv_tokens, kv_blocks, block_size: the KV cache of an engine; without the first two it is what memory is left.
        prefix_cache: True if freed blocks can be read again.
        preemption: ``recompute`` or ``swap``.
        speculation: drafts of each decode step.
        replicas, router: engines, and the rule that chooses one.
        chips: of an engine.
        disaggregate: engines that prefill, and engines that decode.
        step_seconds: a file of measured steps, instead of prices.
        calibrate: factor of all steps: the measured seconds of one, divided by its predicted ones.
        max_watts: power of a chip.
        window, queue_limit, deadline, jitter: for programs without tokens: seconds that a batch waits for more,
            requests that may wait, seconds after which no answer is needed, and the spread of the host's times.
        find_rate: True searches the largest rate that keeps the objective.
        dtype: of the weights.
        seed: of what is drawn.
    """

    arrivals: str
    lengths: str | Stream | None = None
    requests: int | None = None
    slo: Objective = field(default_factory=Objective)
    prefill: str = "chunked:2048"
    policy: Literal["fcfs", "priority"] = "fcfs"
    max_requests: int = 256
    kv_tokens: int | None = None
    kv_blocks: int | None = None
    block_size: int = SIZE
    prefix_cache: bool = True
    preemption: Literal["recompute", "swap"] = "recompute"
    speculation: Speculation | None = None
    replicas: int = 1
    router: Router = "least"
    chips: int = 1
    disaggregate: tuple[int, int] | None = None
    step_seconds: str | None = None
    calibrate: float | None = None
    max_watts: float | None = None
    window: float | None = None
    queue_limit: int | None = None
    deadline: float | None = None
    jitter: batches.Jitter | None = None
    find_rate: bool = False
    dtype: str = "auto"
    seed: int = 0


# What only one kind of program has, by the value that stands for "not asked for".
OF_ENGINES = {
    **{"kv_tokens": None, "kv_blocks": None, "preemption": "recompute", "speculation": None, "router": "least"},
    **{"disaggregate": None, "prefill": "chunked:2048", "policy": "fcfs", "chips": 1, "prefix_cache": True},
    **{"step_seconds": None, "lengths": None, "block_size": SIZE},
}
# The largest number of each setting, and why.
CACHE = (2**40, "a larger cache holds more tokens than are simulated")  # chosen
LARGEST = {
    "max_requests": (2**20, "the largest --prefill has as many tokens"),
    "replicas": (4096, "each engine is simulated"),  # chosen: as --disaggregate
    "chips": (4096, "collectives are priced for clusters of this size"),  # chosen
    "block_size": (2**16, "each step counts the requests by the free places of their last block"),  # chosen
    "kv_tokens": CACHE,
    "kv_blocks": CACHE,
    "queue_limit": (2**40, "fewer requests are simulated"),  # chosen
}
NAMES = {"chips": "--chips-per-engine", "speculation": "--speculate"}  # of options that are not called as their fields
OF_PROGRAMS = {"window": None, "queue_limit": None, "deadline": None, "jitter": None}
Program = Recorded | dict[int, Trace] | None


def serve(
    model: str | os.PathLike[str] | Callable[[], Any] | Trace | None = None,
    *,
    chip: str | os.PathLike[str] | Chip | None = None,
    host: str | os.PathLike[str] | Host | None = None,
    options: Options | None = None,
    **settings: Any,
) -> Outcome:
    """Simulate a model or a program under a stream of requests.

    Args:
        model: ``model.py:name``, or a function without arguments that returns a causal language model of transformers
            or a module with ``example(batch, tokens)``. A module with ``example(batch)``, a recording, or the directory
            of one is a program whose requests are independent. None needs ``step_seconds``.
        chip: name, file or loaded chip.
        host: name, file or loaded host (default: see `load_host`).
        options: all settings at once, instead of single ones.
        settings: fields of `Options`, such as ``arrivals="poisson:10"`` and ``lengths="lognormal:512:128"``.

    Raises:
        BringupError: a setting is invalid, the model cannot be recorded, or it does not fit.
    """
    chosen = options or Options(**settings)
    program = program_of(model, chosen)
    described = load_chip(os.fspath(chip)) if isinstance(chip, str | os.PathLike) else chip
    return Simulation(program, described, host_of(host, chosen), chosen).outcome()


def host_of(host: str | os.PathLike[str] | Host | None, options: Options) -> Host:
    """Return the host that a step is priced on.

    Raises:
        BringupError: there is no such host, or the steps are those of a file, which no host changes.
    """
    if host is not None and options.step_seconds is not None:
        raise BringupError("--host does not change the steps of --step-seconds: leave it out")
    if host is None or isinstance(host, str | os.PathLike):
        return load_host(None if host is None else os.fspath(host))
    return host


def program_of(model: Any, options: Options) -> Program:
    """Record a model or a program; None if the steps are those of a file."""
    check(options)
    if model is None:
        if options.step_seconds is None:
            raise BringupError("name a model (model.py:name) or a recording, or give the file of --step-seconds")
        _refuse_dtype(options)
        _check_budget(options)
        return None
    if not callable(model) and not isinstance(model, Trace):
        path = Path(os.fspath(model))
        model = read_trace(str(path)) if path.is_dir() or path.suffix == ".npz" else load(os.fspath(model))
    if isinstance(model, Trace):
        _refuse_dtype(options)
        return {1: model}
    module = built(model, options.dtype)
    if not has_tokens(module):
        return record_batches(module, options.max_requests)
    _check_budget(options)
    return record_forward(module, *_budget(options.prefill)[1:], options.max_requests)


def check(options: Options) -> None:
    """Refuse settings that contradict each other.

    Raises:
        BringupError: they do.
    """
    _budget(options.prefill)
    for name, (most, reason) in LARGEST.items():
        value = getattr(options, name)
        if value is not None and value < 1:
            raise BringupError(f"{_option(name)} must be at least 1, got {value}")
        if value is not None and value > most:
            raise BringupError(f"{_option(name)} must be at most {most:,}, since {reason}, got {value:,}")
    if options.dtype not in ("auto", *DTYPES):
        raise BringupError(f"dtype must be auto, {', '.join(DTYPES)}, got {options.dtype!r}")
    if options.queue_limit is not None and options.arrivals.startswith("closed"):
        raise BringupError(
            "--queue-limit does not apply to clients that wait, since one that is turned away asks again at once: use "
            "poisson:RATE, or leave it out"
        )
    if options.kv_tokens is not None and options.kv_blocks is not None:
        raise BringupError("--kv-tokens and --kv-blocks both state the cache: leave one out")
    if options.disaggregate is not None and options.replicas != 1:
        raise BringupError("--disaggregate states the engines: leave --replicas out")
    if options.router != "least" and (options.disaggregate or (options.replicas,))[0] == 1:
        more = "two or more that prefill, --disaggregate 2:1" if options.disaggregate else "--replicas 2 or more"
        raise BringupError(f"--router {options.router} chooses among engines: ask for {more}")
    if options.router not in ROUTERS:
        raise BringupError(f"router must be {', '.join(ROUTERS)}, got {options.router!r}")
    if options.find_rate and not options.slo.limits():
        raise BringupError("--find-rate needs the service level to keep: add --slo ttft=2s,tpot=50ms")
    if options.find_rate and options.arrivals.startswith("closed"):
        raise BringupError("--find-rate needs arrivals with a rate: poisson:RATE, constant:RATE or a file")


def _check_budget(options: Options) -> None:
    _, budget = _budget(options.prefill)
    width = 1 + (options.speculation.tokens if options.speculation else 0)
    if options.max_requests * width > budget:
        raise BringupError(
            f"{options.max_requests:,} requests of {quantity(width, 'token')} each need a budget of "
            f"{options.max_requests * width:,} tokens per step, and --prefill has {budget:,}: raise it, or lower "
            "--max-requests"
        )


def _refuse_dtype(options: Options) -> None:
    if options.dtype != "auto":
        raise BringupError(
            "--dtype chooses that of a model's weights, and a recording or a table has its own: leave it out"
        )


def _option(name: str) -> str:
    return NAMES.get(name, f"--{name.replace('_', '-')}")


def _budget(text: str) -> tuple[Literal["chunked", "separate"], int]:
    kind, _, value = text.partition(":")
    if kind in ("chunked", "separate") and (not value or (value.isdecimal() and 1 <= int(value) <= 1 << 20)):
        return kind, int(value or 2048)  # type: ignore[return-value]
    raise BringupError(f"prefill must be chunked:TOKENS or separate:TOKENS, such as chunked:2048, got {text!r}")


@dataclass
class Simulation:
    """A program, recorded or not, on one chip, with all that does not depend on the rate prepared."""

    program: Program
    chip: Chip | None
    host: Host
    options: Options
    stream: Stream = field(init=False)

    def __post_init__(self) -> None:
        options = self.options
        self._refuse_others()
        if self.chip is None and self.program is not None:
            raise BringupError("name the chip that serves it: --chip h100-sxm")
        lengths = options.lengths if self.has_tokens else "fixed:1:1"
        self.stream = stream(options.arrivals, lengths, options.requests, np.random.default_rng(options.seed))
        if options.policy == "priority" and not self.stream.has_priorities:
            raise BringupError("--policy priority needs requests with a priority: add it to the file of requests")
        if options.router == "prefix" and not self.stream.has_prefixes:
            raise BringupError("--router prefix needs requests with a prefix: add it to the file of requests")
        self._scale = (options.calibrate or 1.0) * self._power_factor()
        if self.has_tokens:
            self._prepare_engines()
        else:
            assert isinstance(self.program, dict) and self.chip is not None
            self._refuse_too_large(self.program[max(self.program)], self.chip)
            self._service = batches.Service.of_traces(self.program, self.chip, self.host, self._scale)

    @property
    def has_tokens(self) -> bool:
        """True for a language model."""
        return not isinstance(self.program, dict)

    @property
    def _largest_batch(self) -> int:
        """Requests in the largest batch of a program without tokens."""
        assert isinstance(self.program, dict)
        return min(self.options.max_requests, max(self.program))

    def step_seconds(self, prefill: int, requests: int, context: int) -> float:
        """Return the seconds of one step of an engine, with a whole prompt of `prefill` tokens."""
        chunks = [Chunk(prefill, 0, True)] if prefill else []
        return Scaled(self._table, self._scale).seconds(chunks, requests, context)

    def _refuse_others(self) -> None:
        foreign = OF_PROGRAMS if self.has_tokens else OF_ENGINES
        for name, default in foreign.items():
            if getattr(self.options, name) != default:
                kind = "a language model" if self.has_tokens else "a program without tokens"
                hint = ": use --slo latency=TIME" if name == "deadline" else ": leave it out"
                raise BringupError(f"{_option(name)} does not apply to {kind}{hint}")
        if self.chip is None and self.options.chips > 1:
            raise BringupError("--chips-per-engine needs the chip, whose price and power it multiplies: add --chip")
        if isinstance(self.program, dict):
            if self.options.slo.tpot is not None:
                raise BringupError("--slo tpot does not apply to a program without tokens: use latency=TIME")
            if self.options.window is not None and self._largest_batch == 1:
                raise BringupError("--window waits for a batch, and batches have one request here: leave it out")
            if self._largest_batch < self.options.max_requests != Options.max_requests:
                most = quantity(self._largest_batch, "request")
                raise BringupError(f"--max-requests: the largest batch of a recording has {most}: leave it out")

    def _refuse_too_large(self, trace: Trace, chip: Chip) -> None:
        peak = usage(trace, trace.steps.ends)
        if fits(trace, peak, chip):
            return
        needed, batch = needed_bytes(trace, peak, chip), quantity(self._largest_batch, "request")
        if ran_out(trace):
            text = (
                f"the recorded program ran out of memory on {trace.about.get('chip')}, so the time of a request is "
                "unknown: record it on a chip with more memory, or with less to compute at once"
            )
        else:
            remedy = "lower --max-requests" if self._largest_batch > 1 else "choose another chip"
            text = f"a batch of {batch} needs {size(needed)}, and {chip.name} has {size(chip.room_bytes)}: {remedy}"
        raise TooLargeError(text, needed)

    def _power_factor(self) -> float:
        """Return how much longer steps take within --max-watts: the chip pauses, so that its mean power is less."""
        watts, chip = self.options.max_watts, self.chip
        if watts is None:
            return 1.0
        if chip is None or chip.power is None:
            raise BringupError("--max-watts needs a chip whose file has [power]: name one with --chip")
        idle, busy = _watts(chip)
        if not watts > idle:
            raise BringupError(f"--max-watts {watts:g} is not above what {chip.name} draws when idle, {idle:g} W")
        return max((busy - idle) / (watts - idle), 1.0)

    # ---- language models

    def _prepare_engines(self) -> None:
        options, recorded = self.options, self.program
        assert recorded is None or isinstance(recorded, Recorded)
        self._table: StepTable
        if options.step_seconds is not None:
            self._table = Rows.read(options.step_seconds)
        else:
            assert recorded is not None and self.chip is not None
            self._table = ForwardSteps(recorded, self.chip, self.host, options.chips)
        self._blocks = self._count_blocks(recorded)
        self._refuse_beyond_chip(recorded)
        prefill, budget = _budget(options.prefill)
        self._limits = Limits(
            budget=budget,
            requests=options.max_requests,
            prefill=prefill,
            policy=options.policy,
            preemption=options.preemption,
            swap_seconds=self._swap_seconds(recorded),
            speculation=options.speculation,
        )
        longest = self.stream.prompt + self.stream.output - 1
        late = np.flatnonzero(longest > self._blocks * options.block_size)
        if len(late):
            number, stated = int(late[0]), options.kv_tokens is not None or options.kv_blocks is not None
            remedy = "state a larger cache" if stated else "raise --chips-per-engine"
            text = (
                f"request {number} of {options.arrivals} needs {int(longest[number]):,} tokens of KV cache, and an "
                f"engine has {self._blocks * options.block_size:,}: {remedy}, or leave the request out"
            )
            raise BringupError(text) if stated else TooLargeError(text, self._needed_bytes(int(longest.max())))

    def _count_blocks(self, recorded: Recorded | None) -> int:
        options = self.options
        if options.kv_blocks is not None:
            return options.kv_blocks
        if options.kv_tokens is not None:
            return blocks_of(options.kv_tokens, options.block_size)
        if recorded is None or self.chip is None:
            raise BringupError("state the engine's KV cache, which no model says here: --kv-tokens 41408")
        token_bytes = recorded.token_bytes(options.chips) * options.chips
        if not token_bytes:
            raise BringupError(
                f"{recorded.name} calls no scaled_dot_product_attention, so its bytes per token are unknown: "
                "state the cache with --kv-tokens"
            )
        total = int(UTILIZATION * self.chip.device_bytes) * options.chips
        left = total - recorded.weight_bytes - recorded.working_bytes * options.chips
        blocks = left // (token_bytes * options.block_size)
        if blocks < 1:
            raise TooLargeError(
                f"{recorded.name} does not fit {quantity(options.chips, 'chip')}: its weights have "
                f"{size(recorded.weight_bytes)} and a step {size(recorded.working_bytes)}, of {size(total)} "
                f"({UTILIZATION:.0%} of the memory): raise --chips-per-engine",
                self._needed_bytes(0),
            )
        return int(blocks)

    def _refuse_beyond_chip(self, recorded: Recorded | None) -> None:
        """Raise TooLargeError if a stated cache has no room beside the weights: all memory may be used for it."""
        if recorded is None or self.chip is None:
            return
        tokens = self._blocks * self.options.block_size
        cache = tokens * recorded.token_bytes(self.options.chips) * self.options.chips
        total = self.chip.device_bytes * self.options.chips
        if recorded.weight_bytes + cache > total:
            raise TooLargeError(
                f"the weights of {recorded.name} have {size(recorded.weight_bytes)}, a KV cache of {tokens:,} tokens "
                f"{size(cache)}, and {quantity(self.options.chips, 'chip')} of {self.chip.name} {size(total)}: state a "
                "smaller cache, or raise --chips-per-engine",
                self._needed_bytes(tokens),
            )

    def _needed_bytes(self, tokens: int) -> int:
        """Return the bytes of each chip for the model and a cache of so many tokens; 0 for a table of steps."""
        if not isinstance(self.program, Recorded):
            return 0
        chips = self.options.chips
        weights = -(-self.program.weight_bytes // chips)
        return weights + self.program.working_bytes + tokens * self.program.token_bytes(chips)

    def peak_bytes(self, outcome: Outcome) -> int:
        """Return the most bytes of each chip that an outcome has needed; 0 for a table of steps."""
        if isinstance(self.program, dict):
            trace = self.program[max(self.program)]
            return usage(trace, trace.steps.ends).peak_bytes
        return self._needed_bytes(outcome.peak_blocks * self.options.block_size)

    def _swap_seconds(self, recorded: Recorded | None) -> float:
        if self.options.preemption != "swap":
            return 0.0
        if recorded is None or self.chip is None:
            raise BringupError("--preemption swap needs a model and a chip, for the bytes of a token and the link")
        rate = min(self.chip.link.d2h_gb_s, self.chip.link.h2d_gb_s) * 1e9
        return recorded.token_bytes(self.options.chips) * self.options.block_size / rate

    def _handover(self, engines: list[Engine]) -> Handover:
        recorded, chip = self.program, self.chip
        if not isinstance(recorded, Recorded) or chip is None:
            raise BringupError("--disaggregate needs a model and a chip, for the bytes of a token and the link")
        topology = cluster_of(chip, 2)

        def seconds(request: Request) -> float:
            nbytes = request.computed * recorded.token_bytes(self.options.chips)
            return collective_seconds("send", nbytes, cluster=topology, ranks=2)

        return Handover(engines, seconds)

    def _engine(self, table: StepTable, number: int, prefill_only: bool = False) -> Engine:
        options = self.options
        blocks = Blocks(self._blocks, options.block_size, options.prefix_cache)
        random = np.random.default_rng([options.seed, 1, number])
        return Engine(table, self._limits, blocks, random, stops_after_prompt=prefill_only)

    def _serve_tokens(self, arriving: Stream, scale: float) -> Outcome:
        options = self.options
        table = Scaled(self._table, self._scale * scale)
        first, after = options.disaggregate or (options.replicas, 0)
        engines = [self._engine(table, number, prefill_only=after > 0) for number in range(first)]
        decoding = [self._engine(table, first + number) for number in range(after)]
        requests = arriving.requests()
        handover = self._handover(decoding) if after else None
        simulate(requests, engines, options.router, clients=arriving.clients, handover=handover)
        return self._outcome(requests, engines + decoding)

    def _outcome(self, requests: list[Request], engines: list[Engine]) -> Outcome:
        return self._result(
            requests,
            histories=[engine.history for engine in engines],
            busy_seconds=sum(engine.busy_seconds for engine in engines),
            engines=len(engines),
            preemptions=sum(engine.preemptions for engine in engines),
            steps=sum(engine.steps for engine in engines),
            kv_blocks=self._blocks,
            peak_blocks=max(engine.blocks.peak for engine in engines),
        )

    # ---- programs

    def _serve_batches(self, arriving: Stream, scale: float) -> Outcome:
        options = self.options
        random = np.random.default_rng([options.seed, 1])
        queue = batches.Queue(
            batch=self._largest_batch,
            window=options.window or 0.0,
            limit=math.inf if options.queue_limit is None else options.queue_limit,
            deadline=math.inf if options.deadline is None else options.deadline,
        )
        took: list[float] = []

        def seconds(batch: int) -> float:
            slower = options.jitter.factor(random) if options.jitter else 1.0
            took.append(scale * self._service.seconds(batch, slower))
            return took[-1]

        requests = arriving.requests()
        for request in requests:
            request.prompt = request.output = 1
        history = batches.simulate(requests, seconds, queue, servers=options.replicas, clients=arriving.clients)
        return self._result(
            requests,
            histories=[history],
            busy_seconds=sum(took),
            engines=options.replicas,
            preemptions=0,
            steps=len(took),
            kv_blocks=0,
            peak_blocks=0,
        )

    # ---- both

    def _result(self, requests: list[Request], **numbers: Any) -> Outcome:
        options = self.options
        served = [request for request in requests if not request.dropped]
        if not served:
            raise BringupError("no request was served: each waited longer than --deadline, or was turned away")
        arrival, begun, last = (
            np.asarray([getattr(request, name) for request in served]) for name in ("arrival", "begun", "last")
        )
        slope, unstable = (0.0, False) if self.stream.clients else growth(arrival, begun, last)
        late = 0 if options.deadline is None else int((last - arrival > options.deadline).sum())
        dropped = len(requests) - len(served)
        numbers["dropped"] = dropped
        about: dict[str, Any] = {"chip": self.chip.name if self.chip else None, "arrivals": options.arrivals}
        if not self.has_tokens:
            about["missed_deadlines"] = late + dropped if options.deadline else None
        return Outcome(
            requests=served,
            columns=latencies(served),
            seconds=float(last.max() - arrival.min()),
            queue_growth=slope,
            unstable=unstable,
            objective=options.slo,
            money=self._money(numbers["engines"]),
            about=about,
            **numbers,
        )

    def _money(self, engines: int) -> Money:
        chip = self.chip
        if chip is None:
            return Money()
        chips = engines * self.options.chips
        per_hour = chip.price.usd_per_hour if chip.price else None
        watts: tuple[float | None, float | None] = (None, None)
        if chip.power is not None:
            idle, busy = _watts(chip)
            watts = idle * chips, min(busy, self.options.max_watts or busy) * chips
        return Money(None if per_hour is None else per_hour * chips, *watts)

    def run(self, arriving: Stream, scale: float = 1.0) -> Outcome:
        """Serve requests with all steps longer by a factor."""
        return self._serve_tokens(arriving, scale) if self.has_tokens else self._serve_batches(arriving, scale)

    def band(self) -> float | None:
        """Return the error band of a step; None for steps that were measured."""
        if self.options.step_seconds is not None or self.options.calibrate is not None or self.chip is None:
            return None
        kind = "language model" if self.has_tokens else None
        error = error_band(self.chip, CHIP_BOUND, kind).error
        return UNMEASURED_BAND if error is None else error

    def outcome(self) -> Outcome:
        """Serve the requests at the prices, at both ends of their band, and at other rates if that is asked for."""
        result = self.run(self.stream)
        band = self.band()
        if band is not None:
            low, high = (self.run(self.stream, factor).percentiles() for factor in (1 / (1 + band), 1 + band))
            result = replace(result, band=band, bands=(low, high))
        if self.options.find_rate:
            result = replace(result, largest_rate=self.largest_rate())
        return result

    def largest_rate(self) -> float:
        """Return the largest rate at which `ATTAINMENT` of the requests keep the objective.

        It is 0 if none does, and infinity if a million times the rate of the requests does.
        """
        if not math.isfinite(self.stream.rate):
            raise BringupError("--find-rate needs requests that arrive at different times")

        def keeps(factor: float) -> bool:
            outcome = self.run(self.stream.faster(factor))
            return outcome.attainment >= ATTAINMENT and not outcome.unstable and not outcome.dropped

        low = high = 1.0
        if keeps(1.0):
            while keeps(high * 2):
                low = high = high * 2
                if high > 1e6:
                    return math.inf
            high *= 2
        else:
            while not keeps(low / 2):
                low = high = low / 2
                if low < 1e-6:
                    return 0.0
            low /= 2
        for _ in range(RATE_STEPS):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if keeps(middle) else (low, middle)
        return low * self.stream.rate


def _watts(chip: Chip) -> tuple[float, float]:
    assert chip.power is not None
    return chip.power.at_rest_w, chip.power.tdp_w
