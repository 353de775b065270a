"""``bringup serve``: a model or a program under a stream of requests."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from bringup.cli.options import complete_chips, host_option, quantity
from bringup.errors import BringupError
from bringup.machine.files import load_chip
from bringup.report import terminal
from bringup.report.terminal import escaped
from bringup.serving.batches import Jitter
from bringup.serving.engine import Speculation
from bringup.serving.fleet import ROUTERS
from bringup.serving.outcome import WORDS, Objective, Outcome
from bringup.serving.serve import ATTAINMENT, Options, Simulation, host_of, program_of
from bringup.serving.writer import prepare, write
from bringup.text import duration, figure, short
from bringup.text import quantity as counted
from bringup.units import parse_time

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

NO_LIMIT = "more than a million times that of these requests"


def parse_speculation(text: str) -> Speculation:
    """Read ``TOKENS:ACCEPTANCE[:SECONDS]``."""
    tokens, _, rest = text.partition(":")
    acceptance, _, draft = rest.partition(":")
    try:
        count, rate = int(tokens), float(acceptance)
    except ValueError:
        count, rate = 0, math.nan
    if not (1 <= count <= 64 and 0 <= rate <= 1):
        raise BringupError(f"write TOKENS:ACCEPTANCE[:SECONDS], such as 4:0.7 or 4:0.7:2ms, got {short(text)}")
    return Speculation(count, rate, parse_time(draft) if draft else 0.0)


def parse_engines(text: str) -> tuple[int, int]:
    """Read ``P:D``."""
    prefill, _, decode = text.partition(":")
    if not (prefill.isdecimal() and decode.isdecimal() and 1 <= int(prefill) <= 4096 and 1 <= int(decode) <= 4096):
        raise BringupError(f"write the engines that prefill and those that decode, such as 1:3, got {short(text)}")
    return int(prefill), int(decode)


def parse_calibration(text: str) -> float:
    """Read ``MEASURED:PREDICTED``, two times of the same step, and return the factor."""
    parts = text.split(":")
    values = []
    for part in parts:
        try:
            values.append(float(part))
        except ValueError:
            values.append(parse_time(part))
    if len(values) != 2 or not all(math.isfinite(value) and value > 0 for value in values):
        raise BringupError(f"write two times of one step, MEASURED:PREDICTED, such as 31ms:28ms, got {short(text)}")
    return values[0] / values[1]


def parse_blocks(text: str) -> int | None:
    """Read a number of blocks; None for ``auto``."""
    if text == "auto":
        return None
    if not (text.isdecimal() and int(text) >= 1):
        raise BringupError(f"write a number of blocks, or auto, got {short(text)}")
    return int(text)


@click.command()
@click.argument("model", required=False)
@click.option("--chip", default=None, shell_complete=complete_chips, metavar="NAME|FILE,...", help="Chips to compare.")
@host_option
@click.option(
    "--arrivals",
    required=True,
    metavar="KIND",
    help="poisson:RATE, constant:RATE, closed:CLIENTS, or a file of requests.",
)
@click.option("--lengths", default=None, metavar="KIND", help="fixed:512:128, lognormal:512:128[:SIGMA], or a file.")
@click.option(
    "--requests", type=int, default=None, help="Requests to simulate (default: those of the file, else 1000)."
)
@click.option(
    "--slo", callback=quantity(Objective.parse), default=None, metavar="LIMITS", help="Such as ttft=2s,tpot=50ms."
)
@click.option("--find-rate", is_flag=True, help="Search the largest rate that keeps the --slo.")
@click.option("--policy", type=click.Choice(["fcfs", "priority"]), default="fcfs", show_default=True)
@click.option("--prefill", default="chunked:2048", show_default=True, metavar="KIND:TOKENS", help="Or separate:TOKENS.")
@click.option("--max-requests", type=int, default=256, show_default=True, help="That run at once, or in a batch.")
@click.option("--kv-tokens", type=int, default=None, metavar="N", help="Tokens in an engine's KV cache.")
@click.option(
    "--kv-blocks", callback=quantity(parse_blocks), default=None, metavar="N|auto", help="The cache in blocks."
)
@click.option("--block-size", type=int, default=16, show_default=True, metavar="TOKENS")
@click.option("--prefix-cache/--no-prefix-cache", default=True, show_default=True)
@click.option("--preemption", type=click.Choice(["recompute", "swap"]), default="recompute", show_default=True)
@click.option(
    "--speculate",
    callback=quantity(parse_speculation),
    default=None,
    metavar="TOKENS:ACCEPTANCE[:SECONDS]",
    help="Drafted tokens per step, the probability that one is accepted, and the time of a draft.",
)
@click.option("--replicas", type=int, default=1, show_default=True, help="Engines, or servers of a program.")
@click.option("--router", type=click.Choice(ROUTERS), default="least", show_default=True)
@click.option("--chips-per-engine", type=int, default=1, show_default=True, help="That share each product.")
@click.option(
    "--disaggregate",
    callback=quantity(parse_engines),
    default=None,
    metavar="P:D",
    help="Engines that prefill and decode.",
)
@click.option("--step-seconds", default=None, metavar="FILE", help="A table of steps (csv) instead of prices.")
@click.option(
    "--calibrate",
    callback=quantity(parse_calibration),
    default=None,
    metavar="MEASURED:PREDICTED",
    help="Scale all steps by the two times of one.",
)
@click.option("--max-watts", type=float, default=None, help="Mean power of a chip.")
@click.option(
    "--window", callback=quantity(parse_time), default=None, metavar="TIME", help="That a batch waits for more."
)
@click.option("--queue-limit", type=int, default=None, help="Requests that may wait; others are turned away.")
@click.option(
    "--deadline", callback=quantity(parse_time), default=None, metavar="TIME", help="After it, no answer is needed."
)
@click.option(
    "--jitter",
    callback=quantity(Jitter.parse),
    default=None,
    metavar="KIND",
    help="Of host times: lognormal:SIGMA, exponential.",
)
@click.option(
    "--dtype", type=click.Choice(["auto", "bfloat16", "float16", "float32"]), default="auto", show_default=True
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--out", default=None, metavar="DIR", help="Write report, timeline, requests.parquet and steps.csv there."
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON; with several chips, a list.")
def command(
    model: str | None, chip: str | None, host: str | None, out: str | None, as_json: bool, **settings: Any
) -> None:
    """Simulate a model or a program under a stream of requests.

    MODEL is model.py:name, where name is a function without arguments that returns a causal language model of
    transformers (random weights do) or a module with example(batch, tokens). A module with example(batch), or the
    directory that `bringup run` has written, is a program whose requests are independent.
    """
    settings["slo"] = settings["slo"] or Objective()
    settings["speculation"], settings["chips"] = settings.pop("speculate"), settings.pop("chips_per_engine")
    options = Options(**settings)
    names = chip.split(",") if chip else []
    chips: list[Chip | None] = [load_chip(name) for name in names]
    chips = chips or [None]
    if out is not None:
        if len(chips) > 1:
            raise BringupError("--out takes the report of one chip: name one")
        out = str(prepare(out))
    machine = host_of(host, options)
    program = program_of(model, options)
    outcomes = []
    for described in chips:
        simulation = Simulation(program, described, machine, options)
        outcomes.append(simulation.outcome())
        if out is not None:
            write(simulation, outcomes[-1], out, model or str(options.step_seconds))
    if as_json:
        numbers = [outcome.as_dict() for outcome in outcomes]
        click.echo(json.dumps(numbers[0] if len(numbers) == 1 else numbers, sort_keys=True))
        return
    console = terminal.console()
    for outcome in outcomes:
        print_outcome(outcome, console)
    if out is not None:
        console.print(escaped(f"  report: {out}/report.html"), soft_wrap=True)


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Print an outcome on one screen."""
    about = outcome.about
    on = f" on {about['chip']}" if about["chip"] else ""
    console.print(escaped(f"{counted(len(outcome), 'request')}{on}, {about['arrivals']}"))
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="")
    for title in ("", "mean", "p50", "p90", "p99", ""):
        table.add_column(title, justify="left" if not title else "right", no_wrap=True)
    has_tokens = outcome.kv_blocks > 0
    for name, values in outcome.percentiles().items():
        if not has_tokens and name != "latency":
            continue
        note = ""
        if outcome.bands is not None:
            low, high = (band[name]["mean"] for band in outcome.bands)
            note = f"mean {duration(low)} to {duration(high)} if steps are off by {outcome.band:.0%}"
        table.add_row(f"  {WORDS[name]}", *(duration(value) for value in values.values()), note)
    console.print(table)
    if outcome.unstable:
        console.print(f"  unstable: the queue grows by {outcome.queue_growth:.1f} requests/s")
    for line in _lines(outcome, has_tokens):
        console.print(escaped(f"  {line}"), soft_wrap=True)


