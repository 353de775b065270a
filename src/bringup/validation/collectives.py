"""Measured collectives: reads the published sets, predicts each row, and fits the model's constants without a system.

A system is described by its node file, or by the set itself if none ships. Such a node states its rates by the set's
data sheet, for PCIe by one large all-gather for each size of group, and its latency by one small all-gather. These rows
are not predicted.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from bringup.errors import BringupError
from bringup.files import read_text
from bringup.machine.schema import Links, Network, Nics, Node
from bringup.machine.topology import Group, Topology, load_cluster
from bringup.pricing.collective import LIBRARIES, SMALL, Library, Protocol, seconds, traffic
from bringup.pricing.errors import Errors
from bringup.text import short

_ITEM_BYTES = {"half": 2, "float16": 2, "bfloat16": 2, "float": 4, "int8": 1, "fp8": 1}
_KINDS = {"alltoall": "all_to_all", "send_recv": "send"}
_NODES = {"a100_sxm": "dgx-a100", "h100_sxm": "dgx-h100", "b200_sxm": "dgx-b200", "l40s": "l40s-server"}
_REDUCES_FROM = 450e9  # bytes/s of a chip: NVSwitches add from NVLink 4 on (stas00/ml-engineering, network/README.md)
PATTERNS = ("aiconfigurator/*__nccl_perf.csv", "llmcompass/allreduce_*.csv", "vidur/network_median.csv")


@dataclass(frozen=True)
class Row:
    """One measured collective: its system, kind, ranks, bytes and seconds."""

    system: str
    kind: str
    size: int
    per_node: int
    nbytes: float
    seconds: float

    @property
    def group(self) -> Group:
        """Where the ranks are: on the first nodes, equally many on each."""
        nodes = -(-self.size // self.per_node)
        return Group(self.size, nodes, self.per_node, nodes)


@dataclass(frozen=True)
class System:
    """The rows of one machine that are predicted, and its description."""

    name: str
    topology: Topology
    rows: tuple[Row, ...]

    def predicted(self, library: Library | None = None) -> Any:
        """Return the predicted seconds of all rows, in their order."""
        out = np.zeros(len(self.rows))
        places: dict[tuple[str, Group], list[int]] = defaultdict(list)
        for place, row in enumerate(self.rows):
            places[row.kind, row.group].append(place)
        for (kind, group), members in places.items():
            sizes = np.asarray([self.rows[place].nbytes for place in members])
            out[members] = seconds(kind, sizes, self.topology, group, library)
        return out

    def errors(self, library: Library | None = None) -> Any:
        """Return predicted over measured, less one, of every row."""
        return self.predicted(library) / [row.seconds for row in self.rows] - 1


def read_collectives(folder: Path) -> tuple[list[System], list[str]]:
    """Read all sets of collectives below a folder; return them, and a sentence for every file that is skipped."""
    systems: list[System] = []
    skipped = []
    for pattern, reader in zip(PATTERNS, (_aiconfigurator, _llmcompass, _vidur), strict=True):
        for path in sorted(folder.rglob(pattern)):
            try:
                systems += reader(path)
            except (
                BringupError,
                ArithmeticError,
                LookupError,
                StopIteration,
                TypeError,
                ValueError,
                csv.Error,
            ) as error:
                reason = short(str(error) or type(error).__name__, 200)
                skipped.append(f"{path} is not in the format of its publisher: {reason}; it is skipped")
    return systems, skipped


def _table(path: Path) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(read_text(path, "measurement file").splitlines())


def _aiconfigurator(path: Path) -> list[System]:
    name = path.name.partition("__")[0]
    rows = [
        Row(
            name,
            _KINDS.get(line["op_name"], line["op_name"]),
            int(line["num_gpus"]),
            int(line["num_gpus"]),
            float(line["message_size"]) * _ITEM_BYTES[line["nccl_dtype"]],
            float(line["latency"]) * 1e-3,
        )
        for line in _table(path)
    ]
    stated = _stated(rows)
    if name in _NODES:
        topology = load_cluster(_NODES[name])
    else:
        about = json.loads(read_text(path.with_name("systems.json"), "measurement file"))[name]["node"]
        rate, on_pcie = about["intra_node_bw"], about["intra_node_bw"] <= about["pcie_bw"]
        topology = _described(name, rate, on_pcie, stated)
    return [System(f"aiconfigurator {name}", topology, tuple(row for row in rows if row not in stated))]


def _stated(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that a node file states: the smallest all-gather of all chips, and the largest of every size."""
    gathers = [row for row in rows if row.kind == "all_gather"]
    most = max(row.size for row in gathers)
    largest = [
        max((row for row in gathers if row.size == size), key=lambda row: row.nbytes)
        for size in sorted({row.size for row in gathers})
    ]
    small = next(row for row in gathers if row.size == most and row.nbytes == SMALL)
    return [small, *largest]


