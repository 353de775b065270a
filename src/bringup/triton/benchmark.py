"""Triton's benchmarks on the chip: they return the predicted time of one run instead of measuring many runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from bringup.cost.signature import Signature
from bringup.pricing import WorkTable, price_table
from bringup.process import process
from bringup.recording.findings import Finding
from bringup.recording.recording import read_signature, record
from bringup.recording.rows import COLUMNS, LAUNCH
from bringup.triton import shadow

UNUSED = -1  # the line of a row without one


@dataclass
class _Tries:
    """The configurations that a tuned kernel tries in one launch.

    Attributes:
        arguments: the launch's arguments, which identify it.
        changed: the arguments that a try has read and changed, and that nothing restored.
    """

    arguments: Any
    changed: set[str] = field(default_factory=set)


_tries: _Tries | None = None  # of the kernel that is being tuned


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
            *values, uses, offsets = ops.recorded_columns(0)
            columns = dict(zip(COLUMNS, values, strict=True))
            texts = ops.recorded_signatures(0)
            if _tries is not None:
                _check_try(
                    _tries, columns, uses.tolist(), offsets.tolist(), [read_signature(text)[0] for text in texts]
                )
        finally:
            ops.set_recording_aside(False)
        launched = columns["signature"][columns["kind"] == LAUNCH].tolist()
        signatures = [read_signature(texts[number])[1] for number in launched]
    else:
        with record() as trace:
            run()
        launched = trace.columns["signature"][trace.columns["kind"] == LAUNCH].tolist()
        signatures = [trace.signatures[number] for number in launched]
        if _tries is not None:
            _check_try(_tries, trace.columns, trace.uses.tolist(), trace.offsets.tolist(), trace.signature_data)
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


def _check_try(tries: _Tries, columns: Any, uses: list[int], offsets: list[int], signatures: list[Any]) -> None:
    """Report arguments that two tries have read and changed, and that nothing reset before or restored after."""
    launches = [row for row, kind in enumerate(columns["kind"].tolist()) if kind == LAUNCH]
    numbers = columns["signature"].tolist()
    written = {
        row: {use >> 1 for use in uses[offsets[row] : offsets[row + 1]] if use & 1}
        for row in launches
        if not signatures[numbers[row]]["op"].startswith("triton::")
    }
    lines: list[str] = []
    for row in launches:
        data = signatures[numbers[row]]
        for name, (place, line) in data["args"].get("rewrites", {}).items():
            storage = uses[offsets[row] + place] >> 1
            if any(storage in others for others in written.values()):
                continue
            if name in tries.changed:
                lines = lines or torch.ops.bringup.recorded_lines()
                number = int(columns["line"][row])
                _report(data["op"].removeprefix("triton::"), name, line, lines[number] if number != UNUSED else "")
            tries.changed.add(name)


def _report(kernel: str, name: str, line: str, launch: str) -> None:
    at = f", launched at {launch}," if launch else ""
    what = (
        f"kernel {kernel}{at} changes {name!r}, which it reads at {line}, in every try of autotune: the first result "
        "is computed from what the tries left"
    )
    advice = f"add reset_to_zero=[{name!r}] or restore_value=[{name!r}] to autotune"
    shadow.add(Finding("race", what, launch, line, advice))


@contextmanager
def _watched_try(tuner: Any) -> Iterator[None]:
    """Make a tuner's try leave no trace in the marks of unwritten memory, and check what it changes."""
    global _tries
    tries = vars(tuner).get("_bringup_tries")
    if tries is None or tries.arguments is not tuner.nargs:
        tries = tuner._bringup_tries = _Tries(tuner.nargs)
    chip: Any = torch.chip  # type: ignore[attr-defined]
    chip.synchronize()
    torch.ops.bringup.set_unwritten_aside(True)
    shadow.trying, before, _tries = True, _tries, tries
    try:
        yield
    finally:
        shadow.trying, _tries = before is not None, before
        chip.synchronize()
        torch.ops.bringup.set_unwritten_aside(False)


def _watched_tuner(tuner: type) -> None:
    """Watch a tuner's tries."""
    original = tuner._bench  # type: ignore[attr-defined]

    def _bench(self: Any, *args: Any, **meta: Any) -> Any:
        with _watched_try(self) if shadow.watching else nullcontext():
            return original(self, *args, **meta)

    tuner._bench = _bench  # type: ignore[attr-defined]


def benchmarker_of(tuner: Any) -> Callable[..., Any]:
    """Return what times a kernel by predicting one run, for a tuner or another caller.

    Triton makes the driver, and so calls `install`, inside the program's first try. That try is watched from here.
    """
    from triton.runtime.autotuner import Autotuner

    if not isinstance(tuner, Autotuner) or _tries is not None or not shadow.watching:
        return time_quantiles

    def first(*args: Any, **options: Any) -> Any:
        with _watched_try(tuner):
            return time_quantiles(*args, **options)

    return first


def install() -> None:
    """Make Triton's benchmarks return predicted time. Called before the first kernel runs on a chip."""
    import triton.testing
    from triton.runtime.autotuner import Autotuner

    triton.testing.do_bench = do_bench
    triton.testing.do_bench_cudagraph = do_bench
    if Autotuner._bench.__module__ != __name__:
        _watched_tuner(Autotuner)
