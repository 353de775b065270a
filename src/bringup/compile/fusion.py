"""Cutting of Inductor's input graph into the kernels that a compiler for the chip would launch.

Note [Kernels]
The graph is cut after decompositions. Products, convolutions, attention and sorting each become one kernel. So does a
reduction over other than the last dimensions, together with elementwise operators before it, and with those on its
result that have as many elements. All other nodes are fused if they are connected, and computed as late as possible. A
fused kernel reads its inputs once and writes only results that other kernels need.
The cut does not depend on the chip, so a recording can be priced on any chip. The only exception are operators that the
recording's chip does not support, which end a fusion. Each kernel is one launch. Its results are allocated and freed
as by a compiled program.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from bringup.compile.lines import line_of, module_of
from bringup.cost import family_of
from bringup.process import process

FUSED = ("pointwise", "copy", "gather", "random")
SEEDS = "prims::inductor_seeds"  # Inductor draws them by a kernel of ATen
Root = tuple[fx.Node, int]  # the origin of a piece of memory: a node, and the index of its result


@dataclass
class Kernel:
    """One launch: a single operator, or several fused ones."""

    nodes: list[fx.Node]
    fused: bool
    reads: list[Root] = field(default_factory=list)
    makes: list[Root] = field(default_factory=list)
    changes: list[Root] = field(default_factory=list)  # memory of the graph's inputs
    frees: list[Root] = field(default_factory=list)  # memory that is freed after this kernel
    line: str = ""
    module: str = ""


def part(value: Any, result: int) -> Any:
    """Return one result of a node's value, which is a tensor or a sequence of tensors."""
    return value[result] if isinstance(value, (list, tuple)) else value


def name_of(node: fx.Node) -> str:
    """Return the name of a node's operator, in the recorder's form."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return f"hop::{getattr(target, '__name__', target)}"
    overload = target._schema.overload_name
    return target._schema.name + (f".{overload}" if overload else "")


def root_of(node: fx.Node) -> Root:
    """Return the node and result index of a node's value. For an element of a tuple, this is the tuple's node."""
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem" and node.args[1:]:
        source, place = node.args
        if isinstance(source, fx.Node) and isinstance(place, int):
            return source, place
    return node, 0


def tensors_of(node: fx.Node) -> list[fx.Node]:
    """Return a node's tensor arguments in order, repeated ones included."""
    tensors: list[fx.Node] = []

    def note(value: fx.Node) -> fx.Node:
        if isinstance(value.meta.get("val"), torch.Tensor):
            tensors.append(value)
        return value

    fx.node.map_arg((node.args, node.kwargs), note)
    return tensors


