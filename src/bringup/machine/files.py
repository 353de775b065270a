"""Reading of the files of chips, hosts, nodes and clusters, by name or by path."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args

from bringup.errors import BringupError, ChipFileError, UnknownChipError
from bringup.files import parse_toml, read_text
from bringup.text import plain, short

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from bringup.machine.schema import Chip, Cluster, Host, Node, _Sourced

CHIPS = Path(__file__).parent / "chips"
HOSTS = Path(__file__).parent / "hosts"
NODES = Path(__file__).parent / "nodes"
CLUSTERS = Path(__file__).parent / "clusters"
DEFAULT_HOST = "xeon-8275cl"
MOST_MISTAKES = 8  # of a file that one sentence lists


@cache
def available_chips() -> list[str]:
    """Return the names of the chips that ship with bringup, sorted."""
    return sorted(path.stem for path in CHIPS.glob("*.toml"))


@cache
def available_hosts() -> list[str]:
    """Return the names of the hosts that ship with bringup, sorted."""
    return sorted(path.stem for path in HOSTS.glob("*.toml"))


@cache
def available_nodes() -> list[str]:
    """Return the names of the nodes that ship with bringup, sorted."""
    return sorted(path.stem for path in NODES.glob("*.toml"))


@cache
def available_clusters() -> list[str]:
    """Return the names of the clusters that ship with bringup, sorted. A node is a cluster of one, too."""
    return sorted(path.stem for path in CLUSTERS.glob("*.toml"))


def chip_names(text: str, option: str, noun: str = "chip") -> list[str]:
    """Split a comma-separated list of chips or clusters, the value of a command-line option.

    Raises:
        BringupError: the list is empty; the message names the option.
    """
    names = [name for name in text.split(",") if name]
    if not names:
        raise BringupError(f"{option} names no {noun}: give one or more, separated by commas")
    return names


_LISTED = {"chip": "chips", "host": "chips", "node": "clusters", "cluster": "clusters"}  # the verbs that list files


def load_chip(name_or_file: str | Path) -> Chip:
    """Read a chip by its name or from a TOML file (anything with a slash or ending in ``.toml``).

    Raises:
        UnknownChipError: no chip has this name; the message lists the nearest names.
        ChipFileError: the file is missing or malformed.
    """
    path = _find(str(name_or_file), "chip", CHIPS, available_chips())
    return _shipped_chip(path) if path.parent == CHIPS else _chip(path)


def _chip(path: Path) -> Chip:
    from bringup.machine.schema import Chip  # imports pydantic

    return _read(path, Chip)


_shipped_chip = cache(_chip)  # a chip is frozen


def load_host(name_or_file: str | Path | None = None) -> Host:
    """Read a host by its name or from a TOML file; the default is the host of the published dispatch costs."""
    from bringup.machine.schema import Host  # imports pydantic

    return _read(_find(str(name_or_file or DEFAULT_HOST), "host", HOSTS, available_hosts()), Host)


def load_node(name_or_file: str | Path) -> Node:
    """Read a node by its name or from a TOML file."""
    from bringup.machine.schema import Node  # imports pydantic

    return _read(_find(str(name_or_file), "node", NODES, available_nodes()), Node)


def load_cluster_file(name_or_file: str | Path) -> Cluster:
    """Read a cluster by its name or from a TOML file; `topology.load_cluster` also accepts nodes."""
    from bringup.machine.schema import Cluster  # imports pydantic

    return _read(_find(str(name_or_file), "cluster", CLUSTERS, available_clusters()), Cluster)


def describes_cluster(path: Path) -> bool:
    """Return True if a TOML file is one of a cluster, False if it is one of a node."""
    return "node" in _parsed(path, read_text(path, "cluster file", ChipFileError))


def _find(text: str, what: str, folder: Path, names: list[str]) -> Path:
    if text.endswith(".toml") or "/" in text:
        return Path(text)
    if text not in names:
        nearest = difflib.get_close_matches(text[:80], names, n=3, cutoff=0.4)
        listed = f"`bringup {_LISTED[what]}` lists the {len(names)} {what}s."
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else listed
        name = repr(short(text))
        raise UnknownChipError(f"no {what} is named {name}: {hint} For a file give its path, for example ./mine.toml")
    return folder / f"{text}.toml"


_Described = TypeVar("_Described", bound="_Sourced")


def _parsed(path: Path, text: str) -> dict[str, Any]:
    return parse_toml(text, path, "begin with a copy of a file that ships", ChipFileError)


def _read(path: Path, kind: type[_Described]) -> _Described:
    from pydantic import ValidationError

    data = {"name": path.stem, **_parsed(path, read_text(path, f"{kind.__name__.lower()} file", ChipFileError))}
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        texts = [mistake.text for mistake in _mistakes(kind, data, error)]
        more = [f"and {len(texts) - MOST_MISTAKES} more"] if len(texts) > MOST_MISTAKES else []
        raise ChipFileError(f"{path.name}: {'; '.join(texts[:MOST_MISTAKES] + more)}") from None


class Mistake(NamedTuple):
    """What is wrong with a file, in one sentence, and whether it concerns a required key."""

    text: str
    required: bool


def chip_mistakes(path: Path) -> list[Mistake]:
    """Return everything that is wrong with a chip file; nothing if it is valid.

    Raises:
        ChipFileError: the file cannot be read, or is not TOML.
    """
    return mistakes_of({"name": path.stem, **_parsed(path, read_text(path, "chip file", ChipFileError))})


def mistakes_of(data: dict[str, Any]) -> list[Mistake]:
    """Return everything that is wrong with the contents of a chip file."""
    from pydantic import ValidationError

    from bringup.machine.schema import Chip  # imports pydantic

    try:
        Chip.model_validate(data)
    except ValidationError as error:
        return list(_mistakes(Chip, data, error))
    return []


def _mistakes(kind: type[_Described], data: dict[str, Any], error: ValidationError) -> Iterator[Mistake]:
    from bringup.machine.schema import source_mistakes

    # A mistyped key comes first. It explains the keys that its table misses, and the sources of both.
    errors = sorted(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    mistyped = [item["loc"] for item in errors if item["type"] == "extra_forbidden"]
    tables = {loc[:-1] for loc in mistyped}
    told = [".".join(map(str, item["loc"])) for item in errors if item["type"] in ("extra_forbidden", "missing")]
    of_sources = [
        plain(text)
        for key, text in source_mistakes(data)
        if not any(key == name or key.startswith(f"{name}.") for name in told)
        and not (text.startswith("[sources]") and mistyped)
    ]
    for item in errors:
        text = _mistake(kind, item)
        if text.removeprefix("file: ") in of_sources:  # the validator stops at the first of them
            continue
        if item["type"] != "missing" or item["loc"][:-1] not in tables:
            yield Mistake(text, _is_required(kind, item["loc"]))
    yield from (Mistake(text, False) for text in of_sources)


def _is_required(kind: type[_Described], loc: tuple[int | str, ...]) -> bool:
    """Return True if a key and all tables that it is in are required."""
    table: Any = kind
    for part in loc:
        field = getattr(table, "model_fields", {}).get(part)
        if field is None or not field.is_required():
            return False
        table = _table(field.annotation)
    return bool(loc)


def _table(annotation: Any) -> Any:
    """Return the model of a table in the annotation of its key, such as ``Cache | None``."""
    return next((item for item in (annotation, *get_args(annotation)) if hasattr(item, "model_fields")), None)


def _mistake(kind: type[_Described], error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return _mistyped(kind, error["loc"])
    key = short(".".join(str(part) for part in error["loc"]) or "file")
    if error["type"] == "missing":
        return f"{key} is missing: add it, with its source"
    simple = isinstance(error["input"], (str, int, float, bool, list))
    value = f", got {short(repr(error['input']))}" if simple else ""
    return f"{key}: {plain(error['msg']).removeprefix('Value error, ')}{value}"


def _mistyped(kind: type[_Described], loc: tuple[int | str, ...]) -> str:
    """Say that a key is not one of its table, and name the nearest key that is."""
    table: Any = kind
    for part in loc[:-1]:
        table = _table(getattr(table, "model_fields", {})[part].annotation)
    names = list(getattr(table, "model_fields", {}))
    nearest = difflib.get_close_matches(str(loc[-1])[:80], names, n=1, cutoff=0.6)
    where = f"[{short('.'.join(map(str, loc[:-1])))}]" if loc[:-1] else f"a {kind.__name__.lower()} file"
    hint = f"did you mean {nearest[0]}?" if nearest else f"its keys are {', '.join(names)}"
    return f"{short(str(loc[-1]))} is not a key of {where}: {hint}"
