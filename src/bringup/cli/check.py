"""``bringup check``: the scorecard of a device's software."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from bringup.cli.options import FORMATS, OUTPUT_HELP
from bringup.errors import BringupError
from bringup.files import refuse_unwritable, write_text
from bringup.frontends.tensorflow import hook
from bringup.machine.files import load_chip
from bringup.process import asked_chip, asked_devices
from bringup.report import directory, github
from bringup.report.terminal import console as new_console
from bringup.report.terminal import escaped
from bringup.scorecard import card, page
from bringup.scorecard.card import share, totals
from bringup.scorecard.registry import MODULES, load

COLOURS = {"pass": "green", "partial": "yellow", "fail": "red", "na": "dim"}


@click.command()
@click.option(
    "--device",
    default="chip",
    show_default=True,
    metavar="NAME",
    help="The framework's device: for torch chip, cpu, cuda, xpu, or a vendor's own.",
)
@click.option(
    "--framework",
    type=click.Choice(list(MODULES)),
    default="torch",
    show_default=True,
    help="Framework whose programs the items try on the device.",
)
@click.option(
    "--chip",
    default=None,
    metavar="NAME|FILE",
    help="Chip to run on if the device is chip (default: BRINGUP_CHIP or edge8).",
)
@click.option(
    "--level",
    type=click.Choice(["D", "T", "P"]),
    default="P",
    show_default=True,
    help="Highest level to check: D devkit, T try-out, P production. It also limits --only.",
)
@click.option("--only", default=None, metavar="ID,...", help="Check only these items (default: all).")
@click.option("--items", "files", multiple=True, metavar="FILE", help="Python file with more items; may be repeated.")
@click.option(
    "--jobs", default=2, show_default=True, type=click.IntRange(min=1), help="Number of items that run in parallel."
)
@click.option("--against", default=None, metavar="FILE", help="Older scorecard.json to compare the results with.")
@click.option("--out", default="bringup-check", show_default=True, metavar="DIR", help="Directory for the scorecard.")
@click.option(
    "--json", "json_file", default=None, metavar="FILE", help="Also write the scorecard as JSON to this file."
)
@click.option(
    "--output-format", "output", type=click.Choice(FORMATS), default="text", show_default=True, help=OUTPUT_HELP
)
@click.option("--list", "listing", is_flag=True, help="List the items and exit.")
def command(
    device: str,
    framework: str,
    chip: str | None,
    level: str,
    only: str | None,
    files: tuple[str, ...],
    jobs: int,
    against: str | None,
    out: str,
    json_file: str | None,
    output: str,
    listing: bool,
) -> None:
    """Check how complete an accelerator's software is: framework, runtime, memory, kernels, tools, system.

    The exit code is 0 whatever the verdicts are. With --against it is 1 if an item is worse than in the older card.
    """
    items = load(files, framework)
    if listing:
        for entry in items.values():
            click.echo(f"{entry.id:>4} {entry.level}  {entry.title}: {entry.about}")
        return
    name = _chip_of(device, chip, asked_chip())
    if name is not None:
        asked_devices()  # an invalid BRINGUP_DEVICES is refused once, here, and not by every item
        load_chip(name)
    if framework != "torch":
        _check_framework(framework, device)
    elif name is None:
        _check_device(device)
    selected = _select(items, only, level)
    old = card.load(against, framework) if against else None
    console = new_console()

    def report(line: dict[str, Any]) -> None:
        if sys.stderr.isatty():
            print(f"{line['id']:>4} {line['verdict']}", file=sys.stderr, flush=True)

    target = card.Target(device, name, files, framework)
    folder = directory.prepare(out, None)
    if json_file:
        refuse_unwritable(json_file)
    new = card.run(
        selected, target, listed=len(items), jobs=jobs, matrix=only is None and framework == "torch", report=report
    )
    text = json.dumps(new, indent=2, sort_keys=True) + "\n"
    texts = (text, page.page(new, items, old), page.badge(new))
    directory.write(folder, {name: _writes(content) for name, content in zip(directory.CARD, texts, strict=True)})
    if json_file:
        write_text(json_file, text)
    changed = card.changes(old, new) if old else []
    exit_code = 1 if any(word == "worse" for word, _, _ in changed) else 0
    if output == "json":
        print(json.dumps(new, sort_keys=True))
        sys.exit(exit_code)
    _print(new, console)
    for word, before, after in changed:
        console.print(
            f"[{'green' if word == 'better' else 'red'}]{word}[/] {escaped(after['id'])} {escaped(after['title'])}: "
            f"{before['verdict']} {before['score']:.0%} -> {after['verdict']} {after['score']:.0%}",
        )
    if old and not changed:
        console.print("no changes since the older scorecard")
    paths = escaped(f"scorecard: {Path(out, 'scorecard.html')}   badge: {Path(out, 'scorecard.svg')}")
    console.print(paths, soft_wrap=True)
    if output == "github":
        github.write(github.of_check(new, changed))
    sys.exit(exit_code)


def _writes(text: str) -> Callable[[Path], None]:
    return lambda path: write_text(path, text)


def _chip_of(device: str, chip: str | None, default: str | None) -> str | None:
    if device.split(":")[0] != "chip":
        if chip:
            raise BringupError(f"--chip applies to --device chip, not to {device}: leave one of the two out")
        return None
    return chip or default or "edge8"


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BringupError(f"--device {device}: this torch cannot use it ({reason})") from None


def _check_framework(framework: str, device: str) -> None:
    """Raise BringupError unless the framework is installed, was tested with the chip, and has the device."""
    if find_spec(framework) is None:
        raise BringupError(f'--framework {framework}: it is not installed: pip install "bringup[{framework}]"')
    if framework == "tensorflow":
        if device not in ("chip", "cpu", "gpu"):
            raise BringupError(f"--device {device}: with --framework tensorflow it is chip, cpu or gpu")
        if device == "chip":
            hook.check()
        return
    os.environ["JAX_PLATFORMS"] = ",".join(dict.fromkeys((device, "cpu")))
    import jax

    try:
        jax.devices(device)
    except RuntimeError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BringupError(f"--device {device}: JAX cannot use it ({reason})") from None


def _select(items: dict[str, Any], only: str | None, level: str) -> list[Any]:
    names = list(items) if only is None else [name for name in only.split(",") if name]
    if not names:
        raise BringupError(f"--only {only!r} names no item; `bringup check --list` lists them")
    for name in names:
        if name not in items:
            raise BringupError(f"--only: there is no item {name!r}; `bringup check --list` lists them")
    selected = [items[name] for name in names if "DTP".index(items[name].level) <= "DTP".index(level)]
    if not selected:
        raise BringupError(f"--only {only}: no such item has level {level} or a lower one: leave out --level")
    return selected


def _print(new: dict[str, Any], console: Any) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("item", "", "", "verdict", "evidence"):
        table.add_column(title, no_wrap=title != "evidence", overflow="fold")
    for line in new["items"]:
        verdict = line["verdict"] if line["verdict"] != "partial" else f"partial {line['score']:.1%}"
        hint = f" -> {line['hint']}" if line["hint"] else ""
        colour = COLOURS[line["verdict"]]
        table.add_row(
            escaped(line["id"]),
            line["level"],
            escaped(line["title"]),
            f"[{colour}]{verdict}[/]",
            escaped(line["evidence"][:160] + hint),
        )
    console.print(table)
    for level, counts in totals(new).items():
        score = share(new, level)
        if sum(counts.values()):
            text = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
            console.print(f"level {level}: {'no item applies' if score is None else f'{score:.0%}'} ({text})")
