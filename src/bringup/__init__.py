"""bringup: run an unmodified PyTorch program on an AI chip that you do not have."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bringup._load import launch_stats, use
    from bringup._schema import Chip, Host
    from bringup.chip import available_chips, available_hosts, load_chip, load_host
    from bringup.dryrun import DryWarning, dry
    from bringup.errors import (
        BringupError,
        ChipFileError,
        ChipInUseError,
        TraceError,
        UnknownChipError,
        VersionError,
    )
    from bringup.prediction import Prediction, predict, price
    from bringup.redirect import redirect_cuda
    from bringup.trace import Trace, record, step

__all__ = [
    "BringupError",
    "Chip",
    "ChipFileError",
    "ChipInUseError",
    "DryWarning",
    "Host",
    "Prediction",
    "Trace",
    "TraceError",
    "UnknownChipError",
    "VersionError",
    "available_chips",
    "available_hosts",
    "dry",
    "launch_stats",
    "load_chip",
    "load_host",
    "predict",
    "price",
    "record",
    "redirect_cuda",
    "step",
    "use",
]

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("Chip", "Host"), "_schema"),
    **dict.fromkeys(("available_chips", "available_hosts", "load_chip", "load_host"), "chip"),
    **dict.fromkeys(("launch_stats", "use"), "_load"),
    **dict.fromkeys(("Prediction", "predict", "price"), "prediction"),
    **dict.fromkeys(("Trace", "record", "step"), "trace"),
    **dict.fromkeys(("DryWarning", "dry"), "dryrun"),
    "redirect_cuda": "redirect",
    **dict.fromkeys((name for name in __all__ if name.endswith("Error")), "errors"),
}


def __getattr__(name: str) -> Any:
    """Import public names when they are first asked for.

    `import torch` imports this package, which must cost it nothing; and the command line answers without torch.
    """
    import importlib
    import sys

    if name == "kernels":
        return importlib.import_module("bringup.kernels")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOMES[name] == "_load":
        importlib.import_module("torch")  # which imports bringup._load: it must not be half-imported by then
    value = getattr(importlib.import_module(f"bringup.{_HOMES[name]}"), name)
    setattr(sys.modules[__name__], name, value)
    return value
