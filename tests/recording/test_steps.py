"""What counts as a step, in programs with an optimizer and without one."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import bringup
from bringup.recording.rows import IN_FORWARD, LAUNCH
from bringup.recording.steps import Steps
from bringup.recording.trace import Trace


def recorded(program: Callable[[], object]) -> Trace:
    with bringup.record() as trace:
        program()
    return trace


def launches(trace: Trace) -> list[int]:
    """Count the launches before the first step, in each step, and after the last one."""
    bounds = [0, trace.steps.start, *trace.steps.ends.tolist(), len(trace)]
    counts = np.concatenate(([0], np.cumsum(trace.columns["kind"] == LAUNCH)))[bounds]
    return np.diff(counts).tolist()


def kind_and_count(steps: Steps) -> tuple[str, int]:
    return steps.by, len(steps.ends)


def layers(depth: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(8, 8) for _ in range(depth)).to("chip")


class Mlp(nn.Module):
    """Its last product and its loss are no results that the backward pass reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = layers(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[1](torch.relu(self.layers[0](x)))


def call_layers(stack: nn.ModuleList, times: int) -> None:
    for _ in range(times):
        x = torch.ones(4, 8, device="chip")
        for layer in stack:
            x = torch.relu(layer(x))
        x.sum().item()


@pytest.mark.parametrize("times", [2, 7])
def test_a_loop_that_calls_the_layers_is_one_step_each(times: int) -> None:
    stack = layers(12)
    trace = recorded(lambda: call_layers(stack, times))
    assert kind_and_count(trace.steps) == ("period", times)
    assert launches(trace) == [0, *[26] * times, 0]  # ones, twelve layers and activations, sum


def test_one_pass_through_layers_is_no_twelve_steps() -> None:
    stack = layers(12)
    assert kind_and_count(recorded(lambda: call_layers(stack, 1)).steps) == ("whole", 1)


def multiply(weights: list[torch.Tensor], times: int) -> None:
    data = torch.ones(4, 8, device="chip")
    for number in range(times):
        x = data
        for weight in weights:
            x = torch.relu(x @ weight)
        total = x.sum()
        if number % 5 == 4:
            print(total.item())


def test_steps_without_modules_are_repeated_launches() -> None:
    weights = [torch.ones(8, 8, device="chip") for _ in range(6)]
    trace = recorded(lambda: multiply(weights, 20))
    assert kind_and_count(trace.steps) == ("period", 20)
    assert launches(trace) == [1, *[13] * 20, 0]
    assert kind_and_count(recorded(lambda: multiply(weights, 1)).steps) == ("whole", 1)


def test_a_series_inside_of_a_module_call_is_no_step() -> None:
    cell = nn.GRUCell(4, 4).to("chip")

    class Network(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state = torch.zeros(2, 4, device="chip")
            for _ in range(20):
                state = cell(x, state)
            return state

    network, x = Network(), torch.ones(2, 4, device="chip")
    assert kind_and_count(recorded(lambda: network(x)).steps) == ("forward", 1)
    assert kind_and_count(recorded(lambda: [network(x) for _ in range(3)]).steps) == ("forward", 3)


def test_a_model_and_its_loss_are_one_step() -> None:
    model, loss = nn.Linear(4, 2).to("chip"), nn.MSELoss()

    def evaluate() -> None:
        for rows in (6, 6, 6, 2):  # the last batch is smaller
            loss(model(torch.ones(rows, 4, device="chip")), torch.ones(rows, 2, device="chip")).item()

    assert kind_and_count(recorded(evaluate).steps) == ("period", 4)


def test_calls_of_the_module_that_does_most_are_steps() -> None:
    encoder, denoiser, decoder = layers(3)

    def sample() -> None:
        x = encoder(torch.ones(2, 8, device="chip"))
        for number in range(5):
            x = denoiser(x) if number != 2 else denoiser(x).relu().exp().tanh()
        decoder(x)

    assert kind_and_count(recorded(sample).steps) == ("forward", 5)


def test_irregular_steps_without_an_optimizer_are_backward_passes() -> None:
    model = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 1)]).to("chip")

    def train() -> None:
        for depth in (1, 4, 2, 7, 3):
            x = torch.ones(4, 8).to("chip")
            for _ in range(depth):
                x = model[0](x)
            model[1](x).square().mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None

    trace = recorded(train)
    assert kind_and_count(trace.steps) == ("backward", 5)
    assert launches(trace)[0] == launches(trace)[-1] == 0 and len(set(launches(trace)[1:-1])) == 5


