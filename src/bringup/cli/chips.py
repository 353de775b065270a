"""``bringup chips``: list, show and check chip files."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from bringup.machine.facts import flat, source_of
from bringup.machine.files import available_chips, available_hosts, load_chip, load_host
from bringup.pricing.errors import error_band
from bringup.pricing.measurements import measurements
from bringup.report.terminal import console as new_console
from bringup.report.terminal import shown
from bringup.text import plain

if TYPE_CHECKING:
    from bringup.machine.schema import Chip


def _facts(chip: Chip) -> dict[str, Any]:
    band, source = error_band(chip)
    fastest = max((name for name in chip.matrix.tflops if name != "tf32"), key=lambda name: chip.matrix.tflops[name])
    return {
        "name": chip.name,
        "vendor": chip.vendor,
        "description": chip.description,
        "kind": chip.kind,
        "modes": list(chip.modes),
        "device_gib": chip.memory.device_gib,
        "bandwidth_gb_s": chip.memory.bandwidth_gb_s,
        "peak_tflops": dict(chip.matrix.tflops),
        "fastest_dtype": fastest,
        "validation": source,
        "error_band": None if band is None else round(band, 4),
        "invented": chip.invented,
    }


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List, show and check chip files."""
    if context.invoked_subcommand is not None:
        return
    rows = [_facts(load_chip(name)) for name in available_chips()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (
        ("chip", "left"),
        ("GiB", "right"),
        ("GB/s", "right"),
        ("TFLOPS", "right"),
        ("of", "left"),
        ("band", "right"),
        ("predictions", "left"),
    ):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        validated = row["validation"].startswith("validated")
        table.add_row(
            row["name"],
            f"{row['device_gib']:g}",
            f"{row['bandwidth_gb_s']:g}",
            f"{row['peak_tflops'][row['fastest_dtype']]:g}",
            row["fastest_dtype"],
            "" if row["error_band"] is None else f"{row['error_band']:.0%}",
            shown(row["validation"].split(":")[0]),
            style=None if validated else "dim",
        )
    console = new_console()
    console.print(table)
    console.print(f"{len(rows)} chips; hosts: {', '.join(available_hosts())}. `bringup chips show NAME` shows one.")


@command.command(short_help="Show a chip or a host.")  # said here, too: python -OO leaves docstrings out
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
def show(name: str, as_json: bool) -> None:
    """Show a chip or a host: every number with its source."""
    described = load_host(name) if name in available_hosts() else load_chip(name)
    data = described.model_dump(exclude_none=True)
    if as_json:
        click.echo(json.dumps(data, indent=2))
        return
    sources = data.pop("sources", {})
    console = new_console()
    console.print(f"[bold]{shown(described.name)}[/]  {shown(described.description)}")
    if "kind" in data:
        console.print(shown(_facts(described)["validation"]))  # type: ignore[arg-type]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("key", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("source", overflow="fold", style="dim")
    for key, value in flat({k: v for k, v in data.items() if k not in ("name", "description")}):
        table.add_row(shown(key), shown(str(value)), shown(source_of(key, sources)))
    console.print(table)

    used = Counter(row.source for row in measurements() if row.chip == described.name)
    for source, count in sorted(used.items()):
        console.print(f"validated by {count} measurements of {shown(source)}", highlight=False)


@command.command(short_help="Check a chip file.")
@click.argument("file")
def check(file: str) -> None:
    """Check a chip file: keys, units, values, a source for every number."""
    chip = load_chip(file if "/" in file or file.endswith(".toml") or file in available_chips() else f"./{file}")
    facts = _facts(chip)
    click.echo(plain(f"{file}: a whole chip file of {chip.name}; {facts['validation']}"))
