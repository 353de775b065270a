"""The examples of docs/replay.md, and what the replay does with rows beyond them."""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bringup.recording.rows import KINDS, ON_HOST, WAITS
from bringup.timeline.library import Replay
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "replay.md").read_text(encoding="utf-8")
CALL, LATENCY = 10.0, 5.0
FREE_OF_CHARGE = ("host", "signal", "resume")  # what is no call of torch
NAMES = {"launch": "launch", "fallback": "launch", "up": "h2d", "down": "d2h", "copy": "d2d", "record": "event_record"}
NAMES |= {"wait": "event_wait", "sleep": "host", "signal": "signal", "resume": "resume"}


@dataclass
class Example:
    """A table of the page: the machine, and (call, starts, ends, host goes on); "" where the table says nothing."""

    title: str
    machine: dict[str, float]
    rows: list[tuple[str, str, str, str]]


def examples() -> list[Example]:
    found = []
    for section in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        said = re.search(r"^Machine: (.*)$", body, re.MULTILINE)
        machine: dict[str, float] = {"queue": 1024, "copies": 2, "kernels": 16, "contention": 1}
        if said:
            machine |= {name: float(number) for name, number in (part.split() for part in said[1].split(", "))}
        table = re.findall(r"^\| `(.*?)` \| *(\S*) *\| *(\S*) *\| *(\S*) *\|$", body, re.MULTILINE)
        found.append(Example(title, machine, table))
    return found


def columns_of(calls: list[str]) -> dict[str, list[Any]]:
    """Rows of a trace, with seconds in microseconds."""
    events: dict[str, int] = {}
    columns: dict[str, list[Any]] = {name: [] for name in ("kind", "flags", "device", "stream", "thread", "object")}
    columns |= {name: [] for name in ("host", "seconds", "share", "fallback", "parts")}
    for call in calls:
        thread, _, rest = call.rpartition(": ")
        device, words = 0, rest.split()
        if words[0].startswith("chip:"):
            device = int(words.pop(0).removeprefix("chip:"))
        what = words.pop(0)
        row: dict[str, Any] = {"flags": 0, "device": device, "stream": -1, "object": 0, "seconds": 0.0, "share": 1.0}
        row |= {"thread": int(thread.removeprefix("t") or 0), "fallback": -1}
        name = NAMES.get(what, "")
        if what == "sync":
            whom = words.pop(0)
            name = "device_sync" if whom == "chip" else "stream_sync" if re.fullmatch(r"s\d+", whom) else "event_sync"
            if name == "stream_sync":
                row["stream"] = int(whom[1:])
            row["object"] = events.get(whom, 0)
        elif what in ("record", "wait", "signal", "resume"):
            row["object"] = events.setdefault(words.pop(0), len(events) + 1)
        elif what == "sleep":
            row["seconds"] = float(words.pop(0))
        if words and re.fullmatch(r"s\d+", words[0]):
            row["stream"] = int(words.pop(0)[1:])
        if what == "fallback":
            row["fallback"] = len(columns["parts"]) // 3
            columns["parts"] += [float(words.pop(0)) for _ in range(3)]
        elif what in ("launch", "up", "down", "copy"):
            row["seconds"] = float(words.pop(0))
        while words:
            word = words.pop(0)
            if word == "share":
                row["share"] = float(words.pop(0))
            elif word == "graph":
                row["object"] = int(words.pop(0))
            elif word == "placed":
                row["object"] = ON_HOST
            elif word == "from":
                row["object"] = int(words.pop(0).removeprefix("chip:"))
            else:
                assert word == "waits", call
                row["flags"] = WAITS
        row["kind"] = KINDS.index(name)
        inside = name == "launch" and 0 < row["object"] == (columns["object"] or [0])[-1]  # of the same replay
        row["host"] = 0.0 if name in FREE_OF_CHARGE or inside else CALL
        for key, value in row.items():
            columns[key].append(value)
    return columns


def replayed(calls: list[str], machine: dict[str, float], piece: int = 0) -> tuple[Any, Any, Any, Any]:
    """Issue, start, end and wait of every call, in microseconds; `piece` rows are fed at a time, or all."""
    columns = columns_of(calls)
    arrays = {"host_seconds" if name == "host" else name: np.asarray(values) for name, values in columns.items()}
    parts = arrays.pop("parts")
    sizes = [int(machine[name]) for name in ("queue", "copies", "kernels")]
    replay = Replay(LATENCY, *sizes, machine.get("contention", 1.0))
    try:
        for first in range(0, len(calls), piece or len(calls)):
            rows = slice(first, first + (piece or len(calls)))
            replay.feed({name: array[rows] for name, array in arrays.items()}, parts)
        issued, start, end, waited = replay.results()
    finally:
        replay.close()
    return issued, start, end, waited


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.title)
def test_example_of_the_page(example: Example) -> None:
    calls = [row[0] for row in example.rows]
    issued, start, end, waited = replayed(calls, example.machine)
    for place, (call, starts, ends, goes_on) in enumerate(example.rows):
        moment = (
            end[place]
            if call.split(": ")[-1].startswith(("sleep", "resume", "fallback")) or call.endswith("placed")
            else issued[place] + waited[place]
        )
        assert moment == pytest.approx(float(goes_on)), (call, "host goes on", moment)
        if starts:
            assert (start[place], end[place]) == pytest.approx((float(starts), float(ends))), call