def test_backward_passes_at_the_end_of_a_longer_program_are_no_steps() -> None:
    def measure() -> None:
        for digit in "31415926535897932384626433832795":  # no period
            x = torch.ones(8, device="chip")
            for _ in range(int(digit)):
                x = x.sin()
        for _ in range(2):
            torch.ones(3, device="chip", requires_grad=True).sum().backward()

    assert kind_and_count(recorded(measure).steps) == ("whole", 1)


def test_the_only_step_begins_at_the_forward_pass_that_feeds_it() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)).to("chip")

    def train() -> None:
        for _ in range(9):
            model(torch.ones(1, 8, device="chip"))
        model(torch.ones(2, 8, device="chip")).sum().backward()  # gradients that are thrown away
        model.zero_grad()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            model(torch.ones(4, 8).to("chip")).square().mean().backward()
        optimizer.step()

    def one_batch() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.zero_grad()
        model(torch.ones(4, 8).to("chip")).square().mean().backward()
        optimizer.step()

    trace, one = recorded(train), recorded(one_batch)
    assert kind_and_count(trace.steps) == ("optimizer", 1) and trace.steps.start > 0
    before, step, after = launches(trace)
    single = launches(one)[1]
    additions = 4  # to gradients that the first micro-batch allocated
    passes = single - 1  # without the optimizer's own launch
    assert before > 9 * 4 and after == 0
    assert step == 1 + 4 * passes + 3 * additions


def test_optimizers_of_the_host_mark_no_steps() -> None:
    def train(device: str, steps: int) -> None:
        model = nn.Linear(4, 4).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            model(torch.ones(2, 4, device=device)).sum().backward()
            optimizer.step()

    def program() -> None:
        torch.ones(4, device="chip").add_(1)
        train("cpu", 9)
        train("chip", 4)

    trace = recorded(program)
    assert kind_and_count(trace.steps) == ("optimizer", 4)
    assert min(launches(trace)[1:-1]) > 3


def test_steps_are_those_of_the_optimizer_that_steps_most() -> None:
    def optimizers() -> Iterator[torch.optim.Optimizer]:
        for model in layers(2):
            yield torch.optim.SGD(model.parameters(), lr=0.1)
            model(torch.ones(2, 8, device="chip")).sum().backward()

    def program() -> None:
        first, second = optimizers()
        first.step()
        for _ in range(3):
            second.step()

    assert kind_and_count(recorded(program).steps) == ("optimizer", 3)


def test_an_empty_recording_is_one_part() -> None:
    trace = recorded(lambda: None)
    assert kind_and_count(trace.steps) == ("whole", 1) and launches(trace) == [0, 0, 0]


def test_the_data_of_a_step_belongs_to_it() -> None:
    model = nn.Linear(8, 8).to("chip")

    def infer() -> None:
        for _ in range(4):
            x = torch.ones(4, 8, device="chip").exp()
            model(x).sum().item()

    trace = recorded(infer)
    assert kind_and_count(trace.steps) == ("forward", 4)
    assert launches(trace) == [0, 4, 4, 4, 4, 0]


def test_two_different_loops_are_no_steps() -> None:
    weights = [torch.ones(8, 8, device="chip") for _ in range(2)]

    def program() -> None:
        multiply(weights, 9)
        for _ in range(9):
            (torch.ones(8, 8, device="chip") @ weights[0]).exp().tanh().sum()

    assert kind_and_count(recorded(program).steps) == ("whole", 1)


def test_launches_in_a_checkpoint_are_not_the_optimizers() -> None:
    x = torch.ones(8, 8, device="chip", requires_grad=True)
    trace = recorded(lambda: checkpoint(lambda value: value.sin().cos(), x, use_reentrant=False))
    assert trace.launches == 2
    assert set(trace.columns["phase"][trace.columns["kind"] == LAUNCH].tolist()) == {IN_FORWARD}


def test_a_backward_pass_that_rebuilds_a_part_is_one_step() -> None:
    stack = layers(4)

    def step(rows: int) -> None:
        def run(x: torch.Tensor) -> torch.Tensor:
            for layer in stack:
                x = layer(x)
            return x

        checkpoint(run, torch.ones(rows, 8, device="chip"), use_reentrant=False).sum().backward()

    # of different sizes, so that no series of launches repeats
    assert kind_and_count(recorded(lambda: [step(rows) for rows in (2, 5, 3)]).steps) == ("backward", 3)


