"""Perfetto's binary traces, written from arrays. The numbers of fields are those of perfetto/trace/trace_packet.proto.

A track is a packet sequence of its own: its names are interned, and its times are those since its preceding event.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.files import written_whole
from bringup.protobuf import field, varint

Array = npt.NDArray[Any]
# Nanoseconds by which an event may be moved, so that equal steps have equal bytes; chosen: far below any launch.
TOLERANCE = 4
_CHUNK = 1 << 16  # events that are written at once
_BEGIN, _END = b"\x48\x01", b"\x48\x02"  # TrackEvent.type
_CLOCK = 64  # of a sequence, and incremental; 6 is BOOTTIME, the clock of the whole trace


def begins(arrow: int) -> bytes:
    """Return the part of an event at which an arrow begins. Its number is free again after its end."""
    return b"\xf9\x02" + arrow.to_bytes(8, "little")  # flow_ids, fixed64


def ends(arrow: int) -> bytes:
    """Return the part of an event at which an arrow ends."""
    return b"\x81\x03" + arrow.to_bytes(8, "little")  # terminating_flow_ids, fixed64


def counts(counter: int, value: int) -> bytes:
    """Return the part of an event that sets a counter. An event has at most `COUNTERS` of them."""
    return field(31, counter) + field(12, value)  # extra_counter_track_uuids, extra_counter_values


COUNTERS = 8  # the trace processor's kMaxNumExtraCounters


class Writer:
    """Tracks and their events; `packets` has the trace. `arrows` is the largest number of an arrow."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.arrows = 0
        self._tracks: list[bytes] = []
        self._events: list[Iterator[bytes]] = []

    def process(self, name: str, about: str = "") -> int:
        """Add a process and return its track."""
        pid = len(self._tracks) + 1
        described = field(14, about) if about else b""
        return self._add(name, described + field(3, field(1, pid) + field(6, name)) + field(11, 3))  # explicit order

    def thread(self, process: int, name: str) -> int:
        """Add a thread of a process and return its track."""
        return self._add(name, field(4, field(1, process) + field(2, len(self._tracks) + 1) + field(5, name)))

    def track(self, process: int, name: str) -> int:
        """Add a track below a process that is no thread, and return it."""
        return self._add(name, field(5, process) + field(2, name) + field(12, len(self._tracks)))

    def counter(self, process: int, name: str, unit: str = "") -> int:
        """Add a counter of a process and return its track."""
        return self._add(
            name, field(5, process) + field(2, name) + field(8, field(6, unit)) + field(12, len(self._tracks))
        )

    def _add(self, name: str, described: bytes) -> int:
        self.names.append(name)
        uuid = len(self._tracks) + 1
        self._tracks.append(field(60, field(1, uuid) + described))
        return uuid

    def slices(
        self,
        track: int,
        times: Array,
        which: Array,
        kinds: Sequence[tuple[str, Mapping[str, str | int]]],
        parts: list[bytes] | None = None,
    ) -> None:
        """Add the slices of a track.

        Args:
            track: a thread, or another track that is no counter.
            times: seconds, in order: begin and end of every slice in turns.
            which: the kind of every slice.
            kinds: the name and the arguments that slices share.
            parts: `begins`, `ends` and `counts` of every event.
        """
        names: dict[str, int] = {}
        keys: dict[str, int] = {}
        texts: dict[str, int] = {}
        bodies = []
        for name, arguments in kinds:
            body = _BEGIN + field(10, names.setdefault(name, len(names) + 1))
            for key, value in arguments.items():
                data = field(17, texts.setdefault(value, len(texts) + 1)) if isinstance(value, str) else field(3, value)
                body += field(4, field(1, keys.setdefault(key, len(keys) + 1)) + data)
            bodies.append(body)
        interned = b"".join(
            field(number, field(1, identifier) + field(2, text))
            for number, table in ((2, names), (3, keys), (29, texts))
            for text, identifier in table.items()
        )
        numbers = np.full(2 * len(which), len(bodies), dtype=np.int64)
        numbers[::2] = which
        self._sequence(track, times, [*bodies, _END], numbers, parts, field(12, interned))

    def values(self, counter: int, times: Array, values: Array) -> None:
        """Add values of a counter, which are no part of a slice."""
        different, numbers = np.unique(values, return_inverse=True)
        bodies = [b"\x48\x04" + field(30, value) for value in different.tolist()]
        self._sequence(counter, times, bodies, numbers, None, b"")

    def _sequence(
        self, track: int, times: Array, bodies: list[bytes], numbers: Array, parts: list[bytes] | None, interned: bytes
    ) -> None:
        clocks = field(1, field(1, 6) + field(2, 0)) + field(1, field(1, _CLOCK) + field(2, 0) + field(3, 1))
        defaults = field(59, field(58, _CLOCK) + field(11, field(11, track)))
        begin = field(13, 1) + defaults + interned + field(6, clocks + field(2, 6))  # 13: the sequence's state is new
        sequence = field(10, track)
        self._events.append(chain([field(1, sequence + begin)], _events(sequence, times, bodies, numbers, parts)))

    def packets(self) -> Iterator[bytes]:
        """Yield the trace in pieces."""
        yield b"".join(field(1, field(10, len(self._tracks) + 1) + track) for track in self._tracks)
        yield from chain.from_iterable(self._events)


