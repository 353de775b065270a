"""Access of pointwise kernels and copies to memory: one run, computed offsets, or elements that lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bringup.cost.rules import SECTOR, Work
from bringup.cost.signature import Signature, Tensor

# Integer instructions per element that a kernel of torch's TensorIterator spends on offsets if its operands are not one
# run. Own measurement on the H100: slices, repeats, flips and padding in bfloat16 copy 0.4e12 elements/s.
OFFSET = 36
# Instructions per element that converts its dtype at run time (fetch_and_cast in c10/core/DynamicCast.h). Own
# measurement on the H100: bfloat16 to float32 copies 0.3e12 elements/s. From float32 to 16 bits torch has kernels of
# their own (bfloat16_copy_kernel_cuda in aten/src/ATen/native/cuda/Copy.cu).
CONVERT = 47


def walked(signature: Signature, work: Work) -> Work:
    """Return the work with the offsets and sectors of a pointwise kernel, by the strides of its operands."""
    results = signature.results
    operands = [t for t in signature.tensors if t.storage >= 0 and not t.written and t.numel > 1] + list(results)
    shape = max((t.shape for t in results), key=len, default=())
    elements = max((t.numel for t in results), default=0)
    converts = CONVERT * elements if _converts(signature) else 0
    first = operands[0] if operands else None
    if first is None or elements <= 1:
        return work
    runs = _runs(operands, shape)
    if runs is None or (len(runs) <= 1 and all(stride == 1 for _, strides in runs for stride in strides)):
        return replace(work, offsets=float(converts)) if converts else work
    apart = 0.0
    for operand, (stride, *others) in zip(operands, zip(*(strides for _, strides in runs), strict=True), strict=True):
        if stride > 1 and any(0 < other < stride for other in others):
            apart += elements * min(1.0, stride * operand.item_bytes / SECTOR)
    return replace(work, offsets=float(OFFSET * elements + converts), sectors=apart)


def _converts(signature: Signature) -> bool:
    """Return True if a kernel converts dtypes at run time; float32 to 16 bits has a kernel of its own."""
    data = [t for t in signature.tensors if t.storage >= 0 and t.numel > 1 and not t.written]
    if signature.base in ("copy", "_to_copy"):
        return any(
            data[0].dtype != t.dtype and not (data[0].dtype == "float32" and t.dtype in ("float16", "bfloat16"))
            for t in signature.results
            if data
        )
    return len({t.dtype for t in data if not t.is_integer}) > 1


def _runs(operands: Sequence[Tensor], shape: tuple[int, ...]) -> list[tuple[int, list[int]]] | None:
    """Return sizes and strides of the dimensions that cannot be walked as one, innermost first.

    The result is None if the operands do not have one shape, as in a concatenation.
    """
    if all(t.shape == shape for t in operands) and len({t.strides for t in operands}) == 1:
        dense = _dense(operands[0])
        if dense:
            return [(operands[0].numel, [1] * len(operands))]
    rank = len(shape)
    columns = []
    for tensor in operands:
        missing = rank - len(tensor.shape)
        if missing < 0 or any(a not in (1, b) for a, b in zip(tensor.shape, shape[missing:], strict=True)):
            return None
        strides = [0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)]
        columns.append([0] * missing + strides)
    dims = [(shape[d], [column[d] for column in columns]) for d in range(rank) if shape[d] > 1]
    dims.sort(key=lambda dim: dim[1][-1])  # by the strides of the result
    runs: list[tuple[int, list[int]]] = []
    for size, strides in dims:
        if runs and strides == [runs[-1][0] * stride for stride in runs[-1][1]]:
            runs[-1] = (runs[-1][0] * size, runs[-1][1])
        else:
            runs.append((size, strides))
    return runs


def _dense(tensor: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(zip(tensor.strides, tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True
