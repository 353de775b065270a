"""Records hand-overs between the program's threads under chip time: queue items, set events, results, thread ends.

Note [Late receivers]
The emulation is slow. A thread may ask for something that another thread has long provided here, though on the
predicted machine it would have waited: nothing blocks, and no call shows it. So the provider records a signal, and the
receiver records that it resumes with that signal: in the replay it goes on when both are there. A thread that puts into
a full queue resumes with the one that made room. A lock around a block hands nothing over: either thread could have
come first. Not seen here: semaphores, barriers, conditions, and bytes that lie in a pipe.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Method = Callable[..., Any]
_NAME = "_bringup_signals"  # attribute of queues, events, threads and futures
_simple_queue = queue.SimpleQueue


class UnwatchedLock:
    """A lock of ours: waiting for it is nothing that the program does."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        import torch

        torch.ops.bringup.set_waits_aside(True)
        try:
            self._lock.acquire()
        finally:
            torch.ops.bringup.set_waits_aside(False)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class _Signals:
    """Signals of the items in a queue, and of those that made room in it."""

    def __init__(self) -> None:
        self.lock = UnwatchedLock()  # of a SimpleQueue, whose put may interrupt itself
        self.by_item: dict[int, list[int]] = {}  # by id: an item in the queue keeps its own
        self.rooms: collections.deque[int] = collections.deque()  # of the latest items that were taken
        self.taken = 0

    def give(self, item: object) -> None:
        signal = _signal()
        with self.lock:
            self.by_item.setdefault(id(item), []).append(signal)

    def take(self, item: object) -> None:
        with self.lock:
            signals = self.by_item.get(id(item))
            signal = signals.pop(0) if signals else 0  # it was put before the recording
            if not signals:
                self.by_item.pop(id(item), None)
        _resume(signal)

    def make_room(self) -> None:
        self.rooms.append(_signal())
        self.taken += 1

    def find_room(self, items: int, size: int) -> None:
        """Resume with the taking of the item that had the place of the next one, in a queue of this size."""
        number = self.taken + items - size
        while self.rooms and self.taken - len(self.rooms) <= number:
            signal = self.rooms.popleft()
            if self.taken - len(self.rooms) == number + 1:
                _resume(signal)


def _signal() -> int:
    others = len(threading._active) > 1  # type: ignore[attr-defined]  # active_count() takes a lock
    return _signal_to_others() if others else 0


def _signal_to_others() -> int:
    import torch

    return int(torch.ops.bringup.record_signal())


def _resume(signal: int) -> None:
    import torch

    if signal:
        torch.ops.bringup.record_resume(signal)


def _signals_of(of: queue.Queue[Any]) -> _Signals:
    if _NAME not in vars(of):
        setattr(of, _NAME, _Signals())
    signals: _Signals = vars(of)[_NAME]
    return signals


def _putting(real: Method) -> Method:
    @functools.wraps(real)
    def _put(self: queue.Queue[Any], item: Any) -> None:  # under the queue's lock
        signals, items = _signals_of(self), self._qsize()
        if items == 0:
            signals.by_item.clear()  # of items that left otherwise
        real(self, item)
        if self.maxsize > 0:
            signals.find_room(items, self.maxsize)
        signals.give(item)

    return _put


def _getting(real: Method) -> Method:
    @functools.wraps(real)
    def _get(self: queue.Queue[Any]) -> Any:  # under the queue's lock
        item = real(self)
        signals = _signals_of(self)
        signals.take(item)
        if self.maxsize > 0:
            signals.make_room()
        return item

    return _get


