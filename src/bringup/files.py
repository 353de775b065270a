"""Writing files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bringup.errors import BringupError


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give a temporary name beside ``path``; it takes the name of ``path`` when the block ends well."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield str(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise BringupError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_whole(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")
