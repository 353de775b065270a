"""The validated form of a chip file."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Memory(_Table):
    """Device memory."""

    device_gib: Annotated[float, Field(gt=0, le=4096, description="capacity in GiB (2**30 bytes)")]


class Chip(_Table):
    """What a chip file describes.

    Numbers carry their unit in the key. Every number has an entry of the same dotted name under ``[sources]``, unless
    the file says ``invented = true``.
    """

    name: Text
    vendor: Text
    description: Text
    invented: bool = False
    memory: Memory
    sources: dict[str, Text] = {}

    @property
    def device_bytes(self) -> int:
        """Capacity of one device in bytes."""
        return int(self.memory.device_gib * 2**30)

    @model_validator(mode="after")
    def _every_number_has_a_source(self) -> Chip:
        numbers = [f"memory.{key}" for key in Memory.model_fields]
        for key in numbers:
            if not self.invented and key not in self.sources:
                raise ValueError(f"{key} has no source: add it under [sources], or say invented = true")
        for key in self.sources:
            if key not in numbers:
                raise ValueError(f"[sources] names {key}, which is not a number of this file")
        return self
