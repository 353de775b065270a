"""An execution of a compiled program, as frameworks make them: one call of the host, as the replay of a graph is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from bringup.frontends.stablehlo.executor import Program
from bringup.frontends.stablehlo.team import Team
from bringup.lines import at_line, calling_line
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
    _note(program, framework)
    return _launched(program, arguments)


def executed_together(
    programs: Sequence[Program], arguments: Sequence[list[torch.Tensor]], framework: str
) -> list[list[torch.Tensor]]:
    """Launch the programs of several chips, which may exchange values; return the results of each.

    They are called from the line of the program that called this function.
    """
    _note(programs[0], framework)
    line = calling_line()
    call = at_line(programs[0].__name__, *line) if line else lambda run, items: run(*items)
    pairs = zip(programs, arguments, strict=True)
    return Team(len(programs)).run([partial(call, _launched, pair) for pair in pairs])


def _note(program: Program, framework: str) -> None:
    """Record the beginning of an execution."""
    torch.ops.bringup.record_mark(FORWARD, modules.number(program.__name__))
    if (recording := current()) is not None:
        recording.about["framework"] = framework


def _launched(program: Program, arguments: list[torch.Tensor]) -> list[torch.Tensor]:
    ops = torch.ops.bringup
    before = ops.set_program(ops.next_replay())  # not 0 in a program whose callback runs this one
    try:
        return [_own(tensor) for tensor in program.run(arguments)]
    finally:
        ops.set_program(before)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Return a result that shares no larger memory with another tensor, and has its elements in order."""
    is_whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize
    return tensor if is_whole else tensor.clone(memory_format=torch.contiguous_format)
