"""CPU time and memory of plans: of a GPT-2-size training step, and of 100,000 launches. Bars: 1 s; 5 s and 1 GiB."""

import argparse
import time

from placed_programs import recorded
from predict import peak_kib

import bringup
from bringup.recording.trace import Trace


def planned(trace: Trace, chip: str) -> tuple[int, float, float]:
    """Return the nodes of a plan, its CPU seconds, and the MiB by which it raises the peak of resident memory."""
    _ = trace.signatures, trace.work, trace.steps  # a recording is priced before
    peak_kib(reset=True)
    before, start = peak_kib(), time.process_time()
    plan = bringup.place(trace, chip)
    spent = time.process_time() - start
    return sum(entry.calls for entry in plan.entries), spent, (peak_kib() - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chip", default="h100-sxm")
    parser.add_argument("--inside", type=int, default=70, help="training steps in one step of the large recording")
    options = parser.parse_args()
    bringup.use(options.chip)
    for name, inside, bar in (("gpt", 1, 1.0), ("gpt, many steps as one", options.inside, 5.0)):
        nodes, spent, mib = planned(recorded("gpt", 2, inside), options.chip)
        over = "  OVER" if spent > bar or mib > 1024 else ""
        print(f"{name}: {nodes:,} launches and uploads, {spent:.2f} s of CPU (bar {bar:g} s), {mib:.0f} MiB{over}")


if __name__ == "__main__":
    main()
