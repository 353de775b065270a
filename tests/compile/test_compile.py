"""torch.compile with default arguments: numbers as on the CPU, kernels in the recording."""

import copy
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bringup
from bringup.process import process
from bringup.recording.rows import ALLOC, FREE, IN_BACKWARD, LAUNCH
from bringup.text import duration

CHIP = "chip"


@torch.library.custom_op("bringup_tests::late", mutates_args=(), device_types="cpu")
def late(x: torch.Tensor) -> torch.Tensor:
    """A kernel that takes its time, without the interpreter's lock."""
    time.sleep(0.3)
    return x.clone()


@late.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.row, self.first, self.last = nn.LayerNorm(512), nn.Linear(512, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.last(F.gelu(self.first(self.row(x.flatten(1)))))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def train(model: nn.Module, function: Callable[..., Any], device: str) -> list[float]:
    torch.manual_seed(1)
    x, y = torch.randn(4, 3, 8, 8).to(device), torch.randint(10, (4,)).to(device)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(4):
        loss = F.cross_entropy(function(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_function_without_operators_returns_its_inputs() -> None:
    x = torch.ones(3, device=CHIP)
    returned = torch.compile(lambda x: (x.to(torch.float32), x))(x)
    assert all(torch.equal(one, x) and one.device == x.device for one in returned)


def test_training_equals_the_cpu() -> None:
    model = Net()
    chip = copy.deepcopy(model).to(CHIP)
    expected = train(model, model, "cpu")
    assert train(chip, torch.compile(chip), CHIP) == pytest.approx(expected, rel=1e-5)
    for name, value in model.state_dict().items():  # running statistics, too: the graph changes its inputs
        torch.testing.assert_close(chip.state_dict()[name].cpu(), value, rtol=1e-4, atol=1e-5)


def test_inputs_are_not_written_over() -> None:
    model = Net().to(CHIP)
    x = torch.randn(4, 3, 8, 8)
    on_chip = x.to(CHIP)
    function = torch.compile(model)
    for _ in range(2):
        function(on_chip).sum().backward()
    assert torch.equal(on_chip.cpu(), x)


@pytest.mark.slow
def test_unaligned_product_is_padded_on_gpus_as_by_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "chip", bringup.load_chip("t4"))

    def products(dtype: torch.dtype) -> tuple[list[list[int]], torch.Tensor]:
        torch._dynamo.reset()
        x, w = torch.ones(2048, 2048, dtype=dtype), torch.ones(2048, 2043, dtype=dtype)
        function = torch.compile(torch.mm)
        with bringup.record() as trace:
            result = function(x.to(CHIP), w.to(CHIP))
        return [list(item.outputs[0].shape) for item in trace.signatures if item.base == "mm"], result

    shapes, result = products(torch.bfloat16)
    assert (shapes, list(result.shape)) == ([[2048, 2048]], [2048, 2043])
    assert torch.equal(result.cpu(), torch.full((2048, 2043), 2048, dtype=torch.bfloat16))
    assert products(torch.float32)[0] == [[2048, 2043]]


def test_sizes_may_change_without_a_graph_each() -> None:
    from bringup.compile import lines

    function = torch.compile(lambda x: torch.softmax(x * 2, -1) @ x.T)
    before = lines.graphs
    for rows in (4, 7, 9, 12):
        x = torch.randn(rows, 16)
        torch.testing.assert_close(function(x.to(CHIP)).cpu(), torch.softmax(x * 2, -1) @ x.T)
    assert lines.graphs - before == 2  # one of fixed size, one for all


def test_changed_views_and_constants() -> None:
    @torch.compile
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.device]:
        x.add_(1)
        return x.view(-1)[:2], torch.zeros(4, device="chip") + torch.arange(4, device=x.device), x.device

    x = torch.zeros(2, 2, device=CHIP)
    part, row, where = function(x)
    assert x.tolist() == [[1, 1], [1, 1]] and part.tolist() == [1, 1] and row.tolist() == [0, 1, 2, 3]
    assert part.device.type == "chip" and where == torch.device("chip:0")
    x.fill_(5)
    assert part.tolist() == [5, 5]  # still a view of it


def test_dropout_draws_from_the_chip_generator() -> None:
    function = torch.compile(nn.Dropout(0.5))
    x, before = torch.ones(64, 64, device=CHIP), torch.get_rng_state()
    torch.chip.manual_seed(3)
    first, second = function(x), function(x)
    torch.chip.manual_seed(3)
    assert torch.equal(function(x), first) and not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert 0.4 < (first == 0).float().mean().item() < 0.6


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune-no-cudagraphs"])
def test_modes_and_a_full_graph(mode: str) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).to(CHIP)
    x = torch.randn(8, 16, device=CHIP)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, mode=mode, fullgraph=True)(x), model(x))


