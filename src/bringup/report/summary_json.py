"""Writes summary.json, the numbers for programs; docs/summary.schema.json is its schema."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from bringup.analyse.summary import SCHEMA_VERSION, Summary
from bringup.errors import BringupError


def as_dict(summary: Summary) -> dict[str, Any]:
    """Return the summary as JSON types, with the version of the schema."""
    return {"schema_version": SCHEMA_VERSION, **_rounded(summary)}


def as_json(summary: Summary, *, indent: int | None = 2) -> str:
    """Write the summary as JSON; equal summaries give equal bytes."""
    return json.dumps(as_dict(summary), indent=indent, sort_keys=True, allow_nan=False)


def _rounded(value: Any) -> Any:
    """Return JSON types with floats rounded to nine digits, so that differences of the machine's libm do not show."""
    if dataclasses.is_dataclass(value):
        public = (item.name for item in dataclasses.fields(value) if item.metadata.get("json", True))
        return {name: _rounded(getattr(value, name)) for name in public}
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BringupError(
                "a number of the summary is not finite: record the program again, and check the chip file"
            )
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