def _described(name: str, rate: float, on_pcie: bool, stated: list[Row]) -> Topology:
    small, *largest = stated
    rates = {str(small.size): rate * 1e-9}
    if on_pcie:
        rates = {str(row.size): traffic(row.kind, row.size)[0] * row.nbytes / row.seconds * 1e-9 for row in largest}
    links = Links(
        kind="pcie" if on_pcie else "nvlink",
        gb_s=rates,
        all_gather_us=small.seconds * 1e6,
        reduction=not on_pcie and rate >= _REDUCES_FROM,
    )
    return Topology(name, name, _node(name, small.size, links, None), 1, Network())


def _node(name: str, chips: int, links: Links, network: Nics | None) -> Node:
    return Node(
        name=name,
        vendor=name,
        description=name,
        invented=True,  # by the measurements of a set, not by a file
        chip=name,
        chips=chips,
        links=links,
        network=network,
    )


def _llmcompass(path: Path) -> list[System]:
    rows = [
        Row("dgx-a100", "all_reduce", 4, 4, float(line["bytes"]), float(line["latency_us"]) * 1e-6)
        for line in _table(path)
    ]
    return [System("LLMCompass A100 x 4 (host clock)", load_cluster("dgx-a100"), tuple(rows))]


def _vidur(path: Path) -> list[System]:
    rows = [
        Row(
            line["system"],
            _KINDS.get(line["op"], line["op"]),
            int(line["num_workers"]),
            int(line["devices_per_node"]),
            float(line["bytes"]),
            float(line["median_ms"]) * 1e-3,
        )
        for line in _table(path)
        if line["system"] == "a100_dgx"
    ]
    inside = tuple(row for row in rows if row.size == row.per_node)
    across = [row for row in rows if row.size > row.per_node and row.kind == "all_reduce"]
    one = max((row for row in across if row.per_node == 1), key=lambda row: row.nbytes)
    most = max(across, key=lambda row: (row.per_node, row.nbytes))
    # One row has the rate of a card, and one with all chips the number of cards.
    card, node = (traffic(row.kind, row.size)[0] * row.nbytes / row.seconds for row in (one, most))
    base = load_cluster("dgx-a100").node
    cards = Nics(nics=max(1, round(node / card)), gb_s=card * 1e-9)
    cluster = Topology("vidur", "vidur", _node("vidur", base.chips, base.links, cards), 2, Network(sustained=1.0))
    rest = tuple(row for row in across if row not in (one, most))
    return [System("Vidur DGX A100", load_cluster("dgx-a100"), inside), System("Vidur, two nodes", cluster, rest)]


def summary(systems: Iterable[System], *, leave_one_out: bool) -> dict[str, dict[str, Errors]]:
    """Return the errors of every system; with ``leave_one_out`` also with constants fitted without it."""
    systems = list(systems)
    out: dict[str, dict[str, Errors]] = {}
    for system in systems:
        out[system.name] = {"all": Errors.from_values(system.errors())}
        if leave_one_out and system.name.startswith("aiconfigurator"):
            library = fit([other for other in systems if other is not system], system.topology.node.links.kind)
            out[system.name]["left out"] = Errors.from_values(system.errors(library))
    return out


def fit(systems: Iterable[System], kind: str) -> Library:
    """Fit the constants of one kind of links to aiconfigurator's systems.

    It minimises the soft absolute logarithm of predicted over measured, from round numbers on.

    Raises:
        BringupError: scipy is missing, or no system has such links.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise BringupError("fitting constants needs scipy: pip install scipy") from None
    used = [s for s in systems if s.topology.node.links.kind == kind and s.name.startswith("aiconfigurator")]
    if not used:
        raise BringupError(f"no measured system has links of kind {kind}")
    shape = LIBRARIES[kind]

    def residuals(moved: Any) -> Any:
        library = _with(shape, np.exp(moved))
        return np.concatenate([np.log(system.errors(library) + 1) for system in used])

    start = [float(f"{value:.0e}") for value in _values(shape)]
    logs = least_squares(residuals, np.log(start), loss="soft_l1", f_scale=0.05).x
    return _with(shape, np.exp(logs))


_FITTED = ("start", "hop", "share")


def _protocols(library: Library) -> list[Protocol]:
    return [*library.ring, *library.direct, *([library.reduction] if library.reduction else [])]


def _values(library: Library) -> list[float]:
    """Return all constants but the first start, which only sets the unit of a node's factor."""
    values = [getattr(protocol, name) for protocol in _protocols(library) for name in _FITTED][1:]
    return [*values, library.peers] if library.peers else values


def _with(library: Library, values: Sequence[float]) -> Library:
    """Return the library with other constants, in the order of `_values`."""
    values = [library.ring[0].start, *map(float, values)]
    pieces = [
        replace(protocol, **dict(zip(_FITTED, values[3 * i : 3 * i + 3], strict=True)))
        for i, protocol in enumerate(_protocols(library))
    ]
    ring, direct = len(library.ring), len(library.direct)
    return Library(
        ring=tuple(pieces[:ring]),
        direct=tuple(pieces[ring : ring + direct]),
        peers=min(values[-1], 0.9) if library.peers else 0.0,
        reduction=pieces[-1] if library.reduction else None,
    )


assert {field.name for field in fields(Library)} == {"ring", "direct", "peers", "reduction"}  # `_with` names them all
