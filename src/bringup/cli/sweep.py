"""``bringup sweep``: prices programs on many chips, hosts and variants of chips."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bringup.errors import BringupError
from bringup.report import terminal
from bringup.report.terminal import escaped
from bringup.sweep import design, file, grid, parts, ray_engine, runner, table
from bringup.sweep.programs import Recording, script_runs
from bringup.text import duration, plain, quantity, size

SHOWN = 20  # rows on a screen
TITLES = {
    "step_seconds": "step",
    "device_seconds": "chip busy",
    "peak_bytes": "memory",
    "fits": "",
    "energy_joules": "energy",
    "cost_usd": "cost",
    "band": "band",
}
ENGINES = re.compile(r"process|local:[1-9]\d{0,3}|ray://[\w.\-\[\]:]+|auto")


class _Sweeps(click.Group):
    """`bringup sweep FILE` runs a sweep; the other commands have names."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def _engine(on: str) -> runner.Engine:
    if not ENGINES.fullmatch(on):
        raise BringupError(f"--on {on}: is no engine: give process, local:N (workers), auto or ray://HOST:PORT")
    return runner.in_process if on == "process" else ray_engine.engine(on)


def _workers(on: str) -> int:
    return int(on.removeprefix("local:")) if on.startswith("local:") else 1


@click.group(cls=_Sweeps)
def command() -> None:
    """Price programs on many chips, hosts and variants of chips, as one table: `bringup sweep FILE --out DIR`."""


