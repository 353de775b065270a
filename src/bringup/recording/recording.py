"""The recording of a program: `record`, `step`, and the state of the current recording."""

from __future__ import annotations

import json
import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch

from bringup.cost import tag_of
from bringup.cost.signature import Signature
from bringup.device import load
from bringup.device.choose import choose_from_environment
from bringup.errors import BringupError
from bringup.paths import BACKWARD, Places, as_text, is_library
from bringup.process import FACTS, Facts, process
from bringup.recording import inputs, modules
from bringup.recording.measured import columns_of_rows
from bringup.recording.rows import BY_PROGRAM, COLUMNS, STEP
from bringup.recording.stacks import Stacks
from bringup.recording.trace import Trace
from bringup.text import split_line

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host

Part = TypeVar("Part")
HostClock = Literal["modelled", "measured"]
MOST_SOURCE = 200  # letters of a source line that a recording keeps


@lru_cache(maxsize=1 << 16)
def read_signature(text: str) -> tuple[dict[str, Any], Signature]:
    """Parse the core's JSON of a signature. The cache serves later recordings, which contain the same signatures."""
    data = json.loads(text)
    _add_tags(data)
    return data, Signature.parse(data)


def _add_tags(data: dict[str, Any]) -> None:
    """Add torch's tags, so that the recording can be priced without torch."""
    if tag := tag_of(data["op"]):
        data["tag"] = tag
    for inner in data.get("inner", ()):
        _add_tags(inner)


class Recording:
    """The current recording. `trace` returns the rows recorded so far.

    Attributes:
        about: entries of the trace's `about` that are known at the start.
        chip, host, host_clock: the machine for predictions while the program runs; None is the default host.
        at_end: callbacks for the end of the recording.
        stacks: the calls that led to each row; None if they are not kept.
    """

    def __init__(self, about: dict[str, Any], chip: Chip, host: Host | None, host_clock: HostClock) -> None:
        self.about = about
        self.chip = chip
        self.host = host
        self.host_clock = host_clock
        self.at_end = ExitStack()
        self.places = Places.of_process()
        self.names = modules.Names()
        self.inputs = inputs.Inputs(self.places)
        self.stacks: Stacks | None = None
        self._parts: dict[Callable[..., Any], Any] = {}
        self._facts: dict[Facts, Callable[[], dict[str, Any]]] = {}
        self._begin_facts()

    def _begin_facts(self) -> None:
        for begins in FACTS:
            if begins not in self._facts:
                self._facts[begins] = begins(self.places)

    def part(self, make: Callable[[Recording], Part]) -> Part:
        """Return another module's object for this recording, which `make` creates at the first call."""
        if make not in self._parts:
            self._parts.setdefault(make, make(self))
        return self._parts[make]  # type: ignore[no-any-return]

    def trace(self) -> Trace:
        """Return a copy of the rows recorded so far."""
        ops = torch.ops.bringup
        *values, uses, offsets = (column.numpy() for column in ops.recorded_columns(0))
        columns = dict(zip(COLUMNS, values, strict=True))
        recorded = own = ops.recorded_lines()
        if self.stacks is not None:
            self.stacks.read()
            recorded = own + self.stacks.places()
        texts = [self.places.line(text) for text in recorded]
        lines = list(dict.fromkeys(texts))  # the core numbers instructions, and a source line may have several
        place = {text: number for number, text in enumerate(lines)}
        chains: list[tuple[int, int, str]] = []
        if self.stacks is not None:
            of_line, chains = self.stacks.numbered([place[text] for text in texts[len(own) :]])
            columns["stack"] = np.asarray([*of_line, -1], dtype=np.int32)[columns["line"]]
        to_line = np.asarray([*(place[text] for text in texts[: len(own)]), -1], dtype=np.int32)
        columns["line"] = to_line[columns["line"]]
        self._begin_facts()
        about: dict[str, Any] = {"redirected": {}}
        for facts in self._facts.values():
            about |= facts()
        if of_libraries := sorted(
            {place[text] for text, line in zip(texts, recorded, strict=True) if is_library(line)}
        ):
            about["library_lines"] = of_libraries
        if any(source := _sources(lines, dict(zip(texts, recorded, strict=True)))):
            about["source"] = source
        if loaders := self.inputs.facts():
            about["inputs"] = loaders
        if sleeps := self.inputs.sleeps():
            about["sleeps"] = sleeps
        if reads := self.inputs.clock_reads():
            about["clock_reads"] = reads
        about |= {
            "program": as_text(Path(sys.argv[0]).name),
            "chip": ops.chip(),
            "torch": torch.__version__.split("+")[0],
            **_if_expandable(),
            **self.about,
        }
        signatures = [_shown(*read_signature(text), self.places) for text in ops.recorded_signatures(0)]
        if "driver" in about:
            columns |= columns_of_rows(columns, [signature for _, signature in signatures])
        trace = Trace(
            columns=columns,
            uses=uses,
            offsets=offsets,
            signature_data=[data for data, _ in signatures],
            lines=lines,
            modules=[as_text(name) for name in self.names.names],
            about=about,
            stacks=[(caller, line, as_text(function)) for caller, line, function in chains],
        )
        trace.signatures = [signature for _, signature in signatures]
        return trace


