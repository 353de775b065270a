"""``torch.chip``: streams, events, memory and random numbers of the device ``chip``.

The functions have the names and meanings of their namesakes in ``torch.cuda``. All of them are asynchronous towards the
device except ``synchronize``, ``get_rng_state`` and reading an event's time.
"""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from typing import Any, Union

import torch

from bringup.device.load import choose_from_environment
from bringup.errors import BringupError

_ops = torch.ops.bringup

named_cuda = False  # the program's name of the chip is cuda
seedings = 0  # how often a generator was seeded

DeviceLike = Union[torch.device, str, int, None]


# ---- devices


def is_available() -> bool:
    """Tell whether a chip can be used: always, the virtual one needs no hardware."""
    return True


def is_initialized() -> bool:
    """Tell whether a chip has been opened in this process."""
    return bool(_ops.is_open())


def __getattr__(name: str) -> bool:
    """Give ``_initialized``, which torch.utils.checkpoint and others read to see whether there is a state to save."""
    if name == "_initialized":
        return is_initialized()
    raise AttributeError(f"module 'torch.chip' has no attribute {name!r}")


def init() -> None:
    """Choose and open the first chip now instead of at its first use."""
    _configure()
    _ops.open(0)


def device_count() -> int:
    """Return the number of chips of this process."""
    return int(_ops.device_count())


def current_device() -> int:
    """Return the index of the current chip of this thread."""
    return int(torch._C._accelerator_getDeviceIndex())


def set_device(device: DeviceLike) -> None:
    """Make a chip the current one of this thread."""
    torch._C._accelerator_setDeviceIndex(_index(device))


def get_device_name(device: DeviceLike = None) -> str:
    """Return the chip's name and description."""
    _configure()
    _checked(_index(device))
    return f"{_ops.chip()} ({_ops.description()})"


@dataclasses.dataclass(frozen=True)
class DeviceProperties:
    """What the chip file says, with the names of ``torch.cuda.get_device_properties``.

    Attributes:
        total_memory, L2_cache_size, shared_memory_per_multiprocessor: bytes; the latter two are 0 if there are none.
        multi_processor_count: cores.
        clock_rate: kHz.
        major, minor: the first CUDA compute capability whose matrix units take the dtypes that the chip's take, so that
            programs which ask for it choose the right dtypes (CUDA C++ Programming Guide, "Compute Capabilities").
    """

    name: str
    description: str
    total_memory: int
    multi_processor_count: int
    clock_rate: int
    L2_cache_size: int
    shared_memory_per_multiprocessor: int
    major: int
    minor: int
    is_integrated: bool
    is_multi_gpu_board: bool = False

    @property
    def gcnArchName(self) -> str:
        """The chip's name: Inductor asks for it in builds of torch without CUDA."""
        return self.name


def get_device_properties(device: DeviceLike = None) -> DeviceProperties:
    """Return what is known of the chip."""
    from bringup.device import load as _load

    _configure()
    _checked(_index(device))
    chip = _load.chosen
    assert chip is not None
    major, minor = get_device_capability(device)
    return DeviceProperties(
        name=_ops.chip(),
        description=_ops.description(),
        total_memory=_ops.device_bytes(),
        multi_processor_count=chip.compute.cores,
        clock_rate=round(chip.compute.clock_ghz * 1e6),
        L2_cache_size=round(chip.cache.mib * 2**20) if chip.cache else 0,
        shared_memory_per_multiprocessor=round(chip.scratchpad.kib_per_core * 1024) if chip.scratchpad else 0,
        major=major,
        minor=minor,
        is_integrated=chip.link.kind == "shared",
    )


def get_device_capability(device: DeviceLike = None) -> tuple[int, int]:
    """Return the first CUDA compute capability whose matrix units take the dtypes that the chip's take."""
    from bringup.device import load as _load

    _configure()
    _checked(_index(device))
    assert _load.chosen is not None
    dtypes = set(_load.chosen.matrix.tflops)
    if any(name.startswith("float8") for name in dtypes):
        return (8, 9)
    if "bfloat16" in dtypes:
        return (8, 0)
    if "float16" in dtypes:
        return (7, 5) if "int8" in dtypes else (7, 0)
    return (6, 0)


def can_device_access_peer(device: DeviceLike, peer: DeviceLike) -> bool:
    """Tell whether one chip copies to another without the program's help: always."""
    _checked(_index(device))
    _checked(_index(peer))
    return True


