"""Backward passes: where their forward passes begin, and what belongs to them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.recording.test_steps import Mlp, kind_and_count, launches, layers, recorded

LABELS = torch.zeros(4, dtype=torch.long)
ONE_PASS = 5 + 1 + 8  # two products, an activation, two launches of the loss; its gradient; the backward pass


@pytest.mark.parametrize("by_hand", [False, True])
def test_one_forward_and_backward_pass_is_the_step(by_hand: bool) -> None:
    model = Mlp().to("chip")
    first, last = model.layers

    def one_pass() -> None:
        x, labels = torch.ones(4, 8).to("chip"), LABELS.to("chip")
        logits = last(torch.relu(first(x))) if by_hand else model(x)
        nn.functional.cross_entropy(logits, labels).backward()

    trace = recorded(one_pass)
    assert kind_and_count(trace.steps) == ("backward", 1)
    assert launches(trace) == [0, ONE_PASS, 0]


def test_a_pass_without_modules_begins_at_its_forward_pass() -> None:
    weights = [torch.ones(8, 8, device="chip").requires_grad_() for _ in range(3)]

    def one_pass() -> None:
        x = torch.ones(4, 8, device="chip")
        for weight in weights:
            x = torch.relu(x @ weight)
        x.sum().backward()

    trace = recorded(one_pass)
    assert kind_and_count(trace.steps) == ("backward", 1)
    assert launches(trace)[0] == 1  # the data


def test_an_evaluation_before_the_only_pass_is_set_up() -> None:
    model = Mlp().to("chip")

    def program() -> None:
        with torch.no_grad():
            for _ in range(3):
                model(torch.ones(4, 8, device="chip")).exp()
        model(torch.ones(4, 8).to("chip")).sum().backward()

    trace = recorded(program)
    assert kind_and_count(trace.steps) == ("backward", 1) and launches(trace)[0] == 3 * 5


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("each", [False, True])
def test_a_forward_pass_computed_again_is_part_of_the_backward_pass(each: bool, reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    stack = layers(3)

    def again(part: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = checkpoint(part, x, use_reentrant=reentrant)
        return result

    def run(x: torch.Tensor) -> torch.Tensor:
        for layer in stack:
            x = again(layer, x) if each else layer(x)
        return x

    def train() -> None:
        for depth in (1, 2):  # unlike, so that they are no repetition
            x = torch.ones(4, 8).to("chip").requires_grad_()
            for _ in range(depth):
                x = run(x) if each else again(run, x)
            x.square().mean().backward()

    trace = recorded(train)
    assert kind_and_count(trace.steps) == ("backward", 2)
    assert launches(trace)[0] == launches(trace)[-1] == 0


def test_gradients_of_a_loss_with_gradients_are_one_pass() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).to("chip")

    def train() -> None:
        for depth in (1, 3, 2):
            x = torch.ones(4, 8, device="chip").requires_grad_()
            penalty = torch.zeros((), device="chip")
            for _ in range(depth):
                (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
                penalty = penalty + slope.square().sum()
            (model(x).sum() + penalty).backward()

    assert kind_and_count(recorded(train).steps) == ("backward", 3)


def test_passes_that_add_up_gradients_are_passes() -> None:
    model = Mlp().to("chip")

    def train() -> None:
        for rows in (4, 5, 6):
            for _ in range(rows):
                torch.ones(3, device="chip").exp()
            model(torch.ones(rows, 8).to("chip")).sum().backward()

    assert kind_and_count(recorded(train).steps) == ("backward", 3)


def seeded() -> Mlp:
    torch.manual_seed(0)  # how often L-BFGS evaluates depends on the parameters
    return Mlp().to("chip")


def minimise(optimizer: torch.optim.Optimizer, model: nn.Module, times: int) -> None:
    x = torch.linspace(0, 1, 32).view(4, 8).to("chip")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(x).exp() - 2).square().mean()
        loss.backward()
        return loss

    for _ in range(times):
        optimizer.step(closure)  # type: ignore[arg-type]


def test_a_single_step_of_evaluations_has_a_step_for_each() -> None:
    model = seeded()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=6, tolerance_grad=0, line_search_fn="strong_wolfe")
    trace = recorded(lambda: minimise(optimizer, model, 1))
    passes = optimizer.state[model.layers[0].weight]["func_evals"]
    assert passes >= 6 and kind_and_count(trace.steps) == ("backward", passes)
    before, *steps, after = launches(trace)
    assert (before, after) == (0, 0) and min(steps) > 12


def test_evaluations_of_a_closure_are_counted_in_each_step() -> None:
    model = seeded()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5, tolerance_grad=0, tolerance_change=0)
    trace = recorded(lambda: minimise(optimizer, model, 6))
    passes = optimizer.state[model.layers[0].weight]["func_evals"]
    assert kind_and_count(trace.steps) == ("optimizer", 6) and trace.steps.evaluations == round(passes / 6) > 1
    assert launches(trace)[0] == 0


def test_one_evaluation_in_each_step_is_not_counted() -> None:
    model = seeded()
    trace = recorded(lambda: minimise(torch.optim.SGD(model.parameters(), lr=0.1), model, 3))
    assert kind_and_count(trace.steps) == ("optimizer", 3) and trace.steps.evaluations == 1
