"""A chip beside another accelerator in one process."""

import subprocess
from pathlib import Path

import pytest
import torch

import bringup
from bringup import core_build
from bringup.recording.rows import D2H, H2D

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A device whose kernels know nothing of chips."""
    here = core_build.find_torch()
    assert here is not None
    library = tmp_path_factory.mktemp("other") / "other_device.so"
    subprocess.run(core_build.command_line(here, library, files=[HERE / "other_device.cpp"]), check=True)
    torch.ops.load_library(str(library))
    return "maia"


def test_copies_between_accelerators_go_through_the_host(other: str) -> None:
    values = torch.arange(12.0).reshape(3, 4)
    there = values.to(other)
    assert there.device.type == other
    with bringup.record() as trace:
        here = there.to("chip")
        back = (here + 1).to(other)
        torch.chip.synchronize()
    assert torch.equal(here.cpu(), values) and torch.equal(back.cpu(), values + 1)
    kinds = trace.columns["kind"].tolist()
    assert kinds.count(H2D) == 1 and kinds.count(D2H) == 1


def test_copies_between_accelerators_change_dtype_and_layout(other: str) -> None:
    values = torch.arange(12.0).reshape(3, 4)
    here = torch.zeros(4, 3, dtype=torch.float16, device="chip").t()
    here.copy_(values.to(other))
    assert torch.equal(here.cpu(), values.half())
    there = torch.zeros(3, 4, dtype=torch.float64).to(other)
    there.copy_(here)
    assert torch.equal(there.cpu(), values.double())


def test_a_model_on_another_accelerator_is_predicted_and_stays_there(other: str) -> None:
    model = torch.nn.Linear(8, 8).to(other)
    weight = model.weight
    prediction = bringup.predict(model, torch.ones(2, 8).to(other), chip="t4")
    assert prediction.trace.launches == 1
    assert model.weight is weight and model.weight.device.type == other and torch.isfinite(weight.cpu()).all()
