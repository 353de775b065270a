"""Break-even sizes of operators."""

import numpy as np

from bringup.machine.files import load_chip, load_host
from bringup.placement.break_even import break_even


def test_chip_wins_from_its_break_even_size_on() -> None:
    rows = {row.op: row for row in break_even(load_chip("h100-sxm"), load_host())}
    for row in rows.values():
        chip, host, sizes = map(np.asarray, (row.chip, row.host, row.sizes))
        assert row.resident is not None and (chip < host)[sizes >= row.resident].all()
        assert not (chip < host)[sizes == row.resident // 2].any()
        assert row.copied is None or row.copied >= row.resident
    assert rows["add"].copied is None  # a byte takes longer on the link than in the host's memory
    assert rows["mm"].copied is not None
