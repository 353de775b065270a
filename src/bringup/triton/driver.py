"""Triton's driver for the chip. Registered by the entry point ``triton.backends``.

Exactly one driver of Triton may be active. On a machine with a GPU that Triton supports, it is the GPU's driver unless
the program runs on a chip (`bringup run`, ``BRINGUP_CHIP``). In this case, ``TRITON_DEFAULT_BACKEND=chip`` is set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from bringup.device.load import visible_gpus
from bringup.process import asked_chip, process
from bringup.triton import benchmark, launcher


class Utils:
    """The part of a device's runtime library that Triton calls."""

    @staticmethod
    def get_device_properties(device: int) -> dict[str, int]:
        """Return the properties that Triton and its tutorials read."""
        properties = torch.chip.get_device_properties(device)  # type: ignore[attr-defined]
        return {
            "max_shared_mem": 1 << 62,  # bringup.triton.limits checks the memory that a kernel needs
            "max_num_regs": 65536,
            "multiprocessor_count": properties.multi_processor_count,
            "warpSize": 32,
            "sm_clock_rate": properties.clock_rate,
            "mem_clock_rate": properties.clock_rate,
            "mem_bus_width": 0,
        }

    @staticmethod
    def load_binary(name: str, binary: bytes, shared: int, device: int) -> tuple[Any, Any, int, int, int]:
        """Return module, function, and numbers of registers, spills and threads per block."""
        kernel = launcher.compiled(binary.decode())
        return kernel, kernel, 0, 0, 1 << 30

    @staticmethod
    def unload_module(module: Any) -> None:
        """Free nothing: other specialisations may share the kernel. Triton calls it since 3.9, for dropped kernels."""


class ChipDriver(DriverBase):  # type: ignore[misc]
    """Launches on the current stream of the current chip."""

    def __init__(self) -> None:
        self.utils = Utils()
        self.launcher_cls = launcher.Launcher
        chip: Any = torch.chip  # type: ignore[attr-defined]
        self.get_current_device: Callable[[], int] = chip.current_device
        self.set_current_device = chip.set_device
        benchmark.install()

    @staticmethod
    def is_active() -> bool:
        """Return True if kernels run on the chip: the user has chosen it, or there is no GPU."""
        is_requested = asked_chip() or os.environ.get("TRITON_DEFAULT_BACKEND") == "chip"
        return hasattr(torch, "chip") and bool(is_requested or not visible_gpus())

    def get_current_stream(self, device: int) -> int:
        """Return the current stream's id."""
        return 0  # launches read the current stream themselves

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Return the type unchanged, because this backend needs no C++ names."""
        return ty

    def get_current_target(self) -> GPUTarget:
        """Return the chip as a target."""
        return GPUTarget("chip", "chip", 32)

    def get_active_torch_device(self) -> torch.device:
        """Return the current chip as a torch device, ``cuda`` if the program is redirected."""
        return torch.device("cuda" if process.named_cuda else "chip", self.get_current_device())

    def get_device_interface(self) -> Any:
        """Return the module with streams and events."""
        return torch.chip  # type: ignore[attr-defined]

    def get_benchmarker(self) -> Callable[..., Sequence[float]]:
        """Return the function that times a kernel by predicting one run."""
        return benchmark.benchmarker_of(sys._getframe(1).f_locals.get("self"))

    def get_empty_cache_for_benchmark(self) -> torch.Tensor:
        """Return the buffer for clearing the cache, a small one because no time is measured."""
        return torch.empty(1, dtype=torch.int32, device=self.get_active_torch_device())

    def clear_cache(self, cache: torch.Tensor) -> None:
        """Do nothing, because times are predicted for cold caches."""
