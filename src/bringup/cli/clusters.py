"""``bringup clusters``: lists, shows and checks clusters and nodes."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.table import Table

from bringup.machine.facts import flat, source_of
from bringup.machine.files import available_clusters, available_nodes, load_chip, load_cluster_file, load_node
from bringup.machine.topology import Topology, load_cluster
from bringup.pricing.collective import collective_seconds
from bringup.report.terminal import console as new_console
from bringup.report.terminal import escaped
from bringup.text import duration, plain

SHOWN_BYTES = 256 << 20  # of the all-reduce in the table


def _facts(topology: Topology) -> dict[str, Any]:
    node = topology.node
    chip = load_chip(node.chip)
    return {
        "name": topology.name,
        "description": topology.description,
        "chips": topology.chips,
        "chip": node.chip,
        "node": node.name,
        "nodes": topology.nodes,
        "chips_per_node": node.chips,
        "host": node.host,
        "links": node.links.kind,
        "link_gb_s": max(node.links.gb_s.values()),
        "nics_per_node": None if node.network is None else node.network.nics,
        "nic_gb_s": None if node.network is None else node.network.gb_s,
        "device_gib": chip.memory.device_gib * topology.chips,
        "all_reduce_seconds": collective_seconds("all_reduce", SHOWN_BYTES, cluster=topology, ranks=node.chips),
    }


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object per cluster or node.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the clusters and nodes that ship with bringup; show or check one.

    A node is a cluster of one, and dgx-h100x32 is one of 32. Columns: chips, the chip, what links the chips of a node,
    network cards per node, and the predicted time of an all-reduce of 256 MiB over one node.
    """
    if context.invoked_subcommand is not None:
        return
    rows = [_facts(load_cluster(name)) for name in (*available_nodes(), *available_clusters())]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("cluster", "chips", "chip", "links", "GB/s", "network cards", "all-reduce, 256 MiB"):
        table.add_column(title, justify="left" if title in ("cluster", "chip", "links") else "right", no_wrap=True)
    for row in rows:
        cards = "" if row["nics_per_node"] is None else f"{row['nics_per_node']} x {row['nic_gb_s']:g} GB/s"
        table.add_row(
            row["name"],
            f"{row['chips']:,}",
            row["chip"],
            row["links"],
            f"{row['link_gb_s']:g}",
            cards,
            duration(row["all_reduce_seconds"]),
        )
    console = new_console()
    console.print(table)
    console.print("`bringup clusters show NAME` shows details; dgx-h100x32 is a cluster of 32 nodes.")


@command.command(short_help="Show a cluster or a node.")  # repeated here because python -OO removes docstrings
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def show(name: str, as_json: bool) -> None:
    """Show all numbers of the cluster or node NAME (or of a file), each with its source."""
    topology = load_cluster(name)
    if as_json:
        click.echo(json.dumps(_facts(topology), indent=2))
        return
    console = new_console()
    console.print(f"[bold]{escaped(topology.name)}[/]  {escaped(topology.description)}")
    files = [load_node(topology.node.name) if topology.node.name in available_nodes() else topology.node]
    described = [*(load_cluster_file(name) for _ in range(name in available_clusters())), *files]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("key", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("source", overflow="fold", style="dim")
    for item in described:
        data = item.model_dump(exclude_none=True)
        sources = data.pop("sources", {})
        for key, value in flat({k: v for k, v in data.items() if k not in ("name", "description")}):
            table.add_row(escaped(key), escaped(str(value)), escaped(source_of(key, sources)))
    console.print(table)


@command.command(short_help="Check a cluster or node file.")
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print what a valid file describes as a JSON object.")
def check(file: str, as_json: bool) -> None:
    """Check the file FILE of a cluster or a node: its keys, units, values, and a source for every number."""
    topology = load_cluster(file if "/" in file or file.endswith(".toml") else f"./{file}")
    load_chip(topology.node.chip)
    if as_json:
        click.echo(json.dumps(_facts(topology), indent=2))
        return
    click.echo(plain(f"{file}: valid file of {topology.name}, {topology.chips:,} x {topology.node.chip}"))
