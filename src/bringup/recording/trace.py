"""A recording of what a program launched: record, save, load."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from bringup.cost.signature import Signature
from bringup.errors import BringupError, TraceError
from bringup.files import written_whole
from bringup.paths import Places, as_text
from bringup.pricing.pricing import WorkTable
from bringup.recording.about import begin_recording
from bringup.text import short

if TYPE_CHECKING:
    from bringup.machine.schema import Host

VERSION = 2
# In the order of csrc/recorder.h's RowKind; the numbers are in trace files: append only.
KINDS = (
    *("launch", "h2d", "d2h", "d2d", "event_record", "event_wait", "stream_sync", "device_sync", "event_sync"),
    *("alloc", "free", "forward", "step", "reserve", "release", "owner", "host", "signal", "resume"),
)
LAUNCH, H2D, D2H, D2D, EVENT_RECORD, EVENT_WAIT, STREAM_SYNC, DEVICE_SYNC, EVENT_SYNC, *_ = range(len(KINDS))
ALLOC, FREE, FORWARD, STEP, RESERVE, RELEASE, OWNER, HOST, SIGNAL, RESUME = range(9, len(KINDS))
PHASES = ("forward", "backward", "optimizer")
IN_FORWARD, IN_BACKWARD, IN_OPTIMIZER = range(len(PHASES))
# Flags, see csrc/recorder.h.
PINNED, WAITS, FALLBACK, HOST_INDEX, INITIALISED, OF_ALLOCATOR, OF_UPLOAD, OF_DOWNLOAD = (1 << i for i in range(8))
WAITS_FOR = ("sleep", "descriptor", "process", "lock")  # flags of a host row, see csrc/waits.h
BY_PROGRAM = -1  # object of a step row that bringup.step() wrote

COLUMNS = {
    "kind": np.uint8,
    "flags": np.uint8,
    "phase": np.uint8,
    "device": np.int8,
    "stream": np.int16,
    "thread": np.int32,
    "views": np.int32,
    "signature": np.int32,
    "line": np.int32,
    "module": np.int32,
    "host_ns": np.int64,
    "bytes": np.int64,
    "object": np.int64,
}
Column = npt.NDArray[Any]


@dataclass
class Trace:
    """What a program launched, one row each, in the host's order.

    Attributes:
        columns: name -> one value per row; ``signature``, ``line`` and ``module`` index the lists below (-1: none).
        uses: storage * 2 + written, of all rows; row i has ``uses[offsets[i]:offsets[i + 1]]``.
        about: program, chip, torch version; ``redirected``: names of CUDA that it used; ``compiled_graphs``,
            ``graph_breaks``: of torch.compile; ``dry``: nothing was computed; ``held_bytes``, ``held_reserved_bytes``:
            what tensors and the allocator held on every device when the recording began.
    """

    columns: dict[str, Column]
    uses: Column
    offsets: Column
    signature_data: list[dict[str, Any]]
    lines: list[str]
    modules: list[str]
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.columns["kind"])

    @cached_property
    def signatures(self) -> list[Signature]:
        """The distinct kinds of launch."""
        return [Signature.parse(data) for data in self.signature_data]

    @cached_property
    def work(self) -> WorkTable:
        """What the distinct kinds of launch ask of a chip."""
        return WorkTable.of(self.signatures)

    @property
    def launches(self) -> int:
        """Count the launches."""
        return int(np.count_nonzero(self.columns["kind"] == LAUNCH))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file, whole or not at all. ``pandas.read_parquet`` and ``polars.read_parquet`` read it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = self.columns
        kinds = pa.DictionaryArray.from_arrays(pa.array(columns["kind"].astype(np.int8)), pa.array(KINDS))
        phases = pa.DictionaryArray.from_arrays(pa.array(columns["phase"].astype(np.int8)), pa.array(PHASES))
        arrays = {
            "kind": kinds,
            "op": _labels(columns["signature"], [data["op"] for data in self.signature_data]),
            "shapes": _labels(columns["signature"], [signature.shapes for signature in self.signatures]),
            "line": _labels(columns["line"], self.lines),
            "module": _labels(columns["module"], self.modules),
            "phase": phases,
            **{name: pa.array(columns[name]) for name in ("device", "stream", "thread", "views", "signature", "flags")},
            **{name: pa.array(columns[name]) for name in ("host_ns", "bytes", "object")},
            "uses": pa.LargeListArray.from_arrays(pa.array(self.offsets), pa.array(self.uses)),
        }
        about = {
            "version": VERSION,
            "about": self.about,
            "signatures": self.signature_data,
            "lines": self.lines,
            "modules": self.modules,
        }
        table = pa.table(arrays).replace_schema_metadata({"bringup": json.dumps(about, sort_keys=True)})
        with written_whole(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a trace file. Never executes what the file holds.

        Raises:
            TraceError: the file is missing, truncated, damaged, not a trace, or of another version.
        """
        from bringup.recording import trace_check

        file = Path(path)
        table, about = trace_check.opened(file)
        version = about.get("version") if isinstance(about, dict) else None
        if version != VERSION:
            asked = short(repr(version))
            raise TraceError(f"{file}: is a trace of version {asked}, this bringup reads {VERSION}: record it again")
        try:
            trace_check.check_description(about)
            trace = _parse(about, table)
            trace_check.check_rows(trace)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
            known = isinstance(error, trace_check.Damaged)
            reason = short(str(error) if known else f"{type(error).__name__}: {error}", 300)
            raise TraceError(f"{file}: is a damaged trace ({reason}): record it again") from None
        return trace


