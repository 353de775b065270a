"""``init_process_group("nccl")`` in a program that says cuda: a group whose collectives are gloo's.

A group called nccl has no backend for CPU tensors, as on CUDA; `distributed` describes it to the core as one of chip.
"""

from __future__ import annotations

import datetime
import functools
import os
import sys
from types import SimpleNamespace
from typing import Any

import torch

from bringup.device.cuda_names import shown
from bringup.device.torch_versions import take_nccl_from
from bringup.text import plain

_VERSION = (2, 28, 9)  # of NCCL in torch's builds for CUDA 13.0, which require nvidia-nccl-cu13==2.28.9


def patch_distributed() -> None:
    """Patch torch.distributed to have the backend nccl."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        return
    c10d: Any = torch.distributed.distributed_c10d

    class Options:
        """The options of NCCL that programs set. None of them changes what gloo does."""

        def __init__(self, is_high_priority_stream: bool = False) -> None:
            self.is_high_priority_stream = is_high_priority_stream
            self._timeout = c10d.default_pg_timeout
            self.global_ranks_in_group: list[int] = []
            self.group_name = ""
            self.config = SimpleNamespace()  # of the communicator: its blocks, clusters and network

    class ProcessGroupNCCL(c10d.ProcessGroupGloo):  # type: ignore[misc]
        """The backend of a group called nccl."""

        def __init__(self, store: Any, rank: int, size: int, options: Any) -> None:
            super().__init__(store, rank, size, timeout=options._timeout)

        def name(self) -> str:
            return "nccl"

    ProcessGroupNCCL.Options = Options
    spaces: tuple[Any, Any] = (torch.distributed, c10d)
    for module in spaces:
        module.ProcessGroupNCCL = ProcessGroupNCCL
        module.is_nccl_available = lambda: True
    c10d._NCCL_AVAILABLE = True
    take_nccl_from(c10d)
    torch.cuda.nccl.version = lambda: _VERSION
    # nn.DataParallel asks, with a warning if torch lacks NCCL; it copies between the chips instead.
    torch.cuda.nccl.is_available = lambda tensors: False
    c10d.default_pg_nccl_timeout = datetime.timedelta(minutes=10)  # NCCL's, in torch's documentation of `timeout`

    helper = c10d._new_process_group_helper

    @functools.wraps(helper)
    def _new_process_group_helper(*args: Any, **kwargs: Any) -> Any:
        _patch_fsdp()
        if os.environ.get("LOCAL_RANK", "0") == "0":
            _say_unused()
        return helper(*args, **kwargs)

    c10d._new_process_group_helper = _new_process_group_helper


@functools.cache
def _say_unused() -> None:
    """Say which of NCCL's variables change nothing here."""
    names = sorted(name for name in os.environ if name.startswith("NCCL_"))
    if names:
        have = f"{plain(', '.join(names))} {'has' if len(names) == 1 else 'have'}"
        print(
            f"bringup: {have} no effect: gloo computes collectives, and a model predicts their time (docs/clusters.md)",
            file=sys.stderr,
        )


@functools.cache
def _patch_fsdp() -> None:
    """Patch FSDP's reading of ``device_id=0``: torch names the device of a number after the accelerator, chip."""
    from torch.distributed.fsdp import _init_utils

    original = _init_utils._get_device_from_device_id

    @functools.wraps(original)
    def _get_device_from_device_id(*args: Any, **kwargs: Any) -> Any:
        device = original(*args, **kwargs)
        return device if device is None else shown(device)

    _init_utils._get_device_from_device_id = _get_device_from_device_id
