"""Kernels of a driver, and host functions on a device whose memory the host cannot address."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    folder = tmp_path_factory.mktemp("drivers")

    def build(name: str) -> str:
        library = folder / f"{name}.so"
        if not library.exists():
            source = HERE / f"{name}_driver.cpp"
            subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        return str(library)

    return build


def output(done: "subprocess.CompletedProcess[str]") -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


COUNTS = """
import ctypes, json, torch
library = ctypes.CDLL(DRIVER)
def counts():
    values = (ctypes.c_long * 4)()
    library.separate_counts(values)
    return dict(zip(("kernels", "prepared", "down", "up"), values))
"""


def test_kernel_is_prepared_once_and_launched_with_values(python: Run, driver: Callable[[str], str]) -> None:
    library = driver("separate")
    done = python(
        f"DRIVER = {library!r}\n{COUNTS}"
        """
x, y = (torch.arange(6.0).view(2, 3).to("chip") for _ in range(2))
before = counts()
results = [torch.add(x, y, alpha=alpha) for alpha in (1.0, 2.5, -1.0)]
torch.chip.synchronize()
after = counts()
print(after["kernels"] - before["kernels"], after["prepared"] - before["prepared"], after["down"] - before["down"])
print([r.cpu()[1, 2].item() for r in results])
""",
        BRINGUP_DRIVER=library,
    )
    assert output(done) == ["3", "1", "0", "[10.0,", "17.5,", "0.0]"]


def test_kernel_starts_at_the_first_element_of_a_view(python: Run, driver: Callable[[str], str]) -> None:
    done = python(
        """
import torch
x = torch.arange(8.0).to("chip")
print((x[2:4] * x[5:7]).tolist())
""",
        BRINGUP_DRIVER=driver("separate"),
    )
    assert output(done) == ["[10.0,", "18.0]"]


def test_host_function_copies_what_it_reads_and_writes_and_no_more(python: Run, driver: Callable[[str], str]) -> None:
    library = driver("separate")
    done = python(
        f"DRIVER = {library!r}\n{COUNTS}"
        """
x = torch.zeros(1000).to("chip")
torch.chip.synchronize()
before = counts()
x[100:110].sub_(1)  # 10 elements down, 10 up
torch.chip.synchronize()
after = counts()
print(after["down"] - before["down"], after["up"] - before["up"], x.sum().item())
""",
        BRINGUP_DRIVER=library,
    )
    assert output(done) == ["40", "40", "-10.0"]


def test_training_on_separate_memory_equals_the_cpu(python: Run, driver: Callable[[str], str]) -> None:
    done = python(
        """
import json, torch
from torch.nn import functional
def losses(device):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    x, y = torch.randn(6, 1, 8, 8).to(device), torch.arange(6).remainder(5).to(device)
    found = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    masked = x[x > 0]  # its shape depends on data
    return found, masked.sum().item(), torch.unique(y).tolist()
cpu, chip = losses("cpu"), losses("chip")
torch.testing.assert_close(chip[0], cpu[0], rtol=1e-5, atol=1e-6)
torch.testing.assert_close(chip[1:], cpu[1:])
print("equal")
""",
        BRINGUP_DRIVER=driver("separate"),
    )
    assert output(done) == ["equal"]


def test_results_of_out_arguments_and_captured_graphs_arrive(python: Run, driver: Callable[[str], str]) -> None:
    done = python(
        """
import torch
out = torch.empty(0, device="chip")
torch.arange(5, out=out)
x = torch.ones(4, device="chip")
x * x, x.exp()  # before the capture
torch.chip.synchronize()
graph = torch.chip.CUDAGraph()
with torch.chip.graph(graph):
    y = (x * x).exp()
x.fill_(2)
graph.replay()
print(out.tolist()[-1], round(y[3].item(), 3))
""",
        BRINGUP_DRIVER=driver("separate"),
    )
    assert output(done) == ["4.0", "54.598"]


def test_ledger_names_the_reason_of_each_operator_on_the_host(python: Run, driver: Callable[[str], str]) -> None:
    done = python(
        """
import json, torch
import bringup
x = torch.ones(2, 3).to("chip")
with bringup.record() as trace_of:
    x + x
    x.t() + x.t()
    x.exp()
    x.nonzero()
torch.chip.synchronize()
ledger = json.loads(torch.ops.bringup.driver_ledger())
print(ledger["on_device"])
for row in ledger["on_host"]:
    print(row["op"], row["launches"], row["bytes_down"], row["bytes_up"], row["reason"])
""",
        BRINGUP_DRIVER=driver("separate"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "{'aten::add.Tensor': 1}",
        "aten::add.Tensor 1 24 24 not contiguous float32 of one size",
        "aten::exp 1 24 24 the driver has no kernel for it",
        "aten::nonzero 1 24 0 the host waits for its result",
    ]


def test_failure_of_a_kernel_names_its_line(python: Run, driver: Callable[[str], str]) -> None:
    done = python(
        """
import torch
x = torch.ones(2).to("chip")
y = (-x).sqrt()
z = x * x
torch.chip.synchronize()
""",
        BRINGUP_DRIVER=driver("separate"),
    )
    assert done.returncode == 1
    assert "a kernel met a negative number, in aten::sqrt(float32[2]) on chip:0, launched at " in done.stderr
    assert "program.py:4" in done.stderr.splitlines()[-1]


def test_what_needs_a_host_address_is_refused_in_one_sentence(python: Run, driver: Callable[[str], str]) -> None:
    done = python(
        'import torch\ntorch.ops.bringup.host_view(torch.ones(3).to("chip"))\n', BRINGUP_DRIVER=driver("separate")
    )
    assert done.returncode == 1
    assert "the host cannot address the memory of the separate driver's device" in done.stderr.splitlines()[-1]


def test_device_that_does_not_open_says_why(python: Run, driver: Callable[[str], str]) -> None:
    done = python('import torch\ntorch.ones(3, device="chip")\n', BRINGUP_DRIVER=driver("unopened"))
    assert done.returncode == 1
    assert "cannot be opened: the unopened driver says: its cable is loose" in done.stderr.splitlines()[-1]


def test_driver_of_version_2_on_the_callers_thread_leaves_autograd_on(
    python: Run, driver: Callable[[str], str]
) -> None:
    done = python(
        """
import os, torch
torch.set_num_threads(1)
x = torch.ones(3).to("chip").requires_grad_()
y = (x * 2).sum()
torch.set_num_threads(2)
y.backward()
with torch.no_grad():
    x.grad + 1
    print(torch.is_grad_enabled())
print(torch.is_grad_enabled(), torch.get_num_threads(), x.grad.tolist(), torch.ops.bringup.driver_name(), flush=True)
os._exit(0)  # torch's thread of the backward pass may still end, and must not meet a Python that is gone
""",
        BRINGUP_DRIVER=driver("caller"),
    )
    assert output(done) == ["False", "True", "2", "[2.0,", "2.0,", "2.0]", "caller"]
