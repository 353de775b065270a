"""The support matrix: tries the operators of torch's database by dtype on the device."""

from __future__ import annotations

from typing import Any

import torch

import bringup
from bringup.recording.rows import FALLBACK, LAUNCH
from bringup.scorecard.framework import close, comparing, full_name, moved, opinfos

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)
LOOSE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}


def support(
    device: torch.device, dtypes: tuple[torch.dtype, ...] = DTYPES, *, stride: int = 1
) -> dict[str, dict[str, str]]:
    """Try every n-th operator of the database with its first sample.

    Returns:
        operator -> dtype -> ``native``, ``fallback`` (right, but computed on the host) or ``fails``.
    """
    support_by_op: dict[str, dict[str, str]] = {}
    with comparing():
        for dtype in dtypes:
            for op in list(opinfos(dtype))[::stride]:
                support_by_op.setdefault(full_name(op), {})[str(dtype).split(".")[-1]] = _try(op, dtype, device)
    return dict(sorted(support_by_op.items()))


def _try(op: Any, dtype: torch.dtype, device: torch.device) -> str:
    try:
        torch.manual_seed(0)
        sample = next(iter(op.sample_inputs("cpu", dtype, requires_grad=False)))
        expected = op(sample.input, *sample.args, **sample.kwargs)
        inputs, args, kwargs = (moved(part, device) for part in (sample.input, sample.args, sample.kwargs))
        if device.type != "chip":
            return "native" if close(expected, op(inputs, *args, **kwargs), LOOSE.get(dtype, 1e-3)) else "fails"
        return _on_chip(op, expected, inputs, args, kwargs, LOOSE.get(dtype, 1e-3))
    except Exception:
        return "fails"


def _on_chip(op: Any, expected: Any, inputs: Any, args: Any, kwargs: Any, tolerance: float) -> str:
    with bringup.record() as trace:
        result = op(inputs, *args, **kwargs)
    if not close(expected, result, tolerance):
        return "fails"
    columns = trace.columns
    launched = columns["kind"] == LAUNCH
    return "fallback" if bool((columns["flags"][launched] & FALLBACK).any()) else "native"
