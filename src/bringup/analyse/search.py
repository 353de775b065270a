"""Dry runs of one program on several chips, and the search for the largest batch that fits each chip."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bringup.analyse.advice import advise
from bringup.analyse.summarize import summarize
from bringup.errors import BringupError
from bringup.recording.trace import Trace
from bringup.text import size
from bringup.timeline.replay import replay

if TYPE_CHECKING:
    from bringup.analyse.summary import Summary
    from bringup.machine.schema import Chip, Host


def record_dry(
    words: Sequence[str],
    *,
    chip: str,
    out: Path,
    environment: Mapping[str, str],
    shown: str,
    folder: Path | None = None,
) -> Trace:
    """Run a program dry in a process of its own, past the chip's capacity, and return its recording.

    Args:
        words: further options of `bringup run`, the script and its arguments.
        chip: name or file.
        out: the report's directory.
        environment: of the process.
        shown: the program, for messages.
        folder: where it runs (default: the current directory).

    Raises:
        BringupError: the run failed; the message has its last line on stderr.
    """
    command = [sys.executable, "-m", "bringup", "--isolated", "run", "--dry", "--oom=continue", f"--chip={chip}"]
    done = subprocess.run(
        [*command, f"--out={out}", *words],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0 or not (out / "trace.npz").is_file():
        errors = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("bringup: ")]
        last = (errors or done.stderr.splitlines() or ["it printed nothing on stderr"])[-1]
        raise BringupError(f"{shown} ends with exit code {done.returncode} in a dry run: {last}")
    return Trace.load(out / "trace.npz")


@dataclass(frozen=True)
class Program:
    """A script with its arguments, and the name of the argument or environment variable to vary.

    Attributes:
        options: further options of `bringup run`; with ``-m``, the script is the name of a module.
    """

    script: str
    arguments: tuple[str, ...]
    vary: str | None = None
    options: tuple[str, ...] = ()

    def call(self, value: int | None) -> tuple[list[str], dict[str, str]]:
        """Return the arguments and the environment that pass this value."""
        arguments, environment = list(self.arguments), dict(os.environ)
        if value is None or self.vary is None:
            return arguments, environment
        if not self.vary.startswith("-"):
            return arguments, {**environment, self.vary: str(value)}
        others, skip = [], False
        for argument in arguments:
            if skip or argument.startswith(f"{self.vary}="):
                skip = False
                continue
            skip = argument == self.vary
            if not skip:
                others.append(argument)
        return [*others, self.vary, str(value)], environment


@dataclass(frozen=True)
class Fit:
    """One chip's result.

    Attributes:
        as_is: the summary of the program with its arguments unchanged.
        largest: the largest value that fits, above 100 accurate to one percent. None if the value 1 does not fit or
            no argument is varied.
        at_largest: the summary of the program with the largest value.
        open_end: True if the largest value tried fits, so that still larger ones may fit too.
    """

    as_is: Summary
    largest: int | None = None
    at_largest: Summary | None = None
    open_end: bool = False


@dataclass
class _Runs:
    """Recordings of one program: one per value, and one per chip if only a run on that chip shows whether it fits."""

    program: Program
    chips: dict[str, Chip]
    host: Host
    say: Callable[[str], None]
    folder: Path
    traces: dict[tuple[int | None, str], Trace] = field(default_factory=dict)

    def trace(self, value: int | None, name: str) -> Trace:
        """Return the recording of a dry run, which continues past the chip's capacity; run it once per value."""
        if (value, name) in self.traces:
            return self.traces[value, name]
        arguments, environment = self.program.call(value)
        out = self.folder / str(len(self.traces))
        how = "" if value is None else f" with {self.program.vary} {value}"
        trace = self.traces[value, name] = record_dry(
            [*self.program.options, "--", self.program.script, *arguments],
            chip=name,
            out=out,
            environment=environment,
            shown=f"{self.program.script}{how}",
        )
        if not trace.launches:
            raise BringupError(
                f"{self.program.script} launched nothing on the chip: move its model to the device 'chip'"
            )
        return trace

    def summary(self, value: int | None, name: str) -> Summary:
        """Price the program with a value on a chip.

        The recording on the largest chip is used, unless only a run on this chip shows whether the program fits.
        """
        chip = self.chips[name]
        widest = max(self.chips, key=lambda other: self.chips[other].room_bytes)
        trace = self.trace(value, widest)
        summary = self._priced(trace, chip)
        if summary.peak_bytes <= chip.room_bytes < summary.memory.reserved_bytes and name != widest:
            summary = self._priced(self.trace(value, name), chip)
        how = "" if value is None else f"{self.program.vary} {value}: "
        self.say(f"{how}{chip.name} {summary.verdict_text()}, {size(summary.peak_bytes)} of {size(chip.device_bytes)}")
        return summary

    def _priced(self, trace: Trace, chip: Chip) -> Summary:
        timeline = replay(trace, chip, self.host)
        return advise(timeline, summarize(timeline))


