"""An advice is given if a replay of the changed program saves something, and only where it applies."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import bringup
from bringup.analyse.advice import LEAST_SECONDS, LEAST_SHARE
from bringup.analyse.summary import Bottleneck
from bringup.machine.schema import Chip
from bringup.recording.trace import Trace

HERE = "tests/analyse/test_advice.py:"


def record(function: Callable[[], object]) -> bringup.Trace:
    torch.chip.synchronize()  # type: ignore[attr-defined]
    with bringup.record() as trace:
        function()
    torch.chip.synchronize()  # type: ignore[attr-defined]
    return trace


def advice(trace: Trace, chip: str | Chip) -> dict[str, Bottleneck]:
    summary = bringup.price(trace, chip).summary
    for item in summary.bottlenecks:
        assert item.seconds >= LEAST_SHARE * summary.step_seconds
        assert item.seconds * summary.steps >= LEAST_SECONDS
        assert item.action.startswith("saves ")
    return {item.key: item for item in summary.bottlenecks}


def repeated(step: Callable[[], object], times: int) -> bringup.Trace:
    def run() -> None:
        for _ in range(times):
            step()
            bringup.step()

    return record(run)


def on_chip(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, device="chip")


def test_reads_are_told_to_be_rarer() -> None:
    x = on_chip(512, 512)
    found = advice(repeated(lambda: (x @ x).sum().item(), 400), "h100-sxm")
    waits = found["waits"]
    assert waits.numbers == {"waits": 1} and waits.remedy == "read-less-often"
    assert waits.line.startswith(HERE) and waits.line in waits.cause and "1 read of a value" in waits.cause
    assert "link-bound" not in found


def test_pageable_batches_are_told_to_be_pinned() -> None:
    found = advice(repeated(lambda: torch.ones(1 << 22).to("chip"), 4), "t4")
    first = found["link-bound"]
    assert first.remedy == "pin" and first.numbers == {"bytes": 4 << 22, "pageable": 1.0}
    assert first.line.startswith(HERE) and first.line in first.cause
    assert "pin_memory=True" in first.action
    assert "waits" not in found, "the same copies would be named twice"


def test_blocking_copies_of_pinned_memory_are_told_not_to_block() -> None:
    x, batch = on_chip(512, 512), torch.ones(1 << 17).pin_memory()
    found = advice(repeated(lambda: (x @ x, batch.to("chip")), 100), "a100-sxm-80")
    uploads = [item for item in found.values() if item.remedy in ("non-blocking", "copy-less")]
    assert uploads and all("read" not in item.action + item.cause for item in uploads)


def test_numbers_made_on_the_host_are_told_to_be_made_on_the_chip() -> None:
    x = on_chip(256, 256)
    found = advice(repeated(lambda: (x @ x) * torch.tensor(2.0, device="chip"), 300), "a100-sxm-80")
    assert found["waits"].remedy == "make-on-chip" and "torch.full((), value, device=...)" in found["waits"].action
    assert "link-bound" not in found and "pin" not in found["waits"].action.replace("pinned", "")


def test_masks_are_told_to_have_a_fixed_size() -> None:
    x = on_chip(1024)
    found = advice(repeated(lambda: x[x > 0].sum(), 600), "a100-sxm-80")
    assert found["waits"].remedy == "fixed-size" and "torch.where" in found["waits"].action
    assert found["host-bound"].remedy == "larger-batch", "a step whose sizes depend on data is no graph"


def chain() -> tuple[bringup.Trace, torch.Tensor]:
    model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.ReLU()))).to("chip")
    x = on_chip(32, 64)
    return repeated(lambda: model(x), 100), x


def test_short_launches_are_told_to_be_fused_with_the_batch_that_would_do() -> None:
    trace, _ = chain()
    summary = bringup.price(trace, "h100-sxm").summary
    first = advice(trace, "h100-sxm")["host-bound"]
    graph = summary.what_if_of("graph")
    assert graph is not None and first.remedy == "fuse"
    assert first.seconds == pytest.approx(summary.step_seconds - graph.step_seconds)
    assert first.numbers == {
        "waited_seconds": summary.host_seconds,
        "short_launches": 8,
        "graph_seconds": graph.step_seconds,
        "break_even_samples": np.ceil(32 * summary.step_seconds / summary.device_seconds),
    }


def test_chips_without_graphs_and_compiled_programs_are_not_told_to_compile() -> None:
    trace, _ = chain()
    eager = bringup.load_chip("h100-sxm").model_copy(update={"modes": ["eager"]})
    assert advice(trace, eager)["host-bound"].remedy == "larger-batch"
    trace.about["compiled_graphs"] = 1
    found = advice(trace, "h100-sxm")
    assert all("torch.compile" not in item.action for item in found.values())


def test_what_saves_nothing_is_no_advice() -> None:
    model, x = nn.Linear(8, 8).to("chip"), on_chip(4, 8)

    def calls() -> None:
        for _ in range(100):
            model(x)

    summary = bringup.price(record(calls), "edge8").summary
    graph = summary.what_if_of("graph")
    assert all(item.remedy != "fuse" for item in summary.bottlenecks) or (
        graph is not None and graph.step_seconds < summary.step_seconds
    )
    few = bringup.price(repeated(lambda: model(x).relu(), 4), "h100-sxm").summary
    assert few.bottlenecks == [], "four steps of some microseconds are below the noise"


def test_chains_of_pointwise_operators_are_told_to_be_fused() -> None:
    x = on_chip(1 << 22)
    found = advice(repeated(lambda: ((x + 1) * 2).relu().sigmoid(), 20), "t4")
    # Each of the four launches reads and writes x's size; fused, it is read once, and four results are written.
    moving, saved = found["memory-bound"].numbers["moving_seconds"], found["memory-bound"].seconds
    assert saved == pytest.approx(moving * 3 / 8, rel=0.05)


def test_lone_pointwise_operators_are_not_told_to_be_fused() -> None:
    x = on_chip(1 << 22)
    assert "memory-bound" not in advice(repeated(lambda: (x + 1, x.sum()), 20), "t4")


def test_one_read_between_steps_leaves_a_graph() -> None:
    model, x = nn.Sequential(*(nn.Linear(64, 64) for _ in range(6))).to("chip"), on_chip(32, 64)
    once = repeated(lambda: model(x).relu().sum().item(), 100)
    assert advice(once, "h100-sxm")["host-bound"].remedy == "fuse"

    def decides() -> None:
        y = model(x)
        if y.sum().item() > 1e9:
            y = y * 0.5
        y.relu().sum().item()

    assert advice(repeated(decides, 100), "h100-sxm")["host-bound"].remedy == "larger-batch"


def test_fallbacks_have_the_saving_of_their_own_operator() -> None:
    chip = bringup.load_chip("t4")
    lacking = chip.model_copy(update={"ops": chip.ops.model_copy(update={"host": ["aten::gelu"]})})
    x = on_chip(1 << 20)
    trace = repeated(lambda: nn.functional.gelu(x) + 1, 20)
    found = advice(trace, lacking)["fallback"]
    saved = bringup.price(trace, lacking).step_seconds - bringup.price(trace, chip).step_seconds
    assert found.seconds == pytest.approx(saved, rel=1e-6)
