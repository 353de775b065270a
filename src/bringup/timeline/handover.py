"""Recording of hand-overs between the program's threads: queue items, events, futures and the ends of threads.

Note [Late receivers]
The emulation is slow, so a receiving thread may find an item ready for which it would have waited on the predicted
machine. No blocking call shows this wait. The provider therefore records a signal, and the receiver records that it
resumes with this signal; in the replay it continues when both are done. A thread that puts an item into a bounded queue
resumes with the thread that made room. A lock hands nothing over, because either thread could have come first.
Semaphores, barriers, conditions and bytes in pipes are not recorded.
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
    """A lock whose waits are not recorded, because the program does not make them."""

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
    """The signals of one queue: those of its items, and those of the receivers that made room."""

    def __init__(self) -> None:
        self.lock = UnwatchedLock()  # reentrant: the put of a SimpleQueue may interrupt itself
        self.by_item: dict[int, list[int]] = {}  # id of an item, which is unique while it is in the queue
        self.rooms: collections.deque[int] = collections.deque()  # signals of the latest removals
        self.removals = 0

    def give(self, item: object) -> None:
        signal = _signal()
        with self.lock:
            self.by_item.setdefault(id(item), []).append(signal)

    def take(self, item: object) -> None:
        with self.lock:
            signals = self.by_item.get(id(item))
            signal = signals.pop(0) if signals else 0  # 0: the item was put before the recording
            if not signals:
                self.by_item.pop(id(item), None)
        _resume(signal)

    def make_room(self) -> None:
        self.rooms.append(_signal())
        self.removals += 1

    def find_room(self, items: int, size: int) -> None:
        """Resume with the removal that made room for the next item, in a queue of this size."""
        number = self.removals + items - size
        while self.rooms and self.removals - len(self.rooms) <= number:
            signal = self.rooms.popleft()
            if self.removals - len(self.rooms) == number + 1:
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


def _signals_of(channel: queue.Queue[Any]) -> _Signals:
    if _NAME not in vars(channel):
        setattr(channel, _NAME, _Signals())
    signals: _Signals = vars(channel)[_NAME]
    return signals


def _putting(real: Method) -> Method:
    @functools.wraps(real)
    def _put(self: queue.Queue[Any], item: Any) -> None:  # under the queue's lock
        signals, items = _signals_of(self), self._qsize()
        if items == 0:
            signals.by_item.clear()  # the program may have removed items without `_get`
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
        """Create a queue. The signals are created here, because a subclass need not call ``__init__``."""
        created: SimpleQueue = super().__new__(cls, *args, **kwargs)
        created._signals = _Signals()
        return created

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item and its signal; never blocks."""
        self._signals.give(item)
        super().put(item, block, timeout)

    def put_nowait(self, item: Any) -> None:
        """Put an item and its signal."""
        self.put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return an item, and resume with its signal."""
        item = super().get(block, timeout)
        self._signals.take(item)
        return item

    def get_nowait(self) -> Any:
        """Return an item, or raise queue.Empty."""
        return self.get(False)


def _resume_with(provided: object) -> None:
    _resume(vars(provided).get(_NAME, 0))


def _providing(real: Method, is_over: Callable[[Any], bool]) -> Method:
    """Wrap a method that provides a result: store a signal in the object, unless it was provided before."""

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
            setattr(self, _NAME, _signal_to_others())  # a thread that ends is no longer counted by `_signal`

    return end


def _taking(real: Method, is_over: Callable[[Any], bool], *, raises: bool = False) -> Method:
    """Wrap a method that receives a result: resume with the object's signal, after an exception only if `raises`."""

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

    def has_ended(thread: threading.Thread) -> bool:
        return not is_alive(thread)

    changes: list[tuple[Any, str, Any]] = [
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
        changes += [(kind, "_put", _putting(vars(kind)["_put"])), (kind, "_get", _getting(vars(kind)["_get"]))]
    return changes


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
