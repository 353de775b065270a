"""``bringup run``: run a program on a virtual chip, then say where the time went."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bringup import triton as kernels
from bringup.analyse.compare import compare
from bringup.cli.compare import print_table
from bringup.cli.program import OUT_OF_MEMORY, Program, execute, module_program, script_program, stem
from bringup.errors import BringupError
from bringup.machine.files import chip_names, load_chip, load_host
from bringup.process import DEFAULT_CHIP, asked_chip, asked_compiler, asked_devices, asked_driver, process
from bringup.recording import sanitize
from bringup.recording.sanitize import CHECKS, watched
from bringup.report import directory, summary_json, terminal
from bringup.text import plain

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host
    from bringup.recording.recording import Recording
    from bringup.timeline.replay import HostClock


@dataclass(frozen=True)
class RunOptions:
    """The options of the command line, as they were given."""

    chips: str | None
    host: str | None
    host_clock: HostClock
    strict: bool
    dry: str | None
    dry_value: str
    oom: str
    sanitize: str | None
    cuda: bool
    chip_time: bool
    compiler: str
    ops: str
    kernel_debug: bool
    out: str | None
    as_json: bool
    module: bool
    script: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """A run whose options were checked.

    Attributes:
        name: the chip to run on, as it was asked for.
        chips: the chips to price on, that one first.
        out: the report's directory as the user gave it.
        target: its absolute path, wherever the program goes.
        checks: of the sanitizer.
        dry: the mode of a dry run; computes everything if it was not asked for.
        prepare_triton: is called once the chip is chosen and before the program runs.
    """

    program: Program
    name: str
    chips: list[Chip]
    host: Host
    out: str
    target: Path
    checks: tuple[str, ...]
    dry: AbstractContextManager[None]
    prepare_triton: Callable[[], None]


@dataclass(frozen=True)
class Outcome:
    """How a program ended: its exit code, None after an interrupt, and the number of the sanitizer's findings."""

    code: int | None
    findings: int


class _Run(click.Command):
    """A command whose ``--dry`` may have a value or none, which click allows only for the last option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Add the value to a bare ``--dry`` before the script."""
        options = [item for item in self.params if isinstance(item, click.Option)]
        with_value = {name for item in options if not item.is_flag for name in item.opts} - {"--dry"}
        place = 0
        while place < len(args) and args[place].startswith("-") and args[place] != "--":
            if args[place] == "--dry":
                args[place] = "--dry=stand-in"
            place += 2 if args[place] in with_value else 1
        return super().parse_args(ctx, args)


