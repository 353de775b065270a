"""The history of the allocator, in the format of ``torch.cuda.memory._snapshot``, which torch's memory_viz shows.

Times are this machine's, in microseconds since 1970. Addresses are those of the tensors.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch

from bringup.device.allocator_settings import applied_settings
from bringup.device.devices import DeviceLike

_ops = torch.ops.bringup
_observers: list[Any] = []  # called when memory runs out


def record_memory_history(
    enabled: Literal["state", "all"] | None = "all",
    context: Literal["state", "alloc", "all"] | None = "all",
    stacks: Literal["python", "all"] = "all",
    max_entries: int = sys.maxsize,
    device: DeviceLike = None,
    clear_history: bool = False,
    skip_actions: list[str] | None = None,
) -> None:
    """Record what the allocators of all chips do, and the stacks of the code that asks for it.

    Args:
        enabled: "state" for live memory only, "all" for a history of allocations, too, None to end the recording.
        context: the actions whose stacks are kept: of live memory, of allocations, of everything, or of nothing (None).
        stacks: "all" adds the frames of C++.
        max_entries: the number of actions kept per chip; the oldest are forgotten.
        device: not used; it is there because torch.cuda's function has it.
        clear_history: forget what was recorded before.
        skip_actions: actions that are not recorded, for example ``["free_requested"]``.

    Raises:
        RuntimeError: an argument has another value.
    """
    if clear_history:
        _ops.clear_memory_history()
    most = min(max_entries, sys.maxsize)
    _ops.record_memory_history(enabled or "", context or "", stacks, most, skip_actions or [])


def snapshot() -> dict[str, Any]:
    """Return the segments and the history of all chips, as ``torch.cuda.memory._snapshot`` describes them."""
    data = json.loads(_ops.memory_snapshot())
    segments, traces = data["segments"]["list"], data["traces"]["list"]
    _add_frames(data["segments"], [block for segment in segments for block in segment["blocks"]])
    for segment in segments:
        segment |= {"segment_pool_id": (0, 0), "frames": []}
    _add_frames(data["traces"], [event for events in traces for event in events])
    for events in traces:
        for event in events:
            event |= {"segment_pool_id": (0, 0), "compile_context": "N/A"}
    return {
        "segments": segments,
        "device_traces": traces,
        "allocator_settings": {
            "PYTORCH_CUDA_ALLOC_CONF": applied_settings(),
            "expandable_segments": _ops.expandable_segments(),
        },
        "external_annotations": [],
    }


def _add_frames(part: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    """Replace the number of each entry's stack by its frames. Equal frames are one object, so that files stay small."""
    stacks = [[part["frames"][number] for number in stack] for stack in part["stacks"]]
    for entry in entries:
        number = entry.pop("stack")
        entry["frames"] = [] if number is None else stacks[number]


def dump_snapshot(filename: str = "dump_snapshot.pickle") -> None:
    """Write `snapshot` as a pickle, which https://pytorch.org/memory_viz and ``torch.cuda._memory_viz`` open."""
    with open(filename, "wb") as file:
        pickle.dump(snapshot(), file)


def call_when_out_of_memory(observer: Callable[[int, int, int, int], Any]) -> None:
    """Call a function before the error of an allocation: with the device, and the bytes asked for, in all and free."""
    _observers.append(observer)


def out_of_memory(device: int, requested: int, capacity: int, free: int) -> None:
    """Call the observers; the core calls this."""
    for observer in _observers:
        observer(device, requested, capacity, free)


def allocation_traceback(address: int) -> list[dict[str, Any]] | None:
    """Return the stack of a live allocation by its address; None if there is none, or if no stack was recorded."""
    for segment in snapshot()["segments"]:
        for block in segment["blocks"]:
            if block["address"] == address and block["state"] == "active_allocated":
                return block["frames"] or None
    return None
