"""What threads of the program hand to each other, under chip time: items of queues, events, results, their ends.

Note [Late receivers]
The emulation is slow, so a thread may ask for something that another one has long provided here, though on the
predicted machine it would have waited: nothing blocks, and no call shows it. So whoever provides leaves a signal, a row
of the recording, with what is provided, and whoever takes it resumes with that signal: in the replay it goes on when
both are there. A thread that puts into a full queue resumes with the one that made room. Locks that only keep threads
apart (`threading.Lock` around a block) hand nothing over: which thread comes first is no order of the program.
"""

from __future__ import annotations

import collections
import concurrent.futures
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _Signals:
    """Signals of the items in a queue, and of those that made room in it."""

    def __init__(self, held: int = 0) -> None:
        self.of: dict[int, list[int]] = {}  # an item's id -> the signals that it was put with
        self.rooms: collections.deque[int] = collections.deque()  # of the latest items that were taken
        self.put, self.taken = held, 0

    def give(self, item: object) -> None:
        self.of.setdefault(id(item), []).append(_signal())
        self.put += 1

    def take(self, item: object) -> None:
        signals = self.of.get(id(item))
        if not signals:  # it was put before the recording
            return
        _resume(signals.pop(0))
        if not signals:
            self.of.pop(id(item), None)

    def make_room(self) -> None:
        self.rooms.append(_signal())
        self.taken += 1

    def find_room(self, size: int) -> None:
        """Resume with the taking of the item that had the place of the next one, in a queue of this size."""
        before = self.put - size
        while self.rooms and self.taken - len(self.rooms) <= before:
            signal = self.rooms.popleft()
            if self.taken - len(self.rooms) == before + 1:
                _resume(signal)


_NAME = "_bringup_signals"  # attribute of queues, events, threads and futures
_simple_queue = queue.SimpleQueue


def _signal(*, alone: bool | None = None) -> int:
    if threading.active_count() == 1 if alone is None else alone:  # there is nobody else
        return 0
    import torch

    return int(torch.ops.bringup.record_signal())


def _resume(signal: int | None) -> None:
    import torch

    if signal:
        torch.ops.bringup.record_resume(signal)


def _signals_of(where: queue.Queue[Any]) -> _Signals:
    if _NAME not in vars(where):
        setattr(where, _NAME, _Signals(where._qsize()))
    found: _Signals = vars(where)[_NAME]
    return found


def _putting(real: Callable[..., Any]) -> Callable[..., Any]:
    def _put(self: queue.Queue[Any], item: Any) -> None:  # under the queue's lock
        signals = _signals_of(self)
        if self.maxsize > 0:
            signals.find_room(self.maxsize)
        signals.give(item)
        real(self, item)

    return _put


def _getting(real: Callable[..., Any]) -> Callable[..., Any]:
    def _get(self: queue.Queue[Any]) -> Any:  # under the queue's lock
        signals = _signals_of(self)
        item = real(self)
        signals.take(item)
        if self.maxsize > 0:
            signals.make_room()
        return item

    return _get


class SimpleQueue(_simple_queue):  # type: ignore[type-arg]
    """A queue.SimpleQueue whose items carry signals."""

    def __init__(self) -> None:
        super().__init__()
        self._signals = _Signals()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put; never blocks."""
        self._signals.give(item)
        super().put(item, block, timeout)

    def put_nowait(self, item: Any) -> None:
        """Put."""
        self.put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Get."""
        item = super().get(block, timeout)
        self._signals.take(item)
        return item

    def get_nowait(self) -> Any:
        """Get, or raise queue.Empty."""
        return self.get(False)


def _providing(real: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
    """Leave a signal with the object whose method is called: before, or once it is over."""

    def provide(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not after:
            setattr(self, _NAME, _signal())
        try:
            return real(self, *args, **kwargs)
        finally:
            if after:
                setattr(self, _NAME, _signal(alone=False))  # a thread that ends is counted no more

    return provide


def _taking(real: Callable[..., Any], is_there: Callable[[Any], bool]) -> Callable[..., Any]:
    def take(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return real(self, *args, **kwargs)
        finally:
            if is_there(self):
                _resume(getattr(self, _NAME, None))

    return take


@contextmanager
def recorded() -> Iterator[None]:
    """Record hand-overs inside the block."""
    thread, event, future = threading.Thread, threading.Event, concurrent.futures.Future

    def has_ended(one: threading.Thread) -> bool:
        return not one.is_alive()

    changes: list[tuple[Any, str, Any]] = [
        (queue, "SimpleQueue", SimpleQueue),
        (thread, "_bootstrap_inner", _providing(vars(thread)["_bootstrap_inner"], after=True)),
        (thread, "join", _taking(thread.join, has_ended)),
        (event, "set", _providing(event.set)),
        (event, "wait", _taking(event.wait, event.is_set)),
        (future, "set_result", _providing(future.set_result)),
        (future, "set_exception", _providing(future.set_exception)),
        (future, "result", _taking(future.result, future.done)),
        (future, "exception", _taking(future.exception, future.done)),
    ]
    for kind in (queue.Queue, queue.LifoQueue, queue.PriorityQueue):
        changes += [(kind, "_put", _putting(vars(kind)["_put"])), (kind, "_get", _getting(vars(kind)["_get"]))]
    before = [(where, name, vars(where)[name]) for where, name, _ in changes]
    for where, name, value in changes:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)
