"""The graph of the typical step: launches and copies, what they cost on either side, and the values between them.

Note [Values]
A value is one version of a storage: one launch makes it, and later ones read it until the storage is written again. If
maker and reader are on different sides, the value is copied once, before its first reader there. A storage that is
alive before the step persists: what the step reads of it before writing it is the last version of the step before. So
is what the step before has left in a storage that this step frees, such as a recurrent state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.errors import BringupError
from bringup.recording.rows import (
    ALLOC,
    D2H,
    FREE,
    H2D,
    LAUNCH,
    OF_DOWNLOAD,
    OF_UPLOAD,
    ON_HOST,
    STREAM_SYNC,
    WAITS,
)
from bringup.recording.trace import Trace
from bringup.timeline.replay import LAUNCH_LATENCY, RowInputs, Timeline, calls_of_placed, on_host_seconds, row_inputs
from bringup.timeline.steady import steady

Array = npt.NDArray[Any]
# Makers of values that no node of the step makes: nothing in a step writes it; the step before has made it on the chip.
OUTSIDE, ALWAYS_ON_CHIP = -1, -2


@dataclass(frozen=True)
class Uses:
    """The values of a step, and who makes and uses them.

    Attributes:
        maker: per value, its node, `OUTSIDE` or `ALWAYS_ON_CHIP`.
        value_bytes: per value, the bytes of its storage.
        reader, read: pairs of a node and a value that it reads, each once.
        holder, held: pairs of a node and a persistent storage that it uses, as an index into `persistent_bytes`.
        held_bytes: per pair, the bytes of the storage that the node reads or writes.
        held_read, held_written: per pair, if the node reads the storage, and if it writes it.
        persistent_bytes: the sizes of the storages that are alive before the step and after it.
        persistent: their numbers in the trace.
    """

    maker: Array
    value_bytes: Array
    reader: Array
    read: Array
    holder: Array
    held: Array
    held_bytes: Array
    held_read: Array
    held_written: Array
    persistent_bytes: Array
    persistent: Array

    @classmethod
    def of_rows(cls, trace: Trace, rows: Array, first: int, last: int, before: int) -> Uses:
        """Return the values of the nodes in these rows, of a step from row `first` to `last`.

        The step before begins at row `before`, which is `first` if there is none.
        """
        columns = trace.columns
        node, place, storage, writes = _uses(trace, rows)
        reads, touched, overwrites = _accesses(trace, rows, node, place, writes)

        names, storage = np.unique(storage, return_inverse=True)
        storage = storage.ravel()
        extent = np.zeros(len(names))
        np.maximum.at(extent, storage, touched)
        reads = reads & ~(overwrites & (touched >= extent[storage]))
        touched = np.minimum(touched, _moved(trace, rows)[node])  # a lookup touches some rows of its table
        allocated = np.flatnonzero(columns["kind"] == ALLOC)
        blocks = _last_of(columns["object"][allocated], columns["bytes"][allocated], names)
        size = np.where(blocks > 0, blocks, extent)
        within = np.flatnonzero(np.isin(columns["kind"][first:last], (ALLOC, FREE))) + first
        born = np.isin(names, columns["object"][within[columns["kind"][within] == ALLOC]])
        freed = within[columns["kind"][within] == FREE]
        # The last step of a recording has the end of the program, which frees what was there all the time.
        recent = np.flatnonzero(columns["kind"][before:last] == ALLOC) + before
        of_end = (freed > rows[-1]) & ~np.isin(columns["object"][freed], columns["object"][recent])
        dies = np.isin(names, columns["object"][freed[~of_end]])

        order = np.lexsort((node, storage))
        node, storage, touched, place = node[order], storage[order], touched[order], place[order]
        reads, writes = reads[order], writes[order]
        writers = np.bincount(storage, writes, len(names)).astype(np.int64)
        version = np.cumsum(writes) - writes - np.repeat(np.cumsum(writers) - writers, np.bincount(storage))
        base = np.cumsum(writers + 1) - (writers + 1)
        owner = np.repeat(np.arange(len(names)), writers + 1)
        maker = np.full(int((writers + 1).sum()), OUTSIDE)
        maker[(base[storage] + version + 1)[writes]] = node[writes]
        maker[base[dies & ~born]] = ALWAYS_ON_CHIP
        value = base[storage] + version
        # What a persistent storage holds before the step is what the step before left in it.
        persists = ~born & ~dies
        from_before = persists[storage] & (version == 0) & (writers[storage] > 0)
        value = np.where(from_before, base[storage] + writers[storage], value)
        # What a step hands to the next one in a new storage was made by the same node of the step before.
        hands, at, use = _handed_on(trace, rows, names[dies & ~born], before, first)
        written = np.flatnonzero(writes)
        written = written[np.lexsort((place[written], node[written]))]
        which = np.searchsorted(_pairs(node[written], place[written]), _pairs(at, use))
        made_by = written[np.minimum(which, max(len(written) - 1, 0))] if len(written) else written
        if len(made_by):
            same = (node[made_by] == at) & (place[made_by] == use)
            handed = np.full(len(names), -1)
            made_by = made_by[same]
            handed[np.searchsorted(names, hands[same])] = base[storage[made_by]] + version[made_by] + 1
            value = np.where((version == 0) & (handed[storage] >= 0), handed[storage], value)
        real = reads & (maker[value] != OUTSIDE) & (maker[value] != node)
        reader, read = np.unique(np.stack([node[real], value[real]]), axis=1)
        held = persists[storage]
        number = np.cumsum(persists) - 1
        holds = (node[held], number[storage[held]], touched[held], reads[held], writes[held])
        return cls(maker, size[owner], reader, read, *holds, size[persists], names[persists])


@dataclass(frozen=True)
class Step(Uses):
    """The typical step of a timeline. Arrays over nodes have one entry per launch and copy, in the host's order.

    Attributes:
        first, last: its first and end row.
        inputs: what the replay needs of all rows.
        rows: the row of every node.
        issue, chip: seconds of the host's call, and of the chip or link.
        call, host: seconds of the host's call, and of its work, if the node runs on the host.
        waits, lag: seconds of the host's call that waits for a node on the chip, and of the chip's latency in it.
        must_be_host, must_be_chip: nodes without a choice.
        sync: the row of the wait that ends a blocking copy; -1 for none.
        slowness: factor of the host's times, for percentiles.
    """

    timeline: Timeline
    first: int
    last: int
    inputs: RowInputs
    rows: Array
    issue: Array
    chip: Array
    call: Array
    host: Array
    waits: Array
    lag: Array
    must_be_host: Array
    must_be_chip: Array
    sync: Array
    slowness: float = 1.0

    def slowed(self, factor: float) -> Step:
        """Return the step on a host whose calls and work all take this many times as long."""
        inputs = replace(
            self.inputs, host_seconds=self.inputs.host_seconds * factor, parts=self.inputs.parts * [1.0, factor, 1.0]
        )
        times = {name: getattr(self, name) * factor for name in ("issue", "call", "host", "waits")}
        return replace(self, inputs=inputs, slowness=self.slowness * factor, **times)

    def __len__(self) -> int:
        """Count the nodes."""
        return len(self.rows)

    @cached_property
    def kind(self) -> Array:
        """The kind of every node's row."""
        kinds: Array = self.timeline.trace.columns["kind"][self.rows]
        return kinds

    @cached_property
    def link_seconds(self) -> tuple[Array, Array]:
        """Per value, the seconds that the link takes to copy it up, and down."""
        link = self.timeline.chip.link
        latency = link.latency_us * 1e-6
        up, down = (latency + self.value_bytes / (rate * 1e9) for rate in (link.h2d_gb_s, link.d2h_gb_s))
        return up, down

    @property
    def copy_seconds(self) -> float:
        """The host's call of a copy."""
        return self.timeline.host.dispatch.copy_us * 1e-6 * self.slowness

    @property
    def sync_seconds(self) -> float:
        """The host's call of a wait."""
        return self.timeline.host.dispatch.synchronize_us * 1e-6 * self.slowness

    def resident_bytes(self, on_chip: Array) -> int:
        """Return the bytes of persistent storages that nodes on the chip use."""
        used = np.zeros(len(self.persistent), dtype=bool)
        used[self.held[on_chip[self.holder]]] = True
        return int(self.persistent_bytes[used].sum())


