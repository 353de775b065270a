"""A prediction of a function: call it once on the chip, record it, and price the recording."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from bringup.device import dry as dryrun
from bringup.device.load import use_unless_chosen
from bringup.errors import BringupError
from bringup.machine.files import load_chip
from bringup.recording.recording import record, step
from bringup.report.prediction import Prediction, price


def predict(
    function: Callable[..., Any],
    *args: Any,
    chip: str | os.PathLike[str],
    host: str | os.PathLike[str] | None = None,
    dry: bool = True,
    **kwargs: Any,
) -> Prediction:
    """Call ``function(*args, **kwargs)`` once on the virtual chip, record it, and price it.

    Nothing is computed (see `bringup.dry`), so models larger than this machine are as quick as small ones. Modules are
    left as and where they were. Tensors and modules among the arguments are moved to the chip first, which is not part
    of the prediction. The recording is priced on `chip`; the chip of the process stays what it is. One call is one
    step, unless the function marks steps itself.

    Args:
        function: what to run.
        args: its arguments.
        chip: name or file of the chip to price it on.
        host: name or file of the host.
        dry: compute nothing; False runs every kernel.
        kwargs: its named arguments.

    Raises:
        BringupError: nothing was launched on the chip.
    """
    described = load_chip(os.fspath(chip))
    use_unless_chosen(chip)
    modules = [item for item in (function, *args, *kwargs.values()) if isinstance(item, torch.nn.Module)]
    with dryrun.dry() if dry else nullcontext(), _put_back(modules) if dry else nullcontext():
        moved, named = _on_chip(args), _on_chip(kwargs)
        if isinstance(function, torch.nn.Module):
            function = function.to("chip")
        torch.chip.synchronize()  # type: ignore[attr-defined]
        with record() as trace:
            function(*moved, **named)
            torch.chip.synchronize()  # type: ignore[attr-defined]
            step()
    if not trace.launches:
        name = getattr(function, "__name__", type(function).__name__)
        raise BringupError(f"{name} launched nothing on the chip: make its tensors there, or pass them as arguments")
    return price(trace, described, host)


@contextmanager
def _put_back(modules: list[torch.nn.Module]) -> Iterator[None]:
    """Restore what modules held, because a dry run moves their parameters without their values."""
    inside = [inner for module in modules for inner in module.modules()]
    buffers = [(inner._buffers, name, value) for inner in inside for name, value in inner._buffers.items()]
    held = [(item, item.data, item.grad) for module in modules for item in module.parameters()]
    try:
        yield
    finally:
        for item, data, grad in held:
            item.grad = None
            item.data = data
            item.grad = grad
        for owner, name, value in buffers:
            owner[name] = value


def _on_chip(value: Any) -> Any:
    if isinstance(value, (torch.Tensor, torch.nn.Module)):
        return value.to("chip")
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_on_chip(item) for item in value)
    if isinstance(value, dict):
        return {name: _on_chip(item) for name, item in value.items()}
    return value
