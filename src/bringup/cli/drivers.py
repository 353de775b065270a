"""``bringup drivers``: lists the drivers that come with bringup, and their devices here."""

from __future__ import annotations

import json

import click
from rich.table import Table

from bringup.drivers.names import drivers
from bringup.report.terminal import console as new_console
from bringup.report.terminal import escaped


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object per driver.")
def command(as_json: bool) -> None:
    """List the drivers that come with bringup: their devices on this machine, and what is missing."""
    rows = drivers()
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("driver", no_wrap=True)
    table.add_column("usable")
    table.add_column("devices, or what is missing", overflow="fold")
    for row in rows:
        facts = ", ".join(row["devices"]) if row["usable"] else row["why_not"]
        table.add_row(row["name"], "yes" if row["usable"] else "no", escaped(facts))
    new_console().print(table)
