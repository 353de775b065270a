"""The source lines and modules of a graph's nodes, and the counts of graphs and graph breaks in a trace."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import fx

    from bringup.paths import Places

_LIBRARIES = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ')

_STANDARD = os.path.dirname(os.__file__) + os.sep

graphs = 0  # number of graphs compiled in this process
again: list[str] = []  # the lines that called a function which was compiled again, one per graph


def count_graph() -> None:
    """Count a graph that Dynamo compiles; called while it does."""
    from torch._guards import CompileContext

    global graphs
    graphs += 1
    number = CompileContext.current_compile_id()
    if number is not None and number.frame_compile_id:
        again.append(_calling_line())


def _calling_line() -> str:
    """Return the line of the program that is running; "" if there is none."""
    frame = sys._getframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((*_LIBRARIES, _STANDARD)) and "<" not in file:
            return f"{_from_here(file)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


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
    """Return a function that reports the graphs and graph breaks since this call, for `Trace.about`."""
    graphs_before, again_before, breaks_before = graphs, len(again), _break_count()

    def since() -> dict[str, Any]:
        breaks = breaks_since(breaks_before) if _break_count() > breaks_before else []
        recompiled = Counter(places.line(line) for line in again[again_before:])
        return {
            "compiled_graphs": graphs - graphs_before,
            "recompilations": [{"line": line, "count": count} for line, count in recompiled.items()],
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