def step_graph(timeline: Timeline) -> Step:
    """Build the graph of a timeline's typical step.

    Raises:
        BringupError: the recording has no launches, or uses several chips.
    """
    trace, chip, host = timeline.trace, timeline.chip, timeline.host
    first, last, *_ = steady(timeline)
    columns = trace.columns
    kind = columns["kind"][first:last]
    rows = np.flatnonzero(np.isin(kind, (LAUNCH, H2D, D2H))) + first
    if not (kind == LAUNCH).any():
        raise BringupError("the recording's typical step has no launches: there is nothing to place")
    if (columns["object"][rows][columns["kind"][rows] != LAUNCH] == ON_HOST).any() or timeline.placed in set(
        timeline.fallback[rows].tolist()
    ):
        raise BringupError("the recording is that of a placed run: plan from a recording without --place")
    devices = np.unique(columns["device"][rows])
    if len(devices) > 1:
        raise BringupError(f"the recording uses {len(devices)} chips: placement plans for one chip and its host")
    inputs = row_inputs(trace, chip, host, host_clock=timeline.host_clock, prices=timeline.prices)
    if min(inputs.host_seconds[rows].min(), inputs.seconds[rows].min()) < 0:
        raise BringupError("the recording has negative times, so nothing can be placed: record the program again")
    launched = columns["kind"][rows] == LAUNCH
    unsupported = inputs.fallback[rows] >= 0
    measured = timeline.host_clock == "measured"
    sync = _syncs(columns, first, last, rows)
    waits = launched & ((inputs.flags[rows] & WAITS) != 0)
    synchronize = host.dispatch.synchronize_us * 1e-6
    marks = trace.step_work.rows
    before = int(marks[max(int(np.searchsorted(marks, first)) - 1, 0)])
    uses = Uses.of_rows(trace, rows, first, last, min(before, first))
    return Step(
        timeline=timeline,
        first=first,
        last=last,
        inputs=inputs,
        rows=rows,
        issue=inputs.host_seconds[rows],
        chip=np.where(unsupported, 0.0, inputs.seconds[rows]),
        call=inputs.host_seconds[rows] if measured else calls_of_placed(trace, host, rows),
        host=on_host_seconds(trace, host)[rows],
        waits=np.where(sync >= 0, synchronize, 0.0),
        lag=np.where(waits | (sync >= 0), LAUNCH_LATENCY, 0.0),
        must_be_host=unsupported,
        must_be_chip=launched & (columns["object"][rows] > 0),
        sync=sync,
        **vars(uses),
    )


