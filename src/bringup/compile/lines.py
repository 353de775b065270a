"""The source lines and modules of a graph's nodes, and the counts of graphs and graph breaks in a trace."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import fx

    from bringup.paths import Places

_LIBRARIES = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ')

graphs = 0  # number of graphs compiled in this process


def line_of(node: fx.Node) -> str:
    """Return the line of the user's program for a node; "" if there is none."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    user_frames = [(file, line) for file, line in frames if not file.startswith(_LIBRARIES) and "<" not in file]
    if not user_frames:
        return ""
    file, line = user_frames[-1]
    return f"{_from_here(file)}:{line}"


def module_of(node: fx.Node) -> str:
    """Return the qualified name of a node's module, or its class name if it is the outermost module."""
    stack = list((node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}).values())
    if not stack:
        return ""
    path, kind = stack[-1]
    name = re.sub(r"\._modules\['([^']+)'\]|\[['\"]?([^'\"\]]+)['\"]?\]", lambda m: f".{m[1] or m[2]}", path)
    name = re.sub(r"^L\.self\.?|^L\.\w+\.?", "", name)
    return name or getattr(kind, "__name__", str(kind).split(".")[-1])


def breaks_since(count: int) -> list[dict[str, str]]:
    """Return the line and the reason of each of Dynamo's graph breaks after the first `count`."""
    from torch._dynamo.utils import graph_break_reasons

    breaks: dict[tuple[str, str], None] = {}
    for item in graph_break_reasons[count:]:
        frames = [f for f in item.user_stack if not f.filename.startswith(_LIBRARIES)] or list(item.user_stack)
        line = f"{_from_here(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
        breaks[line, " ".join(item.reason.split("\n")[0].split())] = None
    return [{"line": line, "reason": reason} for line, reason in breaks]


def begin_recording(places: Places) -> Callable[[], dict[str, Any]]:
    """Return a function that reports the compiled graphs and the graph breaks since this call, for `Trace.about`."""
    graphs_before, breaks_before = graphs, _break_count()

    def since() -> dict[str, Any]:
        breaks = breaks_since(breaks_before) if _break_count() > breaks_before else []
        return {
            "compiled_graphs": graphs - graphs_before,
            "graph_breaks": [
                {"line": places.line(item["line"]), "reason": places.within(item["reason"])} for item in breaks
            ],
        }

    return since


def _break_count() -> int:
    """Return the number of Dynamo's graph breaks without importing Dynamo."""
    return len(getattr(sys.modules.get("torch._dynamo.utils"), "graph_break_reasons", ()))


def _from_here(file: str) -> str:
    return file.removeprefix(os.getcwd() + os.sep)
