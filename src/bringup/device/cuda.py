"""`redirect_cuda`: CUDA programs run on the chip.

Note [Two names]
The program sees one consistent name: its tensors' ``device`` is ``cuda:0``, ``is_cuda`` is true, and `torch.cuda`
describes the chip. Below torch's Python the device is ``chip``. Device arguments are translated at the points where
torch parses them: in `Tensor.to` and `Tensor.cuda`, in autocast and in generators. For factory functions the core
registers kernels under the dispatch key CUDA, which no tensor has. Nothing is patched before `redirect_cuda` is called.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType, FunctionType
from typing import Any, NoReturn

import torch

from bringup.device import load
from bringup.device import torch_chip as chips
from bringup.errors import BringupError
from bringup.process import FACTS, ON_REDIRECT, process

used: Counter[str] = Counter()  # name -> number of uses by the program

_settings: dict[str, Any] = {}  # values of the knobs before the program changed them

_DRIVER = "needs CUDA's driver"
_MISSING = {
    **dict.fromkeys(
        ("cudart", "cudaStatus", "check_error", "current_blas_handle", "current_solver_handle"),
        "is CUDA's own runtime",
    ),
    **dict.fromkeys(("ExternalStream", "get_stream_from_external", "GreenContext"), _DRIVER),
    **dict.fromkeys(
        ("caching_allocator_alloc", "caching_allocator_delete", "CUDAPluggableAllocator", "change_current_allocator"),
        "reaches into CUDA's allocator",
    ),
    **dict.fromkeys(("MemPool", "use_mem_pool", "memory_snapshot"), "reaches into CUDA's allocator"),
    **dict.fromkeys(("utilization", "temperature", "power_draw", "memory_usage"), "asks NVIDIA's management library"),
    **dict.fromkeys(("device_memory_used", "list_gpu_processes"), "asks NVIDIA's management library"),
}
_KNOBS = {
    "backends.cuda.matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction": (
        lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    ),
    "backends.cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
    "backends.cudnn.benchmark": lambda: torch.backends.cudnn.benchmark,
    "backends.cudnn.deterministic": lambda: torch.backends.cudnn.deterministic,
    "backends.cudnn.enabled": lambda: torch.backends.cudnn.enabled,
    "float32_matmul_precision": torch.get_float32_matmul_precision,
}


def redirect_cuda() -> None:
    """Make the name ``cuda`` mean the chip in this process. Call it before the program is imported.

    Device properties come from the chip file. Features that only CUDA has (its driver, raw kernels, NCCL)
    raise an error that names the feature. The report lists the CUDA names that the program used.

    Raises:
        BringupError: this machine has a CUDA device.
    """
    if process.named_cuda:
        return
    if torch._C._has_cuda and torch.cuda.is_available():
        raise BringupError(
            "cuda cannot mean the chip on a machine with a CUDA device: hide that device with CUDA_VISIBLE_DEVICES="
        )
    load.register()
    process.named_cuda = True
    FACTS.append(lambda _: lambda: {"redirected": report()})
    torch.ops.bringup.redirect_cuda()
    for name, knob in _KNOBS.items():
        _settings[name] = knob()
    _patch_tensors()
    _patch_torch()
    _patch_amp()
    _patch_files()
    _patch_cuda()
    for choose in ON_REDIRECT:
        choose()


def report() -> dict[str, int]:
    """Return how often the program used each CUDA name. A setting that it changed counts once."""
    if not process.named_cuda:
        return {}
    counts = Counter(used)
    if factories := torch.ops.bringup.redirected():
        counts['device="cuda"'] = factories
    for name, knob in _KNOBS.items():
        if knob() != _settings[name]:
            counts[f"{name} = {knob()}"] = 1
    return dict(sorted(counts.items()))


# ---- devices

_plain = False  # True while Inductor generates code: then `Tensor.device` returns chip, not cuda


@contextmanager
def plain_devices() -> Generator[None]:
    """Make `Tensor.device` return the device ``chip`` inside the block, even if the program calls it ``cuda``."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


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


# ---- torch


