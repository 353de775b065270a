"""The memory of a chip: the caching allocator's counters and settings."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import torch

from bringup.device import memory_history
from bringup.device.devices import DeviceLike, checked, get_device_name, index_of, is_initialized
from bringup.text import size

_ops = torch.ops.bringup

# The names that torch.cuda.memory has for them.
_record_memory_history = memory_history.record_memory_history
_snapshot = memory_history.snapshot
_dump_snapshot = memory_history.dump_snapshot


def empty_cache() -> None:
    """Return unused cached memory to the chip."""
    torch._C._accelerator_emptyCache()


def memory_stats(device: DeviceLike = None) -> OrderedDict[str, Any]:
    """Return the allocator's counters, under the names of ``torch.cuda.memory_stats``."""
    stats: OrderedDict[str, Any] = torch.accelerator.memory.memory_stats(checked(index_of(device)))
    return stats


def _bytes(key: str, device: DeviceLike) -> int:
    if not is_initialized():
        return 0
    return int(memory_stats(device).get(key, 0))


def memory_allocated(device: DeviceLike = None) -> int:
    """Return the bytes that tensors hold now."""
    return _bytes("allocated_bytes.all.current", device)


def max_memory_allocated(device: DeviceLike = None) -> int:
    """Return the largest number of bytes that tensors held since the start or the last reset."""
    return _bytes("allocated_bytes.all.peak", device)


def memory_reserved(device: DeviceLike = None) -> int:
    """Return the bytes that the caching allocator holds now."""
    return _bytes("reserved_bytes.all.current", device)


def max_memory_reserved(device: DeviceLike = None) -> int:
    """Return the largest number of bytes that the caching allocator held since the start or the last reset."""
    return _bytes("reserved_bytes.all.peak", device)


def reset_peak_memory_stats(device: DeviceLike = None) -> None:
    """Reset the peaks to the current values."""
    torch._C._accelerator_resetPeakStats(checked(index_of(device)))


reset_max_memory_allocated = reset_peak_memory_stats
reset_max_memory_reserved = reset_peak_memory_stats


def reset_accumulated_memory_stats(device: DeviceLike = None) -> None:
    """Reset the accumulated counters to zero."""
    torch._C._accelerator_resetAccumulatedStats(checked(index_of(device)))


def mem_get_info(device: DeviceLike = None) -> tuple[int, int]:
    """Return the free and the total bytes of a chip."""
    free, total = torch._C._accelerator_getMemoryInfo(checked(index_of(device)))
    return int(free), int(total)


def set_per_process_memory_fraction(fraction: float, device: DeviceLike = None) -> None:
    """Limit the memory that this process may reserve to a fraction (0 to 1) of the chip's capacity."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    index = checked(index_of(device))
    _ops.open(index)
    _ops.set_memory_limit(index, float(fraction))


def largest_tensors(count: int = 5, device: DeviceLike = None) -> list[dict[str, Any]]:
    """Return the largest live blocks, each with ``bytes``, ``what`` (dtype, shape, op) and the allocating ``line``."""
    index = checked(index_of(device))
    _ops.open(index)
    blocks: list[dict[str, Any]] = json.loads(_ops.live_blocks(index, count))
    return blocks


def memory_summary(device: DeviceLike = None, abbreviated: bool = False) -> str:
    """Return a table of the allocator's counters; ``abbreviated`` leaves out the two pools."""
    index = checked(index_of(device))
    stats = memory_stats(index)
    rows = [("Allocated memory", "allocated_bytes"), ("Active memory", "active_bytes")]
    rows += [("Requested memory", "requested_bytes"), ("Reserved memory", "reserved_bytes")]
    rows += [("Non-releasable memory", "inactive_split_bytes"), ("Allocations", "allocation"), ("Segments", "segment")]
    line = "-" * 78
    out = [line, f"chip:{index} {get_device_name(index)}"[:78], line]
    out.append(f"{'':24}{'current':>13}{'peak':>13}{'total':>14}{'freed':>14}")
    for title, key in rows:
        for pool in ("all",) if abbreviated else ("all", "large_pool", "small_pool"):
            name = title if pool == "all" else f"  {pool.replace('_', ' ')}"
            values = [stats.get(f"{key}.{pool}.{field}", 0) for field in ("current", "peak", "allocated", "freed")]
            cells = [size(value) if key.endswith("bytes") else str(value) for value in values]
            out.append(f"{name:24}{cells[0]:>13}{cells[1]:>13}{cells[2]:>14}{cells[3]:>14}")
    out.append(line)
    out.append(f"out of memory: {stats.get('num_ooms', 0)}   retries: {stats.get('num_alloc_retries', 0)}")
    return "\n".join(out)
