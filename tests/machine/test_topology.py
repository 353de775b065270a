"""Clusters: names, files, groups of ranks, and mistakes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import bringup
from bringup.cli.clusters import command
from bringup.machine.files import load_node
from bringup.machine.topology import Group

TWO = """
vendor = "us"
description = "two chips on a desk"
invented = true
chip = "edge8"
chips = 2
[links]
kind = "pcie"
[links.gb_s]
2 = 8
"""


@pytest.mark.parametrize("name", [*bringup.available_nodes(), *bringup.available_clusters()])
def test_shipped_cluster_loads(name: str) -> None:
    cluster = bringup.load_cluster(name)
    assert cluster.name == name
    assert bringup.load_chip(cluster.node.chip)
    assert cluster.node.host is None or bringup.load_host(cluster.node.host)
    assert cluster.chips == cluster.nodes * cluster.node.chips


def test_every_promised_node_ships() -> None:
    promised = """
        dgx-a100 dgx-h100 dgx-b200 gb200-nvl72 mi300x-platform tpu-v4-pod tpu-v5p-pod gaudi3-server l40s-server
        rtx-4090-server rtx-3090-pair
    """
    assert set(promised.split()) <= set(bringup.available_nodes())


def test_a_number_of_nodes_is_a_cluster() -> None:
    cluster = bringup.load_cluster("dgx-h100x32")
    assert (cluster.nodes, cluster.chips) == (32, 256)


def test_group_says_where_its_ranks_are() -> None:
    cluster = bringup.load_cluster("dgx-h100x4")
    assert cluster.group(16) == Group(size=16, nodes=2, per_node=8, span=2)
    assert cluster.group([0, 8, 24]) == Group(size=3, nodes=3, per_node=1, span=4)


def test_a_file_may_be_of_a_node(tmp_path: Path) -> None:
    path = tmp_path / "desk.toml"
    path.write_text(TWO, encoding="utf-8")
    assert bringup.load_cluster(path).chips == 2
    assert load_node(path).links.rates == [(2, 8e9)]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("invented = true\n", "", "chips has no source: add it under"),
        ("2 = 8", "one = 8", "gb_s names one: write a number of chips from 2"),
        ("2 = 8", "4 = 8", "links.gb_s ends at 4 chips, but the node has 2"),
        ('kind = "pcie"', 'kind = "rope"', "links.kind: Input should be 'nvlink', 'pcie'"),
        ("[links]", "[link]", "link is not a key of a node file: did you mean links?"),
    ],
)
def test_malformed_node_file_is_told_in_one_sentence(tmp_path: Path, old: str, new: str, problem: str) -> None:
    path = tmp_path / "desk.toml"
    path.write_text(TWO.replace(old, new), encoding="utf-8")
    with pytest.raises(bringup.ChipFileError, match=r"desk\.toml: ") as error:
        load_node(path)
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_unknown_cluster_suggests_the_nearest_names() -> None:
    with pytest.raises(bringup.UnknownChipError, match="is named 'dgx-h10': did you mean dgx-h100 or"):
        bringup.load_cluster("dgx-h10")


def test_more_ranks_than_chips_are_refused() -> None:
    with pytest.raises(bringup.BringupError, match=r"dgx-h100 has 8 chips, and rank 15 .* example dgx-h100x2"):
        bringup.load_cluster("dgx-h100").group(16)


def test_nodes_without_network_cards_are_no_cluster() -> None:
    with pytest.raises(bringup.BringupError, match="node rtx-3090-pair has no network cards"):
        bringup.load_cluster("rtx-3090-pairx2")


def test_verb_lists_clusters_as_json() -> None:
    rows = json.loads(CliRunner().invoke(command, ["--json"]).output)
    by_name = {row["name"]: row for row in rows}
    assert by_name["dgx-h100"]["chips"] == 8 and by_name["dgx-h100"]["chip"] == "h100-sxm"
    assert set(by_name) == {*bringup.available_nodes(), *bringup.available_clusters()}


def test_verb_shows_sources() -> None:
    output = CliRunner().invoke(command, ["show", "llama3-24k"]).output
    assert "arXiv 2407.21783" in output and "links.gb_s.8" in output
