"""What the core and Python must agree on: the core says it, and Python's own lists equal it."""

import torch

from bringup.process import MAX_DEVICES
from bringup.recording import rows


def test_row_kinds_of_python_are_the_cores() -> None:
    assert tuple(torch.ops.bringup.row_kinds()) == rows.KINDS


def test_row_flags_of_python_are_the_cores() -> None:
    names = torch.ops.bringup.row_flags()
    assert [getattr(rows, name.upper()) for name in names] == [1 << bit for bit in range(len(names))]


def test_phases_and_waits_of_python_are_the_cores() -> None:
    assert tuple(torch.ops.bringup.row_phases()) == rows.PHASES
    assert tuple(torch.ops.bringup.row_waits()) == rows.WAITS_FOR


def test_most_devices_of_python_is_the_cores() -> None:
    assert torch.ops.bringup.max_devices() == MAX_DEVICES
