"""``torch.chip``: the device module of ``chip``, with the names of ``torch.cuda``.

No function waits for the device except ``synchronize``, ``get_rng_state`` and ``Event.elapsed_time``.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from bringup.device import allocator_settings, memory, memory_history
from bringup.device.choose import choose_from_environment
from bringup.device.devices import (
    DeviceProperties,
    can_device_access_peer,
    current_device,
    device,
    device_count,
    device_of,
    get_device_capability,
    get_device_name,
    get_device_properties,
    init,
    is_available,
    is_initialized,
    real_device,
    set_device,
)
from bringup.device.graphs import (
    CUDAGraph,
    graph,
    graph_pool_handle,
    is_current_stream_capturing,
    make_graphed_callables,
)
from bringup.device.memory import (
    empty_cache,
    largest_tensors,
    max_memory_allocated,
    max_memory_reserved,
    mem_get_info,
    memory_allocated,
    memory_reserved,
    memory_stats,
    memory_summary,
    reset_accumulated_memory_stats,
    reset_max_memory_allocated,
    reset_max_memory_reserved,
    reset_peak_memory_stats,
    set_per_process_memory_fraction,
)
from bringup.device.random import (
    get_rng_state,
    get_rng_state_all,
    initial_seed,
    manual_seed,
    manual_seed_all,
    seed,
    seed_all,
    set_rng_state,
    set_rng_state_all,
)
from bringup.device.streams import (
    Event,
    Stream,
    StreamContext,
    current_stream,
    default_stream,
    get_sync_debug_mode,
    set_stream,
    set_sync_debug_mode,
    stream,
    synchronize,
)
from bringup.errors import BringupError

__all__ = [
    "CUDAGraph",
    "DeviceProperties",
    "Event",
    "Stream",
    "StreamContext",
    "amp",
    "can_device_access_peer",
    "choose_from_environment",
    "current_device",
    "current_stream",
    "default_stream",
    "device",
    "device_count",
    "device_of",
    "empty_cache",
    "get_amp_supported_dtype",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "get_rng_state",
    "get_rng_state_all",
    "get_sync_debug_mode",
    "graph",
    "graph_pool_handle",
    "init",
    "initial_seed",
    "is_available",
    "is_bf16_supported",
    "is_current_stream_capturing",
    "is_initialized",
    "largest_tensors",
    "make_graphed_callables",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "memory_summary",
    "real_device",
    "reset_accumulated_memory_stats",
    "reset_max_memory_allocated",
    "reset_max_memory_reserved",
    "reset_peak_memory_stats",
    "seed",
    "seed_all",
    "set_device",
    "set_per_process_memory_fraction",
    "set_rng_state",
    "set_rng_state_all",
    "set_stream",
    "set_sync_debug_mode",
    "stream",
    "synchronize",
]


def __getattr__(name: str) -> bool:
    """Return ``_initialized``. torch.utils.checkpoint saves the generator's state only if it is True."""
    if name == "_initialized":
        return is_initialized()
    raise AttributeError(f"module 'torch.chip' has no attribute {name!r}")


def _is_in_bad_fork() -> bool:
    return bool(torch.ops.bringup.is_forked())


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Return the dtypes of ``torch.autocast("chip")``."""
    return [torch.bfloat16, torch.float16]


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Return True, because operators on bfloat16 always run, on the chip or on the host."""
    return True


class amp:
    """``torch.chip.amp``: autocast for custom autograd functions."""

    @staticmethod
    def custom_fwd(fwd: Any = None, *, cast_inputs: torch.dtype | None = None) -> Any:
        """Decorate like ``torch.amp.custom_fwd`` for the device ``chip``."""
        return torch.amp.custom_fwd(fwd, device_type="chip", cast_inputs=cast_inputs)

    @staticmethod
    def custom_bwd(bwd: Any = None) -> Any:
        """Decorate like ``torch.amp.custom_bwd`` for the device ``chip``."""
        return torch.amp.custom_bwd(bwd, device_type="chip")


def patch_torch() -> None:
    """Patch the functions of torch 2.13 that are wrong for a renamed device."""
    allocator_settings.install()
    of_memory: Any = torch.accelerator.memory
    if hasattr(of_memory, "_snapshot"):  # since torch 2.13; it knows the devices xpu and cuda
        of_memory._snapshot = lambda device=None, **_: memory_history.snapshot()

    storage: Any = torch.UntypedStorage
    for name in ("_share_fd_cpu_", "_share_filename_cpu_"):  # called to send a storage to another process
        share = getattr(storage, name)

        def share_cpu(self: torch.UntypedStorage, *args: Any, _share: Any = share, **kwargs: Any) -> Any:
            if self.device.type == "chip":
                raise BringupError(
                    "a chip's memory cannot be sent to another process: move the tensor to the CPU first"
                )
            return _share(self, *args, **kwargs)

        setattr(storage, name, functools.wraps(share)(share_cpu))

    dlpack_device = torch.Tensor.__dlpack_device__

    @functools.wraps(dlpack_device)
    def __dlpack_device__(self: torch.Tensor) -> Any:  # torch compares with the name "privateuse1"
        if real_device(self).type == "chip":
            from torch.utils.dlpack import DLDeviceType

            return (DLDeviceType.kDLExtDev, real_device(self).index)
        return dlpack_device(self)

    torch.Tensor.__dlpack_device__ = __dlpack_device__  # type: ignore[method-assign]
