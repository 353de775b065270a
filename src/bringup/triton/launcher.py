"""From a launch of Triton's to one on the chip's stream, and back with what it did."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bringup.errors import BringupError
from bringup.triton import limits, shadow, ttir
from bringup.triton.executor import Kernel, totals
from bringup.triton.memory import Blank, Buffer, Memory
from bringup.triton.values import Pointer

TINY = 16384  # elements: a launch with fewer runs in some 0.1 ms

_kernels: dict[str, Kernel] = {}
_waiting: dict[int, _Launch] = {}
_numbers = itertools.count()
_library: Any = torch.library.Library("bringup", "FRAGMENT")  # type: ignore[no-untyped-call]


def compiled(text: str) -> Kernel:
    """Return the kernel of a TTIR module; read once."""
    key = hashlib.sha256(text.encode()).hexdigest()
    if key not in _kernels:
        _kernels[key] = Kernel(ttir.parse(text))
    return _kernels[key]


@dataclass
class _Launch:
    kernel: Kernel
    grid: tuple[int, int, int]
    arguments: list[Any]  # numbers; for pointers (storage, byte offset, element)
    signature: dict[str, Any] | None  # only if somebody wants to know what the launch does
    dry: bool


class Launcher:
    """Launches one specialisation of a kernel. Made by Triton, called with grid, stream, ..., the bound arguments."""

    def __init__(self, src: Any, metadata: Any) -> None:
        signature = src.signature
        self.names = [str(name) for name in signature]
        self.kinds = list(signature.values())
        self.metadata = metadata
        self.kernel: Kernel | None = None
        self.constants = _constants(src, metadata)

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
        *given: Any,
    ) -> None:
        """Launch on the current stream. Returns at once."""
        grid = (int(x), int(y), int(z))
        if grid[0] * grid[1] * grid[2] <= 0:
            return
        if self.kernel is None:
            limits.check(kernel, metadata)
            self.kernel = kernel
        limits.check_grid(kernel.name, grid)
        if enter is not None:
            enter(launch_metadata)
        arguments: list[Any] = []
        for place, (value, kind) in enumerate(zip(given, self.kinds, strict=True)):
            _flatten(value, kind, self.names[place], place, arguments)
        if len(arguments) != len(kernel.module.kernel.arguments):
            raise BringupError(
                f"{kernel.name}: Triton passed {len(arguments)} arguments, its code has "
                f"{len(kernel.module.kernel.arguments)}: an argument of this kind is not supported"
            )
        enqueue(kernel, grid, arguments, self.constants)
        if leave is not None:
            leave(launch_metadata)


def _constants(src: Any, metadata: Any) -> dict[str, Any]:
    """Return what distinguishes this specialisation, for the report."""
    found: dict[str, Any] = {}
    names = getattr(getattr(src, "fn", None), "arg_names", [])
    for path, value in getattr(src, "constants", {}).items():
        value = getattr(value, "value", value)
        if isinstance(path, tuple) and len(path) == 1 and isinstance(value, (bool, int, float, str)):
            found[names[path[0]]] = value
    return found


def _flatten(value: Any, kind: Any, name: str, place: int, arguments: list[Any]) -> None:
    """Add what a kernel's function takes for one bound argument."""
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
        # Passes that lower descriptors keep shape and strides once more, for code that takes them apart itself.
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
    from bringup.device.torch_chip import real_device

    if isinstance(value, int):
        return value  # an address
    tensor = value
    while not isinstance(tensor, torch.Tensor):  # wrappers of libraries: of another dtype, of other strides
        inner = next((name for name in ("base", "_base", "tensor") if hasattr(tensor, name)), None)
        if inner is None:
            raise BringupError(f"argument {name!r} needs a tensor on the chip, got {type(value).__name__}")
        tensor = getattr(tensor, inner)
    if tensor is not value and value.data_ptr() != tensor.data_ptr():
        moved = (value.data_ptr() - tensor.data_ptr()) // tensor.itemsize
        tensor = tensor.as_strided((1,), (1,), tensor.storage_offset() + moved)
    found = real_device(tensor)
    if found.type != "chip":
        raise ValueError(
            f"Pointer argument (at {place}) cannot be accessed from Triton ({found.type} tensor?): "
            f"argument {name!r} is on {found}, move it to the chip"
        )
    return tensor


