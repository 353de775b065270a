"""bringup: run an unmodified PyTorch program on an AI chip that you do not have."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bringup.device.cuda import redirect_cuda
    from bringup.device.dry import DryWarning, dry
    from bringup.device.load import launch_stats, use
    from bringup.errors import (
        BringupError,
        ChipFileError,
        ChipInUseError,
        TraceError,
        UnknownChipError,
        VersionError,
    )
    from bringup.machine.files import (
        available_chips,
        available_clusters,
        available_hosts,
        available_nodes,
        load_chip,
        load_host,
    )
    from bringup.machine.schema import Chip, Host
    from bringup.machine.topology import load_cluster
    from bringup.placement.apply import placed
    from bringup.placement.place import place
    from bringup.placement.plan import Plan
    from bringup.pricing.collective import collective_seconds
    from bringup.recording.recording import record, step
    from bringup.recording.trace import Trace
    from bringup.report.predict import predict
    from bringup.report.prediction import Prediction, price

__all__ = [
    "BringupError",
    "Chip",
    "ChipFileError",
    "ChipInUseError",
    "DryWarning",
    "Host",
    "Plan",
    "Prediction",
    "Trace",
    "TraceError",
    "UnknownChipError",
    "VersionError",
    "available_chips",
    "available_clusters",
    "available_hosts",
    "available_nodes",
    "collective_seconds",
    "dry",
    "launch_stats",
    "load_chip",
    "load_cluster",
    "load_host",
    "place",
    "placed",
    "predict",
    "price",
    "record",
    "redirect_cuda",
    "step",
    "use",
]

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("Chip", "Host"), "machine.schema"),
    **dict.fromkeys(("available_chips", "available_hosts", "load_chip", "load_host"), "machine.files"),
    **dict.fromkeys(("available_clusters", "available_nodes"), "machine.files"),
    "load_cluster": "machine.topology",
    "collective_seconds": "pricing.collective",
    **dict.fromkeys(("launch_stats", "use"), "device.load"),
    **dict.fromkeys(("Prediction", "price"), "report.prediction"),
    "place": "placement.place",
    "placed": "placement.apply",
    "Plan": "placement.plan",
    "predict": "report.predict",
    "Trace": "recording.trace",
    **dict.fromkeys(("record", "step"), "recording.recording"),
    **dict.fromkeys(("DryWarning", "dry"), "device.dry"),
    "redirect_cuda": "device.cuda",
    "load_ipython_extension": "notebook",
    **dict.fromkeys((name for name in __all__ if name.endswith("Error")), "errors"),
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use.

    `import torch` imports this package, so the import must take no time. The command line also starts without torch.
    """
    import importlib
    import sys

    if name == "kernels":
        return importlib.import_module("bringup.kernels")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"bringup.{_HOMES[name]}"), name)
    setattr(sys.modules[__name__], name, value)
    return value