def _if_expandable() -> dict[str, list[int]]:
    """Return what the devices would have reserved with expandable segments, if this is known of all of them."""
    peaks = list(torch.ops.bringup.reserved_if_expandable())
    return {"expandable_reserved_bytes": peaks} if peaks and min(peaks) >= 0 else {}


_current: Recording | None = None


def current() -> Recording | None:
    """Return the current recording, None if there is none."""
    return _current


def _shown(data: dict[str, Any], signature: Signature, places: Places) -> tuple[dict[str, Any], Signature]:
    """Shorten the paths in a kernel's signature."""
    lines = data["args"].get("read_first")
    if not lines:
        return data, signature
    data = {**data, "args": {**data["args"], "read_first": {key: places.line(line) for key, line in lines.items()}}}
    return data, Signature.parse(data)


@contextmanager
def recorded(
    host: Host | None = None, host_clock: HostClock = "modelled", *, stacks: bool = False
) -> Iterator[Recording]:
    """Record the launches inside the block. Times of events are predicted for the chip with this host.

    Args:
        host: of the predictions.
        host_clock: of the predictions.
        stacks: True also records the calls that led to each launch, which takes the program more time.
    """
    global _current
    load.register()
    ops = torch.ops.bringup
    if ops.is_recording():
        raise BringupError("cannot begin a recording inside another one: end that recording first")
    if not ops.is_configured():
        choose_from_environment()
    chips: Any = torch.chip  # type: ignore[attr-defined]
    is_open = chips.is_initialized()
    held = [ops.held_bytes(i) if is_open else (0, 0, 0) for i in range(chips.device_count())]
    about = {
        "dry": bool(ops.is_dry()),
        "held_bytes": [now for now, _, _ in held],
        "held_reserved_bytes": [reserved for _, _, reserved in held],
    }
    recording = Recording(about, process.chosen_chip(), host, host_clock)
    with modules.watched(recording.names), inputs.watched(recording.inputs):
        ops.start_recording()
        if stacks:
            recording.stacks = Stacks(ops.keep_stacks(True))
        _current = recording
        try:
            yield recording
        finally:
            ops.stop_recording()
            ops.keep_stacks(False)
            _current = None
            recording.at_end.close()


@contextmanager
def record(*, stacks: bool = False) -> Iterator[Trace]:
    """Record the launches inside the block into a trace, which is filled when the block ends.

    With `stacks`, the trace also has the calls that led to each launch, for a flame graph.
    Example: ``with bringup.record() as trace: model(x)``, then ``bringup.price(trace, chip="t4")``.
    """
    trace = Trace({}, np.zeros(0, np.int64), np.zeros(1, np.int64), [], [], [])
    with recorded(stacks=stacks) as recording:
        abandoned = False
        try:
            yield trace
        except GeneratorExit:  # the interpreter exits, and the block has not ended
            abandoned = True
            raise
        finally:
            if not abandoned:
                vars(trace).clear()  # and its cached properties
                vars(trace).update(vars(recording.trace()))


def step() -> None:
    """Mark the end of a step of the program. Without marks, `recording.steps.find_steps` finds the steps."""
    torch.ops.bringup.record_mark(STEP, BY_PROGRAM)


def _sources(lines: list[str], recorded: dict[str, str]) -> list[str]:
    """Return the source text of each of the program's own lines; empty for libraries, and where it is unknown."""
    texts = []
    for line in lines:
        path, number = split_line(recorded[line].removesuffix(BACKWARD))
        own = number > 0 and not is_library(recorded[line])
        texts.append(as_text(linecache.getline(path, number).strip()[:MOST_SOURCE]) if own else "")
    return texts
