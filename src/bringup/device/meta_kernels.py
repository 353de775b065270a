"""torch's meta kernels in Python, without Dynamo.

torch hides some of them from Dynamo (``torch._disable_dynamo``), and imports it at their first call. A program that
compiles nothing would wait for that about as long as for the rest of torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch
import torch._decomp

from bringup.imports import after_import

_FILE = torch._compile.__file__
_HIDDEN = "__dynamo_disable"  # where torch keeps the hidden function, once it has imported Dynamo


def leave_dynamo_out() -> None:
    """Have hidden meta kernels called as they are, until something else imports Dynamo."""
    if "torch._dynamo" in sys.modules:
        return
    kernels = [*_hidden()]
    for kernel in kernels:
        setattr(kernel, _HIDDEN, kernel)

    def hide() -> None:
        for kernel in kernels:
            vars(kernel).pop(_HIDDEN, None)

    after_import("torch._dynamo", lambda _: None, before=hide)


def _hidden() -> Iterator[Any]:
    """Yield the functions that ``torch._disable_dynamo`` has wrapped, among meta kernels and what they call."""
    waiting: list[Any] = []
    for table in torch._decomp.global_decomposition_table.values():
        waiting += table.values()
    for name, module in list(sys.modules.items()):
        if name.startswith(("torch._refs", "torch._prims", "torch._decomp")):
            waiting += vars(module).values()
    seen: set[int] = set()
    while waiting:
        function = waiting.pop()
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        wrapped = [cell.cell_contents for cell in function.__closure__ or () if cell.cell_contents is not None]
        if function.__code__.co_filename == _FILE:
            yield from (inner for inner in wrapped if isinstance(inner, FunctionType))
        waiting += wrapped
