"""The debug mode for operations that make the host wait."""

import warnings

import torch


def test_sync_debug_mode_names_the_chip() -> None:
    x = torch.ones(3, device="chip")
    torch.chip.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            x.cpu()
            x + 1
    finally:
        torch.chip.set_sync_debug_mode("default")
    assert [str(item.message).partition(" (")[0] for item in seen] == ["called a synchronizing operation of the chip"]
    assert torch.chip.get_sync_debug_mode() == 0
