"""Process groups on the chip: results of several ranks, rows of collectives, groups without other ranks."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import slow

Run = Callable[..., subprocess.CompletedProcess[str]]

# Each case runs in two processes. `equal` compares with a value, `both` runs on the chip and on the CPU.
RANKS = """
import os, warnings
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
import torch.distributed._functional_collectives as functional

warnings.simplefilter("ignore")


def collectives(rank):
    def chip(*values):
        return torch.tensor(values, device="chip", dtype=torch.float32)

    x = chip(rank + 1, 1)
    dist.all_reduce(x)
    assert x.tolist() == [3, 2]
    work = dist.all_reduce(x, op=dist.ReduceOp.MAX, async_op=True)
    work.wait()
    assert x.tolist() == [3, 2]
    into = torch.empty(4, device="chip")
    dist.all_gather_into_tensor(into, chip(rank, 5))
    assert into.tolist() == [0, 5, 1, 5]
    parts = [torch.empty(2, device="chip") for _ in range(2)]
    dist.all_gather(parts, chip(rank, 5))
    assert [part.tolist() for part in parts] == [[0, 5], [1, 5]]
    into = torch.empty(2, device="chip")
    dist.reduce_scatter_tensor(into, chip(0, 1, 2, 3))
    assert into.tolist() == [[0, 2], [4, 6]][rank]
    dist.broadcast(x := chip(rank, rank), 1)
    assert x.tolist() == [1, 1]
    into = torch.empty(4, device="chip")
    dist.all_to_all_single(into, chip(0, 1, 2, 3) + 10 * rank)
    assert into.tolist() == [[0, 1, 10, 11], [2, 3, 12, 13]][rank]
    dist.gather(chip(rank), parts := [torch.empty(1, device="chip") for _ in range(2)] if rank == 0 else None)
    assert rank or [part.item() for part in parts] == [0, 1]
    dist.scatter(into := torch.empty(1, device="chip"), [chip(7), chip(8)] if rank == 0 else None)
    assert into.item() == 7 + rank
    names = [None, None]
    dist.all_gather_object(names, {"rank": rank})
    assert names == [{"rank": 0}, {"rank": 1}]
    dist.barrier()
    assert functional.all_reduce(chip(1), "sum", dist.group.WORLD).tolist() == [2]
    alone = [dist.new_group([0]), dist.new_group([1])][rank]
    dist.all_reduce(x, group=alone)
    assert x.tolist() == [1, 1]


def exchange(rank):
    large = torch.full((1 << 20,), float(rank), device="chip")  # more than a socket's buffer
    into = torch.empty_like(large)
    there = [dist.P2POp(dist.isend, large, 1 - rank), dist.P2POp(dist.irecv, into, 1 - rank)]
    for work in dist.batch_isend_irecv(there):
        work.wait()
    assert into.unique().tolist() == [1 - rank]
    dist.send(large, 1) if rank == 0 else dist.recv(large, 0)
    assert large[0].item() == 0


def losses(rank, wrap):
    def on(device, group):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to(device)
        model = wrap(model, group, device)
        torch.manual_seed(rank if wrap is not tensor_parallel else 0)
        x, target = torch.randn(8, 16).to(device), torch.randint(4, (8,)).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        values = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return values

    cpu = dist.new_group(backend="gloo")
    assert on("chip", dist.group.WORLD) == on("cpu", cpu)


def ddp(model, group, device):
    return nn.parallel.DistributedDataParallel(model, process_group=group)


def fsdp(model, group, device):
    return fully_shard(model, mesh=DeviceMesh.from_group(group, device))


def tensor_parallel(model, group, device):
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    return parallelize_module(model, DeviceMesh.from_group(group, device), plan)


def main(rank, port, backend):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group(backend, rank=rank, world_size=2)
    collectives(rank)
    exchange(rank)
    for wrap in (ddp, fsdp, tensor_parallel):
        losses(rank, wrap)
    dist.destroy_process_group()


if __name__ == "__main__":
    import socket
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(main, (port, BACKEND), nprocs=2, start_method="spawn")
    print("done")
"""


@pytest.mark.parametrize("backend", [*slow("None", "'gloo'"), "'cpu:gloo,chip:chip'"])
def test_two_ranks_compute_what_the_cpu_does(python: Run, backend: str) -> None:
    done = python(RANKS.replace("BACKEND", backend))
    assert done.stdout.splitlines()[-1:] == ["done"], done.stderr[-3000:]


ALONE = """
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
import bringup
from bringup.analyse.compare import compare
from bringup.recording.rows import EVENT_RECORD, EVENT_WAIT, LAUNCH

bringup.use("h100-sxm")
dist.init_process_group("fake", rank=1, world_size=8, store=FakeStore())
into = torch.empty(16, device="chip")
dist.all_gather_into_tensor(into, torch.tensor([1.0, 2.0], device="chip"))
assert into.tolist() == [1.0, 2.0] * 8  # as if all ranks had the same
dist.all_reduce(x := torch.ones(2, device="chip"))
assert x.tolist() == [8.0, 8.0]
dist.batch_isend_irecv([dist.P2POp(dist.isend, x, 1)])
model = nn.parallel.DistributedDataParallel(nn.Linear(512, 512, bias=False, device="chip"))
with bringup.record() as trace:
    work = dist.all_reduce(x, async_op=True)
    y = torch.randn(512, 512, device="chip") @ torch.randn(512, 512, device="chip")
    work.wait()
    y += x[0]
    model(y).sum().backward()
    dist.send(x, 3)
    torch.chip.synchronize()
