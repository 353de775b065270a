"""The time of a collective on a cluster.

Note [The model of collectives]
Libraries such as NCCL have several protocols. Each takes a start, a hop for every step of its ring, and the bytes that
pass a chip's port at a share of the port's rate:

    seconds = start + steps * hop + bytes / (rate * share)

The fastest protocol is taken. Starts and hops scale with one factor per node, from one measured all-gather of 512
bytes. Where switches add, an all-reduce may send its data once (in-network reduction). Between nodes, a ring enters and
leaves every node once and uses the network cards of all its ranks; an all-reduce may use a tree instead. An all-to-all
sends directly, so only the part for other nodes crosses the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.cost.collective import ranks_of
from bringup.cost.signature import Signature
from bringup.errors import BringupError
from bringup.machine.topology import Group, Topology, cluster_of, load_cluster
from bringup.pricing.price import NETWORK, Prices

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Protocol:
    """One protocol: seconds per collective and per step, the share of the rate, and seconds per step on the network."""

    start: float
    hop: float
    share: float
    ring_net: float
    tree_net: float


@dataclass(frozen=True)
class Library:
    """What the library of one kind of links has.

    Attributes:
        ring: protocols of all-reduce, all-gather and reduce-scatter, the last one for large messages.
        direct: those of an all-to-all.
        peers: loss of a small group: n chips reach ``1 - peers / (n - 1)`` of the share.
        reduction: protocol of an all-reduce in switches that add.
    """

    ring: tuple[Protocol, ...]
    direct: tuple[Protocol, ...]
    peers: float = 0.0
    reduction: Protocol | None = None


# Steps on the network, seconds: tables hwLat of src/graph/tuning.cc in github.com/NVIDIA/nccl at 01afd20, ring and tree
# of the low-latency, the 128-byte and the simple protocol.
_LL_NET, _LL128_NET, _SIMPLE_NET = (2.7e-6, 5.0e-6), (4.0e-6, 8.5e-6), (9.6e-6, 50e-6)

# Fitted to aiconfigurator's rows of A100, H100 and B300 SXM (1,512 collectives, github.com/ai-dynamo/aiconfigurator at
# 095f58a).
NVLINK = Library(
    ring=(
        Protocol(7.94e-6, 1.07e-6, 0.0441, *_LL_NET),
        Protocol(7.94e-6, 1.37e-6, 0.371, *_LL128_NET),
        Protocol(7.94e-6, 9.35e-6, 0.785, *_SIMPLE_NET),
    ),
    direct=(Protocol(10.1e-6, 0.212e-6, 0.042, *_LL_NET), Protocol(16.9e-6, 0.212e-6, 0.658, *_SIMPLE_NET)),
    peers=0.362,
    reduction=Protocol(23.7e-6, 5.16e-6, 0.479, *_SIMPLE_NET),
)
# Fitted to aiconfigurator's rows of L40S and RTX PRO 6000 (1,008 collectives). The rates in node files are those that
# large collectives reach, so the last share is 1. The 128-byte protocol needs NVLink.
PCIE = Library(
    ring=(Protocol(5.02e-6, 1.53e-6, 0.639, *_LL_NET), Protocol(5.02e-6, 6.54e-6, 1.0, *_SIMPLE_NET)),
    direct=(Protocol(7.42e-6, 0.686e-6, 0.526, *_LL_NET), Protocol(17.9e-6, 0.686e-6, 0.965, *_SIMPLE_NET)),
)
# No collectives of a torus are published: its hop is 1 us (github.com/jax-ml/scaling-book at 0819a7d, sharding.md), its
# share assumed to be 1.
_ICI = (Protocol(1e-6, 1e-6, 1.0, *_SIMPLE_NET),)
LIBRARIES = {
    "nvlink": NVLINK,
    "pcie": PCIE,
    "xgmi": PCIE,  # RCCL has NCCL's protocols; its constants are assumed to be those of PCIe
    "ethernet": PCIE,  # assumed, as for xgmi
    "ici": Library(ring=_ICI, direct=_ICI),
}
# Share of its network cards' rate that a large all-reduce reaches: 340 of 400 Gb/s on AWS EFA
# (github.com/stas00/ml-engineering at 744d01e, network/README.md).
NETWORK_SUSTAINED = 0.85
# Duration of kernels beside collectives over that alone: 18.9 % more on average of GPT and LLaMA models on A100, H100,
# MI250 and MI210 (arXiv 2507.03114). On H100 an all-gather takes 24 of 132 cores, which is 22 % more
# (forums.developer.nvidia.com/t/337991). For collectives beside kernels it is assumed, since nobody has published it.
CONTENDED = 1.189
SMALL = 512  # bytes of the all-gather in `Links.all_gather_us`

KINDS = (
    *("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "gather", "scatter"),
    *("send", "recv", "barrier"),
)


def traffic(kind: str, size: int) -> tuple[float, int]:
    """Return the share of a collective's bytes that pass a port in one direction, and the steps of a ring.

    The bytes are those of the whole: what each rank has before an all-reduce, after an all-gather, or before a
    reduce-scatter or an all-to-all.
    """
    if kind in ("all_reduce", "barrier"):
        return 2 * (size - 1) / size, 2 * (size - 1)
    if kind in ("broadcast", "reduce"):  # in a pipeline along the ring
        return 1.0, size - 1
    if kind in ("send", "recv"):
        return 1.0, 1
    return (size - 1) / size, size - 1


def collective_seconds(kind: str, nbytes: float, *, cluster: str | Topology, ranks: int | Sequence[int]) -> float:
    """Predict the seconds of one collective.

    Args:
        kind: one of `KINDS`, as ``all_reduce``.
        nbytes: what each rank has before an all-reduce, after an all-gather, or before a reduce-scatter or an
            all-to-all; for the others, the message.
        cluster: a cluster's or node's name (``dgx-h100``), a number of nodes (``dgx-h100x32``), or a file.
        ranks: the ranks of the group, or their number, from the first chip on.

    Raises:
        BringupError: there is no such collective or cluster, or it has too few chips.
    """
    if kind not in KINDS:
        raise BringupError(f"there is no collective {kind!r}: the kinds are {', '.join(KINDS)}")
    if not 0 <= nbytes < 1e18:
        raise BringupError(f"a collective has between 0 and 1e18 bytes, got {nbytes:g}")
    topology = cluster if isinstance(cluster, Topology) else load_cluster(cluster)
    return float(seconds(kind, np.asarray([float(nbytes)]), topology, topology.group(ranks))[0])


def seconds(kind: str, nbytes: Array, topology: Topology, group: Group, library: Library | None = None) -> Array:
    """Return the seconds of collectives of one kind and group, by their bytes; see Note [The model of collectives]."""
    if group.size < 2:
        return np.zeros(len(nbytes))
    links = topology.node.links
    chosen = library or LIBRARIES[links.kind]
    share, _ = traffic(kind, group.size)
    factor = _latency_factor(topology, chosen)
    protocols = chosen.direct if kind == "all_to_all" else chosen.ring
    pair = kind in ("send", "recv")
    loss = 1.0 if pair else 1 - chosen.peers / (max(group.per_node, 2) - 1)
    tree = kind in ("all_reduce", "barrier", "broadcast", "reduce") and group.nodes > 1
    times = []
    for protocol in protocols:
        inside = _rate(topology, group.per_node) * protocol.share * loss
        relative = protocol.share / protocols[-1].share  # what the protocol reaches of the simple one's rate
        if kind == "all_to_all":
            moved = _direct_seconds(nbytes, inside, relative, topology, group)
        else:
            moved = share * nbytes / min(inside, _network_rate(topology, group) * relative)
        times += [
            factor * protocol.start + latency + moved
            for latency in _latencies(kind, protocol, factor, topology, group, tree=tree)
        ]
    if chosen.reduction and links.reduction and kind == "all_reduce" and group.size > 2:
        times.append(_reduced_seconds(nbytes, chosen.reduction, factor, topology, group))
    fastest: Array = np.minimum.reduce(times)
    return fastest


def _rate(topology: Topology, chips: int) -> float:
    rates = topology.node.links.rates
    return next((rate for size, rate in rates if chips <= size), rates[-1][1])


def _network_rate(topology: Topology, group: Group) -> float:
    """Return the bytes/s with which the group's ranks on one node reach the other nodes; infinite inside a node."""
    nics, network = topology.node.network, topology.network
    if group.nodes < 2 or nics is None:
        return math.inf
    sustained = NETWORK_SUSTAINED if network.sustained is None else network.sustained
    cards = min(nics.nics, group.per_node * max(1.0, nics.nics / topology.node.chips))
    beyond = network.pod_nodes is not None and group.span > network.pod_nodes
    return cards * nics.gb_s * 1e9 * sustained / (network.oversubscription if beyond else 1.0)