def test_autocast_inside_and_outside() -> None:
    model = nn.Linear(16, 16).to(CHIP)
    x = torch.randn(8, 16, device=CHIP)
    with torch.autocast(CHIP, torch.bfloat16):
        made = torch.compile(model)(x)
        torch.testing.assert_close(made, model(x))
    assert made.dtype == torch.bfloat16

    @torch.compile
    def half(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(CHIP, torch.float16):
            return x @ x.T

    assert half(x).dtype == torch.float16


def test_compiled_optimizer_and_exported_program() -> None:
    model = nn.Linear(8, 8)
    chip = copy.deepcopy(model).to(CHIP)
    for one in (model, chip):
        one(torch.ones(2, 8).to(next(one.parameters()).device)).sum().backward()
        optimizer = torch.optim.AdamW(one.parameters(), lr=0.1)
        (torch.compile(optimizer.step) if one is chip else optimizer.step)()
    torch.testing.assert_close(chip.weight.cpu(), model.weight)
    x = torch.randn(2, 8, device=CHIP)
    exported = torch.export.export(chip, (x,))
    torch.testing.assert_close(exported.module()(x), chip(x))


def test_second_backward_needs_retain_graph() -> None:
    x = torch.ones(4, device=CHIP, requires_grad=True)
    made = torch.compile(lambda x: (x * x).exp())(x).sum()
    made.backward(retain_graph=True)
    made.backward()
    torch.testing.assert_close(x.grad.cpu(), torch.full((4,), 4 * torch.e))  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="second time"):
        made.backward()


def test_a_normalisation_over_the_batch_is_two_launches_each_way() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)).to(CHIP)
    function, x = torch.compile(model), torch.randn(4, 3, 8, 8, device=CHIP)
    function(x).sum().backward()
    with bringup.record() as trace:
        function(x).sum().backward()
    launched = trace.columns["signature"][trace.columns["kind"] == LAUNCH]
    bases = [{item.base for item in trace.signatures[number].inner} for number in launched]
    # Forward: mean and variance with the running ones, then the rest with the activation.
    assert sum("var_mean" in names for names in bases) == 1 and sum("relu" in names for names in bases) == 1
    # Backward: both sums with the activation's mask, then the rest.
    assert [sorted(names & {"where", "sum"}) for names in bases if "where" in names] == [["sum", "where"]]
    assert len([names for names in bases if names]) <= 5  # and the count of batches


def test_what_lies_between_products_is_one_launch() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 64)).to(CHIP)
    x = torch.randn(32, 64, device=CHIP)
    function = torch.compile(model)
    with torch.no_grad():
        function(x)
        with bringup.record() as trace:
            function(x)
        with bringup.record() as eager:
            model(x)
    ops = [trace.signatures[number].op for number in trace.columns["signature"][trace.columns["kind"] == LAUNCH]]
    assert [op.split("_")[0] for op in ops] == ["aten::addmm", "fused::mul", "aten::addmm"]
    fused = next(signature for signature in trace.signatures if signature.op.startswith("fused::"))
    assert {"erf", "var_mean", "rsqrt"} <= {item.base for item in fused.inner}
    # In: 32 x 64 values, scale and shift. Out: as much. Nothing between.
    assert fused.read_bytes == (32 * 64 + 64 + 64) * 4 and fused.written_bytes == 32 * 64 * 4
    prices = [bringup.price(item, chip="t4").summary for item in (trace, eager)]
    assert prices[0].device_seconds < prices[1].device_seconds
    assert trace.lines and all("test_compile.py" in line for line in trace.lines)