columns = trace.columns
calls = [
    (data["op"], data["args"], int(columns["stream"][row]), trace.lines[columns["line"][row]])
    for row in range(len(trace))
    if columns["kind"][row] == LAUNCH and (data := trace.signature_data[columns["signature"][row]])["op"][:4] == "c10d"
]
own = calls[0][2]
assert own != 0  # the group's own stream, which waits for the program's and is waited for
assert calls[0][:2] == ("c10d::all_reduce", {"bytes": 8, "first": 0, "step": 1, "size": 8})
assert calls[0][3].startswith("program.py:")
assert [name for name, *_ in calls] == ["c10d::all_reduce", "c10d::all_reduce", "c10d::send"], calls
assert calls[1][1]["bytes"] == 512 * 512 * 4
assert calls[2][1] == {"bytes": 8, "first": 1, "step": 2, "size": 2}  # from rank 1 to rank 3
kinds = list(zip(columns["kind"].tolist(), columns["stream"].tolist()))
assert (EVENT_WAIT, own) in kinds and (EVENT_RECORD, own) in kinds and (EVENT_WAIT, 0) in kinds
near = bringup.price(trace, "h100-sxm").summary
far = bringup.price(trace, "h100-sxm", cluster="l40s-server").summary
assert (near.cluster, near.ranks, far.cluster) == ("dgx-h100", 8, "l40s-server")
assert 0 < near.communication_seconds < far.communication_seconds
host = bringup.price(trace, "h100-sxm").timeline.host
rows = compare(trace, [bringup.load_chip("h100-sxm")] * 2, host, clusters=["dgx-h100", "l40s-server"])
assert [row.summary.cluster for row in rows] == ["dgx-h100", "l40s-server"] and rows[1].ratio < 1
assert near.collectives[0].bytes == 512 * 512 * 4 and near.collectives[0].group_size == 8
print("done")
"""


def test_collectives_are_rows_on_the_groups_stream(python: Run) -> None:
    done = python(ALONE)
    assert done.stdout.splitlines()[-1:] == ["done"], done.stderr[-3000:]


DRY = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("nccl" if NCCL else None)
assert dist.get_world_size() == 256 and dist.get_rank() == 9
torch.DEVICE.set_device(int(os.environ["LOCAL_RANK"]))
mesh = init_device_mesh("DEVICE", (32, 8), mesh_dim_names=("data", "tensor"))
model = nn.Sequential(*(nn.Linear(1024, 1024, device="DEVICE") for _ in range(4)))
for layer in model:
    fully_shard(layer, mesh=mesh["data"])
fully_shard(model, mesh=mesh["data"])
plain = nn.parallel.DistributedDataParallel(nn.Linear(1024, 8, device="DEVICE"))
optimizers = [torch.optim.AdamW(part.parameters()) for part in (model, plain)]
for _ in range(3):
    plain(model(torch.randn(64, 1024, device="DEVICE"))).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
"""


@pytest.mark.parametrize("cuda", [False, True])
def test_dry_run_records_one_rank_of_many(bringup_run: Run, tmp_path: Path, cuda: bool) -> None:
    program = DRY.replace("DEVICE", "cuda" if cuda else "chip").replace("NCCL", str(cuda))
    (tmp_path / "train.py").write_text(program)
    of_rank = ["--ranks", "256", "--rank", "9", "--cluster", "dgx-h100x32"]
    done = bringup_run("--dry", *of_rank, "--out", "out", *["--cuda"] * cuda, "train.py")
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["cluster"], summary["ranks"], summary["dry"]) == ("dgx-h100x32", 256, True)
    assert summary["chip"] == "h100-sxm"  # the cluster's
    sizes = {(item["kind"], item["group_size"]) for item in summary["collectives"]}
    assert {("all_gather", 32), ("reduce_scatter", 32), ("all_reduce", 256)} <= sizes
    assert 0 < summary["exposed_communication_seconds"] <= summary["communication_seconds"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--ranks", "8"], "--ranks records one rank without the others: give --dry, and no --nproc"),
        (["--dry", "--ranks", "8", "--rank", "8"], "--rank must be from 0 to 7, got 8"),
        (["--dry", "--ranks", "0"], "--ranks must be from 1 to 1,000,000, got 0"),
        (["--rank", "1"], "--rank says which rank --ranks records: give both"),
        (
            ["--dry", "--ranks", "16", "--cluster", "dgx-h100"],
            "cluster dgx-h100 has 8 chips, and rank 15 needs one more",
        ),
        (["--nproc", "2", "--cluster", "dgx"], "no cluster or node is named 'dgx'"),
        (["--nproc", "0"], "--nproc must be between 1 and 64, got 0"),
        (["--nproc", "2", "--json"], "leave out --json"),
    ],
)
def test_contradicting_options_are_refused(bringup_run: Run, tmp_path: Path, options: list[str], problem: str) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit(9)")
    done = bringup_run(*options, "train.py")
    assert done.returncode == 2 and problem in done.stderr and done.stderr.count("\n") == 1


def test_variables_of_nccl_are_said_to_have_no_effect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bringup.device.cuda_distributed import _say_unused

    monkeypatch.setenv("NCCL_ALGO", "Ring")
    _say_unused.__wrapped__()
    assert "NCCL_ALGO has no effect: gloo computes collectives" in capsys.readouterr().err


def test_pending_collectives_are_on_the_chip_in_programs_that_say_cuda(bringup_run: Run, tmp_path: Path) -> None:
    program = """
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

dist.init_process_group("nccl")
mesh = init_device_mesh("cuda", (2,))
model = parallelize_module(torch.nn.Linear(8, 4).to("cuda"), mesh, RowwiseParallel(output_layouts=Shard(0)))
model(torch.ones(4, 4, device="cuda")).sum().backward()
"""
    (tmp_path / "train.py").write_text(program)
    done = bringup_run("--cuda", "--dry", "--ranks", "2", "train.py")
    assert done.returncode == 0, done.stderr[-3000:]
