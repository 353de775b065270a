"""The file of a trace: a zip archive of numpy arrays and one JSON text, as ``numpy.load`` reads them.

Such files are exchanged, so their bytes are anyone's. What the archive's directory promises is compared with the limits
before anything is decompressed, and no member may decompress to more than it promised.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.errors import TraceError
from bringup.files import StrPath, read_bytes, written_whole
from bringup.limits import TRACE
from bringup.recording.rows import COLUMNS, MEASURED, OPTIONAL
from bringup.text import short

Array = npt.NDArray[Any]
DESCRIPTION = "description.json"
# "uses" has a length of its own; all others have one value per row.
DTYPES = {
    name: np.dtype(kind).newbyteorder("<")
    for name, kind in (COLUMNS | {"use_count": np.int32, "uses": np.int64} | OPTIONAL).items()
}
LEVEL = 3  # of zlib: docs/trace.md has the figures of others
# The last record of an archive: signature, four counts, the directory's size and place, the length of a comment.
_END = struct.Struct("<4s4H2LH")
_END_OF_LARGE = struct.Struct("<4sLQL")  # stands before it in archives of more than 4 GiB, which no trace is
# What zipfile and zlib raise for broken archives.
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, OSError, OverflowError, ValueError, RuntimeError, LookupError),
)


def write(path: StrPath, description: bytes, columns: Mapping[str, Array]) -> None:
    """Write an archive, whole or not at all. The same description and columns give the same bytes."""
    with written_whole(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        members = {DESCRIPTION: description}
        for name, dtype in DTYPES.items():
            if name in OPTIONAL and name not in columns:
                continue
            column = np.ascontiguousarray(columns[name], dtype)
            members[f"{name}.npy"] = _header(name, len(column)) + column.tobytes()
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, LEVEL)  # dated 1980


def read(file: Path) -> tuple[bytes, dict[str, Array]]:
    """Read an archive: its JSON text and its columns. Their lengths and types are checked, their values are not.

    Raises:
        TraceError: it is missing, no regular file, no archive of a trace, or larger than any recording.
    """
    data = read_bytes(file, "trace file", TraceError)
    try:
        _check_end(file, data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            has = {name for name in OPTIONAL if f"{name}.npy" in entries}
            has |= set(MEASURED) if has & set(MEASURED) else set()  # one of them says nothing alone
            dtypes = {name: kind for name, kind in DTYPES.items() if name not in OPTIONAL or name in has}
            missing = {DESCRIPTION, *(f"{name}.npy" for name in dtypes)} - set(entries)
            if missing:
                raise TraceError(
                    f"{file}: is an archive, but not a trace that bringup wrote (it has no {min(missing)}): "
                    "record one with `bringup run`"
                )
            counts = {name: _count(name, entries[f"{name}.npy"].file_size) for name in dtypes}
            _check_size(file, "description bytes", entries[DESCRIPTION].file_size)
            _check_size(file, "rows", counts["kind"])
            _check_size(file, "uses", counts["uses"])
            text = _content(archive, entries[DESCRIPTION])
            columns = {}
            for name, dtype in dtypes.items():
                rows = counts[name if name == "uses" else "kind"]
                content, header = b"", _header(name, max(rows, 0))
                if counts[name] == rows >= 0:
                    content = _content(archive, entries[f"{name}.npy"])
                if not content.startswith(header):
                    raise TraceError(
                        f"{file}: is a damaged trace ({name} is not {dtype} in every row): record it again"
                    )
                columns[name] = np.frombuffer(content, dtype, offset=len(header)).astype(dtype.newbyteorder("="))
            return text, columns
    except _BROKEN as error:
        reason = short(str(error).partition("\n")[0] or type(error).__name__, 200)
        raise TraceError(f"{file}: cannot be read as a trace, it is truncated or no archive ({reason})") from None


def _header(name: str, count: int) -> bytes:
    """Return the header of a member, as numpy writes it."""
    header = io.BytesIO()
    facts = {"descr": DTYPES[name].str, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()


def _count(name: str, size: int) -> int:
    """Return how many values a member of this size has; -1 if no column of its type has this size."""
    values, item = size - len(_header(name, 0)), DTYPES[name].itemsize
    return values // item if values >= 0 and values % item == 0 else -1


def _check_end(file: Path, data: bytes) -> None:
    """Refuse an archive whose directory is larger than any trace's: zipfile makes an object of every entry."""
    if len(data) < _END.size or data[-_END.size :][:4] != b"PK\5\6":
        raise ValueError("it does not end as an archive")
    if data[-_END.size - _END_OF_LARGE.size :][:4] == b"PK\6\7":
        raise ValueError("it is an archive of more than 4 GiB")
    _check_size(file, "directory bytes", _END.unpack(data[-_END.size :])[5])


def _check_size(file: Path, name: str, size: int) -> None:
    limit = TRACE[name]
    if size > limit.most:
        raise TraceError(
            f"{file}: has {size:,} {name}, and bringup reads a trace of at most {limit.most:,} "
            f"({limit.why}): record fewer steps"
        )


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Decompress a member. zipfile stops where the promised size ends, and compares checksums."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{entry.filename} is compressed by another method than deflate")
    with archive.open(entry) as member:
        content = member.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise ValueError(f"{entry.filename} has {len(content):,} bytes instead of {entry.file_size:,}")
    return content
