"""What differs between the releases of torch, 2.10 to 2.15; for the core, csrc/torch/versions.h says it."""

from __future__ import annotations

import functools
from typing import Any

import torch

_RELEASE = tuple(int(part) for part in torch.__version__.split(".")[:2])


def inductor_options(wrapper: Any, config_patches: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the arguments of Inductor's ``compile_fx`` that torch.compile's own backend passes on.

    Args:
        wrapper: that backend, ``torch._TorchCompileInductorWrapper``.
        config_patches: those of a region, which Dynamo passes since 2.12.
    """
    options: dict[str, Any] = {"config_patches": {**wrapper.config, **(config_patches or {})}}
    if hasattr(wrapper, "name"):  # since 2.12
        options["compile_region_name"] = wrapper.name
    return options


def fake_mode_for_inductor() -> Any:
    """Return the mode that the fake inputs of a graph of Dynamo must have; None if any will do.

    Dynamo hands a graph over with tensors of one mode for Inductor to use another. Since 2.11, Inductor makes its own.
    """
    context = torch._guards.TracingContext.try_get() if _RELEASE == (2, 10) else None
    return context.fake_mode if context is not None else None


def mark_as_lazy(module: Any) -> None:
    """Give a device's module the function that torch calls at its first use; the core opens the device itself.

    Without one, torch 2.10 takes the device for unused: ``torch.accelerator.synchronize`` and its like do nothing.
    """
    if _RELEASE < (2, 12):
        module._lazy_init = lambda: None


def mark_as_shared() -> None:
    """Let storages of a device say that they are shared, as CUDA's do: no process has the memory for itself.

    torch says so of every device but the CPU since 2.13, and only of CUDA before.
    """
    if _RELEASE >= (2, 13):
        return
    shared: Any = torch.UntypedStorage.is_shared

    @functools.wraps(shared)
    def is_shared(self: torch.UntypedStorage) -> bool:
        return self.device.type == "chip" or bool(shared(self))

    space: Any = torch.UntypedStorage
    space.is_shared = is_shared


def take_nccl_from(space: Any) -> None:
    """Let the backend nccl be made of the ``ProcessGroupNCCL`` in torch.distributed's module of collectives.

    Since 2.15, torch makes it of another class, with other arguments; the former one is called legacy.
    """
    if hasattr(space, "_register_builtin_nccl_as_legacy"):
        space._register_builtin_nccl_as_legacy()
