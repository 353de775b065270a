"""``bringup chips``: lists, shows, checks and writes chip files."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from bringup.errors import BringupError
from bringup.files import refuse_unwritable
from bringup.machine import new as new_chip
from bringup.machine.facts import flat, source_of
from bringup.machine.files import available_chips, available_hosts, chip_mistakes, load_chip, load_host
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
        "usd": chip.price and chip.price.usd,
        "usd_per_hour": chip.price and chip.price.usd_per_hour,
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
    """List the chips that ship with bringup; show, check or write a chip file.

    Columns: device memory and its bandwidth, the dense peak of products in the fastest dtype, the price of an hour,
    the error band of predictions, and whether predictions were validated against measurements.
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
        ("TFLOP/s", "right"),
        ("dtype", "left"),
        ("USD/h", "right"),
        ("error", "right"),
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
            "" if row["usd_per_hour"] is None else f"{row['usd_per_hour']:.2f}",
            "" if row["error_band"] is None else f"{row['error_band']:.0%}",
            escaped(row["validation"].split(":")[0]),
            style=None if row["error_band_of"] == "programs" else "dim",
        )
    console = new_console()
    console.print(table)
    hosts = ", ".join(available_hosts())
    console.print(f"{len(rows)} chips; hosts: {hosts}. `bringup chips show NAME` shows details.", soft_wrap=True)


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
        console.print(f"validated on {quantity(count, 'measurement')} of {escaped(source)}")


@command.command(short_help="Check a chip file.")
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object: the file's mistakes, or what it describes.")
@click.pass_context
def check(context: click.Context, file: str, as_json: bool) -> None:
    """Check the chip file FILE: its keys, units, values, and a source for every number.

    All mistakes are listed, one a line; a star marks required keys. The exit code then is 2.
    """
    named = file
    if file not in available_chips():
        path = Path(file if "/" in file or file.endswith(".toml") else f"./{file}")
        if mistakes := chip_mistakes(path):
            if as_json:
                listed = [{"text": mistake.text, "required": mistake.required} for mistake in mistakes]
                click.echo(json.dumps({"file": file, "mistakes": listed}, indent=2))
                context.exit(2)
            lines = [f"bringup: {plain(file)}: {quantity(len(mistakes), 'mistake')} (* is a required key)"]
            lines += [f"  {'*' if mistake.required else ' '} {mistake.text}" for mistake in mistakes]
            click.echo("\n".join(lines), err=True)
            context.exit(2)
        file = str(path)
    chip = load_chip(file)
    if as_json:
        click.echo(json.dumps({"file": named, "mistakes": [], **_facts(chip)}, indent=2))
        return
    click.echo(plain(f"{file}: valid chip file of {chip.name}; {_facts(chip)['validation']}"))


@command.command(short_help="Write a new chip file.")
@click.argument("file")
@click.option("--json", "specification", default=None, metavar="SPEC", help="Take the values from this JSON file.")
def new(file: str, specification: str | None) -> None:
    """Write the chip file FILE, with a comment on every key and a source for every number.

    SPEC has the tables of a chip file as JSON objects: {"vendor": "me", "compute": {"cores": 8, ...}, ...}. Its key
    "source" is the source of all numbers that "sources" does not name. Without SPEC, the required values are asked
    for. A file that exists is not overwritten.
    """
    path = Path(file if file.endswith(".toml") else f"{file}.toml")
    if os.path.lexists(path):  # before the questions
        raise BringupError(f"{path}: exists already; choose another name, or remove it first")
    refuse_unwritable(path)
    assumed = new_chip.write(path, new_chip.read_specification(specification) if specification else _answers())
    note = f"; {quantity(assumed, 'number')} without a source, marked as assumed" if assumed else ""
    where = path if path.is_absolute() else f"./{path}"
    click.echo(plain(f"{path}: written{note}. Use it: bringup run --chip {where} PROGRAM"))


def _answers() -> dict[str, Any]:
    """Ask for the values that every chip file needs."""

    def ask(key: str, kind: Any, default: Any = None) -> Any:
        return click.prompt(f"{key} ({new_chip.MEANINGS[key]})", type=kind, default=default, err=True)

    rate = click.FloatRange(min=0, min_open=True)
    text = {key: ask(key, str) for key in ("vendor", "description")}
    kind = ask("kind", click.Choice(["gpu", "tpu", "ipu", "npu", "cpu"]))
    compute = {"cores": ask("compute.cores", click.IntRange(min=1)), "clock_ghz": ask("compute.clock_ghz", rate)}
    peaks = {}
    for dtype in ("float32", "bfloat16", "int8"):
        question = f"matrix.tflops.{dtype} (dense peak of products in {dtype}, TFLOP/s; 0: none)"
        peaks[dtype] = click.prompt(question, type=click.FloatRange(min=0), default=0, err=True)
    vector = {"tflops": {"float32": click.prompt("vector.tflops.float32 (TFLOP/s)", type=rate, err=True)}}
    memory = {key: ask(f"memory.{key}", rate) for key in ("device_gib", "bandwidth_gb_s")}
    link = {"kind": ask("link.kind", click.Choice(["pcie", "usb", "ethernet", "shared"]))}
    link["h2d_gb_s"] = ask("link.h2d_gb_s", rate)
    link["d2h_gb_s"] = ask("link.d2h_gb_s", rate, link["h2d_gb_s"])
    link["latency_us"] = ask("link.latency_us", click.FloatRange(min=0))
    question = "source (document and page of these numbers; empty: the chip is invented)"
    source = click.prompt(question, default="", show_default=False, err=True)
    return {
        **text,
        "kind": kind,
        "compute": compute,
        "matrix": {"tflops": {dtype: peak for dtype, peak in peaks.items() if peak}},
        "vector": vector,
        "memory": memory,
        "link": link,
        **({"source": source} if source else {"invented": True}),
    }
