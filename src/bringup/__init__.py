"""bringup: run an unmodified PyTorch program on an AI chip that you do not have."""

from bringup._load import launch_stats, use
from bringup.chip import Chip, available_chips, load_chip
from bringup.errors import (
    BringupError,
    ChipFileError,
    ChipInUseError,
    UnknownChipError,
    VersionError,
)

__all__ = [
    "BringupError",
    "Chip",
    "ChipFileError",
    "ChipInUseError",
    "UnknownChipError",
    "VersionError",
    "available_chips",
    "launch_stats",
    "load_chip",
    "use",
]

__version__ = "0.1.0"
