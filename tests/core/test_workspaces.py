"""Workspaces of products: what torch's CUDA build keeps for cuBLAS, per host thread and stream."""

import subprocess
from collections.abc import Callable

import pytest

import bringup
from bringup.recording.rows import BLAS_WORKSPACE, OWNERS
from tests.conftest import slow

Run = Callable[..., "subprocess.CompletedProcess[str]"]
PROGRAM = """
import threading, torch, bringup

def held():
    print(torch.chip.memory_allocated() // 1024 - before, end=" ")

def product():
    x @ x

x = torch.ones(256, 256, device="chip")
before = torch.chip.memory_allocated() // 1024
"""
BODY = """
x + x; held()
product(); held()
product(); held()
torch.nn.functional.linear(x, x, x[0]); held()
weight = x.clone().requires_grad_(); (x @ weight).sum().backward(); del weight; held()
"""


@pytest.mark.parametrize(
    ("chip", "blas", "lt"),
    [
        *(("h100-sxm", 32 * 1024, 1024), ("edge8", 0, 0)),
        *slow(("a100-sxm-80", 2 * 4096 + 8 * 16, 1024), ("mi300x", 0, 0)),
    ],
)
def test_first_product_of_a_thread_keeps_a_workspace(python: Run, chip: str, blas: int, lt: int) -> None:
    """On an H100 with torch 2.11, inference held 33 MiB beside its tensors, and training 65 MiB."""
    done = python(PROGRAM + BODY, BRINGUP_CHIP=chip)
    assert done.stdout.split() == list(map(str, [0, blas, blas, blas + lt, 2 * blas + lt])), done.stderr


def test_workspaces_belong_to_a_handle_and_a_stream(python: Run) -> None:
    body = """
import os, time
for _ in range(2):  # the second thread takes over the handle of the first
    thread = threading.Thread(target=product); thread.start(); thread.join()
    # join returns before the thread has ended
    while os.path.exists(f"/proc/self/task/{thread.native_id}"): time.sleep(0.001)
    held()
product(); held()  # so does this thread
with torch.chip.stream(torch.Stream(device="chip")): product()
held()
torch.ops.bringup.clear_workspaces(); held()
product(); held()
"""
    done = python(PROGRAM + body, BRINGUP_CHIP="h100-sxm")
    assert done.stdout.split() == [str(count * 32 * 1024) for count in (1, 1, 1, 2, 0, 1)], done.stderr


@pytest.mark.parametrize(
    ("asked", "kib"),
    [
        *((":4096:2:16:8", 8320), (":0:0", 0)),
        *slow((":4096:8", 32768), (":16:8", 128), ("large", 32768)),
    ],
)
def test_environment_sets_the_size(python: Run, asked: str, kib: int) -> None:
    done = python(PROGRAM + "product(); held()", BRINGUP_CHIP="h100-sxm", CUBLAS_WORKSPACE_CONFIG=asked)
    assert done.stdout.split() == [str(kib)], done.stderr


@pytest.mark.slow
def test_products_of_compiled_graphs_keep_workspaces(python: Run) -> None:
    body = """
torch.compile(lambda x: x @ x + 1)(x); held()
torch.compile(lambda x: torch.addmm(x[0], x, x))(x); held()
torch.compile(lambda x: x + 1)(x); held()
"""
    dry = "dry = bringup.dry(); dry.__enter__()  # until the program ends\n"
    done = python("import bringup\n" + dry + PROGRAM + body, BRINGUP_CHIP="h100-sxm")
    assert done.stdout.split() == list(map(str, [32 * 1024, 33 * 1024, 33 * 1024])), done.stderr


def test_report_names_the_workspace(python: Run) -> None:
    body = """
torch.ops.bringup.clear_workspaces()
with bringup.record() as trace:
    product(); bringup.step()
for owner in bringup.price(trace, "h100-sxm").memory.owners: print(owner.kind, owner.bytes, sep=": ")
"""
    done = python(PROGRAM + body, BRINGUP_CHIP="h100-sxm")
    assert f"{OWNERS[BLAS_WORKSPACE]}: {32 << 20}" in done.stdout.splitlines(), done.stderr
    assert OWNERS[BLAS_WORKSPACE] == "cuBLAS workspace"


def test_out_of_memory_error_names_the_workspace(python: Run) -> None:
    body = 'product(); torch.ones(2**38, device="chip")'
    assert "cuBLAS workspace" in python(PROGRAM + body, BRINGUP_CHIP="h100-sxm").stderr


def test_chips_of_one_vendor_state_their_workspace() -> None:
    for name in bringup.available_chips():
        chip = bringup.load_chip(name)
        assert (chip.blas_bytes > 0) == (chip.vendor == "NVIDIA"), name
