"""``bringup run --nproc``: ranks, the summary of the whole, exit codes, and the watch for deadlocks."""

import json
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bringup.cli.ranks import _port, deadlock
from bringup.errors import BringupError
from bringup.recording.rows import IN_BACKWARD, LAUNCH
from bringup.report.prediction import read_trace
from tests.conftest import slow

Run = Callable[..., subprocess.CompletedProcess[str]]
PROGRAM = """
import os, sys
import torch
import torch.distributed as dist
from torch import nn

dist.init_process_group()
rank, device = dist.get_rank(), torch.device("chip", int(os.environ["LOCAL_RANK"]))
assert dist.get_world_size() == int(os.environ["LOCAL_WORLD_SIZE"]) == 2
torch.chip.set_device(device)
x = torch.ones(4, device=device)
"""
TRAIN = """
torch.manual_seed(0)
model = nn.parallel.DistributedDataParallel(nn.Linear(64, 8).to(device))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.randn(32, 64, device=device)).sum().backward()
    optimizer.step()
print(f"rank {rank} of {sys.argv[1]}")  # in one piece: the ranks share the output
dist.destroy_process_group()
"""


def test_two_ranks_report_each_and_as_a_whole(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM + TRAIN)
    done = bringup_run("--chip", "h100-sxm", "--nproc", "2", "--out", "out", "train.py", "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 0 of two" in done.stdout and "rank 1 of two" in done.stdout
    assert "2 ranks of h100-sxm on dgx-h100: a step takes" in done.stdout
    whole = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (whole["ranks"], whole["exit_code"], whole["cluster"]) == (2, 0, "dgx-h100")
    assert len(whole["by_rank"]) == 2 and whole["communication_seconds"] > 0
    for rank in range(2):
        summary = json.loads((tmp_path / "out" / f"rank{rank}" / "summary.json").read_text())
        assert summary["ranks"] == 2 and summary["collectives"][0]["kind"] == "all_reduce"


def test_limits_are_those_of_every_rank(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM + TRAIN)
    limits = ("--max-step", "1ns", "--max-memory", "1B")
    done = bringup_run("--chip", "h100-sxm", "--nproc", "2", *limits, "--out", "out", "train.py", "two")
    assert done.returncode == 3, done.stderr[-3000:]
    for rank in range(2):
        assert f"bringup: rank {rank}: a step takes" in done.stderr
    assert "which exceeds --max-step by" in done.stderr and "are ended, too" not in done.stderr
    assert done.stderr.count("which exceeds --max-memory by") == 2
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["exit_code"] == 3


@pytest.mark.slow
def test_findings_are_those_of_every_rank(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM + "print(torch.empty(4, device=device).sum().item())\n")
    done = bringup_run("--chip", "edge8", "--nproc", "2", "--sanitize=init", "--out", "out", "train.py")
    assert done.returncode == 1, done.stderr[-3000:]
    assert (done.stdout + done.stderr).count("never written") >= 2


def test_several_chips_are_refused(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    done = bringup_run("--chip", "h100-sxm,t4", "--nproc", "2", "train.py")
    assert done.returncode == 2
    assert done.stderr == "bringup: --nproc and --stages take one chip, got h100-sxm,t4\n"


PIPELINE = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

dist.init_process_group()
rank, ranks = dist.get_rank(), dist.get_world_size()
cpu = dist.new_group(backend="gloo")


def step(device, group, schedule):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(2 * ranks)]
    x, target = torch.randn(8 * ranks, 32), torch.randn(8 * ranks, 32)
    if schedule is ScheduleInterleaved1F1B:
        parts = [layers[rank].to(device), layers[rank + ranks].to(device)]
    else:
        parts = [nn.Sequential(*layers[2 * rank : 2 * rank + 2]).to(device)]
    count = len(parts) * ranks
    stages = [PipelineStage(part, rank + i * ranks, count, device, group=group) for i, part in enumerate(parts)]
    pipeline = schedule(stages if len(stages) > 1 else stages[0], 2 * ranks, loss_fn=nn.functional.mse_loss)
    losses = [] if rank == ranks - 1 else None
    first = [x.to(device)] if rank == 0 else []
    pipeline.step(*first, target=None if losses is None else target.to(device), losses=losses)
    gradients = [parameter.grad.cpu() for part in parts for parameter in part.parameters()]
    return [loss.item() for loss in losses or []], gradients


for schedule in (ScheduleGPipe, Schedule1F1B, ScheduleInterleaved1F1B):
    losses, gradients = step(torch.device("chip", int(os.environ["LOCAL_RANK"])), dist.group.WORLD, schedule)
    expected, expected_gradients = step(torch.device("cpu"), cpu, schedule)
    assert losses == expected, schedule
    assert all(map(torch.equal, gradients, expected_gradients)), schedule
dist.barrier()
print(f"rank {rank} is equal")
"""


@pytest.mark.slow
def test_pipelines_of_four_ranks_compute_what_the_cpu_does(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PIPELINE)
    done = bringup_run("--nproc", "4", "--out", "out", "train.py")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [f"rank {rank} is equal" in done.stdout for rank in range(4)] == [True] * 4


TENSOR_PARALLEL = """
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

dist.init_process_group()
mesh = init_device_mesh("chip", (dist.get_world_size(),))


def train(compile):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).to("chip")
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})

    def forward(x):
        noise = nn.functional.dropout(torch.ones(64), 0.5).to("chip")  # drawn by the host
        return model(nn.functional.dropout(x, 0.5) * noise).sin()

    def loss_of(x):
        return checkpoint(forward, x, use_reentrant=False).square().mean()

    loss_of = torch.compile(loss_of, fullgraph=True) if compile else loss_of
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(torch.ones(32, 64, device="chip"))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


