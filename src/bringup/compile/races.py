"""Races inside a compiled graph: the host computes with what an asynchronous copy may not have brought yet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from bringup.compile.lines import line_of
from bringup.compile.retarget import is_host
from bringup.recording.findings import Finding, Watch, early_use, watches

SOURCE = {"to": 0, "copy_": 1}  # the argument that is copied
NON_BLOCKING = {"to": 3, "copy_": 2}  # the argument that says whether the host waits, if it is not named
# Operators that look at a tensor's shape, dtype and device only.
READS_NO_DATA = re.compile(r"size|stride|numel|dim|storage_offset|new_(empty|zeros|ones|full)\w*|\w+_like")
_findings: list[Finding] = []


def look_for_races(graph: fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Note the nodes that use page-locked memory after an asynchronous copy from the chip: no graph waits for one."""
    nodes = list(graph.graph.nodes)
    for number, copy in enumerate(nodes):
        if _copies_asynchronously(copy) and _is_page_locked(copy, nodes, inputs):
            users = [node for node in nodes[number + 1 :] if _uses(node, copy)]
            _findings.extend(dict.fromkeys(early_use(line_of(user), line_of(copy), to_host=True) for user in users))


def _crosses_link(node: fx.Node) -> bool:
    """Return True if a node copies between host and chip, in the order of the stream."""
    if node.op != "call_method" or node.target not in SOURCE:
        return node.op == "call_method" and node.target in ("cuda", "chip")
    return is_host(node) != is_host(node.args[SOURCE[str(node.target)]])


def _copies_asynchronously(node: fx.Node) -> bool:
    """Return True if a node copies from the chip to the host, which does not wait."""
    if not is_host(node) or not _crosses_link(node):
        return False
    place = NON_BLOCKING[str(node.target)]
    return bool(node.kwargs.get("non_blocking", node.args[place] if len(node.args) > place else False))


def _storages(*nodes: fx.Node) -> set[int]:
    """Return the storages of the tensors that nodes return."""
    values = tree_leaves([node.meta.get("example_value") for node in nodes])
    tensors = (value for value in values if isinstance(value, torch.Tensor) and value.layout == torch.strided)
    return {tensor.untyped_storage()._cdata for tensor in tensors}


def _is_page_locked(copy: fx.Node, nodes: list[fx.Node], inputs: Sequence[Any]) -> bool:
    """Return True if a copy writes page-locked memory: the host waits for copies to other memory."""
    origin = next((node for node in nodes if _storages(node) & _storages(copy)), copy)
    if origin.op == "placeholder":
        value = inputs[[node for node in nodes if node.op == "placeholder"].index(origin)]
        return isinstance(value, torch.Tensor) and value.is_pinned()
    # What `to` returns without waiting is page-locked.
    return origin is copy or origin.target == "pin_memory" or bool(origin.kwargs.get("pin_memory"))


def _uses(node: fx.Node, copy: fx.Node) -> bool:
    """Return True if the host reads or writes the memory of a copy in a node; a view alone does neither."""
    memory = _storages(copy)
    is_call = node.op in ("call_function", "call_method")
    if not is_call or not _storages(*node.all_input_nodes) & memory or _crosses_link(node):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    results = _storages(node)
    if results and results <= memory:
        in_place = name.endswith("_") or (getattr(node.target, "__module__", "") == "_operator" and name != "getitem")
        return in_place or any(node.kwargs.get(option) for option in ("out", "inplace"))
    return not READS_NO_DATA.fullmatch(name)


def _take() -> list[Finding]:
    noted = [*_findings]
    _findings.clear()
    return noted


@contextmanager
def _watched() -> Iterator[None]:
    _findings.clear()
    yield


watches.append(Watch(_watched, _take))
