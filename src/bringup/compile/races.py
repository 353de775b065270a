"""Races inside a compiled graph: the host computes with what an asynchronous copy may not have brought yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import fx

from bringup.compile.lines import line_of
from bringup.compile.retarget import is_host
from bringup.recording.findings import Finding, Watch, early_use, watches

SOURCE = {"to": 0, "copy_": 1}  # the argument that is copied
NON_BLOCKING = {"to": 3, "copy_": 2}  # the argument that says whether the host waits, if it is not named
_findings: list[Finding] = []


def look_for_races(graph: fx.GraphModule) -> None:
    """Note the nodes that compute with the result of an asynchronous copy from the chip: no graph waits for one."""
    for node in graph.graph.nodes:
        if _copies_asynchronously(node):
            users = (user for user in node.users if user.op in ("call_function", "call_method"))
            _findings.extend(early_use(line_of(user), line_of(node), to_host=True) for user in users)


def _copies_asynchronously(node: fx.Node) -> bool:
    name = str(node.target)
    if node.op != "call_method" or name not in SOURCE or not is_host(node) or is_host(node.args[SOURCE[name]]):
        return False
    place = NON_BLOCKING[name]
    return bool(node.kwargs.get("non_blocking", node.args[place] if len(node.args) > place else False))


def _take() -> list[Finding]:
    noted = [*_findings]
    _findings.clear()
    return noted


@contextmanager
def _watched() -> Iterator[None]:
    _findings.clear()
    yield


watches.append(Watch(_watched, _take))
