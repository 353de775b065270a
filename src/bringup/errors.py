"""The tree of errors.

Every mistake that a user can make with bringup itself raises one of these, with one sentence that says what was asked,
what was found and what to do::

    BringupError(RuntimeError)
    +-- ChipFileError        a chip file is malformed: file, key, value and the fix
    +-- UnknownChipError     no chip of that name; the nearest names
    +-- ChipInUseError       the chip was chosen after its first use
    +-- TraceError           a trace file is missing, truncated, foreign or of another version
    +-- VersionError         this torch is not the one that bringup was built for

What a kernel or torch itself refuses keeps torch's own types: ``IndexError``, ``RuntimeError``,
``torch.OutOfMemoryError``.
"""


class BringupError(RuntimeError):
    """A mistake in the use of bringup."""


class ChipFileError(BringupError):
    """A chip file is malformed."""


class UnknownChipError(BringupError):
    """No chip has this name."""


class ChipInUseError(BringupError):
    """The chip was chosen after its first use."""


class TraceError(BringupError):
    """A trace file cannot be read."""


class VersionError(BringupError):
    """This torch is not the one that bringup was built for."""


class ChipWarning(UserWarning):
    """A finding of ``pytest --chip`` under ``--chip-warn``."""
