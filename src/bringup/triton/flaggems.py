"""Replaces torch's operators on the chip by those of FlagGems, a library in Triton, on request.

FlagGems supports a fixed list of vendors. The chip poses as the one whose operators have no variants for specific
architectures, with the chip's own device and dispatch key.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch

from bringup.device import random
from bringup.device import torch_chip as device
from bringup.device.load import register
from bringup.errors import BringupError
from bringup.process import process
from bringup.triton import require_triton


class _Philox:
    """The default generator in the form for FlagGems: 16 bytes, a seed and an offset into its random numbers."""

    def __init__(self) -> None:
        self.seeding = -1
        self.offset = 0

    def get_state(self) -> torch.Tensor:
        """Return the chip's seed and the offset."""
        seed = device.initial_seed()
        seed = seed - 2**64 if seed >= 2**63 else seed
        if self.seeding != random.seedings:
            self.seeding, self.offset = random.seedings, 0
        return torch.tensor([seed, self.offset], dtype=torch.int64).view(torch.uint8)

    def set_state(self, state: torch.Tensor) -> None:
        """Continue at an offset."""
        self.offset = int(state.view(torch.int64)[1])


class _Torch:
    """The torch module for FlagGems' choice of block sizes: the properties of ``cuda`` are the chip's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, "chip" if name == "cuda" else name)


def load() -> Any:
    """Import FlagGems for the chip.

    Raises:
        BringupError: it is not installed, or was already imported for another device.
    """
    require_triton("FlagGems")
    spec = importlib.util.find_spec("flag_gems")
    if spec is None or spec.origin is None:
        raise BringupError("the operators of FlagGems need flag_gems, which is not installed: pip install flag_gems")
    name = "cuda" if process.named_cuda else "chip"
    if "flag_gems" in sys.modules:
        module = sys.modules["flag_gems"]
        if getattr(module, "device", "") != name:
            raise BringupError("flag_gems was imported for another device: enable it before the program imports it")
        return module
    register()
    backends = str(Path(spec.origin).parent / "runtime" / "backend")
    sys.path.append(backends)
    try:
        vendor: Any = importlib.import_module("_nvidia")
        heuristics: Any = importlib.import_module("_nvidia.heuristics_config_utils")
    finally:
        sys.path.remove(backends)
    vendor.vendor_info = dataclasses.replace(
        vendor.vendor_info, device_name=name, dispatch_key="PrivateUse1", triton_extra_name="cuda"
    )
    vendor.ARCH_MAP = {}
    heuristics.torch = _Torch()
    sys.modules.setdefault("torch.backends.chip", types.ModuleType("torch.backends.chip"))
    chip: Any = getattr(torch, name)
    chip.default_generators = [_Philox() for _ in range(chip.device_count())]
    previous_vendor = os.environ.get("GEMS_VENDOR")
    os.environ["GEMS_VENDOR"] = "nvidia"
    try:
        module = importlib.import_module("flag_gems")
    finally:
        os.environ.pop("GEMS_VENDOR")
        if previous_vendor is not None:
            os.environ["GEMS_VENDOR"] = previous_vendor
    entry: Any = importlib.import_module("flag_gems.utils.libentry")
    # Its way of calling a compiled kernel depends on the version of Triton; newer versions are called like 3.6.
    entry.minor_version = min(entry.minor_version, 6)
    return module


def enable() -> list[str]:
    """Replace torch's operators on the chip by FlagGems'; return their names.

    Raises:
        BringupError: FlagGems cannot be loaded.
    """
    module = load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about every replaced operator
        module.enable()
    return sorted(module.current_work_registrar.all_keys)
