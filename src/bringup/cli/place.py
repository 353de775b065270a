"""``bringup place``: plans which work of a recorded program belongs on the host, and which on the chip."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from bringup.cli.options import complete_chips, host_clock_option, host_option, quantity
from bringup.cli.report import shipped
from bringup.errors import BringupError
from bringup.files import refuse_unwritable, write_text
from bringup.machine.files import available_chips, chip_names, load_chip, load_host
from bringup.placement.break_even import BreakEven, break_even
from bringup.placement.chain import Chain, divide
from bringup.placement.groups import GRANULARITIES
from bringup.placement.offload import offloads, shown
from bringup.placement.page import break_even_page, page
from bringup.placement.place import SPREAD, Planned, capacity_of, planned, replayer_of, slowness
from bringup.placement.placed import Replayer
from bringup.placement.plan import NAMES, Baseline, Move, Plan, refuse_other
from bringup.process import DEFAULT_CHIP, asked_chip, asked_driver
from bringup.recording.trace import Trace
from bringup.report import terminal
from bringup.report.prediction import read_trace
from bringup.report.terminal import escaped
from bringup.text import duration, figure, size
from bringup.text import quantity as counted
from bringup.units import parse_size, parse_time

if TYPE_CHECKING:
    from bringup.cli.run import RunOptions
    from bringup.machine.schema import Chip, Host

LEVELS = "_.-=#"  # half decades of the chip's time over the host's
MOST_MOVES = 8  # on a screen
# What `bringup place` prints instead of a plan, and the options that it reads besides --host and --json.
INSTEAD = {
    "--break-even": {"--chip", "--out"},
    "--offload": {"--chip", "--host-clock", "--capacity", "--percentile"},
    "--chips": {"--host-clock"},
}


@click.command()
@click.argument("trace", type=click.Path(), required=False)
@click.option(
    "--chip",
    default=None,
    shell_complete=complete_chips,
    metavar="NAME|FILE",
    help="Chip to plan for (default: that of the recording).",
)
@host_option
@host_clock_option("the CPU time measured during the recording")
@click.option(
    "--granularity",
    type=click.Choice(GRANULARITIES),
    default="module",
    show_default=True,
    help="What moves as one: a launch of an operator, the launches of a source line, or those of a module.",
)
@click.option(
    "--capacity",
    callback=quantity(parse_size),
    default=None,
    metavar="SIZE",
    help="Device memory that the program can have, such as 12GiB (default: that of the chip).",
)
@click.option(
    "--objective",
    type=click.Choice(["time", "latency", "energy", "cost"]),
    default="time",
    show_default=True,
    help="What to minimise: the time per step, the latency of one step, the chip's energy, or its cost.",
)
@click.option(
    "--deadline",
    callback=quantity(parse_time),
    default=None,
    metavar="TIME",
    help="What has to move so that one step on an idle machine takes at most a time such as 10ms.",
)
@click.option(
    "--percentile",
    type=float,
    default=50.0,
    show_default=True,
    help="Plan for this percentile of the host's times: its calls and work take longer by a lognormal factor.",
)
@click.option(
    "--out",
    default=None,
    metavar="FILE",
    help="Write the plan there, and its page beside it (default: plan.toml in the report). With --break-even, a page.",
)
@click.option(
    "--break-even",
    "sizes",
    is_flag=True,
    help="Instead of a plan, print from which size common operators are faster on the chip. Needs no recording.",
)
@click.option(
    "--offload",
    "what_if",
    is_flag=True,
    help="Instead of a plan, print what a step takes with weights, optimizer state or caches in the host's memory.",
)
@click.option(
    "--chips",
    default=None,
    metavar="NAME|FILE,...",
    help="Instead of a plan for one chip and its host, divide the layers among several chips of one machine.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan's numbers and moves as one line of JSON.")
@click.pass_context
def command(
    context: click.Context,
    trace: str | None,
    chip: str | None,
    host: str | None,
    host_clock: str,
    granularity: str,
    capacity: int | None,
    objective: str,
    deadline: float | None,
    percentile: float,
    out: str | None,
    sizes: bool,
    what_if: bool,
    chips: str | None,
    as_json: bool,
) -> None:
    """Plan which launches of a recording run on the host and which on the chip, and what that gains.

    TRACE is the directory that `bringup run` has written, or its trace.npz. `bringup run --place FILE` applies the
    plan. Nothing is proposed whose gain could be an error of the prices.
    """
    _refuse_unread(context)
    if sizes and trace is not None:
        raise BringupError(f"--break-even is of a chip and a host, not of a recording: leave out {trace}")
    described = load_chip(chip) if chip else None
    machine = load_host(host)
    if sizes:
        described = described or load_chip(asked_chip() or DEFAULT_CHIP)
        rows = break_even(described, machine)
        if out:
            refuse_unwritable(out)
            write_text(out, break_even_page(rows, described, machine))
        print_break_even(rows, described, machine, as_json)
        return
    if trace is None:
        raise BringupError("bringup place needs TRACE: the directory that `bringup run` has written, or its trace.npz")
    if out and Path(out).suffix == ".html":
        raise BringupError(f"{out}: the plan is a TOML file, whose page gets its name: give --out another ending")
    if out:
        refuse_unwritable(out, Path(out).with_suffix(".html"))
    recording = read_trace(trace)
    if described is None:
        described = load_chip(shipped(trace, "chip", str(recording.about.get("chip", "")), available_chips()))
    if chips:
        several = [load_chip(name) for name in chip_names(chips, "--chips")]
        print_chain(divide(recording, several, machine, host_clock=host_clock), as_json)  # type: ignore[arg-type]
        return
    if what_if:
        replayer = replayer_of(recording, described, machine, percentile=percentile, host_clock=host_clock)  # type: ignore[arg-type]
        print_offloads(replayer, capacity_of(replayer.step, capacity), as_json)
        return
    result = planned(
        recording,
        described,
        machine,
        granularity=granularity,  # type: ignore[arg-type]
        objective=objective,  # type: ignore[arg-type]
        capacity=capacity,
        deadline=deadline,
        percentile=percentile,
        host_clock=host_clock,  # type: ignore[arg-type]
    )
    plan = saved(result, trace, out)
    if as_json:
        click.echo(json.dumps(plan.as_dict(), sort_keys=True))
        return
    print_plan(plan, terminal.console())


def _refuse_unread(context: click.Context) -> None:
    """Refuse options of which one decides what is printed, and the others would have no effect on that."""
    by_user = click.core.ParameterSource.COMMANDLINE
    options = [option for option in context.command.params if isinstance(option, click.Option)]
    used = [option.opts[0] for option in options if context.get_parameter_source(option.name or "") == by_user]
    for mode, reads in INSTEAD.items():
        unread = [name for name in used if name not in reads | {mode, "--host", "--json"}]
        if mode not in used or not unread:
            continue
        if mode == "--chips" and unread == ["--chip"]:
            raise BringupError("--chips names all chips of the machine: leave out --chip")
        raise BringupError(f"{mode} excludes {', '.join(unread)}: leave out the one or the other")


def _table(*titles: str, left: tuple[str, ...], wrapped: str | None = None) -> Table:
    """Return a table without lines, whose columns are numbers but for those at the left; one of them may be wrapped."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="")
    for title in titles:
        table.add_column(title, justify="left" if title in left else "right", no_wrap=title != wrapped)
    return table


