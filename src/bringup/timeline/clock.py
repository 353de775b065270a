"""Chip time during a recording: the times of events and, on request, of Python's clocks.

Note [The program's clocks]
Under `shown` a clock of Python's ``time`` returns the predicted time at which the calling thread would reach this call.
It follows from the rows that the thread has recorded so far. The program's waits are rows, too
(csrc/record/waits.cpp); between rows no time passes. Python code between launches takes no time if the recording's host
clock is modelled, and its CPU time if it is measured.
The program, timeit and logging read chip time. So do the parts of the standard library whose deadlines end by recorded
waits (`_DEADLINES`), except inside an import or a compiler, where chip time stands still. The rest of the standard
library and torch without torch.utils read the real clocks.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import math
import numbers
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from bringup.core_build import BuildError
from bringup.core_cache import cache_folder
from bringup.cost.signature import Signature
from bringup.errors import BringupError
from bringup.machine.files import load_host
from bringup.pricing import Prices
from bringup.recording.recording import Recording, current, read_signature
from bringup.recording.rows import COLUMNS
from bringup.recording.trace import Trace
from bringup.timeline import handover, library
from bringup.timeline import replay as timeline
from bringup.timeline.plans import Plans

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host


class ChipClock:
    """A replay that follows a recording. Each query first replays the rows recorded since the query before.

    Args:
        chip: the device.
        host: the host.
        host_clock: ``modelled`` or ``measured``.
        settles: if False, queries add nothing to the recording, and leave out the newest views.
    """

    def __init__(
        self, chip: Chip, host: Host, host_clock: timeline.HostClock = "modelled", *, settles: bool = True
    ) -> None:
        self.chip = chip
        self.host = host
        self.host_clock = host_clock
        self.settles = settles
        self.rows = 0
        self.data: list[dict[str, Any]] = []
        self.signatures: list[Signature] = []
        self.prices: Prices | None = None
        self.work: Any = None
        self.plans = Plans()
        self.replay: library.Replay | None = None
        self.lock = handover.UnwatchedLock()
        self.thread = threading.local()  # `shown`: the latest result; `is_querying`: True inside `now`

    def follow(self) -> library.Replay:
        """Replay the rows recorded since the last call, and return the replay."""
        import torch

        ops = torch.ops.bringup
        if self.replay is None:
            self.replay = timeline.open_replay(self.chip)
        if (ops.recorded_rows() if self.settles else ops.row_count()) == self.rows:
            return self.replay
        *values, _, _ = (column.numpy() for column in ops.recorded_columns(self.rows, self.settles))
        columns = dict(zip(COLUMNS, values, strict=True))
        new = ops.recorded_signatures(len(self.signatures))
        texts = [read_signature(text) for text in new]
        if new:
            self.data += [data for data, _ in texts]
            self.signatures += [signature for _, signature in texts]
            self.prices = self.work = None
        trace = Trace(columns, np.zeros(0, np.int64), np.zeros(1, np.int64), self.data, [], [])
        trace.signatures = self.signatures
        if self.work is not None:
            trace.work = self.work
        inputs = timeline.row_inputs(
            trace, self.chip, self.host, host_clock=self.host_clock, prices=self.prices, plans=self.plans
        )
        self.prices, self.work = inputs.prices, trace.work
        self.rows += len(trace)  # counted first: a signal handler may raise at any line, and no row may be fed twice
        timeline.feed(self.replay, columns, inputs)
        return self.replay

    def now(self) -> tuple[float, float]:
        """Return the calling thread's seconds since the start of the recording, and how many of them it was idle.

        A signal handler or destructor may call this inside another call of its thread. It gets the latest result.
        """
        import torch

        state = vars(self.thread)
        if state.get("is_querying"):
            return state.get("shown", (0.0, 0.0))  # type: ignore[no-any-return]
        state["is_querying"] = True
        try:
            with self.lock:
                state["shown"] = self.follow().now(torch.ops.bringup.asking_thread())
        finally:
            state["is_querying"] = False
        return state["shown"]  # type: ignore[no-any-return]

    def event(self, number: int) -> float:
        """Return the seconds from the start of the recording to an event's latest record; nan if it has none."""
        with self.lock:
            return self.follow().event(number)

    def close(self) -> None:
        """Free the replay."""
        if self.replay is not None:
            self.replay.close()


def clock_of(recording: Recording) -> ChipClock:
    """Create the clock of a recording, closed at the recording's end; for `Recording.part`."""
    clock = ChipClock(recording.chip, recording.host or load_host(), recording.host_clock)
    recording.at_end.callback(clock.close)
    return clock


def elapsed_ms(first: int, second: int) -> float:
    """Return the milliseconds of chip time between two events, named by their ids. The core calls it."""
    recording = current()
    if recording is None:
        raise BringupError("events have no chip time, because nothing is recorded: call it inside `bringup.record()`")
    clock = recording.part(clock_of)
    milliseconds = (clock.event(second) - clock.event(first)) * 1e3
    if math.isnan(milliseconds):
        raise BringupError("elapsed_time needs two events that were recorded since the recording began")
    return milliseconds


# ---- Python's clocks

