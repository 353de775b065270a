"""Streams and events of the device ``chip``."""

from __future__ import annotations

from typing import Any

import torch

from bringup.device.devices import DeviceLike, checked, current_device, index_of, set_device
from bringup.errors import BringupError

_ops = torch.ops.bringup


class Stream(torch.Stream):
    """An ordered queue of launches. A stream of priority -1 runs before one of priority 0 when both have work."""

    def __new__(cls, device: DeviceLike = None, priority: int = 0, **kwargs: Any) -> Stream:
        """Take a stream from the chip's pool (32 per priority)."""
        if kwargs:
            return super().__new__(cls, **kwargs)
        return super().__new__(cls, device=torch.device("chip", index_of(device)), priority=priority)

    @property
    def priority(self) -> int:
        """The priority: -1 for an urgent stream, 0 for others."""
        return int(_ops.stream_priority(self.device_index, self.stream_id))

    @staticmethod
    def priority_range() -> tuple[int, int]:
        """Return the least urgent and the most urgent priority."""
        return (0, -1)

    def __repr__(self) -> str:
        return f"torch.chip.Stream(device=chip:{self.device_index}, id={self.stream_id}, priority={self.priority})"


class _EventType(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch.Event) and instance.device.type == "chip"


class Event(torch.Event, metaclass=_EventType):
    """A point in a stream's queue, which can be waited for. Two events measure the milliseconds between them."""

    def __new__(cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> Event:
        """Create an event; ``elapsed_time`` needs ``enable_timing``."""
        if interprocess:
            raise BringupError("a chip's event cannot be shared between processes: leave out interprocess=True")
        # torch.Event.elapsed_time does not accept a subclass.
        return torch.Event(device="chip", enable_timing=enable_timing, blocking=blocking)  # type: ignore[return-value]


def _as_stream(stream: torch.Stream) -> Stream:
    return Stream(stream_id=stream.stream_id, device_index=stream.device_index, device_type=stream.device_type)


def current_stream(device: DeviceLike = None) -> Stream:
    """Return the stream on which this thread launches."""
    return _as_stream(torch._C._accelerator_getStream(checked(index_of(device))))


def default_stream(device: DeviceLike = None) -> Stream:
    """Return the chip's default stream."""
    index = checked(index_of(device))
    kind = torch._C._accelerator_getStream(index).device_type
    return Stream(stream_id=0, device_index=index, device_type=kind)


def set_stream(stream: torch.Stream) -> None:
    """Make a stream the one on which this thread launches, and its chip the current one."""
    torch.accelerator.set_stream(stream)


class StreamContext:
    """Context manager for launches of this thread on another stream; None changes nothing."""

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
    """Return a context manager for launches of this thread on another stream; None changes nothing."""
    return StreamContext(stream)


def get_sync_debug_mode() -> int:
    """Return the mode set by `set_sync_debug_mode`: 0 is "default", 1 "warn", 2 "error"."""
    return int(torch.ops.bringup.sync_debug_mode())


def set_sync_debug_mode(debug_mode: int | str) -> None:
    """Let operations that make the host wait for the chip warn ("warn", 1) or raise ("error", 2); "default", 0, is off.

    Reads of values, blocking copies, operators whose result depends on data and ``Stream.synchronize`` count, as on
    CUDA; ``synchronize`` and ``Event.synchronize`` do not.
    """
    modes = ("default", "warn", "error")
    mode = modes.index(debug_mode) if debug_mode in modes else debug_mode
    if mode not in (0, 1, 2):
        raise RuntimeError(f"set_sync_debug_mode takes 0 to 2, or one of {', '.join(modes)}, got {debug_mode!r}")
    torch.ops.bringup.set_sync_debug_mode(mode)


def synchronize(device: DeviceLike = None) -> None:
    """Wait for all streams of a chip, and raise the first error of their launches."""
    torch._C._accelerator_synchronizeDevice(checked(index_of(device)))
