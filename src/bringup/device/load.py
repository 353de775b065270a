"""Loading the device into torch, and choosing the chip."""

from __future__ import annotations

import atexit
import importlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bringup.errors import BringupError, ChipInUseError, VersionError

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

DEFAULT_CHIP = "edge8"
MAX_DEVICES = 64
ROOMS = ("bringup.compile", "bringup.triton")  # they patch torch, by `install`, once the device is registered

# c10/core/ScalarType.h: the order is part of torch's file formats.
_SCALAR_TYPES = {
    name: number
    for number, name in enumerate(
        (
            *("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "complex32", "complex64"),
            *("complex128", "bool", "qint8", "quint8", "qint32", "bfloat16", "quint4x2", "quint2x4", "bits1x8"),
            *("bits2x4", "bits4x2", "bits8", "bits16", "float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz"),
            *("float8_e4m3fnuz", "uint16", "uint32", "uint64"),
        )
    )
}

_registered = False
chosen: Chip | None = None  # the chip of this process, once it is chosen
on_redirect: list[Callable[[], None]] = []  # called when the name cuda begins to mean the chip


def _core() -> Path:
    return next(Path(__file__).parents[1].glob("_core*.so"), Path("bringup/_core.so"))


def _problem() -> str | None:
    """Say in one sentence why this torch cannot load the core; None if it can."""
    try:
        from bringup._build import TORCH
    except ImportError:
        return "bringup's C++ core is not built: install it with `pip install --no-build-isolation .`"
    found = torch.__version__
    if found.split("+")[0] != TORCH.split("+")[0]:
        return (
            f"bringup was built for torch {TORCH} and this is torch {found}, so the device 'chip' is not there: "
            "reinstall bringup with this torch (pip install --force-reinstall --no-deps --no-build-isolation bringup)"
        )
    taken = torch._C._get_privateuse1_backend_name()
    if taken not in ("privateuseone", "chip"):
        return (
            f"another package has registered the device {taken!r}, and PyTorch has room for one such device in a "
            "process: uninstall one of the two, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0 and load the one you want"
        )
    return None


def _another_accelerator() -> str | None:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator is not None and accelerator.type != "chip" else None


def autoload() -> None:
    """Entry point of ``torch.backends``, called by ``import torch``.

    Never raises: a program that does not use the chip must not notice. On a machine with a real accelerator that one
    stays current until the program asks for a chip.
    """
    problem = _problem()
    if problem is not None:
        warnings.warn(problem, stacklevel=2)
    elif os.environ.get("BRINGUP_CHIP") or _another_accelerator() is None:
        try:
            register()
        except (OSError, RuntimeError) as error:
            warnings.warn(f"bringup's core does not load, so the device 'chip' is not there: {error}", stacklevel=2)


def register() -> None:
    """Make ``chip`` a device of this process. Raises VersionError if the core does not fit this torch."""
    global _registered
    if _registered:
        return
    problem = _problem()
    if problem is not None:
        raise VersionError(problem)
    from torch.utils import backend_registration

    torch.ops.load_library(str(_core()))  # type: ignore[no-untyped-call]
    from bringup.device import torch_chip as device

    torch.ops.bringup.start()
    backend_registration.rename_privateuse1_backend("chip")
    torch._register_device_module("chip", device)  # type: ignore[no-untyped-call]
    backend_registration.generate_methods_for_privateuse1_backend(for_tensor=True, for_module=True, for_storage=True)
    torch.ops.bringup.set_device_count(_devices_from_environment())
    device._patch_torch()
    for name in ROOMS:
        importlib.import_module(name).install()
    atexit.register(torch.ops.bringup.shutdown)
    _registered = True


def _devices_from_environment() -> int:
    text = os.environ.get("BRINGUP_DEVICES", "1")
    return int(text) if text.isdigit() and 1 <= int(text) <= MAX_DEVICES else 1


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
    from bringup.machine.files import load_chip

    register()
    described = load_chip(os.fspath(chip))
    if torch.ops.bringup.is_open():
        raise ChipInUseError(
            f"{described.name} was asked for, but {torch.ops.bringup.chip()} is in use already: "
            "choose the chip before the first tensor is made on it (bringup.use at the top, or BRINGUP_CHIP)"
        )
    if not isinstance(devices, int) or not 1 <= devices <= MAX_DEVICES:
        raise BringupError(f"devices must be a whole number from 1 to {MAX_DEVICES}, got {devices!r}")
    global chosen
    chosen = described
    refuse = _flag("BRINGUP_STRICT") if strict is None else strict
    torch.ops.bringup.set_fallbacks(*_host_dtypes(described), refuse)
    checking = _flag("BRINGUP_CHECK") if check is None else check
    library = os.environ.get("BRINGUP_DRIVER", "") if driver is None else driver
    torch.ops.bringup.configure(
        described.name, described.description, devices, described.device_bytes, checking, library, past_capacity
    )


def _host_dtypes(chip: Chip) -> tuple[list[str], list[int]]:
    """Operators with the dtypes, as bits, that a chip leaves to the host."""
    from bringup.cost import family_of, named_family_of
    from bringup.cost.signature import ITEM_BYTES

    bits = {name: _SCALAR_TYPES[name] for name in ITEM_BYTES if name in _SCALAR_TYPES}
    missing = [name for name in bits if name not in chip.ops.dtypes]
    if not (missing or chip.ops.groups or chip.ops.host):
        return [], []
    names, masks = [], []
    named = {entry.split(" ")[0] for entry in chip.ops.host}
    masks_of: dict[str, int] = {}  # family -> bits, of operators that the chip file does not name
    for op in torch._C._dispatch_get_all_op_names():
        family = named_family_of(op) or (family_of(op) if chip.ops.groups else "other")
        base = op.split(".")[0]
        special = base in named or base.removesuffix("_") in named
        mask = None if special else masks_of.get(family)
        if mask is None:
            mask = sum(1 << bit for name, bit in bits.items() if not chip.supports(op, family, name))
            if not special:
                masks_of[family] = mask
        if mask:
            names.append(op)
            masks.append(mask)
    return names, masks


def choose_from_environment() -> None:
    """Choose what ``BRINGUP_CHIP`` and ``BRINGUP_DEVICES`` say, or the default chip. Called at first use."""
    devices = os.environ.get("BRINGUP_DEVICES", "1")
    if not devices.isdigit() or not 1 <= int(devices) <= MAX_DEVICES:
        raise BringupError(f"BRINGUP_DEVICES must be a whole number from 1 to {MAX_DEVICES}, got {devices!r}")
    use(os.environ.get("BRINGUP_CHIP") or DEFAULT_CHIP, devices=int(devices))


def _flag(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


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
