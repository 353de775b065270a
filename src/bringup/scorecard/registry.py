"""The items of the scorecard, and the function that runs one.

An item is a function that takes a device and returns its evidence, a sentence with a number. The device is a
``torch.device``, a ``jax.Device``, or the name of TensorFlow's device, as the item's framework has it. It raises
`Failed`, `Partial` (with the share that works) or `NotApplicable`; any other error is also a failure. Its docstring is
its documentation. A vendor adds items by decorating functions in a Python file (``bringup check --items FILE``) or in a
module of the entry point group ``bringup.items``.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bringup.errors import BringupError

LEVELS = {"D": "devkit: it can be shown", "T": "try-out: a program is ported in a day", "P": "production candidate"}
MODULES = {  # of the items by framework, in the order of the scorecard
    "torch": ("framework", "strided", "runtime", "memory", "kernels", "tools", "system"),
    "jax": ("jax",),
    "tensorflow": ("tensorflow",),
}


class Failed(Exception):
    """The device does not fulfil the item."""


class NotApplicable(Exception):
    """The item is about a feature that this device is not meant to have, or that cannot be checked on it."""


class Partial(Exception):
    """The device fulfils a part of the item.

    Args:
        score: the fulfilled share, 0 to 1.
        evidence: a sentence that names the failing part.
    """

    def __init__(self, score: float, evidence: str) -> None:
        super().__init__(evidence)
        self.score = score


Function = Callable[[Any], str]


@dataclass(frozen=True)
class Item:
    """One item of the scorecard.

    Attributes:
        id: such as ``A1``; the ids of a vendor's own items begin with ``X``.
        level: a key of `LEVELS`.
        title: a title of a few words.
        hint: advice for a failure.
        run: the function, which returns the evidence.
        seconds: the time limit.
    """

    id: str
    level: str
    title: str
    hint: str
    run: Function
    seconds: float

    @property
    def about(self) -> str:
        """Return the first paragraph of the docstring in one line."""
        return " ".join(_documentation(self.run).split("\n\n")[0].split())


ITEMS: dict[str, Item] = {}  # of torch
_ITEMS: dict[str, dict[str, Item]] = {"torch": ITEMS, "jax": {}, "tensorflow": {}}


def item(
    id: str, level: str, title: str, *, hint: str, seconds: float = 120, framework: str = "torch"
) -> Callable[[Function], Function]:
    """Register a function as an item of a framework: torch, jax or tensorflow.

    Raises:
        BringupError: the id exists already, the level or framework is unknown, or the function has no docstring.
    """
    if framework not in _ITEMS:
        raise BringupError(f"item {id}: framework must be one of {', '.join(_ITEMS)}, got {framework!r}")
    items = _ITEMS[framework]

    def register(function: Function) -> Function:
        if id in items:
            raise BringupError(f"item {id} exists already ({items[id].title}): choose another id")
        if level not in LEVELS:
            raise BringupError(f"item {id}: level must be one of {', '.join(LEVELS)}, got {level!r}")
        if not _documentation(function):
            raise BringupError(f"item {id}: its function needs a docstring, which documents the item")
        items[id] = Item(id, level, title, hint, function, seconds)
        return function

    return register


def _documentation(function: Function) -> str:
    """Return a docstring; read it from the source if ``python -OO`` has removed it."""
    if function.__doc__ or sys.flags.optimize < 2:
        return function.__doc__ or ""
    try:
        definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError):  # the function was defined by exec
        return ""
    return (isinstance(definition, ast.FunctionDef) and ast.get_docstring(definition)) or ""


def require(condition: object, otherwise: str) -> None:
    """Raise `Failed` with the text `otherwise` unless the condition holds."""
    if not condition:
        raise Failed(otherwise)


def needs_accelerator(device: Any, feature: str) -> None:
    """Raise `NotApplicable` on the CPU, which does not have the feature."""
    if device.type == "cpu":
        raise NotApplicable(f"the CPU has no {feature}")


def platform(device: Any) -> str:
    """Return the kind of a device, such as chip or cpu: of a torch.device, a jax.Device, or TensorFlow's name."""
    kind: str = device if isinstance(device, str) else getattr(device, "type", None) or device.platform
    return kind


def needs_chip(device: Any, otherwise: str = "the tool is part of bringup and needs the device chip") -> None:
    """Raise `NotApplicable` with the text `otherwise` on every device other than chip, of any framework."""
    if platform(device) != "chip":
        raise NotApplicable(otherwise)


def load(files: tuple[str, ...] = (), framework: str = "torch") -> dict[str, Item]:
    """Import the items of bringup, of installed packages and of files; return those of a framework by id."""
    from importlib.metadata import entry_points

    for name in MODULES[framework]:
        importlib.import_module(f"bringup.scorecard.{name}")
    for entry in entry_points(group="bringup.items"):
        entry.load()
    for file in files:
        path = Path(file)
        spec = importlib.util.spec_from_file_location(f"bringup_items_{path.stem}", path)
        if not os.path.isfile(path) or spec is None or spec.loader is None:
            raise BringupError(f"{file}: there is no such file of items: give the path of a Python file")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # lives, like a torch.library in it
        spec.loader.exec_module(module)
    return dict(
        sorted(
            _ITEMS[framework].items(), key=lambda pair: (pair[0][0], int(pair[0][1:]) if pair[0][1:].isdigit() else 0)
        )
    )


def run_item(entry: Item, device: Any) -> dict[str, Any]:
    """Run one item in this process and return its line of the scorecard."""
    start = time.perf_counter()
    verdict, score = "pass", 1.0
    try:
        evidence = entry.run(device)
    except NotApplicable as error:
        verdict, score, evidence = "na", 0.0, str(error)
    except Partial as error:
        verdict, score, evidence = "partial", error.score, str(error)
    except Exception as error:  # any error on the device is the item's verdict
        text = str(error).strip().splitlines()
        name = "" if isinstance(error, Failed) else f"{type(error).__name__}: "
        verdict, score, evidence = "fail", 0.0, name + (text[0] if text else "")
    return line(entry, verdict, score, evidence, time.perf_counter() - start)


def line(entry: Item, verdict: str, score: float, evidence: str, seconds: float) -> dict[str, Any]:
    """Return an item's line of the scorecard."""
    return {
        "id": entry.id,
        "level": entry.level,
        "title": entry.title,
        "verdict": verdict,
        "score": round(score, 4),
        "evidence": evidence[:500],
        "hint": entry.hint if verdict in ("fail", "partial") else "",
        "seconds": round(seconds, 2),
    }
