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
from bringup.device import torch_versions
from bringup.device.choose import choose
from bringup.errors import BringupError
from bringup.process import asked_chip, asked_devices

# Rooms to the right of the device that hook torch, too: no others to the right are imported by name.
ROOMS = ("bringup.compile", "bringup.triton")

_registered = False


def _another_accelerator() -> str | None:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator is not None and accelerator.type != "chip" else None


def autoload() -> None:
    """Entry point of ``torch.backends``, called by ``import torch``.

    Never raises: a program that does not use the chip must not notice. On a machine with a real accelerator that one
    stays current until the program asks for a chip.
    """
    problem = core.problem()
    if problem is not None:
        warnings.warn(problem, stacklevel=2)
    elif asked_chip() or _another_accelerator() is None:
        try:
            register()
        except (OSError, RuntimeError) as error:
            warnings.warn(f"bringup's core does not load, so the device 'chip' is not there: {error}", stacklevel=2)


def register() -> None:
    """Make ``chip`` a device of this process. Raises VersionError if the core does not fit this torch."""
    global _registered
    if _registered:
        return
    from torch.utils import backend_registration

    core.load()
    from bringup.device import torch_chip  # it takes the core's operators

    torch.ops.bringup.start()
    backend_registration.rename_privateuse1_backend("chip")
    torch._register_device_module("chip", torch_chip)  # type: ignore[no-untyped-call]
    torch_versions.mark_as_lazy(torch_chip)
    backend_registration.generate_methods_for_privateuse1_backend(for_tensor=True, for_module=True, for_storage=True)
    with suppress(BringupError):  # raised at the first use of a chip: `import torch` must not fail
        torch.ops.bringup.set_device_count(asked_devices())
    torch_chip.patch_torch()
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
    """Choose the chip of this process, before its first use.

    Args:
        chip: the name of a chip (`available_chips`) or the path of a chip file.
        devices: how many of them: ``chip:0`` to ``chip:{devices - 1}``.
        check: catch host dereferences of device memory (default: ``BRINGUP_CHECK``). Slower.
        driver: path of a driver library (csrc/driver.h; default: ``BRINGUP_DRIVER``, else the virtual chip).
        strict: raise where an operator would run on the host because the chip does not list it (default:
            ``BRINGUP_STRICT``).
        past_capacity: memory does not end at the chip's capacity; the report says by how much it was exceeded.

    Raises:
        UnknownChipError, ChipFileError: the chip cannot be read.
        ChipInUseError: the chip is open already.
    """
    register()
    choose(chip, devices=devices, check=check, driver=driver, strict=strict, past_capacity=past_capacity)


def use_unless_chosen(chip: str | os.PathLike[str]) -> None:
    """Choose the chip of this process, unless it has one."""
    register()
    if not torch.ops.bringup.is_open() and not torch.ops.bringup.is_configured():
        choose(chip)


def launch_stats() -> dict[str, Any]:
    """Count what the process launched so far.

    Returns:
        ``launches``, ``signatures``; ``learned_by_meta``: first launches of a signature that a meta kernel answered;
        ``learned_by_running``: those that waited for their kernel, as it has no (correct) meta kernel; ``synchronous``:
        launches that wait every time, since what they return depends on data; ``synchronous_ops`` and
        ``learned_by_running_ops``: operator -> count; ``outputs_copied``: results that a kernel placed elsewhere;
        ``synchronizations``: explicit waits, blocking copies and reads.
    """
    register()
    stats: dict[str, Any] = json.loads(torch.ops.bringup.launch_stats())
    return stats