eager = train(False)
torch.testing.assert_close(train(True), eager)


def summed(x):
    y = x * 2
    dist.all_reduce(y)
    return y + 1


x = torch.full((8,), 1.0 + dist.get_rank(), device="chip")
torch.testing.assert_close(torch.compile(summed, fullgraph=True)(x).cpu(), summed(x).cpu())
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_compiled_tensor_parallel_trains_as_without_compilation(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TENSOR_PARALLEL)
    done = bringup_run("--chip", "h100-sxm", "--nproc", "2", "--out", "out", "train.py")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "launched one by one" not in done.stderr
    signatures = read_trace(tmp_path / "out" / "rank1").signatures
    assert any(item.op.startswith("fused::") for item in signatures), "operators between collectives are fused"
    # On many ranks, too, and the collectives of the compiled graph have the program's lines.
    (tmp_path / "train.py").write_text(TENSOR_PARALLEL.replace("eager = train(False)", "eager = train(True)"))
    done = bringup_run("--dry", "--chip", "h100-sxm", "--ranks", "16", "--out", "dry", "train.py")
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "dry" / "summary.json").read_text())
    assert {item["file"] for item in summary["collectives"]} == {"train.py"}
    phases = read_trace(tmp_path / "dry").columns
    fused = [i for i, item in enumerate(read_trace(tmp_path / "dry").signatures) if item.op.startswith("fused::")]
    in_backward = phases["phase"][np.isin(phases["signature"], fused) & (phases["kind"] == LAUNCH)] == IN_BACKWARD
    assert in_backward.any() and not in_backward.all()


CONTEXT_PARALLEL = """
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._attention import context_parallel_unshard
from torch.nn import functional

dist.init_process_group()
mesh = init_device_mesh("chip", (dist.get_world_size(),))
torch.manual_seed(0)
whole = [torch.randn(2, 4, 64, 16) for _ in range(3)]
parts = [tensor.to("chip") for tensor in whole]
with context_parallel(mesh, buffers=parts, buffer_seq_dims=[2] * 3, no_restore_buffers=set(parts)):
    for part in parts:
        part.requires_grad_()
    result = functional.scaled_dot_product_attention(*parts, is_causal=True)
    result.square().sum().backward()
assert result.shape[2] == 64 // dist.get_world_size()
found = context_parallel_unshard(mesh, [result.detach(), *(part.grad for part in parts)], [2] * 4)
if "fake" not in dist.get_backend():
    for tensor in whole:
        tensor.requires_grad_()
    expected = functional.scaled_dot_product_attention(*whole, is_causal=True)
    expected.square().sum().backward()
    for one, other in zip(found, [expected.detach(), *(tensor.grad for tensor in whole)], strict=True):
        torch.testing.assert_close(one.cpu(), other)
print(f"rank {dist.get_rank()} is equal")
"""


@pytest.mark.parametrize("ranks", [2, *slow(4)])
def test_context_parallel_attention_equals_that_of_one_rank(bringup_run: Run, tmp_path: Path, ranks: int) -> None:
    (tmp_path / "train.py").write_text(CONTEXT_PARALLEL)
    done = bringup_run("--nproc", str(ranks), "--out", "out", "train.py")
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(f"rank {rank} is equal" in done.stdout for rank in range(ranks))


