"""The import hook for TensorFlow: `watch_import` makes a program's functions run on the chip.

It imports neither TensorFlow nor torch: a program that does not import TensorFlow pays nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from importlib import metadata
from types import ModuleType

from bringup.errors import BringupError, VersionError
from bringup.imports import after_import
from bringup.process import asked_driver

TESTED = "2.21"  # the release of TensorFlow that our tests ran with


def watch_import(strict: bool = False) -> None:
    """Take over TensorFlow's functions as soon as the program imports it; if strict, all have to run on the chip.

    On a driver's chip, and in another release than the one that was tested, they stay on the host, which is said:
    torch's programs import TensorFlow, too.
    """
    after_import("tensorflow", partial(_activate, strict=strict), before=_load_triton)


def check(version: str | None = None) -> None:
    """Raise an error if TensorFlow's functions cannot run on the chip.

    Args:
        version: the release of TensorFlow, by default the installed one.

    Raises:
        VersionError: it is not the release that was tested.
        BringupError: the chip is that of a driver, whose memory TensorFlow cannot share.
    """
    version = version or next(filter(None, map(_installed, ("tensorflow", "tensorflow-cpu"))), "of unknown version")
    if not version.startswith(f"{TESTED}."):
        raise VersionError(
            f"TensorFlow {version} is not {TESTED}, the release that was tested: pip install 'bringup[tensorflow]'"
        )
    if asked_driver():
        raise BringupError(
            "TensorFlow needs the virtual chip, whose memory it shares: leave out --driver, or unset BRINGUP_DRIVER"
        )


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _activate(module: ModuleType, strict: bool) -> None:
    try:
        check(str(getattr(module, "__version__", "of unknown version")))
    except BringupError as error:
        print(f"bringup: TensorFlow's functions stay on the host: {error}", file=sys.stderr)
        return
    from bringup.frontends.tensorflow import functions, keras  # the first imports torch

    functions.activate(strict)
    keras.watch_import()


def _load_triton() -> None:
    """Import Triton, if it is installed. Both bring LLVM, and the process dies if TensorFlow's is loaded first."""
    if "triton" not in sys.modules and importlib.util.find_spec("triton") is not None:
        import triton  # noqa: F401
