"""The replay's library, csrc/record/timeline.cpp, which needs no torch: so recordings are priced without it."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup import core, core_build
from bringup.errors import BringupError

Array = npt.NDArray[Any]

# What the library needs of every row, in the order of `Rows` in csrc/record/timeline.cpp.
COLUMNS: dict[str, Any] = {
    "kind": np.uint8,
    "flags": np.uint8,
    "device": np.int8,
    "stream": np.int16,
    "thread": np.int32,
    "object": np.int64,
    "host_seconds": np.float64,
    "seconds": np.float64,
    "share": np.float64,
    "fallback": np.int32,
}


class _Rows(Structure):
    _fields_ = (
        ("rows", c_int64),
        *((name, c_void_p) for name in COLUMNS),
        ("fallback_seconds", c_void_p),
        ("fallbacks", c_int64),
    )


_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "replay_open": (c_double, c_int64, c_int64, c_int64, c_double, POINTER(c_int64)),
    "replay_feed": (c_int64, POINTER(_Rows)),
    "replay_rows": (c_int64, POINTER(c_int64)),
    "replay_results": (c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p),
    "replay_now": (c_int64, c_int32, POINTER(c_double), POINTER(c_double)),
    "replay_event": (c_int64, c_int64, POINTER(c_double)),
    "replay_shares": (c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_double, c_double, c_void_p),
}


def _refuse(problem: bytes | None, function: Any, arguments: Any) -> None:
    if problem is not None:
        raise BringupError(f"{problem.decode()}: record the program again")


@cache
def load() -> ctypes.CDLL:
    """Load the library; it is compiled first if there is none.

    Raises:
        VersionError: it cannot be compiled or loaded.
    """
    with core.loading(core.compiled(core_build.replay_library())) as path:
        library = ctypes.CDLL(path)  # its calls hold no lock of the interpreter
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)  # which keeps it, where library[name] makes another
        function.argtypes, function.restype, function.errcheck = arguments, c_char_p, _refuse
    library.replay_close.argtypes, library.replay_close.restype = (c_int64,), None
    return library


def _column(values: Array, dtype: Any, rows: int) -> Array:
    column = np.ascontiguousarray(values, dtype)
    assert column.size == rows, "columns are of one length"
    return column


class Replay:
    """A replay under way.

    Args:
        launch_latency: seconds from the host's call to the earliest start on the chip.
        queue_depth: launches that may be outstanding.
        copy_engines: 1 or 2.
        concurrent_kernels: kernels that run at once.
        contended: duration of a kernel beside a collective, and of a collective beside kernels, over that alone.
    """

    def __init__(
        self,
        launch_latency: float,
        queue_depth: int,
        copy_engines: int,
        concurrent_kernels: int,
        contended: float = 1.0,
    ) -> None:
        self._handle = c_int64()
        load().replay_open(
            launch_latency, queue_depth, copy_engines, concurrent_kernels, contended, byref(self._handle)
        )

    def feed(self, columns: Mapping[str, Array], fallback_seconds: Array) -> None:
        """Replay further rows.

        Args:
            columns: those of `COLUMNS`; ``fallback`` is a row of ``fallback_seconds``, or -1.
            fallback_seconds: [d2h, host, h2d] of every signature that runs on the host.
        """
        rows = len(columns["kind"])
        arrays = [_column(columns[name], dtype, rows) for name, dtype in COLUMNS.items()]
        parts = np.ascontiguousarray(fallback_seconds, np.float64)
        addresses = [column.ctypes.data for column in (*arrays, parts)]  # the arrays live until the call returns
        load().replay_feed(self._handle, byref(_Rows(rows, *addresses, parts.size // 3)))

    def results(self) -> tuple[Array, Array, Array, Array]:
        """Return for every row the seconds at which it was issued, started and ended, and those its call waited."""
        rows = c_int64()
        load().replay_rows(self._handle, byref(rows))
        issued, start, end, waited = (np.empty(rows.value) for _ in range(4))
        addresses = [column.ctypes.data for column in (issued, start, end, waited)]
        load().replay_results(self._handle, rows, *addresses)
        return issued, start, end, waited

    def now(self, thread: int) -> tuple[float, float]:
        """Return a thread's time in seconds, and for how much of it the thread was idle."""
        seconds, idle = c_double(), c_double()
        load().replay_now(self._handle, thread, byref(seconds), byref(idle))
        return seconds.value, idle.value

    def event(self, number: int) -> float:
        """Return the seconds at which the latest record of an event was reached; nan if it was not recorded."""
        seconds = c_double()
        load().replay_event(self._handle, number, byref(seconds))
        return seconds.value

    def close(self) -> None:
        """Free the replay."""
        load().replay_close(self._handle)


def shares(
    kind: Array, fallback: Array, start: Array, end: Array, since: float, until: float
) -> tuple[float, float, float, float]:
    """Divide the seconds from ``since`` to ``until``.

    Returns:
        Seconds in which the chip computes; else the host works for it; else the link is busy; else one between chips.
    """
    totals, dtypes = np.zeros(4), (np.uint8, np.int32, np.float64, np.float64)
    arrays = [
        _column(values, dtype, len(kind)) for values, dtype in zip((kind, fallback, start, end), dtypes, strict=True)
    ]
    addresses = [column.ctypes.data for column in arrays]
    load().replay_shares(len(kind), *addresses, since, until, totals.ctypes.data)
    chip, host, link, between = totals.tolist()
    return chip, host, link, between