def search(
    program: Program,
    chips: dict[str, Chip],
    host: Host,
    *,
    most: int = 65536,
    say: Callable[[str], None] = lambda text: None,
) -> list[Fit]:
    """Run a program dry and, if an argument is varied, find the largest value that fits each chip.

    Memory grows about linearly with the batch. The next value to try is where the line through two earlier results
    reaches the capacity. If that makes little progress, it is the middle of the bracket. The search ends when a value
    fits and one that is larger by 1 or by at most one percent does not.

    Args:
        program: the program to run.
        chips: the chips, by the name or file that the user gave.
        host: the host to predict for.
        most: the largest value to try.
        say: called with a line of text after every result.

    Raises:
        BringupError: the program fails or launches nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs = _Runs(program, chips, host, say, Path(folder))
        if program.vary is None:
            return [Fit(runs.summary(None, name)) for name in chips]
        return [_largest(runs, name, most) for name in chips]


def _largest(runs: _Runs, name: str, most: int) -> Fit:
    as_is = runs.summary(None, name)
    summaries: dict[int, Summary] = {}

    def at(value: int) -> Summary:
        if value not in summaries:
            summaries[value] = runs.summary(value, name)
        return summaries[value]

    if not at(1).fits:
        return Fit(as_is)
    low, high = 1, most + 1  # `low` fits, `high` does not fit or was not tried
    capacity = runs.chips[name].room_bytes
    halved = True  # the last guess halved the bracket; if it did not, the next one does
    while high - low > max(1, low // 100):
        width = high - low
        if not halved:
            guess = (low + high) // 2
        elif high in summaries:
            guess = _crossing(low, _need(at(low)), high, _need(at(high)), capacity)
        else:
            below = max((value for value in summaries if value < low), default=0)
            slope = _need(at(low)) - (_need(at(below)) if below else 0)
            guess = _crossing(below, _need(at(low)) - slope, low, _need(at(low)), capacity)
            guess = min(guess, 4 * low)  # a peak that does not depend on the batch may hide the growth
        guess = min(max(guess, low + 1), high - 1)
        if at(guess).fits:
            low = guess
        else:
            high = guess
        halved = high not in summaries or 2 * (high - low) <= width
    return Fit(as_is, low, at(low), open_end=low == most)


def _need(summary: Summary) -> int:
    return summary.peak_bytes if summary.fits else max(summary.memory.reserved_bytes, summary.room_bytes + 1)


def _crossing(low: int, low_bytes: int, high: int, high_bytes: int, capacity: int) -> int:
    """Return the value at which the line through two points reaches the capacity; a huge one if it does not rise."""
    if high_bytes <= low_bytes:
        return sys.maxsize
    return low + int((capacity - low_bytes) / (high_bytes - low_bytes) * (high - low))
