"""An execution of a compiled program, as frameworks make them: one call of the host, as the replay of a graph is."""

from __future__ import annotations

import torch

from bringup.frontends.stablehlo.executor import Program
from bringup.recording import modules
from bringup.recording.recording import current
from bringup.recording.rows import FORWARD

STAGED = 1 << 16  # bytes of pageable memory that a copy stages (CUDA Runtime API, API synchronization behavior)


def upload(host: torch.Tensor, device: str) -> torch.Tensor:
    """Copy a tensor, which nothing else changes, to the chip. The host does not wait."""
    if host.numel() * host.itemsize > STAGED:
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def executed(program: Program, arguments: list[torch.Tensor], framework: str) -> list[torch.Tensor]:
    """Launch a program; return its results, each in memory of its own. The list of arguments is emptied."""
    ops = torch.ops.bringup
    ops.record_mark(FORWARD, modules.number(program.__name__))
    if (recording := current()) is not None:
        recording.about["framework"] = framework
    before = ops.set_program(ops.next_replay())  # not 0 in a program whose callback runs this one
    try:
        return [_own(tensor) for tensor in program.run(arguments)]
    finally:
        ops.set_program(before)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Return a result that shares no larger memory with another tensor, and has its elements in order."""
    is_whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize
    return tensor if is_whole else tensor.clone(memory_format=torch.contiguous_format)
