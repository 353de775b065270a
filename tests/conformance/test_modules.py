"""torch's ModuleInfo and OptimizerInfo databases on chip, against the CPU."""

import copy
from typing import Any

import pytest
import torch
from torch.testing._internal.common_modules import module_db
from torch.testing._internal.common_optimizers import optim_db
from torch.utils._pytree import tree_flatten, tree_map

from tests.conformance.opinfo import compare, seed, to_chip

pytestmark = pytest.mark.filterwarnings("ignore")


def run(module: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, list[torch.Tensor | None]]:
    """Forward, and backward from every differentiable output."""
    seed()
    result = module(*args, **kwargs)
    outputs = [t for t in tree_flatten(result)[0] if isinstance(t, torch.Tensor) and t.requires_grad]
    if outputs:
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
    return result, [parameter.grad for parameter in module.parameters()]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("info", module_db, ids=lambda info: info.name)
def test_module_equals_cpu(info: Any, training: bool) -> None:
    inputs = info.module_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=training)
    for number, case in enumerate(inputs):
        if case.forward_input is None:
            continue
        seed()
        module = (
            info.module_cls(*case.constructor_input.args, **case.constructor_input.kwargs)
            .to(torch.float32)
            .train(training)
        )
        moved = copy.deepcopy(module).to("chip")
        args, kwargs = case.forward_input.args, case.forward_input.kwargs
        expected = run(module, args, kwargs)
        compare(run(moved, tree_map(to_chip, args), tree_map(to_chip, kwargs)), expected, f"case {number}")


def train(info: Any, arguments: dict[str, Any], device: str) -> list[torch.Tensor]:
    seed()
    weight, bias = torch.randn(10, 5).to(device), torch.randn(10).to(device)
    parameters = [torch.nn.Parameter(weight), torch.nn.Parameter(bias)]
    x = torch.randn(5).to(device)
    optimizer = info.optim_cls(parameters, **arguments)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (parameters[0].mv(x) + parameters[1]).pow(2).sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure) if info.step_requires_closure else (closure(), optimizer.step())
    return parameters


@pytest.mark.parametrize("foreach", [False, True], ids=["plain", "foreach"])
@pytest.mark.parametrize("info", optim_db, ids=lambda info: info.optim_cls.__name__)
def test_optimizer_equals_cpu(info: Any, foreach: bool) -> None:
    if foreach and "foreach" not in info.supported_impls:
        pytest.skip("this optimizer has no foreach implementation")
    if info.only_supports_sparse_grads or info.optim_cls.__name__ == "Muon":
        pytest.skip("takes sparse gradients or matrices only; see test_muon_and_sparse_adam_equal_cpu")
    for number, case in enumerate(info.optim_inputs_func(device="cpu")):
        arguments = {**copy.deepcopy(case.kwargs), **({"foreach": True} if foreach else {})}
        expected = train(info, copy.deepcopy(arguments), "cpu")
        ours = train(info, tree_map(to_chip, arguments), "chip")
        compare(ours, expected, f"case {number} {case.desc}")


def test_muon_and_sparse_adam_equal_cpu() -> None:
    def run_muon(device: str) -> torch.Tensor:
        seed()
        weight = torch.nn.Parameter(torch.randn(10, 5).to(device))
        optimizer = torch.optim.Muon([weight])
        for _ in range(3):
            optimizer.zero_grad()
            weight.pow(2).sum().backward()
            optimizer.step()
        return weight

    def run_sparse(device: str) -> torch.Tensor:
        seed()
        table = torch.nn.Embedding(10, 3, sparse=True).to(device)
        optimizer = torch.optim.SparseAdam(table.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            table(torch.tensor([1, 2, 2, 5]).to(device)).sum().backward()
            optimizer.step()
        return table.weight

    compare(run_muon("chip"), run_muon("cpu"), "Muon")
    compare(run_sparse("chip"), run_sparse("cpu"), "SparseAdam")
