"""Our own measurements of one machine: whole programs, single operators, and the host's issue times.

A set is a folder with ``programs.csv``, ``operators.csv``, ``host.jsonl`` or ``repeats.csv``; docs/validation.md has
their columns. Rows are matched by name with recordings that ship with bringup; the folder's own code is never run.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from bringup.analyse.program_class import program_class
from bringup.errors import BringupError
from bringup.files import read_text
from bringup.machine.files import load_chip, load_host
from bringup.pricing.bands import bound
from bringup.pricing.errors import Errors, summarize
from bringup.pricing.rates import launch_seconds
from bringup.recording.rows import LAUNCH
from bringup.recording.trace import Trace
from bringup.report.prediction import Prediction, price
from bringup.text import short
from bringup.timeline.replay import Timeline, WhatIf, replay
from bringup.validation.recorded import Recorded, recordings

# The machine of a set, by the name of its folder: a chip file and the host file that is nearest.
MACHINES = {"h100_bringup": ("h100-sxm", "emerald-rapids-vm")}
LOOPS = 20  # steps that are launched before the host waits, in a measured round and in the prediction of it
AGAIN = "repeats.csv"  # programs that were measured on a second machine
LARGE = 1 << 30  # bytes: smaller peaks are mostly what libraries try out at their first use
# What a figure measures, in the order of tables.
STEP, COMPILED, NEW_LENGTH, BUSY, LAUNCHES, ALLOCATED, RESERVED, GRAPH, EAGER, KERNELS, ISSUE = FIGURES = (
    *("step", "step, compiled", "step of a new length", "chip busy", "kernels", "peak allocated", "peak reserved"),
    *("operator in a graph", "operator, eager", "kernels of an operator", "host issue"),
)
TIMES = (STEP, COMPILED, NEW_LENGTH, BUSY, GRAPH, EAGER, ISSUE)  # figures in seconds
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "tf32": "TF32", "default": "TF32 in convolutions"}
DTYPES |= {"amp": "autocast bfloat16", "amp16": "autocast float16", "fp8": "float8"}
MODES = {"infer": "inference", "train": "training", "decode": "decode", "generate": "decode"}


@dataclass(frozen=True)
class Comparison:
    """One measured figure beside its prediction, both in seconds, bytes or launches.

    Attributes:
        chip: name of the chip file.
        name: the program or operator.
        figure: what was measured, one of `FIGURES`.
        kind: class of the program, family of the operator, or kind of the host's call.
        mode: ``inference``, ``training`` or ``decode``; empty for operators.
        dtype: precision of the program or operator.
        bound: predicted bound of a program; empty otherwise.
        source: the file.
    """

    chip: str
    name: str
    figure: str
    kind: str
    mode: str
    dtype: str
    bound: str
    measured: float
    predicted: float
    source: str

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1

    @property
    def seconds(self) -> float:
        """The measured figure, where it is a time."""
        return self.measured

    @property
    def text(self) -> str:
        """The name and the figure."""
        return f"{self.name}: {self.figure}"

    @property
    def family(self) -> str:
        """The group of the comparison in a chart."""
        return self.kind


@dataclass(frozen=True)
class MeasuredSet:
    """The comparisons of all sets of a folder. ``skipped`` has a sentence for every file or row that was left out."""

    comparisons: tuple[Comparison, ...]
    skipped: tuple[str, ...]


GROUPINGS: dict[str, Callable[[Comparison], str]] = {  # of tables: what the rows have in common
    "class": lambda row: row.kind,
    "mode": lambda row: row.mode,
    "dtype": lambda row: row.dtype,
    "bound": lambda row: row.bound,
    "size": lambda row: "over 1 GiB" if row.figure in (ALLOCATED, RESERVED) and row.measured >= LARGE else "",
}


def tables(comparisons: Iterable[Comparison]) -> dict[str, dict[str, Errors]]:
    """Return the errors of every figure by class, mode, dtype, bound and size, with ``all`` last.

    Programs that were measured again, and the operators of a set, are figures of their own.
    """
    rows = list(comparisons)
    by_title: dict[str, dict[str, Errors]] = {}
    for source, figure in sorted({(row.source, row.figure) for row in rows}, key=lambda item: FIGURES.index(item[1])):
        of_figure = [row for row in rows if (row.source, row.figure) == (source, figure)]
        title = figure + (" (measured again)" if source == AGAIN else "")
        groups: dict[str, Errors] = {}
        for grouping, key in GROUPINGS.items():
            by_key = {row: row.error for row in of_figure if key(row)}
            groups |= {f"{grouping} {name}": errors for name, errors in summarize(by_key, key).items()}
        by_title[title] = {**groups, "all": Errors.from_values(row.error for row in of_figure)}
    return by_title


def band_rows(comparisons: Iterable[Comparison]) -> list[tuple[str, str, str, float]]:
    """Return chip, bound, class and error of every program's step, for `pricing.bands.write_table`."""
    steps = (row for row in comparisons if row.figure == STEP and row.source != AGAIN)
    return [(row.chip, row.bound, row.kind, row.error) for row in steps]


