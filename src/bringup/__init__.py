"""bringup: run an unmodified PyTorch program on an AI chip that you do not have."""

from typing import TYPE_CHECKING

from bringup._load import launch_stats, use
from bringup.chip import available_chips, load_chip
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

if TYPE_CHECKING:
    from bringup._schema import Chip
else:

    def __getattr__(name: str) -> object:
        """Import `Chip` when it is first asked for: pydantic takes 0.1 s, and `import torch` imports this package."""
        if name == "Chip":
            from bringup._schema import Chip

            return Chip
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
