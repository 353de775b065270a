"""Chip time while the program runs: what events and, on request, Python's clocks say during a recording.

Note [The program's clocks]
Under `shown` a clock of Python's ``time`` shows when the calling thread would be there on the predicted machine: its
rows replayed so far. Between rows no time passes, but for what the program asks to wait for (csrc/record/waits.cpp),
which are rows of their own. Python between launches takes what the host clock of the recording says: nothing beside its
launches if modelled, its CPU time if measured. timeit, logging, and those parts of the standard library whose deadlines
end by waits that are rows (`_DEADLINES`) are shown chip time, too, unless they run inside of an import or a compiler,
where it stands still. The rest of the library keeps the real clocks. So does torch, but for torch.utils.
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

from bringup.cost.signature import Signature
from bringup.errors import BringupError
from bringup.machine.files import load_host
from bringup.pricing import Prices
from bringup.recording.recording import Recording, current, read_signature
from bringup.recording.rows import COLUMNS
from bringup.recording.trace import Trace
from bringup.timeline import handover, library
from bringup.timeline import replay as timeline

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host


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
        self.replay: library.Replay | None = None
        self.lock = handover.UnwatchedLock()
        self.own = threading.local()  # of a thread: `shown`, and whether it is `asking` now

    def follow(self) -> library.Replay:
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
        texts = [read_signature(text) for text in new]
        if new:
            self.data += [data for data, _ in texts]
            self.signatures += [signature for _, signature in texts]
            self.prices = self.work = None
        trace = Trace(columns, np.zeros(0, np.int64), np.zeros(1, np.int64), self.data, [], [])
        trace.signatures = self.signatures
        if self.work is not None:
            trace.work = self.work
        inputs = timeline.row_inputs(trace, self.chip, self.host, host_clock=self.host_clock, prices=self.prices)
        self.prices, self.work = inputs.prices, trace.work
        self.rows += len(trace)  # before they are fed: a signal handler may raise at any line
        timeline.feed(self.replay, columns, inputs)
        return self.replay

    def now(self) -> tuple[float, float]:
        """Return the seconds since the start of the recording for the calling thread, and how many it was idle.

        A signal handler or destructor that asks while its thread asks is told what was shown last.
        """
        import torch

        own = vars(self.own)
        if own.get("asking"):
            return own.get("shown", (0.0, 0.0))  # type: ignore[no-any-return]
        own["asking"] = True
        try:
            with self.lock:
                own["shown"] = self.follow().now(torch.ops.bringup.asking_thread())
        finally:
            own["asking"] = False
        return own["shown"]  # type: ignore[no-any-return]

    def event(self, number: int) -> float:
        """Seconds from the start of the recording of an event's latest record; nan if it was not recorded since."""
        with self.lock:
            return self.follow().event(number)

    def close(self) -> None:
        """Forget the replay."""
        if self.replay is not None:
            self.replay.close()


def _of(recording: Recording) -> ChipClock:
    """Make the clock of a recording."""
    clock = ChipClock(recording.chip, recording.host or load_host(), recording.host_clock)
    recording.at_end.callback(clock.close)
    return clock


def elapsed_ms(first: int, second: int) -> float:
    """Milliseconds of chip time between two events, by their ids. Called by the core."""
    recording = current()
    if recording is None:
        raise BringupError("no recording is under way")
    clock = recording.part(_of)
    milliseconds = (clock.event(second) - clock.event(first)) * 1e3
    if math.isnan(milliseconds):
        raise BringupError("elapsed_time needs two events that were recorded while the program is recorded")
    return milliseconds


# ---- Python's clocks

_CLOCKS = ("time", "perf_counter", "monotonic", "process_time")
_real: dict[str, Any] = {name: getattr(time, name) for clock in _CLOCKS for name in (clock, f"{clock}_ns")}
_real_sleep = time.sleep
_DEADLINES = frozenset({"asyncio", "sched", "subprocess"})
_READING = 1e-7  # seconds: with a clock that stands still, rounding of a deadline would become another millisecond
_REAL_FOR = frozenset(sys.stdlib_module_names - _DEADLINES - {"timeit", "logging"}) | {"bringup", "filelock", "rich"}


def compiled() -> None:
    """Say that torch.compile has ended: what has passed since the last row was not the program's time."""
    import torch

    torch.ops.bringup.skip_host_time()


def _package_of_caller() -> str:
    """Return the top package of the code that reads the clock; ``torch.utils`` is one of its own."""
    module = str(sys._getframe(2).f_globals.get("__name__", ""))
    return "torch.utils" if module.startswith("torch.utils.") else module.partition(".")[0]


def _wants_real(package: str) -> bool:
    if package in _DEADLINES:
        return _within_machinery()
    return package in _REAL_FOR or package == "torch"  # torch's compilers and time-outs


def _within_machinery() -> bool:
    import torch

    return bool(torch.ops.bringup.within_machinery())


# Modules of the standard library that wait: they are loaded before the calls of all libraries are watched.
_WAITING = ("_socket", "select", "_multiprocessing", "_queue", "_ssl", "_posixsubprocess")


def _left_alone() -> list[str]:
    """Return the folders of packages that compute or compile; their waits are not recorded."""
    import torch

    triton = importlib.machinery.PathFinder.find_spec("triton")
    of_triton = (triton and triton.submodule_search_locations) or ()
    folders = [*torch.__path__, os.path.dirname(os.path.dirname(__file__)), *of_triton]
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
    """Show chip time in Python's clocks inside the block, which is within a recording."""
    import timeit

    import torch

    ops = torch.ops.bringup
    latest = threading.local()  # what `_DEADLINES` were shown, of each clock
    parent, origin = os.getpid(), {name: _real[name]() for name in _real}

    def clock(name: str) -> Callable[[], float]:
        real, first = _real[name], origin[name]
        per_second = 10**9 if name.endswith("_ns") else 1
        own = name.startswith("process")

        def read() -> float:
            package = _package_of_caller()
            recording = current()
            if recording is None or os.getpid() != parent or _wants_real(package):
                return real()  # type: ignore[no-any-return]
            seconds, idle = recording.part(_of).now()
            seconds -= idle if own else 0.0
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
        except BaseException:  # of a signal handler
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
    shown_as |= {id(_real_sleep): sleep, id(run_backward): _engine_run_backward}
    changed: list[tuple[Any, str, Any]] = []
    for module in (time, timeit, *list(sys.modules.values())):
        outside = str(getattr(module, "__name__", "")).partition(".")[0] not in _REAL_FOR
        if not (outside or module in (time, timeit)) or not hasattr(module, "__dict__"):
            continue
        for name, value in list(vars(module).items()):
            if id(value) in shown_as:
                changed.append((module, name, value))
                setattr(module, name, shown_as[id(value)])
    if "sched" in sys.modules:  # it has the clock in the defaults of its scheduler
        made: Any = sys.modules["sched"].scheduler.__init__
        changed.append((made, "__defaults__", made.__defaults__))
        made.__defaults__ = tuple(shown_as.get(id(value), value) for value in made.__defaults__)
    try:
        with _waits_watched(), handover.recorded():
            yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)