def test_page_has_enough_examples() -> None:
    assert len(examples()) >= 20 and all(example.rows for example in examples())


STREAMS = st.sampled_from(["s1", "s2", "s3"])
LENGTHS = st.sampled_from([1, 7, 30, 100, 1000])
EVENTS = st.sampled_from(["a", "b"])
CALLS = st.one_of(
    st.builds("launch {} {} share {}".format, STREAMS, LENGTHS, st.sampled_from([0.25, 0.5, 1.0])),
    st.builds("launch {} {} waits".format, STREAMS, LENGTHS),
    st.builds("{} {} {}".format, st.sampled_from(["up", "down"]), STREAMS, LENGTHS),
    st.builds("copy {} {} from chip:1".format, STREAMS, LENGTHS),
    st.builds("{} {} {}".format, st.sampled_from(["record", "wait"]), EVENTS, STREAMS),
    st.builds("sync {}".format, st.one_of(STREAMS, EVENTS, st.just("chip"))),
    st.builds("fallback {} 5 {} 5".format, STREAMS, LENGTHS),
)
MACHINES = st.fixed_dictionaries(
    {"queue": st.sampled_from([1, 2, 1024]), "copies": st.sampled_from([1, 2]), "kernels": st.sampled_from([1, 2, 16])}
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(CALLS, max_size=40), MACHINES)
def test_rules_hold_in_any_program(calls: list[str], machine: dict[str, float]) -> None:
    """Streams run in order, engines and cores are never overbooked, and nothing could have started earlier."""
    if not calls:
        return
    issued, start, end, waited = replayed(calls, machine)
    columns = columns_of(calls)
    done: dict[int, float] = {}  # stream -> end of its latest operation
    ready = {}
    reached: dict[int, float] = {}
    for row, call in enumerate(calls):
        kind, stream = KINDS[columns["kind"][row]], columns["stream"][row]
        assert end[row] >= start[row] >= issued[row] - 1e-9 and waited[row] >= 0
        assert row == 0 or issued[row] >= issued[row - 1] + waited[row - 1] + CALL - 1e-9  # one thread
        if "sync" in kind or kind not in NAMES.values():
            continue
        if kind == "event_wait":
            done[stream] = max(done.get(stream, 0.0), reached.get(columns["object"][row], 0.0))
            continue
        full = waited[row] if kind == "launch" and machine["queue"] < 3 and "waits" not in call else 0.0
        latency = 0.0 if kind == "event_record" or "fallback" in call else LATENCY + full
        ready[row] = max(issued[row] + latency, done.get(stream, 0.0))
        assert start[row] >= ready[row] - 1e-9 or (machine["queue"] < 3 and "waits" in call), call
        done[stream] = end[row]
        if kind == "event_record":
            reached[columns["object"][row]] = end[row]
    kernels = [row for row, call in enumerate(calls) if call.startswith("launch")]
    for row in kernels:
        others = [(start[k], end[k], columns["share"][k]) for k in kernels if k != row]
        overlapping = [share for low, high, share in others if low <= start[row] < high]
        assert sum(overlapping) + columns["share"][row] <= 1.0 + 1e-9 or not overlapping
        assert len(overlapping) < machine["kernels"]
        if machine["queue"] > 2 and start[row] > ready[row] + 1e-9:  # some kernel, or none, ended just then
            assert any(abs(high - start[row]) < 1e-9 for _, high, _ in others), calls[row]
    for row in kernels:
        if "waits" in calls[row]:
            continue
        accepted, earlier = issued[row] + waited[row], [end[k] for k in kernels if k < row]
        assert sum(moment > accepted + 1e-9 for moment in earlier) < machine["queue"]
        if waited[row] > 1e-9:  # and not before there was room
            assert sum(moment > accepted - 1e-6 for moment in earlier) >= machine["queue"]
    for engine in (("up", "down"),) if machine["copies"] == 1 else (("up",), ("down",)):
        spans = sorted((start[row], end[row]) for row, call in enumerate(calls) if call.startswith(engine))
        assert all(first[1] <= second[0] + 1e-9 for first, second in pairwise(spans))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(CALLS, min_size=2, max_size=30), MACHINES, st.integers(1, 5))
def test_rows_that_come_in_pieces_give_the_same(calls: list[str], machine: dict[str, float], piece: int) -> None:
    at_once, in_pieces = replayed(calls, machine), replayed(calls, machine, piece)
    for one, other in zip(at_once, in_pieces, strict=True):
        assert np.array_equal(one, other)


def test_event_that_was_recorded_before_is_reached() -> None:
    _, start, _, _ = replayed(["wait e s1", "launch s1 10"], {"queue": 1024, "copies": 2, "kernels": 16})
    assert start[1] == 25
