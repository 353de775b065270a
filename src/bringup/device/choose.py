"""The choice of the process's chip, which configures the core."""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import TYPE_CHECKING

import torch

from bringup import core
from bringup.cost import family_of, named_family_of
from bringup.errors import BringupError, ChipInUseError
from bringup.machine.files import load_chip
from bringup.machine.vocabulary import ITEM_BYTES
from bringup.paths import Places
from bringup.process import (
    DEFAULT_CHIP,
    MAX_DEVICES,
    asked_check,
    asked_chip,
    asked_devices,
    asked_driver,
    asked_strict,
    process,
)
from bringup.text import quantity, size

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

MOST_BLOCKS = 1000  # that are counted
# c10/core/ScalarType.h: the order is part of torch's file formats.
SCALAR_TYPES = {
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


def choose(
    chip: str | os.PathLike[str],
    *,
    devices: int = 1,
    check: bool | None = None,
    driver: str | None = None,
    strict: bool | None = None,
    past_capacity: bool = False,
) -> None:
    """Choose the chip, after the device is registered; see `bringup.use` for the arguments and errors."""
    described = load_chip(os.fspath(chip))
    if torch.ops.bringup.is_open():
        _release(described.name)
    if not isinstance(devices, int) or not 1 <= devices <= MAX_DEVICES:
        raise BringupError(f"devices must be a whole number from 1 to {MAX_DEVICES}, got {devices!r}")
    checking = asked_check() if check is None else check
    library = core.driver_path(asked_driver() if driver is None else driver)
    configuration = (
        *(described.name, described.description, devices, described.device_bytes, described.context_bytes),
        *(described.blas_bytes, described.blas_lt_bytes, checking, library, past_capacity),
    )
    if torch.ops.bringup.is_open():
        try:
            torch.ops.bringup.configure(*configuration)
        except RuntimeError as error:
            raise ChipInUseError(str(error).splitlines()[0]) from None
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()  # compiled graphs keep decisions for the chip before
    else:
        torch.ops.bringup.configure(*configuration)
    process.chip = described
    torch.ops.bringup.set_fallbacks(*_host_dtypes(described), asked_strict() if strict is None else strict)


def _release(name: str) -> None:
    """Give back all memory of the chip that is in use, before another one takes its place.

    Raises:
        ChipInUseError: tensors are alive, or a recording is running.
    """
    before, where = torch.ops.bringup.chip(), "at the top of the program (bringup.use), or by BRINGUP_CHIP"
    if torch.ops.bringup.is_recording():
        raise ChipInUseError(f"cannot change from {before} to {name} during a recording: choose the chip {where}")
    gc.collect()
    torch.accelerator.synchronize()
    torch.ops.bringup.clear_workspaces()
    opened = [index for index in range(torch.accelerator.device_count()) if torch.ops.bringup.is_open_device(index)]
    blocks = [block for index in opened for block in json.loads(torch.ops.bringup.live_blocks(index, MOST_BLOCKS))]
    if blocks:
        more = "at least " if len(blocks) == MOST_BLOCKS else ""
        line = Places.of_process().line
        largest = "; ".join(f"{size(block['bytes'])} {block['what']} at {line(block['line'])}" for block in blocks[:3])
        raise ChipInUseError(
            f"cannot change from {before} to {name}: {more}{quantity(len(blocks), 'tensor')} of {before} still alive "
            f"({largest}); delete {'it' if len(blocks) == 1 else 'them'}, or choose the chip {where}"
        )
    torch.accelerator.empty_cache()


def _host_dtypes(chip: Chip) -> tuple[list[str], list[int]]:
    """Return the operators that run on the host in some dtypes, and those dtypes as a bit mask for each."""
    bits = {name: SCALAR_TYPES[name] for name in ITEM_BYTES if name in SCALAR_TYPES}
    missing = [name for name in bits if name not in chip.ops.dtypes]
    # Operators on sparse tensors are not in torch's list under names of their own.
    names, masks = (
        ["sparse"],
        [sum(1 << bit for name, bit in bits.items() if not chip.supports("sparse", "sparse", name))],
    )
    groups = chip.ops.groups.keys() - {"sparse", "rnn"}  # families of no operator in that list
    if not (missing or groups or chip.ops.host):
        return names, masks
    named = {entry.split(" ")[0] for entry in chip.ops.host}
    masks_of: dict[str, int] = {}  # family -> mask of the operators without an exception in the chip file
    for op in torch._C._dispatch_get_all_op_names():
        family = named_family_of(op) or (family_of(op) if groups else "other")
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
    """Choose the chip from ``BRINGUP_CHIP`` and ``BRINGUP_DEVICES``, or the default chip. Called at the first use."""
    choose(asked_chip() or DEFAULT_CHIP, devices=asked_devices())
