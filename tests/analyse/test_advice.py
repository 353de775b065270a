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
from bringup.recording.rows import LAUNCH
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


def test_reads_of_an_optimizer_with_a_closure_are_left_to_it() -> None:
    weight = nn.Parameter(on_chip(10))
    optimizer = torch.optim.LBFGS([weight], lr=1e-3, max_iter=4, tolerance_grad=0, tolerance_change=0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    trace = record(lambda: [optimizer.step(closure) for _ in range(40)])
    assert sum(item.kind == "read" for item in bringup.price(trace, "h100-sxm").summary.waits)
    found = advice(trace, "h100-sxm")
    assert "waits" not in found


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
    assert "host-bound" not in found, "a step whose sizes depend on data is no graph, and its batch is not known"


def chain() -> tuple[bringup.Trace, torch.Tensor]:
    model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.ReLU()))).to("chip")
    x = on_chip(32, 64)
    return repeated(lambda: model(x), 100), x


def test_short_launches_are_told_to_be_replayed_as_a_graph() -> None:
    trace, _ = chain()
    summary = bringup.price(trace, "h100-sxm").summary
    first = advice(trace, "h100-sxm")["host-bound"]
    assert first.remedy == "fuse" and 'mode="reduce-overhead"' in first.action
    assert first.numbers["waited_seconds"] == summary.host_seconds and first.numbers["short_launches"] == 8
    assert first.seconds == pytest.approx(summary.step_seconds - first.numbers["graph_seconds"])
    graph = summary.what_if_of("graph")  # of all launches; here there is no optimizer
    assert graph is not None and first.numbers["graph_seconds"] == pytest.approx(graph.step_seconds, rel=0.5)


@pytest.mark.parametrize(("wide", "batch"), [(512, 32), (2048, 4)])
def test_the_batch_that_is_advised_keeps_the_chip_busy_when_it_is_run(wide: int, batch: int) -> None:
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(wide, wide), nn.ReLU()))).to("chip")

    def run(size: int) -> bringup.Prediction:
        x = on_chip(size, wide)
        with bringup.dry():
            return bringup.price(repeated(lambda: model(x), 40), "a100-sxm-80")

    now = run(batch)
    assert now.summary.device_seconds < 0.7 * now.step_seconds
    numbers = now.summary.bottlenecks[0].numbers
    larger = run(int(numbers["busy_samples"]))
    busy = larger.summary.device_seconds / larger.step_seconds
    assert busy == pytest.approx(numbers["busy"], abs=0.01) and busy >= 0.8
    halved = run(int(numbers["busy_samples"]) // 2)
    assert halved.summary.device_seconds / halved.step_seconds < 0.8


def test_no_batch_is_advised_that_makes_another_program() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(6))).to("chip")
    x = on_chip(33, 64)
    first = advice(repeated(lambda: model(x), 100), "h100-sxm")["host-bound"]
    assert first.numbers["busy_samples"] == 64 * 33 and first.numbers["busy"] < 0.8
    assert (
        f"raise the batch: even at batch 2,112 the chip is busy only {first.numbers['busy']:.0%} of the time"
        in first.action
    )


def test_reads_of_the_gradient_scaler_are_left_to_a_fused_optimizer() -> None:
    model = nn.Linear(64, 64).to("chip")
    optimizer, scaler = torch.optim.AdamW(model.parameters()), torch.amp.GradScaler("chip")
    x = on_chip(32, 64)

    def step() -> None:
        with torch.autocast("chip", dtype=torch.float16):
            loss = model(x).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    found = advice(repeated(step, 100), "h100-sxm")["waits"]
    assert found.remedy == "fused-optimizer" and "fused=True" in found.action


def test_a_batch_that_the_memory_cannot_hold_is_not_advised() -> None:
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(6))).to("chip")
    x = on_chip(32, 512)
    trace = repeated(lambda: model(x), 100)
    chip = bringup.load_chip("t4")
    small = chip.model_copy(update={"memory": chip.memory.model_copy(update={"device_gib": 0.001, "usable_gib": None})})
    assert "raise the batch: at batch" in advice(trace, chip)["host-bound"].action
    assert "raise the batch: at batch" not in advice(trace, small)["host-bound"].action


