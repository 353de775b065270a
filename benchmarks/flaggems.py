"""FlagGems' operators on the chip: torch's own samples of every operator that FlagGems replaces, against the CPU.

Run ``python benchmarks/flaggems.py``. An operator is right if every sample of it that reaches it through torch's
dispatcher gives the CPU's results. What fails is listed with the error.
"""

import argparse
import collections
import json
import multiprocessing
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent.parent))


class Reached(TorchDispatchMode):
    """Note which operators are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name.removeprefix("aten::") + _overload(func))
        return func(*args, **(kwargs or {}))


def _fault(error: Exception) -> str:
    """Say where a sample failed: in FlagGems' Python before any kernel ran, or because of what a kernel did."""
    ran = (
        "out of bounds" in str(error)
        or "close!" in str(error)
        or "the CPU has" in str(error)
        or "CPU torch" in str(error)
    )
    return "[result]" if ran else "[refused]"


def _names(op: Any) -> set[str]:
    return {name.split(".")[-1].strip("_") for name in (op.name, op.aten_name or "")}


def _overload(func: Any) -> str:
    return f".{func._schema.overload_name}" if func._schema.overload_name else ""


def check(task: tuple[int, int, int]) -> dict[str, list[str]]:
    """Run a share of the operators; return for each operator of FlagGems what went wrong, "" for what went well."""
    share, shares, most = task
    import bringup
    from bringup.kernels import flaggems
    from tests.conformance import opinfo

    torch.set_num_threads(1)
    bringup.redirect_cuda()  # some of its operators ask for CUDA by name
    opinfo.to_cpu = lambda value: value.detach().cpu() if isinstance(value, torch.Tensor) else value
    replaced = set(flaggems.enable())
    found: dict[str, list[str]] = collections.defaultdict(list)
    for op in opinfo.ops(torch.float32)[share::shares]:
        warnings.simplefilter("ignore")
        for number, sample in enumerate(op.sample_inputs("cpu", torch.float32)):
            if number >= most:
                break
            args, kwargs = opinfo.arguments(sample)
            reached = Reached()
            try:
                expected = op.op(*opinfo.clone(args), **opinfo.clone(kwargs))
            except Exception:
                continue
            problem = ""
            try:
                with reached:
                    result = op.op(
                        *opinfo.moved_arguments(op, args, kwargs)[0], **opinfo.moved_arguments(op, args, kwargs)[1]
                    )
                torch.chip.synchronize()
                random = reached.names & RANDOM
                opinfo.compare(result, expected, opinfo.full_name(op), values=not random)
            except Exception as error:
                said = " ".join(str(error).split())[:300]
                problem = f"{_fault(error)} {opinfo.full_name(op)}: {type(error).__name__}: {said}"
            # A sample judges the operator that it is made for; if that is composite, what it is made of.
            own = {name for name in reached.names & replaced if name.split(".")[0].strip("_") in _names(op)}
            for name in own or reached.names & replaced:
                found[name].append(problem)
    return found


RANDOM = {"bernoulli_.float", "exponential_", "multinomial", "native_dropout", "normal_", "rand", "rand_like", "randn"}
RANDOM |= {"randn_like", "randperm", "uniform_", "normal.float_Tensor", "normal.Tensor_float", "normal.Tensor_Tensor"}


def main() -> None:
    """Run all shares in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shares = 24  # processes end: what fails badly takes its share with it
    context = multiprocessing.get_context("spawn")
    merged: dict[str, list[str]] = collections.defaultdict(list)
    with context.Pool(options.jobs, maxtasksperchild=1) as pool:
        tasks = [(share, shares, options.samples) for share in range(shares)]
        for found in pool.imap_unordered(check, tasks):
            for name, problems in found.items():
                merged[name] += problems
    wrong = {name: sorted({p for p in problems if p}) for name, problems in merged.items() if any(problems)}
    for name, problems in sorted(wrong.items()):
        print(
            f"{name}: {len([p for p in merged[name] if p])} of {len(merged[name])} samples\n  "
            + "\n  ".join(problems[:3])
        )
    right = len(merged) - len(wrong)
    refused = sum(all(p.startswith("[refused]") for p in problems) for problems in wrong.values())
    print(
        f"{right} of {len(merged)} operators right in every sample; {refused} more where FlagGems' own Python does not "
        f"refuse the sample (scalars, empty tensors): {(right + refused) / len(merged):.1%}"
    )
    if options.json:
        options.json.write_text(json.dumps(merged, indent=1))


if __name__ == "__main__":
    main()
