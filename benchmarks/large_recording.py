"""The report of a recording of a million launches: CPU seconds of each of its files, and their bytes.

``python benchmarks/large_recording.py [--launches 1000000] [--unlike] [--out DIR]`` trains a small transformer in a dry
run. With --unlike, each step has another length, so no two steps are alike.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

import bringup
from bringup.report import html, perfetto, summary_json


def train(launches: int, *, unlike: bool) -> bringup.Trace:
    """Record steps of a transformer, without computing anything, until there are as many launches."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
    with bringup.dry():
        model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).to("chip")
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        step = 0
        with bringup.record() as trace:
            while torch.ops.bringup.row_count() < 2 * launches:  # half of the rows are allocations
                x = torch.ones(4, 16 + (step if unlike else 0), 64, device="chip")
                model(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                step += 1
    return trace


def measured(name: str, work: Callable[[], object]) -> object:
    """Print the CPU seconds that some work takes, and return its result."""
    begin = time.process_time()
    result = work()
    print(f"{name:<10} {time.process_time() - begin:5.1f} s of CPU")
    return result


def main() -> None:
    """Record, and write each file of a report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=1_000_000)
    parser.add_argument("--unlike", action="store_true", help="no two steps are alike")
    parser.add_argument("--out", type=Path, help="keep the files there")
    options = parser.parse_args()
    bringup.use("t4")
    trace = measured("recording", lambda: train(options.launches, unlike=options.unlike))
    assert isinstance(trace, bringup.Trace)
    print(f"{trace.launches:,} launches, {len(trace):,} rows, {len(trace.signature_data):,} kinds of launch")
    prediction = measured("prediction", lambda: bringup.price(trace, "t4"))
    assert isinstance(prediction, bringup.Prediction)
    timeline, summary = prediction.timeline, measured("summary", lambda: prediction.summary)
    with TemporaryDirectory() as place:
        folder = options.out or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        page, trace_file, slices = folder / "report.html", folder / "trace.npz", folder / "timeline.pftrace.gz"
        measured("page", lambda: page.write_text(html.page(timeline, summary), encoding="utf-8"))
        measured("trace", lambda: trace.save(trace_file))
        measured("timeline", lambda: perfetto.write(slices, timeline, ""))
        measured("summary", lambda: summary_json.as_json(summary))
        for file in (page, trace_file, slices):
            print(f"{file.name:<20} {file.stat().st_size:>12,} bytes")


if __name__ == "__main__":
    main()
