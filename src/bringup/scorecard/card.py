"""A scorecard: the items run in processes of their own, as JSON, compared with an older one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bringup.errors import BringupError
from bringup.files import read_text
from bringup.scorecard.registry import LEVELS, Item, line
from bringup.text import short

SCHEMA = 1
MATRIX_SECONDS = 600
MARK = "BRINGUP-ITEM "  # before a worker's JSON: items may print, too


Text = Annotated[str, Field(max_length=1000)]  # evidence has 500 letters at most


class _Line(BaseModel):
    """What `registry.line` writes of an item."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    id: Text
    level: Literal["D", "T", "P"]
    title: Text
    verdict: Literal["pass", "partial", "fail", "na"]
    score: Annotated[float, Field(ge=0, le=1)]
    evidence: Text
    hint: Text
    seconds: Annotated[float, Field(ge=0, le=1e6)]  # an item has minutes


class _Card(BaseModel):
    """What is read of a scorecard that somebody else may have written."""

    version: Literal[1] = Field(alias="schema")
    items: Annotated[list[_Line], Field(max_length=10_000)]


@dataclass(frozen=True)
class Target:
    """What is checked: a torch device, for `chip` the chip, and files with items."""

    device: str
    chip: str | None
    files: tuple[str, ...] = ()


def run(
    items: list[Item], target: Target, *, jobs: int, matrix: bool, tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run items, each in a process with a time limit: a crash or a hang is that item's verdict.

    Args:
        items: what to run.
        target: on what.
        jobs: how many processes at once.
        matrix: also try every operator by dtype.
        tell: is given every line of the card as it comes.
    """

    def one(which: Item) -> dict[str, Any]:
        answer = _worker(["--item", which.id], target, which.seconds)
        failed = isinstance(answer, str)
        found: dict[str, Any] = line(which, "fail", 0.0, answer, which.seconds) if failed else answer
        tell(found)
        return found

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        trying = pool.submit(_worker, ["--matrix"], target, MATRIX_SECONDS) if matrix else None
        lines = list(pool.map(one, items))
    ops = trying.result() if trying else {}
    return {
        "schema": SCHEMA,
        "device": target.device,
        "chip": target.chip,
        "items": lines,
        "ops": ops if isinstance(ops, dict) else {"error": ops},
    }


def _worker(what: list[str], target: Target, seconds: float) -> Any:
    """Run ``python -m bringup.scorecard`` and return its JSON, or a sentence on how it ended."""
    command = [sys.executable, "-m", "bringup.scorecard", *what, "--device", target.device]
    command += ["--chip", target.chip] if target.chip else []
    command += [part for file in target.files for part in ("--file", file)]
    environment = {**os.environ, "BRINGUP_DEVICES": os.environ.get("BRINGUP_DEVICES", "2")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"it did not end within {seconds:.0f} s, and was killed"
    found = next((text for text in out.splitlines() if text.startswith(MARK)), None)
    if found is not None:
        return json.loads(found[len(MARK) :])
    if process.returncode < 0:
        return f"its process died of {signal.Signals(-process.returncode).name}"
    return (err.strip().splitlines() or [f"its process ended with exit code {process.returncode}"])[-1]


def totals(card: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Count verdicts per level."""
    found = {level: dict.fromkeys(("pass", "partial", "fail", "na"), 0) for level in LEVELS}
    for entry in card["items"]:
        found[entry["level"]][entry["verdict"]] += 1
    return found


def share(card: dict[str, Any], level: str | None = None) -> float | None:
    """Return the share of what applies that passes, partial ones by their score; None if nothing applies."""
    scores = [entry["score"] for entry in card["items"] if entry["verdict"] != "na" and level in (None, entry["level"])]
    return sum(scores) / len(scores) if scores else None


def load(file: str) -> dict[str, Any]:
    """Read a scorecard.

    Raises:
        BringupError: it is missing, damaged, or not a scorecard of this version.
    """
    text = read_text(file, "scorecard")
    try:
        card: dict[str, Any] = json.loads(text)
        _Card.model_validate(card)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = short(".".join(str(part) for part in first["loc"]) or "file")
        raise BringupError(
            f"{file}: is not a scorecard of version {SCHEMA} that bringup check wrote ({where}: {short(first['msg'])})"
        ) from None
    except (ValueError, RecursionError):
        raise BringupError(f"{file}: is not a scorecard: it is no JSON") from None
    return card


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """List what changed for items that both have: (``better`` or ``worse``, old line, new line), the worse first."""
    before = {entry["id"]: entry for entry in old["items"]}
    found = []
    for entry in new["items"]:
        was = before.get(entry["id"])
        if was is None or "na" in (was["verdict"], entry["verdict"]) or was["score"] == entry["score"]:
            continue
        found.append(("better" if entry["score"] > was["score"] else "worse", was, entry))
    return sorted(found, key=lambda change: change[0] == "better")
