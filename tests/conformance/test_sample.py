"""A sample of torch's OpInfo database, for environments where the whole would take too long: `make matrix`."""

import pytest
import torch

from tests.conformance import opinfo

pytestmark = pytest.mark.filterwarnings("ignore")
SAMPLE = 200


def test_sample_of_operators_equals_the_cpu() -> None:
    ops = opinfo.ops(torch.float32)
    sample = [ops[number * len(ops) // SAMPLE] for number in range(SAMPLE)]
    failed = []
    for op in sample:
        try:
            opinfo.check_forward(op, torch.float32, most=2)
        except (AssertionError, RuntimeError, TypeError) as error:
            failed.append(f"{opinfo.full_name(op)}: {str(error).splitlines()[0]}")
    assert not failed, "\n".join(failed)
