"""The chips of this process and their properties."""

from __future__ import annotations

import dataclasses
from typing import Union

import torch

from bringup.device.choose import choose_from_environment
from bringup.errors import BringupError
from bringup.process import process

_ops = torch.ops.bringup
DeviceLike = Union[torch.device, str, int, None]


def is_available() -> bool:
    """Return True: the virtual chip needs no hardware."""
    return True


def is_initialized() -> bool:
    """Return True if a chip has been opened in this process, or another than the first one is current.

    On CUDA, choosing a device opens it, too. FakeTensor asks, and takes the current device only if one is open.
    """
    return bool(_ops.is_open()) or current_device() != 0


def init() -> None:
    """Choose and open the first chip now, not at its first use."""
    configured()
    _ops.open(0)


def device_count() -> int:
    """Return the number of chips of this process."""
    return int(_ops.device_count())


def current_device() -> int:
    """Return the index of the current chip of this thread."""
    return int(torch._C._accelerator_getDeviceIndex())


def set_device(device: DeviceLike) -> None:
    """Make a chip the current one of this thread."""
    torch._C._accelerator_setDeviceIndex(index_of(device))


def get_device_name(device: DeviceLike = None) -> str:
    """Return the chip's name and description."""
    configured()
    checked(index_of(device))
    return f"{_ops.chip()} ({_ops.description()})"


@dataclasses.dataclass(frozen=True)
class DeviceProperties:
    """Properties from the chip file, under the names of ``torch.cuda.get_device_properties``.

    Attributes:
        total_memory: bytes of device memory.
        L2_cache_size, shared_memory_per_multiprocessor: bytes; 0 if the chip has no cache or no scratchpad.
        multi_processor_count: number of cores.
        clock_rate: kHz.
        major, minor: the compute capability of `get_device_capability`.
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
        """The chip's name. Inductor reads this attribute in torch builds without CUDA."""
        return self.name


def get_device_properties(device: DeviceLike = None) -> DeviceProperties:
    """Return the properties of a chip."""
    configured()
    checked(index_of(device))
    chip = process.chosen_chip()
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
    """Return the first CUDA compute capability whose matrix units support the dtypes of the chip's.

    Programs choose dtypes by it (CUDA C++ Programming Guide, "Compute Capabilities").
    """
    configured()
    checked(index_of(device))
    dtypes = set(process.chosen_chip().matrix.tflops)
    if any(name.startswith("float8") for name in dtypes):
        return (8, 9)
    if "bfloat16" in dtypes:
        return (8, 0)
    if "float16" in dtypes:
        return (7, 5) if "int8" in dtypes else (7, 0)
    return (6, 0)


def can_device_access_peer(device: DeviceLike, peer: DeviceLike) -> bool:
    """Return True, because a copy between chips needs no further call."""
    checked(index_of(device))
    checked(index_of(peer))
    return True


def real_device(tensor: torch.Tensor) -> torch.device:
    """Return a tensor's device, ``chip`` even if the program calls it ``cuda`` (`bringup.redirect_cuda`)."""
    fake = getattr(tensor, "fake_device", None)
    device: torch.device = fake if fake is not None else torch._C.TensorBase.device.__get__(tensor)
    # Under a TorchFunctionMode torch's getter calls the patched property, which returns cuda.
    return torch.device("chip", device.index) if process.named_cuda and device.type == "cuda" else device


class device:
    """Context manager that makes another chip the current one."""

    def __init__(self, device: DeviceLike) -> None:
        self.index = index_of(device)
        self.previous = -1

    def __enter__(self) -> None:
        self.previous = current_device()
        set_device(self.index)

    def __exit__(self, *_: object) -> None:
        set_device(self.previous)


class device_of(device):
    """Context manager that makes a tensor's chip the current one; it changes nothing for a tensor on the host."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(real_device(tensor) if real_device(tensor).type == "chip" else None)


def configured() -> None:
    """Choose a chip if none is chosen."""
    if not _ops.is_configured():
        choose_from_environment()


def index_of(device: DeviceLike) -> int:
    """Return the index of a chip, by default of the current one.

    Raises:
        ValueError: the device is not a chip.
    """
    if isinstance(device, int):
        return device
    if device is None:
        return current_device()
    named = torch.device(device)
    if named.type != "chip" and not (process.named_cuda and named.type == "cuda"):
        raise ValueError(f"expected a chip device, got {named}: give chip, chip:N or N")
    return current_device() if named.index is None else named.index


def checked(index: int) -> int:
    """Return the index if this process has such a chip.

    Raises:
        BringupError: the process has fewer chips.
    """
    if not 0 <= index < device_count():
        raise BringupError(
            f"chip:{index} does not exist: this process has {device_count()} chip(s); "
            "ask for more with bringup.use(..., devices=N) or BRINGUP_DEVICES=N"
        )
    return index
