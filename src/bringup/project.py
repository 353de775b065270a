"""The settings of a project: the table ``[tool.bringup]`` of its pyproject.toml."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bringup.errors import BringupError
from bringup.files import current_directory, parse_toml, read_text
from bringup.process import asked_chip
from bringup.text import short

# The parameters of each command that settings give a default.
PARAMETERS: dict[str, dict[str, str]] = {
    "run": {
        "chip": "chips",
        **{name: name for name in ("host", "host_clock", "max_step", "max_memory", "sanitize")},
    },
    "fit": {"chip": "chips", "host": "host"},
    "compare": {"host": "host", "host_clock": "host_clock"},
    "place": {"chip": "chip", "host": "host", "host_clock": "host_clock"},
}
PATHS = ("chip", "host", "baseline")  # files of the project, relative to its pyproject.toml


@dataclass(frozen=True)
class Settings:
    """The table, each value as the option of the same name takes it; None where the table has none.

    Attributes:
        file: the pyproject.toml; None if no project has such a table.
        chip: the chip to run on. ``BRINGUP_CHIP`` has precedence.
        baseline: what ``pytest --chip`` compares the tests with.
    """

    file: Path | None = None
    chip: str | None = None
    host: str | None = None
    host_clock: str | None = None
    max_step: str | None = None
    max_memory: str | None = None
    sanitize: str | None = None
    baseline: str | None = None

    def defaults(self, command: str) -> dict[str, Any]:
        """Return the defaults of a command's parameters."""
        names = PARAMETERS[command]
        return {parameter: value for name, parameter in names.items() if (value := getattr(self, name)) is not None}


def settings(folder: Path | None = None) -> Settings:
    """Read the table of the nearest pyproject.toml that has one, from a folder (default: the current one) upwards.

    Raises:
        BringupError: the file is no TOML, or the table has an unknown key or a value that is no text.
    """
    start = (folder or Path(current_directory())).absolute()
    for parent in (start, *start.parents):
        file = parent / "pyproject.toml"
        if file.is_file() and (table := _table(file)) is not None:
            return _checked(file, table)
    return Settings()


def _table(file: Path) -> Any:
    text = read_text(file, "project file")
    if "bringup" not in text:  # whatever else is wrong with the file, it has nothing to say here
        return None
    tools = parse_toml(text, file, "write it anew").get("tool", {})
    return tools.get("bringup") if isinstance(tools, dict) else None


def _checked(file: Path, table: Any) -> Settings:
    names = [item.name for item in fields(Settings) if item.name != "file"]
    if not isinstance(table, dict):
        raise BringupError(f"{file}: [tool.bringup] must be a table with keys such as chip")
    for name, value in table.items():
        if name not in names:
            raise BringupError(f"{file}: [tool.bringup] has no key {short(name)!r}: {_hint(name, names)}")
        if not isinstance(value, str) or not value:
            raise BringupError(f"{file}: {name} in [tool.bringup] must be a text, got {short(repr(value))}")
    values = {name: _beside(file, value) if name in PATHS else value for name, value in table.items()}
    if "chip" in values:
        values["chip"] = asked_chip() or values["chip"]
    return Settings(file, **values)


def _hint(name: str, names: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name[:80].replace("-", "_"), names, n=1)
    return f"did you mean {nearest[0]}?" if nearest else f"it may have {', '.join(names)}"


def _beside(file: Path, value: str) -> str:
    """Make the paths in a value absolute; the names of chips that ship stay as they are."""
    parts = value.split(",")
    return ",".join(
        str(file.parent / part) if "/" in part or part.endswith((".toml", ".json")) else part for part in parts
    )
