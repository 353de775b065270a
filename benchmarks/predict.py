"""What recording costs, and how fast a recording is priced, replayed and compared. Medians; one process."""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from models import BertBase, ResNet50
from torch.nn import functional
from train_step import gpt

import bringup
from bringup import pricing
from bringup.analyse.compare import compare
from bringup.cost.signature import Signature
from bringup.recording.recording import record
from bringup.recording.trace import Trace
from bringup.timeline import replay as timeline


def peak_kib(*, reset: bool = False) -> int:
    """Return the peak of resident memory, counted from now on if asked."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def once(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def recorder_overhead(rounds: int, steps: int) -> float:
    """Return recording on over recording off, for steps of the small GPT; the order alternates."""
    step = gpt("chip")

    def run() -> None:
        for _ in range(steps):
            loss = step()
        loss.item()

    def recorded() -> float:
        with record():
            return once(run)

    once(run), recorded()
    ratios = []
    for turn in range(rounds):
        if turn % 2:
            on, off = recorded(), once(run)
        else:
            off, on = once(run), recorded()
        ratios.append(on / off)
    return statistics.median(ratios)


def resnet50() -> Trace:
    model = ResNet50().to("chip")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    with record() as trace:
        for _ in range(2):
            x, y = torch.randn(2, 3, 224, 224).to("chip"), torch.randint(1000, (2,)).to("chip")
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return trace


def bert() -> Trace:
    torch.backends.mha.set_fastpath_enabled(False)  # one launch per operator, as in training
    model = BertBase().to("chip").eval()
    with record() as trace, torch.no_grad():
        model(torch.randint(30522, (1, 512)).to("chip"))
    return trace


def cold_price(trace: Trace, chip: str) -> float:
    """Seconds from a loaded trace to a price of every signature; nothing is kept from before."""
    described = bringup.load_chip(chip)

    def price() -> None:
        signatures = [Signature.parse(item) for item in trace.signature_data]
        pricing.price_table(pricing.WorkTable.from_signatures(signatures), signatures, described)

    return statistics.median(once(price) for _ in range(9))


def repeated(trace: Trace, rows: int) -> Trace:
    """Return a trace of at least so many launches: the given one, again and again."""
    times = -(-rows // trace.launches)
    columns = {name: np.tile(column, times) for name, column in trace.columns.items()}
    offsets = np.zeros(len(columns["kind"]) + 1, np.int64)
    return Trace(columns, np.zeros(0, np.int64), offsets, trace.signature_data, trace.lines, trace.modules, trace.about)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--launches", type=int, default=1_000_000)
    asked = options.parse_args()
    bringup.use("edge8")
    torch.manual_seed(0)
    ratio = recorder_overhead(asked.rounds, 10)
    print(f"recording on / off, GPT training step      {ratio:.3f}   (bar 1.10)")

    traces = {"ResNet-50 training step": resnet50(), "BERT-base, 512 tokens": bert()}
    torch.chip.synchronize()  # the worker computes the programs still
    for name, trace in traces.items():
        kinds = len(trace.signature_data)
        took = cold_price(trace, "t4")
        print(
            f"cold price of {name:28s} {took * 1e3:6.1f} ms   {trace.launches:,} launches, {kinds} kinds   (bar 50 ms)"
        )

    trace = next(iter(traces.values()))
    host, chip = bringup.load_host(), bringup.load_chip("t4")
    long = repeated(trace, asked.launches)
    prices = pricing.price_table(long.work, long.signatures, chip)
    before = peak_kib(reset=True)
    took = statistics.median(once(lambda: timeline.replay(long, chip, host, prices=prices)) for _ in range(5))
    grown = (peak_kib() - before) / 2**20
    print(f"timeline of {long.launches:,} launches            {took:6.2f} s    + {grown:.2f} GiB   (bars 1 s, 1 GiB)")

    chips = [bringup.load_chip(name) for name in bringup.available_chips()[:30]]
    one = statistics.median(once(lambda: compare(repeated(trace, 1), chips[:1], host)) for _ in range(9))
    thirty = statistics.median(once(lambda: compare(repeated(trace, 1), chips, host)) for _ in range(9))
    print(f"compare on 30 chips / on one               {thirty / one:6.1f}   (bar 30)")


if __name__ == "__main__":
    main()
