"""A trace: the record of a program's launches, and its file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.cost.signature import Signature
from bringup.cost.work_table import WorkTable
from bringup.errors import TraceError
from bringup.files import written_whole
from bringup.recording import trace_check
from bringup.recording.rows import COLUMNS, KINDS, LAUNCH, PHASES
from bringup.text import short

VERSION = 2
Column = npt.NDArray[Any]


@dataclass
class Trace:
    """The record of a program's launches, copies, allocations and waits: one row each, in the host's order.

    Attributes:
        columns: name -> one value per row; ``signature``, ``line`` and ``module`` index the lists below (-1: none).
        uses: storage * 2 + written, of all rows; row i has ``uses[offsets[i]:offsets[i + 1]]``.
        about: program, chip and torch version; ``redirected``, the CUDA names that it used; ``compiled_graphs`` and
            ``graph_breaks`` of torch.compile; ``dry``, True if nothing was computed; ``held_bytes`` and
            ``held_reserved_bytes``, the bytes that tensors and the allocator held on each device at the beginning.
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
        """The work of the distinct kinds of launch."""
        return WorkTable.from_signatures(self.signatures)

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
        file = Path(path)
        table, about = trace_check.opened(file)
        version = about.get("version") if isinstance(about, dict) else None
        if version != VERSION:
            shown = short(repr(version))
            raise TraceError(f"{file}: is a trace of version {shown}, this bringup reads {VERSION}: record it again")
        try:
            trace_check.check_description(about)
            trace = _parse(about, table)
            trace_check.check_rows(trace)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
            is_damaged = isinstance(error, trace_check.Damaged)
            reason = short(str(error) if is_damaged else f"{type(error).__name__}: {error}", 300)
            raise TraceError(f"{file}: is a damaged trace ({reason}): record it again") from None
        return trace


def _parse(about: dict[str, Any], table: Any) -> Trace:
    columns: dict[str, Column] = {}
    for name, dtype in COLUMNS.items():
        array = table[name].combine_chunks()
        if name in ("kind", "phase"):
            values = KINDS if name == "kind" else PHASES
            codes = np.asarray([values.index(text) for text in array.dictionary.to_pylist()], dtype)
            columns[name] = codes[trace_check.whole_numbers(array.indices, np.int64, name)]
        elif name in ("line", "module"):
            columns[name] = _codes(array, about["lines" if name == "line" else "modules"])
        else:
            columns[name] = trace_check.whole_numbers(array, dtype, name)
    uses = table["uses"].combine_chunks()
    return Trace(
        columns=columns,
        uses=trace_check.whole_numbers(uses.values, np.int64, "uses"),
        offsets=trace_check.whole_numbers(uses.offsets, np.int64, "offsets"),
        signature_data=about["signatures"],
        lines=about["lines"],
        modules=about["modules"],
        about=about["about"],
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
    to_text = np.asarray([place[text] for text in array.dictionary.to_pylist()] or [-1], dtype=np.int32)
    indices = array.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.ascontiguousarray(np.where(indices < 0, -1, to_text[np.maximum(indices, 0)]).astype(np.int32))
