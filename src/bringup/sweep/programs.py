"""The recordings of a sweep: each script is run dry, once for each combination of its arguments."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bringup.analyse.search import record_dry
from bringup.errors import BringupError
from bringup.files import read_bytes
from bringup.recording.rows import MEASURED
from bringup.recording.trace import VERSION, Trace
from bringup.report.prediction import read_trace
from bringup.text import quantity as counted
from bringup.text import short

if TYPE_CHECKING:
    from bringup.serving.forward import Recorded
    from bringup.sweep.file import Program, Sweep, Value

Source: TypeAlias = "Trace | Recorded | dict[int, Trace]"  # of a script or recording, or of a model that is served

# What prices depend on, of a recording's `about`; the rest tells one run from another.
PRICED = ("chip", "cluster", "ranks", "rank", "dry", "failed", "out_of_memory", "held_bytes", "held_reserved_bytes")
UNLIKE = ("host_ns", *MEASURED)  # columns that differ between two runs of one program; sweeps use the modelled host


@dataclass(frozen=True)
class Recording:
    """A recorded program.

    Attributes:
        program: its name in the table.
        arguments: the values of the argument axes.
        source: what is priced.
        digest: names the contents on which prices depend; two runs of one program have the same.
    """

    program: str
    arguments: tuple[Value, ...]
    source: Source
    digest: str


def combinations(sweep: Sweep) -> Iterator[tuple[Program, tuple[Value, ...]]]:
    """Yield every program with every combination of the argument axes."""
    for program in sweep.file.programs:
        for values in itertools.product(*sweep.file.arguments.values()):
            yield program, values


def script_runs(sweep: Sweep) -> int:
    """Return how often a sweep runs a script."""
    scripts = sum(program.script is not None for program in sweep.file.programs)
    return scripts * math.prod(map(len, sweep.file.arguments.values()))


def record_all(sweep: Sweep, chip: str, folder: Path, say: Callable[[str], None]) -> list[Recording]:
    """Return the recordings of a sweep; those in the folder are not made again.

    Args:
        sweep: the sweep.
        chip: name or path of the chip to record on. It is the sweep's largest; programs go on beyond its memory.
        folder: for the recordings.
        say: called with a line of text after every recording.

    Raises:
        BringupError: a program fails, launches nothing, or does not use an argument of an axis.
    """
    recordings: list[Recording] = []
    for program, values in combinations(sweep):
        if program.model is not None:
            model = _model(sweep, program.model)
            recordings.append(Recording(program.title, values, model, digest(model)))
            say(f"recorded {short(program.model, 200)}")
            continue
        if program.trace is not None:
            trace = read_trace(sweep.path.parent / program.trace)
        else:
            trace = _recorded(sweep, program, values, chip, folder, say)
        if not trace.launches:
            raise BringupError(
                f"{program.script or program.trace} launched nothing on the chip: move its model to the device 'chip'"
            )
        recordings.append(Recording(program.title, values, trace, digest(trace)))
    _refuse_idle_axes(sweep, recordings)
    return recordings


def _refuse_idle_axes(sweep: Sweep, recordings: list[Recording]) -> None:
    """Refuse an axis that changes no recording: a misspelt argument, or clusters without a collective."""
    for place, (name, values) in enumerate(sweep.file.arguments.items()):
        groups: dict[object, set[str]] = {}
        for item in recordings:
            others = (item.program, *item.arguments[:place], *item.arguments[place + 1 :])
            groups.setdefault(others, set()).add(item.digest)
        if len(values) > 1 and all(len(digests) == 1 for digests in groups.values()):
            raise BringupError(
                f"arguments.{name} changes no program of the sweep: say under names which argument of the script it is"
            )
    traces = [item.source for item in recordings if isinstance(item.source, Trace)]
    if sweep.file.clusters and not any(map(_has_collectives, traces)):
        raise BringupError("clusters are an axis, but no program has collectives: leave clusters out")


def _has_collectives(trace: Trace) -> bool:
    return bool(trace.work.is_family("collective").any())


def _model(sweep: Sweep, text: str) -> Source:
    """Record a model as `bringup serve` does, in this process."""
    from bringup.serving.serve import program_of  # imports torch
    from bringup.sweep.under_load import options_of

    assert sweep.file.serving is not None
    model = program_of(str(sweep.path.parent / text), options_of(sweep.file.serving))
    assert model is not None
    return model


def digest(source: Source) -> str:
    """Return a name of the contents of a recording on which prices depend."""
    if isinstance(source, Trace):
        return _digest(source)
    by_size: list[Mapping[int, Trace]] = [source] if isinstance(source, dict) else []
    by_size += [] if isinstance(source, dict) else [source.prompts, source.decodes, source.samples]
    parts = [{size: _digest(trace) for size, trace in traces.items()} for traces in by_size]
    about = [] if isinstance(source, dict) else [source.name, source.weight_bytes]
    return hashlib.sha256(json.dumps([parts, about]).encode()).hexdigest()[:32]


def _digest(trace: Trace) -> str:
    about = {name: trace.about[name] for name in PRICED if trace.about.get(name) not in (None, False)}
    described = [VERSION, about, trace.signature_data, trace.lines, trace.modules]
    total = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    columns = {name: column for name, column in trace.columns.items() if name not in UNLIKE}
    for name, column in sorted({**columns, "uses": trace.uses, "offsets": trace.offsets}.items()):
        total.update(f"{name} {column.dtype}".encode())
        total.update(np.ascontiguousarray(column).tobytes())
    return total.hexdigest()[:32]


def command_line(program: Program, names: list[str], values: tuple[Value, ...]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and environment variables that pass the values of the axes to a script.

    True gives an argument without a value, and False leaves it out.
    """
    arguments, environment = list(program.arguments), {}
    for name, value in zip(names, values, strict=True):
        passed_as = program.names.get(name, f"--{name.replace('_', '-')}")
        if not passed_as.startswith("-"):
            environment[passed_as] = str(int(value)) if isinstance(value, bool) else str(value)
        elif isinstance(value, bool):
            arguments += [passed_as] if value else []
        else:
            arguments += [passed_as, str(value)]
    return arguments, environment


def _recorded(
    sweep: Sweep, program: Program, values: tuple[Value, ...], chip: str, folder: Path, say: Callable[[str], None]
) -> Trace:
    """Return the recording of a dry run; the file is called after everything that the run depends on."""
    assert program.script is not None
    script = sweep.path.parent / program.script
    text = read_bytes(script, "script")
    arguments, environment = command_line(program, list(sweep.file.arguments), values)
    options = ["--cuda"] if program.cuda else []
    options += [f"--ranks={program.ranks}"] if program.ranks else []
    identity = [VERSION, chip, arguments, environment, options, hashlib.sha256(text).hexdigest()]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    file = folder / f"{name}.npz"
    if file.is_file():
        return Trace.load(file)
    shown = " ".join([*(f"{key}={value}" for key, value in environment.items()), program.script, *arguments])
    with tempfile.TemporaryDirectory() as out:
        trace = record_dry(
            [*options, "--", str(script.resolve()), *arguments],
            chip=chip,
            out=Path(out, "run"),
            environment={**os.environ, **environment},
            shown=short(shown, 200),
            folder=sweep.path.parent,
        )
    folder.mkdir(parents=True, exist_ok=True)
    trace.save(file)
    say(f"recorded {short(shown, 200)}: {counted(trace.launches, 'launch')}")
    return trace
