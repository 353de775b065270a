"""Padding of products, as Inductor does for GPUs: tensor cores want rows that start at multiples of 16 bytes.

Inductor pads a product that is bound by compute, if its own benchmark says that this is faster
(torch/_inductor/fx_passes/pad_mm.py). Without a chip to run it on, the benchmark counts as passed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from bringup.compile.fusion import name_of
from bringup.machine.schema import Chip
from bringup.pricing.rates import matrix_peak

HALVES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
ALIGNMENT = 8  # elements of 16 bits (get_alignment_size_dtype in pad_mm.py)
BALANCE = (
    0.5  # of the chip's flops per byte: a product with more is bound by compute (is_mm_compute_bound in pad_mm.py)
)


def pad_products(graph: fx.Graph, chip: Chip) -> None:
    """Pad the factors of unaligned products in half precision, and slice their results."""
    for node in list(graph.nodes):
        if node.op != "call_function" or name_of(node) not in ("aten::mm", "aten::addmm", "aten::bmm"):
            continue
        first, second = (factor.meta["val"] for factor in node.args[-2:])
        sizes = [*first.shape[-2:], second.shape[-1]]
        if first.dtype not in HALVES or not all(isinstance(size, int) for size in sizes):
            continue
        extra = [-size % ALIGNMENT for size in sizes]
        if any(extra) and _is_compute_bound(chip, HALVES[first.dtype], *sizes):
            _pad(graph, node, *extra)


def _is_compute_bound(chip: Chip, dtype: str, m: int, k: int, n: int) -> bool:
    balance = matrix_peak(chip, dtype) / (chip.memory.bandwidth_gb_s * 1e9)
    return m * k * n > BALANCE * balance * (m * k + k * n + m * n)


def _pad(graph: fx.Graph, node: fx.Node, rows: int, depth: int, columns: int) -> None:
    """Pad the factors of a product by so many rows, elements of depth and columns."""
    *bias, first, second = node.args
    with graph.inserting_before(node):
        arguments = [_padded(graph, item, columns, rows) for item in bias]
        arguments += [_padded(graph, first, depth, rows), _padded(graph, second, columns, depth)]
        result = _call(graph, node.target, *arguments, **node.kwargs)
        for dim, extra in ((-2, rows), (-1, columns)):
            if extra:
                result = _call(graph, torch.ops.aten.slice.Tensor, result, dim, 0, -extra)
    result.meta = node.meta  # the layout that the program sees
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _padded(graph: fx.Graph, source: Any, last: int, before_last: int) -> fx.Node:
    """Return a matrix or bias with more elements in its last two dimensions, but not in those of size 1."""
    shape = source.meta["val"].shape
    extra = [more if size > 1 else 0 for more, size in zip((last, before_last), reversed(shape), strict=False)]
    if not any(extra):
        return source  # type: ignore[no-any-return]
    return _call(graph, torch.ops.aten.constant_pad_nd.default, source, [x for more in extra for x in (0, more)])


def _call(graph: fx.Graph, target: Any, *arguments: Any, **options: Any) -> fx.Node:
    """Insert a call, with its value as a fake tensor."""
    call = graph.call_function(target, arguments, options)
    values = [item.meta["val"] if isinstance(item, fx.Node) else item for item in arguments]
    with values[0].fake_mode:
        call.meta = {**arguments[0].meta, "val": target(*values, **options)}
    return call
