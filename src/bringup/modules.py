"""The names of the torch.nn.Modules that a recorded program calls."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

names: list[str] = []
_numbers: dict[str, int] = {}


def number_of(chain: tuple[torch.nn.Module, ...]) -> int:
    """Number the module ``chain[0]``, called by ``chain[1]`` and so on, under its path in the outermost that has it.

    Called by the core, once for every module that it meets.
    """
    module = chain[0]
    address = id(module)
    finalizer: Any = weakref.finalize(module, _forget, address)
    finalizer.atexit = False
    return _numbered(_path(module, chain))


def _forget(address: int) -> None:
    torch.ops.bringup.forget_module(address)


def _path(module: torch.nn.Module, chain: tuple[torch.nn.Module, ...]) -> str:
    for root in reversed(chain):
        for name, child in root.named_modules():
            if child is module:
                return name or type(module).__name__
    return type(module).__name__


def _numbered(name: str) -> int:
    if name not in _numbers:
        _numbers[name] = len(names)
        names.append(name)
    return _numbers[name]


def _dummy(*_: Any, **__: Any) -> None: ...


def _optimizer_code() -> list[int]:
    optimizer = torch.optim.Optimizer
    functions: list[Any] = [optimizer.profile_hook_step(_dummy), optimizer.zero_grad]
    return [id(function.__code__) for function in functions]


@contextmanager
def watched(forward: int, step: int) -> Iterator[None]:
    """Let launches say their module and phase; mark outermost module calls and optimizer steps with rows.

    Args:
        forward: row kind of an outermost call.
        step: row kind of an optimizer's step.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook

    names.clear()
    _numbers.clear()
    mark = torch.ops.bringup.record_mark
    original: Any = torch.nn.Module.__call__
    calls = threading.local()

    def call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if getattr(calls, "inside", False) or torch.compiler.is_compiling():
            return original(self, *args, **kwargs)
        calls.inside = True
        try:
            mark(forward, _numbered(type(self).__name__))
            return original(self, *args, **kwargs)
        finally:
            calls.inside = False

    optimizers: dict[int, int] = {}

    def stepped(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        mark(step, optimizers.setdefault(id(optimizer), len(optimizers)))

    hook = register_optimizer_step_post_hook(stepped)
    torch.ops.bringup.watch_modules(id(torch.nn.Module._wrapped_call_impl.__code__), _optimizer_code())
    torch.nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.__call__ = original  # type: ignore[method-assign]
        torch.ops.bringup.watch_modules(0, [])
        hook.remove()
