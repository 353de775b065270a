"""``bringup run --dry --ranks N --stages all``: one rank of each stage of a pipeline, on one clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bringup.analyse.advice import advise
from bringup.analyse.summarize import summarize
from bringup.errors import BringupError
from bringup.files import write_text
from bringup.machine.files import load_chip
from bringup.report import perfetto, terminal, writer
from bringup.report.lines import tokens_text
from bringup.report.prediction import Prediction, read_trace
from bringup.text import duration, quantity, size
from bringup.timeline.together import peers, together

if TYPE_CHECKING:
    from bringup.analyse.summary import Summary
    from bringup.machine.schema import Host
    from bringup.recording.trace import Trace
    from bringup.timeline.replay import HostClock

STAGE = "BRINGUP_STAGE"  # the rank that a process of `--stages` records


def stage_here() -> int | None:
    """Return the rank that this process records for `--stages`, if it does."""
    return int(os.environ[STAGE]) if STAGE in os.environ else None


def run_stages(first: int, ranks: int, out: str, chip: str, host: Host, host_clock: HostClock) -> dict[int, Summary]:
    """Record a rank and all with which it exchanges tensors, one after the other; return their summaries.

    Args:
        first: the rank to begin with.
        ranks: the number of ranks, most of which are not recorded.
        out: the report's directory.
        chip: the chip to predict for.
        host: its host.
        host_clock: ``modelled`` or ``measured``, as in `replay`.
    """
    from bringup.device.pretended_stages import SHAPES  # imports torch

    os.makedirs(out, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bringup-stages-") as shapes:
        traces = _record(first, ranks, out, {**os.environ, SHAPES: shapes})
    timelines = together(traces, load_chip(chip), host, host_clock=host_clock)
    summaries: dict[int, Summary] = {}
    for rank, timeline in sorted(timelines.items()):
        prediction = Prediction(timeline.trace, timeline, advise(timeline, summarize(timeline)))
        writer.write(prediction, Path(out, f"rank{rank}").absolute())
        summaries[rank] = prediction.summary
    perfetto.write_ranks(Path(out, "ranks.pftrace.gz"), timelines)
    whole = summed_up(summaries, ranks)
    write_text(str(Path(out, "summary.json")), json.dumps(whole, indent=2, sort_keys=True) + "\n")
    _print(summaries, whole, out)
    return summaries


def _record(first: int, ranks: int, out: str, environment: dict[str, str]) -> dict[int, Trace]:
    """Record a rank, those with which it exchanges tensors, and so on.

    Raises:
        BringupError: one of them failed.
    """
    traces: dict[int, Trace] = {}
    waiting = [first]
    while waiting:
        rank = waiting.pop(0)
        print(f"bringup: recording rank {rank} of {ranks}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "bringup", *sys.argv[1:]]
        done = subprocess.run(command, env={**environment, STAGE: str(rank)}, check=False)
        if done.returncode:
            raise BringupError(f"rank {rank} ended with exit code {done.returncode}: no other rank is recorded")
        traces[rank] = read_trace(Path(out, f"rank{rank}"))
        waiting += sorted(other for other in peers(traces[rank], rank) if other not in {*traces, *waiting})
    return traces


def summed_up(summaries: dict[int, Summary], ranks: int) -> dict[str, Any]:
    """Return the summary of the whole: each recorded rank stands for an equal number of ranks."""
    if not summaries:
        raise BringupError("no rank was recorded")
    slowest = max(summaries.values(), key=lambda summary: summary.step_seconds)
    alike = ranks / len(summaries)
    energy = [summary.energy_joules for summary in summaries.values()]
    tokens = alike * sum((summary.tokens or 0) / summary.sharing_ranks for summary in summaries.values())
    rate = tokens / slowest.step_seconds if tokens and slowest.step_seconds else None
    cost = [summary.cost_usd for summary in summaries.values()]
    times = ("step_seconds", "communication_seconds", "exposed_communication_seconds", "bubble_seconds")
    return {
        "ranks": ranks,
        "cluster": slowest.cluster,
        "chip": slowest.chip,
        **{name: getattr(slowest, name) for name in times},
        "bubble_share": sum(item.bubble_seconds for item in summaries.values())
        / sum(item.step_seconds for item in summaries.values() if item.step_seconds)
        if slowest.step_seconds
        else 0.0,
        "peak_bytes": max(summary.peak_bytes for summary in summaries.values()),
        "fits": all(summary.fits for summary in summaries.values()),
        "energy_joules": None if None in energy else alike * sum(value or 0.0 for value in energy),
        "cost_usd": None if None in cost else alike * sum(value or 0.0 for value in cost),
        "cluster_tokens_per_second": rate,
        "tokens_per_second": rate and rate / ranks,
        "collectives": [vars(item) for item in slowest.collectives],
        "stages": [
            {
                "rank": rank,
                **{name: getattr(summary, name) for name in times},
                "peak_bytes": summary.peak_bytes,
                "launches": summary.launches,
                "mfu": summary.mfu,
            }
            for rank, summary in summaries.items()
        ],
    }


def _print(summaries: dict[int, Summary], whole: dict[str, Any], out: str) -> None:
    console = terminal.console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("rank", "step", "bubble", "communication", "exposed", "memory", "launches", "MFU"):
        table.add_column(title, justify="right", no_wrap=True)
    for rank, summary in summaries.items():
        times = (summary.bubble_seconds, summary.communication_seconds, summary.exposed_communication_seconds)
        mfu = "-" if summary.mfu is None else f"{summary.mfu:.0%}"
        table.add_row(
            str(rank),
            duration(summary.step_seconds),
            *map(duration, times),
            size(summary.peak_bytes),
            f"{summary.launches:,}",
            mfu,
        )
    console.print()
    console.print(table)
    stages = quantity(len(summaries), "stage")
    step, bubble = duration(whole["step_seconds"]), f"{whole['bubble_share']:.0%}"
    what = f"{quantity(whole['ranks'], 'rank')} of {whole['chip']} on {whole['cluster'] or 'one chip'}, {stages}"
    sentence = f"{what}: a step takes {step}, of which bubbles are {bubble}"
    console.print(terminal.escaped(sentence), soft_wrap=True)
    if whole["tokens_per_second"]:
        console.print(tokens_text(whole["tokens_per_second"], whole["cluster_tokens_per_second"]))
    paths = ", ".join(str(Path(out, name)) for name in ("summary.json", "ranks.pftrace.gz"))
    console.print(terminal.escaped(f"report: {paths} and one per stage"), soft_wrap=True)
