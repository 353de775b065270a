"""Triton's benchmarks on the chip: they return the predicted time of one run instead of measuring many runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bringup.cost.signature import Signature
from bringup.pricing import WorkTable, price_table
from bringup.process import process
from bringup.recording.recording import read_signature, record
from bringup.recording.rows import COLUMNS, LAUNCH


def seconds_of(run: Callable[[], Any]) -> float:
    """Run a function once; return the predicted seconds of its kernels and operators, launches included.

    The run does not appear in an active recording.
    """
    ops = torch.ops.bringup
    signatures: list[Signature] = []
    if ops.is_recording():
        ops.set_recording_aside(True)
        try:
            run()
            torch.chip.synchronize()  # type: ignore[attr-defined]
            columns = dict(zip(COLUMNS, ops.recorded_columns(0), strict=False))
            texts = ops.recorded_signatures(0)
        finally:
            ops.set_recording_aside(False)
        launched = columns["signature"][columns["kind"] == LAUNCH].tolist()
        signatures = [read_signature(texts[number])[1] for number in launched]
    else:
        with record() as trace:
            run()
        launched = trace.columns["signature"][trace.columns["kind"] == LAUNCH].tolist()
        signatures = [trace.signatures[number] for number in launched]
    if not signatures:
        return 0.0
    return float(price_table(WorkTable.from_signatures(signatures), signatures, process.chosen_chip()).seconds.sum())


def time_quantiles(
    kernel_call: Callable[[], Any], *, quantiles: Sequence[float] = (0.5, 0.2, 0.8), **_: Any
) -> list[float]:
    """Run a kernel once; return its predicted milliseconds, repeated for each quantile."""
    milliseconds = seconds_of(kernel_call) * 1e3
    return [milliseconds] * len(quantiles or (0.5,))


def do_bench(
    fn: Callable[[], Any],
    warmup: float = 25,
    rep: float = 100,
    grad_to_none: Any = None,
    quantiles: Sequence[float] | None = None,
    return_mode: str = "mean",
    **_: Any,
) -> Any:
    """Return the milliseconds on the chip, predicted from one run; replaces `triton.testing.do_bench`."""
    for tensor in grad_to_none or ():
        tensor.grad = None
    milliseconds = seconds_of(fn) * 1e3
    if quantiles is not None:
        return [milliseconds] * len(quantiles) if len(quantiles) > 1 else milliseconds
    return [milliseconds] if return_mode == "all" else milliseconds


def install() -> None:
    """Make Triton's benchmarks return predicted time. Called before the first kernel runs on a chip."""
    import triton.testing

    triton.testing.do_bench = do_bench
    triton.testing.do_bench_cudagraph = do_bench