def test_backward_kernels_say_so_and_memory_comes_back() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).to(CHIP)
    x = torch.randn(32, 64, device=CHIP)
    function = torch.compile(model)
    function(x).sum().backward()
    model.zero_grad()
    held = torch.chip.memory_allocated()
    with bringup.record() as trace:
        function(x).sum().backward()
    model.zero_grad()
    assert torch.chip.memory_allocated() == held
    columns = trace.columns
    launched = columns["kind"] == LAUNCH
    backward = [trace.signatures[i].base for i in columns["signature"][launched & (columns["phase"] == IN_BACKWARD)]]
    assert backward.count("mm") == 3  # two weights, and the input of the second
    assert (columns["kind"] == ALLOC).sum() >= (columns["kind"] == FREE).sum() > 0
    modules = {trace.modules[i] for i in columns["module"][launched] if i >= 0}
    assert {"0", "2"} <= modules


def test_dry_run_allocates_and_records_and_computes_nothing() -> None:
    counts = []
    for dry in (False, True):
        torch._dynamo.reset()
        with bringup.dry() if dry else torch.enable_grad():
            model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).to(CHIP)
            function, x = torch.compile(model), torch.randn(32, 64, device=CHIP)
            with bringup.record() as trace:
                function(x).sum().backward()
            counts.append([s["op"] for s in trace.signature_data])
            assert model[0].weight.grad is not None
    assert counts[0] == counts[1]


def test_graph_breaks_are_in_the_summary(tmp_path: Path, bringup_run: Callable[..., Any]) -> None:
    (tmp_path / "broken.py").write_text(
        """
import torch

@torch.compile
def function(x):
    y = x + 1
    print("hello")
    return y * 2

function(torch.ones(4, device="chip"))
"""
    )
    done = bringup_run("broken.py")
    assert "torch.compile: 2 graphs, cut at 1 line:" in done.stdout and "broken.py:7" in done.stdout, done.stderr
    summary = json.loads((tmp_path / "bringup-broken" / "summary.json").read_text())
    assert summary["compiled_graphs"] == 2 and summary["graph_breaks"][0]["line"] == "broken.py:7"
    assert "broken.py:7" in (tmp_path / "bringup-broken" / "report.html").read_text()


@pytest.mark.slow
def test_graph_breaks_have_a_cost(tmp_path: Path, bringup_run: Callable[..., Any]) -> None:
    (tmp_path / "broken.py").write_text(
        """
import torch

class Layer(torch.nn.Module):
    def forward(self, x):
        x = x * 2
        return x / max(int(x.sum().item()), 1)

function = torch.compile(torch.nn.Sequential(Layer(), Layer(), Layer()))
for _ in range(4):
    function(torch.ones(4, device="chip"))
    torch.chip.synchronize()
"""
    )
    done = bringup_run("--chip=t4", "--host=xeon-8275cl", "broken.py")
    summary = json.loads((tmp_path / "bringup-broken" / "summary.json").read_text())
    cost = summary["graph_breaks_seconds"]
    reads = 3 * (20e-6 + 10e-6)  # the host's calls of a copy and of a synchronisation, for each value
    assert reads < cost < summary["step_seconds"]
    assert f"cut at 1 line, which costs {duration(cost)} per" in done.stdout, done.stderr
    first = summary["bottlenecks"][0]
    assert first["condition"].startswith("graph breaks: ") and first["seconds"] == cost
    assert "broken.py:7" in first["cause"] and "capture_scalar_outputs" in first["action"]
    assert "less" in (tmp_path / "bringup-broken" / "report.html").read_text()


