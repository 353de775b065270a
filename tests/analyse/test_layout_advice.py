"""Advice for collectives: what other layouts save, by replays."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

import bringup
from bringup.analyse import layout_advice
from bringup.analyse.layout_advice import _axes, _Axis, _moved
from bringup.analyse.summarize import summarize
from bringup.analyse.summary import Bottleneck
from bringup.machine.files import load_chip, load_host
from bringup.report import lines
from bringup.timeline.replay import replay

MIB = 1 << 20


@functools.cache
def groups_stream() -> torch.Stream:
    return torch.Stream(device="chip")


def all_reduce(tensor: Any, nbytes: int, first: int = 0, step: int = 1, size: int = 16) -> None:
    """Call an all-reduce as torch does without async_op: on a stream of its own, which this one waits for."""
    other, ready, done = groups_stream(), torch.Event("chip"), torch.Event("chip")
    ready.record()
    other.wait_event(ready)
    args = {"bytes": nbytes, "first": first, "step": step, "size": size}
    signature = {"op": "c10d::all_reduce", "inputs": [["float32", [4], [1], 0, 1]], "outputs": [], "args": args}
    with other:
        torch.ops.bringup.record_compiled(json.dumps(signature), [tensor], [tensor], "train.py:7", -1, False, 0, 0)
        done.record()
    torch.accelerator.current_stream().wait_event(done)


def advice(program: Callable[[], None]) -> dict[str, Bottleneck]:
    """Return the advice for a step of 16 ranks on two nodes, by remedy."""
    with bringup.dry(), bringup.record() as trace:
        program()
    trace.about.update(ranks=16, cluster="dgx-h100x2")
    timeline = replay(trace, load_chip("h100-sxm"), load_host(None))
    return {item.remedy: item for item in layout_advice.bottlenecks(timeline, summarize(timeline))}


def seconds(nbytes: int, ranks: Any) -> float:
    return bringup.collective_seconds("all_reduce", nbytes, cluster="dgx-h100x2", ranks=ranks)


def test_group_with_most_bytes_belongs_inside_the_node() -> None:
    def program() -> None:
        x = torch.empty(4, device="chip")
        for _ in range(4):
            all_reduce(x, 256 * MIB, step=2, size=8)
            all_reduce(x, MIB, size=2)

    item = advice(program)["mesh-order"]
    before = seconds(256 * MIB, range(0, 16, 2)) + seconds(MIB, 2)
    after = seconds(256 * MIB, 8) + seconds(MIB, [0, 8])
    assert item.seconds == pytest.approx(4 * (before - after), rel=0.02)
    assert "the group of 8 ranks at train.py:7" in item.condition
    assert "2 (now in steps of 1) x 8 (now in steps of 2): the ranks of the last axis" in item.action


def test_many_small_all_reduces_are_one_large_one() -> None:
    def program() -> None:
        for tensor in [torch.empty(4, device="chip") for _ in range(40)]:
            all_reduce(tensor, MIB)

    item = advice(program)["larger-buckets"]
    expected = 40 * seconds(MIB, 16) - seconds(40 * MIB, 16)
    assert 0.5 * expected < item.seconds <= expected  # the last one begins when the host has called all
    assert "40 all-reduces per run of at most 1.00 MiB each" in item.condition


def test_results_in_use_are_not_reduced_together() -> None:
    def program() -> None:
        x = torch.empty(4, device="chip")
        for _ in range(40):
            all_reduce(x, 64 << 10)
            x.add_(1)

    assert "larger-buckets" not in advice(program)


def test_gradients_are_reduced_beside_the_kernels_that_follow() -> None:
    def program() -> None:
        gradient, other = (torch.empty(8192, 8192, device="chip", dtype=torch.bfloat16) for _ in range(2))
        gradient.fill_(1)
        other @ other
        all_reduce(gradient, 64 * MIB)
        gradient.mul_(2)

    item = advice(program)["overlap"]
    assert 0.5 * seconds(64 * MIB, 16) < item.seconds <= seconds(64 * MIB, 16)
    assert "1 all-reduce per run could run beside kernels" in item.condition


def test_ranks_that_launch_nothing_get_no_advice() -> None:
    assert advice(lambda: None) == {}


def test_axes_of_a_mesh_are_those_of_its_groups() -> None:
    tensor, data = tuple(range(8)), tuple(range(0, 32, 8))
    assert _axes({tensor, data}, 32) == [_Axis(8, 1), _Axis(4, 8)]
    assert _axes({data}, 32) == [_Axis(8, 1), _Axis(4, 8)]
    assert _axes({(0, 1, 2), (0, 1)}, 6) == []  # three is no multiple of two
    assert _axes({(0, 5, 7)}, 8) == [_Axis(8, 1)]
    assert _moved(data, [_Axis(8, 1), _Axis(4, 8)], (1, 0)) == [0, 1, 2, 3]


def test_another_size_of_a_group_needs_another_recording() -> None:
    with bringup.dry(), bringup.record() as trace:
        all_reduce(torch.empty(4, device="chip"), 64 * MIB, size=8)
    trace.about.update(ranks=16)
    text = "\n".join(line.text for line in lines.lines(bringup.price(trace, "h100-sxm", cluster="dgx-h100x2").summary))
    assert "groups of 8 ranks are exposed for" in text
    assert (
        "to compare another size, record it (bringup run --dry --ranks 16 --out other ..., then bringup diff)" in text
    )
