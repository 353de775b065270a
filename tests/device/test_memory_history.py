"""The allocator's history of the device chip."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

memory = torch.chip.memory
MIB = 1 << 20


@pytest.fixture(autouse=True)
def history() -> Iterator[None]:
    torch.chip.synchronize()
    torch.chip.empty_cache()
    yield
    memory._record_memory_history(None, clear_history=True)


def actions() -> list[str]:
    return [event["action"] for event in memory._snapshot()["device_traces"][0]]


def test_events_are_in_order_and_name_the_line() -> None:
    memory._record_memory_history(clear_history=True)
    x = torch.empty(30 * MIB, dtype=torch.uint8, device="chip")
    address = x.data_ptr()
    del x
    torch.chip.empty_cache()
    events = [event for event in memory._snapshot()["device_traces"][0] if event["action"] != "snapshot"]
    assert [event["action"] for event in events] == [
        *("segment_alloc", "alloc", "free_requested", "free_completed", "segment_free")
    ]
    assert {event["addr"] for event in events} == {address} and {event["size"] for event in events} == {30 * MIB}
    assert events == sorted(events, key=lambda event: event["time_us"])
    for event in events:
        assert any(frame["filename"] == __file__ for frame in event["frames"]), event


def test_contexts_choose_the_stacks() -> None:
    for context, counts in ((None, [0, 0]), ("state", [0, 0]), ("alloc", [1, 0]), ("all", [1, 1])):
        memory._record_memory_history(context=context, stacks="python", clear_history=True)
        x = torch.empty(5, device="chip")
        data = memory._snapshot()
        held = [b for s in data["segments"] for b in s["blocks"] if b["address"] == x.data_ptr()]
        assert bool(held[0]["frames"]) == (context is not None)
        del x
        events = {event["action"]: event for event in memory._snapshot()["device_traces"][0]}
        assert [bool(events[name]["frames"]) for name in ("alloc", "free_requested")] == counts, context


def test_the_oldest_events_are_forgotten() -> None:
    memory._record_memory_history(max_entries=2, skip_actions=["snapshot", "segment_alloc"], clear_history=True)
    held = [torch.empty(5, device="chip") for _ in range(4)]
    assert len(held) == 4 and actions() == ["alloc", "alloc"]
    memory._record_memory_history("state", clear_history=True)
    torch.empty(5, device="chip")
    assert len(actions()) == 1


def test_a_snapshot_needs_no_history(tmp_path: Path) -> None:
    x = torch.empty(5, device="chip")
    memory._dump_snapshot(str(tmp_path / "snapshot.pickle"))
    data = pickle.loads((tmp_path / "snapshot.pickle").read_bytes())
    blocks = [block for segment in data["segments"] for block in segment["blocks"] if block["address"] == x.data_ptr()]
    assert (blocks[0]["size"], blocks[0]["requested_size"]) == (512, 20) and blocks[0]["state"] == "active_allocated"
    if hasattr(torch.accelerator.memory, "_snapshot"):
        assert torch.accelerator.memory._snapshot()["segments"] == data["segments"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"enabled": "some"}, "some"),
        ({"context": "free"}, "free"),
        ({"stacks": "c"}, "'c'"),
        ({"max_entries": 0}, "0"),
        ({"skip_actions": ["alloc", "nap"]}, "nap"),
    ],
)
def test_other_arguments_are_refused(arguments: dict[str, object], name: str) -> None:
    with pytest.raises(RuntimeError, match=name):
        memory._record_memory_history(**arguments)
