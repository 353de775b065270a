"""C. Memory: isolation, capacity, statistics, reuse."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import torch

import bringup
from bringup.recording.sanitize import findings
from bringup.scorecard.registry import NotApplicable, Partial, item, needs_accelerator, needs_chip, require
from bringup.scorecard.runtime import launch_products, synchronize, work
from bringup.text import quantity, short

_PEEK = """
import ctypes, torch
x = torch.full((4096,), 7.0, device={device!r})
torch.accelerator.synchronize()
print("read", ctypes.cast(x.data_ptr(), ctypes.POINTER(ctypes.c_float))[0], flush=True)
torch.accelerator.synchronize()
print("unnoticed", flush=True)
"""


def statistics(device: torch.device) -> dict[str, Any]:
    """Return the allocator's counters through the interface that all devices share."""
    return dict(torch.accelerator.memory.memory_stats(device))


@item("C1", "D", "device memory is isolated", hint="make host accesses to device addresses fail")
def isolated(device: torch.device) -> str:
    """A program that dereferences a device pointer on the host crashes or gets an error; ``.numpy()`` is refused."""
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
    require("unnoticed" not in done.stdout, "the host can read device memory by its address without an error")
    return "a host read of a device pointer is caught" + (" in check mode" if device.type == "chip" else "")


@item(
    "C2",
    "D",
    "full memory raises OutOfMemoryError",
    hint="raise torch.OutOfMemoryError with the size, the free memory and the largest tensors",
)
def capacity(device: torch.device) -> str:
    """Too large an allocation raises ``torch.OutOfMemoryError`` with its size, and the program continues."""
    needs_accelerator(device, "device memory")
    live = torch.ones(1 << 20, device=device)
    _, total = torch.accelerator.memory.get_memory_info(device)
    try:
        torch.empty(total + 1, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        text = str(error)
    else:
        require(False, f"{total + 1} bytes were allocated on a device of {total}")
        text = ""
    require("GiB" in text or "MiB" in text, f"the error does not name the size: {text.splitlines()[0]}")
    require((live + 1)[0].item() == 2, "the device does not work after the error")
    if "float32[1048576]" not in text:
        raise Partial(0.75, "the error names the size and the program goes on, but not the largest live tensors")
    return short(text.splitlines()[0], 200)


@item("C3", "T", "memory statistics", hint="implement the device allocator's statistics (c10::DeviceAllocator)")
def counters(device: torch.device) -> str:
    """Allocated and peak bytes follow the life of a tensor, and the peak can be reset."""
    needs_accelerator(device, "memory statistics")
    memory = torch.accelerator.memory
    before = memory.memory_allocated(device)
    memory.reset_peak_memory_stats(device)
    x = torch.empty(1 << 22, dtype=torch.uint8, device=device)
    counted_bytes = memory.memory_allocated(device) - before
    del x
    after, peak = memory.memory_allocated(device) - before, memory.max_memory_allocated(device) - before
    require(counted_bytes >= 1 << 22, f"a tensor of 4 MiB counts as {counted_bytes} bytes")
    require(after == 0, f"{after} bytes still count after it is freed")
    require(peak >= 1 << 22, f"the peak is {peak} bytes")
    memory.reset_peak_memory_stats(device)
    require(memory.max_memory_allocated(device) - before < 1 << 22, "the peak is not reset")
    require(memory.memory_reserved(device) >= memory.memory_allocated(device), "less is reserved than allocated")
    return f"4 MiB count as {counted_bytes} bytes; the peak follows and can be reset"


@item("C4", "T", "a caching allocator", hint="keep freed blocks, and release them in empty_cache()")
def cached(device: torch.device) -> str:
    """Freed memory is reused without a device allocation, and ``empty_cache`` releases it."""
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
    require(after <= reserved - (64 << 20), "empty_cache does not release the block")
    return f"a block of 64 MiB was reused; empty_cache released {(reserved - after) >> 20} MiB"


@item("C5", "T", "reuse is safe across streams", hint="record_stream must delay the reuse of a block")
def reused(device: torch.device) -> str:
    """After ``record_stream``, a freed block is not overwritten while another stream still reads it."""
    needs_accelerator(device, "streams")
    side = torch.Stream(device)
    for _ in range(5):
        x, count = work(device, 0.05)
        value = torch.full((1 << 18,), 3.0, device=device)
        ready = torch.Event(device)
        ready.record()
        ready.wait(side)
        with side:
            launch_products(x, count)
            total = value.sum()
        value.record_stream(side)
        x.record_stream(side)
        del value
        torch.full((1 << 18,), 9.0, device=device)
        synchronize(device)
        require(total.item() == 3.0 * (1 << 18), "a block was overwritten while another stream read it")
    return "5 blocks were freed safely while another stream read them"


@item(
    "C6",
    "P",
    "reads of uninitialised memory are reported",
    hint="fill new memory with patterns, or track writes",
)
def uninitialised(device: torch.device) -> str:
    """A read of ``torch.empty`` is reported with its line; a read after a write is not."""
    needs_chip(device, "the check is part of bringup (pytest --chip, bringup run --sanitize)")
    with bringup.record() as trace:
        wrong = torch.empty(8, device=device) + 1
        right = torch.empty(8, device=device).fill_(2) + 1
    reads = findings(trace, ("init",))
    require(len(reads) == 1, f"a program with one uninitialised read has {quantity(len(reads), 'finding')}")
    del wrong, right
    return reads[0].what[:150]
