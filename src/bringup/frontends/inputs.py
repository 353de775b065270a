"""Stand-ins for the inputs of models that `bringup run` and `predict` run."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch

from bringup.errors import BringupError
from bringup.text import short

FEW = 1 << 20  # elements of an input that has values in a dry run too, in case the host reads them; chosen


def stand_ins(
    inputs: Sequence[tuple[str, Sequence[int], torch.dtype]],
    error: type[BringupError] = BringupError,
    dry: bool = False,
) -> list[torch.Tensor]:
    """Return inputs on the host: normal random numbers, the same in each run; ones for whole numbers and masks.

    Args:
        inputs: names, shapes and data types.
        error: the type of error to raise if an input is too large for the host's memory.
        dry: nothing is computed with them: inputs of more than `FEW` elements are uninitialised, and take no memory.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = []
    left = math.inf if dry else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name, sizes, dtype in inputs:
        count = math.prod(sizes)
        left -= count * dtype.itemsize
        try:
            if left < 0:
                raise RuntimeError("it is larger than what this machine has")
            if dry and count > FEW:
                tensors.append(torch.empty(list(sizes), dtype=dtype))
            elif dtype.is_floating_point or dtype.is_complex:
                wide = dtype if dtype.is_complex else torch.float32
                tensors.append(torch.randn(list(sizes), generator=generator, dtype=wide).to(dtype))
            else:
                tensors.append(torch.ones(list(sizes), dtype=dtype))
        except RuntimeError as problem:
            text, shape = short(str(problem)), "x".join(map(str, sizes)) or "scalar"
            raise error(f"input {short(name)}={short(shape)} does not fit into memory: {text}") from None
    return tensors
