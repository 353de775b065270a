"""Runs a sweep: records its programs, and prices the parts that do not exist yet, in this process or on Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.errors import BringupError
from bringup.recording.trace import Trace
from bringup.sweep import parts
from bringup.sweep.file import WHOLE, Sweep
from bringup.sweep.grid import MOST_ROWS, Block, Grid, Keys, of_sweep
from bringup.sweep.placements import CHIP, check
from bringup.sweep.prices import Pricer
from bringup.sweep.programs import Recording, Source, record_all
from bringup.text import quantity

Array = npt.NDArray[Any]
MOST_SECONDS = 3600.0  # a longer sweep has to be confirmed; chosen
MOST_SCRIPT_RUNS = 500  # of a sweep that is not confirmed; chosen, at some seconds for each


@dataclass(frozen=True)
class Task:
    """A block to price.

    Attributes:
        rows: places of the rows to price; the values of the others are copied.
    """

    block: Block
    rows: Array


Priced = tuple[Task, dict[str, Array], float]  # with the CPU seconds that it took
Engine = Callable[[Grid, Sequence[Source], Iterator[Task]], Iterator[Priced]]


@dataclass(frozen=True)
class Done:
    """What a call of `run` did.

    Attributes:
        rows: of the whole table.
        priced: rows that were priced now.
        copied: rows that were copied from earlier parts.
        existing: rows of parts that existed already.
    """

    rows: int
    priced: int
    copied: int
    existing: int
    parts: int
    cpu_seconds: float
    seconds: float
    left_out: list[str]


def in_process(grid: Grid, traces: Sequence[Source], tasks: Iterator[Task]) -> Iterator[Priced]:
    """Price blocks one after another in this process."""
    pricer = Pricer(grid, traces)
    for task in tasks:
        begin = time.process_time()
        values = pricer.price(task.block, task.rows)
        yield task, values, time.process_time() - begin


def recorded(sweep: Sweep, grid: Grid, out: Path, say: Callable[[str], None]) -> list[Recording]:
    """Return the recordings of a sweep, on its largest chip; the scripts are run if they were not yet.

    Raises:
        BringupError: a program fails, or an axis does not suit it.
    """
    largest = max(range(len(grid.chips)), key=lambda number: grid.chips[number].room_bytes)
    recordings = record_all(sweep, sweep.chips[largest], out / parts.RECORDINGS, say)
    if set(grid.placements or ()) - {CHIP}:
        for item in recordings:
            assert isinstance(item.source, Trace), "a model is served, which goes with no placements"
            check(item.program, item.source, grid.chips[largest], grid.hosts[0])
    return recordings


def seconds_for(grid: Grid, workers: int = 1) -> float:
    """Return about how long the configurations of a sweep take."""
    return min(grid.rows, 10**300) * grid.seconds_per_row / workers  # more is beyond a float


def run(
    sweep: Sweep,
    out: Path,
    engine: Engine = in_process,
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
    advance: Callable[[int], None] = lambda rows: None,
) -> Done:
    """Price all configurations of a sweep into a directory of parts.

    Args:
        sweep: the sweep.
        out: the directory.
        engine: prices blocks, in any order.
        resume: go on with what the directory has.
        say: called with a line of text after every recording.
        advance: called with the number of rows of every part.

    Raises:
        BringupError: a program or the engine fails, the directory holds a sweep, or another sweep writes there. The
            parts that are whole stay.
    """
    began = time.monotonic()
    grid = of_sweep(sweep)
    if grid.rows > MOST_ROWS:
        raise BringupError(f"{sweep.path}: has more than {MOST_ROWS:,} configurations: make it smaller")
    parts.database().close()  # says early if DuckDB is missing
    with parts.locked(out):
        if not resume and (parts.listed(out) is not None or parts.files(out)):
            raise BringupError(f"{out}: has a sweep already: go on with --resume, or choose another directory")
        recordings = recorded(sweep, grid, out, say)
        keys = Keys(grid, tuple(item.digest for item in recordings))
        names = {keys.part(block): block for block in grid.blocks()}
        parts.write_list(
            out,
            {
                "sweep": str(sweep.path),
                "version": grid.version,
                "rows": grid.rows,
                "axes": list(grid.axes),
                "arguments": [name for name, _ in grid.arguments] + (["rate"] if grid.rates else []),
                "columns": grid.columns,
                "parts": list(names),
            },
        )
        whole = {name for name, block in names.items() if parts.is_whole(out / name, block.rows)}
        existing = sum(names[name].rows for name in whole)
        advance(existing)
        parts.set_aside(out, set(names))
        old = parts.files(out / parts.EARLIER) if len(whole) < len(names) else []
        earlier = parts.Earlier(old, ("band", *grid.results))
        ready = _Parts(out, grid, keys, earlier, advance)
        tasks = ready.tasks([block for name, block in names.items() if name not in whole])
        for priced in engine(grid, [item.source for item in recordings], tasks):
            ready.finish(*priced)
    return Done(
        rows=grid.rows,
        priced=ready.priced,
        copied=ready.copied,
        existing=existing,
        parts=len(names),
        cpu_seconds=ready.cpu_seconds,
        seconds=time.monotonic() - began,
        left_out=grid.left_out,
    )


class _Parts:
    """Writes parts from the rows that were priced and those of earlier parts."""

    def __init__(
        self, out: Path, grid: Grid, keys: Keys, earlier: parts.Earlier, advance: Callable[[int], None]
    ) -> None:
        self.out = out
        self.grid = grid
        self.keys = keys
        self.earlier = earlier
        self.advance = advance
        self.copied = self.priced = 0
        self.cpu_seconds = 0.0

    def tasks(self, blocks: Sequence[Block]) -> Iterator[Task]:
        """Yield what is to be priced; a part whose rows are all there already is written at once."""
        for block in blocks:
            places, _ = self.earlier.rows(self.keys.of_block(block)) if self.earlier.parts else (np.zeros(0, int), {})
            rows = np.setdiff1d(np.arange(block.rows), places)
            task = Task(block, rows)
            if len(rows):
                yield task
            else:
                self.finish(task, {}, 0.0)

    def finish(self, task: Task, priced: dict[str, Array], cpu_seconds: float) -> None:
        """Write the part of a block."""
        block = task.block
        keys = self.keys.of_block(block)
        values = dict(priced)
        if len(task.rows) < block.rows:
            places, copied = self.earlier.rows(keys)
            values = {}
            for name in self.earlier.columns:
                column = np.zeros(block.rows, np.int64) if name in WHOLE else np.full(block.rows, np.nan)
                column[places] = copied[name]
                if len(task.rows):
                    column[task.rows] = priced[name]
                values[name] = column
        columns = {
            "key": keys,
            "version": np.full(block.rows, self.grid.version, dtype=object),
            **self.grid.labels(block),
            **values,
        }
        parts.write(self.out / self.keys.part(block), columns, self.grid.columns)
        self.priced += len(task.rows)
        self.copied += block.rows - len(task.rows)
        self.cpu_seconds += cpu_seconds
        self.advance(block.rows)


def sentence(done: Done, out: Path) -> str:
    """Say in one sentence what a sweep did."""
    counts = [f"{done.priced:,} priced"]
    counts += [f"{done.copied:,} copied"] if done.copied else []
    counts += [f"{done.existing:,} there already"] if done.existing else []
    return f"{quantity(done.rows, 'configuration')} in {out} ({', '.join(counts)})"
