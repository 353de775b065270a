"""Activations for a backward pass that never comes: what torch.no_grad() saves, and programs that need their graphs."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import bringup
from bringup.analyse.summary import MemoryAdvice
from bringup.recording.rows import LAUNCH, NEVER_RAN, NO_NODE, RAN, REBUILT, WITHIN
from bringup.recording.trace import Trace
from tests.analyse.programs import summary_of

Run = Callable[..., "subprocess.CompletedProcess[str]"]
HERE = "tests/analyse/test_unused_graphs.py:"
MIB = 1 << 20
WIDTH, ROWS = 256, 4096  # an activation in float32 has 4 MiB


def advice(function: Callable[[], object]) -> list[MemoryAdvice]:
    return summary_of(function).memory_advice


def layers(count: int = 4) -> nn.Sequential:
    return nn.Sequential(*[part for _ in range(count) for part in (nn.Linear(WIDTH, WIDTH), nn.GELU())]).to("chip")


def data(rows: int = ROWS) -> torch.Tensor:
    return torch.randn(rows, WIDTH, device="chip")


def train(model: nn.Module, rows: int = 64, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        loss = model(data(rows)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def validate(model: nn.Module, x: torch.Tensor) -> float:
    model.eval()
    return model(x).square().mean().item()


def test_validation_with_gradients_is_told_to_use_no_grad() -> None:
    model, x = layers(), data()

    def program() -> None:
        train(model)
        validate(model, x)

    def without_gradients() -> None:
        train(model)
        with torch.no_grad():
            validate(model, x)

    found = summary_of(program)
    (item,) = found.memory_advice
    # 4 linear layers and 4 GELUs have results of 4 MiB. At the peak, the mean is allocated, which reads none of them.
    assert item.bytes == 8 * 4 * MIB
    assert item.line == f"{HERE}{validate.__code__.co_firstlineno + 2}" and item.line in item.cause
    assert found.peak_bytes - item.saved_bytes == item.peak_bytes == summary_of(without_gradients).peak_bytes
    assert "torch.no_grad()" in item.action and "32.00 MiB" in item.condition


def test_parts_of_a_librarys_forward_pass_are_no_advice() -> None:
    model, x = layers(), data()
    with bringup.record() as trace:
        train(model)
        validate(model, x)
    assert bringup.price(trace, "t4").summary.memory_advice
    trace.about["library_lines"] = list(range(len(trace.lines)))
    assert not bringup.price(trace, "t4").summary.memory_advice


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_validation_without_gradients_is_silent(context: Callable[[], Any]) -> None:
    model, x = layers(), data()

    def program() -> None:
        train(model)
        with context():
            validate(model, x)

    assert not advice(program)


class Block(nn.Module):
    """Attention, layer norms, dropout and residual connections, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.heads, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wider = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.heads(self.before(x)).view(*x.shape[:2], 3, 4, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.wider(self.between(x))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(-1, 64, WIDTH)
        for block in self.blocks:
            x = block(x)
        return x


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(
            *[part for _ in range(4) for part in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts(x.view(-1, 16, 32, 32))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(WIDTH, WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cells(x.view(32, -1, WIDTH))[0]


@pytest.mark.parametrize("kind", [Encoder, Convolutions, Recurrent])
def test_the_peak_of_other_models_is_that_without_gradients(kind: type[nn.Module]) -> None:
    model, x = kind().to("chip").eval(), data()
    found = summary_of(lambda: model(x).square().mean().item())
    (item,) = found.memory_advice
    with torch.no_grad():
        without = summary_of(lambda: model(x).square().mean().item())
    assert item.saved_bytes == pytest.approx(found.peak_bytes - without.peak_bytes, rel=0.15)
    assert item.peak_bytes == found.peak_bytes - item.saved_bytes
    assert not without.memory_advice


def test_sampling_with_a_cache_that_keeps_every_graph_is_told() -> None:
    model = layers()

    def sample() -> None:
        cache = data()
        for _ in range(4):
            cache = torch.cat([cache[-ROWS // 2 :], model(cache[: ROWS // 2])])
        cache.sum().item()

    (item,) = advice(sample)
    assert item.line == f"{HERE}{sample.__code__.co_firstlineno + 3}"
    with torch.no_grad():  # the program's own data, which the graph keeps as well, is not counted
        assert item.peak_bytes == summary_of(sample).peak_bytes + 4 * MIB


def test_a_teacher_whose_result_is_detached_is_told() -> None:
    teacher, student = layers(6), layers(1)

    def step() -> None:
        wanted = teacher(data()).detach()
        (student(data(ROWS)) - wanted).square().mean().backward()

    (item,) = advice(step)
    assert item.line == f"{HERE}{step.__code__.co_firstlineno + 1}"


def test_compiled_validation_is_told() -> None:
    model, x = layers(), data()
    compiled: Any = torch.compile(model)
    found = summary_of(lambda: compiled(x).square().mean().item())
    (item,) = found.memory_advice
    with torch.no_grad():
        without = summary_of(lambda: compiled(x).square().mean().item())
    assert item.peak_bytes == pytest.approx(without.peak_bytes, rel=0.12) and not without.memory_advice


# ---- programs that need their graphs


def accumulated() -> None:
    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for _ in range(3):
            model(data()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def adapters() -> None:
    base = layers(2).requires_grad_(False)
    adapter = layers(1)
    head = layers(2).requires_grad_(False)
    head(base(data()) + adapter(data())).square().mean().backward()


def adversaries() -> None:
    generator, critic = layers(2), layers(2)
    for _ in range(2):
        made = generator(data())
        (critic(data()).mean() - critic(made.detach()).mean()).backward()
        critic(made).mean().backward()


def penalty() -> None:
    critic = layers(2)
    x = data().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    (gradient.square().sum(1) - 1).square().mean().backward()


def attack() -> None:
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(5)]).to("chip")
    x = data().requires_grad_()
    torch.autograd.grad(model(x).mean(), x)


def each_checkpointed() -> None:
    x = data()
    for part in layers(3):
        x = checkpoint(part, x, use_reentrant=False)
    x.mean().backward()


def reentrant() -> None:
    checkpoint(layers(), data().requires_grad_(), use_reentrant=True).mean().backward()


class Rerun(torch.autograd.Function):
    """A checkpoint as programs write it themselves."""

    @staticmethod
    def forward(ctx: Any, model: nn.Module, x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.model, ctx.x, ctx.parameters = model, x.detach(), parameters
        with torch.no_grad():
            return model(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        with torch.enable_grad():
            x = ctx.x.requires_grad_()
            result = ctx.model(x)
        return None, *torch.autograd.grad(result, [x, *ctx.parameters], grads)


def own_checkpoint() -> None:
    model = layers()
    Rerun.apply(model, data().requires_grad_(), *model.parameters()).mean().backward()  # type: ignore[no-untyped-call]


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight * 2

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return grads[0] @ weight.t() * 2, x.t() @ grads[0] * 2


def own_function() -> None:
    model = layers()
    weight = torch.randn(WIDTH, WIDTH, device="chip", requires_grad=True)
    x: Any = model(data())
    for _ in range(4):
        x = Doubled.apply(x, weight)  # type: ignore[no-untyped-call]
    model(x).mean().backward()


def loss_on_the_host() -> None:
    layers()(data()).cpu().square().mean().backward()


def transformed() -> None:
    model = layers()
    parameters = dict(model.named_parameters())

    def loss(values: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.func.functional_call(model, values, (x,)).mean()
        return result

    torch.func.grad(loss)(parameters, data())


def recurrent() -> None:
    train(Recurrent().to("chip"), ROWS)


def encoder() -> None:
    train(Encoder().to("chip"), ROWS)


def convolutions() -> None:
    train(Convolutions().to("chip"), ROWS)


def compiled() -> None:
    train(torch.compile(layers()), ROWS)  # type: ignore[arg-type]


def later_backward() -> None:
    """Losses of several forward passes whose backward pass comes at the end."""
    model = layers()
    torch.stack([model(data()).mean() for _ in range(3)]).sum().backward()


def mixed_precision() -> None:
    model = layers()
    with torch.autocast("chip", dtype=torch.bfloat16):
        loss = model(data()).float().mean()
    loss.backward()


NEED_GRAPHS = [accumulated, adapters, adversaries, penalty, attack, each_checkpointed, reentrant, own_checkpoint]
NEED_GRAPHS += [own_function, loss_on_the_host, transformed, recurrent, encoder, convolutions, compiled]
NEED_GRAPHS += [later_backward, mixed_precision]


@pytest.mark.parametrize("program", NEED_GRAPHS, ids=lambda program: program.__name__)
def test_programs_that_need_their_graphs_are_silent(program: Callable[[], None]) -> None:
    assert not [item for item in advice(program) if item.key == "unused-graph"]


def test_a_graph_that_lives_when_the_recording_ends_is_no_advice() -> None:
    model, x = layers(), data()
    with bringup.record() as trace:
        loss = model(x).mean()
    assert not bringup.price(trace, "t4").summary.memory_advice
    loss.backward()


def test_a_small_saving_is_no_advice() -> None:
    model, x = layers(), data(64)
    assert not advice(lambda: validate(model, x))


def test_a_peak_elsewhere_is_no_advice() -> None:
    model, x = layers(), data(1024)  # its six activations are 6 MiB

    def program() -> None:
        validate(model, x)
        torch.empty(64 * MIB, dtype=torch.uint8, device="chip")

    assert not advice(program)


def parts(trace: Trace) -> list[int]:
    launched = trace.columns["kind"] == LAUNCH
    return list(trace.columns["bytes"][launched].tolist())


def test_launches_know_their_part_in_the_graph() -> None:
    weight = torch.ones(4, 4, device="chip", requires_grad=True)
    x = torch.ones(4, 4, device="chip")
    with bringup.record() as trace:
        y = x @ weight
        z = torch.relu(x @ weight)
        y.sum().backward()
        del z
    # the product that ran, one product and a ReLU that did not, and the sum, whose backward pass launches nothing
    assert parts(trace)[:4] == [RAN, NEVER_RAN, NEVER_RAN, NEVER_RAN]
    assert set(parts(trace)[4:]) == {NO_NODE}
    with bringup.record() as trace, torch.no_grad():
        _ = x @ weight
    assert parts(trace) == [NO_NODE]
    with bringup.record() as trace:
        checkpoint(lambda: torch.relu(x @ weight), use_reentrant=False).sum().backward()
    assert parts(trace).count(REBUILT) == 2 and WITHIN not in parts(trace)


PROGRAM = """
import torch
from torch import nn

net = nn.Sequential(*[part for _ in range(6) for part in (nn.Linear(256, 256), nn.ReLU())]).to("chip")
data = torch.randn(4096, 256, device="chip")
net.eval()
score = net(data).mean()
"""


def test_a_program_that_has_ended_keeps_no_graph_for_later(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "<b>.py").write_text(PROGRAM, encoding="utf-8")
    result = bringup_run("--chip", "t4", "<b>.py")
    assert result.returncode == 0, result.stderr
    shown = " ".join(result.stdout.split())
    # A ReLU only keeps its result. When the sixth is allocated, the data, its linear layer's result and five others
    # live, 4 MiB each. Without gradients, the data and the results of two layers live together.
    assert "memory: 20.00 MiB of the peak" in shown and "the forward pass at <b>.py:8 builds a graph" in shown
    (folder,) = tmp_path.glob("bringup-*")
    (item,) = json.loads((folder / "summary.json").read_text())["memory_advice"]
    assert item["line"] == "<b>.py:8" and item["bytes"] == item["saved_bytes"] == 20 * MIB
    page = (folder / "report.html").read_text()
    assert "the forward pass at &lt;b&gt;.py:8 builds a graph" in page and "<b>.py" not in page


def test_a_program_that_fails_may_have_needed_its_graph(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(PROGRAM + "raise ValueError('before the backward pass')\n", encoding="utf-8")
    result = bringup_run("--chip", "t4", "failing.py")
    assert result.returncode == 1 and "never comes" not in result.stdout


def test_a_program_that_does_not_fit_may_fit_without_its_graphs(bringup_run: Run, tmp_path: Path) -> None:
    program = PROGRAM.replace("4096", "1 << 20").replace(".mean()", ".mean().item()")  # 6 results of 1 GiB
    (tmp_path / "large.py").write_text(program, encoding="utf-8")
    result = bringup_run("--chip", "edge8", "--dry", "--oom=continue", "large.py")
    shown = " ".join(result.stdout.split())
    assert "-> torch.no_grad() for the forward pass at large.py:8: " in shown and ", fits, " in shown
