"""What csrc/jax/plugin.cpp calls: compiles and executes JAX's programs, and holds their tensors on the chip."""

from __future__ import annotations

import atexit
import ctypes
import itertools
import math
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char, c_char_p, c_int, c_int8, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bringup import core, core_build
from bringup.device import load
from bringup.device.choose import choose_from_environment
from bringup.errors import BringupError, VersionError
from bringup.frontends.jax import lowerings
from bringup.frontends.jax.partition import devices_of, partitioned
from bringup.frontends.stablehlo.execution import executed, executed_together, upload
from bringup.frontends.stablehlo.executor import Program
from bringup.frontends.stablehlo.module import TESTED, StableHloError, UntranslatedError, read_module
from bringup.frontends.stablehlo.tensors import DTYPES
from bringup.lines import at_line, calling_line
from bringup.process import process

# csrc/jax/xla/pjrt_c_api.h, PJRT_Buffer_Type: StableHLO's names; None are types that torch lacks.
_KINDS = (
    *(None, "i1", "i8", "i16", "i32", "i64", "ui8", "ui16", "ui32", "ui64", "f16", "f32", "f64", "bf16"),
    *("complex<f32>", "complex<f64>", "f8E5M2", "f8E4M3FN", None, "f8E5M2FNUZ", "f8E4M3FNUZ", None, None, None),
    *(None, None, None, None, "f8E8M0FNU", None),
)
_TYPES = {kind: number for number, kind in enumerate(_KINDS) if kind}
# Same file, PJRT_Error_Code.
CANCELLED, INVALID, EXHAUSTED, UNIMPLEMENTED, INTERNAL = 1, 3, 8, 12, 13
_ROOM = 256  # numbers of freed tensors that are fetched at once; chosen

_NUMBERS, _SIZES = POINTER(c_int64), POINTER(c_int64)
_HOOKS: dict[str, Any] = {  # in the order of `Hooks` in csrc/jax/plugin.cpp
    "compile_program": CFUNCTYPE(c_int64, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p),
    "execute": CFUNCTYPE(c_int64, c_int64, c_int64, _NUMBERS, POINTER(c_int8), _NUMBERS),
    "upload": CFUNCTYPE(c_int64, c_void_p, c_int, c_int64, _SIZES, _SIZES, c_int),
    "download": CFUNCTYPE(c_int64, c_int64, c_void_p),
    "size": CFUNCTYPE(c_int64, c_int64),
    "copy": CFUNCTYPE(c_int64, c_int64, c_int),
    "wait": CFUNCTYPE(c_int64, c_int64),
    "memory": CFUNCTYPE(c_int64, c_int, *[POINTER(c_int64)] * 4),
}


class _Hooks(ctypes.Structure):
    _fields_ = tuple(_HOOKS.items())


@dataclass
class Held:
    """A tensor of JAX.

    Attributes:
        ready: reached when the tensor is there; None for empty ones and copies.
    """

    tensor: torch.Tensor
    ready: Any = None


def start(platform: str) -> Any:
    """Load the plug-in and return JAX's client for the chip.

    Raises:
        BringupError: JAX has an untested version, the chip is unknown, or the plug-in cannot be built.
    """
    _check_version()
    from jax._src import xla_bridge
    from jax._src.lib import xla_client
    from jaxlib.mlir.dialects import stablehlo

    load.register()
    if not torch.ops.bringup.is_configured():
        choose_from_environment()
    with core.loading(core.compiled(core_build.jax_library())) as path:
        library = ctypes.CDLL(path)
    client = Client(library)
    version = (c_int64 * 3)(*map(int, stablehlo.get_current_version().split(".")))
    count = torch.chip.device_count()  # type: ignore[attr-defined]
    library.bringup_start(ctypes.byref(client.hooks), process.chosen_chip().name.encode(), count, version)
    atexit.register(client.stop)  # JAX frees its arrays after Python has ended
    xla_client.load_pjrt_plugin_dynamically(platform, path)
    lowerings.register(platform)
    return xla_bridge.make_pjrt_c_api_client(platform)


