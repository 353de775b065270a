"""Tests of the example's own parts, as a user writes them. Run ``pytest --chip t4 examples``."""

import pytest
import torch
from torch import nn


@pytest.fixture
def model(chip: torch.device) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(chip)


@pytest.mark.max_syncs(4)
@pytest.mark.max_device_memory("64MiB")
@pytest.mark.max_chip_time("20ms", chip="t4")
def test_a_step_lowers_the_loss(model: nn.Module, chip: torch.device) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(50, 64).to(chip), torch.randint(10, (50,)).to(chip)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    before, after = torch.stack(losses).tolist()
    assert after < before


@pytest.mark.max_syncs(1)
def test_scores_are_probabilities(model: nn.Module, chip: torch.device) -> None:
    scores = model(torch.zeros(3, 64, device=chip)).softmax(-1).sum(-1)
    assert torch.allclose(scores.cpu(), torch.ones(3))