@click.command(cls=_Run, context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})
@click.option(
    "--chip",
    "chips",
    default=None,
    metavar="NAME|FILE[,...]",
    help="Chip to run on (default: BRINGUP_CHIP or edge8); further ones are compared.",
)
@click.option("--host", default=None, metavar="NAME|FILE", help="Host to predict for.")
@click.option(
    "--host-clock",
    type=click.Choice(["modelled", "measured"]),
    default="modelled",
    show_default=True,
    help="The host's time between launches: from the host file, or the program's own CPU time.",
)
@click.option("--strict", is_flag=True, help="Raise where an operator would run on the host.")
@click.option(
    "--dry",
    type=click.Choice(["stand-in", "strict"]),
    default=None,
    metavar="[=strict]",
    help="Compute nothing: for programs larger than this machine. Reading a value gives a stand-in; strict: an error.",
)
@click.option(
    "--dry-value",
    default="0",
    metavar="NUMBER|random",
    help="The stand-in of a floating-point number in a dry run.",
    show_default=True,
)
@click.option(
    "--oom",
    type=click.Choice(["raise", "continue"]),
    default="raise",
    show_default=True,
    help="At the end of the chip's memory: raise as the chip does, or go on and report what is missing.",
)
@click.option(
    "--sanitize",
    default=None,
    metavar="CHECK,...",
    help="Look for mistakes: race, init, leak, sync, device, or all. Findings make the exit code 1.",
)
@click.option("--cuda", is_flag=True, help="The program's cuda is the chip: its names, its devices, torch.cuda.")
@click.option(
    "--chip-time", is_flag=True, help="The program's clocks show the predicted time: what it prints is the chip's."
)
@click.option(
    "--compile",
    "compiler",
    type=click.Choice(["graph", "triton"]),
    default="graph",
    show_default=True,
    help="torch.compile: the graph's kernels as bringup fuses them, or those that Inductor writes in Triton.",
)
@click.option(
    "--ops", type=click.Choice(["torch", "flaggems"]), default="torch", show_default=True, help="Whose operators run."
)
@click.option(
    "--kernel-debug",
    is_flag=True,
    help="Triton's kernels run in its interpreter: print and breakpoint() work inside. Times are not the chip's.",
)
@click.option("--out", default=None, metavar="DIR", help="Where the report goes (default: bringup-SCRIPT).")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one line of JSON instead of text.")
@click.option("-m", "module", is_flag=True, help="SCRIPT is a module's name, as for python -m.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(**values: Any) -> None:
    """Run SCRIPT with ARGUMENTS on a virtual chip, and say where the whole system's time goes.

    The program runs as under python: its arguments, exit code, input and signals are its own.
    """
    options = RunOptions(**values)
    job = prepare(options)
    outcome = record(job, options)
    _leave(1 if outcome.code == OUT_OF_MEMORY or (outcome.code == 0 and outcome.findings) else outcome.code)


def prepare(options: RunOptions) -> Job:
    """Check the options and load what they name, before the program runs; set its arguments.

    Raises:
        BringupError: an option cannot be met.
    """
    chips, script, module = options.chips, options.script, options.module
    names = chip_names(chips or asked_chip() or DEFAULT_CHIP, "--chip" if chips else "BRINGUP_CHIP")
    described = [load_chip(name) for name in names]
    machine = load_host(options.host)

    out = options.out or f"bringup-{stem(script, module)}"
    target = directory.prepare(out)
    program = module_program(script) if module else script_program(script)
    dry = _dry(options.dry, options.dry_value)
    checks = _checks(options.sanitize)
    sys.argv = [program.file if module else script, *options.arguments]
    prepare_triton = _kernels(options.compiler, options.ops, options.kernel_debug)
    return Job(program, names[0], described, machine, out, target, checks, dry, prepare_triton)


def _dry(how: str | None, value: str) -> AbstractContextManager[None]:
    if how is None:
        return nullcontext()
    number: float | str = value
    if value != "random":
        try:
            number = float(value)
        except ValueError:
            raise BringupError(f"--dry-value must be a number or random, got {value!r}") from None
    from bringup.device.dry import dry  # imports torch

    return dry(strict=how == "strict", value=number)  # type: ignore[arg-type]


def _kernels(compiler: str, ops: str, debug: bool) -> Callable[[], None]:
    """Check that Triton can do what was asked. Return what to call once the chip is chosen, before the program runs."""
    if debug:
        kernels.require_triton("--kernel-debug")
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when a kernel is defined
    if ops == "flaggems":
        if debug:
            raise BringupError("--ops flaggems has no interpreted form: leave out --kernel-debug")
        kernels.require_triton("--ops flaggems")
    if compiler == "triton":
        kernels.require_triton("--compile triton")
        process.compiler = "triton"
        os.environ["BRINGUP_COMPILE"] = "triton"  # for processes that the program starts

    def activate() -> None:
        os.environ.setdefault("TRITON_DEFAULT_BACKEND", "chip")
        if ops == "flaggems":
            from bringup.triton import flaggems  # imports torch

            flaggems.enable()

    return activate


def _checks(names: str | None) -> tuple[str, ...]:
    if names is None:
        return ()

    asked = tuple(CHECKS) if names == "all" else tuple(name for name in names.split(",") if name)
    for name in asked:
        if name not in CHECKS:
            raise BringupError(f"--sanitize knows {', '.join(CHECKS)} and all, not {name!r}")
    return asked


def record(job: Job, options: RunOptions) -> Outcome:
    """Run and record the program, and report on it when it ends or is terminated, before the recording is forgotten."""
    import torch  # as all that follows here does: options that cannot be met are refused before it

    from bringup.device.load import use
    from bringup.recording.recording import recorded
    from bringup.timeline import clock

    devices = asked_devices()
    asked_compiler()  # refuses what means nothing before the program runs
    if options.oom == "continue" and asked_driver():
        raise BringupError("--oom=continue needs the virtual chip: unset BRINGUP_DRIVER")
    use(job.name, devices=devices, strict=options.strict, past_capacity=options.oom == "continue")
    if options.cuda:
        from bringup.device.cuda import redirect_cuda  # only if it was asked for

        redirect_cuda()
    job.prepare_triton()

    watch = watched() if {"race", "init"} & set(job.checks) else nullcontext()
    findings = 0
    with job.dry, watch, recorded(job.host, options.host_clock) as recorder:
        parent = os.getpid()

        def finish() -> None:
            nonlocal findings
            if os.getpid() != parent:  # a fork of the program: the report is its parent's
                return
            if torch.ops.bringup.is_open():
                _quietly(torch.chip.synchronize)  # type: ignore[attr-defined]
            findings = report(recorder, job, options)

        _report_before_termination(finish)
        recorder.about["chip_time"] = options.chip_time
        with clock.shown() if options.chip_time else nullcontext():
            code = execute(job.program)
        if os.getpid() != parent:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the report is being written
        torch.ops.bringup.stop_recording()
        recorder.about["out_of_memory"] = code == OUT_OF_MEMORY
        finish()
    return Outcome(code, findings)


def _report_before_termination(finish: Callable[[], None]) -> None:
    """Write the report when somebody ends the program with SIGTERM, then end as python does, without clean-up.

    A program that handles the signal itself replaces this.
    """

    def handle(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # the report is being written
        try:
            finish()
        except BringupError as error:  # it is no error of the program's
            print(f"bringup: {plain(str(error))}", file=sys.stderr)
        sys.stdout.flush()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, handle)


def _quietly(function: Callable[[], None]) -> None:
    """Wait for what is under way; a launch that failed says so on stderr, as at the exit of any program."""
    try:
        function()
    except Exception as error:  # the program is over: its error is for people
        print(f"bringup: a launch failed and nothing waited for it: {error}", file=sys.stderr)


def report(recorder: Recording, job: Job, options: RunOptions) -> int:
    """Price the recording, write its report and print the summary. Return the number of the sanitizer's findings."""
    from bringup.report import writer  # imports torch
    from bringup.report.prediction import price

    trace = recorder.trace()
    if not trace.launches:
        print(
            "bringup: the program launched nothing on the chip: move its model and data to the device 'chip' "
            "(torch.accelerator.current_accelerator() names it), or run it with --cuda if it says cuda",
            file=sys.stderr,
        )
    prediction = price(trace, job.chips[0], job.host, host_clock=options.host_clock)
    findings = []
    if job.checks:
        touched = (sanitize.shown(item, recorder.places) for item in sanitize.touched() if item.check in job.checks)
        noticed = {str(item): item for item in touched}
        findings = sanitize.findings(trace, job.checks) + list(noticed.values())
        prediction.summary = replace(prediction.summary, findings=findings)
    writer.write(prediction, job.target, progress=sys.stderr.isatty())
    if options.as_json:
        print(summary_json.as_json(prediction.summary, indent=None), flush=True)
        return len(findings)
    console = terminal.console()
    console.print()
    terminal.print_summary(prediction.summary, console)
    page, trace_file, timeline = (Path(job.out, name) for name in ("report.html", "trace.npz", "timeline.json"))
    paths = f"report: {page}   trace: {trace_file}   timeline: {timeline} (Perfetto)"
    console.print(terminal.shown(paths), highlight=False, soft_wrap=True)
    if len(job.chips) > 1:
        print_table(compare(trace, job.chips, job.host, host_clock=options.host_clock), console)
    return len(findings)


def _leave(code: int | None) -> None:
    if code is None:  # as python does: die of the interrupt, so that a shell's loop ends too
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(code)