def _parse(about: dict[str, Any], table: Any) -> Trace:
    from bringup.recording.trace_check import whole_numbers

    columns: dict[str, Column] = {}
    for name, dtype in COLUMNS.items():
        array = table[name].combine_chunks()
        if name in ("kind", "phase"):
            values = KINDS if name == "kind" else PHASES
            codes = np.asarray([values.index(text) for text in array.dictionary.to_pylist()], dtype)
            columns[name] = codes[whole_numbers(array.indices, np.int64, name)]
        elif name in ("line", "module"):
            columns[name] = _codes(array, about["lines" if name == "line" else "modules"])
        else:
            columns[name] = whole_numbers(array, dtype, name)
    uses = table["uses"].combine_chunks()
    return Trace(
        columns,
        whole_numbers(uses.values, np.int64, "uses"),
        whole_numbers(uses.offsets, np.int64, "offsets"),
        about["signatures"],
        about["lines"],
        about["modules"],
        about["about"],
    )


def _labels(codes: Column, texts: list[str]) -> Any:
    import pyarrow as pa

    unique = list(dict.fromkeys(texts))  # several signatures have one operator
    place = {text: number for number, text in enumerate(unique)}
    to_unique = np.asarray([place[text] for text in texts] or [0], dtype=np.int32)
    missing = codes < 0
    indices = to_unique[np.where(missing, 0, codes)]
    return pa.DictionaryArray.from_arrays(pa.array(indices, mask=missing), pa.array(unique, pa.string()))


def _codes(array: Any, texts: list[str]) -> Column:
    place = {text: number for number, text in enumerate(texts)}
    of = np.asarray([place[text] for text in array.dictionary.to_pylist()] or [-1], dtype=np.int32)
    indices = array.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.ascontiguousarray(np.where(indices < 0, -1, of[np.maximum(indices, 0)]).astype(np.int32))


# ---- recording


@lru_cache(maxsize=1 << 16)
def read_signature(text: str) -> tuple[dict[str, Any], Signature]:
    """Read the core's JSON of a signature, once: the next recording has it again."""
    data = json.loads(text)
    return data, Signature.parse(data)


