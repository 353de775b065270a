"""Enqueues Triton's launches on the chip's streams, runs them, and returns their counters to the recording."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch

from bringup.device import raised
from bringup.device.torch_chip import real_device
from bringup.errors import BringupError
from bringup.triton import limits, shadow, ttir
from bringup.triton.executor import Kernel, totals
from bringup.triton.memory import Blank, Buffer, Memory
from bringup.triton.values import Pointer

TINY = 16384  # elements: a launch with fewer elements takes about 0.1 ms

_kernels: dict[str, Kernel] = {}
_waiting: dict[int, _Launch] = {}
_numbers = itertools.count()
_library: Any = torch.library.Library("bringup", "FRAGMENT")  # type: ignore[no-untyped-call]


def compiled(text: str) -> Kernel:
    """Return the kernel of a TTIR module; the result is cached."""
    key = hashlib.sha256(text.encode()).hexdigest()
    if key not in _kernels:
        _kernels[key] = Kernel(ttir.parse(text))
    return _kernels[key]


def _in_file(kernel: Kernel, file: str) -> Kernel:
    """Return the kernel with the lines of this file, because Triton's cache does not tell copies of a file apart."""
    module = kernel.module
    if not file or not module.file or file == module.file or set(file) & set('"\\'):
        return kernel
    return compiled(module.text.replace(f'"{module.file}":', f'"{file}":'))


@dataclass
class _Launch:
    kernel: Kernel
    grid: tuple[int, int, int]
    arguments: list[Any]  # numbers; tuples (storage, byte offset, element) for pointers
    signature: dict[str, Any] | None  # None without an active recording
    dry: bool


class Launcher:
    """Launches one specialisation of a kernel. Triton creates it and calls it with grid, stream, ... and arguments."""

    def __init__(self, src: Any, metadata: Any) -> None:
        signature = src.signature
        self.names = [str(name) for name in signature]
        self.kinds = list(signature.values())
        self.metadata = metadata
        self.kernel: Kernel | None = None
        self.constants = _constants(src, metadata)
        function = getattr(getattr(src, "fn", None), "fn", None)
        self.file = function.__code__.co_filename if isinstance(function, FunctionType) else ""

    def __call__(
        self,
        x: int,
        y: int,
        z: int,
        stream: int,
        kernel: Kernel,
        metadata: Any,
        launch_metadata: Any,
        enter: Callable[[Any], None] | None,
        leave: Callable[[Any], None] | None,
        *bound: Any,
    ) -> None:
        """Launch on the current stream, asynchronously."""
        grid = (int(x), int(y), int(z))
        if grid[0] * grid[1] * grid[2] <= 0:
            return
        if self.kernel is None:
            limits.check(kernel, metadata)
            self.kernel = _in_file(kernel, self.file)
        kernel = self.kernel
        limits.check_grid(kernel.name, grid)
        if enter is not None:
            enter(launch_metadata)
        arguments: list[Any] = []
        for place, (value, kind) in enumerate(zip(bound, self.kinds, strict=True)):
            _flatten(value, kind, self.names[place], place, arguments)
        if len(arguments) != len(kernel.module.kernel.arguments):
            raise BringupError(
                f"{kernel.name}: Triton passed {len(arguments)} arguments but its code has "
                f"{len(kernel.module.kernel.arguments)}: an argument of this kind is not supported"
            )
        enqueue(kernel, grid, arguments, self.constants)
        if leave is not None:
            leave(launch_metadata)


def _constants(src: Any, metadata: Any) -> dict[str, Any]:
    """Return the constant arguments of this specialisation for the report."""
    constants: dict[str, Any] = {}
    names = getattr(getattr(src, "fn", None), "arg_names", [])
    for path, value in getattr(src, "constants", {}).items():
        value = getattr(value, "value", value)
        if isinstance(path, tuple) and len(path) == 1 and isinstance(value, (bool, int, float, str)):
            constants[names[path[0]]] = value
    return constants


def _flatten(value: Any, kind: Any, name: str, place: int, arguments: list[Any]) -> None:
    """Append the function arguments that one bound argument becomes."""
    if isinstance(kind, tuple):
        for item, inner in zip(value, kind, strict=True):
            _flatten(item, inner, name, place, arguments)
    elif kind == "constexpr":
        return
    elif kind.startswith("tensordesc"):
        _flatten(value.base, "*", name, place, arguments)
        arguments += [*map(int, value.shape), *map(int, value.strides), getattr(value, "padding", "zero") == "nan"]
        if kind.startswith("tensordesc") and hasattr(value, "round_f32_to_tf32"):
            arguments.append(bool(value.round_f32_to_tf32))
        # The passes that lower descriptors add shape and strides a second time, for code that uses them directly.
        arguments += [*map(int, value.shape), *map(int, value.strides)]
    elif kind[0] == "*":
        arguments.append(_memory(value, name, place))
    elif kind in ("i1", "u1"):
        arguments.append(bool(value))
    elif kind.startswith(("fp", "bf")):
        arguments.append(float(value))
    else:
        arguments.append(int(value))


