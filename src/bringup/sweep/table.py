"""The table of a sweep: its rows by a condition, and the ones that no other row beats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.errors import BringupError
from bringup.sweep import parts
from bringup.text import short

if TYPE_CHECKING:
    import duckdb

Array = npt.NDArray[Any]
VIEW = "sweep"
PLACE = "row place"  # no axis has a space in its name
SHORT_NAMES = {"seconds": "step_seconds", "usd": "cost_usd", "joules": "energy_joules", "bytes": "peak_bytes"}
_NOT_IN_NAMES = r"[\w.\"']"


@dataclass(frozen=True)
class Rows:
    """Rows of a sweep.

    Attributes:
        columns: name -> values; None stands for no value.
        total: rows of the whole sweep.
        priced: those that are there.
        chosen: rows that the condition and the Pareto front leave; a limit may have cut them.
        without: rows that the condition chose and that have no value in a column of the Pareto front.
    """

    columns: dict[str, list[Any]]
    total: int
    priced: int
    chosen: int
    without: int = 0

    def __len__(self) -> int:
        """Count the rows."""
        return len(next(iter(self.columns.values()), []))

    def dicts(self) -> list[dict[str, Any]]:
        """Return one dictionary per row."""
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True)]


def connect(out: str | Path) -> duckdb.DuckDBPyConnection:
    """Return a connection of DuckDB whose view ``sweep`` has the rows of a directory. It can read no other file.

    Raises:
        BringupError: there is no sweep, or one of its parts is damaged.
    """
    folder = Path(out)
    contents = parts.listed(folder)
    listed = [folder / name for name in contents["parts"]] if contents else parts.files(folder)
    files = [path for path in listed if path.is_file()]
    if not files:
        raise BringupError(f"{out}: has no part of a sweep: run `bringup sweep FILE --out {short(str(out))}` first")
    connection = parts.database()
    import duckdb

    inside = str(folder.resolve()).replace("'", "''")
    try:
        connection.execute(f"SET allowed_directories = ['{inside}']; SET enable_external_access = false")
        located = [folder.resolve() / path.name for path in files]
        connection.execute(f"CREATE VIEW {VIEW} AS SELECT * FROM {parts.reading(located)}")
        connection.execute("SET lock_configuration = true")
        connection.execute(f"SELECT count(*) FROM {VIEW}")
    except duckdb.Error as error:
        damaged = next((path for path in files if not _opens(path)), None)
        text = f"{damaged}: is damaged" if damaged else f"{out}: cannot be read ({short(str(error), 200)})"
        raise BringupError(f"{text}: run the sweep again with --resume") from None
    return connection


def _opens(path: Path) -> bool:
    import duckdb

    with parts.database() as connection:
        try:
            connection.execute(f"SELECT count(*) FROM {parts.reading([path])}")
        except duckdb.Error:
            return False
    return True


def select(
    out: str | Path,
    *,
    where: str | None = None,
    pareto: Sequence[str] = (),
    by: Sequence[str] | None = None,
    order: str | None = None,
    limit: int | None = None,
) -> Rows:
    """Return rows of a sweep.

    Args:
        out: the directory of the sweep.
        where: a condition in SQL over the columns, such as ``fits and step_seconds < 0.1``.
        pareto: columns; the result then has only rows that no other row beats in one of them without losing in another.
        by: rows are compared with those of equal values in these columns: by default program and its arguments.
        order: column to sort by; default is the first one of the Pareto front, else the sweep's order.
        limit: the largest number of rows.

    Raises:
        BringupError: a column or condition is not valid, or the sweep cannot be read.
    """
    import duckdb

    contents = parts.listed(Path(out)) or {}
    with connect(out) as connection:
        names = [row[0] for row in connection.execute(f"DESCRIBE {VIEW}").fetchall()]
        pareto = [_column(name, names) for name in pareto]
        by = ["program", *contents.get("arguments", [])] if by is None else by
        by = [_column(name, names) for name in by]
        order = _column(order, names) if order else (pareto[0] if pareto else None)
        condition = f"WHERE ({_with_quotes(where, names)}\n)" if where else ""
        try:
            total = connection.execute(f"SELECT count(*) FROM {VIEW}").fetchall()[0][0]
            query = f"SELECT * FROM {VIEW} {condition}"
            without = 0
            if pareto:
                wanted = ", ".join(map(parts.quoted, dict.fromkeys((*pareto, *by, order or pareto[0]))))
                points = connection.execute(f"SELECT {wanted} FROM ({query})").fetchnumpy()
                places, without = _front(points, pareto, by)
                chosen = len(places)
                places = places[np.argsort(points[order or pareto[0]][places], kind="stable")][:limit]
                query = f"SELECT *, row_number() OVER () - 1 AS {parts.quoted(PLACE)} FROM ({query})"
                query = f"SELECT * FROM ({query}) WHERE {parts.quoted(PLACE)} IN (SELECT unnest(?))"
                columns = connection.execute(query, [places.tolist()]).fetchnumpy()
                as_stored = columns.pop(PLACE)
                order_of = np.argsort(as_stored)
                order_of = order_of[np.searchsorted(as_stored, places, sorter=order_of)]
                columns = {name: values[order_of] for name, values in columns.items()}
            else:
                chosen = connection.execute(f"SELECT count(*) FROM ({query})").fetchall()[0][0]
                query += f" ORDER BY {parts.quoted(order)} NULLS LAST" if order else ""
                query += f" LIMIT {int(limit)}" if limit is not None else ""
                columns = connection.execute(query).fetchnumpy()
        except duckdb.Error as error:
            text = short(str(error).splitlines()[0], 200) if str(error) else type(error).__name__
            raise BringupError(f"--where {short(where or '')}: {text}") from None
    as_lists = {name: _plain(values) for name, values in columns.items()}
    return Rows(as_lists, int(contents.get("rows", total)), int(total), int(chosen), without)


def _column(name: str, names: Sequence[str]) -> str:
    import difflib

    full = name if name in names else SHORT_NAMES.get(name, name)
    if full not in names:
        nearest = difflib.get_close_matches(name[:80], [*SHORT_NAMES, *names], n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else f"the columns are {', '.join(names)}"
        raise BringupError(f"the sweep has no column {short(name)}: {hint}")
    return full


def _with_quotes(text: str, names: Sequence[str]) -> str:
    """Put the names of columns with a point or a dash into quotes, as SQL needs it."""
    for name in sorted((name for name in names if not name.isidentifier()), key=len, reverse=True):
        pattern = rf"(?<!{_NOT_IN_NAMES}){re.escape(name)}(?!{_NOT_IN_NAMES})"
        text = re.sub(pattern, parts.quoted(name).replace("\\", r"\\"), text)
    return text


def _front(columns: dict[str, Any], pareto: Sequence[str], by: Sequence[str]) -> tuple[Array, int]:
    """Return the places of the rows on the Pareto front of their group, and how many rows lack a value."""
    numbers = []
    for name in pareto:
        if columns[name].dtype == object:
            raise BringupError(f"--pareto {name}: is a text; give columns of numbers, such as seconds,usd,joules")
        values: Any = np.ma.asarray(columns[name]).astype(np.float64)
        numbers.append(values.filled(np.nan))
    points = np.stack(numbers, axis=1)
    complete = np.flatnonzero(~np.isnan(points).any(axis=1))
    group = np.zeros(len(points), dtype=np.int64)
    for name in by:
        texts = np.asarray([str(value) for value in columns[name].tolist()])
        _, codes = np.unique(texts, return_inverse=True)
        group = group * (int(codes.max(initial=0)) + 1) + codes
        _, group = np.unique(group, return_inverse=True)
    fronts = [members[front(points[members])] for members in _groups(complete, group[complete])]
    places = np.sort(np.concatenate(fronts)) if fronts else complete
    return places, len(points) - len(complete)


def _groups(places: Array, group: Array) -> list[Array]:
    order = np.argsort(group, kind="stable")
    edges = np.flatnonzero(np.diff(group[order])) + 1
    return np.split(places[order], edges) if len(places) else []


def front(points: Array) -> Array:
    """Return the places of the points that no other point beats: not larger in any column, smaller in one."""
    remaining = np.lexsort(points.T[::-1])  # a point cannot be beaten by one that comes later
    chosen: list[int] = []
    while len(remaining):
        best = remaining[0]
        chosen.append(int(best))
        others = remaining[1:]
        beaten = (points[best] <= points[others]).all(axis=1) & (points[best] < points[others]).any(axis=1)
        remaining = others[~beaten]
    return np.sort(np.asarray(chosen, dtype=np.int64))


def _plain(values: Any) -> list[Any]:
    """Return a column as values of Python; None stands for no value."""
    return [None if value is np.ma.masked else value for value in values.tolist()]