def _patch_tensors() -> None:
    tensor: Any = torch.Tensor
    where, to = torch._C.TensorBase.device.__get__, tensor.to

    name_of = functools.cache(shown)

    def device(self: torch.Tensor) -> torch.device:
        return where(self) if _plain else name_of(where(self))

    def is_cuda(self: torch.Tensor) -> bool:
        return bool(chips.real_device(self).type == "chip")

    @functools.wraps(to)
    def to_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = real(kwargs["device"])
        if args:
            args = (real(args[0]), *args[1:])
        return to(self, *args, **kwargs)

    def cuda(
        self: torch.Tensor,
        device: Any = None,
        non_blocking: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> Any:
        if not _is_torch(sys._getframe(1)):
            used["Tensor.cuda"] += 1
        index = torch.device("chip", device) if isinstance(device, int) else real(device or "cuda")
        return to(self, device=index, non_blocking=non_blocking, memory_format=memory_format)

    def module_cuda(self: Any, device: Any = None) -> Any:
        used["Module.cuda"] += 1
        return self._apply(lambda item: item.cuda(device))

    module: Any = torch.nn.Module
    module.cuda = functools.wraps(module.cuda)(module_cuda)
    tensor.device, tensor.is_cuda = property(device), property(is_cuda)
    tensor.to, tensor.cuda = to_, cuda
    tensor.pin_memory, tensor.is_pinned = _translating(tensor.pin_memory), _translating(tensor.is_pinned)
    kinds = {f"torch.cuda.{name}": kind for name, kind in _TYPES.items()}
    type_ = tensor.type

    @functools.wraps(type_)
    def as_type(self: torch.Tensor, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        if dtype is None:
            return type_(self).replace("torch.chip.", "torch.cuda.")
        name = dtype if isinstance(dtype, str) else getattr(dtype, "name", "")
        if name in kinds:
            return to(self, torch.device("chip"), kinds[name], non_blocking=non_blocking)
        return type_(self, dtype, non_blocking, **kwargs)

    tensor.type = as_type
    storage: Any = torch.UntypedStorage
    storage.cuda = lambda self, device=None, non_blocking=False: self.to(
        device=real(device or "cuda"), non_blocking=non_blocking
    )
    make = torch._subclasses.FakeTensor.__new__

    @functools.wraps(make)
    def fake(cls: Any, *args: Any, **kwargs: Any) -> Any:  # torch 2.14 has three names for the device
        return make(cls, *map(real, args), **{name: real(value) for name, value in kwargs.items()})

    torch._subclasses.FakeTensor.__new__ = staticmethod(fake)  # type: ignore[method-assign]


def _translating(function: Any) -> Any:
    """Return the function with the chip in place of every device that is called ``cuda``."""

    @functools.wraps(function)
    def translated(*args: Any, **kwargs: Any) -> Any:
        return function(*map(real, args), **{name: real(value) for name, value in kwargs.items()})

    return translated


_TYPES = {
    **{"FloatTensor": torch.float32, "DoubleTensor": torch.float64, "HalfTensor": torch.float16},
    **{"BFloat16Tensor": torch.bfloat16, "LongTensor": torch.int64, "IntTensor": torch.int32},
    **{"ShortTensor": torch.int16, "CharTensor": torch.int8, "ByteTensor": torch.uint8, "BoolTensor": torch.bool},
}


class _Legacy(type):
    """The type of ``torch.cuda.FloatTensor`` and its like, which create tensors and work in ``isinstance``."""

    name: str
    dtype: torch.dtype
    is_cuda = True

    def __call__(cls, *args: Any) -> torch.Tensor:
        if args and isinstance(args[0], (list, tuple)) and not isinstance(args[0], torch.Size):
            return torch.tensor(args[0], dtype=cls.dtype, device="cuda")
        return torch.empty(*(args or (0,)), dtype=cls.dtype, device="cuda")

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch.Tensor) and instance.is_cuda and instance.dtype == cls.dtype


class _Kind(type):
    """The type of a replacement for a torch class whose constructor has a device argument."""

    base: Any

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.base)


