"""Recording what a program launches: `record`, and what a recording knows while it is under way."""

from __future__ import annotations

import json
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
from bringup.paths import Places, as_text
from bringup.process import FACTS, Facts, process
from bringup.recording import modules
from bringup.recording.rows import BY_PROGRAM, COLUMNS, STEP
from bringup.recording.trace import Trace

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host

Part = TypeVar("Part")
HostClock = Literal["modelled", "measured"]


@lru_cache(maxsize=1 << 16)
def read_signature(text: str) -> tuple[dict[str, Any], Signature]:
    """Read the core's JSON of a signature, once: the next recording has it again."""
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
    """A recording under way. `trace` takes what was launched so far.

    Attributes:
        about: what the trace will say of the run, beside what is asked when it is taken.
        chip, host, host_clock: what times are predicted for while the program runs; without a host, the default one.
        at_end: closed when the recording ends.
    """

    def __init__(self, about: dict[str, Any], chip: Chip, host: Host | None, host_clock: HostClock) -> None:
        self.about = about
        self.chip = chip
        self.host = host
        self.host_clock = host_clock
        self.at_end = ExitStack()
        self.places = Places.of_process()
        self.names = modules.Names()
        self._parts: dict[Callable[..., Any], Any] = {}
        self._facts: dict[Facts, Callable[[], dict[str, Any]]] = {}
        self._begin_facts()

    def _begin_facts(self) -> None:
        for begins in FACTS:
            if begins not in self._facts:
                self._facts[begins] = begins(self.places)

    def part(self, make: Callable[[Recording], Part]) -> Part:
        """Return what a room keeps for this recording, made when it is first asked for."""
        if make not in self._parts:
            self._parts.setdefault(make, make(self))
        return self._parts[make]  # type: ignore[no-any-return]

    def trace(self) -> Trace:
        """Copy the rows recorded so far."""
        ops = torch.ops.bringup
        *values, uses, offsets = (column.numpy() for column in ops.recorded_columns(0))
        columns = dict(zip(COLUMNS, values, strict=True))
        texts = [self.places.line(text) for text in ops.recorded_lines()]
        lines = list(dict.fromkeys(texts))  # one line of source has several instructions
        place = {text: number for number, text in enumerate(lines)}
        to_line = np.asarray([*(place[text] for text in texts), -1], dtype=np.int32)
        columns["line"] = to_line[columns["line"]]
        self._begin_facts()
        about: dict[str, Any] = {"redirected": {}}
        for facts in self._facts.values():
            about |= facts()
        about |= {
            "program": as_text(Path(sys.argv[0]).name),
            "chip": ops.chip(),
            "torch": torch.__version__.split("+")[0],
            **self.about,
        }
        signatures = [_shown(*read_signature(text), self.places) for text in ops.recorded_signatures(0)]
        trace = Trace(
            columns=columns,
            uses=uses,
            offsets=offsets,
            signature_data=[data for data, _ in signatures],
            lines=lines,
            modules=[as_text(name) for name in self.names.names],
            about=about,
        )
        trace.signatures = [signature for _, signature in signatures]
        return trace


_current: Recording | None = None


def current() -> Recording | None:
    """Return the recording under way, None if there is none."""
    return _current


def _shown(data: dict[str, Any], signature: Signature, places: Places) -> tuple[dict[str, Any], Signature]:
    """Shorten the lines that a kernel's signature names."""
    lines = data["args"].get("read_first")
    if not lines:
        return data, signature
    data = {**data, "args": {**data["args"], "read_first": {key: places.line(line) for key, line in lines.items()}}}
    return data, Signature.parse(data)


@contextmanager
def recorded(host: Host | None = None, host_clock: HostClock = "modelled") -> Iterator[Recording]:
    """Record what is launched inside the block. The host is what events' times are predicted for."""
    global _current
    load.register()
    ops = torch.ops.bringup
    if ops.is_recording():
        raise BringupError("a recording is under way already: end it before another begins")
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
    with modules.watched(recording.names):
        ops.start_recording()
        _current = recording
        try:
            yield recording
        finally:
            ops.stop_recording()
            _current = None
            recording.at_end.close()


@contextmanager
def record() -> Iterator[Trace]:
    """Record what is launched inside the block into a trace, which is filled when the block ends.

    Example: ``with bringup.record() as trace: model(x)``, then ``bringup.price(trace, chip="t4")``.
    """
    trace = Trace({}, np.zeros(0, np.int64), np.zeros(1, np.int64), [], [], [])
    with recorded() as recording:
        abandoned = False
        try:
            yield trace
        except GeneratorExit:  # the block never ended, and now the interpreter does
            abandoned = True
            raise
        finally:
            if not abandoned:
                vars(trace).clear()  # with what was computed of the empty trace
                vars(trace).update(vars(recording.trace()))


def step() -> None:
    """Mark the end of a step of the program. Without marks, optimizer steps or outermost module calls are the steps."""
    torch.ops.bringup.record_mark(STEP, BY_PROGRAM)