def test_gradient_that_the_chip_still_computes_is_waited_for() -> None:
    x = torch.randn(8, 4, device=CHIP, requires_grad=True)
    y = torch.compile(lambda x: (x * 2).relu())(x)
    y.backward(late(torch.ones(4, 8, device=CHIP)).T)  # torch copies it before compiled code runs: its strides differ
    assert torch.equal(x.grad, 2.0 * (x > 0))


def test_results_that_repeat_memory() -> None:
    @torch.compile
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        row = (x * 2).sum(0, keepdim=True)
        return row.expand(4, 8), row

    x = torch.randn(4, 8)
    for found, expected in zip(function(x.to(CHIP)), function(x), strict=True):
        assert found.stride() == expected.stride()
        torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo's own, on the CPU, too
def test_tensor_and_view_that_inductor_lays_out_apart() -> None:
    transformers = pytest.importorskip("transformers")
    settings = {"num_encoder_blocks": 2, "hidden_sizes": [8, 16], "depths": [1] * 2, "drop_path_rate": 0.0}
    settings |= {"patch_sizes": [7, 3], "strides": [4, 2], "sr_ratios": [8, 4], "num_attention_heads": [1, 2]}
    settings |= {"mlp_ratios": [4, 4], "decoder_hidden_size": 16}
    config = transformers.SegformerConfig(
        **settings, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout_prob=0.0
    )
    model = transformers.SegformerForSemanticSegmentation(config)
    images, grads = torch.randn(2, 3, 64, 64), []
    for device in ("cpu", CHIP):
        moved = copy.deepcopy(model).to(device).train()
        run = torch.compile(moved) if device == CHIP else moved
        run(pixel_values=images.to(device)).logits.pow(2).mean().backward()
        grads.append([p.grad.cpu() for p in moved.parameters() if p.grad is not None])
    for found, expected in zip(*reversed(grads), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_tensors_made_of_tensors() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    def two(device: str) -> TwoTensor:
        torch.manual_seed(0)
        return TwoTensor(torch.randn(4, 4).to(device), torch.randn(4, 4).to(device))

    @torch.compile
    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y).relu()

    y = torch.randn(4, 4)
    expected, found = function(two("cpu"), y), function(two("chip"), y.to(CHIP))
    assert isinstance(found, TwoTensor) and found.a.device.type == "chip"
    torch.testing.assert_close(found.a.cpu(), expected.a)
    torch.testing.assert_close(found.b.cpu(), expected.b)