def _syncs(columns: dict[str, Array], first: int, last: int, rows: Array) -> Array:
    """Return for every node the row of the wait that ends it, if it is a blocking copy; else -1."""
    wait_of = np.full(len(rows), -1)
    for which, flag in ((H2D, OF_UPLOAD), (D2H, OF_DOWNLOAD)):
        copies = np.flatnonzero(columns["kind"][rows] == which)
        waits = np.flatnonzero(
            (columns["kind"][first:last] == STREAM_SYNC) & (columns["flags"][first:last] & flag != 0)
        )
        waits += first
        place = np.searchsorted(waits, rows[copies])
        following = np.append(waits, last)[place]
        until = np.append(rows[copies][1:], last)  # the wait of a copy comes before the next copy
        blocking = following < until
        same_thread = columns["thread"][np.minimum(following, last - 1)] == columns["thread"][rows[copies]]
        wait_of[copies] = np.where(blocking & same_thread, following, -1)
    return wait_of


def _uses(trace: Trace, rows: Array) -> tuple[Array, Array, Array, Array]:
    """Return for every use of the rows: its row's number among them, its place in it, the storage, and if written."""
    begins, counts = trace.offsets[rows], np.diff(trace.offsets)[rows]
    node = np.repeat(np.arange(len(rows)), counts)
    place = np.arange(len(node)) - np.repeat(np.cumsum(counts) - counts, counts)
    uses = trace.uses[np.repeat(begins, counts) + place]
    return node, place, uses >> 1, (uses & 1) != 0


