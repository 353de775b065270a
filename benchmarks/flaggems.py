"""FlagGems' operators on the chip: torch's own samples of every operator that FlagGems replaces, against the CPU.

Run ``python benchmarks/flaggems.py``. An operator is right if every sample of it gives the CPU's results in every form
that reaches it through torch's dispatcher: as a function, in place, as a gradient. What fails is listed with whose
fault it is. ``bringup check --only D10`` is the short form: the first ordinary sample of each.
"""

import argparse
import collections
import json
import multiprocessing
from pathlib import Path

import torch

from bringup.scorecard import library


def check(task: tuple[int, int, int, bool]) -> dict[str, list[str]]:
    """Run a share of the operators in this process."""
    share, shares, samples, ordinary = task
    torch.set_num_threads(1)
    device = torch.device("chip")
    replaced = library.enable(device)
    return library.run(replaced, device, samples=samples, ordinary=ordinary, share=share, shares=shares)


def fault(name: str, problems: list[str]) -> str:
    """Say whose fault an operator's failures are."""
    if name in library.FAULTS:
        return f"FlagGems: {library.FAULTS[name]}"
    ran = ("out of bounds", "differs from the CPU's")  # a kernel ran; otherwise its Python raised before
    return "unknown" if any(word in problem for problem in problems for word in ran) else "FlagGems: its Python raises"


def main() -> None:
    """Run all shares in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1, help="of each operator")
    parser.add_argument("--all", action="store_true", help="also samples with empty tensors and of no dimension")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shares = 12  # processes end: what fails badly takes its share with it
    merged: dict[str, list[str]] = collections.defaultdict(list)
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        tasks = [(share, shares, options.samples, not options.all) for share in range(shares)]
        for found in pool.imap_unordered(check, tasks):
            for name, problems in found.items():
                merged[name] += problems
    wrong = {name: sorted({p for p in merged[name] if p}) for name in sorted(merged) if any(merged[name])}
    faults = {name: fault(name, problems) for name, problems in wrong.items()}
    for name, problems in wrong.items():
        print(f"{name}, {sum(map(bool, merged[name]))} of {len(merged[name])}: {faults[name]}")
        print("  " + "\n  ".join(problems[:3]))
    right = len(merged) - len(wrong)
    unknown = sum(text == "unknown" for text in faults.values())
    print(
        f"{right} of {len(merged)} operators right in every sample and form: {right / len(merged):.1%}; "
        f"of the others {len(wrong) - unknown} are FlagGems' own faults, {unknown} unknown"
    )
    if options.json:
        options.json.write_text(json.dumps(merged, indent=1))


if __name__ == "__main__":
    main()
