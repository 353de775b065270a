"""C. Memory: isolation, capacity, statistics, reuse."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import torch

import bringup
from bringup.recording.sanitize import findings
from bringup.scorecard.registry import NotApplicable, item, needs_accelerator, needs_chip, require
from bringup.scorecard.runtime import synchronize, work

_PEEK = """
import ctypes, torch
x = torch.full((4096,), 7.0, device={device!r})
torch.accelerator.synchronize()
print("read", ctypes.cast(x.data_ptr(), ctypes.POINTER(ctypes.c_float))[0], flush=True)
torch.accelerator.synchronize()
print("unnoticed", flush=True)
"""


def statistics(device: torch.device) -> dict[str, Any]:
    """The allocator's counters, by the interface that all devices share."""
    return dict(torch.accelerator.memory.memory_stats(device))


@item("C1", "D", "device memory is isolated", hint="the host must not reach device memory by its address unnoticed")
def isolated(device: torch.device) -> str:
    """A program that dereferences a device pointer on the host dies or gets an error; ``.numpy()`` is refused."""
    if device.type == "cpu":
        raise NotApplicable("the CPU's memory is the host's")
    try:
        torch.ones(2, device=device).numpy()
    except (TypeError, RuntimeError):
        pass
    else:
        require(False, ".numpy() of a device tensor is not refused")
    environment = {**os.environ, "BRINGUP_CHECK": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _PEEK.format(device=device.type)], capture_output=True, text=True, env=environment
    )
    require("unnoticed" not in done.stdout, "the host reads device memory by its address, and nothing notices")
    return "a host read of a device pointer is caught" + (" in check mode" if device.type == "chip" else "")


@item(
    "C2",
    "D",
    "the capacity ends in OutOfMemoryError",
    hint="raise torch.OutOfMemoryError with size, free memory and the largest tensors",
)
def capacity(device: torch.device) -> str:
    """Asking for more than there is raises ``torch.OutOfMemoryError`` with the size, and the program goes on."""
    needs_accelerator(device, "capacity of its own")
    kept = torch.ones(1 << 20, device=device)
    _, total = torch.accelerator.memory.get_memory_info(device)
    try:
        torch.empty(total + 1, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        text = str(error)
    else:
        require(False, f"{total + 1} bytes were allocated on a device of {total}")
        text = ""
    require("GiB" in text or "MiB" in text, f"the error names no size: {text.splitlines()[0]}")
    require("float32[1048576]" in text, "the error does not name the largest live tensors")
    require((kept + 1)[0].item() == 2, "the device does not work after it")
    return text.splitlines()[0][:200]


@item("C3", "T", "memory statistics", hint="implement the device allocator's statistics (c10::DeviceAllocator)")
def counted(device: torch.device) -> str:
    """Allocated and peak bytes follow a tensor's life, and the peak is reset."""
    needs_accelerator(device, "memory statistics")
    memory = torch.accelerator.memory
    before = memory.memory_allocated(device)
    memory.reset_peak_memory_stats(device)
    x = torch.empty(1 << 22, dtype=torch.uint8, device=device)
    held = memory.memory_allocated(device) - before
    del x
    after, peak = memory.memory_allocated(device) - before, memory.max_memory_allocated(device) - before
    require(held >= 1 << 22, f"a tensor of 4 MiB counts as {held} bytes")
    require(after == 0, f"{after} bytes are counted after it is gone")
    require(peak >= 1 << 22, f"the peak is {peak} bytes")
    memory.reset_peak_memory_stats(device)
    require(memory.max_memory_allocated(device) - before < 1 << 22, "the peak is not reset")
    require(memory.memory_reserved(device) >= memory.memory_allocated(device), "less is reserved than allocated")
    return f"4 MiB count as {held} bytes, the peak follows and is reset"


@item("C4", "T", "a caching allocator", hint="keep freed blocks, and give them back in empty_cache()")
def cached(device: torch.device) -> str:
    """Freed memory is reused without asking the device, and ``empty_cache`` gives it back."""
    needs_accelerator(device, "caching allocator")
    memory = torch.accelerator.memory
    x = torch.empty(64 << 20, dtype=torch.uint8, device=device)
    address = x.data_ptr()
    del x
    reserved = memory.memory_reserved(device)
    x = torch.empty(64 << 20, dtype=torch.uint8, device=device)
    require(x.data_ptr() == address, "a freed block is not reused")
    require(memory.memory_reserved(device) == reserved, "reusing a block reserves more memory")
    del x
    torch.accelerator.empty_cache()
    after = memory.memory_reserved(device)
    require(after <= reserved - (64 << 20), "empty_cache gives nothing back")
    return f"a block of 64 MiB was reused; empty_cache gave back {(reserved - after) >> 20} MiB"


@item("C5", "T", "reuse is safe across streams", hint="record_stream must delay the reuse of a block")
def reused(device: torch.device) -> str:
    """A block that another stream still reads is not overwritten after ``record_stream`` and its release."""
    needs_accelerator(device, "streams")
    side = torch.Stream(device)
    for _ in range(5):
        x, count = work(device, 0.05)
        value = torch.full((1 << 18,), 3.0, device=device)
        ready = torch.Event(device)
        ready.record()
        ready.wait(side)
        with side:
            for _ in range(count):
                x @ x
            total = value.sum()
        value.record_stream(side)
        x.record_stream(side)
        del value
        torch.full((1 << 18,), 9.0, device=device)
        synchronize(device)
        require(total.item() == 3.0 * (1 << 18), "a block was overwritten while another stream read it")
    return "5 releases of memory in use were safe"


@item(
    "C6",
    "P",
    "reads of memory that nobody wrote are caught",
    hint="fill fresh memory with patterns, or follow what was written",
)
def uninitialised(device: torch.device) -> str:
    """A read of ``torch.empty`` is found at its line; a read after a write is not."""
    needs_chip(device, "the check is bringup's (pytest --chip, bringup run --sanitize)")
    with bringup.record() as trace:
        wrong = torch.empty(8, device=device) + 1
        right = torch.empty(8, device=device).fill_(2) + 1
    found = findings(trace, ("init",))
    require(len(found) == 1, f"one read of unwritten memory is found {len(found)} times")
    del wrong, right
    return found[0].what[:150]