_CLOCKS = ("time", "perf_counter", "monotonic", "process_time")
_real: dict[str, Any] = {name: getattr(time, name) for clock in _CLOCKS for name in (clock, f"{clock}_ns")}
_real_sleep = time.sleep
_DEADLINES = frozenset({"asyncio", "sched", "subprocess"})
_READING = 1e-7  # seconds added per reading: a clock that stands still would round a deadline up to a millisecond
_REAL_FOR = frozenset(sys.stdlib_module_names - _DEADLINES - {"timeit", "logging"}) | {"bringup", "filelock", "rich"}


def compiled() -> None:
    """Exclude the time since the last row from the host's time, because torch.compile took it."""
    import torch

    torch.ops.bringup.skip_host_time()


def _package_of_caller() -> str:
    """Return the top package of the code that reads the clock; ``torch.utils`` counts as one."""
    module = str(sys._getframe(2).f_globals.get("__name__", ""))
    return "torch.utils" if module.startswith("torch.utils.") else module.partition(".")[0]


def _wants_real(package: str) -> bool:
    if package in _DEADLINES:
        return _within_machinery()
    return package in _REAL_FOR or package == "torch"  # torch's compilers and time-outs


def _within_machinery() -> bool:
    import torch

    return bool(torch.ops.bringup.within_machinery())


# Modules of the standard library that wait. They must be loaded before the calls of all libraries are watched.
_WAITING = ("_socket", "select", "_multiprocessing", "_queue", "_ssl", "_posixsubprocess")


def _left_alone() -> list[str]:
    """Return the folders of torch, Triton and bringup, also of libraries in the cache, whose waits are not recorded."""
    import torch

    triton = importlib.machinery.PathFinder.find_spec("triton")
    of_triton = (triton and triton.submodule_search_locations) or ()
    folders = [*torch.__path__, os.path.dirname(os.path.dirname(__file__)), *of_triton]
    with suppress(BuildError):  # there is no cache
        folders.append(str(cache_folder()))
    return [os.path.join(path, "") for folder in folders for path in {folder, os.path.realpath(folder)}]


@contextmanager
def _waits_watched() -> Iterator[None]:
    import torch

    for name in _WAITING:
        with suppress(ImportError):  # built without it
            importlib.import_module(name)
    torch.ops.bringup.watch_waits(True, _left_alone())
    try:
        yield
    finally:
        torch.ops.bringup.watch_waits(False, [])


@contextmanager
def shown() -> Iterator[None]:
    """Patch Python's clocks to show chip time inside the block, which must be inside a recording."""
    import timeit

    import torch

    library.load()  # before the clocks are patched
    ops = torch.ops.bringup
    latest = threading.local()  # clock -> seconds last returned to `_DEADLINES`
    parent, origin = os.getpid(), {name: _real[name]() for name in _real}

    def clock(name: str) -> Callable[[], float]:
        real, first = _real[name], origin[name]
        per_second = 10**9 if name.endswith("_ns") else 1
        counts_idle = not name.startswith("process")

        def read() -> float:
            package = _package_of_caller()
            recording = current()
            if recording is None or os.getpid() != parent or _wants_real(package):
                return real()  # type: ignore[no-any-return]
            recording.inputs.clock_read(sys._getframe(1))
            seconds, idle = recording.part(clock_of).now()
            if recording.host_clock == "modelled":
                ops.skip_host_time()  # the replay took it, not the program
            seconds -= 0.0 if counts_idle else idle
            if package in _DEADLINES:
                seconds = max(seconds, vars(latest).get(name, 0.0) + _READING)
                vars(latest)[name] = seconds
            return first + (round(seconds * per_second) if per_second > 1 else seconds)  # type: ignore[no-any-return]

        read.__name__ = read.__qualname__ = name
        read.__doc__ = real.__doc__
        return read

    def sleep(seconds: float) -> None:
        if current() is None or os.getpid() != parent or not (isinstance(seconds, numbers.Real) and seconds > 0):
            return _real_sleep(seconds)
        began = _real["monotonic"]()
        ops.set_sleep_recorded(True)
        try:
            _real_sleep(seconds)
        except BaseException:  # raised by a signal handler
            seconds = _real["monotonic"]() - began
            raise
        finally:
            ops.set_sleep_recorded(False)
            ops.record_wait(round(seconds * 1e9))

    run_backward = torch.autograd.graph._engine_run_backward

    def _engine_run_backward(*args: Any, **kwargs: Any) -> Any:
        thread = ops.begin_backward()
        try:
            return run_backward(*args, **kwargs)
        finally:
            ops.end_backward(thread)

    shown_as: dict[int, Any] = {id(_real[name]): clock(name) for name in _real}
    shown_as |= {id(_real_sleep): sleep, id(time.sleep): sleep, id(run_backward): _engine_run_backward}
    changed: list[tuple[Any, str, Any]] = []
    for module in (time, timeit, *list(sys.modules.values())):
        outside = str(getattr(module, "__name__", "")).partition(".")[0] not in _REAL_FOR
        if not (outside or module in (time, timeit)) or not hasattr(module, "__dict__"):
            continue
        for name, value in list(vars(module).items()):
            if id(value) in shown_as:
                changed.append((module, name, value))
                setattr(module, name, shown_as[id(value)])
    if "sched" in sys.modules:  # its scheduler has the clock as a default argument
        function: Any = sys.modules["sched"].scheduler.__init__
        changed.append((function, "__defaults__", function.__defaults__))
        function.__defaults__ = tuple(shown_as.get(id(value), value) for value in function.__defaults__)
    try:
        with _waits_watched(), handover.recorded():
            yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)