def _lines(outcome: Outcome, has_tokens: bool) -> list[str]:
    lines = []
    if has_tokens:
        cost, joules = outcome.cost_per_million_tokens, outcome.joules_per_token
        parts = [f"{figure(outcome.tokens_per_second)} tokens/s"]
        parts += [] if cost is None else [f"{figure(cost)} USD per million tokens"]
        parts += [] if joules is None else [f"at most {figure(joules)} J per token"]
        lines.append(", ".join(parts))
        share = outcome.peak_blocks / outcome.kv_blocks
        used = f"KV cache: {outcome.kv_blocks:,} blocks, at most {share:.0%} used"
        lines.append(f"{used}; {counted(outcome.preemptions, 'preemption')}")
    else:
        lines.append(f"{figure(len(outcome.requests) / outcome.seconds)} requests/s")
        if outcome.dropped:
            lines.append(f"{counted(outcome.dropped, 'request')} turned away or too late")
        if outcome.about["missed_deadlines"] is not None:
            lines.append(f"{counted(outcome.about['missed_deadlines'], 'missed deadline')}")
    if outcome.objective.limits():
        limits = ", ".join(f"{name} {duration(limit)}" for name, limit in outcome.objective.limits().items())
        lines.append(f"goodput {figure(outcome.goodput)} requests/s: {outcome.attainment:.1%} keep {limits}")
    if outcome.largest_rate is not None:
        largest = f"{figure(outcome.largest_rate)} requests/s"
        lines.append(
            f"largest rate at which {ATTAINMENT:.0%} do: {largest if outcome.largest_rate < math.inf else NO_LIMIT}"
        )
    return lines