Row = dict[str, str]


class _Machine:
    """What a set was measured on, and how its recordings are priced there."""

    def __init__(self, chip: str, host: str) -> None:
        self.planning, self.host = load_chip(chip), load_host(host)
        # Loops were warmed up, so their plans of attention were there.
        launch = self.planning.launch.model_copy(update={"attention_plan_ms": None})
        self.chip = self.planning.model_copy(update={"launch": launch})

    @cache  # noqa: B019 - lives as long as the reading of one folder
    def step(self, item: Recorded, steps: int, *, wait_each: bool) -> Prediction:
        return price(item.trace(steps, wait_each=wait_each), self.chip, self.host)

    def first_step(self, item: Recorded) -> Prediction:
        """Price a step that plans its attention."""
        return price(item.trace(1, wait_each=True), self.planning, self.host)

    def kernels(self, timeline: Timeline) -> float:
        """Return the number of kernels that the chip's library launches."""
        columns, prices = timeline.trace.columns, timeline.prices
        return float(prices.kernels[columns["signature"][columns["kind"] == LAUNCH]].sum())

    def gaps(self, trace: Trace) -> float:
        """Return the seconds between queued kernels, which prices hold and a profiler's kernels do not."""
        gap = launch_seconds(self.chip) - launch_seconds(self.chip, graph=True)
        return gap * float(trace.work.kernels[trace.columns["signature"][trace.columns["kind"] == LAUNCH]].sum())

    def in_graph(self, item: Recorded) -> Timeline:
        return replay(item.trace(1), self.chip, self.host, what_if=WhatIf(graph=True))


def read_measured(folder: Path) -> MeasuredSet:
    """Read all sets below a folder. Files that cannot be read are named in `MeasuredSet.skipped`."""
    comparisons: list[Comparison] = []
    skipped: list[str] = []
    for path in sorted(item for item in folder.rglob("*") if item.name in _READERS):
        machine = MACHINES.get(path.parent.resolve().name)
        if machine is None:
            names = ", ".join(MACHINES)
            skipped.append(f"{path} is skipped, because the machine of its folder is not known (known: {names})")
            continue
        missing: Counter[str] = Counter()
        try:
            comparisons += list(_READERS[path.name](path, _Machine(*machine), missing))
        except (BringupError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError, csv.Error) as error:
            skipped.append(f"{path} is skipped, because it is not in the format of our measurements: {_reason(error)}")
        skipped += [f"{path}: {count:,} rows are skipped, because {reason}" for reason, count in missing.items()]
    return MeasuredSet(tuple(comparisons), tuple(skipped))


def _reason(error: Exception) -> str:
    named = f"there is no {error}" if isinstance(error, KeyError) else str(error)
    return short(named, 200)


def _table(path: Path, *needed: str) -> Iterator[Row]:
    rows = csv.DictReader(io.StringIO(read_text(path, "measurement file"), newline=""))
    absent = [name for name in needed if name not in (rows.fieldnames or ())]
    if absent:
        raise ValueError(f"it has no column {absent[0]}")
    yield from rows


def _number(text: str | float, unit: float) -> float:
    value = float(text) * unit
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{text} is no measured time or size")
    return value


