"""Names the global variable of a program that keeps tensors of the chip alive, for findings of leaks."""

from __future__ import annotations

import gc
import types
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from bringup.device import torch_chip as chips
from bringup.recording.findings import Finding
from bringup.recording.rows import LAUNCH, NEVER_RAN, RAN
from bringup.recording.trace import Trace
from bringup.text import quantity

MOST_OBJECTS = 100_000  # per variable: a larger one is not searched to its end
MOST_STEPS = 0.5  # of the steps: what keeps a tensor, or a graph, of fewer steps is no leak
NO_COLLECTION = (
    *(type, types.ModuleType, types.FunctionType, types.CodeType, types.FrameType),
    *(nn.Module, torch.optim.Optimizer),
)


def with_keeper(finding: Finding, trace: Trace, variables: Mapping[str, object]) -> Finding:
    """Return a leak's finding with the variable that keeps tensors or graphs of most steps, if there is one."""
    keeper = _keeper(trace, variables) if finding.check == "leak" else ""
    return replace(finding, what=f"{finding.what}; {keeper}") if keeper else finding


def _keeper(trace: Trace, variables: Mapping[str, object]) -> str:
    columns, steps = trace.columns, len(trace.steps.ends)
    nodes = int(((columns["kind"] == LAUNCH) & np.isin(columns["bytes"], (NEVER_RAN, RAN))).sum())
    lists: dict[str, float] = {}
    graphs: dict[str, float] = {}
    for name, value in list(variables.items()):
        tensors, operations = _kept(value)
        if tensors / max(steps, 1) > max(MOST_STEPS, operations / max(nodes, 1)):
            lists[f"the variable {name} keeps {quantity(tensors, 'tensor')}"] = tensors / max(steps, 1)
        elif operations / max(nodes, 1) > MOST_STEPS:
            graphs[f"the variable {name} keeps the graph of {quantity(operations, 'operation')}"] = operations
    # A larger graph is computed from the smallest: a loss from a state that the steps hand on.
    return max(lists, key=lambda text: lists[text], default="") or min(
        graphs, key=lambda text: graphs[text], default=""
    )


def _kept(value: object) -> tuple[int, int]:
    """Return how many tensors of the chip a value keeps alive, and how many operations of their graphs."""
    tensors, nodes = 0, []
    reached, ahead = {id(value)}, [value]
    while ahead and len(reached) < MOST_OBJECTS:
        item = ahead.pop()
        if isinstance(item, NO_COLLECTION):
            continue
        if isinstance(item, torch.Tensor):
            if chips.real_device(item).type == "chip" and not isinstance(item, nn.Parameter):
                tensors += 1
                nodes += [item.grad_fn] if item.grad_fn is not None else []
            continue
        new = [other for other in gc.get_referents(item) if id(other) not in reached]
        reached |= {id(other) for other in new}
        ahead += new
    return tensors, _operations(nodes)


def _operations(nodes: list[torch.autograd.graph.Node]) -> int:
    seen, ahead = set(nodes), list(nodes)
    while ahead and len(seen) < MOST_OBJECTS:
        following = {node for node, _ in ahead.pop().next_functions if node is not None} - seen
        seen |= following
        ahead += following
    return len(seen)