STEPS = Path(__file__).parents[2] / "benchmarks" / "steps"
JOBS = {
    "llama": "llama.py tiny --length 32 --tensor 2 --checkpoint selective",
    "llama-context": "llama.py tiny --length 32 --context 2",
    "experts": "moe.py tiny --length 16 --batch 2 --experts-over 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("job", ["llama", "experts"])
def test_published_structures_train_as_with_gloo(bringup_run: Run, job: str, ranks: int) -> None:
    script, *options = JOBS[job].split()
    losses: list[dict[str, list[float]]] = []
    for device in ("chip", "cpu"):
        done = bringup_run("--nproc", str(ranks), "--out", "out", str(STEPS / script), *options, "--device", device)
        assert done.returncode == 0, done.stderr[-3000:]
        losses.append({})
        for rank, loss in re.findall(r"rank (\d) loss ([\d.]+)", done.stdout):  # a pipe may mix the ends of lines
            losses[-1].setdefault(rank, []).append(float(loss))
    chip, cpu = losses
    assert chip.keys() == cpu.keys() and {len(steps) for steps in chip.values()} == {2} and len(chip) == ranks
    assert {rank: steps[0] for rank, steps in chip.items()} == {rank: steps[0] for rank, steps in cpu.items()}
    # Gradients of the experts are not equal in every bit of bfloat16.
    near = 1e-4 if job == "experts" else 0
    assert {rank: steps[1] for rank, steps in chip.items()} == {
        rank: pytest.approx(steps[1], rel=near, abs=0) for rank, steps in cpu.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [256, 512])
@pytest.mark.parametrize("job", sorted(JOBS))
def test_published_structures_are_recorded_for_many_ranks(
    bringup_run: Run, tmp_path: Path, job: str, ranks: int
) -> None:
    script, *options = JOBS[job].split()
    cluster = ("--chip", "h100-sxm", "--cluster", f"dgx-h100x{ranks // 8}")
    done = bringup_run("--dry", "--ranks", str(ranks), *cluster, "--out", "out", str(STEPS / script), *options)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    kinds = {item["kind"] for item in summary["collectives"]}
    assert summary["ranks"] == ranks and {"all_gather", "reduce_scatter"} <= kinds
    assert ("all_to_all" in kinds) == (job != "llama")


@pytest.mark.parametrize(
    ("program", "code", "problem"),
    [
        (
            "y = torch.empty(8, device=device)\n"
            "dist.all_reduce(x) if rank == 0 else dist.all_gather_into_tensor(y, x)\nx.tolist()",
            1,
            "rank 0 of it calls all_reduce of 16 bytes in float32 at train.py:13, "
            "rank 1 calls all_gather of 32 bytes in float32 at train.py:13",
        ),
        (
            "dist.all_reduce(torch.ones(4 + rank, device=device))\ndist.barrier()",
            1,
            "rank 0 of it calls all_reduce of 16 bytes in float32 at train.py:12, "
            "rank 1 calls all_reduce of 20 bytes in float32 at train.py:12",
        ),
        (
            "dist.recv(x, 1 - rank)\nx.tolist()",
            1,
            "deadlock: rank 0 waits in recv of 16 bytes in float32 from rank 1 at train.py:12; "
            "rank 1 waits in recv of 16 bytes in float32 from rank 0 at train.py:12",
        ),
        (
            "if rank == 0:\n    dist.all_reduce(x)\n    x.tolist()",
            1,
            "deadlock: rank 0 waits in all_reduce of 16 bytes in float32 at train.py:13; rank 1 has ended",
        ),
        (
            "if rank == 1:\n    os._exit(7)\ndist.all_reduce(x)\nx.tolist()",
            7,
            "rank 1 ended with exit code 7, while rank 0 waited in all_reduce of 16 bytes in float32 at train.py:14",
        ),
    ],
    ids=["another collective", "another size", "both receive", "one has ended", "one dies"],
)
def test_ranks_that_cannot_go_on_are_named_with_lines(
    bringup_run: Run, tmp_path: Path, program: str, code: int, problem: str
) -> None:
    (tmp_path / "train.py").write_text(PROGRAM + program + "\n")
    done = bringup_run("--nproc", "2", "--out", "out", "train.py")
    assert problem in done.stderr, done.stderr[-3000:]
    assert done.returncode == code


def test_port_in_use_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(BringupError, match=f"MASTER_PORT {port} cannot be used .*: give another one, or unset it"):
            _port()
    assert _port() == port


def test_deadlock_groups_ranks_that_wait_alike() -> None:
    waits = {0: ("barrier at a.py:1",), 1: ("recv from rank 0 at a.py:2",), 2: ("barrier at a.py:1",), 3: ()}
    (sentence,) = deadlock(waits, {0, 1, 2})
    assert sentence.startswith(
        "deadlock: ranks 0, 2 wait in barrier at a.py:1; rank 1 waits in recv from rank 0 at a.py:2; rank 3 has ended: "
    )