def real_device(tensor: torch.Tensor) -> torch.device:
    """Return where a tensor is, whatever name the program has for it (`bringup.redirect_cuda`)."""
    fake = getattr(tensor, "fake_device", None)
    found: torch.device = fake if fake is not None else torch._C.TensorBase.device.__get__(tensor)
    # Under a mode of torch functions the core's getter asks the class, which says what the program is to see.
    return torch.device("chip", found.index) if named_cuda and found.type == "cuda" else found


class device:
    """Context in which another chip is the current one."""

    def __init__(self, device: DeviceLike) -> None:
        self.index = _index(device)
        self.previous = -1

    def __enter__(self) -> None:
        self.previous = current_device()
        set_device(self.index)

    def __exit__(self, *_: object) -> None:
        set_device(self.previous)


class device_of(device):
    """Context in which the chip of a tensor is the current one; does nothing for other tensors."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(real_device(tensor) if real_device(tensor).type == "chip" else None)


def _configure() -> None:
    if not _ops.is_configured():
        choose_from_environment()


def _index(device: DeviceLike) -> int:
    if isinstance(device, int):
        return device
    if device is None:
        return current_device()
    named = torch.device(device)
    if named.type != "chip" and not (named_cuda and named.type == "cuda"):
        raise ValueError(f"expected a chip device, got {named}")
    return current_device() if named.index is None else named.index


def _checked(index: int) -> int:
    if not 0 <= index < device_count():
        raise BringupError(
            f"chip:{index} does not exist: this process has {device_count()} chip(s); "
            "ask for more with bringup.use(..., devices=N) or BRINGUP_DEVICES=N"
        )
    return index


# ---- streams and events


class Stream(torch.Stream):
    """An ordered queue of launches. ``priority`` -1 goes before 0 when both have work."""

    def __new__(cls, device: DeviceLike = None, priority: int = 0, **kwargs: Any) -> Stream:
        """Take a stream from the chip's pool (32 per priority)."""
        if kwargs:
            return super().__new__(cls, **kwargs)
        return super().__new__(cls, device=torch.device("chip", _index(device)), priority=priority)

    @property
    def priority(self) -> int:
        """-1 for an urgent stream, 0 for the others."""
        return int(_ops.stream_priority(self.device_index, self.stream_id))

    @staticmethod
    def priority_range() -> tuple[int, int]:
        """Return the least and the most urgent priority."""
        return (0, -1)

    def __repr__(self) -> str:
        return f"torch.chip.Stream(device=chip:{self.device_index}, id={self.stream_id}, priority={self.priority})"


class _EventType(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch.Event) and instance.device.type == "chip"


