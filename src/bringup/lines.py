"""Calls from lines of the user's program, so that recordings name them."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from functools import lru_cache
from types import FrameType, FunctionType
from typing import Any

from bringup.core_build import PACKAGE
from bringup.paths import is_library

_CALL = compile("call = lambda function, arguments: function(*arguments)", "line", "exec").co_consts[0]


@lru_cache(maxsize=1 << 16)
def at_line(name: str, file: str, line: int) -> Callable[..., Any]:
    """Return a function that calls ``function(*arguments)`` from a source line, under a name."""
    code = _CALL.replace(co_filename=file, co_name=name, co_firstlineno=max(line, 1))
    return FunctionType(code, {"__builtins__": builtins})


@lru_cache(maxsize=1 << 12)
def _is_program(file: str) -> bool:
    return not is_library(file) and not file.startswith(f"{PACKAGE}/")


def calling_line() -> tuple[str, int] | None:
    """Return the innermost line of the running thread that is neither in a library nor in bringup."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not _is_program(frame.f_code.co_filename):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame is not None else None