def _memory(value: Any, name: str, place: int) -> Any:
    if isinstance(value, int):
        return value  # an address
    tensor = value
    while not isinstance(tensor, torch.Tensor):  # wrappers of libraries, with another dtype or other strides
        inner = next((name for name in ("base", "_base", "tensor") if hasattr(tensor, name)), None)
        if inner is None:
            raise BringupError(f"argument {name!r} needs a tensor on the chip, got {type(value).__name__}")
        tensor = getattr(tensor, inner)
    if tensor is not value and value.data_ptr() != tensor.data_ptr():
        moved = (value.data_ptr() - tensor.data_ptr()) // tensor.itemsize
        tensor = tensor.as_strided((1,), (1,), tensor.storage_offset() + moved)
    device = real_device(tensor)
    if device.type != "chip":
        raise ValueError(
            f"Pointer argument (at {place}) cannot be accessed from Triton ({device.type} tensor?): "
            f"argument {name!r} is on {device}, move it to the chip"
        )
    return tensor


def enqueue(kernel: Kernel, grid: tuple[int, int, int], values: list[Any], constants: dict[str, Any]) -> None:
    """Launch a kernel on the current stream of the chip of its tensors."""
    names = kernel.module.kernel.names
    tensors: list[torch.Tensor] = []
    written: list[int] = []
    places: dict[int, int] = {}  # address of a storage -> its number
    arguments: list[Any] = []
    inputs: list[Any] = []
    ops = torch.ops.bringup
    counted = ops.is_recording()
    index, follows = -1, kernel.follows
    for number, value in enumerate(values):
        if not isinstance(value, torch.Tensor):
            follows = follows or number in kernel.pointers
            arguments.append(value)
            continue
        tensor_index = real_device(value).index
        if index not in (-1, tensor_index):
            raise BringupError(
                f"{kernel.name} is launched with tensors on chip:{index} and chip:{tensor_index}: "
                f"argument {names[number]!r} must be on the same chip as the arguments before it"
            )
        index = tensor_index
        address = value.untyped_storage().data_ptr()
        storage = places.setdefault(address, len(tensors))
        if storage == len(tensors):
            tensors.append(value)
            written.append(0)
        changed = number in kernel.written
        written[storage] |= changed
        arguments.append((storage, value.data_ptr() - address, names[number]))
        if counted:
            dtype = str(value.dtype).removeprefix("torch.")
            inputs.append([dtype, list(value.shape), list(value.stride()), storage, int(changed)])
    signature = None
    if counted:
        args = {"grid": list(grid), **{name: value for name, value in constants.items() if name != "grid"}}
        signature = {"op": f"triton::{kernel.name}", "inputs": inputs, "outputs": [], "args": args}
    number = next(_numbers)
    _waiting[number] = _Launch(kernel, grid, arguments, signature, ops.is_dry())
    if index < 0:
        index = torch.chip.current_device()  # type: ignore[attr-defined]
    tiny = not kernel.sequential and grid[0] * grid[1] * grid[2] * kernel.largest <= TINY
    text = json.dumps(signature) if counted else ""
    ops.launch_kernel(number, kernel.name, tensors, written, index, text, tiny, follows)


def _run(number: int, memory: Sequence[torch.Tensor], addresses: Sequence[int]) -> str:
    """Run a launch in stream order; return its signature, or "!", an error's number and its text. Called by the core.

    The core raises the error at the next synchronisation.
    """
    launch = _waiting.pop(number)
    try:
        return _signature(launch, memory, addresses)
    except BaseException as caught:  # also an interrupt, if the launch runs in the user's thread
        trace = caught.__traceback__  # without this frame, which has the launch's memory
        error = caught.with_traceback(trace.tb_next if trace else None)
    text = str(error) if isinstance(error, BringupError) else f"{type(error).__name__}: {error}"
    return f"!{raised.keep(error)} {text}"


def _signature(launch: _Launch, memory: Sequence[torch.Tensor], addresses: Sequence[int]) -> str:
    """Run a launch; return its signature with its counters, or "" if none is recorded."""
    if not memory and any(isinstance(argument, tuple) for argument in launch.arguments):
        return ""  # the driver executes nothing
    kernel = launch.kernel
    types = kernel.module.kernel.types
    buffers: dict[int, Buffer] = {}
    arguments: list[Any] = []
    for place, argument in enumerate(launch.arguments):
        kind = types[kernel.module.kernel.arguments[place]]
        if isinstance(argument, tuple):
            storage, start, name = argument
            buffers[place] = Buffer(name, memory[storage], start, addresses[storage])
            arguments.append(Pointer(place, 0, kind.element))
        elif kind.pointer:
            arguments.append(Pointer(-1, argument, kind.element))
        else:
            arguments.append(argument)
    kind_of = Blank if launch.dry else Memory
    checks = None
    if shadow.watching and not launch.dry:
        checks = shadow.Shadow(kernel.name, kernel.sequential, buffers, kernel.written)
    counters = kernel.run(launch.grid, arguments, kind_of(buffers, kernel.written, checks))
    if checks is not None:
        checks.finish()
    if launch.signature is None:
        return ""
    launch.signature["args"]["counters"] = totals(kernel, counters)
    if checks is not None and shadow.trying:
        launch.signature["args"]["rewrites"] = {
            launch.arguments[place][2]: [launch.arguments[place][0], line]
            for place, line in checks.rewrites(buffers).items()
            if place < len(launch.arguments)
        }
    if (
        checks is not None
    ):  # storage -> line, for storages that the launch read before writing (plain addresses excluded)
        first_reads = {
            launch.arguments[place][0]: line
            for place, line in checks.initial.items()
            if place < len(launch.arguments) and isinstance(launch.arguments[place], tuple)
        }
        if first_reads:
            lines = {str(storage): line for storage, line in sorted(first_reads.items())}
            launch.signature["args"]["read_first"] = lines
    return json.dumps(launch.signature)


_library.impl("run_kernel", _run, "CompositeExplicitAutograd")