def _check_version() -> None:
    import jaxlib.version

    version = jaxlib.version.__version__
    if tuple(map(int, version.split(".")[:2])) != TESTED:
        tested = ".".join(map(str, TESTED))
        raise VersionError(
            f"jaxlib {version} is not {tested}, the release that was tested: pip install 'bringup[jax]', or run on the "
            "CPU with JAX_PLATFORMS=cpu"
        )


class Client:
    """JAX's tensors and programs, by the numbers that the plug-in has for them."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.bringup_fail.argtypes = c_int, c_char_p
        library.bringup_name.argtypes = c_void_p, c_char_p
        library.bringup_donate.argtypes = c_void_p, c_int64
        library.bringup_device.argtypes = c_void_p, c_int
        library.bringup_partitioned.argtypes = c_void_p, c_char_p, c_size_t
        library.bringup_result.argtypes = c_void_p, c_int, c_int64, _SIZES
        library.bringup_freed.argtypes, library.bringup_freed.restype = (_NUMBERS, c_int64), c_int64
        self._numbers = itertools.count()
        self._tensors: dict[int, Held] = {}
        self._programs: dict[int, list[Program]] = {}  # one for each chip
        self.hooks = _Hooks(*(kind(self._guarded(getattr(self, name))) for name, kind in _HOOKS.items()))

    def stop(self) -> None:
        """Let the plug-in call nothing any more."""
        self._library.bringup_stop()

    def _guarded(self, function: Callable[..., int | None]) -> Callable[..., int]:
        """Return a function that describes its failure to the plug-in, and then returns -1.

        The function is called from the line of the program that called JAX.
        """

        def call(*arguments: Any) -> int:
            try:
                self._collect()
                line = calling_line()
                return (at_line(function.__name__, *line)(function, arguments) if line else function(*arguments)) or 0
            except BaseException as error:
                code, text = _described(error)
                self._library.bringup_fail(code, text.encode("utf-8", "replace"))
                return -1

        return call

    def _collect(self) -> None:
        """Forget what JAX has freed."""
        numbers = (c_int64 * _ROOM)()
        while count := self._library.bringup_freed(numbers, _ROOM):
            for number in numbers[:count]:
                if self._tensors.pop(number, None) is None:
                    self._programs.pop(number, None)

    def _hold(self, tensor: torch.Tensor, ready: Any = None) -> int:
        number = next(self._numbers)
        self._tensors[number] = Held(tensor, ready)
        return number

    def compile_program(self, code: int, size: int, options: int, options_size: int, into: int) -> int:
        """Read a program in StableHLO's portable form, and JAX's options, which name its chips."""
        from jax._src.interpreters import mlir
        from jaxlib.mlir import ir
        from jaxlib.mlir.dialects import stablehlo

        with mlir.make_ir_context():
            module = stablehlo.deserialize_portable_artifact(ir.Context.current, ctypes.string_at(code, size))
            name = str(module.operation.attributes["sym_name"]).strip('"').removeprefix("jit_")
            donated = _donated(module)
            settings = ctypes.string_at(options, options_size)
            chips, together = devices_of(settings), None
            if len(chips) > 1:
                module, hlo = partitioned(module, settings)
                self._library.bringup_partitioned(into, hlo, len(hlo))
                together = len(chips)
            read = read_module(module, name, chips=together)
            programs = [Program(read, f"chip:{chip}") for chip in chips]
        program = programs[0]
        number = next(self._numbers)
        self._programs[number] = programs
        self._library.bringup_name(into, name.encode())
        for chip in chips:
            self._library.bringup_device(into, chip)
        for position in donated:
            self._library.bringup_donate(into, position)
        for kind in program.outputs:
            sizes = (c_int64 * len(kind.shape))(*kind.shape)
            self._library.bringup_result(into, _TYPES[kind.kind], len(kind.shape), sizes)
        return number

    def execute(self, number: int, count: int, inputs: Any, donated: Any, results: Any) -> None:
        """Launch a program. The memory of donated inputs is free once nothing reads them any more."""
        programs = self._programs[number]
        lists = [
            [
                (self._tensors.pop(inputs[place]) if donated[place % count] else self._tensors[inputs[place]]).tensor
                for place in range(chip * count, (chip + 1) * count)
            ]
            for chip in range(len(programs))
        ]
        if len(programs) == 1:
            returned = [executed(programs[0], lists[0], "jax")]
        else:
            returned = executed_together(programs, lists, "jax")
        place = itertools.count()
        for program, tensors in zip(programs, returned, strict=True):
            ready = _recorded_event(program.device)
            for tensor in tensors:
                results[next(place)] = self._hold(tensor, ready)

    def upload(self, data: int, kind: int, rank: int, sizes: Any, strides: Any, chip: int) -> int:
        """Copy an array of the host to the chip. The array may change after the call, and the host does not wait."""
        name = _KINDS[kind] if 0 <= kind < len(_KINDS) else None
        if name is None:
            raise StableHloError(f"torch has no data type for PJRT's type {kind}, such as numbers of four bits")
        shape, dtype, device = tuple(sizes[:rank]), DTYPES[name], f"chip:{chip}"
        if not math.prod(shape):
            return self._hold(torch.empty(shape, dtype=dtype, device=device))
        steps = tuple(strides[:rank]) if strides else None
        spans = [(size - 1) * step for size, step in zip(shape, steps, strict=True)] if steps else []
        before = -sum(span for span in spans if span < 0)
        after = sum(span for span in spans if span > 0) if steps else (math.prod(shape) - 1) * dtype.itemsize
        raw = (c_char * (before + after + dtype.itemsize)).from_address(data - before)
        bits = np.ndarray(shape, f"V{dtype.itemsize}", raw, before, steps)
        host = torch.from_numpy(np.ascontiguousarray(bits).reshape(-1).view(np.uint8)).view(dtype).view(shape)
        return self._hold(upload(host, device), _recorded_event(device))

    def download(self, number: int, to: int) -> None:
        """Copy a tensor to memory of the host, which has room for it, and wait for it."""
        tensor = self._tensors[number].tensor
        if tensor.numel():
            raw = (c_char * (tensor.numel() * tensor.itemsize)).from_address(to)
            torch.frombuffer(raw, dtype=torch.uint8).view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def size(self, number: int) -> int:
        """Return the bytes of a tensor."""
        tensor = self._tensors[number].tensor
        return tensor.numel() * tensor.itemsize

    def copy(self, number: int, chip: int) -> int:
        """Copy a tensor to a chip, or on its own."""
        copied = self._tensors[number].tensor.to(f"chip:{chip}", copy=True)
        return self._hold(copied, _recorded_event(copied.device))

    def wait(self, number: int) -> None:
        """Wait until a tensor is computed."""
        held = self._tensors.get(number)  # None: JAX has freed it meanwhile
        if held is not None and held.ready is not None:
            held.ready.synchronize()

    def memory(self, chip: int, now: Any, peak: Any, limit: Any, allocations: Any) -> None:
        """Write the bytes in use and their peak, the chip's capacity, and the number of allocations."""
        chips: Any = torch.chip  # type: ignore[attr-defined]
        now[0], peak[0] = chips.memory_allocated(chip), chips.max_memory_allocated(chip)
        limit[0] = chips.mem_get_info(chip)[1]
        allocations[0] = chips.memory_stats(chip)["allocation.all.allocated"]


def _recorded_event(device: str | torch.device) -> Any:
    chips: Any = torch.chip  # type: ignore[attr-defined]
    event = chips.Event()
    event.record(chips.current_stream(torch.device(device)))
    return event


def _donated(module: Any) -> list[int]:
    """Return the inputs whose memory a program may take for its results."""
    main = next(op for op in module.body.operations if str(op.attributes["sym_name"]) == '"main"')
    if "arg_attrs" not in main.attributes:
        return []
    attributes = ({item.name for item in entry} for entry in main.attributes["arg_attrs"])
    return [place for place, names in enumerate(attributes) if names & {"tf.aliasing_output", "jax.buffer_donor"}]


def _described(error: BaseException) -> tuple[int, str]:
    """Return PJRT's code for an error, and its message."""
    text = str(error) or type(error).__name__
    if isinstance(error, torch.OutOfMemoryError):
        return EXHAUSTED, text
    if isinstance(error, UntranslatedError):
        return UNIMPLEMENTED, text
    if isinstance(error, KeyboardInterrupt):
        return CANCELLED, "interrupted"
    return INVALID if isinstance(error, BringupError) else INTERNAL, text
