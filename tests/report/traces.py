"""Reads Perfetto's traces by the rules of its trace processor, with the protobuf classes of the package perfetto."""

from __future__ import annotations

import gzip
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

BEGIN, END, _, COUNTER = range(1, 5)
CLEARED = 1


@dataclass
class Slice:
    """A slice; times are nanoseconds."""

    track: str
    process: str
    name: str
    begin: int
    end: int = -1
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def duration(self) -> int:
        return self.end - self.begin


@dataclass
class Contents:
    """What a trace shows; counters are by process and name."""

    processes: dict[str, str] = field(default_factory=dict)  # name -> description
    tracks: set[tuple[str, str]] = field(default_factory=set)
    slices: list[Slice] = field(default_factory=list)
    counters: dict[tuple[str, str], list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    units: dict[tuple[str, str], str] = field(default_factory=dict)
    arrows: list[tuple[Slice, Slice]] = field(default_factory=list)


class Sequence:
    """The state of a packet sequence: its clock, defaults and interned texts."""

    def __init__(self) -> None:
        self.now, self.track = 0, 0
        self.names: dict[int, str] = {}
        self.keys: dict[int, str] = {}
        self.texts: dict[int, str] = {}

    def update(self, packet: Any) -> None:
        if packet.sequence_flags & CLEARED:
            self.__init__()  # type: ignore[misc]
        if packet.HasField("trace_packet_defaults"):
            assert packet.trace_packet_defaults.timestamp_clock_id == 64
            self.track = packet.trace_packet_defaults.track_event_defaults.track_uuid
        if packet.HasField("clock_snapshot"):
            base, own = packet.clock_snapshot.clocks
            assert (base.clock_id, base.timestamp, own.clock_id, own.is_incremental) == (6, 0, 64, True)
            self.now = own.timestamp
        data = packet.interned_data
        self.names |= {entry.iid: entry.name for entry in data.event_names}
        self.keys |= {entry.iid: entry.name for entry in data.debug_annotation_names}
        self.texts |= {entry.iid: entry.str.decode() for entry in data.debug_annotation_string_values}

    def arguments(self, event: Any) -> dict[str, Any]:
        return {
            self.keys[item.name_iid]: self.texts[item.string_value_iid] if item.string_value_iid else item.uint_value
            for item in event.debug_annotations
        }


def read(data: bytes) -> Contents:
    """Return the contents, with events in the order of time."""
    trace = protos.Trace()
    trace.ParseFromString(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    contents, places = Contents(), {}
    sequences: dict[int, Sequence] = defaultdict(Sequence)
    events = []
    processes: dict[int, str] = {}
    for packet in trace.packet:
        assert packet.trusted_packet_sequence_id > 0
        sequence = sequences[packet.trusted_packet_sequence_id]
        sequence.update(packet)
        if packet.HasField("track_descriptor"):
            track = packet.track_descriptor
            if track.HasField("process"):
                processes[track.uuid] = processes[-track.process.pid] = track.process.process_name
                contents.processes[track.process.process_name] = track.description
                continue
            parent = -track.thread.pid if track.HasField("thread") else track.parent_uuid
            place = processes[parent], track.thread.thread_name or track.name
            places[track.uuid] = place
            if track.HasField("counter"):
                contents.units[place] = track.counter.unit_name
            else:
                contents.tracks.add(place)
        if packet.HasField("track_event"):
            sequence.now += packet.timestamp
            events.append((sequence.now, sequence, packet.track_event))
    open_slices: dict[int, list[Slice]] = defaultdict(list)
    flows: dict[int, Slice] = {}
    for moment, sequence, event in sorted(events, key=lambda item: item[0]):  # stable, as the trace processor sorts
        for counter, value in zip(event.extra_counter_track_uuids, event.extra_counter_values, strict=True):
            contents.counters[places[counter]].append((moment, value))
        if event.type == COUNTER:
            contents.counters[places[sequence.track]].append((moment, event.counter_value))
        elif event.type == BEGIN:
            process, track = places[sequence.track]
            piece = Slice(track, process, sequence.names[event.name_iid], moment, -1, sequence.arguments(event))
            open_slices[sequence.track].append(piece)
            contents.slices.append(piece)
            for number in event.flow_ids:
                assert number not in flows, "the arrow before has not ended"
                flows[number] = piece
            for number in event.terminating_flow_ids:
                contents.arrows.append((flows.pop(number), piece))
        else:
            assert event.type == END
            open_slices[sequence.track].pop().end = moment
    assert not flows and not any(open_slices.values())
    return contents
