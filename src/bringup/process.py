"""The choices that hold for a whole process: its chip and its switches.

They come from the command line, from `use` or from environment variables. Each environment variable has one parser
below, which runs when the choice is made. ``BRINGUP_COMPILE`` is read at each compilation.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from bringup.errors import BringupError
from bringup.paths import Places

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

DEFAULT_CHIP = "edge8"
MAX_DEVICES = 64  # the core's limit
EXPANDABLE = "PYTORCH_ALLOC_CONF=expandable_segments:True"


@dataclass
class Process:
    """The choices of a process.

    Attributes:
        chip: the chip chosen by `use` or by the first use of a device; None before that.
        named_cuda: True if ``cuda`` means the chip (`bringup.redirect_cuda`).
        compiler: the kernels that torch.compile launches: bringup's from the graph, or Inductor's in Triton. If it is
            None, the environment decides.
    """

    chip: Chip | None = None
    named_cuda: bool = False
    compiler: Literal["graph", "triton"] | None = None

    def chosen_chip(self) -> Chip:
        """Return the chip, which must have been chosen; this is so after the first launch."""
        assert self.chip is not None
        return self.chip

    def reset(self) -> None:
        """Forget all choices, for tests. The core keeps its chip, and torch stays redirected."""
        for field in fields(self):
            setattr(self, field.name, field.default)


process = Process()

# Contributions of other modules to a trace's `about`. Each function is called when a recording begins; the function
# that it returns is called when the recording ends.
Facts = Callable[[Places], Callable[[], dict[str, Any]]]
FACTS: list[Facts] = []

ON_USE: list[Callable[[], None]] = []  # called by `use`, after a chip is chosen
ON_REDIRECT: list[Callable[[], None]] = []  # called by `redirect_cuda`


# ---- the environment


def asked_chip() -> str | None:
    """Return the chip named by ``BRINGUP_CHIP``, None if it is not set."""
    return os.environ.get("BRINGUP_CHIP") or None


def asked_devices() -> int:
    """Return the number of chips set by ``BRINGUP_DEVICES``, 1 if it is not set.

    Raises:
        BringupError: the value is not a whole number from 1 to `MAX_DEVICES`.
    """
    devices = os.environ.get("BRINGUP_DEVICES", "1")
    if not (devices.isascii() and devices.isdigit() and 1 <= int(devices) <= MAX_DEVICES):
        raise BringupError(f"BRINGUP_DEVICES must be a whole number from 1 to {MAX_DEVICES}, got {devices!r}")
    return int(devices)


def asked_driver() -> str:
    """Return the driver named by ``BRINGUP_DRIVER``: a name such as ``cuda``, or a path; "" is the virtual chip."""
    name = os.environ.get("BRINGUP_DRIVER", "")
    return "" if name == "virtual" else name


def asked_allocator() -> tuple[str, str]:
    """Return the allocator's settings, after the name of the variable that has them; torch reads the same ones."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    name = next((name for name in names if name in os.environ), names[0])
    return name, os.environ.get(name, "")


def asked_build() -> bool | None:
    """Return what ``BRINGUP_BUILD`` says about building the core: False never, True even if it has failed before.

    None, if it is not set: build it where none fits, and not again after a failure.
    """
    return _is_set("BRINGUP_BUILD") if os.environ.get("BRINGUP_BUILD") else None


def asked_strict() -> bool:
    """Return True if ``BRINGUP_STRICT`` asks for an error where an operator would run on the host."""
    return _is_set("BRINGUP_STRICT")


def asked_check() -> bool:
    """Return True if ``BRINGUP_CHECK`` asks for an error where the host accesses device memory."""
    return _is_set("BRINGUP_CHECK")


def asked_compiler() -> Literal["graph", "triton"]:
    """Return the compiler whose kernels torch.compile launches, set on the command line or by ``BRINGUP_COMPILE``.

    Raises:
        BringupError: the value of the variable is not a compiler.
    """
    if process.compiler is not None:
        return process.compiler
    name = os.environ.get("BRINGUP_COMPILE") or "graph"
    if name == "graph" or name == "triton":
        return name  # type: ignore[return-value]
    raise BringupError(f"BRINGUP_COMPILE must be graph or triton, got {name!r}")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")
