"""Calls from lines of the user's program, so that recordings name them."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from functools import lru_cache
from types import FunctionType
from typing import Any

_CALL = compile("call = lambda function, arguments: function(*arguments)", "line", "exec").co_consts[0]


@lru_cache(maxsize=1 << 16)
def at_line(name: str, file: str, line: int) -> Callable[..., Any]:
    """Return a function that calls ``function(*arguments)`` from a source line, under a name."""
    code = _CALL.replace(co_filename=file, co_name=name, co_firstlineno=max(line, 1))
    return FunctionType(code, {"__builtins__": builtins})
