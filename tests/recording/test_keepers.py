"""A leak's finding names the variable that keeps what leaks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import bringup
from bringup.paths import Places
from bringup.recording.findings import Finding
from bringup.recording.keepers import with_keeper

LEAK = Finding("leak", "train.py:3 allocates 4 bytes per step", "train.py:3", "", "")
STEPS = 8


def keeper(step: Callable[[dict[str, object], nn.Module, torch.Tensor], None]) -> str:
    """Return what the finding says after some steps, which may change the program's variables."""
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)).to("chip")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    variables: dict[str, object] = {"model": model, "optimizer": optimizer, "torch": torch, "seen": [], "running": 0.0}
    with bringup.record() as trace:
        for _ in range(STEPS):
            loss = model(torch.ones(4, 8, device="chip")).square().mean()
            optimizer.zero_grad()
            loss.backward(retain_graph=True)
            optimizer.step()
            variables["loss"] = loss
            step(variables, model, loss)
    assert with_keeper(LEAK, trace, {}) == LEAK
    return with_keeper(LEAK, trace, variables).what.removeprefix(LEAK.what)


def collect(variables: dict[str, object], _: nn.Module, loss: torch.Tensor) -> None:
    seen = variables["seen"]
    assert isinstance(seen, list)
    seen.append({"loss": loss.detach()})


def add(variables: dict[str, object], _: nn.Module, loss: torch.Tensor) -> None:
    variables["running"] = variables["running"] + loss  # type: ignore[operator]


def test_a_list_of_tensors_is_named() -> None:
    assert keeper(collect) == f"; the variable seen keeps {STEPS} tensors"


def test_a_sum_with_the_graphs_of_all_steps_is_named() -> None:
    assert keeper(add).startswith("; the variable running keeps the graph of ")


def test_a_state_is_named_before_the_loss_that_is_computed_from_it() -> None:
    def step(variables: dict[str, object], model: nn.Module, _: torch.Tensor) -> None:
        variables["state"] = model(variables.get("state", torch.ones(4, 8, device="chip")))
        variables["alpha"] = variables["state"].square().mean()  # type: ignore[attr-defined]

    with bringup.record() as trace:
        variables: dict[str, object] = {}
        model = nn.Linear(8, 8).to("chip")
        for _ in range(STEPS):
            step(variables, model, torch.ones(1))
            variables["alpha"].backward(retain_graph=True, inputs=[model.bias])  # type: ignore[attr-defined]
    assert "the variable state keeps the graph" in with_keeper(LEAK, trace, variables).what


@pytest.mark.parametrize(
    ("program", "lines"),
    [
        ("seen = []\nfor step in range(8):\n    seen.append(step)", [3]),
        ("seen = {}\ndef hook(loss):\n    seen.setdefault('loss', []).append(loss)", [3]),
        ("seen = 0.0\nwhile True:\n    seen = seen + loss\n    seen += loss", [3, 4]),
        ("class Net:\n    def forward(self, x):\n        seen['x'] = x", [3]),
        ("seen = []\nhook = lambda module, args, out: seen.append(out)", [2]),
        ("def evaluate(seen):\n    seen.append(1)\ndef sample():\n    seen = []\n    seen.append(1)", []),
        ("def evaluate():\n    global seen\n    seen = seen + 1", [3]),
        ("seen = []\nfor step in range(8):\n    print(seen)\n    seen.clear()", []),
    ],
)
def test_the_lines_that_fill_a_variable_are_named(tmp_path: Path, program: str, lines: list[int]) -> None:
    file = tmp_path / "train.py"
    file.write_text(program)
    tensors = [torch.ones(1, device="chip") for _ in range(8)]
    with bringup.record() as trace:
        for _ in range(8):
            tensors[0].add_(1)
            bringup.step()
    what = with_keeper(LEAK, trace, {"seen": tensors, "__file__": str(file)}).what
    places = [Places.of_process().line(f"{file}:{line}") for line in lines]
    filled = f", filled at {' and '.join(places)}," if lines else ""
    assert what == f"{LEAK.what}; the variable seen{filled} keeps 8 tensors"


def test_the_last_step_alone_is_no_keeper() -> None:
    assert keeper(lambda *_: None) == ""


@pytest.mark.parametrize("check", ["race", "sync"])
def test_other_findings_have_no_keeper(check: str) -> None:
    finding = Finding(check, "", "", "", "")
    with bringup.record() as trace:
        seen = [torch.ones(1, device="chip") for _ in range(8)]
    assert with_keeper(finding, trace, {"seen": seen}) is finding
