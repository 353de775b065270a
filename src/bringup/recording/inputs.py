"""The time that batches of a program's DataLoaders and its sleeps take, measured while it is recorded.

The predicted time of a step is that of launches, copies and waits. What the program does to get its next batch is not
in it, unless the program's clocks show chip time. So the time of a batch is measured here: the wall time of the process
that loads it, without the time in which that process was ready to run but had no processor. In a worker it is measured
in the worker, because the program waits for batches less on this machine, where the chip is slow, than beside the chip.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
import sysconfig
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch.utils import data as torch_data
from torch.utils.data import dataloader
from torch.utils.data._utils import fetch

from bringup.paths import Places

_SLOT = struct.Struct("=qq")  # of each worker: batches, nanoseconds
MOST_READS = 10_000  # chosen: of clocks; a program that reads them more often is known by the first ones
_NO_PROGRAM = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})


@dataclass
class _Loader:
    """The batches taken from one kind of loader at one line, and the nanoseconds that one process takes for them.

    Attributes:
        rows: for each batch, how many rows the recording had when the program took it.
        slots: memory shared with workers, and their number.
        iterable: True if it loads an IterableDataset, of which every worker has a copy.
    """

    rows: list[int] = field(default_factory=list)
    timed: int = 0
    nanoseconds: int = 0
    slots: list[tuple[mmap.mmap, int]] = field(default_factory=list)
    iterable: bool = False

    def seconds(self) -> float:
        """Return the mean time of a batch."""
        timed, total = self.timed, self.nanoseconds
        for memory, workers in self.slots:
            for worker in range(workers):
                count, spent = _SLOT.unpack_from(memory, worker * _SLOT.size)
                timed, total = timed + count, total + spent
        return total / timed * 1e-9 if timed else 0.0


@dataclass(frozen=True)
class _Batch:
    """A batch: the rows and the uses of the chip before it was taken, and the nanoseconds that taking it took."""

    row: int
    used: int
    nanoseconds: int
    is_first: bool


@dataclass(frozen=True)
class _Origin:
    """Where a loader was made; `number` tells apart those made before the recording, whose line is not known."""

    line: str = ""
    by_library: bool = False
    number: int = 0


class Inputs:
    """The loaders of one recording, by line, number of workers and origin."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._loaders: dict[tuple[str, int, _Origin], _Loader] = {}
        self._latest: dict[int, _Batch] = {}  # id of an iterator -> the batch that the program took last
        self._origins: dict[int, _Origin] = {}  # by the id of a loader, which may have no hash
        self._unknown = 0
        self._sleeps: dict[str, dict[int, float]] = {}  # line -> rows before the sleep -> seconds
        self._loading = threading.local()  # a batch may be made in another thread
        self._clock_reads: list[tuple[str, int]] = []  # line, rows before the reading

    def facts(self) -> list[dict[str, Any]]:
        """Return the loaders whose batches the chip used, in the form of the trace's ``about``."""
        items = sorted(self._loaders.items(), key=lambda pair: (*pair[0][:2], pair[0][2].line, pair[0][2].number))
        return [
            {
                "line": line,
                "workers": workers,
                "batch_seconds": item.seconds(),
                "rows": item.rows,
                "maker": origin.line,
                "by_library": origin.by_library,
                **({"iterable": True} if item.iterable else {}),
            }
            for (line, workers, origin), item in items
            if item.rows and item.seconds() > 0
        ]

    def sleeps(self) -> list[dict[str, Any]]:
        """Return the main thread's sleeps outside of DataLoaders, in the form of the trace's ``about``."""
        return [
            {"line": line, "rows": list(by_row), "seconds": list(by_row.values())}
            for line, by_row in sorted(self._sleeps.items())
        ]

    def clock_reads(self) -> list[dict[str, Any]]:
        """Return the program's readings of clocks that show the chip's time, in the form of the trace's ``about``."""
        lines = sorted({line for line, _ in self._clock_reads})
        return [{"line": line, "rows": [row for at, row in self._clock_reads if at == line]} for line in lines]

    def clock_read(self, frame: Any) -> None:
        """Note that the frame reads a clock, unless a library does."""
        if len(self._clock_reads) < MOST_READS and not _is_library(frame):
            self._clock_reads.append((self._places.line(_text(frame)), int(torch.ops.bringup.row_count())))

    def slept(self, seconds: float, frame: Any) -> None:
        """Note that the program asked for a sleep."""
        if not getattr(self._loading, "batch", False):
            by_row = self._sleeps.setdefault(self._places.line(_line(frame)), {})
            row = int(torch.ops.bringup.row_count())
            by_row[row] = by_row.get(row, 0.0) + seconds

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Mark that a DataLoader makes a batch."""
        outer = getattr(self._loading, "batch", False)
        self._loading.batch = True
        try:
            yield
        finally:
            self._loading.batch = outer

    def note_maker(self, loader: Any, frame: Any) -> None:
        """Note the line that makes a loader: that of the frame, or where the loader's subclasses were called."""
        while frame is not None and frame.f_code.co_name == "__init__" and frame.f_locals.get("self") is loader:
            frame = frame.f_back
        if frame is not None:
            self._keep(loader, _Origin(self._places.line(_text(frame)), _is_library(frame)))

    def _keep(self, loader: Any, origin: _Origin) -> None:
        """Keep the origin of a loader while the loader lives."""
        if id(loader) not in self._origins:
            weakref.finalize(loader, self._origins.pop, id(loader), None)
        self._origins[id(loader)] = origin

    def took(self, iterator: Any, nanoseconds: int, frame: Any) -> None:
        """Note that the program asked for a batch. The one before counts if the chip was used since it was taken."""
        stats = json.loads(torch.ops.bringup.launch_stats())
        used = sum(stats[name] for name in ("launches", "synchronous", "synchronizations"))
        before = self._latest.get(id(iterator))
        row = int(torch.ops.bringup.row_count())
        self._latest[id(iterator)] = _Batch(row, used, nanoseconds, is_first=before is None)
        if before is None or used == before.used:
            return
        workers, origin = int(iterator._num_workers), iterator.__dict__.get("_bringup_origin", _Origin())
        loader = self._loaders.setdefault((self._places.line(_line(frame)), workers, origin), _Loader())
        loader.rows.append(before.row)
        loader.iterable |= isinstance(iterator._dataset, torch.utils.data.IterableDataset)
        if workers == 0 and not before.is_first:  # the first batch fills caches
            loader.timed += 1
            loader.nanoseconds += before.nanoseconds
        slots = iterator.__dict__.get("_bringup_slots")
        if slots is not None and all(slots is not item for item, _ in loader.slots):
            loader.slots.append((slots, workers))

    def begin(self, iterator: Any, loader: Any) -> None:
        """Forget an iterator that is new, because another one may have had its address, and note its loader."""
        self._latest.pop(id(iterator), None)
        if id(loader) not in self._origins:
            self._unknown += 1
            self._keep(loader, _Origin(number=self._unknown))
        iterator._bringup_origin = self._origins[id(loader)]


