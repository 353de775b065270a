"""The two names of the device: ``cuda`` in the program, ``chip`` below torch's Python."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

used: Counter[str] = Counter()  # name -> number of uses by the program


class _Naming:
    plain = False  # True while Inductor generates code: then `Tensor.device` returns chip, not cuda


naming = _Naming()


@contextmanager
def plain_devices() -> Generator[None]:
    """Make `Tensor.device` return the device ``chip`` inside the block, even if the program calls it ``cuda``."""
    before, naming.plain = naming.plain, True
    try:
        yield
    finally:
        naming.plain = before


def shown(device: torch.device) -> torch.device:
    """Return a device under the name that the program uses for it."""
    return torch.device("cuda", device.index) if device.type == "chip" else device


def real(device: Any) -> Any:
    """Return the chip for a device named ``cuda``, and any other argument unchanged."""
    if isinstance(device, torch.device):
        return _real(device)
    if isinstance(device, str) and (device == "cuda" or device.startswith("cuda:")):
        return _real(torch.device(device))
    return device


def _real(device: torch.device) -> torch.device:
    if device.type != "cuda":
        return device
    return torch.device("chip") if device.index is None else torch.device("chip", device.index)


def translating(function: Any) -> Any:
    """Return the function with the chip in place of every device that is called ``cuda``."""

    @functools.wraps(function)
    def translated(*args: Any, **kwargs: Any) -> Any:
        return function(*map(real, args), **{name: real(value) for name, value in kwargs.items()})

    return translated


def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its uses counted, and with the chip in place of devices called ``cuda``."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not name.startswith("_") and not is_torch(sys._getframe(1)):
            used[f"torch.cuda.{name}"] += 1
        args = tuple(real(argument) for argument in args)
        if "device" in kwargs:
            kwargs["device"] = real(kwargs["device"])
        return function(*args, **kwargs)

    return wrapper


def is_torch(frame: FrameType) -> bool:
    """Return True if torch's own code runs in the frame."""
    return str(frame.f_globals.get("__name__", "")).startswith("torch.")


def replace(owner: Any, name: str, wrapper: Any) -> None:
    """Replace a function of torch. TorchScript goes on compiling its calls to the operator that it knew it as."""
    from torch.jit import _builtins

    if operator := _builtins._find_builtin(getattr(owner, name)):  # type: ignore[no-untyped-call]
        _builtins._register_builtin(wrapper, operator)
    setattr(owner, name, wrapper)
