"""The settings of the caching allocator, in the form of PYTORCH_ALLOC_CONF and PYTORCH_CUDA_ALLOC_CONF.

torch's CUDA allocator knows more settings than the chip's: those that would change nothing are named in a warning.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bringup.errors import AllocatorSettingsError
from bringup.process import asked_allocator

_LEAST_SPLIT_MB = 20  # the size of a large segment, kLargeBuffer in c10/core/AllocatorConfig.h


@dataclass(frozen=True)
class AllocatorSettings:
    """Settings that were read.

    Attributes:
        expandable_segments: True or False if it is set, else None.
        ignored: the keys whose values ask for something that the chip's allocator does not do.
    """

    expandable_segments: bool | None
    ignored: tuple[str, ...]


def _flag(key: str, value: str) -> bool:
    if value not in ("True", "False"):
        raise AllocatorSettingsError(f"expected 'True' or 'False' for {key}, got {value!r}")
    return value == "True"


def _number(least: int, *, powers_of_two: bool = False) -> Callable[[str, str], int]:
    def read(key: str, value: str) -> int:
        number = int(value) if re.fullmatch(r"[0-9]{1,18}", value) else -1
        if number < least or (powers_of_two and number & (number - 1)):
            what = "a power of two" if powers_of_two else "a whole number"
            raise AllocatorSettingsError(f"expected {what} of at least {least} for {key}, got {value!r}")
        return number

    return read


def _share(key: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise AllocatorSettingsError(f"expected a number between 0 and 1 for {key}, got {value!r}")
    return share


def _backend(key: str, value: str) -> bool:
    if value not in ("native", "cudaMallocAsync", "hipMallocAsync"):
        raise AllocatorSettingsError(f"expected native or cudaMallocAsync for {key}, got {value!r}")
    return value != "native"


def _divisions(key: str, value: str) -> bool:
    """Read one number, or a list such as ``[256:1,512:2,>:4]`` from sizes in MiB to numbers. True if one divides."""
    read = _number(0, powers_of_two=True)
    if not value.startswith("["):
        return read(key, value) > 0
    divides = False
    for entry in value[1:-1].split(","):
        interval, colon, number = entry.partition(":")
        if not colon or (interval != ">" and not re.fullmatch(r"[0-9]{1,9}", interval)):
            raise AllocatorSettingsError(f"expected entries such as 256:1 or >:4 in the list for {key}, got {entry!r}")
        if interval != ">":
            _number(1, powers_of_two=True)(key, interval)
        divides |= read(key, number) > 0
    return divides


# The keys of torch 2.10 to 2.15 (c10/core/AllocatorConfig.cpp, c10/cuda/CUDAAllocatorConfig.cpp), each with the reader
# of its value. A reader's result is false where the value asks for what the chip's allocator does in any case.
_KEYS: dict[str, Callable[[str, str], Any]] = {
    "expandable_segments": _flag,
    "backend": _backend,
    "max_split_size_mb": _number(_LEAST_SPLIT_MB),
    "max_non_split_rounding_mb": _number(_LEAST_SPLIT_MB),
    "large_segment_size_mb": _number(_LEAST_SPLIT_MB),
    "garbage_collection_threshold": _share,
    "per_process_memory_fraction": _share,
    "roundup_power2_divisions": _divisions,
    **dict.fromkeys(("release_lock_on_cudamalloc", "release_lock_on_hipmalloc"), _flag),
    **dict.fromkeys(("pinned_use_cuda_host_register", "pinned_use_hip_host_register"), _flag),
    **dict.fromkeys(("pinned_use_background_threads", "graph_capture_record_stream_reuse"), _flag),
    "pinned_num_register_threads": _number(1, powers_of_two=True),
    **dict.fromkeys(("pinned_reserve_segment_size_mb", "pinned_max_round_threshold_mb"), _number(1)),
    "pinned_max_cached_size_mb": _number(1),
}


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Yield the keys and values of ``key:value,key:[value,value]``; white space does not count, as in torch."""
    rest = re.sub(r"\s", "", text)
    while rest:
        match = re.match(r"([^,:\[\]]+):([^,:\[\]]+|\[[^\[\]]+\])(?:,|$)", rest)
        if match is None:
            raise AllocatorSettingsError(f"expected key:value pairs separated by commas, got {rest!r}")
        yield match[1], match[2]
        rest = rest[match.end() :]


def parse(text: str) -> AllocatorSettings:
    """Read settings such as ``expandable_segments:True,max_split_size_mb:128``; the last value of a key counts.

    Raises:
        AllocatorSettingsError: a key is not one of torch's, or a value is malformed.
    """
    values: dict[str, Any] = {}
    for key, value in _pairs(text):
        if key not in _KEYS:
            raise AllocatorSettingsError(f"unrecognized key {key!r} in the allocator's settings")
        values[key] = _KEYS[key](key, value)
    expandable = values.pop("expandable_segments", None)
    return AllocatorSettings(expandable, tuple(key for key, value in values.items() if value))


class _Applied:
    """What this process has applied: the text, the keys that a warning has named, and who set the text."""

    def __init__(self) -> None:
        self.text = ""
        self.by_program = False
        self.named: set[str] = set()


_applied = _Applied()


def _apply(text: str, source: str) -> None:
    try:
        settings = parse(text)
    except AllocatorSettingsError as error:
        raise AllocatorSettingsError(f"{source}: {error}") from None
    _applied.text = text
    if settings.expandable_segments is not None:
        torch.ops.bringup.set_expandable_segments(settings.expandable_segments)
    new = [key for key in settings.ignored if key not in _applied.named]
    _applied.named.update(new)
    if new:
        warnings.warn(
            f"{source}: {', '.join(new)} {'has' if len(new) == 1 else 'have'} no effect on a chip, whose allocator "
            "has the setting expandable_segments alone",
            stacklevel=3,
        )


def apply_environment() -> None:
    """Apply the settings of the environment, unless the program has set others."""
    if not _applied.by_program:
        source, text = asked_allocator()
        _apply(text, source)


def set_allocator_settings(env: str) -> None:
    """Apply settings from now on, as ``torch.cuda.memory._set_allocator_settings``; others keep their values.

    Raises:
        AllocatorSettingsError: a key is not one of torch's, or a value is malformed.
    """
    _apply(env, "the allocator's settings")
    _applied.by_program = True


def applied_settings() -> str:
    """Return the text of the settings that were applied last."""
    return _applied.text


def install() -> None:
    """Make torch's function for the settings of the accelerator's allocator apply them to the chip's, too."""
    core: Any = torch._C
    apply_to_others = getattr(core, "_accelerator_setAllocatorSettings", None)

    def set_both(env: str) -> None:
        set_allocator_settings(env)
        if apply_to_others is not None:
            apply_to_others(env)

    core._accelerator_setAllocatorSettings = set_both