def _is_view(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    aliases = [a.alias_info for a in target._schema.arguments if a.alias_info is not None]
    return any(not alias.is_write for alias in aliases) or name_of(node) == "aten::_unsafe_view"


def computing_nodes(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the nodes that launch a kernel."""
    for node in graph.nodes:
        if node.op != "call_function" or root_of(node)[0] is not node or _is_view(node):
            continue
        value = node.meta.get("val")
        values = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(x, torch.Tensor) for x in values):
            yield node


def roots_of(graph: fx.Graph) -> dict[Root, Root]:
    """Map every value to the value whose memory it shares. The result of ``copy_`` shares its first argument's."""
    roots: dict[Root, Root] = {}
    for node in graph.nodes:
        source, place = root_of(node)
        if source is not node:
            roots[node, 0] = roots.get((source, place), (source, place))
        elif node.op == "call_function" and (_is_view(node) or name_of(node) == "aten::copy_"):
            first = tensors_of(node)[0]
            roots |= {(node, i): roots[first, 0] for i in range(_result_count(node))}
        else:
            roots |= {(node, i): (node, i) for i in range(_result_count(node))}
    return roots


def _is_fusible(node: fx.Node) -> bool:
    name = name_of(node)
    if isinstance(node.target, torch._ops.OpOverload) and process.chip is not None:
        values = node.meta["val"]
        results = values if isinstance(values, (list, tuple)) else [values]
        first = next(x for x in results if isinstance(x, torch.Tensor))
        if not process.chip.supports(name, family_of(name), str(first.dtype).removeprefix("torch.")):
            return False
    family = family_of(name)
    if family == "reduction":
        return _over_rows(node)
    if name == SEEDS:
        return False
    return family in FUSED and "scatter" not in name and "index_put" not in name and "backward" not in name


def _over_rows(node: fx.Node) -> bool:
    """Return True if a reduction removes only the last dimensions, so that a kernel can continue with the same row."""
    tensors = tensors_of(node)
    if not tensors or "cum" in name_of(node):
        return False
    rank = tensors[0].meta["val"].dim()
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, (list, tuple)) or not dims or rank < 2:
        return False
    reduced = sorted(dim % rank for dim in dims if isinstance(dim, int))
    return reduced == list(range(rank - len(reduced), rank)) and len(reduced) < rank


def cut(graph: fx.Graph, roots: dict[Root, Root]) -> list[Kernel]:
    """Cut a graph into kernels; see Note [Kernels].

    The depth of a node is the number of unfused kernels on the way to it. Connected nodes of equal depth are fused. A
    path between two of them has only nodes of this depth, so the fused kernels form no cycle.
    """
    computing = list(computing_nodes(graph))
    node_of = {(node, i): node for node in computing for i in range(_result_count(node))}
    fusible = {node: _is_fusible(node) for node in computing}
    depth: dict[fx.Node, int] = {}
    group: dict[fx.Node, fx.Node] = {}
    reductions: dict[tuple[int, Root, Any], fx.Node] = {}
    before = {
        node: [node_of[roots[source, 0]] for source in tensors_of(node) if roots[source, 0] in node_of]
        for node in computing
    }
    after: dict[fx.Node, list[fx.Node]] = {node: [] for node in computing}

    def joins(node: fx.Node, b: fx.Node, reduced: set[fx.Node]) -> bool:
        """Return True if a node can join the kernel of its input `b`; `reduced` are results of reductions in it."""
        if b in reduced:
            return fusible[node] and _elements(node) == _elements(b)
        into_reduction = _is_reduction(node) and _elements(b) == tensors_of(node)[0].meta["val"].numel()
        return fusible[b] and (fusible[node] or into_reduction)

    def add_reduced(node: fx.Node, reduced: set[fx.Node]) -> None:
        same = (b for b in before[node] if b in reduced and depth[b] == depth[node])
        if (_is_reduction(node) and not fusible[node]) or any(joins(node, b, reduced) for b in same):
            reduced.add(node)

    def leader(node: fx.Node) -> fx.Node:
        while group[node] is not node:
            node = group[node]
        return node

    reduced: set[fx.Node] = set()
    for node in computing:
        depth[node] = max((depth[b] + (not joins(node, b, reduced)) for b in before[node]), default=0)
        add_reduced(node, reduced)
        for b in before[node]:
            after[b].append(node)
    for node in reversed(computing):  # what only later kernels read is computed there
        if fusible[node] and after[node]:
            depth[node] = min(depth[a] - (not joins(a, node, set())) for a in after[node])
    reduced = set()
    for node in computing:
        add_reduced(node, reduced)
        group[node] = node
        for b in before[node]:
            if joins(node, b, reduced) and depth[b] == depth[node]:
                group[leader(node)] = leader(b)
        if not fusible[node] and _is_reduction(node):  # two reductions over the same tensor share a kernel
            source = tensors_of(node)[0]
            twin = reductions.setdefault((depth[node], roots[source, 0], _elements(node)), node)
            group[leader(node)] = leader(twin)
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in computing:
        members.setdefault(leader(node), []).append(node)
    kernels = [_kernel(nodes, roots) for nodes in members.values()]
    kernels.sort(key=lambda kernel: (depth[kernel.nodes[0]], kernel.fused))
    kernels = _without_constants(graph, kernels, fusible, roots)
    needed = _needed_later(graph, kernels, roots)
    for kernel in kernels:
        kernel.makes = [root for root in kernel.makes if root in needed or not kernel.fused]
        kernel.frees = [root for root in (*kernel.reads, *kernel.makes) if needed.get(root) is kernel]
    return kernels


def _is_reduction(node: fx.Node) -> bool:
    return family_of(name_of(node)) == "reduction" and "cum" not in name_of(node) and bool(tensors_of(node))


def _elements(node: fx.Node) -> Any:
    """Return the number of elements of a node's first result."""
    return part(node.meta["val"], 0).numel()


def _without_constants(
    graph: fx.Graph, kernels: list[Kernel], fusible: dict[fx.Node, bool], roots: dict[Root, Root]
) -> list[Kernel]:
    """Remove fills and ranges that only fusible operators read, because each reader computes them itself."""
    output = next(node for node in graph.nodes if node.op == "output")
    needed = {roots[node, 0] for node in output.all_input_nodes if (node, 0) in roots}
    for kernel in kernels:
        if not all(fusible[node] for node in kernel.nodes):
            needed |= set(kernel.reads)
    constant = [
        kernel
        for kernel in kernels
        if not kernel.reads
        and not kernel.changes
        and not needed & set(kernel.makes)
        and fusible[kernel.nodes[0]]
        and not any(family_of(name_of(node)) == "random" for node in kernel.nodes)
    ]
    removed = {root for kernel in constant for root in kernel.makes}
    for kernel in kernels:
        kernel.reads = [root for root in kernel.reads if root not in removed]
    return [kernel for kernel in kernels if kernel not in constant]


def _result_count(node: fx.Node) -> int:
    value = node.meta.get("val")
    return len(value) if isinstance(value, (list, tuple)) else 1


def _kernel(nodes: list[fx.Node], roots: dict[Root, Root]) -> Kernel:
    results = {(node, i) for node in nodes for i in range(_result_count(node))}
    kernel = Kernel(nodes, len(nodes) > 1)
    for node in nodes:
        for source in tensors_of(node):
            root = roots[source, 0]
            copied_over = name_of(node) == "aten::copy_" and source is node.args[0]
            if root not in results and root not in kernel.reads and not copied_over:
                kernel.reads.append(root)
        if name_of(node) == "aten::copy_":
            kernel.changes.append(roots[node, 0])
        else:
            kernel.makes += [
                (node, i) for i in range(_result_count(node)) if isinstance(part(node.meta["val"], i), torch.Tensor)
            ]
        kernel.line = kernel.line or line_of(node)
        kernel.module = kernel.module or module_of(node)
    return kernel


def _needed_later(graph: fx.Graph, kernels: list[Kernel], roots: dict[Root, Root]) -> dict[Root, Kernel | None]:
    """Map memory that is shared between kernels to its last user, or to None if the graph returns it."""
    last: dict[Root, Kernel | None] = {}
    for kernel in kernels:
        for root in kernel.reads:
            if root[0].op != "placeholder":
                last[root] = kernel
        if not kernel.fused:
            for root in kernel.makes:
                last.setdefault(root, kernel)
    output = next(node for node in graph.nodes if node.op == "output")
    for node in output.all_input_nodes:
        if (node, 0) in roots:
            last[roots[node, 0]] = None
    return last
