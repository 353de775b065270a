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
from bringup.frontends.inputs import stand_ins
from bringup.machine.files import load_chip
from bringup.recording.recording import record, step
from bringup.report.prediction import Prediction, price


def predict(
    function: Any,
    *args: Any,
    chip: str | os.PathLike[str],
    host: str | os.PathLike[str] | None = None,
    dry: bool = True,
    **kwargs: Any,
) -> Prediction:
    """Call ``function(*args, **kwargs)`` once on the virtual chip, record it, and price it.

    Nothing is computed (see `bringup.dry`), so the model may be larger than this machine's memory. Tensors and modules
    among the arguments are moved to the chip first, which is not part of the prediction. Afterwards, modules have their
    old device and values. The recording is priced on `chip`; the chip of the process does not change. One call is one
    step unless the function marks steps itself.

    Args:
        function: the function or module to call, what ``jax.jit(f).lower(x)`` returns, or the path of an ONNX model or
            a StableHLO module (``.mlir``).
        args: its arguments. A model whose inputs have no dynamic axes needs none, a lowered program takes none.
        chip: name or file of the chip to price it on.
        host: name or file of the host (default: see `load_host`).
        dry: True computes nothing; False runs every kernel.
        kwargs: its keyword arguments.

    Raises:
        BringupError: nothing was launched on the chip.
    """
    described = load_chip(os.fspath(chip))
    about: dict[str, Any] = {}
    prepare = False
    if is_lowered(function) or isinstance(function, (str, os.PathLike)):
        function, args, about["framework"] = _model(function, args, kwargs, dry)
        prepare = about["framework"] != "onnx"
    use_unless_chosen(chip)
    modules = [item for item in (function, *args, *kwargs.values()) if isinstance(item, torch.nn.Module)]
    with dryrun.dry() if dry else nullcontext(), _put_back(modules, values=dry):
        chip_args, chip_kwargs = _on_chip(args), _on_chip(kwargs)
        if isinstance(function, torch.nn.Module):
            function = function.to("chip")
        if prepare:  # a program's constants move to the chip in its first run
            function(*chip_args, **chip_kwargs)
        torch.chip.synchronize()  # type: ignore[attr-defined]
        with record() as trace:
            function(*chip_args, **chip_kwargs)
            torch.chip.synchronize()  # type: ignore[attr-defined]
            step()
    if not trace.launches:
        name = getattr(function, "__name__", type(function).__name__)
        raise BringupError(
            f"{name} launched nothing on the chip: create its tensors on the device 'chip', or pass them as arguments"
        )
    trace.about |= about
    return price(trace, described, host)


def _model(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dry: bool
) -> tuple[Callable[..., Any], tuple[Any, ...], str]:
    """Return a model to call, its arguments, or stand-ins if there are none, and its framework."""
    if not is_lowered(model) and not os.fspath(model).endswith(".mlir"):
        from bringup.frontends.onnx.model import load_onnx  # needs the package onnx
        from bringup.frontends.onnx.program import inputs_of
        from bringup.frontends.onnx.program import stand_ins as onnx_inputs

        loaded = load_onnx(model, device="cpu")
        if args or kwargs:
            return loaded, args, "onnx"
        return loaded, tuple(onnx_inputs(inputs_of(loaded.graph, os.fspath(model)), dry=dry)), "onnx"
    from bringup.frontends.stablehlo import executor, module, program  # needs jaxlib

    lowered = is_lowered(model)
    ready = program.lowered_program(model) if lowered else executor.Program(module.read_file(model))
    if args or kwargs:
        raise BringupError(f"{ready.__name__}: has the sizes of its inputs: leave out the arguments")
    return ready, tuple(stand_ins(program.described(ready), dry=dry)), "jax" if lowered else "stablehlo"


def is_lowered(function: object) -> bool:
    """Return True for what ``jax.jit(f).lower(x)`` returns. Does not import JAX."""
    return type(function).__module__.partition(".")[0] == "jax" and hasattr(function, "compiler_ir")


@contextmanager
def _put_back(modules: list[torch.nn.Module], values: bool) -> Iterator[None]:
    """Restore the parameters of modules on other accelerators: `Module.to` gives them new ones.

    Args:
        modules: the modules.
        values: restore buffers and values, too, because a dry run moves them without their content.
    """
    inside = [inner for module in modules for inner in module.modules()]
    parameters = [(inner._parameters, name, value) for inner in inside for name, value in inner._parameters.items()]
    buffers = [(inner._buffers, name, value) for inner in inside for name, value in inner._buffers.items()]
    held = [(item, item.data, item.grad) for module in modules for item in module.parameters()]
    try:
        yield
    finally:
        for registered, name, parameter in parameters:
            registered[name] = parameter
        if values:
            for item, data, grad in held:
                item.grad = None
                item.data = data
                item.grad = grad
            for owner, name, buffer in buffers:
                owner[name] = buffer


def _on_chip(value: Any) -> Any:
    if isinstance(value, (torch.Tensor, torch.nn.Module)):
        return value.to("chip")
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_on_chip(item) for item in value)
    if isinstance(value, dict):
        return {name: _on_chip(item) for name, item in value.items()}
    return value
