"""New chip files: a comment on each key, and the values that were given."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

import bringup
from bringup.errors import ChipFileError
from bringup.files import tomllib
from bringup.machine.files import CHIPS
from bringup.machine.new import MEANINGS, text_of, write
from bringup.machine.schema import Chip


def keys(table: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, field in table.model_fields.items():
        inner: Any = next((item for item in (field.annotation, *get_args(field.annotation)) if is_table(item)), None)
        if inner is not None and get_origin(field.annotation) is not dict:
            yield from keys(inner, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in ("name", "sources"):
            yield f"{prefix}{key}"


def is_table(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def test_each_key_of_the_schema_has_a_meaning() -> None:
    assert sorted(keys(Chip)) == sorted(MEANINGS)


@pytest.mark.parametrize("name", bringup.available_chips())
def test_shipped_chip_is_the_same_after_it_is_written(name: str) -> None:
    data = tomllib.loads((CHIPS / f"{name}.toml").read_text(encoding="utf-8"))
    text = text_of(data)
    assert tomllib.loads(text) == data
    for key in MEANINGS:
        assert f"# {key.rpartition('.')[2]}: {MEANINGS[key]}" in text or f"# {MEANINGS[key]}" in text


def test_nulls_are_left_out_and_other_names_refused(tmp_path: Path) -> None:
    data = tomllib.loads((CHIPS / "t4.toml").read_text(encoding="utf-8"))
    left = {key: text for key, text in data["sources"].items() if key not in ("cache.mib", "memory.usable_gib")}
    data["sources"] = left
    write(tmp_path / "mine.toml", {**data, "memory": {**data["memory"], "usable_gib": None}, "cache": None})
    chip = bringup.load_chip(tmp_path / "mine.toml")
    assert chip.cache is None and chip.memory.usable_gib is None
    with pytest.raises(ChipFileError, match=r"a chip is named after its file: leave out name, or write other\.toml"):
        write(tmp_path / "another.toml", {**data, "name": "other"})