def test_dynamo_compiles_no_function_of_ours(python: Callable[..., Any]) -> None:
    done = python(
        """
import torch
from torch._dynamo.convert_frame import ConvertFrame
tried = []
call = ConvertFrame.__call__
def spy(self, frame, *args, **kwargs):
    tried.append((frame.f_code.co_filename, frame.f_code.co_name))
    return call(self, frame, *args, **kwargs)
ConvertFrame.__call__ = spy
@torch.compile
def f(x):
    y = x + 1
    torch._dynamo.graph_break()
    torch.chip.synchronize()
    torch.chip.memory_allocated()
    return y * 2
f(torch.ones(4, device="chip"))
assert any(name == "f" for _, name in tried)
print([name for file, name in tried if "/bringup/" in file])
"""
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_calls_that_compile_again_are_in_the_summary(tmp_path: Path, bringup_run: Callable[..., Any]) -> None:
    (tmp_path / "again.py").write_text(
        """
import torch
function = torch.compile(torch.nn.Linear(8, 8).to("chip"), dynamic=False)
for rows in (3, 4, 5):
    function(torch.ones(rows, 8, device="chip")).sum().item()
"""
    )
    done = bringup_run("again.py")
    assert "torch.compile: 3 graphs" in done.stdout, done
    again = (
        "compiled again 2 times for calls at again.py:5, which the times leave out; 3 shapes in 3 steps: the first axis"
    )
    assert again in done.stdout, done.stdout
    summary = json.loads((tmp_path / "bringup-again" / "summary.json").read_text())
    assert summary["compilations"] == {"graphs": 3, "changed_at": ["again.py:5"]}


@pytest.mark.parametrize(("mode", "replayed"), [("default", False), ("reduce-overhead", True)])
def test_modes_with_graphs_replay_each_graph_by_one_call(mode: str, replayed: bool) -> None:
    torch._dynamo.reset()
    model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(6)]).to(CHIP)
    function, x = torch.compile(model, mode=mode), torch.randn(8, 16, device=CHIP)
    with torch.no_grad():
        function(x)
        with bringup.record() as trace:
            for _ in range(4):
                function(x)
                bringup.step()
        with bringup.record() as unmarked:
            for _ in range(4):
                function(x)
    assert (unmarked.steps.by, len(unmarked.steps.ends)) == ("forward", 4)  # a compiled graph is no captured one
    numbers = trace.columns["object"][trace.columns["kind"] == LAUNCH].reshape(4, -1)
    assert numbers.shape[1] >= 6
    assert [set(row) for row in numbers.tolist()] == [{i + 1 if replayed else 0} for i in range(4)]
    summary = bringup.price(trace, chip="h100-sxm").summary
    graph = summary.what_if_of("graph")
    assert graph is not None and (summary.step_seconds < 2 * graph.step_seconds) == replayed


@pytest.mark.slow
def test_a_graph_that_uses_memory_of_an_asynchronous_copy_is_a_race(
    tmp_path: Path, bringup_run: Callable[..., Any]
) -> None:
    (tmp_path / "reads.py").write_text(
        """import torch
def waits(x): return x.to("cpu") + 1
def reads(x):
    total = x.to("cpu", non_blocking=True)
    return total + 1
def views(x): return x.to("cpu", non_blocking=True).view(-1)[:2].split(1)
def reads_view(x):
    total = x.to("cpu", non_blocking=True)
    return total.view(-1)[:2] + 1
def copies(x, host):
    y = host + 1
    host.copy_(x, non_blocking=True)
    return y, host.to("chip", non_blocking=True)
def reads_copy(x, host):
    host.copy_(x, non_blocking=True)
    return host + 1
def writes_copy(x, host):
    flat = host.view(-1)
    host.copy_(x, non_blocking=True)
    flat += 1
x, host, pageable = torch.ones(64, device="chip"), torch.ones(64).pin_memory(), torch.ones(64)
for function in (waits, reads, views, reads_view):
    torch.compile(function)(x)
for function in (copies, reads_copy, writes_copy):
    torch.compile(function)(x, host)
torch.compile(reads_copy)(x, pageable)
"""
    )
    done = bringup_run("--sanitize=race", "reads.py")
    uses = re.findall(r"race: reads.py:(\d+) uses page-locked memory that reads.py:(\d+) copies", done.stdout)
    assert uses == [("5", "4"), ("9", "8"), ("16", "15"), ("20", "19")], done.stdout + done.stderr
    assert done.returncode == 1


def test_compiled_attention_is_kept_from_cudnn_as_the_program_says() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q = torch.ones(1, 2, 64, 16, device=CHIP, dtype=torch.bfloat16)
    chosen = []
    for backends in ([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], [SDPBackend.FLASH_ATTENTION]):
        torch._dynamo.reset()
        with bringup.record() as trace, sdpa_kernel(backends):
            torch.compile(lambda x: F.scaled_dot_product_attention(x, x, x) + 1)(q)
        chosen += [item.cudnn for item in trace.signatures if "attention" in item.op]
    assert chosen == [True, False]
