"""``bringup chips``: lists, shows and checks chip files."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from bringup.machine.facts import flat, source_of
from bringup.machine.files import available_chips, available_hosts, load_chip, load_host
from bringup.pricing.bands import error_band
from bringup.pricing.measurements import measurements
from bringup.report.terminal import console as new_console
from bringup.report.terminal import escaped
from bringup.text import plain, quantity

if TYPE_CHECKING:
    from bringup.machine.schema import Chip


def _facts(chip: Chip) -> dict[str, Any]:
    band = error_band(chip)
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
        "validation": band.text,
        "error_band": None if band.error is None else round(band.error, 4),
        "error_band_of": band.measured,
        "error_band_rows": band.rows,
        "invented": chip.invented,
    }


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object per chip.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the chips that ship with bringup; show or check a chip file.

    Columns: device memory, its bandwidth, the fastest dtype and its peak rate, the error band of predictions, and
    whether predictions were validated against measurements.
    """
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
        table.add_row(
            row["name"],
            f"{row['device_gib']:g}",
            f"{row['bandwidth_gb_s']:g}",
            f"{row['peak_tflops'][row['fastest_dtype']]:g}",
            row["fastest_dtype"],
            "" if row["error_band"] is None else f"{row['error_band']:.0%}",
            escaped(row["validation"].split(":")[0]),
            style=None if row["error_band_of"] == "programs" else "dim",
        )
    console = new_console()
    console.print(table)
    console.print(f"{len(rows)} chips; hosts: {', '.join(available_hosts())}. `bringup chips show NAME` shows details.")


@command.command(short_help="Show a chip or a host.")  # repeated here because python -OO removes docstrings
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def show(name: str, as_json: bool) -> None:
    """Show all numbers of the chip or host NAME (or a chip file), each with its source."""
    described = load_host(name) if name in available_hosts() else load_chip(name)
    data = described.model_dump(exclude_none=True)
    if as_json:
        click.echo(json.dumps(data, indent=2))
        return
    sources = data.pop("sources", {})
    console = new_console()
    console.print(f"[bold]{escaped(described.name)}[/]  {escaped(described.description)}")
    if "kind" in data:
        console.print(escaped(_facts(described)["validation"]))  # type: ignore[arg-type]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("key", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("source", overflow="fold", style="dim")
    for key, value in flat({k: v for k, v in data.items() if k not in ("name", "description")}):
        table.add_row(escaped(key), escaped(str(value)), escaped(source_of(key, sources)))
    console.print(table)

    counts = Counter(row.source for row in measurements() if row.chip == described.name)
    for source, count in sorted(counts.items()):
        console.print(f"validated on {quantity(count, 'measurement')} of {escaped(source)}", highlight=False)


@command.command(short_help="Check a chip file.")
@click.argument("file")
def check(file: str) -> None:
    """Check the chip file FILE: its keys, units, values, and a source for every number."""
    chip = load_chip(file if "/" in file or file.endswith(".toml") or file in available_chips() else f"./{file}")
    facts = _facts(chip)
    click.echo(plain(f"{file}: valid chip file of {chip.name}; {facts['validation']}"))