def print_break_even(rows: list[BreakEven], chip: Chip, host: Host, as_json: bool) -> None:
    """Print from which size operators are faster on the chip, with a line of their times over the host's."""
    if as_json:
        named = [{"op": row.op, "resident": row.resident, "copied": row.copied} for row in rows]
        times = [{name: getattr(row, name) for name in ("sizes", "chip", "copied_chip", "host")} for row in rows]
        operators = [a | b for a, b in zip(named, times, strict=True)]
        click.echo(json.dumps({"chip": chip.name, "host": host.name, "operators": operators}, sort_keys=True))
        return
    ratio = "chip over host, 1 to 2^30 elements"
    table = _table("float32", "data on the chip", "copied up and down", ratio, left=("float32", ratio))
    for row in rows:
        table.add_row(f"  {row.op}", *(_elements(size) for size in (row.resident, row.copied)), _plot(row))
    console = terminal.console()
    console.print(f"{escaped(chip.name)} is faster than {escaped(host.name)} from this number of elements on:")
    console.print(table)
    console.print(
        f"  plot: {LEVELS[0]} up to a tenth of the host's time, {LEVELS[2]} equal, {LEVELS[-1]} ten times",
    )


def print_offloads(replayer: Replayer, room: int, as_json: bool) -> None:
    """Print what a step takes with storages in the host's memory: per kind and way, with as few layers as fit."""
    chip, before = replayer.step.timeline.chip, replayer.outcome(None)
    curves = offloads(replayer, room)
    if as_json:
        about = {"chip": chip.name, "host": replayer.step.timeline.host.name, "room_bytes": room}
        about |= {"step_seconds": before.seconds, "chip_bytes": before.resident_bytes}
        click.echo(json.dumps({**about, "offloads": [vars(point) for point in curves]}, sort_keys=True))
        return
    what = "in the host's memory"
    table = _table(what, "layers", "per step", "on the chip", "copied per step", "", left=(what, ""))

    def row(name: str, count: str, seconds: float, held: int, copied: int) -> None:
        fits = "" if held <= room else "does not fit"
        table.add_row(f"  {name}", count, duration(seconds), size(held), size(copied) if copied else "-", fits)

    row("nothing", "-", before.seconds, before.resident_bytes, 0)
    for point in shown(curves):
        counted_layers = f"{point.layers} of {point.of_layers}"
        row(f"{point.kind}, {_USED[point.way]}", counted_layers, point.seconds, point.chip_bytes, point.copied_bytes)
    console = terminal.console()
    console.print(table)
    console.print(f"  {escaped(chip.name)} has {size(room)} for what outlives a step.")


