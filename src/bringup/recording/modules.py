"""The names of the torch.nn.Modules that a recorded program calls."""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from bringup.device.devices import real_device
from bringup.recording.rows import BUFFERS, FORWARD, PARAMETERS, STEP


class Names:
    """The modules of one recording, and the owners of its tensors.

    Attributes:
        names: names of modules and of other owners of tensors; a row of the trace holds an index into this list.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._owned: dict[int, int] = {}  # module or optimizer -> address of its first tensor, when it was marked
        self._marked: set[int] = set()  # addresses of storages

    def number(self, name: str) -> int:
        """Return the index of a name, which is added if it is new."""
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
        return self._numbers[name]

    def record_owner(self, owner: object, tensors: Iterable[tuple[str, torch.Tensor]], kind: int) -> bool:
        """Record the owner of each tensor unless it is already recorded at this address.

        Return True if anything was recorded.
        """
        named = ((name, item) for name, item in tensors if _has_own_memory(item))
        first = next(named, None)
        if first is None or torch._C._functorch.is_functorch_wrapped_tensor(first[1]):
            return False
        if self._owned.get(id(owner)) == first[1].data_ptr():
            return False
        self._owned[id(owner)] = first[1].data_ptr()
        for name, item in chain([first], named):
            address, module = item.untyped_storage().data_ptr(), name.rpartition(".")[0] or type(owner).__name__
            self._marked.add(address)
            number = self.number(module)
            _unseen(torch.ops.bringup.record_owner, address, kind, number, item.element_size(), item.device.index)
        return True

    def loose(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors that an optimizer trains and that belong to no module."""
        for group in optimizer.param_groups:
            for item in group["params"]:
                if _has_own_memory(item) and item.untyped_storage().data_ptr() not in self._marked:
                    yield "", item


def _unseen(operator: Any, *arguments: int) -> None:
    """Call an operator of the core that the program's dispatch modes do not see, such as those of a checkpoint."""
    if not torch._C._len_torch_dispatch_stack():
        operator(*arguments)
        return
    with _disable_current_modes():
        operator(*arguments)


def _has_own_memory(tensor: torch.Tensor) -> bool:
    """Return True for a tensor of the chip that is no wrapper such as a DTensor, which has no address."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer) and real_device(tensor).type == "chip"


_names = Names()  # the current recording's, or the latest one's


def number(name: str) -> int:
    """Return the index of a module's name in the current recording."""
    return _names.number(name)


def name_of(number: int) -> str:
    """Return the name with an index in the current recording."""
    return _names.names[number]


def number_of(callers: tuple[torch.nn.Module, ...]) -> int:
    """Return the index of the name of the module ``callers[0]``.

    The name is the module's path in the outermost of its callers, ``callers[1:]``, that contains it. The core calls
    this function once for every module.
    """
    module = callers[0]
    address = id(module)
    finalizer: Any = weakref.finalize(module, _forget, address)
    finalizer.atexit = False
    return number(_path(module, callers))


def _forget(address: int) -> None:
    torch.ops.bringup.forget_module(address)


def _path(module: torch.nn.Module, callers: tuple[torch.nn.Module, ...]) -> str:
    for root in reversed(callers):
        for name, child in root.named_modules():
            if child is module:
                return name or type(module).__name__
    return type(module).__name__


def _trains_on_chip(optimizer: torch.optim.Optimizer) -> bool:
    """Return True if an optimizer has a parameter on a chip."""
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    return any(real_device(parameter).type == "chip" for parameter in parameters)


def _dummy(*_: Any, **__: Any) -> None: ...


def _optimizer_code() -> list[int]:
    optimizer = torch.optim.Optimizer
    # Without its wrapper, whose code zero_grad shares with all functions that Dynamo skips, such as checkpoint.
    functions: list[Any] = [optimizer.profile_hook_step(_dummy), inspect.unwrap(optimizer.zero_grad)]
    return [id(function.__code__) for function in functions]


_named = 0  # blocks of `named` that are open


def _find_modules() -> None:
    """Let the core find modules and optimizers among the frames of a launch."""
    torch.ops.bringup.watch_modules(id(torch.nn.Module._wrapped_call_impl.__code__), _optimizer_code())


@contextmanager
def named() -> Iterator[None]:
    """Name the modules of launches inside the block, also where nothing is recorded."""
    global _names, _named
    _names = Names()
    _named += 1
    _find_modules()
    try:
        yield
    finally:
        _named -= 1
        torch.ops.bringup.watch_modules(0, [])


@contextmanager
def watched(names: Names) -> Iterator[None]:
    """Record the module and phase of launches; mark outermost module calls, and steps of optimizers on a chip."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    global _names
    _names = names
    mark = functools.partial(_unseen, torch.ops.bringup.record_mark)
    original: Any = torch.nn.Module.__call__
    calls = threading.local()

    def call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or getattr(calls, "inside", False):
            return original(self, *args, **kwargs)
        calls.inside = True
        try:
            mark(FORWARD, names.number(type(self).__name__))
            if names.record_owner(self, self.named_parameters(), PARAMETERS):
                names.record_owner(self.named_buffers, self.named_buffers(), BUFFERS)
            return original(self, *args, **kwargs)
        finally:
            calls.inside = False

    optimizers: dict[torch.optim.Optimizer, int] = {}

    def stepped(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if not _trains_on_chip(optimizer):
            return
        if optimizer not in optimizers:
            names.record_owner(optimizer, names.loose(optimizer), PARAMETERS)
        mark(STEP, optimizers.setdefault(optimizer, len(optimizers)))

    hook = register_optimizer_step_post_hook(stepped)
    _find_modules()
    torch.nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.__call__ = original  # type: ignore[method-assign]
        _find_modules() if _named else torch.ops.bringup.watch_modules(0, [])
        hook.remove()
