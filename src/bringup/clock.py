"""Chip time while the program runs: what events and, on request, Python's clocks say during a recording.

Note [The program's clocks]
Under `shown` a clock of Python's ``time`` shows when the calling thread would be there on the predicted machine: its
rows replayed so far. What is no row passes as it is: `time.sleep`, and waiting for files, sockets or other processes,
which is noticed when a clock is read and becomes a row of its own. Python between launches takes what the host clock
of the recording says: nothing beside its launches if modelled, its CPU time if measured. The standard library keeps
the real clocks, since it computes deadlines with them; but for timeit and logging. So does torch, but for torch.utils.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from bringup import timeline
from bringup.chip import load_host
from bringup.cost.signature import Signature
from bringup.errors import BringupError
from bringup.pricing import Prices
from bringup.trace import COLUMNS, EVENT_RECORD, HOST, Trace, read_signature

if TYPE_CHECKING:
    from bringup._schema import Chip, Host

# A shorter wait may be for the interpreter's lock, which the predicted machine does not wait for (it is passed on every
# 5 ms).
LEAST_WAIT_NS = 10_000_000


class ChipClock:
    """A replay that follows a recording: it takes the rows that were added since it was last asked."""

    def __init__(self, chip: Chip, host: Host, host_clock: timeline.HostClock = "modelled") -> None:
        self.chip = chip
        self.host = host
        self.host_clock = host_clock
        self.rows = 0
        self.data: list[dict[str, Any]] = []
        self.signatures: list[Signature] = []
        self.prices: Prices | None = None
        self.work: Any = None
        self.events: dict[int, float] = {}  # id -> seconds of its latest record
        self.replay: int | None = None
        self.lock = threading.Lock()

    def follow(self) -> int:
        """Replay what was recorded since the last call."""
        import torch

        ops = torch.ops.bringup
        if self.replay is None:
            self.replay = timeline.open_replay(self.chip)
        if ops.recorded_rows() == self.rows:
            return self.replay
        *values, _, _ = (column.numpy() for column in ops.recorded_columns(self.rows))
        columns = dict(zip(COLUMNS, values, strict=True))
        new = ops.recorded_signatures(len(self.signatures))
        for text in new:
            data, signature = read_signature(text)
            self.data.append(data)
            self.signatures.append(signature)
        if new:
            self.prices = self.work = None
        trace = Trace(columns, np.zeros(0, np.int64), np.zeros(1, np.int64), self.data, [], [])
        trace.__dict__ |= {"signatures": self.signatures, "_work": self.work}
        inputs = timeline.row_inputs(trace, self.chip, self.host, host_clock=self.host_clock, prices=self.prices)
        self.prices, self.work = inputs.prices, trace.__dict__["_work"]
        _, _, end, _ = timeline.feed(self.replay, columns, inputs)
        for row in np.flatnonzero(columns["kind"] == EVENT_RECORD):
            self.events[int(columns["object"][row])] = float(end[row])
        self.rows += len(end)
        return self.replay

    def now(self) -> float:
        """Seconds from the start of the recording at which the calling thread would be."""
        import torch

        with self.lock:
            return float(torch.ops.bringup.timeline_now(self.follow()))

    def close(self) -> None:
        """Forget the replay."""
        if self.replay is not None:
            timeline.close_replay(self.replay)


_clock: ChipClock | None = None


def start(chip: Chip, host: Host | None = None, host_clock: timeline.HostClock = "modelled") -> None:
    """Begin a clock with a recording."""
    global _clock
    stop()
    _clock = ChipClock(chip, host or load_host(), host_clock)


def stop() -> None:
    """End the clock with its recording."""
    global _clock
    if _clock is not None:
        _clock.close()
        _clock = None


def elapsed_ms(first: int, second: int) -> float:
    """Milliseconds of chip time between two events, by their ids. Called by the core."""
    if _clock is None:
        raise BringupError("no recording is under way")
    with _clock.lock:
        _clock.follow()
    missing = [event for event in (first, second) if event not in _clock.events]
    if missing:
        raise BringupError("elapsed_time needs two events that were recorded while the program is recorded")
    return (_clock.events[second] - _clock.events[first]) * 1e3


# ---- Python's clocks

_CLOCKS = ("time", "perf_counter", "monotonic", "process_time")
_real: dict[str, Any] = {name: getattr(time, name) for clock in _CLOCKS for name in (clock, f"{clock}_ns")}
_real_sleep = time.sleep
_REAL_FOR = frozenset(sys.stdlib_module_names - {"timeit", "logging"}) | {"bringup", "filelock", "rich"}


class _Waits(threading.local):
    """What a thread had waited for when it last looked at a clock."""

    seen: tuple[int, int, int, int] | None = None  # wall, processor, queued for it, waits for the chip
    emulated = 0  # while others computed in place of the chip, beside the core's own waits


_waits = _Waits()


@contextmanager
def emulating() -> Iterator[None]:
    """Say that this thread waits for what the predicted machine does not wait for."""
    wall, cpu = _real["monotonic_ns"](), time.thread_time_ns()
    try:
        yield
    finally:
        _waits.emulated += _real["monotonic_ns"]() - wall - (time.thread_time_ns() - cpu)


_compiling = False


def compiling(begin: bool) -> None:
    """Say that torch.compile begins or has ended: what passes between is not the program's time."""
    import torch

    global _compiling
    _compiling = begin
    if not begin:
        torch.ops.bringup.skip_host_time()
        _waits.seen = None


