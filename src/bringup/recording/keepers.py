"""Names the global variable of a program that keeps tensors of the chip alive, and the lines that fill it."""

from __future__ import annotations

import ast
import gc
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bringup.device import torch_chip as chips
from bringup.paths import Places
from bringup.recording.findings import Finding
from bringup.recording.rows import LAUNCH, NEVER_RAN, RAN
from bringup.recording.trace import Trace
from bringup.text import quantity

MOST_OBJECTS = 100_000  # per variable: a larger one is not searched to its end
MOST_LINES = 3  # of a variable: the first ones are named
MOST_STEPS = 0.5  # of the steps: what keeps a tensor, or a graph, of fewer steps is no leak
STORING = ("append", "appendleft", "extend", "extendleft", "insert", "add", "update", "setdefault", "put")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
REPEATED = (*FUNCTIONS, ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
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
    program = _program(variables)
    nodes = int(((columns["kind"] == LAUNCH) & np.isin(columns["bytes"], (NEVER_RAN, RAN))).sum())
    lists: dict[str, float] = {}
    graphs: dict[str, float] = {}
    for name, value in list(variables.items()):
        tensors, operations = _kept(value)
        variable = f"the variable {name}{_filled_at(name, program) if tensors else ''}"
        if tensors / max(steps, 1) > max(MOST_STEPS, operations / max(nodes, 1)):
            lists[f"{variable} keeps {quantity(tensors, 'tensor')}"] = tensors / max(steps, 1)
        elif operations / max(nodes, 1) > MOST_STEPS:
            graphs[f"{variable} keeps the graph of {quantity(operations, 'operation')}"] = operations
    # A larger graph is computed from the smallest: a loss from a state that the steps hand on.
    return max(lists, key=lambda text: lists[text], default="") or min(
        graphs, key=lambda text: graphs[text], default=""
    )


@dataclass(frozen=True)
class _Program:
    """A program's file with its syntax tree."""

    file: str
    tree: ast.Module


def _program(variables: Mapping[str, object]) -> _Program:
    """Return the program of these global variables; its tree is empty if its file cannot be read."""
    file = str(variables.get("__file__") or "")
    try:
        return _Program(file, ast.parse(Path(file).read_bytes()))
    except (OSError, SyntaxError, ValueError):  # ValueError: null bytes
        return _Program(file, ast.Module([], []))


def _filled_at(name: str, program: _Program) -> str:
    """Return the lines that repeatedly fill a global variable: ``, filled at train.py:12,``; "" if there is none."""
    numbers = sorted(set(_stores(name, program.tree, repeated=False)))[:MOST_LINES]
    lines = [Places.of_process().line(f"{program.file}:{number}") for number in numbers]
    return f", filled at {' and '.join(lines)}," if lines else ""


def _stores(name: str, node: ast.AST, *, repeated: bool) -> Iterator[int]:
    """Yield the lines in loops and functions that assign a global variable, or store a value in what it holds."""
    if isinstance(node, FUNCTIONS) and name in _local_names(node):
        return
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.NamedExpr)):
        targets = [node.target]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in STORING:
        targets = [node.func.value]
    if repeated and any(_root(target) == name for target in targets):
        yield targets[0].lineno
    for child in ast.iter_child_nodes(node):
        yield from _stores(name, child, repeated=repeated or isinstance(node, REPEATED))


def _root(target: ast.expr) -> str:
    """Return the variable in which a target lies: ``seen`` of ``seen["loss"].values``."""
    item: ast.AST = target
    while isinstance(item, (ast.Attribute, ast.Subscript, ast.Call)):
        item = item.func if isinstance(item, ast.Call) else item.value
    return item.id if isinstance(item, ast.Name) else ""


def _local_names(function: ast.AST) -> set[str]:
    """Return the arguments of a function, and the names that it binds without declaring them global."""
    nodes = list(ast.walk(function))
    names = {node.arg for node in nodes if isinstance(node, ast.arg)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return names - {name for node in nodes if isinstance(node, ast.Global) for name in node.names}


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