def _events(
    sequence: bytes, times: Array, bodies: list[bytes], numbers: Array, parts: list[bytes] | None
) -> Iterator[bytes]:
    """Yield packets of track events, assembled from tables: a million launches have four million of them."""
    steps = np.diff(ticks(times), prepend=0)
    sizes = np.array([len(body) for body in bodies])
    for first in range(0, len(times), _CHUNK):
        here = slice(first, first + _CHUNK)
        numbers_here = numbers[here]
        added = parts[here] if parts is not None else [b""] * len(numbers_here)
        inside = sizes[numbers_here] + np.fromiter(map(len, added), np.int64, len(added))
        different, which = np.unique(steps[here], return_inverse=True)
        stamps = [field(8, step) for step in different.tolist()]
        heads = [sequence + b"\x5a" + varint(size) for size in range(int(inside.max(initial=0)) + 1)]
        lengths = np.array([len(stamp) for stamp in stamps])[which] + np.array([len(head) for head in heads])[inside]
        lengths += inside
        packets = [b"\x0a" + varint(size) for size in range(int(lengths.max(initial=0)) + 1)]
        columns: Iterable[Iterable[bytes]] = (
            map(packets.__getitem__, lengths.tolist()),
            map(stamps.__getitem__, which.tolist()),
            map(heads.__getitem__, inside.tolist()),
            map(bodies.__getitem__, numbers_here.tolist()),
            added,
        )
        yield b"".join(chain.from_iterable(zip(*columns, strict=True)))


def ticks(times: Array) -> Array:
    """Return times in nanoseconds, at most `TOLERANCE` off, in which equal intervals mostly have equal lengths.

    Each interval is rounded by itself, and what this adds up to is corrected when it reaches the tolerance. If times
    were rounded, a step that takes 0.4 ns more than a whole number would be written in many ways.
    """
    exact = np.diff(times, prepend=0.0) * 1e9
    rounded = np.rint(exact)
    error = times * 1e9 - np.cumsum(rounded)
    corrected = np.cumsum(rounded) + (2 * TOLERANCE - 1) * np.rint(error / (2 * TOLERANCE - 1))
    done: Array = np.maximum.accumulate(corrected).astype(np.int64)
    return done


def write(path: str | Path, packets: Iterable[bytes], name: str = "") -> None:
    """Write a trace to a file, compressed if its path ends in ``.gz``; an error changes no file.

    Args:
        path: of the file.
        packets: the trace.
        name: in the header of a compressed file, where it can be read as it is.
    """
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        if str(path).endswith(".gz"):
            with gzip.GzipFile(name, "wb", 6, file, mtime=0) as packed:  # equal timelines have equal files
                packed.writelines(packets)
        else:
            file.writelines(packets)