def _queued_ns() -> int:
    """How long this thread was ready to run and had no processor."""
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1])
    except (OSError, IndexError, ValueError):  # a kernel without it
        return 0


def _wants_real(depth: int) -> bool:
    module = str(sys._getframe(depth).f_globals.get("__name__", ""))
    if module.startswith("torch."):  # compilers and time-outs; but for torch.utils.benchmark and tensorboard
        return not module.startswith("torch.utils.")
    return module.partition(".")[0] in _REAL_FOR


def _note_waits(slept: int = 0) -> None:
    """Record how long this thread waited, since it last looked, for neither the chip nor the processor."""
    if _compiling:
        return
    import torch

    ops = torch.ops.bringup
    now = (_real["monotonic_ns"](), time.thread_time_ns(), _queued_ns(), ops.waited_ns() + _waits.emulated)
    before, _waits.seen = _waits.seen, now
    if before is None:
        return
    wall, *others = (b - a for a, b in zip(before, now, strict=True))
    waited = wall - sum(others) - slept
    if waited >= LEAST_WAIT_NS:
        ops.record_mark(HOST, waited)


@contextmanager
def shown() -> Iterator[None]:
    """Let Python's clocks show chip time inside the block, which is within a recording."""
    import timeit

    import torch

    process, origin = os.getpid(), {name: _real[name]() for name in _real}
    slept_seconds = 0.0

    def clock(name: str) -> Callable[[], float]:
        real, first = _real[name], origin[name]
        per_second = 10**9 if name.endswith("_ns") else 1
        own = name.startswith("process")

        def read() -> float:
            if _clock is None or os.getpid() != process or _wants_real(2):
                return real()  # type: ignore[no-any-return]
            _note_waits()
            seconds = _clock.now() - (slept_seconds if own else 0.0)
            return first + (round(seconds * per_second) if per_second > 1 else seconds)  # type: ignore[no-any-return]

        read.__name__ = read.__qualname__ = name
        read.__doc__ = real.__doc__
        return read

    def sleep(seconds: float) -> None:
        nonlocal slept_seconds
        if _clock is None or os.getpid() != process or _wants_real(2):
            return _real_sleep(seconds)
        begin = _real["monotonic_ns"]()
        _note_waits()
        _real_sleep(seconds)
        torch.ops.bringup.record_mark(HOST, round(seconds * 1e9))
        slept_seconds += seconds
        return _note_waits(_real["monotonic_ns"]() - begin)

    shown_as: dict[int, Any] = {id(_real[name]): clock(name) for name in _real} | {id(_real_sleep): sleep}
    changed: list[tuple[Any, str, Any]] = []
    run_backward = torch.autograd.graph._engine_run_backward

    def _engine_run_backward(*args: Any, **kwargs: Any) -> Any:
        with emulating():  # autograd works for the chip in a thread of its own
            return run_backward(*args, **kwargs)

    shown_as[id(run_backward)] = _engine_run_backward
    for module in (time, timeit, *list(sys.modules.values())):
        outside = str(getattr(module, "__name__", "")).partition(".")[0] not in _REAL_FOR
        if not (outside or module in (time, timeit)) or not hasattr(module, "__dict__"):
            continue
        for name, value in list(vars(module).items()):
            if id(value) in shown_as:
                changed.append((module, name, value))
                setattr(module, name, shown_as[id(value)])
    _note_waits()
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)
