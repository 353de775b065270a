"""A scorecard as JSON: runs the items in separate processes, and compares with an older scorecard."""

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
MARK = "BRINGUP-ITEM "  # precedes a worker's JSON, because items may print other lines


Text = Annotated[str, Field(max_length=1000)]  # evidence has at most 500 characters


class _Line(BaseModel):
    """An item's line, as `registry.line` writes it."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    id: Text
    level: Literal["D", "T", "P"]
    title: Text
    verdict: Literal["pass", "partial", "fail", "na"]
    score: Annotated[float, Field(ge=0, le=1)]
    evidence: Text
    hint: Text
    seconds: Annotated[float, Field(ge=0, le=1e6)]  # items run for minutes at most


class _Card(BaseModel):
    """The parts of a scorecard that are read, validated because the file may come from elsewhere."""

    version: Literal[1] = Field(alias="schema")
    framework: Literal["torch", "jax", "tensorflow"] = "torch"
    items: Annotated[list[_Line], Field(max_length=10_000)]


@dataclass(frozen=True)
class Target:
    """The target of the checks.

    Attributes:
        device: of the framework.
        chip: the chip if the device is ``chip``.
        files: files with items.
        framework: torch, jax or tensorflow.
    """

    device: str
    chip: str | None
    files: tuple[str, ...] = ()
    framework: str = "torch"


def run(
    items: list[Item], target: Target, *, listed: int, jobs: int, matrix: bool, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run items, each in a process with a time limit, so that a crash or a hang is only this item's verdict.

    Args:
        items: the items to run.
        target: the device to check.
        listed: number of all items, of which these may be some.
        jobs: number of processes at the same time.
        matrix: True also tries every operator of torch by dtype.
        report: called with every line of the scorecard when it is ready.
    """

    def run_one(item: Item) -> dict[str, Any]:
        answer = _worker(["--item", item.id], target, item.seconds)
        failed = isinstance(answer, str)
        item_line: dict[str, Any] = line(item, "fail", 0.0, answer, item.seconds) if failed else answer
        report(item_line)
        return item_line

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        trying = pool.submit(_worker, ["--matrix"], target, MATRIX_SECONDS) if matrix else None
        lines = list(pool.map(run_one, items))
    ops = trying.result() if trying else {}
    return {
        "schema": SCHEMA,
        "framework": target.framework,
        "device": target.device,
        "chip": target.chip,
        "items": lines,
        "listed": listed,
        "ops": ops if isinstance(ops, dict) else {"error": ops},
    }


def _worker(arguments: list[str], target: Target, seconds: float) -> Any:
    """Run ``python -m bringup.scorecard`` and return its JSON, or a sentence that describes how it failed."""
    command = [sys.executable, "-m", "bringup.scorecard", *arguments, "--device", target.device]
    command += ["--framework", target.framework]
    command += ["--chip", target.chip] if target.chip else []
    command += [part for file in target.files for part in ("--file", file)]
    environment = {**os.environ, "BRINGUP_DEVICES": os.environ.get("BRINGUP_DEVICES", "2")}
    if target.framework == "jax":
        environment["JAX_PLATFORMS"] = ",".join(dict.fromkeys((target.device, "cpu")))
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"it did not end within {seconds:.0f} s and was killed"
    marked = next((text for text in out.splitlines() if text.startswith(MARK)), None)
    if marked is not None:
        return json.loads(marked[len(MARK) :])
    if process.returncode < 0:
        return f"its process died of {signal.Signals(-process.returncode).name}"
    return (err.strip().splitlines() or [f"its process ended with exit code {process.returncode}"])[-1]


def totals(card: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Count verdicts per level."""
    counts = {level: dict.fromkeys(("pass", "partial", "fail", "na"), 0) for level in LEVELS}
    for entry in card["items"]:
        counts[entry["level"]][entry["verdict"]] += 1
    return counts


def share(card: dict[str, Any], level: str | None = None) -> float | None:
    """Return the passed share of the items that apply, partial ones by their score; None if no item applies."""
    scores = [entry["score"] for entry in card["items"] if entry["verdict"] != "na" and level in (None, entry["level"])]
    return sum(scores) / len(scores) if scores else None


def part(card: dict[str, Any]) -> str:
    """Return how many of all items ran; nothing if all did."""
    number = len(card["items"])
    return "" if number == card["listed"] else f"{number} of {card['listed']} items"


def load(file: str, framework: str = "torch") -> dict[str, Any]:
    """Read a scorecard of a framework.

    Raises:
        BringupError: it is missing, damaged, not a scorecard of this version, or one of another framework.
    """
    text = read_text(file, "scorecard")
    try:
        card: dict[str, Any] = json.loads(text)
        other = _Card.model_validate(card).framework
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = short(".".join(str(part) for part in first["loc"]) or "file")
        raise BringupError(
            f"{file}: is not a scorecard of version {SCHEMA} from `bringup check` ({where}: {short(first['msg'])})"
        ) from None
    except (ValueError, RecursionError):
        raise BringupError(f"{file}: is not a scorecard: it is not JSON") from None
    if other != framework:
        raise BringupError(f"{file}: is a scorecard of {other}, and this one is of {framework}: compare equal ones")
    return card


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """List the changed items of two scorecards as (``better`` or ``worse``, old line, new line), the worse first."""
    before = {entry["id"]: entry for entry in old["items"]}
    changed = []
    for entry in new["items"]:
        was = before.get(entry["id"])
        if was is None or "na" in (was["verdict"], entry["verdict"]) or was["score"] == entry["score"]:
            continue
        changed.append(("better" if entry["score"] > was["score"] else "worse", was, entry))
    return sorted(changed, key=lambda change: change[0] == "better")
