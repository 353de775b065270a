"""What the programs of this folder share: how a rank joins the others."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist


def join(kind: str | None) -> torch.device:
    """Join the other ranks; return this rank's device, which is then the current one.

    Args:
        kind: cpu or the accelerator's type; None: the accelerator.
    """
    kind = kind or torch.accelerator.current_accelerator().type
    device = torch.device(kind) if kind == "cpu" else torch.device(kind, int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if kind == "cpu" else None)
    if kind != "cpu":
        torch.accelerator.set_device_index(device.index)
    return device
