"""Several ranks on one clock: pipelines whose bubbles are known, recorded by the command line."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bringup.errors import BringupError
from bringup.machine.files import load_chip, load_host
from bringup.pricing.collective import CONTENDED
from bringup.recording.trace import Trace
from bringup.report.prediction import read_trace
from bringup.timeline.replay import Timeline, replay
from bringup.timeline.together import exchanges, together

Run = Callable[..., subprocess.CompletedProcess[str]]
PIPELINE = """
import torch
import torch.distributed as dist

dist.init_process_group()
rank, ranks = dist.get_rank(), dist.get_world_size()
x, weight = (torch.ones(8192, 8192, device="chip", dtype=torch.bfloat16) for _ in range(2))
parameter = torch.nn.Parameter(torch.ones(8, device="chip"))
optimizer = torch.optim.SGD([parameter], lr=0.1)
parameter.grad = torch.ones_like(parameter)
for _ in range(3):
    for _ in range(4):
        if rank > 0:
            dist.recv(x[:1], rank - 1)
        y = x @ weight
        if rank < ranks - 1:
            dist.send(y[:1], rank + 1)
    dist.all_reduce(parameter.grad)
    optimizer.step()
"""


def test_stages_of_a_pipeline_wait_for_each_other(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PIPELINE)
    arguments = ("--dry", "--chip", "h100-sxm", "--ranks", "2", "--stages", "all", "--out", "out", "train.py")
    done = bringup_run("--max-step", "1ns", *arguments)
    assert done.returncode == 3, done.stderr[-3000:]
    assert "bringup: rank 0: a step takes" in done.stderr and "bringup: rank 1: a step takes" in done.stderr
    assert "2 ranks of h100-sxm on dgx-h100, 2 stages: a step takes" in done.stdout
    whole = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [stage["rank"] for stage in whole["stages"]] == [0, 1]
    # Four microbatches of two stages take five times one: each stage waits for a fifth of the step.
    for stage in whole["stages"]:
        assert stage["step_seconds"] == pytest.approx(whole["step_seconds"], rel=0.02)
        assert stage["bubble_seconds"] / stage["step_seconds"] == pytest.approx(1 / 5, abs=0.03)
    assert (tmp_path / "out" / "ranks.pftrace.gz").stat().st_size > 1000
    alone = json.loads((tmp_path / "out" / "rank1" / "summary.json").read_text())
    assert alone["bubble_seconds"] == pytest.approx(whole["stages"][1]["bubble_seconds"])


def test_stages_need_a_number_of_ranks(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PIPELINE)
    done = bringup_run("--dry", "--stages", "all", "train.py")
    assert done.returncode == 2
    assert "--stages records ranks of --ranks: give their number, and --dry" in done.stderr


@pytest.mark.slow
def test_ranks_that_wait_in_a_circle_are_named(
    bringup_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    circle = "dist.recv(x[:1], (1, 0, 1)[rank])\ndist.send(x[:1], (1, 0, 0)[rank])\n"
    (tmp_path / "train.py").write_text(PIPELINE + circle + "for _ in range(20):\n    dist.all_reduce(x[:1])\n")
    # Rank 2 waits, too, but nobody waits for it.
    done = bringup_run("--dry", "--chip", "h100-sxm", "--ranks", "3", "--stages", "all", "--out", "out", "train.py")
    assert done.returncode == 2, done.stderr
    line = PIPELINE.count("\n") + 1
    problem = (
        "these ranks wait for each other, and would hang on real chips: "
        f"rank 0 in train.py:{line}; rank 1 in train.py:{line}"
    )
    assert done.stderr.splitlines()[-1] == f"bringup: {problem}"
    # It is found after a few replays, and not after as many rounds as there are exchanges.
    traces = {rank: read_trace(tmp_path / "out" / f"rank{rank}") for rank in (0, 1, 2)}
    assert len(exchanges(traces)) > 45
    replays: list[int] = []

    def counted(trace: Trace, *arguments: Any, **options: Any) -> Timeline:
        replays.append(len(trace))
        return replay(trace, *arguments, **options)

    monkeypatch.setattr("bringup.timeline.together.replay", counted)
    with pytest.raises(BringupError, match=problem):
        together(traces, load_chip("h100-sxm"), load_host())
    assert len(replays) < 3 + 2 * 3 * 12  # each alone, then two per rank and round


def test_contention_does_not_stretch_the_wait_for_another_rank(bringup_run: Run, tmp_path: Path) -> None:
    loop = """
side = torch.chip.Stream()
for _ in range(3):
    dist.send(x[:1], 1) if rank == 0 else dist.recv(x[:1], 0)
    with torch.chip.stream(side):
        for _ in range(6 - 6 * rank):
            x @ weight
    for _ in range(4 * rank):
        x @ weight
    dist.all_reduce(x)
    optimizer.step()
"""
    (tmp_path / "train.py").write_text(PIPELINE.split("for _ in range(3)")[0] + loop)
    done = bringup_run("--dry", "--chip", "h100-sxm", "--ranks", "2", "--stages", "all", "--out", "out", "train.py")
    assert done.returncode == 0, done.stderr
    traces = {rank: read_trace(tmp_path / "out" / f"rank{rank}") for rank in (0, 1)}
    chip = load_chip("h100-sxm")
    timelines = together(traces, chip, load_host())
    reductions = [item for item in exchanges(traces) if item.sender is None]
    assert len(reductions) == 3
    for exchange in reductions:
        first, second = exchange.rows[0], exchange.rows[1]
        begin = timelines[1].start[second]
        assert begin - timelines[0].start[first] > 1e-3  # the first rank waits, while a kernel runs beside it
        price = timelines[1].end[second] - begin
        assert timelines[0].end[first] - begin == pytest.approx(price * CONTENDED, rel=1e-6)
