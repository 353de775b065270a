"""The error types.

Every mistake in the use of bringup raises one of these. The message is one sentence that states the request, the
problem and the remedy::

    BringupError(RuntimeError)
    +-- ChipFileError        a chip file is malformed: file, key, value and the fix
    +-- UnknownChipError     no chip has this name: the nearest names
    +-- ChipInUseError       another chip was chosen while tensors are on the first one
    +-- TraceError           a trace file is missing, truncated, not a trace, or has another version
    +-- MissingFeatureError  the program asks for something of CUDA that no chip has
    +-- VersionError         the C++ libraries do not fit this torch, or cannot be built
    +-- AllocatorSettingsError   the allocator's settings are malformed; as in torch, also a ValueError

Errors of torch and of kernels keep torch's types: ``IndexError``, ``RuntimeError``, ``torch.OutOfMemoryError``.
"""


class BringupError(RuntimeError):
    """A mistake in the use of bringup."""


class ChipFileError(BringupError):
    """A chip file is malformed."""


class UnknownChipError(BringupError):
    """No chip has this name."""


class ChipInUseError(BringupError):
    """Another chip was chosen while tensors are on the first one."""


class TraceError(BringupError):
    """A trace file cannot be read or written."""


class MissingFeatureError(BringupError):
    """The program asks for something of CUDA that no chip has, such as CUDA's own runtime."""


class VersionError(BringupError):
    """The C++ libraries do not fit this torch, or they cannot be built or loaded."""


class AllocatorSettingsError(BringupError, ValueError):
    """The allocator's settings (PYTORCH_ALLOC_CONF) are malformed."""


class ChipWarning(UserWarning):
    """A finding of ``pytest --chip`` under ``--chip-warn``."""
