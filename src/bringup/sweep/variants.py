"""Chips with other numbers: a chip file whose fields have values of a range."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from bringup.errors import BringupError
from bringup.machine.schema import Chip
from bringup.text import plain, short

# Numbers of a chip file that no price depends on: link.generation and lanes are its name, kernels.grid a limit.
WITHOUT_EFFECT = ("link.generation", "link.lanes", "kernels.grid", "price.usd")


def fields(table: Any = Chip, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the numbers of a chip file, and True for whole numbers; a table by dtype or family ends in ``*``."""
    for name, field in table.model_fields.items():
        kinds = _kinds(field.annotation)
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is not None:
            yield from fields(inner, f"{prefix}{name}.")
        elif dict in kinds:
            if float in kinds:
                yield f"{prefix}{name}.*", False
        elif (float in kinds or int in kinds) and bool not in kinds and prefix + name not in WITHOUT_EFFECT:
            yield prefix + name, float not in kinds


def _kinds(annotation: Any) -> set[Any]:
    """Return the plain types in an annotation such as ``Annotated[float, ...] | None``."""
    origin = getattr(annotation, "__origin__", None)
    parts = get_args(annotation)
    if origin in (list, tuple):
        return {origin}
    kinds = {origin} if origin is dict else set()
    if not parts or (isinstance(annotation, type) and origin is None):
        return {annotation}
    for part in parts:
        kinds |= _kinds(part) if isinstance(part, type) or hasattr(part, "__args__") or get_args(part) else set()
    return kinds


def check(chip: Chip, ranges: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, ...]]:
    """Return the ranges with whole numbers where a field has whole ones.

    Raises:
        BringupError: a field is not a number of a chip file, which the nearest name may be, or a value is not valid.
    """
    numbers = dict(fields())
    checked: dict[str, tuple[float, ...]] = {}
    for name, values in ranges.items():
        whole = numbers.get(name)
        head, _, _last = name.rpartition(".")
        if name not in numbers and f"{head}.*" not in numbers:
            raise BringupError(f"ranges.{short(name)}: {_unknown(name, chip, numbers)}")
        if whole and any(value != int(value) for value in values):
            wrong = next(value for value in values if value != int(value))
            raise BringupError(f"ranges.{name} has {wrong:g}, but the field has whole numbers: choose another number")
        checked[name] = tuple(int(value) if whole else float(value) for value in values)
    for name, values in checked.items():
        for value in values:
            variant(chip, {name: value})
    for end in (min, max):
        variant(chip, {name: end(values) for name, values in checked.items()})
    return checked


def _unknown(name: str, chip: Chip, numbers: Mapping[str, bool]) -> str:
    if name in WITHOUT_EFFECT:
        return "no prediction depends on this field: leave it out"
    tables = (item.removesuffix(".*") for item in numbers if item.endswith(".*"))
    entries = [f"{table}.{key}" for table in tables for key in _get(chip.model_dump(), table) or {}]
    names = [item for item in numbers if not item.endswith(".*")] + entries
    nearest = difflib.get_close_matches(name[:80], names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else "docs/chip.md lists the fields"
    return f"is not a number of a chip file: {hint}"


def _get(data: Any, path: str) -> Any:
    for part in path.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data


def variant(chip: Chip, values: Mapping[str, float]) -> Chip:
    """Return a chip with other numbers. It is an invented one, so its predictions have no error band.

    A value of ``memory.device_gib`` is also the usable one.

    Raises:
        BringupError: a value is not valid, or the chip has no such table.
    """
    if not values:
        return chip
    data = _plain(chip)
    for name, value in values.items():
        *tables, last = name.split(".")
        table = data
        for part in tables:
            if not isinstance(table.get(part), dict):
                optional = isinstance(getattr(chip, part, None), BaseModel)
                if not optional:
                    raise BringupError(f"ranges.{name}: chip {chip.name} has no [{short(part)}]: leave the chip out")
                table[part] = {}
            table = table[part]
        table[last] = value
    if "memory.device_gib" in values and "memory.usable_gib" not in values:
        data["memory"].pop("usable_gib", None)
    try:
        return Chip.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = plain(first["msg"]).removeprefix("Value error, ")
        shown = ", ".join(f"{name} = {value:g}" for name, value in values.items())
        raise BringupError(f"chip {chip.name} with {short(shown, 200)}: {where}: {message}") from None


def _plain(chip: Chip) -> dict[str, Any]:
    data = _dumps.get(id(chip))
    if data is None or data[0] is not chip:
        dump = chip.model_dump(exclude_unset=True)
        dump |= {"invented": True, "sources": {}}
        data = _dumps[id(chip)] = (chip, dump)
        while len(_dumps) > 64:
            _dumps.pop(next(iter(_dumps)))
    return copy.deepcopy(data[1])


_dumps: dict[int, tuple[Chip, dict[str, Any]]] = {}


def numbers_of(chip: Chip) -> dict[str, float]:
    """Return the numbers of a chip by their fields, without those that no price depends on."""
    return _numbers(chip.model_dump(exclude_none=True))


def stated_numbers(chip: Chip) -> dict[str, float]:
    """Return the numbers that a chip's file states, without those that no price depends on."""
    return _numbers(chip.model_dump(exclude_none=True, exclude_unset=True))


def _numbers(entries: dict[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, _ in fields():
        value = _get(entries, name.removesuffix(".*"))
        if isinstance(value, dict) and name.endswith(".*"):
            numbers |= {f"{name.removesuffix('*')}{key}": number for key, number in value.items()}
        elif isinstance(value, (int, float)):
            numbers[name] = value
    return numbers
