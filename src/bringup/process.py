"""What this process has chosen: its chip and its switches, by the command line, `use` or the environment.

What a user chooses for a whole process is here, and everybody reads it from here. Environment variables have one parser
each, below; it is asked when the choice is made, and that of the compiler whenever something is compiled.
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
MAX_DEVICES = 64  # the core opens as many


@dataclass
class Process:
    """The choices of a process.

    Attributes:
        chip: what `use` has chosen, or the first use of a device; None before that.
        named_cuda: ``cuda`` means the chip (`bringup.redirect_cuda`).
        compiler: whose kernels torch.compile launches: bringup's from the graph, or Inductor's in Triton. None: as the
            environment says.
    """

    chip: Chip | None = None
    named_cuda: bool = False
    compiler: Literal["graph", "triton"] | None = None

    def chosen_chip(self) -> Chip:
        """Return the chip. It is chosen before anything is launched."""
        assert self.chip is not None
        return self.chip

    def reset(self) -> None:
        """Forget all choices: for tests. The core keeps its chip, and torch stays redirected."""
        for field in fields(self):
            setattr(self, field.name, field.default)


process = Process()

# What rooms say of a run in the trace's `about`. Each is called when a recording begins, and what it returns is called
# when the trace is taken.
Facts = Callable[[Places], Callable[[], dict[str, Any]]]
FACTS: list[Facts] = []

ON_REDIRECT: list[Callable[[], None]] = []  # called when the name cuda begins to mean the chip


# ---- the environment


def asked_chip() -> str | None:
    """Return the chip that ``BRINGUP_CHIP`` names, None if it names none."""
    return os.environ.get("BRINGUP_CHIP") or None


def asked_devices() -> int:
    """Return the number of chips that ``BRINGUP_DEVICES`` asks for, 1 if it is not set.

    Raises:
        BringupError: it is not a whole number from 1 to `MAX_DEVICES`.
    """
    devices = os.environ.get("BRINGUP_DEVICES", "1")
    if not (devices.isascii() and devices.isdigit() and 1 <= int(devices) <= MAX_DEVICES):
        raise BringupError(f"BRINGUP_DEVICES must be a whole number from 1 to {MAX_DEVICES}, got {devices!r}")
    return int(devices)


def asked_driver() -> str:
    """Return the path of the driver's library that ``BRINGUP_DRIVER`` names; "" is the virtual chip."""
    return os.environ.get("BRINGUP_DRIVER", "")


def asked_build() -> bool | None:
    """Return what ``BRINGUP_BUILD`` says about building the core: False never, True even if it has failed before.

    None, if it is not set: build it where none fits, and not again after a failure.
    """
    return _is_set("BRINGUP_BUILD") if os.environ.get("BRINGUP_BUILD") else None


def asked_strict() -> bool:
    """Return True if ``BRINGUP_STRICT`` asks for an error where an operator would run on the host."""
    return _is_set("BRINGUP_STRICT")


def asked_check() -> bool:
    """Return True if ``BRINGUP_CHECK`` asks to catch accesses of the host to device memory."""
    return _is_set("BRINGUP_CHECK")


def asked_compiler() -> Literal["graph", "triton"]:
    """Return whose kernels torch.compile launches: the command line's choice, else that of ``BRINGUP_COMPILE``.

    Raises:
        BringupError: the variable names no compiler.
    """
    if process.compiler is not None:
        return process.compiler
    name = os.environ.get("BRINGUP_COMPILE") or "graph"
    if name == "graph" or name == "triton":
        return name  # type: ignore[return-value]
    raise BringupError(f"BRINGUP_COMPILE must be graph or triton, got {name!r}")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")