class Recorder:
    """A recording under way. `trace` takes what was launched so far."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.about = about
        self.describe = begin_recording()
        self.places = Places.of_process()

    def trace(self) -> Trace:
        """Copy the rows recorded so far."""
        import torch

        from bringup.recording import modules

        ops = torch.ops.bringup
        *values, uses, offsets = (column.numpy() for column in ops.recorded_columns(0))
        columns = dict(zip(COLUMNS, values, strict=True))
        texts = [self.places.line(text) for text in ops.recorded_lines()]
        lines = list(dict.fromkeys(texts))  # one line of source has several instructions
        place = {text: number for number, text in enumerate(lines)}
        to_line = np.asarray([*(place[text] for text in texts), -1], dtype=np.int32)
        columns["line"] = to_line[columns["line"]]
        about = {
            "redirected": _redirected(),
            **{name: value for describe in self.describe for name, value in describe(self.places).items()},
            "program": as_text(Path(sys.argv[0]).name),
            "chip": ops.chip(),
            "torch": torch.__version__.split("+")[0],
            **self.about,
        }
        read = [_shown(*read_signature(text), self.places) for text in ops.recorded_signatures(0)]
        trace = Trace(
            columns,
            uses,
            offsets,
            [data for data, _ in read],
            lines,
            [as_text(name) for name in modules.names],
            about,
        )
        trace.signatures = [signature for _, signature in read]
        return trace


def _shown(data: dict[str, Any], signature: Signature, places: Places) -> tuple[dict[str, Any], Signature]:
    """Shorten the lines that a kernel's signature names."""
    lines = data["args"].get("read_first")
    if not lines:
        return data, signature
    data = {**data, "args": {**data["args"], "read_first": {key: places.line(line) for key, line in lines.items()}}}
    return data, Signature.parse(data)


def _redirected() -> dict[str, int]:
    redirect = sys.modules.get("bringup.device.cuda")
    return redirect.report() if redirect is not None else {}


@contextmanager
def recorded(host: Host | None = None, host_clock: Literal["modelled", "measured"] = "modelled") -> Iterator[Recorder]:
    """Record what is launched inside the block. The host is what events' times are predicted for."""
    import torch

    from bringup.device import load as _load
    from bringup.recording import modules
    from bringup.timeline import clock

    _load.register()
    if torch.ops.bringup.is_recording():
        raise BringupError("a recording is under way already: end it before another begins")
    if not torch.ops.bringup.is_configured():
        _load.choose_from_environment()
    assert _load.chosen is not None
    chips: Any = torch.chip  # type: ignore[attr-defined]
    is_open = chips.is_initialized()
    held = [torch.ops.bringup.held_bytes(i) if is_open else (0, 0, 0) for i in range(chips.device_count())]
    about = {
        "dry": bool(torch.ops.bringup.is_dry()),
        "held_bytes": [now for now, _, _ in held],
        "held_reserved_bytes": [reserved for _, _, reserved in held],
    }
    with modules.watched(FORWARD, STEP):
        torch.ops.bringup.start_recording()
        clock.start(_load.chosen, host, host_clock)
        try:
            yield Recorder(about)
        finally:
            torch.ops.bringup.stop_recording()
            clock.stop()


@contextmanager
def record() -> Iterator[Trace]:
    """Record what is launched inside the block into a trace, which is filled when the block ends.

    Example: ``with bringup.record() as trace: model(x)``, then ``bringup.price(trace, chip="t4")``.
    """
    trace = Trace({}, np.zeros(0, np.int64), np.zeros(1, np.int64), [], [], [])
    with recorded() as recorder:
        abandoned = False
        try:
            yield trace
        except GeneratorExit:  # the block never ended, and now the interpreter does
            abandoned = True
            raise
        finally:
            if not abandoned:
                vars(trace).clear()  # with what was computed of the empty trace
                vars(trace).update(vars(recorder.trace()))


def step() -> None:
    """Mark the end of a step of the program. Without marks, optimizer steps or outermost module calls are the steps."""
    import torch

    torch.ops.bringup.record_mark(STEP, BY_PROGRAM)