def _programs(path: Path, machine: _Machine, missing: Counter[str]) -> Iterator[Comparison]:
    """Compare whole programs: a step, the chip's share of it, its kernels, and the peaks of memory.

    ``free_us`` is a step of a loop in which the host runs ahead. In decode, some of these steps have a cache of a
    length that cuDNN sees for the first time, as all of ``sync_us`` have; the steady step is ``sync_first2_us``. Both
    have a wait in each step.
    """
    columns = ("id", "mode", "precision", "compile", "free_us", "sync_us", "sync_first2_us", "busy_union_us")
    for row in _table(path, *columns, "kernels", "copies", "peak_allocated", "peak_reserved"):
        item = recordings().get(f"program/{row['id']}")
        if item is None:
            missing["their programs are not recorded"] += 1
            continue
        decodes = row["mode"] == "decode"
        once = machine.step(item, 1, wait_each=True)
        looped = once if decodes else machine.step(item, LOOPS, wait_each=False)
        kind = program_class(once.trace)
        its_bound = bound(looped.device_seconds, looped.step_seconds)
        figures = (
            (STEP, _number(row["sync_first2_us" if decodes else "free_us"], 1e-6), looped.step_seconds),
            *([(NEW_LENGTH, _number(row["sync_us"], 1e-6), machine.first_step(item).step_seconds)] if decodes else []),
            (BUSY, _number(row["busy_union_us"], 1e-6), once.device_seconds - machine.gaps(once.trace)),
            (LAUNCHES, float(row["kernels"]), machine.kernels(once.timeline)),
            (ALLOCATED, _number(row["peak_allocated"], 1), item.peak_allocated),
            (RESERVED, _number(row["peak_reserved"], 1), item.peak_reserved),
        )
        about = kind, MODES.get(row["mode"], row["mode"]), DTYPES.get(row["precision"], row["precision"]), its_bound
        if row["compile"]:
            figures = ((COMPILED, *figures[0][1:]),)
        for figure, measured, predicted in figures:
            if measured > 0:
                yield Comparison(machine.chip.name, row["id"], figure, *about, measured, float(predicted), path.name)


def _operators(path: Path, machine: _Machine, missing: Counter[str]) -> Iterator[Comparison]:
    """Compare single operators: replayed from a CUDA graph where they can be captured, else launched in a loop."""
    for row in _table(path, "id", "family", "dtype", "eager_us", "graph_us", "kernels"):
        item = recordings().get(f"operator/{row['id']}")
        if item is None:
            missing["their operators are not recorded"] += 1
            continue
        about = row["family"], "", DTYPES.get(row["dtype"], row["dtype"]), ""
        if row["graph_us"]:
            timeline = machine.in_graph(item)
            seconds = float(timeline.seconds[timeline.trace.columns["kind"] == LAUNCH].sum())
            pair, calls = (GRAPH, _number(row["graph_us"], 1e-6), seconds), 1
        else:
            looped = machine.step(item, LOOPS, wait_each=False)
            pair, calls = (EAGER, _number(row["eager_us"], 1e-6), looped.step_seconds), LOOPS
            timeline = looped.timeline
        for figure, measured, predicted in (
            pair,
            (KERNELS, float(row["kernels"] or 0), machine.kernels(timeline) / calls),
        ):
            if measured > 0 and predicted > 0:
                yield Comparison(machine.chip.name, row["id"], figure, *about, measured, float(predicted), path.name)


def _host(path: Path, machine: _Machine, missing: Counter[str]) -> Iterator[Comparison]:
    """Compare the host's time to issue calls whose kernels are too short to hold it back."""
    for line in read_text(path, "measurement file").splitlines():
        row = json.loads(line)
        names = {"tiny": f"tiny/{row.get('op')}", "optimizer": f"optimizer/{row.get('op')}/{row.get('parameters')}"}
        name, is_other = names.get(row["kind"]), row.get("grad") or row.get("size", 16) != 16 or "issue_us" not in row
        item = recordings().get(f"host/{name}")
        if name is None or is_other or item is None:
            missing["they are no issue times of recorded calls"] += 1
            continue
        timeline = replay(item.trace(LOOPS), machine.chip, machine.host)
        predicted = float(np.max(timeline.issued)) / LOOPS
        measured = _number(row["issue_us"], 1e-6)
        yield Comparison(
            machine.chip.name, f"host {name}", ISSUE, row["kind"], "", "float32", "", measured, predicted, path.name
        )


_READERS: dict[str, Callable[[Path, _Machine, Counter[str]], Iterator[Comparison]]] = {
    "programs.csv": _programs,
    AGAIN: _programs,
    "operators.csv": _operators,
    "host.jsonl": _host,
}