def _is_library(frame: Any) -> bool:
    return bool(frame.f_code.co_filename.startswith((*_NO_PROGRAM, "<")))


def _text(frame: Any) -> str:
    return f"{os.path.abspath(frame.f_code.co_filename)}:{frame.f_lineno}"


def _line(frame: Any) -> str:
    """Return the line of the innermost frame that is the program's, ``/home/me/train.py:12``."""
    inner = frame
    while frame is not None and _is_library(frame):
        frame = frame.f_back
    return _text(frame or inner)


def _now() -> tuple[int, int]:
    """Return the wall time and the time for which this thread was ready but had no processor, in nanoseconds."""
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            queued = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):  # not Linux, or a kernel without it
        queued = 0
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC), queued


def _since(start: tuple[int, int]) -> int:
    wall, queued = _now()
    return max(wall - start[0] - (queued - start[1]), 0)


_slots: mmap.mmap | None = None  # of the workers that are being started; they inherit it


def _timed_fetch(original: Any) -> Any:
    def timed(self: Any, index: Any) -> Any:
        worker = torch_data.get_worker_info()
        if worker is None or _slots is None or (worker.id + 1) * _SLOT.size > len(_slots):
            return original(self, index)
        start = _now()
        batch = original(self, index)
        place = worker.id * _SLOT.size
        count, spent = _SLOT.unpack_from(_slots, place)
        _SLOT.pack_into(_slots, place, count + 1, spent + _since(start))
        return batch

    return timed


@contextmanager
def watched(inputs: Inputs) -> Iterator[None]:
    """Measure the batches that the main thread takes from DataLoaders inside the block."""
    loaders: Any = dataloader.DataLoader
    base: Any = dataloader._BaseDataLoaderIter
    with_workers: Any = dataloader._MultiProcessingDataLoaderIter
    fetchers: list[Any] = [fetch._MapDatasetFetcher, fetch._IterableDatasetFetcher]
    patched = [
        (base, "__next__"),
        (base, "__init__"),
        (with_workers, "__init__"),
        (loaders, "__init__"),
        *((item, "fetch") for item in fetchers),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name in patched]
    (_, _, following), (_, _, begin), (_, _, start_workers), (_, _, make), *fetches = before
    parent = os.getpid()

    def __next__(self: Any) -> Any:
        if os.getpid() != parent or threading.current_thread() is not threading.main_thread():
            return following(self)
        start = _now()
        try:
            with inputs.loading():
                return following(self)
        finally:  # also at the end of the loader
            inputs.took(self, _since(start), sys._getframe(1))

    def __init__(self: Any, loader: Any) -> None:
        inputs.begin(self, loader)
        begin(self, loader)

    @wraps(make)
    def __make__(self: Any, *args: Any, **kwargs: Any) -> None:
        inputs.note_maker(self, sys._getframe(1))
        make(self, *args, **kwargs)

    def __init_with_workers__(self: Any, loader: Any) -> None:
        global _slots
        _slots = self._bringup_slots = mmap.mmap(-1, max(loader.num_workers, 1) * _SLOT.size)
        try:
            start_workers(self, loader)
        finally:
            _slots = None

    base.__next__, base.__init__, with_workers.__init__ = __next__, __init__, __init_with_workers__
    loaders.__init__ = __make__
    real_sleep = time.sleep
    is_real = not hasattr(real_sleep, "__code__")  # else the program's clocks show the chip's time

    @wraps(real_sleep)
    def sleep(seconds: Any) -> None:
        real_sleep(seconds)
        if os.getpid() == parent and threading.current_thread() is threading.main_thread():
            inputs.slept(float(seconds), sys._getframe(1))

    if is_real:
        time.sleep = sleep
    for owner, name, original in fetches:
        setattr(owner, name, _timed_fetch(original))
    try:
        yield
    finally:
        if time.sleep is sleep:
            time.sleep = real_sleep
        for owner, name, original in before:
            setattr(owner, name, original)
