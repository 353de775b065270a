"""One chip file -> Chip."""

from __future__ import annotations

import difflib
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bringup.errors import ChipFileError, UnknownChipError

if TYPE_CHECKING:
    from bringup._schema import Chip

CHIPS = Path(__file__).parent / "chips"


@cache
def available_chips() -> list[str]:
    """Return the names of the chips that ship with bringup, sorted."""
    return sorted(path.stem for path in CHIPS.glob("*.toml"))


def load_chip(name_or_file: str | Path) -> Chip:
    """Read a chip by its name or from a TOML file (anything with a slash or ending in ``.toml``).

    Raises:
        UnknownChipError: no chip of that name; the message has the nearest names.
        ChipFileError: the file is missing or malformed.
    """
    text = str(name_or_file)
    if text.endswith(".toml") or "/" in text:
        return _read(Path(text))
    if text not in available_chips():
        nearest = difflib.get_close_matches(text, available_chips(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"there are {', '.join(available_chips())}"
        raise UnknownChipError(f"no chip is named {text!r}: {hint} A file is given by its path, as ./mine.toml")
    return _read(CHIPS / f"{text}.toml")


def _read(path: Path) -> Chip:
    from pydantic import ValidationError

    from bringup._schema import Chip

    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ChipFileError(f"{path}: there is no such chip file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ChipFileError(f"{path}: cannot be read as a text file: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ChipFileError(f"{path}: is not valid TOML: {error}") from None
    try:
        return Chip.model_validate({"name": path.stem, **data})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "file"
        found = "" if first["type"] == "missing" else f", got {first['input']!r}"
        raise ChipFileError(f"{path.name}: {key}: {first['msg']}{found}") from None
