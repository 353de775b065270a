"""The directory of a sweep: whole Parquet parts, a list of them, and a lock.

Note [Whole parts]
A part is written under a temporary name and renamed, so its name exists only with its whole contents. The name says
everything that its rows depend on. A sweep that goes on therefore only makes parts whose names do not exist yet. Parts
of other configurations, such as those of a chip file as it was before, move to the folder ``earlier``. Their rows are
copied where their keys occur again, so nothing is priced twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.errors import BringupError
from bringup.files import OURS, read_text, write_text, written_whole
from bringup.text import short

if TYPE_CHECKING:
    import duckdb

Array = npt.NDArray[Any]
LIST, LOCK, EARLIER, RECORDINGS = "sweep.json", f"{OURS}lock", "earlier", "recordings"
PART = re.compile(r"[A-Za-z0-9_-]{1,60}-\d{9,}-[0-9a-f]{16}\.parquet")  # what `Keys.part` returns
_LEFT_OVER = re.compile(rf"{re.escape(OURS)}[0-9a-f]{{16}}")


def quoted(name: str) -> str:
    """Return a name as SQL's identifier."""
    return '"' + name.replace('"', '""') + '"'


def database() -> duckdb.DuckDBPyConnection:
    """Open a database in memory; it uses one thread.

    Raises:
        BringupError: DuckDB is missing.
    """
    try:
        import duckdb
    except ModuleNotFoundError:
        raise BringupError('sweeps need DuckDB: pip install "bringup[sweep]"') from None
    return duckdb.connect(config={"threads": 1, "autoinstall_known_extensions": False})


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the directory of a sweep, and remove what a killed sweep left half-written.

    Raises:
        BringupError: another sweep writes there, or the directory cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise BringupError(f"{out}: cannot be written ({error.strerror or error})") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BringupError(
                f"{out}: another sweep is writing there: wait for its end, or choose another directory"
            ) from None
        for folder in (out, out / RECORDINGS):
            for path in folder.glob(f"{OURS}*"):
                if _LEFT_OVER.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def listed(out: Path) -> dict[str, Any] | None:
    """Return the list of a directory's parts with its axes; None if no sweep has written there.

    Raises:
        BringupError: the list is damaged.
    """
    path = out / LIST
    if not path.exists():
        return None
    try:
        data = json.loads(read_text(path, "list of parts"))
        is_whole = (
            all(isinstance(data[name], list) for name in ("parts", "axes", "arguments"))
            and all(isinstance(name, str) for name in (*data["axes"], *data["arguments"], *data["parts"]))
            and all(PART.fullmatch(name) for name in data["parts"])
            and isinstance(data["rows"], int)
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise BringupError(f"{path}: is damaged: run the sweep again with --resume")
    whole: dict[str, Any] = data
    return whole


def files(folder: Path) -> list[Path]:
    """Return the parts in a folder; other files are not ours, whatever they are."""
    return sorted(path for path in folder.glob("*.parquet") if PART.fullmatch(path.name))


def write_list(out: Path, data: dict[str, Any]) -> None:
    """Write the list of a sweep's parts."""
    write_text(out / LIST, json.dumps(data, indent=1) + "\n")


def write(path: Path, columns: dict[str, Array], types: dict[str, str]) -> None:
    """Write one part, whole or not at all.

    Args:
        path: its final name.
        columns: name -> values; not a number is no value.
        types: name -> type in SQL, in the order of the columns.

    Raises:
        BringupError: it cannot be written, for instance because the disk is full.
    """
    import duckdb

    def cast(name: str, kind: str) -> str:
        column = quoted(name)
        value = f"CASE WHEN isnan({column}) THEN NULL ELSE {column} END" if kind == "DOUBLE" else column
        return f"CAST({value} AS {kind}) AS {column}"

    values = {
        name: columns[name].astype(np.float64) if kind == "DOUBLE" else columns[name] for name, kind in types.items()
    }
    selected = ", ".join(cast(name, kind) for name, kind in types.items())
    with database() as connection, written_whole(path) as temporary:
        connection.register("block", values)
        target = temporary.replace("'", "''")
        try:
            connection.execute(f"COPY (SELECT {selected} FROM block) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
            _to_disk(temporary)
        except duckdb.Error as error:
            raise BringupError(f"{path}: cannot be written ({short(str(error), 200)})") from None


def _to_disk(path: str) -> None:
    """Wait until a file is on the disk, so that its final name never stands for less than the whole."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_whole(path: Path, rows: int) -> bool:
    """Return True if a part exists, can be read, and has this many rows."""
    import duckdb

    if not path.is_file():
        return False
    with database() as connection:
        try:
            total = f"SELECT count(*), count(key), sum(hash(COLUMNS(*))) FROM {reading([path])}"
            return bool(connection.execute(total).fetchall()[0][:2] == (rows, rows))
        except duckdb.Error:
            return False


def reading(paths: Sequence[Path]) -> str:
    """Return the expression of SQL that reads parts."""
    names = ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
    return f"read_parquet([{names}])"


class Earlier:
    """The rows of parts that are not in the sweep any more, by their keys.

    Args:
        paths: of the parts.
        columns: those that a key determines.
    """

    def __init__(self, paths: Iterable[Path], columns: Sequence[str]) -> None:
        self._connection: Any = None
        self.columns = columns
        self.parts = [path for path in paths if self._add(path)]

    def _add(self, path: Path) -> bool:
        import duckdb

        self._connection = self._connection or database()
        columns = ", ".join(map(quoted, ("key", *self.columns)))
        rows = f"SELECT {columns} FROM {reading([path])}"
        try:
            tables = self._connection.execute("SELECT count(*) FROM duckdb_tables()").fetchall()[0][0]
            self._connection.execute(f"INSERT INTO earlier {rows}" if tables else f"CREATE TABLE earlier AS {rows}")
        except duckdb.Error:  # damaged, or not a part
            return False
        return True

    def rows(self, keys: Array) -> tuple[Array, dict[str, Array]]:
        """Return the places in `keys` of rows that are there, and their values."""
        if not self.parts:
            return np.zeros(0, np.int64), {}
        self._connection.register("wanted", {"key": keys, "place": np.arange(len(keys))})
        columns = ", ".join(f"any_value(earlier.{quoted(name)}) AS {quoted(name)}" for name in self.columns)
        query = f"SELECT place, {columns} FROM wanted JOIN earlier USING (key) GROUP BY place ORDER BY place"
        table = self._connection.execute(query).fetchnumpy()
        self._connection.unregister("wanted")
        values = {name: table[name] for name in self.columns}
        for name in self.columns:
            if isinstance(values[name], np.ma.MaskedArray):
                values[name] = values[name].astype(np.float64).filled(np.nan)
        return table["place"], values


def set_aside(out: Path, parts: set[str]) -> None:
    """Move the parts that a sweep does not have to the folder ``earlier``."""
    for path in files(out):
        if path.name not in parts:
            with suppress(FileExistsError):
                (out / EARLIER).mkdir()
            path.replace(out / EARLIER / path.name)