def _latencies(
    kind: str, protocol: Protocol, factor: float, topology: Topology, group: Group, *, tree: bool
) -> list[float]:
    """Return the seconds of a ring's steps, and of a tree's between nodes where the library has one."""
    _, steps = traffic(kind, group.size)
    links = topology.node.links
    if links.kind == "ici":  # rings along the axes of a torus, in both directions
        side = group.size ** (1 / links.dimensions)
        steps = (2 if kind in ("all_reduce", "barrier") else 1) * links.dimensions * math.ceil(side / 2)
    hop = factor * protocol.hop
    if group.nodes < 2:
        return [steps * hop]
    passes = steps / max(group.size - 1, 1)  # 2 for an all-reduce
    between = min(steps, passes * (group.nodes - 1))
    ring = (steps - between) * hop + between * protocol.ring_net
    within = group.per_node - 1
    climb = passes * (within * hop + math.log2(group.nodes) * protocol.tree_net)
    return [ring, climb] if tree else [ring]


def _direct_seconds(nbytes: Array, inside: float, relative: float, topology: Topology, group: Group) -> Array:
    """Return the seconds of the bytes of an all-to-all: the slower one of links and network cards."""
    near = (group.per_node - 1) / group.size * nbytes / inside
    if group.nodes < 2:
        return near
    cards = _network_rate(topology, group) / group.per_node * relative
    return np.maximum(near, (group.size - group.per_node) / group.size * nbytes / cards)


