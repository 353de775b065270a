"""Graphs: captured once, replayed with right values, priced as one call of the host."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bringup
from bringup.recording.rows import LAUNCH

CHIP = torch.device("chip:0")


def captured(function: Callable[[], Any], **options: Any) -> tuple[torch.chip.CUDAGraph, Any]:
    graph = torch.chip.CUDAGraph()
    with torch.chip.graph(graph, **options):
        result = function()
    return graph, result


def test_replays_compute_from_what_the_inputs_hold_then() -> None:
    x = torch.ones(4, device=CHIP)
    x * 2 + 1
    graph, y = captured(lambda: x * 2 + 1)
    for value in (3.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert y.tolist() == [2 * value + 1] * 4


def test_capture_computes_nothing_and_every_replay_computes_once() -> None:
    count = torch.zeros(3, device=CHIP)
    graph, _ = captured(lambda: count.add_(1))
    assert count.tolist() == [0, 0, 0]
    for _ in range(3):
        graph.replay()
    assert count.tolist() == [3, 3, 3]


def test_random_numbers_differ_between_replays_and_follow_the_seed() -> None:
    graph, y = captured(lambda: torch.rand(100, device=CHIP))
    torch.chip.manual_seed(7)
    graph.replay()
    first = y.clone()
    graph.replay()
    second = y.clone()
    torch.chip.manual_seed(7)
    graph.replay()
    assert torch.equal(y, first) and not torch.equal(first, second)
    torch.chip.manual_seed(7)
    assert torch.equal(torch.rand(100, device=CHIP), first)


def test_training_step_in_a_graph_equals_eager_training() -> None:
    def train(use_graph: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(CHIP)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, target = torch.zeros(5, 8, device=CHIP), torch.zeros(5, 4, device=CHIP)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            nn.functional.mse_loss(model(x), target).backward()
            optimizer.step()

        start = [parameter.detach().clone() for parameter in model.parameters()]
        side = torch.chip.Stream()
        side.wait_stream(torch.chip.current_stream())
        with torch.chip.stream(side):
            step()
        torch.chip.current_stream().wait_stream(side)
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), start, strict=True):
                parameter.copy_(value)
        run: Callable[[], object] = step
        if use_graph:
            optimizer.zero_grad(set_to_none=True)
            graph, _ = captured(step)
            run = graph.replay
        for i in range(3):
            x.copy_(torch.full((5, 8), 0.1 * i))
            run()
        return [parameter.detach().cpu() for parameter in model.parameters()]

    for graphed, eager in zip(train(True), train(False), strict=True):
        torch.testing.assert_close(graphed, eager)


def test_results_keep_their_memory_while_the_graph_lives() -> None:
    x = torch.ones(1 << 18, device=CHIP)
    graph, y = captured(lambda: (x + 1) * 3)
    others = [torch.zeros(1 << 18, device=CHIP) for _ in range(8)]
    graph.replay()
    assert y[0].item() == 6.0
    assert all(not other.any().item() for other in others)


def test_memory_of_a_capture_is_counted_and_comes_back() -> None:
    x = torch.ones(1 << 20, device=CHIP)
    torch.chip.empty_cache()
    before = torch.chip.memory_reserved()
    graph, y = captured(lambda: x.sin().cos().exp())
    grown = torch.chip.memory_reserved() - before
    assert grown >= 2 * x.nbytes  # a result, and one that a later launch uses again
    del y
    torch.chip.empty_cache()
    assert torch.chip.memory_reserved() == before + grown
    graph.reset()
    torch.chip.synchronize()
    torch.chip.empty_cache()
    assert torch.chip.memory_reserved() == before


def test_graphs_share_a_pool() -> None:
    x = torch.ones(1 << 20, device=CHIP)
    first, _ = captured(lambda: x.sin().sum())
    before = torch.chip.memory_reserved()
    second, y = captured(lambda: x.cos().sum(), pool=first.pool())
    assert torch.chip.memory_reserved() == before
    first.replay(), second.replay()
    torch.testing.assert_close(y.cpu(), torch.ones(1 << 20).cos().sum())


def test_other_streams_join_a_capture_by_events() -> None:
    x, side = torch.ones(16, device=CHIP), torch.chip.Stream()

    def forked() -> torch.Tensor:
        side.wait_stream(torch.chip.current_stream())
        with torch.chip.stream(side):
            a = x * 2
        b = x * 3
        torch.chip.current_stream().wait_stream(side)
        return a + b

    graph, y = captured(forked)
    x.fill_(2)
    graph.replay()
    assert y.tolist() == [10.0] * 16
    with torch.chip.stream(side):  # which captures no more
        z = x + 1
    side.synchronize()
    assert z.tolist() == [3.0] * 16


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda x: x.sum().item(), "a copy to the host cannot be captured"),
        (lambda x: x.cpu(), "a copy to the host cannot be captured"),
        (lambda x: x.copy_(torch.ones(4)), "a copy from the host cannot be captured"),
        (lambda x: x.nonzero(), "aten::nonzero cannot be captured"),
        (lambda x: torch.chip.synchronize(), "a wait for the device cannot be captured"),
        (lambda x: torch.chip.current_stream().synchronize(), "a wait for a stream cannot be captured"),
    ],
)
def test_what_would_run_only_once_is_refused(call: Callable[[torch.Tensor], object], problem: str) -> None:
    x = torch.ones(4, device=CHIP)
    graph = torch.chip.CUDAGraph()
    with pytest.raises(RuntimeError, match=problem), torch.chip.graph(graph):
        call(x)
    assert (x + 1).tolist() == [2.0] * 4  # nothing captures any more
    with pytest.raises(RuntimeError, match="its capture failed"):
        graph.replay()


def test_wrong_calls_are_told_in_one_sentence() -> None:
    graph = torch.chip.CUDAGraph()
    with pytest.raises(RuntimeError, match="nothing to replay: capture it first"):
        graph.replay()
    with pytest.raises(RuntimeError, match="the default stream cannot be captured"):
        graph.capture_begin()
    with pytest.raises(RuntimeError, match="is not being captured"):
        graph.capture_end()
    with pytest.raises(bringup.BringupError, match="no memory before its capture"):
        graph.pool()
    with pytest.raises(bringup.BringupError, match="capture_error_mode must be"):
        graph.capture_begin(capture_error_mode="never")
    assert not torch.chip.is_current_stream_capturing()


def test_replay_is_one_call_of_the_host() -> None:
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(20)]).to(CHIP).eval()
    x = torch.randn(8, 64, device=CHIP)
    with torch.no_grad():
        model(x)
        graph, _ = captured(lambda: model(x))
        with bringup.record() as trace:
            for _ in range(5):
                graph.replay()
                bringup.step()
        with bringup.record() as eager:
            for _ in range(5):
                model(x)
                bringup.step()
    launched = trace.columns["kind"] == LAUNCH
    assert launched.sum() == (eager.columns["kind"] == LAUNCH).sum() == 5 * 20
    assert sorted(set(trace.columns["object"][launched].tolist())) == [1, 2, 3, 4, 5]
    assert all("test_graphs.py" in trace.lines[line] for line in trace.columns["line"][launched])
    replayed, launched_singly = (bringup.price(item, chip="h100-sxm").summary for item in (trace, eager))
    assert replayed.step_seconds < launched_singly.step_seconds / 3
    assert replayed.host_seconds < launched_singly.host_seconds / 10
    assert replayed.device_seconds < launched_singly.device_seconds  # less between kernels


def test_recording_of_replays_is_saved_and_loaded(tmp_path: Path) -> None:
    x = torch.ones(4, device=CHIP)
    graph, _ = captured(lambda: (x + 1).sum())
    with bringup.record() as trace:
        graph.replay()
    trace.save(tmp_path / "trace.npz")
    again = bringup.Trace.load(tmp_path / "trace.npz")
    assert bringup.price(again, chip="t4").summary.step_seconds == bringup.price(trace, chip="t4").summary.step_seconds


def test_dry_replays_are_recorded() -> None:
    with bringup.dry():
        x = torch.ones(64, 64, device=CHIP)
        graph, y = captured(lambda: x @ x + 1)
        with bringup.record() as trace:
            graph.replay()
    assert y.shape == (64, 64)
    assert (trace.columns["kind"] == LAUNCH).sum() == 2


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # of torch's own function, on a GPU too
def test_graphed_callables_equal_eager_ones() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.Tanh()).to(CHIP)
    x = torch.randn(5, 8, device=CHIP, requires_grad=True)
    data = torch.randn(5, 8, device=CHIP, requires_grad=True)
    expected = module(data)
    expected.sum().backward()
    gradients = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad(set_to_none=True)
    data.grad = None
    graphed = torch.chip.make_graphed_callables(module, (x,))
    result = graphed(data)
    torch.testing.assert_close(result.cpu(), expected.detach().cpu())
    result.sum().backward()
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad.cpu(), gradient.cpu())


def test_program_that_says_cuda_captures_graphs(python: Callable[..., Any]) -> None:
    done = python(
        """
import bringup
bringup.use("h100-sxm")
bringup.redirect_cuda()
import torch

net = torch.nn.Sequential(*[torch.nn.Linear(32, 32) for _ in range(4)]).cuda().eval()
x = torch.randn(8, 32, device="cuda")
with torch.no_grad():
    net(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        assert torch.cuda.is_current_stream_capturing()
        y = net(x)
    x.copy_(torch.randn(8, 32))
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(y.cpu(), net(x).cpu())
layer = torch.nn.Linear(4, 4).cuda()
layer = torch.cuda.make_graphed_callables(layer, (torch.randn(2, 4, device="cuda"),))
layer(torch.ones(2, 4, device="cuda")).sum().backward()
print("right")
"""
    )
    assert done.stdout.endswith("right\n"), done.stderr