def print_chain(chain: Chain, as_json: bool) -> None:
    """Print which layers run on which chip, and the step beside that of one chip."""
    if as_json:
        data = {**vars(chain), "parts": [vars(part) for part in chain.parts]}
        click.echo(json.dumps(data, sort_keys=True))
        return
    table = _table("", "layers", "work per step", "memory", "modules", left=("", "modules"), wrapped="modules")
    for number, part in enumerate(chain.parts):
        cells = (f"{part.layers}", duration(part.seconds), size(part.bytes), escaped(part.modules))
        table.add_row(f"  chip:{number} ({escaped(part.chip)})", *cells)
    console = terminal.console()
    console.print(table)
    one = duration(chain.first_chip_seconds) + ("" if chain.first_chip_fits else ", but does not fit")
    crosses = f"; {size(chain.copied_bytes)} cross between chips" if chain.copied_bytes else ""
    console.print(
        f"  per step {duration(chain.seconds)}{crosses}; one {escaped(chain.parts[0].chip)} alone: {one}",
        soft_wrap=True,
    )
    console.print(f"  no division takes less than {duration(chain.bound_seconds)}")


_USED = {"streamed": "copied up for each use", "on the host": "used by the host"}


def _elements(size: int | None) -> str:
    return "never" if size is None else f"{size:,}"


def _plot(row: BreakEven) -> str:
    """Return one letter per power of two: the chip's time over the host's, with the data on the chip."""
    places = (round(2 + 2 * math.log10(chip / host)) for chip, host in zip(row.chip, row.host, strict=True))
    return "".join(LEVELS[min(max(place, 0), len(LEVELS) - 1)] for place in places)


def saved(result: Planned, trace: str, out: str | None) -> Plan:
    """Write a plan that proposes something, or that a file was asked for, and its page; return it with its path."""
    plan = result.plan
    in_report = Path(trace) / "plan.toml" if os.path.isdir(trace) else None
    if out is None and (not plan.proposes or in_report is None or not os.access(trace, os.W_OK)):
        return plan
    path = Path(out or str(in_report))
    write_text(path.with_suffix(".html"), page(result, NAMES))
    plan.save(path)
    return replace(plan, plan=str(path))


def print_plan(plan: Plan, console: Console) -> None:
    """Print the baselines, the proposal and its moves on one screen."""
    spent = "USD per million" if plan.objective == "cost" else "energy"
    table = _table("", "latency" if plan.objective == "latency" else "per step", "memory", spent, "", left=("",))
    for name, baseline in plan.baselines.items():
        table.add_row(f"  {NAMES[name]}", *_cells(name, baseline, plan))
    console.print(table)
    if plan.percentile != 50:
        factor = slowness(plan.percentile)
        note = f"host times at percentile {plan.percentile:g}, {factor:.2f} times their prices"
        console.print(f"  {note} (lognormal, sigma {SPREAD})")
    if plan.objective == "energy":
        console.print("  energy is the chip's: host files have no power")
    if not plan.proposes:
        console.print(escaped(f"  {_refusal(plan)}"), soft_wrap=True)
        if plan.plan:
            shown_in = Path(plan.plan).with_suffix(".html")
            console.print(escaped(f"  plan: {plan.plan}, which moves nothing   page: {shown_in}"))
        return
    for number, move in enumerate(plan.moves[:MOST_MOVES], 1):
        console.print(f"  [bold]{number}.[/] {escaped(_text(move))}", soft_wrap=True)
    if len(plan.moves) > MOST_MOVES:
        console.print(f"  and {counted(len(plan.moves) - MOST_MOVES, 'more move')}: see the plan")
    if plan.deadline_seconds is not None:
        console.print(f"  these have to be on the host for {duration(plan.deadline_seconds)}")
    rest = "keep the rest on the chip" if any(entry.where == "chip" for entry in plan.entries) else "nothing stays"
    copied = plan.baselines["proposed"].copied_bytes
    crosses = f"; {size(copied)} more cross the link per step" if copied else ""
    where = "   give --out FILE to write the plan"
    if plan.plan:
        where = f"   plan: {plan.plan}   page: {Path(plan.plan).with_suffix('.html')}"
    console.print(escaped(f"  {rest}{crosses}.{where}"), soft_wrap=True)


