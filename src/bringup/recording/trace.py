"""A trace: the record of a program's launches, and its file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.cost.signature import Signature
from bringup.cost.work_table import WorkTable
from bringup.errors import TraceError
from bringup.machine.topology import Topology, load_cluster
from bringup.recording import archive, trace_check
from bringup.recording.rows import KINDS, LAUNCH, OWNER, PHASES
from bringup.recording.step_work import StepWork, find_work
from bringup.recording.steps import Steps, find_steps
from bringup.recording.waits import Waits, find_waits
from bringup.text import html_table, quantity, short

VERSION = 3
Column = npt.NDArray[Any]


@dataclass(repr=False, eq=False)
class Trace:
    """The record of a program's launches, copies, allocations and waits: one row each, in the host's order.

    Attributes:
        columns: name -> one value per row; ``signature``, ``line`` and ``module`` index the lists below (-1: none).
        uses: storage * 2 + written, of all rows; row i has ``uses[offsets[i]:offsets[i + 1]]``.
        about: program, chip and torch version; ``redirected``, the CUDA names that it used; ``compiled_graphs``,
            ``recompilations`` and ``graph_breaks`` of torch.compile; ``dry``, True if nothing was computed;
            ``held_bytes`` and ``held_reserved_bytes``, the bytes that tensors and the allocator held on each device at
            the beginning; ``cluster`` and ``ranks`` of a program on several chips, and the ``rank`` of this recording.
        stacks: chains of frames, which the column ``stack`` of some recordings indexes: for each its caller's chain
            (-1: none), which comes before it, the line of its innermost frame, and that frame's function.
    """

    columns: dict[str, Column]
    uses: Column
    offsets: Column
    signature_data: list[dict[str, Any]]
    lines: list[str]
    modules: list[str]
    about: dict[str, Any] = field(default_factory=dict)
    stacks: list[tuple[int, int, str]] = field(default_factory=list)

    def _repr_html_(self) -> str:
        """Return a table for a notebook."""
        rows = [
            ("launches", f"{self.launches:,}"),
            ("kinds of launch", f"{len(self.signature_data):,}"),
            ("steps", f"{len(self.steps.ends):,}"),
            ("lines", f"{len(self.lines):,}"),
            ("modules", f"{len(self.modules):,}"),
        ]
        return html_table(f"recording on {self.about.get('chip', 'a chip')}", rows)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.columns["kind"])

    def __repr__(self) -> str:
        """Return how much was recorded as text, on one line."""
        return f"<Trace: {quantity(self.launches, 'launch')} in {quantity(len(self), 'row')}>"

    @cached_property
    def cluster(self) -> Topology | None:
        """The cluster on which collectives are priced; None if the recording names none."""
        return load_cluster(str(self.about["cluster"])) if self.about.get("cluster") else None

    @cached_property
    def signatures(self) -> list[Signature]:
        """The distinct kinds of launch."""
        return [Signature.parse(data) for data in self.signature_data]

    @cached_property
    def work(self) -> WorkTable:
        """The work of the distinct kinds of launch."""
        return WorkTable.from_signatures(self.signatures)

    @cached_property
    def owned_storages(self) -> Column:
        """For every storage, True if it is a parameter or a buffer."""
        owned = self.columns["object"][self.columns["kind"] == OWNER]
        size = int(max((self.uses >> 1).max(initial=-1), owned.max(initial=-1))) + 1
        is_owned: Column = np.zeros(size, dtype=bool)
        is_owned[owned] = True
        return is_owned

    @cached_property
    def use_rows(self) -> Column:
        """For every use, its row."""
        rows: Column = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        return rows

    @cached_property
    def waits(self) -> Waits:
        """The host's waits for the chip."""
        return find_waits(self)

    @cached_property
    def steps(self) -> Steps:
        """The program's steps."""
        return find_steps(self)

    @cached_property
    def step_work(self) -> StepWork:
        """The work of the program's steps."""
        return find_work(self)

    @property
    def launches(self) -> int:
        """Count the launches."""
        return int(np.count_nonzero(self.columns["kind"] == LAUNCH))

    def line_of(self, row: int) -> str:
        """Return the line of the program from which a row was called; empty if it is not known."""
        line = int(self.columns["line"][row])
        return self.lines[line] if line >= 0 else ""

    def longest_line(self, rows: Column, weights: Column) -> str:
        """Return the source line with the largest total weight among these rows; empty if none of them has a line."""
        lines = self.columns["line"][rows]
        if not (lines >= 0).any():
            return ""
        totals = np.bincount(lines[lines >= 0], weights[lines >= 0], len(self.lines))
        return self.lines[int(totals.argmax())]

    def table(self) -> dict[str, Any]:
        """Return the columns of the rows, with texts instead of codes.

        ``pandas.DataFrame(trace.table())`` and ``polars.DataFrame(trace.table())`` are tables of the trace.
        """
        columns = self.columns
        ops, shapes = ([getattr(signature, name) for signature in self.signatures] for name in ("op", "shapes"))
        ends = self.offsets.tolist()
        uses = self.uses.tolist()
        return {
            "kind": _texts(columns["kind"], KINDS),
            "op": _texts(columns["signature"], ops),
            "shapes": _texts(columns["signature"], shapes),
            "line": _texts(columns["line"], self.lines),
            "module": _texts(columns["module"], self.modules),
            "phase": _texts(columns["phase"], PHASES),
            **{name: columns[name] for name in ("device", "stream", "thread", "views", "signature", "flags")},
            **{name: columns[name] for name in ("host_ns", "bytes", "object")},
            "uses": [uses[first:last] for first, last in pairwise(ends)],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a trace file, whole or not at all. ``numpy.load`` reads it, too.

        Raises:
            TraceError: the name does not end in ``.npz``.
        """
        if not os.fspath(path).lower().endswith(".npz"):
            raise TraceError(f"{path}: a trace is an npz file: save it under a name that ends in .npz")
        about = {
            "version": VERSION,
            "about": self.about,
            "signatures": self.signature_data,
            "lines": self.lines,
            "modules": self.modules,
            **({"stacks": self.stacks} if self.stacks else {}),
        }
        text = json.dumps(about, sort_keys=True).encode()
        archive.write(path, text, {**self.columns, "use_count": np.diff(self.offsets), "uses": self.uses})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a trace file. Never executes what the file holds.

        Raises:
            TraceError: the file is missing, truncated, damaged, not a trace, or of another version.
        """
        file = Path(path)
        text, columns = archive.read(file)
        try:
            about = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TraceError(f"{file}: is a damaged trace ({short(str(error), 200)}): record it again") from None
        version = about.get("version") if isinstance(about, dict) else None
        if version != VERSION:
            shown = short(repr(version))
            raise TraceError(f"{file}: is a trace of version {shown}, this bringup reads {VERSION}: record it again")
        try:
            trace_check.check_description(about)
            uses, counts = columns.pop("uses"), columns.pop("use_count")
            offsets = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
            described = (about[name] for name in ("signatures", "lines", "modules", "about"))
            trace = cls(columns, uses, offsets, *described)
            trace.stacks = [tuple(item) for item in about.get("stacks", [])]
            trace_check.check_rows(trace)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
            is_damaged = isinstance(error, trace_check.Damaged)
            reason = short(str(error) if is_damaged else f"{type(error).__name__}: {error}", 300)
            raise TraceError(f"{file}: is a damaged trace ({reason}): record it again") from None
        return trace


def _texts(codes: Column, texts: Sequence[str]) -> list[str | None]:
    by_code = [*texts, None]  # -1 is the last
    return [by_code[code] for code in codes.tolist()]
