"""Finds or builds the C++ core that fits this torch, and loads it. torch is imported when it is needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from bringup import core_build, core_cache
from bringup.core_build import BuildError, Library, Torch
from bringup.errors import VersionError
from bringup.process import asked_build


def torch_here() -> Torch:
    """Return the torch of this process.

    Raises:
        VersionError: it is not installed, or too old.
    """
    try:
        import torch
    except ImportError as error:
        if error.name != "torch":
            raise
        raise VersionError(core_build.NEEDS_TORCH) from None
    home = Path(str(torch.__file__)).parent
    here = Torch(home, str(torch.__version__), int(torch._C._GLIBCXX_USE_CXX11_ABI))
    if refusal := here.refusal():
        raise VersionError(refusal)
    return here


def compiled(library: Library) -> Path:
    """Return the path of a compiled library; build it into the user's cache if there is none.

    Raises:
        VersionError: there is none and it cannot be built, or ``BRINGUP_BUILD=0`` forbids it.
    """
    path = core_cache.find(library)
    if path is not None:
        return path
    build = asked_build()
    if build is False:
        raise VersionError(
            f"{library.title} is not built yet, and BRINGUP_BUILD=0 forbids building it: unset it, or "
            "reinstall bringup in this environment"
        )
    try:
        return core_cache.build_into_cache(library, again=bool(build))
    except BuildError as error:
        raise VersionError(str(error)) from None


def core_path() -> Path:
    """Return the path of the core that fits this torch; the errors are those of `torch_here` and `compiled`."""
    return compiled(core_build.core_library(torch_here()))


def driver_path(name: str) -> str:
    """Return the path of a driver library: a driver of bringup by its name, any other as it is.

    A driver in a Python file is loaded into the library of such drivers.

    Raises:
        BringupError: the Python file has no driver.
        VersionError: the driver is not built, and cannot be built.
    """
    if name.endswith(".py"):
        from bringup.driver import python  # imports numpy

        library = str(compiled(core_build.driver_library("python")))
        python.load(os.path.abspath(name), library)
        return library
    if name not in core_build.DRIVERS:
        return name
    if name == "cuda":  # pip's packages of NVIDIA's libraries
        folders = [folder for path in sys.path for folder in Path(path or ".").glob("nvidia/*/lib")]
        os.environ.setdefault("BRINGUP_CUDA_LIBRARIES", ":".join(map(str, folders)))
    if name == "rtl" and "BRINGUP_RTL_SIMULATION" not in os.environ:
        os.environ["BRINGUP_RTL_SIMULATION"] = str(compiled(core_build.simulation_library()))
    return str(compiled(core_build.driver_library(name)))


@contextmanager
def loading(path: Path) -> Iterator[str]:
    """Yield a library's path as text, and say in one sentence if it does not load.

    Raises:
        VersionError: it was built for another system, or it is damaged.
    """
    try:
        yield str(path)
    except OSError as error:
        raise VersionError(f"{path} does not load ({error}): delete it, and it is built anew") from None


def refuse_another_device() -> None:
    """Raise VersionError if another package has taken PyTorch's only place for an out-of-tree device."""
    import torch

    registered = torch._C._get_privateuse1_backend_name()
    if registered not in ("privateuseone", "chip"):
        raise VersionError(
            f"another package has registered the device {registered!r}, and PyTorch has room for one such device in a "
            "process: uninstall one of the two, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0 and load the one you want"
        )


@cache
def load() -> None:
    """Load the core, so that ``torch.ops.bringup`` is there.

    Raises:
        VersionError: no core fits this torch, or another package has taken PyTorch's only place for a device.
    """
    torch_here()
    refuse_another_device()
    import torch

    with loading(core_path()) as path:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
