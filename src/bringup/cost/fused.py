"""Kernels of the graph compiler: the arithmetic of all fused operators, and the bytes of inputs and results."""

from __future__ import annotations

from dataclasses import replace

from bringup.cost.normalization import SHORT_ROW, THREADS
from bringup.cost.rules import Work, rule, streaming
from bringup.cost.signature import Signature


def _over_rows(item: Signature, rank: int) -> bool:
    """Return True if the last dimensions are reduced: only then can the kernel continue with the same row."""
    dims = item.args.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    reduced = sorted(dim % rank for dim in dims) if dims else []
    return bool(reduced) and reduced == list(range(rank - len(reduced), rank))


@rule("pointwise", "fused")
def fused(signature: Signature) -> Work:
    """Price the arithmetic of all operators, and the bytes of the fused kernel's inputs and results.

    A reduction over short rows keeps them on the chip. Long rows are read again after each reduction, from the cache if
    the rows in flight fit there, as in the rule for softmax.
    """
    works = [item.work for item in signature.inner]
    border = streaming(signature, "pointwise", flops=0)
    again = in_flight = 0.0
    passes = 0
    for item, work in zip(signature.inner, works, strict=True):
        data = max(item.tensors, key=lambda tensor: tensor.numel, default=None)
        if work.family != "reduction" or data is None or not item.outputs or item.outputs[0] is None:
            continue
        width = data.numel // max(item.outputs[0].numel, 1)
        if width > SHORT_ROW and _over_rows(item, len(data.shape)):
            threads = max(min(width * data.item_bytes // 16, 1024), 1)
            again += data.nbytes
            in_flight = max(in_flight, float(THREADS // threads * width * data.item_bytes))
            passes += 1
    return replace(
        border,
        vector_flops=sum(work.vector_flops for work in works),
        special=sum(work.special for work in works),
        items=max([border.items, *(work.items for work in works)]),
        again_bytes=again,
        in_flight=in_flight,
        passes=passes,
    )
