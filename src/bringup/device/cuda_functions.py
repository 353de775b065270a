"""``torch.cuda`` for the chip: its functions, and errors for what only CUDA has."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from contextlib import contextmanager
from types import FunctionType
from typing import Any, NoReturn

import torch

from bringup.device import memory_history
from bringup.device import torch_chip as chips
from bringup.device.cuda_names import counted
from bringup.device.cuda_tensors import TYPES, Legacy
from bringup.errors import MissingFeatureError
from bringup.process import process

_DRIVER = "needs CUDA's driver"
_MISSING = {
    **dict.fromkeys(
        ("cudart", "cudaStatus", "check_error", "current_blas_handle", "current_solver_handle"),
        "is CUDA's own runtime",
    ),
    **dict.fromkeys(("ExternalStream", "get_stream_from_external", "GreenContext"), _DRIVER),
    **dict.fromkeys(
        ("caching_allocator_alloc", "caching_allocator_delete", "CUDAPluggableAllocator", "change_current_allocator"),
        "reaches into CUDA's allocator",
    ),
    **dict.fromkeys(("MemPool", "use_mem_pool"), "reaches into CUDA's allocator"),
    **dict.fromkeys(("utilization", "temperature", "power_draw", "memory_usage"), "asks NVIDIA's management library"),
    **dict.fromkeys(("device_memory_used", "list_gpu_processes"), "asks NVIDIA's management library"),
}


def patch_cuda() -> None:
    """Patch torch.cuda."""
    cuda: Any = torch.cuda
    replacements = {name: getattr(chips, name) for name in dir(chips) if name in dir(cuda)}
    replacements = {
        name: item
        for name, item in replacements.items()
        if getattr(item, "__module__", "").startswith("bringup") and not name.startswith("__")
    }
    replacements |= {
        "get_device_capability": chips.get_device_capability,
        "get_arch_list": list,
        "get_gencode_flags": str,
        "memory_cached": chips.memory_reserved,
        "max_memory_cached": chips.max_memory_reserved,
        "reset_max_memory_cached": chips.reset_peak_memory_stats,
        "is_bf16_supported": _supports("bfloat16"),
        "is_tf32_supported": _supports("tf32"),
        "ipc_collect": lambda: None,
        "get_per_process_memory_fraction": lambda device=None: 1.0,
        "get_allocator_backend": lambda: "native",
        "clock_rate": lambda device=None: chips.get_device_properties(device).clock_rate // 1000,
        "_lazy_init": chips.init,
        "_lazy_call": lambda function, **_: function(),
        "_is_in_bad_fork": chips._is_in_bad_fork,
        "_sleep": lambda cycles: None,
    }
    replacements["memory_snapshot"] = lambda *_: memory_history.snapshot()["segments"]
    for name in ("amp", "nvtx", "_initialized", "random", "memory"):
        replacements.pop(name, None)
    for name, item in replacements.items():
        wrapped = item if isinstance(item, type) else counted(name, item)
        for module in (cuda, cuda.memory, cuda.random, cuda.streams, cuda.graphs):
            if hasattr(module, name):
                setattr(module, name, wrapped)
        setattr(cuda, name, wrapped)
    for name, why in _MISSING.items():
        setattr(cuda, name, _missing(name, why))
    nccl: Any = importlib.import_module("torch.cuda.nccl")
    for name in ("all_reduce", "reduce", "broadcast", "all_gather", "reduce_scatter"):
        setattr(nccl, name, _missing(f"nccl.{name}", "is NVIDIA's library of collectives"))
    # A jiterator kernel may be created without CUDA, as in torch. Only its launch is an error.
    jiterator: Any = importlib.import_module("torch.cuda.jiterator")
    jiterator._JittedFunction.__call__ = _missing("jiterator", _DRIVER)
    cuda._initialized = True
    _patch_history()
    # Programs distinguish CUDA from ROCm by this value. torch 2.13 is built for this version by default.
    torch.version.cuda = "13.0"
    core: Any = torch._C  # torch.nn.DataParallel calls the next three functions
    core._scatter = lambda tensor, devices, sizes, dim, streams: [
        part.to(f"cuda:{index}")
        for part, index in zip(tensor.split(sizes, dim) if sizes else tensor.chunk(len(devices), dim), devices)  # noqa: B905
    ]
    core._gather = lambda tensors, dim, index: torch.cat(
        [item.to("cpu" if index == -1 else f"cuda:{index or 0}") for item in tensors], dim
    )
    core._broadcast_coalesced = lambda tensors, devices, size: [
        [item.to(f"cuda:{index}") for item in tensors] for index in devices
    ]
    for name, dtype in TYPES.items():
        setattr(cuda, name, Legacy(name, (), {"name": name, "dtype": dtype}))
    cuda.nvtx.range_push, cuda.nvtx.range_pop = _Ranges.push, _Ranges.pop
    cuda.nvtx.mark = lambda msg: None
    cuda.nvtx.range = _range


def _supports(dtype: str) -> Callable[..., bool]:
    def supported(*_: Any, **__: Any) -> bool:
        chips.get_device_capability()  # chooses a chip if none is chosen
        chip = process.chosen_chip()
        return dtype in chip.matrix.tflops or dtype in chip.ops.dtypes

    return supported


def _missing(name: str, why: str) -> Any:
    def raises(*_: Any, **__: Any) -> NoReturn:
        raise MissingFeatureError(
            f"torch.cuda.{name} {why}, which the chip does not have: do not call it when the program runs on the chip"
        )

    original = getattr(torch.cuda, name, None)
    if isinstance(original, type):
        return type(name, (), {"__new__": raises})
    return functools.wraps(original)(raises) if isinstance(original, FunctionType) else raises  # Dynamo looks into some


def _patch_history() -> None:
    """Add the functions of torch._C that torch.cuda.memory calls for the allocator's history and its snapshots."""
    core: Any = torch._C
    ops = torch.ops.bringup

    def record(
        enabled: Any, context: Any, stacks: Any, max_entries: int, clear_history: bool = False, *others: Any
    ) -> None:  # the others: annotations of torch.compile and of torch.profiler, and since 2.13 actions to skip
        skipped = others[-1] if others and isinstance(others[-1], list) else []
        memory_history.record_memory_history(enabled, context, stacks, max_entries, None, clear_history, skipped)

    def record_as_before(  # the interface before torch 2.1
        enabled: bool,
        context: bool = True,
        max_entries: int = 1,
        of_allocations: bool = False,
        cpp: bool = False,
        *_: Any,
    ) -> None:
        depth: Any = "alloc" if of_allocations else "state" if context else None
        memory_history.record_memory_history(
            "all" if enabled else None, depth, "all" if cpp else "python", max(max_entries, 1)
        )

    core._cuda_record_memory_history, core._cuda_record_memory_history_legacy = record, record_as_before
    core._cuda_memorySnapshot = lambda *_: memory_history.snapshot()
    core._cuda_clearCublasWorkspaces = ops.clear_workspaces
    core._cuda_isHistoryEnabled = ops.is_history_recorded
    core._cuda_allocationTraceback = memory_history.allocation_traceback
    core._cuda_setMemoryMetadata, core._cuda_getMemoryMetadata = ops.set_memory_metadata, ops.memory_metadata
    core._cuda_attach_out_of_memory_observer = memory_history.call_when_out_of_memory


class _Ranges:
    """Ranges of ``torch.cuda.nvtx``, recorded as ranges of torch.profiler."""

    open: list[Any] = []  # noqa: RUF012 (one stack for the whole process; NVTX has one per thread)

    @classmethod
    def push(cls, msg: str) -> int:
        """Begin a range."""
        record: Any = torch.autograd.profiler.record_function(str(msg))
        record.__enter__()
        cls.open.append(record)
        return len(cls.open) - 1

    @classmethod
    def pop(cls) -> int:
        """End the latest range."""
        if cls.open:
            cls.open.pop().__exit__(None, None, None)
        return len(cls.open)


@contextmanager
def _range(msg: str, *args: Any, **kwargs: Any) -> Any:
    _Ranges.push(msg.format(*args, **kwargs))
    try:
        yield
    finally:
        _Ranges.pop()