def captured(work: Callable[[], object], warm_up: int = 2) -> torch.chip.CUDAGraph:
    for _ in range(warm_up):
        work()
    graph = torch.chip.CUDAGraph()
    with torch.chip.graph(graph):
        work()
    return graph


def test_replays_of_a_graph_are_steps() -> None:
    model, x = Mlp().to("chip"), torch.ones(4, 8, device="chip")

    def infer() -> None:
        with torch.no_grad():
            graph = captured(lambda: model(x))
        for _ in range(5):
            graph.replay()

    trace = recorded(infer)
    assert kind_and_count(trace.steps) == ("replay", 5)
    assert launches(trace) == [2 * 3, *[3] * 5, 0]


def test_replays_that_train_are_steps_with_their_data() -> None:
    model, x = Mlp().to("chip"), torch.ones(4, 8, device="chip")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    def train() -> None:
        graph = captured(step, warm_up=3)
        for number in range(4):
            x.copy_(torch.full((4, 8), float(number), device="chip"))
            graph.replay()

    trace = recorded(train)
    assert kind_and_count(trace.steps) == ("replay", 4)
    before, *steps, after = launches(trace)
    assert len(set(steps)) == 1 and before == 3 * (steps[0] - 2) and after == 0  # fill and copy


def test_a_graph_inside_of_optimizer_steps_is_part_of_them() -> None:
    model, x = Mlp().to("chip"), torch.ones(4, 8, device="chip")
    target = nn.Linear(8, 1).to("chip")
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)

    def train() -> None:
        with torch.no_grad():
            graph = captured(lambda: model(x))
        for _ in range(4):
            graph.replay()
            target(x).sum().backward()
            optimizer.step()

    assert kind_and_count(recorded(train).steps) == ("optimizer", 4)


def test_optimizers_that_train_in_sequence_have_steps_each() -> None:
    def train(model: nn.Module, steps: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(2, 8, device="chip")).sum().backward()
            optimizer.step()

    first, second, third = layers(3)
    trace = recorded(lambda: (train(first, 3), train(second, 5), train(third, 2)))
    assert kind_and_count(trace.steps) == ("optimizer", 10)
    before, *steps, after = launches(trace)
    assert (before, after) == (0, 0) and len(set(steps[1:])) == 1


@pytest.mark.parametrize("iterations", [1, 3])
def test_optimizers_that_take_turns_share_a_step(iterations: int) -> None:
    generator, critic = layers(2)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (critic, generator)]

    def train() -> None:
        for _ in range(iterations):
            for optimizer in optimizers:
                optimizer.zero_grad()
                critic(generator(torch.ones(2, 8, device="chip"))).sum().backward()
                optimizer.step()

    assert kind_and_count(recorded(train).steps) == ("optimizer", iterations)


def test_several_critic_steps_for_each_generator_step_are_steps_of_the_critic() -> None:
    generator, critic = layers(2)
    of_critic, of_generator = (torch.optim.SGD(model.parameters(), lr=0.1) for model in (critic, generator))

    def train() -> None:
        for number in range(12):
            critic(generator(torch.ones(2, 8, device="chip"))).sum().backward()
            (of_generator if number % 4 == 3 else of_critic).step()

    assert kind_and_count(recorded(train).steps) == ("optimizer", 9)


def test_modules_that_do_most_of_the_work_are_steps_though_others_are_called_more() -> None:
    small = nn.Linear(8, 8).to("chip")
    large = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8))).to("chip")

    def program() -> None:
        prompts = [small(torch.ones(1, 8, device="chip")) for _ in range(20)]
        scores = torch.cat(prompts).sum()
        for rows in range(1, 10):
            (large(torch.ones(64, 256).to("chip")).sum() * scores).item()
            for _ in range(rows):
                scores = scores.exp()

    assert kind_and_count(recorded(program).steps) == ("forward", 9)


def test_a_large_module_that_is_called_once_is_no_step() -> None:
    denoiser = nn.Linear(8, 8).to("chip")
    decoder = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8))).to("chip")

    def sample() -> None:
        x = torch.ones(2, 8, device="chip")
        for number in range(6):
            x = denoiser(x).relu() if number % 2 else denoiser(x).exp().tanh().abs()
        decoder(torch.ones(64, 512, device="chip"))

    assert kind_and_count(recorded(sample).steps) == ("forward", 6)
