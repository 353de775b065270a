"""The drivers that come with bringup: their devices, and whether this machine can use them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

from bringup import core_build
from bringup.drivers.probe import MARK
from bringup.errors import BringupError
from bringup.process import DEFAULT_CHIP, asked_chip, asked_devices

VIRTUAL = "virtual"
SECONDS = 300  # for a driver to be compiled and to open its device


def names() -> tuple[str, ...]:
    """Return the names of the drivers: of the virtual chip, and of those that are libraries of their own."""
    return (VIRTUAL, *sorted(core_build.DRIVERS, reverse=True))


def drivers() -> list[dict[str, Any]]:
    """Return for each driver its name, its devices, whether it is usable, and why not."""
    return [describe(name) for name in names()]


def describe(name: str) -> dict[str, Any]:
    """Return the line of one driver, which is loaded in a process of its own."""
    answer = _virtual() if name == VIRTUAL else _probed(name)
    why = " ".join(answer["why_not"].split())
    return {"name": name, "devices": answer["devices"], "usable": not why, "why_not": why}


def resolve(name: str) -> str:
    """Return a driver's name, or the absolute path of its library: the program may change its working directory.

    Raises:
        BringupError: it is neither.
    """
    if name in names():
        return name
    if os.path.isfile(name):
        return os.path.abspath(name)
    raise BringupError(f"there is no driver {name!r}: give {', '.join(names())}, or the path of a driver's library")


def _virtual() -> dict[str, Any]:
    if core_build.find_torch() is None:
        return {"devices": [], "why_not": core_build.NEEDS_TORCH}
    return {"devices": [asked_chip() or DEFAULT_CHIP] * asked_devices(), "why_not": ""}


def _probed(name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bringup.drivers.probe", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"devices": [], "why_not": f"it did not open its device within {SECONDS} s"}
    marked = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), None)
    if marked is not None:
        answer: dict[str, Any] = json.loads(marked[len(MARK) :])
        return answer
    if done.returncode < 0:
        return {"devices": [], "why_not": f"its process died of {signal.Signals(-done.returncode).name}"}
    return {"devices": [], "why_not": (done.stderr.strip().splitlines() or ["its process ended"])[-1]}