class SimpleQueue(_simple_queue):  # type: ignore[type-arg]
    """A queue.SimpleQueue whose items carry signals."""

    _signals: _Signals

    def __new__(cls, *args: Any, **kwargs: Any) -> SimpleQueue:
        """Make one whose subclass need not call ``__init__``."""
        made: SimpleQueue = super().__new__(cls, *args, **kwargs)
        made._signals = _Signals()
        return made

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put with a signal; never blocks."""
        self._signals.give(item)
        super().put(item, block, timeout)

    def put_nowait(self, item: Any) -> None:
        """Put with a signal."""
        self.put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Get, and resume with the item's signal."""
        item = super().get(block, timeout)
        self._signals.take(item)
        return item

    def get_nowait(self) -> Any:
        """Get, or raise queue.Empty."""
        return self.get(False)


def _resume_with(provided: object) -> None:
    _resume(vars(provided).get(_NAME, 0))


def _providing(real: Method, is_over: Callable[[Any], bool]) -> Method:
    """Leave a signal with the object, unless it has one from before."""

    @functools.wraps(real)
    def provide(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_over(self):
            setattr(self, _NAME, _signal())
        return real(self, *args, **kwargs)

    return provide


def _ending(real: Method) -> Method:
    @functools.wraps(real)
    def end(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return real(self, *args, **kwargs)
        finally:
            setattr(self, _NAME, _signal_to_others())  # a thread that ends is counted no more

    return end


def _taking(real: Method, is_over: Callable[[Any], bool], *, raises: bool = False) -> Method:
    """Resume with what the object provided; `raises`: what it provided may be an exception."""

    @functools.wraps(real)
    def take(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            result = real(self, *args, **kwargs)
        except BaseException:
            if raises and is_over(self):
                _resume_with(self)
            raise
        if is_over(self):
            _resume_with(self)
        return result

    return take


def _wait(real: Method) -> Method:
    @functools.wraps(real)
    def wait(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        for future in result.done:
            _resume_with(future)
        return result

    return wait


def _as_completed(real: Method) -> Method:
    @functools.wraps(real)
    def as_completed(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for future in real(*args, **kwargs):
            _resume_with(future)
            yield future

    return as_completed


def _calling_back(real: Method, is_over: Callable[[Any], bool]) -> Method:
    @functools.wraps(real)
    def add_done_callback(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_over(self):
            _resume_with(self)
        return real(self, *args, **kwargs)

    return add_done_callback


def _changes() -> list[tuple[Any, str, Any]]:
    thread, event, future = threading.Thread, threading.Event, concurrent.futures.Future
    is_alive, is_set, done = thread.is_alive, event.is_set, future.done

    def has_ended(one: threading.Thread) -> bool:
        return not is_alive(one)

    found: list[tuple[Any, str, Any]] = [
        (queue, "SimpleQueue", SimpleQueue),
        (thread, "_bootstrap_inner", _ending(vars(thread)["_bootstrap_inner"])),
        (thread, "join", _taking(thread.join, has_ended)),
        (thread, "is_alive", _taking(is_alive, has_ended)),
        (event, "set", _providing(event.set, is_set)),
        (event, "wait", _taking(event.wait, is_set)),
        (event, "is_set", _taking(is_set, is_set)),
        (future, "set_result", _providing(future.set_result, done)),
        (future, "set_exception", _providing(future.set_exception, done)),
        (future, "result", _taking(future.result, done, raises=True)),
        (future, "exception", _taking(future.exception, done, raises=True)),
        (future, "done", _taking(done, done)),
        (future, "add_done_callback", _calling_back(future.add_done_callback, done)),
        (concurrent.futures, "wait", _wait(concurrent.futures.wait)),
        (concurrent.futures, "as_completed", _as_completed(concurrent.futures.as_completed)),
    ]
    for kind in (queue.Queue, queue.LifoQueue, queue.PriorityQueue):
        found += [(kind, "_put", _putting(vars(kind)["_put"])), (kind, "_get", _getting(vars(kind)["_get"]))]
    return found


@contextmanager
def recorded() -> Iterator[None]:
    """Record hand-overs inside the block."""
    changes = _changes()
    originals = [(place, name, vars(place)[name]) for place, name, _ in changes]
    for place, name, value in changes:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in originals:
            setattr(place, name, value)