def test_chips_without_graphs_are_not_told_to_compile() -> None:
    trace, _ = chain()
    eager = bringup.load_chip("h100-sxm").model_copy(update={"modes": ["eager"]})
    assert advice(trace, eager)["host-bound"].remedy == "larger-batch"


def test_compiled_programs_are_told_to_replay_their_kernels() -> None:
    trace, _ = chain()
    trace.about["compiled_graphs"] = 1
    action = advice(trace, "h100-sxm")["host-bound"].action
    assert 'torch.compile(mode="reduce-overhead")' in action and "fuse" not in action
    launched = trace.columns["kind"] == LAUNCH
    trace.columns["object"][launched] = np.cumsum(np.ones(launched.sum(), dtype=np.int64)) // 8 + 1
    assert all("torch.compile" not in item.action for item in advice(trace, "h100-sxm").values())


def test_steps_of_changing_shapes_are_not_told_to_replay_a_graph() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8))).to("chip")
    sizes = iter(range(1, 61))
    trace = repeated(lambda: model(torch.ones(next(sizes), 64, device="chip")).relu().mul(2).add(1).tanh(), 60)
    assert "reduce-overhead" not in advice(trace, "h100-sxm")["host-bound"].action
    trace.about["compiled_graphs"] = 1
    assert all("reduce-overhead" not in item.action for item in advice(trace, "h100-sxm").values())


def test_several_reads_per_step_leave_the_advice_to_fuse() -> None:
    x = on_chip(1 << 20)

    def step() -> None:
        y = ((x + 1) * 2).relu().sigmoid()
        if y.sum().item() > 0:
            ((y + 1) * 2).relu().sum().item()

    first = next(item for item in advice(repeated(step, 60), "h100-sxm").values() if item.remedy == "fuse")
    assert "torch.compile" in first.action and "graph" not in first.action


def trainer(after: Callable[[nn.Module], object]) -> bringup.Trace:
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.GELU()))).to("chip")
    optimizer, x = torch.optim.SGD(model.parameters(), 0.1), on_chip(16, 64)

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        after(model)

    return record(lambda: [step() for _ in range(40)])


@torch.no_grad()
def average(model: nn.Module) -> None:
    for weight in model.parameters():
        weight.mul_(0.99).add_(weight.detach() * 0.01)


def test_compiled_passes_leave_out_what_follows_the_backward_pass() -> None:
    plain, averaged = (bringup.price(trainer(after), "h100-sxm").summary for after in (lambda _: None, average))
    (item,), (other,) = ([b for b in s.bottlenecks if b.remedy == "fuse"] for s in (plain, averaged))
    assert "reduce-overhead" in item.action and "reduce-overhead" in other.action
    # The 12 parameters' averages of 3 launches each stay as they are, at the host's time of a launch.
    left = other.numbers["graph_seconds"] - item.numbers["graph_seconds"]
    assert left == pytest.approx(averaged.step_seconds - plain.step_seconds, rel=0.1)


def test_gradients_of_gradients_are_not_told_to_be_compiled() -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1)).to("chip")
    x = on_chip(32, 16).requires_grad_()

    def step() -> None:
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        slope.square().mean().backward()

    action = advice(repeated(step, 60), "h100-sxm")["host-bound"].action
    assert "torch.chip.graph" in action and "fuse" not in action


def test_reads_outside_of_modules_leave_graphs() -> None:
    trace = trainer(lambda model: (next(model.parameters()).sum().item(), next(model.parameters()).amax().item()))
    assert "reduce-overhead" in advice(trace, "h100-sxm")["host-bound"].action


def test_one_action_is_named_once_with_both_causes() -> None:
    model, x = nn.Sequential(*(nn.Linear(64, 64) for _ in range(40))).to("chip"), on_chip(1 << 24)

    def step() -> None:
        ((x + 1) * 2).relu().sigmoid()
        model(x[:64].view(1, 64))

    summary = bringup.price(repeated(step, 40), "h100-sxm").summary
    compile_actions = [item for item in summary.bottlenecks if "torch.compile" in item.action]
    assert len(compile_actions) == 1
    assert "host-bound" in compile_actions[0].condition and "memory-bound" in compile_actions[0].condition


