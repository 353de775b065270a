"""The waits of the host for the chip, by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.recording.rows import (
    D2H,
    DEVICE_SYNC,
    EVENT_SYNC,
    H2D,
    HOST_INDEX,
    LAUNCH,
    OF_DOWNLOAD,
    OF_UPLOAD,
    PINNED,
    STREAM_SYNC,
    WAITS,
)

if TYPE_CHECKING:
    from bringup.recording.trace import Trace

Array = npt.NDArray[Any]
VALUE_BYTES = 64  # a copy to the host up to this size is a value that the program reads
# CUDA copies up to 64 KB of pageable memory to a buffer first, so it need not wait (see upload_waits in csrc).
STAGED_BYTES = 64 * 1024

WAIT_KINDS = ("upload", "download", "read", "synchronize", "data_dependent")
UPLOAD, DOWNLOAD, READ, SYNCHRONIZE, DATA_DEPENDENT = range(len(WAIT_KINDS))
NOUNS = {  # one, and several
    "upload": ("blocking upload", "blocking uploads"),
    "download": ("blocking download", "blocking downloads"),
    "read": ("read of a value", "reads of values"),
    "synchronize": ("explicit synchronisation", "explicit synchronisations"),
    "data_dependent": ("operator whose result depends on data", "operators whose results depend on data"),
}
HINTS = {  # the remedies in a few words
    "upload": "non_blocking=True from pinned memory does not wait",
    "download": "read less often, or keep it on the chip",
}
BY_MASK = (
    "index",
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "nonzero",
    "masked_select",
)  # torch.where needs no size
MASK_HINT = "not with torch.where"
MOST_LINES = 4  # so many lines of a file are listed
SMALL_HINT = "non_blocking=True does not wait, nor does a value made on the chip"
SMALL_UPLOAD = (
    "create the value on the chip (torch.full((), value, device=...)) or keep it there; up to 64 KiB, "
    "a copy with non_blocking=True does not wait even for pageable memory"
)
REMEDIES = {
    "upload": "copy with non_blocking=True from pinned memory (DataLoader(pin_memory=True), or pin_memory()), "
    "and keep indices of chip tensors on the chip",
    "download": "copy to the host less often, or keep the data on the chip; only data that the host needs later can "
    "be copied without a wait (non_blocking=True to pinned memory)",
    "read": "read values less often, unless the program must act on each: keep sums on the chip and read them every n "
    "steps; torch.where can replace a condition",
    "synchronize": "synchronize only where a time is measured or another device needs the result",
    "data_dependent": "use operators whose result has a fixed size, or call them less often",
}
MASK_REMEDY = (
    "use operators whose result has a fixed size, such as torch.where or masked_fill, "
    "in place of boolean masks and nonzero"
)
SCALER = "aten::_amp_foreach_non_finite_check_and_unscale_"  # of torch.amp.GradScaler
SCALER_REMEDY = (
    "give the optimizer fused=True: its step on the chip knows whether a gradient overflowed, which "
    "GradScaler.step reads otherwise; or use bfloat16, which needs no GradScaler"
)
SPARSE_REMEDY = (
    "use dense tensors: for gradients of embeddings, nn.Embedding(sparse=False) or nn.EmbeddingBag(sparse=False)"
)


@dataclass(frozen=True)
class Waits:
    """The rows of a trace in which the host waits for the chip, in their order.

    Attributes:
        rows: the rows.
        kind: the kind of each, an index into `WAIT_KINDS`.
        copy: the row of the copy that each ends; -1 if it ends none.
    """

    rows: Array
    kind: Array
    copy: Array

    @property
    def implicit(self) -> Waits:
        """Those that the program does not ask for by ``synchronize``."""
        return self.where(self.kind != SYNCHRONIZE)

    def where(self, mask: Array) -> Waits:
        """Return those that a mask selects."""
        return Waits(self.rows[mask], self.kind[mask], self.copy[mask])

    def between(self, first: int, last: int) -> Waits:
        """Return those in the rows from `first` to `last`, without `last`."""
        return self.where((self.rows >= first) & (self.rows < last))


def find_waits(trace: Trace) -> Waits:
    """Return the waits of a trace.

    They are blocking copies in both directions, explicit synchronisations, and operators whose result the host needs.
    An operator that is given an index on the host uploads it.
    """
    columns = trace.columns
    kind, flags = columns["kind"], columns["flags"]
    waiting_launch = (kind == LAUNCH) & ((flags & WAITS) != 0)
    rows = np.flatnonzero(waiting_launch | np.isin(kind, (STREAM_SYNC, DEVICE_SYNC, EVENT_SYNC)))
    copy = _copies_before(columns, rows)
    kinds = np.full(len(rows), SYNCHRONIZE)
    of_stream = kind[rows] == STREAM_SYNC
    kinds[of_stream & ((flags[rows] & OF_UPLOAD) != 0)] = UPLOAD
    ends_download = of_stream & ((flags[rows] & OF_DOWNLOAD) != 0)
    is_value = (copy >= 0) & (columns["bytes"][copy] <= VALUE_BYTES) if len(rows) else ends_download
    kinds[ends_download] = np.where(is_value[ends_download], READ, DOWNLOAD)
    launched = waiting_launch[rows]
    gives_value = np.asarray([_gives_value(data) for data in trace.signature_data], dtype=bool)
    kinds[launched] = np.where(gives_value[columns["signature"][rows[launched]]], READ, DATA_DEPENDENT)
    kinds[launched & ((flags[rows] & HOST_INDEX) != 0)] = UPLOAD  # of the index
    return Waits(rows, kinds, copy)


def own_waits(trace: Trace) -> Waits:
    """Return the waits of a trace without those of a plan, for what it copies to the host through pinned memory."""
    waits, columns = trace.waits, trace.columns
    if trace.about.get("placement") is None:
        return waits
    copied = (columns["kind"][waits.copy] == D2H) & ((columns["flags"][waits.copy] & PINNED) != 0)
    return waits.where((waits.copy < 0) | ~copied)


def _copies_before(columns: dict[str, Array], rows: Array) -> Array:
    """Return for each wait the row of the copy that it ends, -1 if it ends none."""
    kind, flags = columns["kind"], columns["flags"]
    pair = columns["device"].astype(np.int64) * 65536 + columns["stream"]
    ended = np.full(len(rows), -1)
    for flag, direction in ((OF_UPLOAD, H2D), (OF_DOWNLOAD, D2H)):
        ends = (kind[rows] == STREAM_SYNC) & ((flags[rows] & flag) != 0)
        for stream in np.unique(pair[rows[ends]]):
            copies = np.flatnonzero((kind == direction) & (pair == stream))
            waits = np.flatnonzero(ends & (pair[rows] == stream))
            place = np.searchsorted(copies, rows[waits]) - 1
            # A copy of a quantized tensor has a wait, but no row.
            fresh = (place >= 0) & np.concatenate(([True], place[1:] != place[:-1]))
            ended[waits[fresh]] = copies[place[fresh]]
    return ended


def _gives_value(signature: dict[str, Any]) -> bool:
    """Return True if a launch returns no tensor and writes none: it returns a number, as ``aten::equal`` does."""
    return not signature["outputs"] and not any(item is not None and item[4] for item in signature["inputs"])


def is_small(trace: Trace, waits: Waits) -> Array:
    """Return a mask: True for uploads that need no pinned memory to be non-blocking."""
    size = np.where(waits.copy >= 0, trace.columns["bytes"][waits.copy], STAGED_BYTES + 1)
    small: Array = (waits.kind == UPLOAD) & (size <= STAGED_BYTES)
    return small


def is_of_scaler(trace: Trace, waits: Waits) -> Array:
    """Return a mask: True for reads of what GradScaler keeps on the chip, whether a gradient overflowed."""
    columns, mask = trace.columns, np.zeros(len(waits.rows), dtype=bool)
    numbers = [number for number, item in enumerate(trace.signature_data) if item["op"].split(".")[0] == SCALER]
    scaled = (columns["kind"] == LAUNCH) & np.isin(columns["signature"], numbers)
    if not scaled.any():
        return mask
    written = trace.uses[scaled[trace.use_rows] & ((trace.uses & 1) == 1)] >> 1
    reads = (waits.kind == READ) & (waits.copy >= 0) & (trace.offsets[waits.copy] < trace.offsets[waits.copy + 1])
    mask[reads] = np.isin(trace.uses[trace.offsets[waits.copy[reads]]] >> 1, written)
    return mask


def waiting_ops(trace: Trace, rows: Array) -> list[str]:
    """Return the operator of each of these rows; empty for a row that is no launch."""
    launched, signature = trace.columns["kind"][rows] == LAUNCH, trace.columns["signature"][rows]
    return [
        str(trace.signature_data[number]["op"]) if is_launch else ""
        for is_launch, number in zip(launched.tolist(), signature.tolist(), strict=True)
    ]


def remedy(kind: str, *, small: bool = False, ops: Sequence[str] = (), scaler: bool = False) -> str:
    """Return what avoids a wait of this kind.

    `small` is for uploads, see `is_small`, `ops` for operators, and `scaler` for reads, see `is_of_scaler`.
    """
    if scaler:
        return SCALER_REMEDY
    if kind == "data_dependent" and ops:
        if all(op.startswith("sparse::") for op in ops):
            return SPARSE_REMEDY
        if all(short_name(op) in BY_MASK for op in ops):
            return MASK_REMEDY
    return SMALL_UPLOAD if small else REMEDIES[kind]


def hint(kind: str, *, small: bool, ops: Sequence[str]) -> str:
    """Return the remedy in a few words; empty if it needs more."""
    if kind == "data_dependent":
        return MASK_HINT if ops and all(short_name(op) in BY_MASK for op in ops) else ""
    return SMALL_HINT if small else HINTS.get(kind, "")


def short_name(op: str) -> str:
    """Return ``index`` for ``aten::index.Tensor``."""
    return op.split("::")[-1].split(".")[0]


def places(counts: Sequence[tuple[str, int, float]]) -> str:
    """Write where waits are: `` at train.py:3``, `` at train.py:3 and 5``, ``, mostly at train.py:3``.

    Args:
        counts: file, line and number of each line with waits, the most important first; unknown lines have no file.
    """
    named = [item for item in counts if item[0]]
    if not named:
        return ""
    file, line, count = max(named, key=lambda item: item[2])
    if len(counts) == len(named) <= MOST_LINES and len({item[0] for item in named}) == 1:
        numbers = [str(item[1]) for item in sorted(named)]
        last = numbers.pop()
        return f" at {file}:{', '.join(numbers)}{' and ' if numbers else ''}{last}"
    if 2 * count > sum(item[2] for item in counts):
        return f", mostly at {file}:{line}"
    return f" at {len(counts):,} lines, such as {named[0][0]}:{named[0][1]}"


def noun(kind: str, number: float, ops: Sequence[str] = ()) -> str:
    """Write a number of waits: ``1 blocking upload``, ``2.5 reads of values``; with the names of operators."""
    one, several = NOUNS[kind]
    names = ", ".join(dict.fromkeys(short_name(op).strip("_") for op in ops))
    return (
        f"{count_text(number)} {one if count_text(number) == '1' else several}"
        f"{f' ({names})' if kind == 'data_dependent' and names else ''}"
    )


def count_text(number: float) -> str:
    """Write a mean count per step with at most three digits: ``2``, ``1,200``, ``0.25``."""
    return f"{round(number):,}" if abs(number - round(number)) < 1e-9 or number >= 100 else f"{number:.3g}"