def enqueue(kernel: Kernel, grid: tuple[int, int, int], given: list[Any], constants: dict[str, Any]) -> None:
    """Put a kernel on the current stream of its tensors' chip."""
    from bringup.device.torch_chip import real_device

    names = kernel.module.kernel.names
    tensors: list[torch.Tensor] = []
    written: list[int] = []
    places: dict[int, int] = {}  # address of a storage -> its number
    arguments: list[Any] = []
    inputs: list[Any] = []
    ops = torch.ops.bringup
    counted = ops.is_recording()
    index, follows = -1, kernel.follows
    for number, value in enumerate(given):
        if not isinstance(value, torch.Tensor):
            follows = follows or number in kernel.pointers
            arguments.append(value)
            continue
        here = real_device(value).index
        if index not in (-1, here):
            raise BringupError(
                f"{kernel.name} is launched with tensors on chip:{index} and chip:{here}: argument {names[number]!r} "
                "has to be on the same chip as those before it"
            )
        index = here
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
        said = {"grid": list(grid), **{name: value for name, value in constants.items() if name != "grid"}}
        signature = {"op": f"triton::{kernel.name}", "inputs": inputs, "outputs": [], "args": said}
    number = next(_numbers)
    _waiting[number] = _Launch(kernel, grid, arguments, signature, ops.is_dry())
    if index < 0:
        index = torch.chip.current_device()  # type: ignore[attr-defined]
    tiny = not kernel.sequential and grid[0] * grid[1] * grid[2] * kernel.largest <= TINY
    text = json.dumps(signature) if counted else ""
    ops.launch_kernel(number, kernel.name, tensors, written, index, text, tiny, follows)


def _run(number: int, memory: Sequence[torch.Tensor], addresses: Sequence[int]) -> str:
    """Run a launch, in stream order. Called by the core; an error comes back as text, to be raised where one waits."""
    launch = _waiting.pop(number)
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
    try:
        kind_of = Blank if launch.dry else Memory
        checks = shadow.Shadow(kernel.name, kernel.sequential) if shadow.watching and not launch.dry else None
        counters = kernel.run(launch.grid, arguments, kind_of(buffers, kernel.written, checks))
    except BringupError as error:
        return f"!{error}"
    if launch.signature is None:
        return ""
    launch.signature["args"]["counters"] = totals(kernel, counters)
    if checks is not None:  # what the launch read before it wrote there, but by addresses: storage -> line
        found = {
            launch.arguments[place][0]: line
            for place, line in checks.initial.items()
            if place < len(launch.arguments) and isinstance(launch.arguments[place], tuple)
        }
        if found:
            launch.signature["args"]["read_first"] = {str(storage): line for storage, line in sorted(found.items())}
    return json.dumps(launch.signature)


_library.impl("run_kernel", _run, "CompositeExplicitAutograd")


# ---- times


def seconds_of(run: Callable[[], Any]) -> float:
    """Run once; return the time of its kernels and operators on the chip, in seconds, launches included.

    What is timed is no part of a recording under way.
    """
    import bringup
    from bringup.cost.signature import Signature
    from bringup.device import load as _load
    from bringup.pricing import WorkTable, price_table
    from bringup.recording.recording import read_signature
    from bringup.recording.rows import COLUMNS, LAUNCH

    ops = torch.ops.bringup
    signatures: list[Signature] = []
    if ops.is_recording():
        ops.set_recording_aside(True)
        try:
            run()
            torch.chip.synchronize()  # type: ignore[attr-defined]
            columns = dict(zip(COLUMNS, ops.recorded_columns(0), strict=False))
            texts = ops.recorded_signatures(0)
        finally:
            ops.set_recording_aside(False)
        launched = columns["signature"][columns["kind"] == LAUNCH].tolist()
        signatures = [read_signature(texts[number])[1] for number in launched]
    else:
        with bringup.record() as trace:
            run()
        launched = trace.columns["signature"][trace.columns["kind"] == LAUNCH].tolist()
        signatures = [trace.signatures[number] for number in launched]
    if not signatures:
        return 0.0
    assert _load.chosen is not None
    return float(price_table(WorkTable.of(signatures), signatures, _load.chosen).seconds.sum())


def benchmark(kernel_call: Callable[[], Any], *, quantiles: Sequence[float] = (0.5, 0.2, 0.8), **_: Any) -> list[float]:
    """Return a kernel's milliseconds on the chip, once for each quantile: it runs once."""
    milliseconds = seconds_of(kernel_call) * 1e3
    return [milliseconds] * len(quantiles or (0.5,))


def do_bench(
    fn: Callable[[], Any],
    warmup: float = 25,
    rep: float = 100,
    grad_to_none: Any = None,
    quantiles: Sequence[float] | None = None,
    return_mode: str = "mean",
    **_: Any,
) -> Any:
    """Stand in for `triton.testing.do_bench`: milliseconds on the chip, predicted from one run."""
    for tensor in grad_to_none or ():
        tensor.grad = None
    milliseconds = seconds_of(fn) * 1e3
    if quantiles is not None:
        return [milliseconds] * len(quantiles) if len(quantiles) > 1 else milliseconds
    return [milliseconds] if return_mode == "all" else milliseconds


def tune_for_the_chip() -> None:
    """Let Triton's benchmarks see the chip's time. Called when its kernels begin to run on a chip."""
    import triton.testing

    triton.testing.do_bench = do_bench
    triton.testing.do_bench_cudagraph = do_bench
