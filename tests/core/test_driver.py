"""The seam: another driver under the same runtime."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bringup.drivers.probe import probe
from tests.conftest import ROOT, built_driver

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def null_driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    return built_driver("null", tmp_path_factory.mktemp("driver"))


def test_null_driver_takes_a_training_step(python: Run, null_driver: str) -> None:
    done = python(
        """
import torch
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).to("chip")
optimizer = torch.optim.AdamW(model.parameters())
loss = model(torch.randn(4, 8).to("chip")).sum()
loss.backward()
optimizer.step()
torch.chip.synchronize()
print(loss.item(), torch.chip.memory_allocated() > 0, torch.ops.bringup.driver_name())
""",
        BRINGUP_DRIVER=null_driver,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0.0", "True", "null"]


def test_null_driver_has_the_chips_capacity(python: Run, null_driver: str) -> None:
    done = python(
        """
import torch
held = [torch.empty(1 << 30, dtype=torch.uint8, device="chip") for _ in range(8)]
try:
    torch.empty(1 << 30, dtype=torch.uint8, device="chip")
except torch.OutOfMemoryError:
    held.clear()
    print(torch.empty(1 << 32, dtype=torch.uint8, device="chip").shape)
""",
        BRINGUP_DRIVER=null_driver,
    )
    assert done.returncode == 0, done.stderr
    assert "4294967296" in done.stdout


def test_op_that_needs_a_value_says_so_on_the_null_driver(python: Run, null_driver: str) -> None:
    done = python('import torch\ntorch.ones(3, device="chip").nonzero()\n', BRINGUP_DRIVER=null_driver)
    assert done.returncode != 0
    assert "aten::nonzero needs a value from the device, but the null driver executes nothing" in done.stderr


@pytest.mark.parametrize(
    ("path", "problem"),
    [("./missing.so", "cannot be loaded"), ("libc.so.6", "does not export bringup_driver_entry")],
)
def test_unusable_driver_is_refused_in_one_sentence(python: Run, path: str, problem: str) -> None:
    done = python('import torch\ntorch.ones(3, device="chip")\n', BRINGUP_DRIVER=path)
    assert done.returncode == 1
    assert problem in done.stderr.splitlines()[-1]


def test_driver_without_entries_that_all_need_is_refused(python: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    partial = built_driver("partial", tmp_path_factory.mktemp("driver"))
    done = python('import torch\ntorch.ones(3, device="chip")\n', BRINGUP_DRIVER=partial)
    assert done.returncode == 1, done.stderr
    assert "lacks copy_d2d, launch_host: set them, and size to sizeof(bringup_driver)" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("returned", "problem"),
    [("&other", "was built for driver ABI 99"), ("nullptr", "its bringup_driver_entry returns null")],
)
def test_driver_for_another_abi_or_without_one_is_refused(
    python: Run, tmp_path: Path, returned: str, problem: str
) -> None:
    source, library = tmp_path / "other.cpp", tmp_path / "other.so"
    source.write_text(
        '#include "driver.h"\nextern "C" const bringup_driver* bringup_driver_entry() '
        f'{{ static bringup_driver other = {{99, sizeof(bringup_driver), "other"}}; return {returned}; }}\n',
        encoding="utf-8",
    )
    include = ["-I", str(ROOT / "csrc")]
    subprocess.run(["g++", "-shared", "-fPIC", *include, str(source), "-o", str(library)], check=True)
    done = python('import torch\ntorch.ones(3, device="chip")\n', BRINGUP_DRIVER=str(library))
    assert done.returncode == 1
    assert problem in done.stderr.splitlines()[-1]
    assert problem in probe(str(library))["why_not"]


def test_driver_of_the_version_before_is_usable_for_lists_too(tmp_path: Path) -> None:
    assert probe(built_driver("caller", tmp_path)) == {"devices": ["device 0 of caller"], "why_not": ""}


# One processor and a thread switch that never comes: autograd's thread still owns the graph task when Python finalizes.
ENDS_AFTER_BACKWARD = """
import os, sys
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
import torch
sys.setswitchinterval(1000)
torch.ones(4, device="chip", requires_grad=True).sum().backward()
"""


def test_process_ends_when_its_last_statement_is_a_backward_pass(python: Run, null_driver: str) -> None:
    for _ in range(4):  # a process without the wait for autograd aborts in about one of three tries
        done = python(ENDS_AFTER_BACKWARD, BRINGUP_DRIVER=null_driver)
        assert done.returncode == 0, done.stderr