def _taking_device(base: Any) -> Any:
    def __new__(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = real(kwargs["device"])
        return base(*(real(argument) for argument in args), **kwargs)

    return _Kind(base.__name__, (), {"base": base, "__new__": __new__, "__doc__": base.__doc__})


def _patch_torch() -> None:
    space: Any = torch
    for name in ("Generator", "Event"):
        setattr(space, name, _taking_device(getattr(space, name)))
    current = torch.accelerator.current_accelerator

    @functools.wraps(current)
    def current_accelerator(check_available: bool = False) -> torch.device | None:
        accelerator = current(check_available)
        return None if accelerator is None else shown(accelerator)

    torch.accelerator.current_accelerator = current_accelerator
    index_of = torch.accelerator._get_device_index  # type: ignore[attr-defined]

    @functools.wraps(index_of)
    def _get_device_index(device: Any, optional: bool = False) -> int:
        named = torch.device(device) if isinstance(device, str) else device
        return int(index_of(shown(named) if isinstance(named, torch.device) else named, optional))

    for module in (torch.accelerator, torch.accelerator.memory):
        module._get_device_index = _get_device_index  # type: ignore[attr-defined]
    set_type = torch.set_default_tensor_type

    @functools.wraps(set_type)
    def set_default_tensor_type(t: Any) -> None:
        name = t if isinstance(t, str) else f"torch.cuda.{t.name}" if isinstance(t, _Legacy) else ""
        if not name.startswith("torch.cuda."):
            return set_type(t)
        torch.set_default_dtype(_TYPES[name.removeprefix("torch.cuda.")])
        torch.set_default_device("cuda")
        return None

    space.set_default_tensor_type = set_default_tensor_type
    torch.backends.cuda.is_built = lambda: True
    profile = torch.profiler.profile.__init__

    @functools.wraps(profile)
    def __init__(self: Any, *, activities: Any = None, **kwargs: Any) -> None:
        kinds = torch.profiler.ProfilerActivity
        if activities is not None:
            activities = [kinds.PrivateUse1 if item == kinds.CUDA else item for item in activities]
        profile(self, activities=activities, **kwargs)

    torch.profiler.profile.__init__ = __init__  # type: ignore[method-assign]


def _patch_amp() -> None:
    space: Any = torch
    for name in ("get_autocast_dtype", "is_autocast_enabled", "set_autocast_dtype", "set_autocast_enabled"):
        original = getattr(torch, name)

        def translated(device_type: Any = "cuda", *args: Any, _original: Any = original) -> Any:
            if isinstance(device_type, bool):  # the old form for CUDA, without a device
                device_type, args = "cuda", (device_type,)
            return _original("chip" if device_type == "cuda" else device_type, *args)

        setattr(space, name, functools.wraps(original)(translated))
    space.get_autocast_gpu_dtype = lambda: torch.get_autocast_dtype("chip")
    space.set_autocast_gpu_dtype = lambda dtype: torch.set_autocast_dtype("chip", dtype)
    begin = torch.amp.autocast.__init__

    @functools.wraps(begin)
    def __init__(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        begin(self, "chip" if device_type == "cuda" else device_type, *args, **kwargs)

    torch.amp.autocast.__init__ = __init__  # type: ignore[method-assign]


def _patch_files() -> None:
    """Patch torch.save to write cuda as the location, because the file may be read on a machine with CUDA."""
    from torch import serialization

    def tag(storage: Any) -> str | None:
        device = storage.device
        return f"cuda:{device.index}" if device.type == "chip" else None

    def restore(storage: Any, location: str) -> Any:
        device = real(location)
        return storage.to(device=device) if isinstance(device, torch.device) and device.type == "chip" else None

    serialization.register_package(5, tag, restore)


# ---- torch.cuda


def _patch_cuda() -> None:
    cuda: Any = torch.cuda
    replacements = {name: getattr(chips, name) for name in dir(chips) if name in dir(cuda)}
    replacements = {
        name: item
        for name, item in replacements.items()
        if getattr(item, "__module__", "").startswith("bringup") and not name.startswith("__")
    }
    replacements |= {
        "get_device_capability": chips.get_device_capability,
        "get_arch_list": list,
        "get_gencode_flags": str,
        "memory_cached": chips.memory_reserved,
        "max_memory_cached": chips.max_memory_reserved,
        "reset_max_memory_cached": chips.reset_peak_memory_stats,
        "is_bf16_supported": _supports("bfloat16"),
        "is_tf32_supported": _supports("tf32"),
        "ipc_collect": lambda: None,
        "get_sync_debug_mode": lambda: _sync_debug_mode[0],
        "set_sync_debug_mode": _set_sync_debug_mode,
        "get_per_process_memory_fraction": lambda device=None: 1.0,
        "get_allocator_backend": lambda: "native",
        "clock_rate": lambda device=None: chips.get_device_properties(device).clock_rate // 1000,
        "_lazy_init": chips.init,
        "_lazy_call": lambda function, **_: function(),
        "_is_in_bad_fork": chips._is_in_bad_fork,
        "_sleep": lambda cycles: None,
    }
    for name in ("amp", "nvtx", "_initialized", "random", "memory"):
        replacements.pop(name, None)
    for name, item in replacements.items():
        wrapped = item if isinstance(item, type) else _counted(name, item)
        for module in (cuda, cuda.memory, cuda.random, cuda.streams, cuda.graphs):
            if hasattr(module, name):
                setattr(module, name, wrapped)
        setattr(cuda, name, wrapped)
    for name, why in _MISSING.items():
        setattr(cuda, name, _missing(name, why))
    # A jiterator kernel may be created without CUDA, as in torch. Only its launch is an error.
    jiterator: Any = importlib.import_module("torch.cuda.jiterator")
    jiterator._JittedFunction.__call__ = _missing("jiterator", _DRIVER)
    cuda._initialized = True
    # Programs distinguish CUDA from ROCm by this value. torch 2.13 is built for this version by default.
    torch.version.cuda = "13.0"
    core: Any = torch._C  # torch.nn.DataParallel calls the next three functions
    core._scatter = lambda tensor, devices, sizes, dim, streams: [
        part.to(f"cuda:{index}")
        for part, index in zip(tensor.split(sizes, dim) if sizes else tensor.chunk(len(devices), dim), devices)  # noqa: B905
    ]
    core._gather = lambda tensors, dim, index: torch.cat(
        [item.to("cpu" if index == -1 else f"cuda:{index or 0}") for item in tensors], dim
    )
    core._broadcast_coalesced = lambda tensors, devices, size: [
        [item.to(f"cuda:{index}") for item in tensors] for index in devices
    ]
    for name, dtype in _TYPES.items():
        setattr(cuda, name, _Legacy(name, (), {"name": name, "dtype": dtype}))
    cuda.nvtx.range_push, cuda.nvtx.range_pop = _Ranges.push, _Ranges.pop
    cuda.nvtx.mark = lambda msg: None
    cuda.nvtx.range = _range


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not name.startswith("_") and not _is_torch(sys._getframe(1)):
            used[f"torch.cuda.{name}"] += 1
        args = tuple(real(argument) for argument in args)
        if "device" in kwargs:
            kwargs["device"] = real(kwargs["device"])
        return function(*args, **kwargs)

    return wrapper


def _is_torch(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith("torch.")


def _supports(dtype: str) -> Callable[..., bool]:
    def supported(*_: Any, **__: Any) -> bool:
        chips.get_device_capability()  # chooses a chip if none is chosen
        chip = process.chosen_chip()
        return dtype in chip.matrix.tflops or dtype in chip.ops.dtypes

    return supported


def _missing(name: str, why: str) -> Any:
    def raises(*_: Any, **__: Any) -> NoReturn:
        raise BringupError(
            f"torch.cuda.{name} {why}, which the chip does not have: do not call it when the program runs on the chip"
        )

    original = getattr(torch.cuda, name, None)
    if isinstance(original, type):
        return type(name, (), {"__new__": raises})
    return functools.wraps(original)(raises) if isinstance(original, FunctionType) else raises  # Dynamo looks into some


_sync_debug_mode = [0]


def _set_sync_debug_mode(mode: int | str) -> None:
    _sync_debug_mode[0] = mode if isinstance(mode, int) else ("default", "warn", "error").index(mode)


class _Ranges:
    """Ranges of ``torch.cuda.nvtx``, recorded as ranges of torch.profiler."""

    open: list[Any] = []  # noqa: RUF012 (one stack for the whole process; NVTX has one per thread)

    @classmethod
    def push(cls, msg: str) -> int:
        """Begin a range."""
        record: Any = torch.autograd.profiler.record_function(str(msg))
        record.__enter__()
        cls.open.append(record)
        return len(cls.open) - 1

    @classmethod
    def pop(cls) -> int:
        """End the latest range."""
        if cls.open:
            cls.open.pop().__exit__(None, None, None)
        return len(cls.open)


@contextmanager
def _range(msg: str, *args: Any, **kwargs: Any) -> Any:
    _Ranges.push(msg.format(*args, **kwargs))
    try:
        yield
    finally:
        _Ranges.pop()
