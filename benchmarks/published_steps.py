"""Training steps on many chips against published ones: record one rank dry, price it, print the error.

    python benchmarks/published_steps.py DIR [ROW ...]

DIR keeps the recordings, so that a second call only prices them. The programs are in benchmarks/steps. No number here
or in the files of chips and nodes was chosen for these rows. docs/validation.md has the table.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import bringup
from bringup.report.prediction import read_trace

HERE = Path(__file__).parent
TITAN = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md"
ASYNC = "torchtitan, benchmarks/asyncTP_llama3_h100_2025-06_torchtitan.md"
MEGATRON = "arXiv 2205.05198, table 5"
LAYERS = {"8b": 32, "70b": 80, "22b": 48}


@dataclass(frozen=True)
class Row:
    """A published step.

    Attributes:
        name: the row's name on the command line.
        chip, cluster, ranks: the machine.
        program: script and arguments.
        published: tokens per second and chip, or seconds of a step.
        tokens: tokens of a step per chip; 0 if seconds are published.
        memory_gib: published as reserved; 0 if it is not.
        source: where it is published.
        microbatches, stages, chunks: of a pipeline, whose stages are all as long as the recorded one.
        layers: two numbers of layers to record, and the job's. The two results are continued to it in a straight line.
    """

    name: str
    chip: str
    cluster: str
    ranks: int
    program: str
    published: float
    tokens: float
    memory_gib: float
    source: str
    microbatches: int = 1
    stages: int = 1
    chunks: int = 1
    layers: tuple[int, int, int] | None = None


def _titan(
    name: str, ranks: int, options: str, published: float, tokens: float, gib: float, source: str = TITAN
) -> Row:
    cluster = f"grand-tetonx{ranks // 8}" if ranks > 8 else "grand-teton"
    layers = (2, 4, LAYERS[options.split()[0]]) if "--compile" in options else None
    program = f"llama.py {options}"
    return Row(name, "h100-sxm-96-500w", cluster, ranks, program, published, tokens, gib, source, layers=layers)


def _megatron(
    name: str, options: str, stages: int, chunks: int, microbatches: int, full: float, selective: float
) -> list[Row]:
    cluster = f"dgx-a100x{stages}" if stages > 1 else "dgx-a100"
    schedule = "" if chunks == 1 else f" --schedule Interleaved1F1B --chunks {chunks}"
    plain = f"megatron.py {options}" + (f" --pipeline {stages}{schedule}" if stages > 1 else "")
    rows = []
    for suffix, more, published in (
        ("full", "--recompute full", full),
        ("selective", "--recompute selective --sequence", selective),
    ):
        rows.append(
            Row(
                f"{name}-{suffix}",
                "a100-sxm-80",
                cluster,
                8 * stages,
                f"{plain} {more}",
                published,
                0,
                0,
                MEGATRON,
                microbatches,
                stages,
                chunks,
                (2, 6, LAYERS[name]) if stages == 1 else None,
            )
        )
    return rows


_8B = "8b --batch 2 --checkpoint selective"
ROWS = [
    _titan("8b-8", 8, _8B, 5762, 2 * 8192, 82.4),
    _titan("8b-8-compiled", 8, f"{_8B} --compile", 6667, 2 * 8192, 77.0),
    _titan("8b-8-float8", 8, f"{_8B} --compile --float8", 8532, 2 * 8192, 76.8),
    _titan("8b-128", 128, _8B, 5605, 2 * 8192, 67.0),
    _titan("8b-128-compiled", 128, f"{_8B} --compile", 6514, 2 * 8192, 62.0),
    _titan("8b-128-float8", 128, f"{_8B} --compile --float8", 8380, 2 * 8192, 61.8),
    _titan("8b-64-tp8", 64, "8b --batch 12 --tensor 8 --checkpoint selective --compile", 4378, 1.5 * 8192, 0, ASYNC),
    _titan("70b-256-tp8", 256, "70b --batch 16 --tensor 8 --checkpoint full --compile", 597.3, 2 * 8192, 0, ASYNC),
    _titan(
        "70b-256-tp8-float8",
        256,
        "70b --batch 16 --tensor 8 --checkpoint full --compile --float8",
        829,
        2 * 8192,
        71.9,
    ),
    *_megatron("22b", "22b --microbatch 4", 1, 1, 1, 1.42, 1.10),
    *_megatron("175b", "175b", 8, 3, 64, 18.13, 13.75),
    *_megatron("530b", "530b", 35, 3, 280, 49.05, 37.83),
    *_megatron("1t", "1t", 64, 1, 512, 94.42, 71.49),
]


def recorded(row: Row, folder: Path, extra: str = "") -> Path:
    """Record a row's program unless DIR has it; return the report's folder."""
    out = folder / (row.name + extra.replace(" ", ""))
    if not (out / "trace.npz").exists():
        script, *options = f"{row.program} {extra}".split()
        command = [sys.executable, "-m", "bringup", "run", "--dry", "--ranks", str(row.ranks), "--chip", row.chip]
        command += ["--rank", str(row.stages // 2 * 8)]  # of a stage in the middle
        command += ["--cluster", row.cluster, "--out", str(out), str(HERE / "steps" / script), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def predicted(row: Row, folder: Path) -> tuple[float, float]:
    """Return seconds of a step, and the peak of memory in GiB."""
    if row.layers:  # all layers are alike
        shown = row.layers[:2]
        few, more = (
            bringup.price(read_trace(recorded(row, folder, f"--layers {n}")), row.chip, cluster=row.cluster)
            for n in shown
        )
        pairs = ((few.step_seconds, more.step_seconds), (few.peak_bytes / 2**30, more.peak_bytes / 2**30))
        seconds, gib = (float(np.polynomial.Polynomial.fit(shown, pair, 1)(row.layers[2])) for pair in pairs)
        return seconds, gib
    if row.stages == 1:
        priced = bringup.price(read_trace(recorded(row, folder)), row.chip, cluster=row.cluster)
        return priced.step_seconds, priced.peak_bytes / 2**30
    # Two short steps of one stage: what a microbatch adds, and the rest. The pipeline fills and drains once per chunk.
    few, more = (bringup.price(read_trace(recorded(row, folder, f"--shown {n}")), row.chip) for n in (2, 4))
    each = (more.step_seconds - few.step_seconds) / 2
    rest = few.step_seconds - 2 * each
    return rest + each * (row.microbatches + (row.stages - 1) / row.chunks), more.peak_bytes / 2**30


def main() -> None:
    """Print one line per row."""
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    print("| row | published | predicted | error | memory | error | source |")
    print("|---|---|---|---|---|---|---|")
    for row in ROWS:
        if names and row.name not in names:
            continue
        seconds, gib = predicted(row, folder)
        value = row.tokens / seconds if row.tokens else seconds
        unit = "tokens/s" if row.tokens else "s"
        memory = " | "
        if row.memory_gib:
            memory = f"{gib:.1f} of {row.memory_gib} GiB | {100 * (gib / row.memory_gib - 1):+.0f} %"
        name = row.name + (f" ({row.layers[0]} and {row.layers[1]} layers recorded)" if row.layers else "")
        print(
            f"| {name} | {row.published:,g} {unit} | {value:,.4g} | {100 * (value / row.published - 1):+.1f} % "
            f"| {memory} | {row.source} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
