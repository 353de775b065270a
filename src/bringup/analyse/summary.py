"""The numbers of one recording on one machine, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bringup.analyse.holders import Memory
from bringup.analyse.roofline import Kernel
from bringup.recording.findings import Finding

SCHEMA_VERSION = 2
OURS = {"json": False}  # metadata of a field for our own code and its tests, which summary.json leaves out


@dataclass(frozen=True)
class Fallback:
    """Launches of one operator and dtype on one line that ran on the host; count and seconds per step."""

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


@dataclass(frozen=True)
class GraphBreak:
    """A line at which torch.compile had to cut the program's graph, and Dynamo's reason."""

    line: str
    reason: str


@dataclass(frozen=True)
class Bottleneck:
    """What limits a step, why, what to do, and the seconds of a step that it costs.

    Attributes:
        key: the kind of bottleneck, such as ``host-bound``.
        remedy: the kind of advice, such as ``pin``.
        line: the Python line that it is most at; empty if there is none.
        numbers: the numbers of the sentences, by name.
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
class WhatIfResult:
    """A change of the machine or the program, and the step's time with it.

    Attributes:
        key: ``graph``, ``host``, ``link``, ``fallbacks``, ``half``, ``bandwidth`` or ``matrix``.
        dtype: of the products, where that is the change.
    """

    change: str
    step_seconds: float
    key: str = field(metadata=OURS)
    dtype: str = field(default="", metadata=OURS)


@dataclass(frozen=True)
class Way:
    """A change of the program or the machine that makes the program fit.

    Attributes:
        change: what to do.
        peak_bytes: what the fullest device then holds and leaves in pieces.
        saved_bytes: less than now.
        fits: in the chip's memory.
        step_seconds: of the same work as one step now, about.
    """

    change: str
    peak_bytes: int
    saved_bytes: int
    fits: bool
    step_seconds: float


@dataclass(frozen=True)
class Summary:
    """What one recording costs on one machine. Times are seconds of one step, the average of the steady ones.

    Attributes:
        step_seconds: from the end of one step to the end of the next.
        device_seconds: the part of a step in which the chip computes.
        fallback_seconds: the part of the rest in which the host computes what the chip cannot.
        link_seconds: the part of the rest in which the link to the host is busy.
        between_seconds: the part of the rest in which a link between chips is busy.
        host_seconds: the rest: the chip waits for the host.
        launches: per step.
        samples: batch size of a step, as its first embedding, convolution or product sees it; 0 if there is none.
        peak_bytes: of device memory that tensors held at once, by the caching allocator's blocks.
        fits: in the chip's memory, by what the allocator reserved; on a chip that the program was not recorded on, by
            what tensors held.
        out_of_memory: the program ended with that error, so its peak is not known.
        dry: nothing was computed when it was recorded.
        memory: who holds it at its fullest.
        kernels: the kinds of launches that take the chip longest.
        findings: what the sanitizer found, if it was asked.
        compiled_graphs, graph_breaks: of torch.compile, in the whole program.
        redirected: what the program used by the name of CUDA, and how often.
        chip_time: the program's clocks showed the predicted time.
        ways_to_fit: changes that make it fit, the cheapest first; empty if it does.
        energy_joules, cost_usd: per step; None if the chip file has no power, no price.
        run: in all files of a report, what tells them from those of another run; else empty.
    """

    chip: str
    host: str
    link: str
    step_seconds: float
    device_seconds: float
    link_seconds: float
    between_seconds: float
    host_seconds: float
    fallback_seconds: float
    total_seconds: float
    steps: int
    steps_by: str
    launches: int
    samples: int
    peak_bytes: int
    capacity_bytes: int
    fits: bool
    out_of_memory: bool
    dry: bool
    memory: Memory
    energy_joules: float | None
    cost_usd: float | None
    error_band: float | None
    error_source: str
    unpriced: list[str]
    fallbacks: list[Fallback] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    bottlenecks: list[Bottleneck] = field(default_factory=list)
    what_if: list[WhatIfResult] = field(default_factory=list)
    ways_to_fit: list[Way] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    compiled_graphs: int = 0
    graph_breaks: list[GraphBreak] = field(default_factory=list)
    redirected: dict[str, int] = field(default_factory=dict)
    chip_time: bool = False
    run: str = ""

    def parts(self) -> dict[str, float]:
        """Return the seconds of a step's parts, which add up to it; links between chips only if one was used."""
        parts = {
            "chip busy": self.device_seconds,
            "link": self.link_seconds,
            "between chips": self.between_seconds,
            "host-bound": self.host_seconds,
            "waiting on fallbacks": self.fallback_seconds,
        }
        return {name: seconds for name, seconds in parts.items() if seconds or name != "between chips"}

    def what_if_of(self, key: str) -> WhatIfResult | None:
        """Return the what-if with a key, if it was asked."""
        return next((result for result in self.what_if if result.key == key), None)

    def steps_text(self) -> str:
        """Return what the steps were found by, in words."""
        return {
            "optimizer": "found by optimizer steps",
            "forward": "found by outermost module calls",
            "program": "marked by the program",
            "whole": "no steps found",
        }[self.steps_by]
