"""Programs that several tests record, and what the summary says of them."""

from collections.abc import Callable

import torch

import bringup
from bringup.analyse.summary import Summary


def summary_of(function: Callable[[], object]) -> Summary:
    """Record a function on an idle chip; return its summary on a T4."""
    torch.chip.synchronize()  # type: ignore[attr-defined]
    with bringup.record() as trace:
        function()
    torch.chip.synchronize()  # type: ignore[attr-defined]
    return bringup.price(trace, "t4").summary


def four_products() -> tuple[bringup.Trace, float]:
    """Record four steps of one product; return the recording, and the seconds of a step on a T4."""
    x = torch.ones(2048, 2048, device="chip")
    with bringup.record() as trace:
        for _ in range(4):
            x @ x
            bringup.step()
    return trace, bringup.price(trace, "t4").summary.step_seconds