class Event(torch.Event, metaclass=_EventType):
    """A point in a stream's queue: record it, wait for it, take times between two of them (milliseconds)."""

    def __new__(cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> Event:
        """Make an event; only those with ``enable_timing`` can be asked for times."""
        if interprocess:
            raise BringupError("an event of a chip belongs to one process: interprocess=True is not supported")
        # torch.Event.elapsed_time takes no subclass
        return torch.Event(device="chip", enable_timing=enable_timing, blocking=blocking)  # type: ignore[return-value]


def _as_stream(found: torch.Stream) -> Stream:
    return Stream(stream_id=found.stream_id, device_index=found.device_index, device_type=found.device_type)


def current_stream(device: DeviceLike = None) -> Stream:
    """Return the stream on which this thread launches."""
    return _as_stream(torch._C._accelerator_getStream(_checked(_index(device))))


def default_stream(device: DeviceLike = None) -> Stream:
    """Return the chip's default stream."""
    index = _checked(_index(device))
    kind = torch._C._accelerator_getStream(index).device_type
    return Stream(stream_id=0, device_index=index, device_type=kind)


def set_stream(stream: torch.Stream) -> None:
    """Make a stream the one on which this thread launches, and its chip the current one."""
    torch.accelerator.set_stream(stream)


class StreamContext:
    """Context in which this thread launches on another stream; None changes nothing."""

    def __init__(self, stream: torch.Stream | None) -> None:
        self.stream = stream
        self.previous: tuple[int, torch.Stream] | None = None

    def __enter__(self) -> None:
        if self.stream is not None:
            self.previous = (current_device(), torch._C._accelerator_getStream(self.stream.device_index))
            torch.accelerator.set_stream(self.stream)

    def __exit__(self, *_: object) -> None:
        if self.previous is not None:
            index, stream = self.previous
            torch.accelerator.set_stream(stream)
            set_device(index)


def stream(stream: torch.Stream | None) -> StreamContext:
    """Return a context in which this thread launches on another stream; None changes nothing."""
    return StreamContext(stream)


def synchronize(device: DeviceLike = None) -> None:
    """Wait for all streams of a chip, and raise what failed on them."""
    torch._C._accelerator_synchronizeDevice(_checked(_index(device)))


# ---- memory


def empty_cache() -> None:
    """Give cached memory that no tensor uses back to the chip."""
    torch._C._accelerator_emptyCache()


def memory_stats(device: DeviceLike = None) -> OrderedDict[str, Any]:
    """Return the allocator's counters, with the names of ``torch.cuda.memory_stats``."""
    stats: OrderedDict[str, Any] = torch.accelerator.memory.memory_stats(_checked(_index(device)))
    return stats


def _bytes(key: str, device: DeviceLike) -> int:
    if not is_initialized():
        return 0
    return int(memory_stats(device).get(key, 0))


def memory_allocated(device: DeviceLike = None) -> int:
    """Return the bytes that tensors hold."""
    return _bytes("allocated_bytes.all.current", device)


def max_memory_allocated(device: DeviceLike = None) -> int:
    """Return the most bytes that tensors held since the start or the last reset."""
    return _bytes("allocated_bytes.all.peak", device)


def memory_reserved(device: DeviceLike = None) -> int:
    """Return the bytes that the caching allocator holds."""
    return _bytes("reserved_bytes.all.current", device)


def max_memory_reserved(device: DeviceLike = None) -> int:
    """Return the most bytes that the caching allocator held since the start or the last reset."""
    return _bytes("reserved_bytes.all.peak", device)


def reset_peak_memory_stats(device: DeviceLike = None) -> None:
    """Start the peaks again from what is held now."""
    torch._C._accelerator_resetPeakStats(_checked(_index(device)))


reset_max_memory_allocated = reset_peak_memory_stats
reset_max_memory_reserved = reset_peak_memory_stats


def reset_accumulated_memory_stats(device: DeviceLike = None) -> None:
    """Start the accumulated counters again from zero."""
    torch._C._accelerator_resetAccumulatedStats(_checked(_index(device)))


def mem_get_info(device: DeviceLike = None) -> tuple[int, int]:
    """Return the free and the total bytes of a chip."""
    free, total = torch._C._accelerator_getMemoryInfo(_checked(_index(device)))
    return int(free), int(total)


def set_per_process_memory_fraction(fraction: float, device: DeviceLike = None) -> None:
    """Let this process reserve at most a fraction (0 to 1) of the chip's memory."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    index = _checked(_index(device))
    _ops.open(index)
    _ops.set_memory_limit(index, float(fraction))


def largest_tensors(count: int = 5, device: DeviceLike = None) -> list[dict[str, Any]]:
    """Return the largest live blocks: ``bytes``, ``what`` (dtype, shape, op) and the Python ``line`` that made them."""
    index = _checked(_index(device))
    _ops.open(index)
    blocks: list[dict[str, Any]] = json.loads(_ops.live_blocks(index, count))
    return blocks


def memory_summary(device: DeviceLike = None, abbreviated: bool = False) -> str:
    """Return a table of the allocator's counters; abbreviated leaves out the two pools."""
    index = _checked(_index(device))
    stats = memory_stats(index)
    rows = [("Allocated memory", "allocated_bytes"), ("Active memory", "active_bytes")]
    rows += [("Requested memory", "requested_bytes"), ("Reserved memory", "reserved_bytes")]
    rows += [("Non-releasable memory", "inactive_split_bytes"), ("Allocations", "allocation"), ("Segments", "segment")]
    line = "-" * 78
    out = [line, f"chip:{index} {get_device_name(index)}"[:78], line]
    out.append(f"{'':24}{'current':>13}{'peak':>13}{'total':>14}{'freed':>14}")
    for title, key in rows:
        for pool in ("all",) if abbreviated else ("all", "large_pool", "small_pool"):
            name = title if pool == "all" else f"  {pool.replace('_', ' ')}"
            values = [stats.get(f"{key}.{pool}.{field}", 0) for field in ("current", "peak", "allocated", "freed")]
            cells = [_human(value) if key.endswith("bytes") else str(value) for value in values]
            out.append(f"{name:24}{cells[0]:>13}{cells[1]:>13}{cells[2]:>14}{cells[3]:>14}")
    out.append(line)
    out.append(f"out of memory: {stats.get('num_ooms', 0)}   retries: {stats.get('num_alloc_retries', 0)}")
    return "\n".join(out)


def _human(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


# ---- random numbers


def manual_seed(seed: int) -> None:
    """Seed the current chip's generator."""
    global seedings
    seedings += 1
    _ops.manual_seed(current_device(), _signed(seed))


def manual_seed_all(seed: int) -> None:
    """Seed every chip's generator."""
    global seedings
    seedings += 1
    for index in range(device_count()):
        _ops.manual_seed(index, _signed(seed))


def _signed(seed: int) -> int:
    """Wrap a 64-bit seed into the range of an op's int argument."""
    seed = int(seed) & 0xFFFFFFFFFFFFFFFF
    return seed - 2**64 if seed >= 2**63 else seed


def seed() -> int:
    """Seed the current chip's generator with a random number and return it."""
    return int(_ops.seed(current_device())) & 0xFFFFFFFFFFFFFFFF


def seed_all() -> None:
    """Seed every chip's generator with one random number."""
    manual_seed_all(seed())


def initial_seed() -> int:
    """Return the seed of the current chip's generator."""
    return int(_ops.initial_seed(current_device())) & 0xFFFFFFFFFFFFFFFF


def get_rng_state(device: DeviceLike = "chip") -> torch.Tensor:
    """Return the state of a chip's generator as a CPU tensor of bytes. Waits for launches that still draw."""
    state: torch.Tensor = _ops.rng_state(_checked(_index(device)))
    return state


def set_rng_state(new_state: torch.Tensor, device: DeviceLike = "chip") -> None:
    """Set the state of a chip's generator."""
    _ops.set_rng_state(_checked(_index(device)), new_state)


def get_rng_state_all() -> list[torch.Tensor]:
    """Return the state of every chip's generator."""
    return [get_rng_state(index) for index in range(device_count())]


def set_rng_state_all(new_states: list[torch.Tensor]) -> None:
    """Set the state of every chip's generator."""
    for index, state in enumerate(new_states):
        set_rng_state(state, index)


def _is_in_bad_fork() -> bool:
    return bool(_ops.is_forked())


# ---- what torch asks for by name


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Return the dtypes of ``torch.autocast("chip")``."""
    return [torch.bfloat16, torch.float16]


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Tell whether bfloat16 works: always."""
    return True


class amp:
    """``torch.chip.amp``: autocast for custom autograd functions."""

    @staticmethod
    def custom_fwd(fwd: Any = None, *, cast_inputs: torch.dtype | None = None) -> Any:
        """See ``torch.amp.custom_fwd``."""
        return torch.amp.custom_fwd(fwd, device_type="chip", cast_inputs=cast_inputs)

    @staticmethod
    def custom_bwd(bwd: Any = None) -> Any:
        """See ``torch.amp.custom_bwd``."""
        return torch.amp.custom_bwd(bwd, device_type="chip")


def _patch_torch() -> None:
    """Replace what torch 2.13 gets wrong for a renamed device by a clear error or the right answer."""
    import functools

    share = torch.UntypedStorage.share_memory_

    @functools.wraps(share)
    def share_memory_(self: torch.UntypedStorage, *args: Any, **kwargs: Any) -> Any:
        if self.device.type == "chip":
            raise BringupError("memory of a chip cannot be shared between processes: move the tensor to the CPU first")
        return share(self, *args, **kwargs)

    torch.UntypedStorage.share_memory_ = share_memory_  # type: ignore[method-assign]

    dlpack_device = torch.Tensor.__dlpack_device__

    @functools.wraps(dlpack_device)
    def __dlpack_device__(self: torch.Tensor) -> Any:  # torch compares with the name "privateuse1"
        if real_device(self).type == "chip":
            from torch.utils.dlpack import DLDeviceType

            return (DLDeviceType.kDLExtDev, real_device(self).index)
        return dlpack_device(self)

    torch.Tensor.__dlpack_device__ = __dlpack_device__  # type: ignore[method-assign]
