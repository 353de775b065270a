"""The C++ core: whether this torch can load it, and loading it. torch is imported when the core is needed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from bringup.errors import VersionError


def _library() -> Path:
    return next(Path(__file__).parent.glob("_core*.so"), Path("bringup/_core.so"))


def problem() -> str | None:
    """Return one sentence on why the core cannot be loaded; None if it can."""
    try:
        from bringup._build import TORCH
    except ImportError:
        return "bringup's C++ core is not built: install it with `pip install --no-build-isolation .`"
    import torch

    version = torch.__version__
    if version.split("+")[0] != TORCH.split("+")[0]:
        return (
            f"bringup was built for torch {TORCH} and this is torch {version}, so the device 'chip' is not there: "
            "reinstall bringup with this torch (pip install --force-reinstall --no-deps --no-build-isolation bringup)"
        )
    registered = torch._C._get_privateuse1_backend_name()
    if registered not in ("privateuseone", "chip"):
        return (
            f"another package has registered the device {registered!r}, and PyTorch has room for one such device in a "
            "process: uninstall one of the two, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0 and load the one you want"
        )
    return None


@cache
def load() -> None:
    """Load the core, so that ``torch.ops.bringup`` is there. A replay needs no more than that.

    Raises:
        VersionError: the core does not fit this torch.
    """
    reason = problem()
    if reason is not None:
        raise VersionError(reason)
    import torch

    torch.ops.load_library(str(_library()))  # type: ignore[no-untyped-call]