def _reduced_seconds(nbytes: Array, protocol: Protocol, factor: float, topology: Topology, group: Group) -> Array:
    """Return the seconds of an all-reduce whose switches add: reduced inside nodes, then along a tree between them."""
    share, _ = traffic("all_reduce", group.size)
    moved = nbytes / (_rate(topology, group.per_node) * protocol.share)
    moved = np.maximum(moved, share * nbytes / _network_rate(topology, group))
    between = 2 * math.log2(group.nodes) * protocol.ring_net if group.nodes > 1 else 0.0
    inside = factor * (protocol.start + protocol.hop * (group.per_node - 1))
    return inside + between + moved


def _latency_factor(topology: Topology, library: Library) -> float:
    """Return the node's factor for starts and hops: its measured small all-gather over the model's."""
    node = topology.node
    if node.links.all_gather_us is None:
        return 1.0
    first = library.ring[0]
    return node.links.all_gather_us * 1e-6 / (first.start + (node.chips - 1) * first.hop)


def is_collective(signature: Signature) -> bool:
    """Return True if a launch is a collective."""
    return signature.op.startswith("c10d::")


def with_collectives(prices: Prices, signatures: Sequence[Signature], chip: Chip, cluster: Topology | None) -> Prices:
    """Return the prices with those of collectives on a cluster; without one, on the nearest cluster of the chip.

    A collective takes no cores: its share is 0, and the replay runs one at a time on the chip's network. A receive may
    wait for the other rank, so it holds nothing: its share is -1. A send takes no time of the sender's stream, since
    the receiver's row has it.
    """
    rows = [i for i, signature in enumerate(signatures) if is_collective(signature)]
    if not rows:
        return prices
    groups = {i: ranks_of(signatures[i]) for i in rows}
    topology = cluster or cluster_of(chip, 1 + max(max(ranks) for ranks in groups.values()))
    spent, share, bound = prices.seconds.copy(), prices.share.copy(), prices.bound.copy()
    for i in rows:
        kind, nbytes = signatures[i].name, float(signatures[i].args["bytes"])
        free = kind == "send"
        spent[i] = 0.0 if free else collective_seconds(kind, nbytes, cluster=topology, ranks=groups[i])
        share[i], bound[i] = -1.0 if kind in ("send", "recv") else 0.0, NETWORK
    return replace(prices, seconds=spent, share=share, bound=bound)
