"""Graphs of launches: captured once, replayed by one call of the host. The names are those of ``torch.cuda``.

A replay runs the captured launches in order on the current stream, on the same memory. Memory that is allocated during
a capture belongs to the graph until it is reset or freed.
"""

from __future__ import annotations

import gc
import sys
import types
from typing import Any

import torch

from bringup.device import streams
from bringup.device.memory import empty_cache
from bringup.errors import BringupError

_ops = torch.ops.bringup

Pool = tuple[int, int]


def graph_pool_handle() -> Pool:
    """Return a token for memory that several graphs may share, if they are replayed in the order of their capture."""
    return (0, int(_ops.new_arena()))


def is_current_stream_capturing() -> bool:
    """Return True if launches on this thread's current stream are captured for a graph."""
    return bool(_ops.is_capturing())


class CUDAGraph:
    """Launches that are captured once and replayed often; see `graph` for the usual way to capture."""

    _number: int
    _pool: Pool | None

    def __new__(cls, keep_graph: bool = False) -> CUDAGraph:
        """Create a graph without launches. `keep_graph` changes nothing, because a capture needs no instantiation."""
        self = super().__new__(cls)
        self._number = int(_ops.new_graph())
        self._pool = None
        return self

    def capture_begin(self, pool: Pool | None = None, capture_error_mode: str = "global", **_: Any) -> None:
        """Capture the launches of this thread's current stream, and of streams that wait for it, from now on.

        Args:
            pool: the memory to use, from `graph_pool_handle` or another graph's `pool`; None is memory of its own.
            capture_error_mode: ``global``, ``thread_local`` or ``relaxed``; all refuse what cannot be captured.
        """
        if capture_error_mode not in ("global", "thread_local", "relaxed"):
            raise BringupError(
                f"capture_error_mode must be global, thread_local or relaxed, got {capture_error_mode!r}"
            )
        pool = graph_pool_handle() if pool is None else pool
        _ops.begin_capture(self._number, pool[1])
        self._pool = pool

    def capture_end(self) -> None:
        """End the capture."""
        _ops.end_capture(self._number)

    def instantiate(self) -> None:
        """Do nothing: a captured graph can be replayed at once."""

    def replay(self) -> None:
        """Enqueue all launches on the current stream. Does not wait."""
        _ops.replay_graph(self._number)

    def reset(self) -> None:
        """Forget the launches, and release the memory of the graph."""
        _ops.reset_graph(self._number)
        self._pool = None

    def pool(self) -> Pool:
        """Return a token for the graph's memory, for another graph that shares it."""
        if self._pool is None:
            raise BringupError("a graph has no memory before its capture: call capture_begin first")
        return self._pool

    def register_generator_state(self, generator: Any) -> None:
        """Do nothing: every replay draws from the generators that were captured."""

    def __del__(self) -> None:
        number = getattr(self, "_number", None)
        if number is not None and not sys.is_finalizing():  # at the end of the process, the device is shut down
            _ops.drop_graph(number)


class graph:
    """Context manager that captures the launches of its block in a `CUDAGraph`, on a stream of its own."""

    default_capture_stream: torch.Stream | None = None

    def __init__(
        self,
        cuda_graph: CUDAGraph,
        pool: Pool | None = None,
        stream: torch.Stream | None = None,
        capture_error_mode: str = "global",
        **_: Any,
    ) -> None:
        """See `CUDAGraph.capture_begin`; without `stream`, all captures use one stream."""
        if stream is None:
            graph.default_capture_stream = graph.default_capture_stream or streams.Stream()
        self.cuda_graph = cuda_graph
        self.pool = pool
        self.capture_stream = stream or graph.default_capture_stream
        self.capture_error_mode = capture_error_mode
        self.stream_ctx = streams.StreamContext(self.capture_stream)

    def __enter__(self) -> None:
        streams.synchronize()
        gc.collect()
        empty_cache()
        self.stream_ctx.__enter__()
        try:
            self.cuda_graph.capture_begin(self.pool, capture_error_mode=self.capture_error_mode)
        except BaseException:
            self.stream_ctx.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self.cuda_graph.capture_end()
        finally:
            self.stream_ctx.__exit__()


class _Torch:
    """``torch`` whose ``cuda`` is the chip's module, for functions of torch that name ``torch.cuda``."""

    def __init__(self, chips: Any) -> None:
        self.cuda = chips

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


_of_torch: Any = torch.cuda.graphs.make_graphed_callables  # kept, since `--cuda` replaces the name


def make_graphed_callables(callables: Any, sample_args: Any, *args: Any, **kwargs: Any) -> Any:
    """Return callables whose forward and backward passes are replayed from graphs.

    This is torch's own function, run on the chip: see ``torch.cuda.make_graphed_callables`` for the arguments.
    """
    chips: Any = torch.chip  # type: ignore[attr-defined]
    names = {**vars(torch.cuda.graphs), "torch": _Torch(chips), "graph_pool_handle": graph_pool_handle}
    function = types.FunctionType(_of_torch.__code__, names, _of_torch.__name__, _of_torch.__defaults__)
    function.__kwdefaults__ = _of_torch.__kwdefaults__
    return function(callables, sample_args, *args, **kwargs)
