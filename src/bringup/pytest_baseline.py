"""The file of ``pytest --chip-baseline``: the chip time and memory of every test, to compare later runs with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bringup.errors import BringupError
from bringup.files import read_text, write_text
from bringup.text import duration, plain, short, size
from bringup.units import Change


class Used(BaseModel):
    """What one test used.

    Attributes:
        seconds: predicted time on the chip and its host.
        peak_bytes: device memory at the peak beyond what was held before the test.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid", frozen=True)

    seconds: Annotated[float, Field(ge=0, le=1e9)]
    peak_bytes: Annotated[int, Field(ge=0, le=1 << 60)]


class Baseline(BaseModel):
    """The tests by their ids, on one chip and host."""

    model_config = ConfigDict(strict=True, extra="forbid")

    version: Literal[1] = Field(1, alias="schema")
    chip: str
    host: str
    tests: dict[str, Used]


def load(path: str | Path, chip: str, host: str) -> Baseline:
    """Read a baseline.

    Raises:
        BringupError: the file is missing, no baseline, or of another chip or host.
    """
    text = read_text(path, "baseline")
    try:
        baseline = Baseline.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = short(".".join(str(part) for part in first["loc"])) or "file"
        raise BringupError(
            f"{path}: is no baseline of --chip-baseline ({where}: {plain(first['msg'])}): "
            "write it again with --chip-baseline-update"
        ) from None
    if (baseline.chip, baseline.host) != (chip, host):
        raise BringupError(
            f"{path}: is of {short(baseline.chip)} with host {short(baseline.host)}, and the tests run on {chip} with "
            f"host {host}: name another file, or write it again with --chip-baseline-update"
        )
    return baseline


def save(path: str | Path, chip: str, host: str, tests: Mapping[str, Used]) -> None:
    """Write a baseline. Tests of an older file for the same chip and host stay, unless they ran again."""
    older: dict[str, Used] = {}
    if Path(path).is_file():
        with suppress(BringupError):  # it is written anew
            older = load(path, chip, host).tests
    listed = {name: used.model_dump() for name, used in sorted({**older, **tests}.items())}
    data = {"schema": 1, "chip": chip, "host": host, "tests": listed}
    write_text(path, json.dumps(data, indent=1) + "\n")


def grown(before: Used, now: Used, slower: Change, memory: Change) -> Iterator[tuple[str, str]]:
    """Yield the name of a check and a sentence for each limit that a test exceeds."""
    if slower.exceeded(before.seconds, now.seconds):
        more = f"{now.seconds / before.seconds - 1:.1%}" if before.seconds else "infinitely"
        times = f"{duration(before.seconds)} -> {duration(now.seconds)}"
        yield "time", f"the test is {more} slower than its baseline ({times}), {slower.text} is allowed"
    if memory.exceeded(before.peak_bytes, now.peak_bytes):
        sizes = f"{size(before.peak_bytes)} -> {size(now.peak_bytes)}"
        more = size(now.peak_bytes - before.peak_bytes)
        yield "memory", f"the test holds {more} more than its baseline ({sizes}), {memory.text} is allowed"
