"""Every float32 operator of torch's OpInfo database, forward, on one torch: the figures of `make matrix`.

    python -m tests.conformance.forward        # prints {"operators": 672, "unlike": {"name": "the reason", ...}}

Two samples of each operator, as a function, in place and with `out=`. `tests/conformance/test_ops.py` tries twelve,
also backward and in other dtypes, on the release of torch that the tests are made for.
"""

import json
import warnings

import torch

from tests.conformance import opinfo


def main() -> None:
    """Print how many operators there are, and those whose results are not the CPU's."""
    warnings.simplefilter("ignore")
    ops, unlike = opinfo.ops(torch.float32), {}
    for op in ops:
        try:
            opinfo.check_forward(op, torch.float32, most=2)
        except Exception as error:  # a refusal is a difference, too
            unlike[opinfo.full_name(op)] = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    print(json.dumps({"operators": len(ops), "unlike": unlike}))


if __name__ == "__main__":
    main()
