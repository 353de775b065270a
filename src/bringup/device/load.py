"""Loading the device into torch."""

from __future__ import annotations

import atexit
import importlib
import json
import os
import warnings
from contextlib import suppress
from typing import Any

import torch

from bringup import core
from bringup.device import overrides, torch_versions
from bringup.device.choose import choose
from bringup.errors import BringupError
from bringup.process import ON_USE, asked_chip, asked_devices, asked_driver

# Folders to the right of the device that also patch torch. Each has a function `install`, called by `register`.
ROOMS = ("bringup.compile", "bringup.triton")

_registered = False


def visible_gpus() -> int:
    """Return the number of CUDA devices that torch can use. The redirected chip does not count.

    CUDA is not initialised by it where NVML answers: until then ``CUDA_VISIBLE_DEVICES`` can still hide the devices.
    """
    if not torch._C._has_cuda:
        return 0
    counted = torch.cuda._device_count_nvml() if torch.version.hip is None else -1  # -1: NVML does not answer
    return counted if counted >= 0 else torch._C._cuda_getDeviceCount()


def _another_accelerator() -> str | None:
    if visible_gpus():
        return "cuda"
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator is not None and accelerator.type != "chip" else None


def autoload() -> None:
    """Entry point of ``torch.backends``, called by ``import torch``.

    It never raises an error, because every program that imports torch calls it. If the machine has a real accelerator,
    that accelerator stays the current one until the program chooses a chip.
    """
    try:
        core.refuse_another_device()
        if asked_chip() or asked_driver() or _another_accelerator() is None:
            register()
    except BringupError as error:
        warnings.warn(str(error), stacklevel=2)
    except (OSError, RuntimeError) as error:
        warnings.warn(f"bringup's core does not load, so the device 'chip' is not there: {error}", stacklevel=2)


def register() -> None:
    """Make ``chip`` a device of this process. Raises VersionError if the core does not fit this torch."""
    global _registered
    if _registered:
        return
    from torch.utils import backend_registration

    core.load()
    from bringup.device import distributed, meta_kernels, rnn, torch_chip  # they take the core's operators

    torch.ops.bringup.start()
    backend_registration.rename_privateuse1_backend("chip")
    torch._register_device_module("chip", torch_chip)  # type: ignore[no-untyped-call]
    torch_versions.mark_as_lazy(torch_chip)
    torch_versions.mark_as_shared()
    backend_registration.generate_methods_for_privateuse1_backend(for_tensor=True, for_module=True, for_storage=True)
    with suppress(BringupError):  # raised at the first use of a chip: `import torch` must not fail
        torch.ops.bringup.set_device_count(asked_devices())
    torch_chip.patch_torch()
    meta_kernels.leave_dynamo_out()
    rnn.install()
    distributed.install()
    overrides.patch_library()
    atexit.register(torch.ops.bringup.shutdown)
    _registered = True
    for room in ROOMS:
        importlib.import_module(room).install()


def use(
    chip: str | os.PathLike[str],
    *,
    devices: int = 1,
    check: bool | None = None,
    driver: str | None = None,
    strict: bool | None = None,
    past_capacity: bool = False,
) -> None:
    """Choose the chip of this process, before its first use, or while no tensor is on it and nothing is recorded.

    Args:
        chip: the name of a chip (`available_chips`) or the path of a chip file.
        devices: the number of such chips, ``chip:0`` to ``chip:{devices - 1}``.
        check: raise an error where the host dereferences device memory (default: ``BRINGUP_CHECK``). This is slower.
        driver: ``cuda``, ``opencl``, ``rtl``, or the path of a driver: a library (csrc/driver.h) or a Python file
            (default: ``BRINGUP_DRIVER``, else the virtual chip).
        strict: raise where an operator would run on the host because the chip does not list it (default:
            ``BRINGUP_STRICT``).
        past_capacity: allow more memory than the chip's capacity; the report states the excess.

    Raises:
        UnknownChipError, ChipFileError: the chip cannot be read.
        ChipInUseError: tensors of the chip before are alive, it has another number of devices, driver or checks, or a
            recording is running.
    """
    register()
    choose(chip, devices=devices, check=check, driver=driver, strict=strict, past_capacity=past_capacity)
    for follow in ON_USE:
        follow()


def use_unless_chosen(chip: str | os.PathLike[str]) -> None:
    """Choose the chip of this process, unless it has one."""
    register()
    if not torch.ops.bringup.is_open() and not torch.ops.bringup.is_configured():
        use(chip)


def launch_stats() -> dict[str, Any]:
    """Return counts of this process's launches so far.

    Returns:
        ``launches`` and ``signatures``: launches, and distinct kinds of launch.
        ``learned_by_meta``: first launches of a signature whose results a meta kernel described.
        ``learned_by_running``: first launches that waited for their kernel, for want of a correct meta kernel.
        ``synchronous``: launches that always wait, because the shapes or values that they return depend on data.
        ``synchronous_ops``, ``learned_by_running_ops``: the same by operator.
        ``outputs_copied``: results that a kernel allocated itself and that were copied to their place.
        ``synchronizations``: explicit waits, blocking copies and reads.
    """
    register()
    stats: dict[str, Any] = json.loads(torch.ops.bringup.launch_stats())
    return stats
