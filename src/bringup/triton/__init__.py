"""Triton on the chip, for a program's own kernels; see docs/kernels.md."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from bringup.compile import compilers
from bringup.errors import BringupError
from bringup.process import ON_REDIRECT, ON_USE, asked_chip
from bringup.recording.findings import Finding, Watch, watches


def install() -> None:
    """Register Triton with torch.compile, the redirect and the sanitizer. Triton itself is not imported."""
    compilers["triton"] = _compile
    ON_REDIRECT.append(choose_for_triton)
    ON_USE.append(_choose_beside_gpus)
    if asked_chip() and _is_beside_gpus():
        with suppress(ImportError):  # a circle, if one of our modules is imported before torch
            choose_for_triton()
    watches.append(Watch(_watched, _take))


def _compile(graph: Any, inputs: Sequence[Any], patches: dict[str, Any]) -> Any:
    require_triton("BRINGUP_COMPILE=triton")
    from bringup.triton import inductor  # imports Inductor

    return inductor.compile_graph(graph, inputs, patches, choose_for_triton)


@contextmanager
def _watched() -> Iterator[None]:
    from bringup.triton import shadow  # imports torch

    with shadow.watched():
        yield


def _take() -> list[Finding]:
    from bringup.triton import shadow  # imports torch

    return shadow.take()


def choose_for_triton() -> None:
    """Make the chip Triton's device in this process and its children, although torch or Triton sees a GPU."""
    os.environ["TRITON_DEFAULT_BACKEND"] = "chip"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return
    if "triton" in sys.modules or tuple(map(int, version.split(".")[:2])) < (3, 7):  # older versions do not read it
        _activate()


def _choose_beside_gpus() -> None:
    """Make the chip Triton's device where Triton sees a GPU, too: it refuses to choose between two.

    The environment stays as it is, so that torch.compile finds Triton's driver for the GPU.
    """
    if _is_beside_gpus() and importlib.util.find_spec("triton") is not None:
        _activate()


def _is_beside_gpus() -> bool:
    from bringup.device.load import visible_gpus  # imports torch

    return visible_gpus() > 0


def _activate() -> None:
    import triton.runtime

    from bringup.triton.driver import ChipDriver  # imports Triton

    triton.runtime.driver.set_active(ChipDriver())


def require_triton(option: str) -> None:
    """Raise unless Triton is installed.

    Raises:
        BringupError: Triton is missing; the message names the extra to install.
    """
    if importlib.util.find_spec("triton") is None:
        raise BringupError(f'{option} needs Triton, which is not installed: pip install "bringup[triton]"')
