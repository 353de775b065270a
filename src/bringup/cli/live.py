"""``bringup run --live``: the last line of the terminal says how far the program is while it runs."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING, TextIO

from bringup.recording.rows import FALLBACK, LAUNCH, STEP
from bringup.text import duration, plain, quantity, size
from bringup.timeline.clock import ChipClock

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host
    from bringup.timeline.replay import HostClock

INTERVAL = 1.0  # seconds between two lines; chosen: a line is read in that time
_WINDOW = 10  # lines with new steps over which the time of a step is the mean
_FEWEST_ROWS = 3  # of a terminal that keeps one for the line


class Progress:
    """What a recording has so far.

    Reading it adds nothing to the recording. It waits until none of the kernels that the program brings itself
    (Triton's, for example) is under way.
    """

    def __init__(self, chip: Chip, host: Host, host_clock: HostClock) -> None:
        self.clock = ChipClock(chip, host, host_clock, settles=False)
        self.rows = self.launches = self.fallbacks = 0
        self.steps: Counter[int] = Counter()  # by optimizer
        self.history: deque[tuple[int, float]] = deque(maxlen=_WINDOW)

    def line(self) -> str:
        """Return the line for now; nothing before the first launch."""
        import torch

        ops = torch.ops.bringup
        if not torch.chip.is_initialized() or not ops.is_recording():  # type: ignore[attr-defined]
            return ""
        kind, flags, *_, objects, _, _ = (column.numpy() for column in ops.recorded_columns(self.rows, False))
        self.rows += len(kind)
        self.launches += int((kind == LAUNCH).sum())
        self.fallbacks += int(((kind == LAUNCH) & (flags & FALLBACK != 0)).sum())
        self.steps.update(objects[kind == STEP].tolist())
        if not self.launches:
            return ""
        seconds, _ = self.clock.follow().now(0)
        steps = max(self.steps.values(), default=0)
        self.follow(steps, seconds)
        return ", ".join((self.time(steps, seconds), self._memory(), self._on_host(steps)))

    def follow(self, steps: int, seconds: float) -> None:
        """Note the moment in seconds if there are new steps."""
        if steps > (self.history[-1][0] if self.history else 0):
            self.history.append((steps, seconds))

    def time(self, steps: int, seconds: float) -> str:
        """Return the time of a step, or before two lines had new steps the time of all."""
        name = plain(self.clock.chip.name)
        if len(self.history) < 2:
            return f"{name}: {duration(seconds)} predicted so far, {quantity(self.launches, 'launch')}"
        (first, since), (last, until) = self.history[0], self.history[-1]
        return f"{name}: step {steps:,}, {duration((until - since) / (last - first))} each"

    def _memory(self) -> str:
        import torch

        now, peak, _ = torch.ops.bringup.held_bytes(0)
        return f"memory {size(now)}, {size(peak)} at the peak"

    def _on_host(self, steps: int) -> str:
        if not self.fallbacks:
            return "no fallbacks"
        each = f" ({self.fallbacks / steps:.3g} a step)" if steps else ""
        return quantity(self.fallbacks, "fallback") + each


class LastLine:
    """The last row of a terminal, which the program's output does not reach while it is reserved."""

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal
        self.height = 0

    def show(self, text: str) -> None:
        """Show a text; the row is reserved first, again if the terminal's size has changed."""
        width, height = os.get_terminal_size(self.terminal.fileno())
        if height < _FEWEST_ROWS:
            return
        reserve = ""
        if height != self.height:  # a new line makes room, and the cursor goes back above it
            reserve, self.height = f"\n\x1b7\x1b[1;{height - 1}r\x1b8\x1b[1A", height
        self.terminal.write(f"{reserve}\x1b7\x1b[{height};1H\x1b[K\x1b[2m{text[: width - 1]}\x1b[0m\x1b8")
        self.terminal.flush()

    def end(self) -> None:
        """Give the row back."""
        if self.height:
            self.terminal.write(f"\x1b7\x1b[{self.height};1H\x1b[K\x1b[r\x1b8")
            self.terminal.flush()
            self.height = 0


class Live:
    """The context in which a terminal's last line follows a recording; `end` gives the line back earlier."""

    def __init__(self, progress: Progress, terminal: TextIO | None = None) -> None:
        self.progress = progress
        self.line = LastLine(terminal or sys.stderr)
        self.done = threading.Event()
        self.reading = threading.Lock()
        self.thread: threading.Thread | None = None

    def __enter__(self) -> None:
        if not self.line.terminal.isatty():
            return
        _hook_forks()
        _following.append(self)
        self.thread = threading.Thread(target=self._follow, name="bringup --live", daemon=True)
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Stop following, and clear the line."""
        if self.thread is None:
            return
        self.done.set()
        self.thread.join()
        self.thread = None
        _following.remove(self)
        with contextlib.suppress(OSError):  # the terminal may have gone
            self.line.end()
        self.progress.clock.close()

    def _follow(self) -> None:
        while not self.done.wait(INTERVAL):
            with self.reading:
                text = self.progress.line()
                try:
                    if text:
                        self.line.show(text)
                except OSError:  # the terminal has gone
                    return


_following: list[Live] = []
_held: list[Live] = []  # during a fork


@functools.cache
def _hook_forks() -> None:
    """See to it that no fork of the program copies a lock that the thread of a `Live` holds.

    Hooks cannot be removed. They are registered once, and do nothing when no line is shown.
    """

    def before() -> None:
        for live in tuple(_following):
            live.reading.acquire()
            _held.append(live)

    def in_parent() -> None:
        while _held:
            _held.pop().reading.release()

    def in_child() -> None:
        for live in _following:
            live.thread = None
        _following.clear()
        in_parent()

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)
