"""torch.compile through Inductor's Triton code on the chip: ``BRINGUP_COMPILE=triton``, `bringup run --compile triton`.

The default for torch.compile is bringup's own backend (bringup/compile), which does not need Triton. Here Inductor
writes the kernels, as it does for an accelerator, and they run and are recorded. Products remain torch's operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.device_interface import DeviceInterface, register_interface_for_device
from torch._inductor import config
from torch._inductor.codegen.common import (
    DeviceOpOverrides,
    register_backend_for_device,
    register_device_op_overrides,
)

from bringup.device import torch_chip as chips
from bringup.device.cuda_names import plain_devices, real

_registered = False


class ChipInterface(DeviceInterface):
    """The functions of the device that Dynamo and Inductor call."""

    Event = chips.Event  # type: ignore[assignment]
    Stream = chips.Stream  # type: ignore[assignment]
    device = chips.device  # type: ignore[assignment]
    current_device = staticmethod(chips.current_device)
    set_device = staticmethod(chips.set_device)
    device_count = staticmethod(chips.device_count)
    is_available = staticmethod(chips.is_available)
    synchronize = staticmethod(chips.synchronize)
    is_bf16_supported = staticmethod(chips.is_bf16_supported)
    memory_allocated = staticmethod(chips.memory_allocated)
    get_device_properties = staticmethod(chips.get_device_properties)

    class Worker:
        """The functions for processes that compile."""

        set_device = staticmethod(chips.set_device)
        current_device = staticmethod(chips.current_device)
        get_device_properties = staticmethod(chips.get_device_properties)

    @staticmethod
    def exchange_device(device: int) -> int:
        """Make a chip the current one; return the previous one."""
        before = chips.current_device()
        if device >= 0:
            chips.set_device(device)
        return before

    maybe_exchange_device = exchange_device

    @staticmethod
    def get_raw_stream(device_idx: int) -> int:
        """Return a handle that is not used, because launches read the current stream themselves."""
        return 0

    @staticmethod
    def get_compute_capability(device: Any = None) -> str:
        """Return the architecture of Triton's target."""
        return "chip"

    @staticmethod
    def is_triton_capable(device: Any = None) -> bool:
        """Return True, because Triton kernels run on the chip."""
        return True


class ChipOverrides(DeviceOpOverrides):
    """The device-specific lines in the code that Inductor writes."""

    def import_get_raw_stream_as(self, name: str) -> str:
        """Return the line that imports the function for a stream's handle."""
        return f"from bringup.triton.inductor import raw_stream as {name}"

    def set_device(self, device_idx: int) -> str:
        """Make a chip the current one."""
        return f"torch.chip.set_device({device_idx})"

    def synchronize(self) -> str:
        """Wait for the chip."""
        return "torch.chip.synchronize()"

    def device_guard(self, device_idx: int) -> str:
        """Open a context in which a chip is the current one."""
        return f"torch.chip.device({device_idx})"


def raw_stream(device: int) -> int:
    """Return a handle that is not used, because launches read the current stream themselves."""
    return 0


def compile_graph(
    graph: fx.GraphModule, inputs: Sequence[Any], patches: dict[str, Any], choose: Callable[[], None]
) -> Any:
    """Compile a Dynamo graph as Inductor does for an accelerator; return the compiled function.

    Args:
        graph: the graph that Dynamo passes to a backend.
        inputs: its example inputs.
        patches: changes of Inductor's configuration.
        choose: function that makes the chip Triton's device.
    """
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    register(choose)

    def inner(*args: Any, **kwargs: Any) -> Any:  # also called by the first backward pass
        with plain_devices():
            return compile_fx_inner(*args, **kwargs)

    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            _say_chip(module)
    with plain_devices():
        return compile_fx(graph, inputs, inner_compile=inner, config_patches=patches)


def _say_chip(graph: fx.GraphModule) -> None:
    """Replace the device ``cuda`` by ``chip`` in a graph."""
    for node in graph.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, real)
        node.kwargs = fx.node.map_aggregate(node.kwargs, real)
        if node.op == "call_method" and node.target == "cuda":
            index = node.args[1] if len(node.args) > 1 else node.kwargs.get("device")
            device = torch.device("chip", index) if isinstance(index, int) else index or torch.device("chip")
            node.target, node.args, node.kwargs = "to", (node.args[0], device), {}
    graph.recompile()


def register(choose: Callable[[], None]) -> None:
    """Register the chip as a device for Inductor's Triton code, with autotuning by predicted time."""
    global _registered
    if _registered:
        return
    _registered = True
    from torch._inductor.codegen.triton import TritonScheduling
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen
    from torch._inductor.runtime import benchmarking, triton_helpers

    from bringup.triton import benchmark  # imports Triton

    register_interface_for_device("chip", ChipInterface)
    register_interface_for_device("ccuda", ChipInterface)  # torch 2.13 replaces "hip" by "cuda" everywhere in the name
    for index in range(chips.device_count()):
        register_interface_for_device(f"chip:{index}", ChipInterface)
    register_device_op_overrides("chip", ChipOverrides())
    register_backend_for_device("chip", TritonScheduling, PythonWrapperCodegen)
    config.compile_threads = 1  # the processes of a pool would not have the chip
    config.triton.mix_order_reduction = False  # needs CUDA's occupancy

    # Inductor's code requests the driver of the GPU that torch reports, which is the redirected chip.
    triton_helpers.set_driver_to_gpu = choose

    def benchmark_gpu(call: Any, *_: Any, **__: Any) -> float:
        return benchmark.seconds_of(call) * 1e3

    benchmarking.benchmarker.benchmark_gpu = benchmark_gpu  # type: ignore[method-assign]