def test_advice_for_programs_without_steps_is_per_run() -> None:
    with bringup.dry():
        x = on_chip(4096, 4096)
        with bringup.record() as trace:
            x @ x
    (item,) = bringup.price(trace, chip="t4").summary.bottlenecks
    text = f"{item.condition} {item.cause} {item.action}"
    assert "per run" in text
    assert "per step" not in text


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
    # Each of the four launches reads and writes x's size; fused, it is read once and the last result is written.
    moving, saved = found["memory-bound"].numbers["moving_seconds"], found["memory-bound"].seconds
    assert saved == pytest.approx(moving * 6 / 8, rel=0.05)


def test_results_that_are_used_later_are_written_by_a_fused_kernel() -> None:
    x = on_chip(1 << 22)

    def step() -> None:
        a = x + 1
        b = a * 2
        b.relu().sigmoid()
        (a @ b).item()

    found = advice(repeated(step, 20), "t4")["memory-bound"]
    # Eight passes over x's size; fused, it is read once, and a, b and the last result are written.
    assert found.seconds == pytest.approx(found.numbers["moving_seconds"] * 4 / 8, rel=0.05)


def test_softmax_and_normalisation_of_rows_continue_a_chain() -> None:
    x, norm = on_chip(4096, 1024), nn.LayerNorm(1024, device="chip")
    found = advice(repeated(lambda: norm((x * 2).softmax(-1) + x), 20), "t4")["memory-bound"]
    fused = found.numbers["fused_seconds"]
    # x is read once and the result is written once.
    assert fused == pytest.approx(2 * x.nbytes / (0.8 * 320e9), rel=0.3)


def test_products_and_batch_normalisation_end_a_chain() -> None:
    x, w, norm = on_chip(4, 64, 64, 64), on_chip(64, 64), nn.BatchNorm2d(64, device="chip")
    found = advice(repeated(lambda: (norm(x + 1), (x[0, 0] + 1) @ w), 40), "t4")
    assert "memory-bound" not in found


def test_lone_pointwise_operators_are_not_told_to_be_fused() -> None:
    x = on_chip(1 << 22)
    assert "memory-bound" not in advice(repeated(lambda: (x + 1, x.sum()), 20), "t4")


def test_one_read_between_steps_leaves_a_graph() -> None:
    model, x = nn.Sequential(*(nn.Linear(64, 64) for _ in range(6))).to("chip"), on_chip(32, 64)
    once = repeated(lambda: model(x).relu().sum().item(), 100)
    assert advice(once, "h100-sxm")["host-bound"].remedy == "fuse"

    class Decides(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = model(x)
            return y * 0.5 if y.sum().item() > 1e9 else y

    decides = Decides().to("chip")
    inside = repeated(lambda: decides(x).relu().sum().item(), 100)
    assert advice(inside, "h100-sxm")["host-bound"].remedy == "larger-batch"


def test_fallbacks_have_the_saving_of_their_own_operator() -> None:
    chip = bringup.load_chip("t4")
    lacking = chip.model_copy(update={"ops": chip.ops.model_copy(update={"host": ["aten::gelu"]})})
    x = on_chip(1 << 20)
    trace = repeated(lambda: nn.functional.gelu(x) + 1, 20)
    found = advice(trace, lacking)["fallback"]
    saved = bringup.price(trace, lacking).step_seconds - bringup.price(trace, chip).step_seconds
    assert found.seconds == pytest.approx(saved, rel=1e-6)


def test_programs_that_say_cuda_are_told_cuda() -> None:
    x = on_chip(1024, 1024)
    trace = repeated(lambda: x @ x, 40)
    assert "torch.autocast('chip'" in advice(trace, "t4")["compute-bound"].action
    trace.about["named_cuda"] = True
    assert "torch.autocast('cuda'" in advice(trace, "t4")["compute-bound"].action


def test_downloads_that_are_used_at_once_are_not_told_to_be_non_blocking() -> None:
    x = on_chip(512, 512)
    action = advice(repeated(lambda: (x @ x)[0].tolist(), 300), "h100-sxm")["link-bound"].action
    assert "pin_memory=True" not in action and "less often, or keep the data on the chip" in action


def test_sparse_gradients_are_told_to_be_dense() -> None:
    table = nn.Embedding(1000, 64, sparse=True).to("chip")
    chip = bringup.load_chip("t4")
    rows = torch.arange(512, device="chip")
    trace = repeated(lambda: table(rows).sum().backward(), 30)
    fallbacks = bringup.price(trace, chip).summary.bottlenecks
    assert all("another dtype" not in item.action for item in fallbacks if "sparse" in item.condition)
