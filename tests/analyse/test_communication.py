"""The collectives of a step: their time, and what of it kernels hide."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import bringup
from bringup.analyse.communication import _union
from bringup.recording.trace import Trace
from bringup.report import html, lines

MIB = 1 << 20


def recorded(collective: dict[str, Any], kind: str = "all_reduce") -> Trace:
    """Record a large product, and beside it a collective on another stream."""
    import torch

    other = torch.Stream(device="chip")
    a = torch.empty(8192, 8192, device="chip", dtype=torch.bfloat16)
    signature = {"op": f"c10d::{kind}", "inputs": [["float32", [4], [1], 0, 1]], "outputs": [], "args": collective}
    with bringup.dry(), bringup.record() as trace:
        with other:
            torch.ops.bringup.record_compiled(json.dumps(signature), [a], [a], "train.py:7", -1, False, 0, 0)
        a @ a
    return trace


def test_a_collective_beside_a_kernel_is_hidden() -> None:
    trace = recorded({"bytes": 64 * MIB, "first": 0, "step": 1, "size": 8})
    prediction = bringup.price(trace, "h100-sxm")
    summary = prediction.summary
    (collective,) = summary.collectives
    assert (collective.kind, collective.group_size, collective.count) == ("all_reduce", 8, 1)
    assert (collective.file, collective.line) == ("train.py", 7)
    expected = bringup.collective_seconds("all_reduce", 64 * MIB, cluster="dgx-h100", ranks=8)
    assert summary.communication_seconds == pytest.approx(expected)
    # The host launches the product after the collective, so the beginning is not hidden.
    assert summary.exposed_communication_seconds < 0.5 * expected
    (line,) = (line for line in lines.lines(summary) if getattr(line, "role", "") == "communication")
    assert "8 ranks on dgx-h100" in "".join(text for text, _ in line.parts)
    assert line.text.strip()[1:] in html.page(prediction.timeline, summary)


def test_a_slow_network_is_exposed() -> None:
    trace = recorded({"bytes": 64 * MIB, "ranks": [0, 3, 5]})
    summary = bringup.price(trace, "h100-sxm", cluster="l40s-server").summary
    assert summary.cluster == "l40s-server" and summary.collectives[0].group_size == 3
    assert summary.exposed_communication_seconds > 0.5 * summary.communication_seconds
    assert summary.step_seconds >= summary.communication_seconds


def test_a_send_takes_no_time_of_its_sender() -> None:
    trace = recorded({"bytes": 64 * MIB, "first": 0, "step": 1, "size": 2}, "send")
    assert bringup.price(trace, "h100-sxm").summary.communication_seconds == 0


def test_ranks_that_make_no_sense_are_refused() -> None:
    trace = recorded({"bytes": 8, "first": 0, "step": 0, "size": 8})
    with pytest.raises(bringup.BringupError, match="cannot be priced"):
        bringup.price(trace, "h100-sxm")


def test_union_of_intervals() -> None:
    spans = np.array([[0.0, 2.0], [1.0, 3.0], [5.0, 6.0], [5.2, 5.8], [7.0, 7.0]])
    assert _union(spans) == pytest.approx(4.0)
    assert _union(spans[:0]) == 0.0