def _cells(name: str, baseline: Baseline, plan: Plan) -> tuple[str, ...]:
    memory = size(baseline.resident_bytes) if baseline.resident_bytes else "-"
    spent = "-" if baseline.joules is None else f"{figure(baseline.joules)} J"
    if plan.objective == "cost":
        spent = "-" if baseline.dollars is None else figure(baseline.dollars * 1e6)
    note = ""
    if name == "all_chip" and not plan.fits:
        note = "does not fit"
    if name == "proposed":
        before, after = _amount(plan, "all_chip"), _amount(plan, name)
        change = after / before - 1 if before else 0.0
        note = f"{change:+.0%} (+- {plan.band:.0%})" if plan.fits else f"fits (+- {plan.band:.0%})"
    return f"{figure(baseline.seconds * 1e3)} ms", memory, spent, note


def _amount(plan: Plan, name: str) -> float:
    """Return what a baseline spends of the plan's objective: joules, dollars or seconds."""
    baseline = plan.baselines[name]
    spent = {"energy": baseline.joules, "cost": baseline.dollars}.get(plan.objective, baseline.seconds)
    return spent or 0.0


def _refusal(plan: Plan) -> str:
    if plan.deadline_seconds is not None:
        deadline = duration(plan.deadline_seconds)
        if plan.all_chip_seconds <= plan.deadline_seconds:
            return f"leave it as it is: the chip alone takes less than {deadline}"
        return f"nothing takes less than {deadline}: the best placement takes {duration(plan.proposed_seconds)}"
    best = min(_amount(plan, "all_chip"), _amount(plan, "all_host"))
    gain = max(1 - _amount(plan, "proposed") / best, 0.0) if best else 0.0
    if not gain:
        better = {"energy": "takes less energy", "cost": "costs less"}.get(plan.objective, "is faster")
        return f"leave it as it is: nothing {better} than the chip alone"
    return (
        f"leave it as it is: a gain of {gain:.0%} is within what prices could turn round that are wrong by "
        f"{plan.band:.0%}"
    )


def _text(move: Move) -> str:
    what = move.module or "launches outside of modules"
    where = [counted(move.groups, "group")] if move.groups > 1 else []
    where += [f"{move.file}:{move.line}"] if move.file else []
    places = f" ({', '.join(where)})" if where else ""
    return f"{what}{places} to the {move.where}: {_signed(-move.seconds)}"


def _signed(seconds: float) -> str:
    return f"{'-' if seconds < 0 else '+'}{duration(abs(seconds))}"


# ---- bringup run --place


def plan_of_run(options: RunOptions, chip: Chip, host: Host, program: str, out: str) -> Plan | None:
    """Read the plan, or make one from a first run of the program; None if that proposes nothing.

    A plan that is made here is written into the report's directory, `out`, with its page.
    """
    if options.place != "auto":
        plan = Plan.load(str(options.place))
        refuse_other(plan, program, chip.name)
        return plan
    trace = _first_run(options)
    result = planned(trace, chip, host, host_clock=options.host_clock)
    if result.plan.proposes:
        os.makedirs(out, exist_ok=True)
    plan = saved(result, out, None)
    print_plan(plan, terminal.console(stderr=True))
    return plan if plan.proposes else None


def _first_run(options: RunOptions) -> Trace:
    """Run the program in a process of its own, without a plan, and return its recording.

    Raises:
        BringupError: the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*_passed_on(options), "--out", os.path.join(folder, "first")]
        command = [sys.executable, "-m", "bringup", "--isolated", "run", *arguments, options.script, *options.arguments]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise BringupError(
                f"--place auto: the run that records the program ended with exit code {done.returncode}: "
                "run it without --place first"
            )
        return Trace.load(os.path.join(folder, "first", "trace.npz"))


def _passed_on(options: RunOptions) -> list[str]:
    """Return the options that decide what the program launches."""
    texts = {"--chip": options.chips, "--host": options.host, "--dry": options.dry, "--driver": options.driver}
    texts |= {"--compile": options.compiler, "--ops": options.ops, "--dry-value": options.dry_value}
    texts |= {"--framework": options.framework}
    flags = {"--cuda": options.cuda, "-m": options.module}
    oom = [] if options.driver or asked_driver() else ["--oom=continue"]  # a plan may be what makes the program fit
    return [
        *(f"{name}={text}" for name, text in texts.items() if text is not None),
        *(name for name, is_set in flags.items() if is_set),
        *oom,
    ]