@command.command("run", short_help="Run a sweep; `bringup sweep FILE` is the same.")
@click.argument("path", metavar="FILE", type=click.Path())
@click.option(
    "--on",
    default="process",
    show_default=True,
    metavar="process|local:N|auto|ray://HOST:PORT",
    help="Where to price: in this process, in N workers of Ray on this machine, on the cluster of Ray that this machine"
    " belongs to, or on another one.",
)
@click.option("--out", default=None, metavar="DIR", help="Directory of the table (default: bringup-sweep-FILE).")
@click.option("--resume", is_flag=True, help="Go on with the sweep in the directory: nothing is priced twice.")
@click.option(
    "--yes", is_flag=True, help=f"Confirm a sweep of more than an hour, or {runner.MOST_SCRIPT_RUNS} script runs."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was done as one line of JSON.")
def run(path: str, on: str, out: str | None, resume: bool, yes: bool, as_json: bool) -> None:
    """Price all configurations of a sweep FILE (docs/sweeps.md). Its scripts are run dry, once each."""
    sweep = file.load(path)
    engine = _engine(on)
    configurations = grid.of_sweep(sweep)
    rows, runs = configurations.rows, script_runs(sweep)
    seconds = runner.seconds_for(configurations, _workers(on))
    if (seconds > runner.MOST_SECONDS or runs > runner.MOST_SCRIPT_RUNS) and not yes:
        raise BringupError(f"{path}: has {_counted(rows, seconds, runs)}: make it smaller, or confirm it with --yes")
    folder = _folder(out, path)
    with Progress(
        TextColumn("pricing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        task = bar.add_task("pricing", total=rows)
        done = runner.run(
            sweep, folder, engine, resume=resume, say=_say, advance=lambda count: bar.advance(task, count)
        )
    if as_json:
        facts = {**vars(done), "out": str(folder), "on": on, "axes": list(configurations.axes)}
        click.echo(json.dumps(facts, sort_keys=True))
        return
    click.echo(plain(runner.sentence(done, folder)))
    _say_left_out(done.left_out)
    click.echo(plain(f"bringup sweep show {folder} --pareto seconds,usd,joules"))


@command.command(short_help="Say how many configurations a sweep has, and how long they take.")
@click.argument("path", metavar="FILE", type=click.Path())
@click.option(
    "--on", default="process", metavar="process|local:N|auto|ray://HOST:PORT", help="Where it would be priced."
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def plan(path: str, on: str, as_json: bool) -> None:
    """Say how many configurations and script runs a sweep FILE has, and how long pricing takes. Nothing is run."""
    sweep = file.load(path)
    _engine(on)
    configurations = grid.of_sweep(sweep)
    rows, runs = configurations.rows, script_runs(sweep)
    seconds = runner.seconds_for(configurations, _workers(on))
    axes = {
        "program": len(sweep.file.programs),
        **{name: len(values) for name, values in sweep.file.arguments.items()},
        "chip": len(configurations.chips),
        "host": len(configurations.hosts),
        **{name: len(values) for name, values in configurations.ranges},
        **{
            name: len(values)
            for name, values in (
                ("mode", configurations.modes),
                ("cluster", configurations.clusters),
                ("link_scale", configurations.link_scale),
                ("dispatch_scale", configurations.dispatch_scale),
                ("placement", configurations.placements),
                ("chips_per_engine", configurations.engines),
                ("rate", configurations.rates),
            )
            if values is not None
        },
    }
    facts = {"rows": rows, "seconds": seconds, "axes": axes, "scripts": runs, "left_out": configurations.left_out}
    if as_json:
        click.echo(json.dumps(facts, sort_keys=True))
        return
    click.echo(f"{_counted(rows, seconds, runs)}: {', '.join(f'{count} {name}' for name, count in axes.items())}")
    _say_left_out(configurations.left_out)


@command.command(short_help="Show which number of a chip buys most.")
@click.argument("path", metavar="FILE", type=click.Path())
@click.option("--out", default=None, metavar="DIR", help="Directory of the recordings (default: bringup-sweep-FILE).")
@click.option("--yes", is_flag=True, help=f"Confirm more than {runner.MOST_SCRIPT_RUNS} script runs.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object per number.")
def sensitivity(path: str, out: str | None, yes: bool, as_json: bool) -> None:
    """Show what a tenth more, or less, of each number of the chips of a sweep FILE saves of the programs' time.

    The axes of the file are those of the mean, but for its ranges. Numbers that save nothing are left out, and so are
    those that a chip file does not state.
    """
    configurations, recordings = _recorded(file.load(path), _folder(out, path), yes)
    gains = design.sensitivity(configurations, [item.source for item in recordings])
    if as_json:
        click.echo(json.dumps([vars(item) for item in gains]))
        return
    programs = list(dict.fromkeys(item.program for item in recordings))
    columns = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("chip", "number", "is", "becomes", "saves", *(programs if len(programs) > 1 else [])):
        columns.add_column(escaped(title), justify="left" if title in ("chip", "number") else "right", no_wrap=True)
    for item in gains:
        cells = [item.chip, item.name, f"{item.value:g}", f"{item.changed:.4g}", f"{item.gain:.2%}"]
        cells += [f"{item.programs[name]:.1%}" for name in programs] if len(programs) > 1 else []
        columns.add_row(*map(escaped, cells))
    terminal.console().print(columns)


@command.command(short_help="Search the best numbers of a chip within budgets.")
@click.argument("path", metavar="FILE", type=click.Path())
@click.option("--trials", type=click.IntRange(min=1, max=10**6), default=None, help="Designs to try for each chip.")
@click.option("--out", default=None, metavar="DIR", help="Directory of the recordings (default: bringup-sweep-FILE).")
@click.option("--yes", is_flag=True, help=f"Confirm more than {runner.MOST_SCRIPT_RUNS} script runs.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object per chip.")
def search(path: str, trials: int | None, out: str | None, yes: bool, as_json: bool) -> None:
    """Search the ranges of a sweep FILE for the best chip within the budgets of its table [search]."""
    sweep = file.load(path)
    options = sweep.file.search or file.Search()
    options = options.model_copy(update={"trials": trials}) if trials is not None else options
    configurations, recordings = _recorded(sweep, _folder(out, path), yes)
    total = options.trials * len(design.with_modes(configurations))
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("searching", total=total)
        best = design.optimize(
            sweep, configurations, [item.source for item in recordings], options, advance=lambda: bar.advance(task)
        )
    if as_json:
        click.echo(json.dumps([vars(item) for item in best]))
        return
    for item in best:
        click.echo("\n".join(map(plain, _searched(item))))


def _searched(best: design.Best) -> list[str]:
    column = design.COLUMNS[best.minimize]
    change = ""
    if best.as_is is not None:
        less = 1 - best.objective / best.as_is
        text = f"{abs(less):.0%} {'less' if less >= 0 else 'more'} than {_cell(column, best.as_is)}"
        change = f" ({text}, with the numbers of its file)"
    tried = f"the best of {best.within} designs within the budgets, of {best.trials} tried"
    lines = [f"{best.chip}: {_cell(column, best.objective)}{change}, {tried}"]
    lines += [f"  {name} = {value:.6g}" for name, value in best.values.items()]
    lines += [f"  step of {name}: {duration(seconds)}" for name, seconds in best.step_seconds.items()]
    lines += [f"  budget {name}: {left:.4g} left" for name, left in best.budgets.items()]
    return lines


def _folder(out: str | None, path: str) -> Path:
    return Path(out or f"bringup-sweep-{Path(path).stem}")


def _recorded(sweep: file.Sweep, out: Path, yes: bool) -> tuple[grid.Grid, list[Recording]]:
    if sweep.file.serving is not None:
        raise BringupError(f"{sweep.path}: its programs are served, and a step's time is compared: leave [serving] out")
    configurations, runs = grid.of_sweep(sweep), script_runs(sweep)
    if runs > runner.MOST_SCRIPT_RUNS and not yes:
        raise BringupError(
            f"{sweep.path}: has {_many(runs, 'dry run')} of scripts: make it smaller, or confirm it with --yes"
        )
    with_modes = [chip.name for chip in design.with_modes(configurations)]
    for chip in configurations.chips:
        if chip.name not in with_modes:
            _say(f"bringup: chip {chip.name} has none of the sweep's modes, and is left out")
    with parts.locked(out):
        return configurations, runner.recorded(sweep, configurations, out, _say)


@command.command(short_help="Show the rows of a sweep, or those that no other row beats.")
@click.argument("out", metavar="DIR", type=click.Path())
@click.option("--where", default=None, metavar="SQL", help='Condition over the columns, such as "fits and batch > 8".')
@click.option(
    "--pareto",
    default=None,
    metavar="COLUMN,...",
    help="Show only the Pareto front of columns: seconds, usd, joules, bytes, or others.",
)
@click.option(
    "--by",
    default=None,
    metavar="COLUMN,...",
    help='Fronts of rows that are equal in these columns (default: program and its arguments; "" for one front).',
)
@click.option("--sort", default=None, metavar="COLUMN", help="Sort by this column, the smallest first.")
@click.option("--limit", default=None, type=click.IntRange(min=1), help=f"Rows to show (default: {SHOWN}; JSON: all).")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object per row.")
def show(
    out: str,
    where: str | None,
    pareto: str | None,
    by: str | None,
    sort: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show rows of the sweep in DIR."""
    if pareto is not None and not _names(pareto):
        raise BringupError("--pareto names no column: give one or more, separated by commas, such as seconds,usd")
    if by is not None and pareto is None:
        raise BringupError("--by says which rows a Pareto front compares: give --pareto as well")
    rows = table.select(
        out,
        where=where,
        pareto=_names(pareto or ""),
        by=None if by is None else _names(by),
        order=sort,
        limit=limit or (None if as_json else SHOWN),
    )
    if as_json:
        click.echo(json.dumps(rows.dicts()))
    else:
        _print_rows(rows)
    if rows.priced < rows.total:
        click.echo(f"bringup: {out}: has {rows.priced:,} of {rows.total:,} rows: --resume goes on", err=True)
    if rows.without:
        text = f"{quantity(rows.without, 'row')} have no value in a column of --pareto, and are left out"
        click.echo(f"bringup: {text}", err=True)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _print_rows(rows: table.Rows) -> None:
    console = terminal.console()
    grid_table = Table(box=None, pad_edge=False, header_style="bold")
    last = [name for name in TITLES if name in rows.columns]
    names = [name for name in rows.columns if name not in ("key", "version", *last)] + last
    for name in names:
        texts = name in ("program", "chip", "host", "mode", "cluster", "placement", "fits")
        grid_table.add_column(escaped(TITLES.get(name, name)), justify="left" if texts else "right", no_wrap=True)
    for row in rows.dicts():
        grid_table.add_row(*(escaped(_cell(name, row[name])) for name in names))
    console.print(grid_table)
    if rows.chosen > len(rows):
        console.print(f"{rows.chosen:,} rows; --limit and --json show more")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    formats: dict[str, Callable[[Any], str]] = {
        "step_seconds": duration,
        "device_seconds": duration,
        **dict.fromkeys(file.LATENCIES, duration),
        "peak_bytes": size,
        "band": lambda share: f"{share:.0%}",
        "energy_joules": lambda joules: f"{joules:.4g} J",
        "cost_usd": lambda usd: f"${usd:.4g}",
        "fits": lambda fits: "fits" if fits else "no",
    }
    if name in formats:
        return formats[name](value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _counted(rows: int, seconds: float, runs: int) -> str:
    took = duration(seconds) if seconds < 300 else f"{seconds / 60:,.0f} min" if seconds < 7200 else _hours(seconds)
    scripts = f" after {_many(runs, 'dry run')} of scripts" if runs else ""
    return f"{_many(rows, 'configuration')}, about {took}{scripts}"


def _many(count: int, noun: str) -> str:
    return quantity(count, noun) if count < 10**18 else f"at least 1e{len(str(count)) - 1} {noun}s"


def _hours(seconds: float) -> str:
    if seconds > 1e12:
        return "30,000 years or more"
    return f"{seconds / 3600:,.0f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"


def _say(text: str) -> None:
    print(plain(text), file=sys.stderr, flush=True)


def _say_left_out(names: list[str]) -> None:
    if names:
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        click.echo(plain(f"left out: modes that a chip does not have ({listed})"))
