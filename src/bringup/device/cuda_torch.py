"""Functions of torch, beside torch.cuda, that take or return a device: for programs that say cuda."""

from __future__ import annotations

import functools
from typing import Any

import torch

from bringup.device.cuda_names import real, replace, shown
from bringup.device.cuda_tensors import TYPES, Legacy


class _Kind(type):
    """The type of a replacement for a torch class whose constructor has a device argument."""

    base: Any

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.base)


def _taking_device(base: Any) -> Any:
    def __new__(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = real(kwargs["device"])
        return base(*(real(argument) for argument in args), **kwargs)

    return _Kind(base.__name__, (), {"base": base, "__new__": __new__, "__doc__": base.__doc__})


def _showing(function: Any) -> Any:
    """Return the function with the name cuda in the device that it returns."""

    @functools.wraps(function)
    def named(*args: Any) -> Any:
        device = function(*args)
        return shown(device) if isinstance(device, torch.device) else device

    return named


def patch_torch() -> None:
    """Patch generators, events, accelerators, profilers and default devices."""
    space: Any = torch
    for name in ("Generator", "Event"):
        setattr(space, name, _taking_device(getattr(space, name)))
    current = torch.accelerator.current_accelerator

    @functools.wraps(current)
    def current_accelerator(check_available: bool = False) -> torch.device | None:
        accelerator = current(check_available)
        return None if accelerator is None else shown(accelerator)

    torch.accelerator.current_accelerator = current_accelerator
    core: Any = torch._C
    core._get_accelerator = _showing(core._get_accelerator)  # torch.distributed's
    index_of = torch.accelerator._get_device_index  # type: ignore[attr-defined]

    @functools.wraps(index_of)
    def _get_device_index(device: Any, optional: bool = False) -> int:
        named = torch.device(device) if isinstance(device, str) else device
        return int(index_of(shown(named) if isinstance(named, torch.device) else named, optional))

    for module in (torch.accelerator, torch.accelerator.memory):
        module._get_device_index = _get_device_index  # type: ignore[attr-defined]
    set_type = torch.set_default_tensor_type

    @functools.wraps(set_type)
    def set_default_tensor_type(t: Any) -> None:
        name = t if isinstance(t, str) else f"torch.cuda.{t.name}" if isinstance(t, Legacy) else ""
        if not name.startswith("torch.cuda."):
            return set_type(t)
        torch.set_default_dtype(TYPES[name.removeprefix("torch.cuda.")])
        torch.set_default_device("cuda")
        return None

    space.set_default_tensor_type = set_default_tensor_type
    torch.backends.cuda.is_built = lambda: True
    # Asked before nn.LSTM lays out its weights for cuDNN, with a warning if torch lacks cuDNN.
    torch.backends.cudnn.is_acceptable = lambda tensor: False
    _add_names_of_cuda()
    profile = torch.profiler.profile.__init__

    @functools.wraps(profile)
    def __init__(self: Any, *, activities: Any = None, **kwargs: Any) -> None:
        kinds = torch.profiler.ProfilerActivity
        if activities is not None:
            activities = [kinds.PrivateUse1 if item == kinds.CUDA else item for item in activities]
        profile(self, activities=activities, **kwargs)

    torch.profiler.profile.__init__ = __init__  # type: ignore[method-assign]


def _add_names_of_cuda() -> None:
    """Add the names that torch's own modules import from a build for CUDA, so that they can be imported.

    torch.compiler.reset imports Inductor's CUDA graphs, which no graph of the chip uses. Compilation with
    mode="reduce-overhead" asks whether memory is cached.
    """
    core: Any = torch._C
    if not hasattr(core, "_cuda_CUDAAllocator_AllocatorState"):
        core._cuda_CUDAAllocator_AllocatorState = type("AllocatorState", (), {})
        core._set_cached_tensors_enabled = lambda enabled: None
    if not hasattr(core, "_cuda_cudaCachingAllocator_is_enabled"):
        core._cuda_cudaCachingAllocator_is_enabled = lambda: True


def patch_amp() -> None:
    """Patch autocast."""
    space: Any = torch
    for name in ("get_autocast_dtype", "is_autocast_enabled", "set_autocast_dtype", "set_autocast_enabled"):
        original = getattr(torch, name)

        def translated(device_type: Any = "cuda", *args: Any, _original: Any = original) -> Any:
            if isinstance(device_type, bool):  # the old form for CUDA, without a device
                device_type, args = "cuda", (device_type,)
            return _original("chip" if device_type == "cuda" else device_type, *args)

        replace(space, name, functools.wraps(original)(translated))
    space.get_autocast_gpu_dtype = lambda: torch.get_autocast_dtype("chip")
    space.set_autocast_gpu_dtype = lambda dtype: torch.set_autocast_dtype("chip", dtype)
    begin = torch.amp.autocast.__init__

    @functools.wraps(begin)
    def __init__(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        begin(self, device_type, *args, **kwargs)  # with CUDA's checks and sentences
        if device_type == "cuda":
            self.device = "chip"

    torch.amp.autocast.__init__ = __init__  # type: ignore[method-assign]


def patch_files() -> None:
    """Patch torch.save to write cuda as the location, because the file may be read on a machine with CUDA."""
    from torch import serialization

    def tag(storage: Any) -> str | None:
        device = storage.device
        return f"cuda:{device.index}" if device.type == "chip" else None

    def restore(storage: Any, location: str) -> Any:
        device = real(location)
        return storage.to(device=device) if isinstance(device, torch.device) and device.type == "chip" else None

    serialization.register_package(5, tag, restore)