def _pairs(node: Array, place: Array) -> Array:
    """Return one number per node and place within it, in their order."""
    pairs: Array = node.astype(np.int64) * (1 << 32) + place
    return pairs


def _handed_on(trace: Trace, rows: Array, storages: Array, before: int, first: int) -> tuple[Array, Array, Array]:
    """Return which of the storages the step before has written, and by which node and use.

    Empty if the step before did not launch the same.
    """
    columns = trace.columns
    earlier = np.flatnonzero(np.isin(columns["kind"][before:first], (LAUNCH, H2D, D2H))) + before
    alike = len(earlier) == len(rows) and all(
        (columns[name][earlier] == columns[name][rows]).all() for name in ("kind", "signature")
    )
    if not alike:
        return (np.zeros(0, dtype=np.int64),) * 3
    node, place, storage, writes = _uses(trace, earlier)
    picked = np.flatnonzero(writes & np.isin(storage, storages))
    order = picked[np.lexsort((node[picked], storage[picked]))]
    ends = np.flatnonzero(np.diff(storage[order], append=-1) != 0)  # the last write of each
    last = order[ends]
    return storage[last], node[last], place[last]


def _moved(trace: Trace, rows: Array) -> Array:
    """Return the most bytes that each row can touch."""
    columns = trace.columns
    launched = columns["kind"][rows] == LAUNCH
    moved: Array = columns["bytes"][rows].astype(np.float64)
    moved[launched] = trace.work.bytes[columns["signature"][rows[launched]]]
    return moved


def _last_of(keys: Array, values: Array, names: Array) -> Array:
    """Return the last value of every name among the keys; 0 if it is not among them."""
    order = np.argsort(keys, kind="stable")
    place = np.searchsorted(keys[order], names, side="right") - 1
    hit = (place >= 0) & (keys[order][np.maximum(place, 0)] == names) if len(keys) else np.zeros(len(names), bool)
    return np.where(hit, values[order][np.maximum(place, 0)] if len(keys) else 0, 0)


def _accesses(trace: Trace, rows: Array, node: Array, place: Array, writes: Array) -> tuple[Array, Array, Array]:
    """Return for every use if the row reads it, the bytes that it touches, and if it is written without being read."""
    columns = trace.columns
    launched = columns["kind"][rows] == LAUNCH
    signature = np.where(launched, columns["signature"][rows], -1)
    table: dict[int, tuple[int, int]] = {}  # signature -> its place in the columns below, and its input storages
    touched: list[int] = []
    reads: list[bool] = []
    overwrites: list[bool] = []
    for number in np.unique(signature[launched]).tolist():
        item = trace.signatures[number]
        inputs = [tensor for tensor in item.tensors if tensor.storage >= 0]
        storages = 1 + max((tensor.storage for tensor in inputs), default=-1)
        outputs = [tensor.nbytes for tensor in item.outputs if tensor is not None]
        table[number] = (len(touched), storages + len(outputs))
        for storage in range(storages):
            tensors = [tensor for tensor in inputs if tensor.storage == storage]
            touched.append(max((tensor.nbytes for tensor in tensors), default=0))
            reads.append(True)
            overwrites.append(item.overwrites and all(tensor.written for tensor in tensors))
        touched += outputs
        reads += [False] * len(outputs)
        overwrites += [True] * len(outputs)
    starts = np.zeros(max(table, default=0) + 1, dtype=np.int64)
    sizes = np.zeros_like(starts)
    for number, (start, count) in table.items():
        starts[number], sizes[number] = start, count
    of_launch = launched[node]
    number = np.maximum(signature[node], 0)
    listed = of_launch & (place < sizes[number])
    index = np.where(listed, starts[number] + place, 0)
    bytes_of_copy = columns["bytes"][rows][node]

    def column(values: list[Any], of_copy: Array, otherwise: Any) -> Array:
        table_column = np.asarray(values if values else [0])
        return np.where(listed, table_column[index], np.where(of_launch, otherwise, of_copy))

    return (
        column(reads, np.ones(len(node), dtype=bool), False).astype(bool),
        column(touched, bytes_of_copy, 0).astype(np.float64),
        column(overwrites, writes, True).astype(bool),
    )
