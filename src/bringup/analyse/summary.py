"""The data of a summary: the numbers of one recording on one machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bringup.analyse.compilations import Compilations
from bringup.analyse.holders import VERDICTS, Memory
from bringup.analyse.roofline import Kernel
from bringup.analyse.unlike import Outside, UnlikeSteps
from bringup.recording.findings import Finding

SCHEMA_VERSION = 2
LEAST_SECONDS = 3e-3  # of the whole run: a smaller saving is not worth a change
OURS = {"json": False}  # metadata of fields that summary.json leaves out: for our own code and tests


@dataclass(frozen=True)
class Fallback:
    """Launches of one operator and dtype at one line that ran on the host; count and seconds are per step.

    Attributes:
        reason: why the driver left them to the host; empty without a driver.
        measured_seconds: what they took on the driver; None without one.
    """

    op: str
    dtype: str
    file: str
    line: int
    count: float
    seconds: float
    d2h_seconds: float
    host_seconds: float
    h2d_seconds: float
    stall_seconds: float
    reason: str = ""
    measured_seconds: float | None = None


@dataclass(frozen=True)
class Wait:
    """Waits of one kind at one line, in which the host waits for the chip; `per_step` counts them.

    Attributes:
        kind: ``upload``, ``download``, ``read``, ``synchronize`` or ``data_dependent``, see `recording.waits`.
        seconds: time per step for which the host stood still in them.
        small: True if they are uploads that need no pinned memory, see `waits.is_small`.
        ops: the operators that wait, if they are no copies.
    """

    kind: str
    file: str
    line: int
    per_step: float
    seconds: float
    small: bool = field(default=False, metadata=OURS)
    ops: tuple[str, ...] = field(default=(), metadata=OURS)


@dataclass(frozen=True)
class Input:
    """A DataLoader whose batches the chip uses, at the line that takes them.

    Attributes:
        workers: its ``num_workers``.
        per_step: batches per step.
        batch_seconds: time in which one process loads a batch, measured on the machine of the recording.
        seconds: time per step, divided by the number of workers.
        maker: the line that makes it; empty if it was made before the recording.
        by_library: True if a library makes it, so the program cannot set its workers there.
        iterable: True if it loads an IterableDataset, of which every worker has a copy.
    """

    file: str
    line: int
    workers: int
    per_step: float
    batch_seconds: float
    seconds: float
    maker: str = field(default="", metadata=OURS)
    by_library: bool = field(default=False, metadata=OURS)
    iterable: bool = field(default=False, metadata=OURS)


@dataclass(frozen=True)
class OwnTime:
    """Time per step between launches in which the program's own Python computes, or sleeps.

    Attributes:
        file, line: the line of the sleep, or that of the launch which follows.
        sleeps: True for sleeps.
    """

    file: str
    line: int
    sleeps: bool
    seconds: float


@dataclass(frozen=True)
class EarlyClock:
    """A line that reads a clock before the chip is done.

    Attributes:
        shown_seconds: since the reading before, by the clock.
        seconds: the same, until the chip is done with what was launched.
    """

    file: str
    line: int
    shown_seconds: float
    seconds: float


@dataclass(frozen=True)
class GraphBreak:
    """A line at which torch.compile cut the program's graph, and Dynamo's reason."""

    line: str
    reason: str


@dataclass(frozen=True)
class Collective:
    """The collectives of one kind, group size, bytes and line in a step.

    Attributes:
        seconds: of all of them.
        exposed_seconds: the part of their time in which the chip computes nothing.
    """

    kind: str
    group_size: int
    bytes: int
    count: int
    seconds: float
    exposed_seconds: float
    file: str
    line: int


@dataclass(frozen=True)
class Bottleneck:
    """A limit of the step time: its condition, cause, action, and what the action saves in seconds per step.

    Attributes:
        key: the kind of bottleneck, such as ``host-bound``.
        remedy: the kind of advice, such as ``pin``.
        line: the Python line that causes most of it; empty if there is none.
        numbers: the numbers in the sentences, by name.
    """

    condition: str
    cause: str
    action: str
    seconds: float
    key: str = field(metadata=OURS)
    remedy: str = field(metadata=OURS)
    line: str = field(default="", metadata=OURS)
    numbers: Mapping[str, float] = field(default_factory=dict, metadata=OURS)


@dataclass(frozen=True)
class MemoryAdvice:
    """Device memory at the peak that a change of the program saves: the condition, its cause, and the action.

    Attributes:
        line: the Python line to change; empty if it is not known.
        bytes: held at the peak for this cause.
        peak_bytes: the peak after the change.
        saved_bytes: the difference to the present peak.
        key: the kind of advice, such as ``unused-graph``.
    """

    condition: str
    cause: str
    action: str
    line: str
    bytes: int
    peak_bytes: int
    saved_bytes: int
    key: str = field(metadata=OURS)


@dataclass(frozen=True)
class WhatIfResult:
    """A change of the machine or the program, and the step time after it.

    Attributes:
        key: ``graph``, ``host``, ``link``, ``fallbacks``, ``half``, ``bandwidth`` or ``matrix``.
        dtype: the new dtype of the products if the change is one of dtype; else empty.
    """

    change: str
    step_seconds: float
    key: str = field(metadata=OURS)
    dtype: str = field(default="", metadata=OURS)


@dataclass(frozen=True)
class Way:
    """A change of the program or the machine that reduces its memory.

    Attributes:
        change: the change as a sentence.
        peak_bytes: memory of the fullest device after the change, with what the allocator reserves beyond tensors.
        saved_bytes: the reduction.
        fits: True if the program then fits the chip's memory.
        step_seconds: approximate time for the work of one present step.
    """

    change: str
    peak_bytes: int
    saved_bytes: int
    fits: bool
    step_seconds: float


@dataclass(frozen=True)
class Placement:
    """A placed run: the planned step, the replay of what the run recorded, and its launches.

    Attributes:
        launches_elsewhere: launches that ran on another side than planned.
        launches_without_plan: launches that the plan does not name, of the whole run.
    """

    planned_seconds: float
    replayed_seconds: float
    launches_as_planned: int
    launches_elsewhere: int
    launches_without_plan: int


@dataclass(frozen=True)
class Summary:
    """The predicted cost of one recording on one machine. Times are seconds of the typical step.

    The typical step is the median of the steps that do the same work, without the first if there are several.

    Attributes:
        step_seconds: from the end of the step before to the end of the typical step.
        device_seconds: the part of a step in which the chip computes.
        fallback_seconds: the part of the rest in which the host runs operators that the chip does not have, or that a
            plan puts there.
        link_seconds: the part of the rest in which the link to the host is busy.
        between_seconds: the part of the rest in which a link between chips is busy.
        host_seconds: the rest: the chip waits for the host.
        low_seconds, high_seconds: four fifths of the steps that do the same work take between these times.
        unequal: True if these steps take different times.
        evaluations: how often the optimizer evaluates its closure in a step; 1 without closures.
        typical_share: the share of the run in steps that do the work of the typical one, with the first step.
        like_steps: the number of the steps that do the same work.
        unlike_steps: steps that do other work, such as evaluations.
        before, after: what comes before the first step and after the last one.
        launches: launches of the typical step.
        samples: the batch size on which the launches of the step and the loss agree; 0 if they do not.
        batches: how many batches of this size a step works on; more than 1 if it accumulates their gradients.
        peak_bytes: the most device memory that tensors held at once, in blocks of the caching allocator.
        capacity_bytes, context_bytes: the device memory that the chip's driver reports, and the part of it that the
            driver's context and libraries take.
        fits: True if the bytes that the program needs are at most the rest, see `holders.needed_bytes`.
        verdict: ``yes``, ``no`` or ``within 5 %``, if the need is so near to the rest that only a run decides.
        out_of_memory: True if the program ended with this error, so its peak is unknown.
        failed: True if the program ended with an error, so the recording is only its beginning.
        stopped_by: the signal that ended the program, ``SIGTERM`` or ``SIGINT``; else empty.
        dry: True if the program was recorded in a dry run.
        memory: the holders of device memory at its peak.
        input_seconds: time per step in which batches are loaded, if this is more than the step; else 0. It is measured,
            so it differs between runs, and it is not part of the step.
        inputs: the loaders that take it, the slowest first.
        own_seconds: time per step of the program's own Python between launches, if this is more than the step; else 0.
            Like the time of input, it is measured and not part of the step.
        own: its lines, the slowest first.
        host_alone_seconds: about what one core of the host takes for the step; None unless that is clearly faster.
        waits: the host's waits for the chip by kind and line, the longest first.
        kernels: the kinds of launches that take longest.
        findings: the sanitizer's findings; empty if it was off.
        compiled_graphs, graph_breaks: those of torch.compile in the whole program.
        graph_breaks_seconds: what the breaks cost in a step, see `compile_advice.cut_seconds`.
        compilations: the graphs of torch.compile, or of a chip that only runs graphs; None if nothing is compiled.
        redirected: the CUDA names that the program used, and how often.
        named_cuda: True if the program says cuda and means the chip.
        chip_time: True if the program's clocks showed predicted time.
        early_clocks: lines that read them before the chip was done.
        ways_to_fit: changes that make the program fit, the cheapest first; empty if it already fits.
        error_band, error_band_of, error_band_rows, error_source: see `pricing.bands.Band`; the band for programs with
            the bound of this one.
        cluster: the cluster on which collectives are priced; empty without collectives.
        ranks: the number of ranks of the program.
        communication_seconds: the part of a step in which a collective runs.
        exposed_communication_seconds: the part of it in which the chip computes nothing.
        bubble_seconds: the part of a step in which the chip only waits for other ranks; 0 unless they were recorded.
        collectives: by kind, group size, bytes and line, those with most time first.
        tokens: tokens that this rank looks up in a step, in all batches; None if no embedding has a batch of sequences.
        sharing_ranks: ranks that work on the same tokens, as those of tensor parallelism do.
        tokens_per_second: of one chip: this rank's, divided among the ranks that share them; None if it is not known,
            as in a pipeline of which one rank is recorded.
        cluster_tokens_per_second: of all ranks.
        mfu: the share of the chip's peak that products use, see `utilisation`; None without products.
        mfu_dtype, mfu_peak_flops: its denominator: the dtype of most of the flops, and the peak in flop/s.
        driver: the driver of the run; ``virtual`` for the virtual chip, which computes without a device.
        measured_step_seconds: the step as measured on the driver; None on the virtual chip, or without steps.
        launches_on_chip, launches_on_host, bytes_down, bytes_up: launches of the driver's kernels and of host
            functions in the whole run, and the bytes copied for the latter.
        energy_joules, cost_usd: per step; None if the chip file has no power or no price.
        placement: the plan that was in force; None without one.
        framework: the framework that the program is written in: ``torch``, ``onnx``, ``jax``, ``tensorflow`` or
            ``stablehlo``.
        run: the id of the run, the same in all files of its report; empty outside a report.
    """

    chip: str
    host: str
    link: str
    step_seconds: float
    low_seconds: float
    high_seconds: float
    unequal: bool = field(metadata=OURS)
    device_seconds: float
    link_seconds: float
    between_seconds: float
    host_seconds: float
    fallback_seconds: float
    total_seconds: float
    steps: int
    steps_by: str
    evaluations: int
    typical_share: float
    like_steps: int
    unlike_steps: list[UnlikeSteps]
    before: Outside
    after: Outside
    launches: int
    samples: int
    batches: int = field(metadata=OURS)
    peak_bytes: int
    capacity_bytes: int
    context_bytes: int
    fits: bool
    verdict: str
    out_of_memory: bool
    failed: bool
    stopped_by: str
    dry: bool
    memory: Memory
    energy_joules: float | None
    cost_usd: float | None
    error_band: float | None
    error_band_of: str
    error_band_rows: int
    error_source: str
    unpriced: list[str]
    fallbacks: list[Fallback] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    input_seconds: float = 0.0
    inputs: list[Input] = field(default_factory=list)
    own_seconds: float = 0.0
    own: list[OwnTime] = field(default_factory=list)
    host_alone_seconds: float | None = None
    kernels: list[Kernel] = field(default_factory=list)
    bottlenecks: list[Bottleneck] = field(default_factory=list)
    memory_advice: list[MemoryAdvice] = field(default_factory=list)
    what_if: list[WhatIfResult] = field(default_factory=list)
    ways_to_fit: list[Way] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    compiled_graphs: int = 0
    graph_breaks: list[GraphBreak] = field(default_factory=list)
    graph_breaks_seconds: float = 0.0
    compilations: Compilations | None = None
    redirected: dict[str, int] = field(default_factory=dict)
    named_cuda: bool = field(default=False, metadata=OURS)
    chip_time: bool = False
    early_clocks: list[EarlyClock] = field(default_factory=list)
    mfu: float | None = None
    mfu_dtype: str = ""
    mfu_peak_flops: float | None = None
    cluster: str = ""
    ranks: int = 1
    communication_seconds: float = 0.0
    exposed_communication_seconds: float = 0.0
    bubble_seconds: float = 0.0
    collectives: list[Collective] = field(default_factory=list)
    tokens: int | None = None
    sharing_ranks: int = 1
    tokens_per_second: float | None = None
    cluster_tokens_per_second: float | None = None
    driver: str = "virtual"
    measured_step_seconds: float | None = None
    launches_on_chip: int = 0
    launches_on_host: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    placement: Placement | None = None
    framework: str = "torch"
    run: str = ""

    @property
    def unit(self) -> str:
        """The unit of work that the times are for: ``step``, or ``run`` if no steps were found."""
        return "run" if self.steps_by == "whole" else "step"

    @property
    def room_bytes(self) -> int:
        """The device memory that the program's tensors can take."""
        return self.capacity_bytes - self.context_bytes

    def verdict_text(self) -> str:
        """Return in words whether the program fits the chip's memory."""
        return VERDICTS[self.verdict]

    def parts(self) -> dict[str, float]:
        """Return the parts of a step in seconds; they add up to the step. Links between chips count only if used."""
        parts = {
            "chip busy": self.device_seconds,
            "link": self.link_seconds,
            "between chips": self.between_seconds,
            "host-bound": self.host_seconds,
            "waiting on fallbacks" if self.placement is None else "host computes": self.fallback_seconds,
        }
        return {name: seconds for name, seconds in parts.items() if seconds or name != "between chips"}

    def what_if_of(self, key: str) -> WhatIfResult | None:
        """Return the what-if with this key; None if it does not apply."""
        return next((result for result in self.what_if if result.key == key), None)

    def steps_text(self) -> str:
        """Return in words how the steps were recognised."""
        passes = f", each with {self.evaluations:,} backward passes" if self.evaluations > 1 else ""
        return {
            "optimizer": f"one per optimizer step{passes}",
            "replay": "one per replay of a captured graph",
            "period": "one per repetition of the same launches",
            "backward": "one per backward pass",
            "forward": "one per outermost module call",
            "execution": "one per execution of the largest program",
            "program": "marked by the program",
            "whole": "recorded up to the error" if self.failed else "no steps found",
        }[self.steps_by]
