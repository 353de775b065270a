"""What `--cuda` costs: a GPT's training step that says cuda and is redirected, over the same step that says chip.

Run ``python benchmarks/redirect.py``. Both run in processes of their own that take turns; the median of the pairs.
"""

import argparse
import statistics
import subprocess
import sys

SIDES = {"chip": "chip", "redirected": "cuda"}


def main() -> None:
    """Run pairs and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(SIDES[options.side])
        return
    workers = {
        side: subprocess.Popen(
            [sys.executable, __file__, "--side", side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for side in SIDES
    }
    rounds: list[dict[str, float]] = [
        {side: ask(worker, options.steps) / options.steps for side, worker in workers.items()}
        for _ in range(options.rounds)
    ][1:]
    for worker in workers.values():
        worker.communicate()
    medians = {side: statistics.median(each[side] for each in rounds) for side in SIDES}
    ratio = statistics.median(each["redirected"] / each["chip"] for each in rounds)
    shown = "  ".join(f"{side} {seconds * 1e3:.1f} ms" for side, seconds in medians.items())
    print(f"{shown}  ratio {ratio:.3f} (bar 1.05){'' if ratio <= 1.05 else '  OVER'}")


def ask(worker: "subprocess.Popen[str]", steps: int) -> float:
    """Let a worker take some steps; return its seconds."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(f"{steps}\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def serve(device: str) -> None:
    """Take as many training steps as each line of the input says, and print how many seconds they took."""
    import bringup

    if device == "cuda":
        bringup.redirect_cuda()
    from train_step import gpt, seconds

    step = gpt(device)
    seconds(step, 2)
    for line in sys.stdin:
        print(seconds(step, int(line))[0], flush=True)


if __name__ == "__main__":
    main()
