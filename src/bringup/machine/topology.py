"""A cluster: its node, how many of them, and where the ranks of a group are."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bringup.errors import BringupError, UnknownChipError
from bringup.machine.files import (
    CLUSTERS,
    available_clusters,
    available_nodes,
    describes_cluster,
    load_cluster_file,
    load_node,
)
from bringup.text import quantity, short

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Network, Node

_REPEATED = re.compile(r"(.+)x(\d{1,6})")  # dgx-h100x32: 32 nodes


@dataclass(frozen=True)
class Group:
    """The ranks of a process group on a cluster.

    Attributes:
        size: number of ranks.
        nodes: number of nodes that have a rank.
        per_node: the largest number of ranks on one node.
        span: number of nodes from the first to the last.
    """

    size: int
    nodes: int
    per_node: int
    span: int


@dataclass(frozen=True)
class Topology:
    """Equal nodes and the network between them. Rank r runs on chip r, and nodes have consecutive ranks."""

    name: str
    description: str
    node: Node
    nodes: int
    network: Network

    @property
    def chips(self) -> int:
        """Number of chips in all nodes."""
        return self.node.chips * self.nodes

    def group(self, ranks: int | Sequence[int]) -> Group:
        """Return where ranks are: these ones, or this many from the first on.

        Raises:
            BringupError: the cluster has fewer chips.
        """
        numbers = range(ranks) if isinstance(ranks, int) else ranks
        if not len(numbers) or min(numbers) < 0:
            raise BringupError(f"a group needs at least one rank, and ranks from 0, got {short(str(ranks))}")
        if max(numbers) >= self.chips:
            raise BringupError(
                f"cluster {self.name} has {quantity(self.chips, 'chip')}, and rank {max(numbers)} needs one more: "
                f"name a larger one, for example {self.node.name}x{max(numbers) // self.node.chips + 1}"
            )
        by_node = Counter(rank // self.node.chips for rank in numbers)
        return Group(len(numbers), len(by_node), max(by_node.values()), max(by_node) - min(by_node) + 1)


def load_cluster(name_or_file: str | Path) -> Topology:
    """Read a cluster: a cluster's name, a node's, a node's with a number (``dgx-h100x32``), or a file of either.

    Raises:
        UnknownChipError: there is no such node or cluster; the message lists the nearest names.
        ChipFileError: the file is missing or malformed.
    """
    text = str(name_or_file)
    if is_file(text):
        path = Path(text)
        return _of_cluster(path) if describes_cluster(path) else _of_nodes(path, path.stem, 1)
    if text in available_clusters():
        return _of_cluster(CLUSTERS / f"{text}.toml")
    repeated = _REPEATED.fullmatch(text)
    if repeated and repeated[1] in available_nodes() and int(repeated[2]):
        return _of_nodes(repeated[1], text, int(repeated[2]))
    if text in available_nodes():
        return _of_nodes(text, text, 1)
    names = [*available_clusters(), *available_nodes()]
    nearest = difflib.get_close_matches(text[:80], names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else "`bringup clusters` lists them."
    raise UnknownChipError(
        f"no cluster or node is named {short(text)!r}: {hint} For 32 nodes write dgx-h100x32, for a file its path"
    )


def is_file(name: str) -> bool:
    """Return True if a cluster is given as a file."""
    return name.endswith(".toml") or "/" in name


def cluster_of(chip: Chip, ranks: int) -> Topology:
    """Return a cluster for this many ranks: of the first node that ships with the chip, else over the chip's link."""
    from bringup.machine.schema import Links, Network, Node  # imports pydantic

    for name in available_nodes():
        node = load_node(name)
        nodes = -(-ranks // node.chips)
        if node.chip == chip.name and (nodes == 1 or node.network is not None):
            return Topology(name if nodes == 1 else f"{name}x{nodes}", node.description, node, nodes, Network())
    rate = chip.interconnect.gb_s if chip.interconnect else min(chip.link.h2d_gb_s, chip.link.d2h_gb_s)
    size = max(ranks, 2)
    node = Node(
        name=f"{chip.name}-link",
        vendor=chip.vendor,
        description=f"{size} {chip.name} over the links of the chip file",
        invented=True,
        chip=chip.name,
        chips=size,
        links=Links(kind="pcie", gb_s={str(size): rate}),
    )
    return Topology(node.name, node.description, node, 1, Network())


def _of_cluster(path: Path) -> Topology:
    cluster = load_cluster_file(str(path))
    return Topology(cluster.name, cluster.description, load_node(cluster.node), cluster.nodes, cluster.network)


def _of_nodes(name_or_file: str | Path, name: str, nodes: int) -> Topology:
    from bringup.machine.schema import Network  # imports pydantic

    node = load_node(name_or_file)
    if nodes > 1 and node.network is None:
        raise BringupError(f"node {node.name} has no network cards: add [network] to its file, or use one node")
    description = node.description if nodes == 1 else f"{nodes} x {node.description}"
    return Topology(name, description, node, nodes, Network())
