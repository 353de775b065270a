"""The values of a chip or host file one by one, each with its source."""

from __future__ import annotations

from typing import Any


def flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return a file's values by dotted key."""
    rows: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            rows.append((f"{prefix}{key}", ", ".join(map(str, value))))
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def source_of(key: str, sources: dict[str, str]) -> str:
    """Return the source of a key, or of the nearest table above it."""
    parts = key.split(".")
    return next((sources[".".join(parts[:i])] for i in range(len(parts), 0, -1) if ".".join(parts[:i]) in sources), "")
