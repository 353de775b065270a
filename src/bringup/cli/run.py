"""``bringup run``: runs a program on a virtual chip, then reports where the time goes."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bringup import triton as kernels
from bringup.analyse.compare import compare
from bringup.cli import ranks, stages
from bringup.cli.compare import print_table
from bringup.cli.options import DryCommand, complete_chips, host_clock_option, host_option, output_options, quantity
from bringup.cli.place import plan_of_run
from bringup.cli.program import (
    FAILED,
    OUT_OF_MEMORY,
    Program,
    execute,
    model_program,
    module_program,
    script_program,
    skip_last_collections,
    stem,
)
from bringup.drivers.names import resolve
from bringup.errors import BringupError
from bringup.frontends.tensorflow import hook
from bringup.machine.files import chip_names, load_chip, load_host
from bringup.machine.topology import cluster_of, is_file, load_cluster
from bringup.process import DEFAULT_CHIP, MAX_DEVICES, asked_chip, asked_compiler, asked_devices, asked_driver, process
from bringup.recording import sanitize
from bringup.recording.sanitize import watched
from bringup.report import directory, exceeded, github, summary_json, terminal
from bringup.text import plain
from bringup.units import parse_size, parse_time

if TYPE_CHECKING:
    from bringup.analyse.summary import Summary
    from bringup.cli.live import Live
    from bringup.machine.schema import Chip, Host
    from bringup.machine.topology import Topology
    from bringup.placement.plan import Plan
    from bringup.recording.recording import Recording
    from bringup.timeline.replay import HostClock

EXCEEDED = 3  # the exit code if a limit is exceeded


@dataclass(frozen=True)
class RunOptions:
    """The options of the command line, unchecked."""

    chips: str | None
    host: str | None
    host_clock: HostClock
    strict: bool
    dry: str | None
    dry_value: str
    oom: str
    sanitize: str | None
    cuda: bool
    framework: str | None
    chip_time: bool
    compiler: str
    ops: str
    kernel_debug: bool
    driver: str | None
    shadow: bool
    place: str | None
    max_step: float | None
    max_memory: int | None
    nproc: int | None
    ranks: int | None
    rank: int | None
    stages: str | None
    cluster: str | None
    stacks: bool
    live: bool
    out: str | None
    output: str
    module: bool
    script: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """A run with checked options.

    Attributes:
        name: the chip to run on, as the user gave it.
        chips: the chips to predict for, starting with the chip to run on.
        out: the report's directory, as the user gave it.
        target: its absolute path, which stays valid if the program changes its working directory.
        checks: the checks of the sanitizer.
        dry: the context of a dry run; a null context otherwise.
        plan: where launches run; None without ``--place``.
        prepare_triton: called after the chip is chosen and before the program runs.
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
    plan: Plan | None


@dataclass(frozen=True)
class Outcome:
    """How a program ended: its exit code (None after an interrupt), and its summary with the sanitizer's findings.

    Attributes:
        diverged: True if a kernel of the driver differs from the CPU.
    """

    code: int | None
    summary: Summary | None
    diverged: bool = False


@click.command(cls=DryCommand, context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})
@click.option(
    "--chip",
    "chips",
    default=None,
    shell_complete=complete_chips,
    metavar="NAME|FILE[,...]",
    help="Chip to run on (default: BRINGUP_CHIP or edge8). Further chips are compared with it.",
)
@host_option
@host_clock_option("the CPU time that the program takes here")
@click.option("--strict", is_flag=True, help="Raise an error where an operator would run on the host.")
@click.option(
    "--dry",
    type=click.Choice(["stand-in", "strict"]),
    default=None,
    metavar="[=strict]",
    help="Compute nothing, for programs larger than this machine. Reading a device value gives a stand-in, or an "
    "error with =strict.",
)
@click.option(
    "--dry-value",
    default="0",
    metavar="NUMBER|random",
    help="Stand-in for floating-point values in a dry run.",
    show_default=True,
)
@click.option(
    "--oom",
    type=click.Choice(["raise", "continue"]),
    default="raise",
    show_default=True,
    help="When the chip's memory is full: raise an error as the chip does, or continue and report the memory needed.",
)
@click.option(
    "--sanitize",
    default=None,
    metavar="CHECK,...",
    help="Look for mistakes: race, init, leak, sync, device, or all. The exit code is 1 if there are findings.",
)
@click.option("--cuda", is_flag=True, help="Run a CUDA program: the device cuda and torch.cuda mean the chip.")
@click.option(
    "--framework",
    default=None,
    type=click.Choice(["torch", "jax", "tensorflow"]),
    help="Framework that Keras computes with; torch and jax also leave TensorFlow on the host.",
)
@click.option(
    "--chip-time",
    is_flag=True,
    help="The program's clocks show predicted time, so the times that it prints are predictions for the chip.",
)
@click.option(
    "--compile",
    "compiler",
    type=click.Choice(["graph", "triton"]),
    default="graph",
    show_default=True,
    help="Kernels of torch.compile: graph uses bringup's own fusion, triton those that Inductor writes in Triton.",
)
@click.option(
    "--ops",
    type=click.Choice(["torch", "flaggems"]),
    default="torch",
    show_default=True,
    help="Operators to run: torch's own, or those of FlagGems, which are written in Triton.",
)
@click.option(
    "--kernel-debug",
    is_flag=True,
    help="Run Triton kernels in Triton's interpreter: print and breakpoint() work in them. Times are then not valid.",
)
@click.option(
    "--driver",
    default=None,
    metavar="NAME|FILE",
    help="Run on another device: cuda, opencl, rtl, or a driver's library or Python file (default: BRINGUP_DRIVER).",
)
@click.option(
    "--shadow",
    is_flag=True,
    help="With --driver: compare each of the driver's kernels with the CPU. The exit code is 1 if one differs.",
)
@click.option(
    "--place",
    default=None,
    metavar="FILE|auto",
    help="Run launches on host or chip as a plan of `bringup place` says; auto: record, plan, and run again.",
)
@click.option(
    "--max-step",
    callback=quantity(parse_time),
    default=None,
    metavar="TIME",
    help="End with exit code 3 if a step is predicted to take longer than a time such as 20ms.",
)
@click.option(
    "--max-memory",
    callback=quantity(parse_size),
    default=None,
    metavar="SIZE",
    help="End with exit code 3 if tensors hold more device memory at once than a size such as 14GiB.",
)
@click.option(
    "--nproc",
    type=int,
    default=None,
    metavar="N",
    help="Run N ranks, one process and chip each, with the environment of torchrun.",
)
@click.option(
    "--ranks", type=int, default=None, metavar="N", help="With --dry: record one rank of N, without the others."
)
@click.option("--rank", type=int, default=None, metavar="R", help="The rank that --ranks records (default: 0).")
@click.option(
    "--stages",
    type=click.Choice(["all"]),
    default=None,
    help="With --ranks: record one rank of each stage of a pipeline, on one clock.",
)
@click.option(
    "--cluster",
    default=None,
    metavar="NAME|FILE",
    help="Predict collectives on this cluster, such as dgx-h100x32, with its chip (default: the chip's node).",
)
@click.option(
    "--stacks",
    is_flag=True,
    help="Record the calls that led to each launch, for a flame graph by Python stack. Launches take longer here; "
    "predictions stay the same.",
)
@click.option(
    "--live",
    is_flag=True,
    help="While the program runs, show steps, memory and fallbacks in the terminal's last line. Quiet in pipes.",
)
@click.option("--out", default=None, metavar="DIR", help="Directory for the report (default: bringup-SCRIPT).")
@output_options("the summary")
@click.option("-m", "module", is_flag=True, help="SCRIPT is the name of a module, as in python -m.")
@click.argument("script", type=click.Path())
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(**values: Any) -> None:
    """Run SCRIPT with ARGUMENTS on a virtual chip, and report where the time of chip, link and host goes.

    The program runs as under python: arguments, input, signals and exit code are unchanged. SCRIPT may be an ONNX
    model or a StableHLO module: bringup run model.onnx --input x=1x3x224x224:float32 --steps 3
    """
    options = RunOptions(**values)
    topology = _cluster(options)
    if topology is not None and not (options.chips or asked_chip()):
        options = replace(options, chips=topology.node.chip)
    out = options.out or f"bringup-{stem(options.script, options.module)}"
    if options.nproc is not None and ranks.rank_here() is None:
        prepare_ranks(options)
        _leave(ranks.run_ranks(options.nproc, out))
    if options.stages is not None and stages.stage_here() is None:
        prepare_ranks(options)
        _leave(_run_stages(options, out))
    if stages.stage_here() is not None:
        options = replace(options, rank=stages.stage_here(), out=str(Path(out, f"rank{stages.stage_here()}")))
    if ranks.rank_here() is not None:
        options = replace(options, out=str(Path(out, f"rank{ranks.rank_here()}")))
    job = prepare(options)
    if options.ranks is not None:
        pretend(options, topology)
    outcome = record(job, options)
    code = 1 if outcome.code in (OUT_OF_MEMORY, FAILED) else outcome.code
    if outcome.summary and stages.stage_here() is None:  # a stage's step is known when all are recorded
        judged = _judge(outcome.summary, options, code == 0, ranks.rank_here())
        if ranks.rank_here() is not None:  # no failure, for which the other ranks would be ended
            ranks.note(judged)
        elif code == 0:  # None after an interrupt
            code = judged or int(outcome.diverged)
    _leave(code)


def _judge(summary: Summary, options: RunOptions, ended_well: bool, rank: int | None) -> int:
    """Say on stderr which limits a run exceeds, write what CI shows, and return the exit code."""
    of_rank = "" if rank is None else f"rank {rank}: "
    sentences = list(exceeded.by_run(summary, options.max_step, options.max_memory)) if ended_well else []
    unseen = [str(finding) for finding in summary.findings] if rank is not None else []  # else they are on the screen
    for sentence in (*sentences, *unseen):
        print(f"bringup: {of_rank}{plain(sentence)}", file=sys.stderr)
    if options.output == "github":
        program = options.script if rank is None else f"{options.script} (rank {rank})"
        github.write(github.of_run(summary, program, [of_rank + sentence for sentence in sentences]))
    return EXCEEDED if sentences else int(ended_well and bool(summary.findings))


def _cluster(options: RunOptions) -> Topology | None:
    """Read the cluster that the options name, and refuse options that contradict it."""
    if options.stages is not None and options.ranks is None:
        raise BringupError("--stages records ranks of --ranks: give their number, and --dry")
    if options.ranks is None and options.rank is not None:
        raise BringupError("--rank says which rank --ranks records: give both")
    if options.ranks is not None:
        if options.dry is None or options.nproc is not None:
            raise BringupError("--ranks records one rank without the others: give --dry, and no --nproc")
        if not 1 <= options.ranks <= 10**6:
            raise BringupError(f"--ranks must be from 1 to 1,000,000, got {options.ranks}")
        if not 0 <= (options.rank or 0) < options.ranks:
            raise BringupError(f"--rank must be from 0 to {options.ranks - 1}, got {options.rank or 0}")
    topology = load_cluster(options.cluster) if options.cluster else None
    number = options.ranks or options.nproc
    if topology is not None and number:
        topology.group(number)  # raises if the cluster has too few chips
    return topology


def _run_stages(options: RunOptions, out: str) -> int:
    """Record one rank per stage, beginning with --rank."""
    chip = chip_names(options.chips or asked_chip() or DEFAULT_CHIP, "--chip")[0]
    number = options.ranks or 1
    host = load_host(options.host)
    summaries = stages.run_stages(options.rank or 0, number, out, chip, host, options.host_clock)
    return max(_judge(summary, options, True, rank) for rank, summary in sorted(summaries.items()))


def prepare_ranks(options: RunOptions) -> None:
    """Refuse options of ranks that cannot run, before any of them starts."""
    if asked_driver() or options.driver:
        raise BringupError("--nproc and --stages need the virtual chip: leave out --driver, or unset BRINGUP_DRIVER")
    if options.output == "json":
        raise BringupError(
            "--nproc and --stages write the summary of all ranks to summary.json in --out: leave out --json"
        )
    chips = chip_names(options.chips or asked_chip() or DEFAULT_CHIP, "--chip")
    if len(chips) > 1:
        raise BringupError(f"--nproc and --stages take one chip, got {plain(','.join(chips))}")
    load_chip(chips[0])
    load_host(options.host)
    if options.module:
        module_program(options.script)
    else:
        script_program(options.script)


def pretend(options: RunOptions, topology: Topology | None) -> None:
    """Set the environment of one rank of many, on a node of the cluster."""
    number, rank = options.ranks or 1, options.rank or 0
    topology = topology or cluster_of(load_chip((options.chips or asked_chip() or DEFAULT_CHIP).split(",")[0]), number)
    here = min(topology.node.chips, number, MAX_DEVICES)
    os.environ.setdefault("BRINGUP_DEVICES", str(here))
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(number), "LOCAL_RANK": str(rank % here)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(here), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def prepare(options: RunOptions) -> Job:
    """Check the options and load the chips, host and program that they name; set the program's arguments.

    Raises:
        BringupError: an option is invalid.
    """
    chips, script, module = options.chips, options.script, options.module
    if options.driver is not None:  # also for processes that the program starts
        os.environ["BRINGUP_DRIVER"] = resolve(options.driver)
    if asked_driver() and (options.dry is not None or options.sanitize is not None):
        raise BringupError("--dry and --sanitize need the virtual chip: leave out --driver, or unset BRINGUP_DRIVER")
    if options.live and options.chip_time:
        raise BringupError("--live reads the recording beside the program, whose clocks --chip-time shows: give one")
    if options.shadow and not asked_driver():
        raise BringupError("--shadow compares the kernels of a driver with the CPU: name one with --driver")
    names = chip_names(chips or asked_chip() or DEFAULT_CHIP, "--chip" if chips else "BRINGUP_CHIP")
    described = [load_chip(name) for name in names]
    machine = load_host(options.host)

    if options.framework:
        _choose(options.framework)
    out = options.out or f"bringup-{stem(script, module)}"
    target = directory.prepare(out)
    program = _program(script, module, options.arguments)
    dry = _dry(options.dry, options.dry_value)
    checks = () if options.sanitize is None else sanitize.checks(options.sanitize)
    sys.argv = [program.file if module else script, *options.arguments]
    prepare_triton = _kernels(options.compiler, options.ops, options.kernel_debug)
    plan = None if options.place is None else plan_of_run(options, described[0], machine, program.file, out)
    return Job(program, names[0], described, machine, out, target, checks, dry, prepare_triton, plan)


def _choose(framework: str) -> None:
    """Let Keras compute with a framework.

    Raises:
        BringupError: it is not installed, or another release than the one that was tested.
    """
    if find_spec(framework) is None:
        raise BringupError(f'--framework {framework}: it is not installed: pip install "bringup[{framework}]"')
    if framework == "tensorflow":
        hook.check()
    os.environ["KERAS_BACKEND"] = framework


def _program(script: str, module: bool, arguments: tuple[str, ...]) -> Program:
    if module:
        return module_program(script)
    return model_program(script, arguments) if script.endswith((".onnx", ".mlir")) else script_program(script)


def _dry(mode: str | None, value: str) -> AbstractContextManager[None]:
    if mode is None:
        return nullcontext()
    number: float | str = value
    if value != "random":
        try:
            number = float(value)
        except ValueError:
            raise BringupError(f"--dry-value must be a number or random, got {value!r}") from None
    from bringup.device.dry import dry  # imports torch

    return dry(strict=mode == "strict", value=number)  # type: ignore[arg-type]


def _kernels(compiler: str, ops: str, debug: bool) -> Callable[[], None]:
    """Check the options for Triton; return a function to call between choosing the chip and running the program."""
    if debug:
        kernels.require_triton("--kernel-debug")
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when a kernel is defined
    if ops == "flaggems":
        if debug:
            raise BringupError("--ops flaggems does not run in Triton's interpreter: leave out --kernel-debug")
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


def record(job: Job, options: RunOptions) -> Outcome:
    """Run and record the program; write its report when it ends or is terminated."""
    import torch  # imported late, like the modules below: invalid options are refused before

    from bringup.device.load import use
    from bringup.drivers import shadow
    from bringup.placement.apply import placed
    from bringup.recording.measured import facts, measured
    from bringup.recording.recording import recorded
    from bringup.timeline import clock, library

    library.load()  # the report needs it: without it, nothing runs
    devices = asked_devices()
    asked_compiler()  # raises if BRINGUP_COMPILE is invalid, before the program runs
    if options.oom == "continue" and asked_driver():
        raise BringupError("--oom=continue needs the virtual chip: unset BRINGUP_DRIVER")
    past_capacity = options.oom == "continue" or (job.plan is not None and not asked_driver())
    use(job.name, devices=devices, strict=options.strict, past_capacity=past_capacity)
    os.environ.setdefault("KERAS_TORCH_DEVICE", "cuda" if options.cuda else "chip")  # Keras knows no other accelerator
    if options.cuda:
        from bringup.device.cuda import redirect_cuda  # only for --cuda

        redirect_cuda()
    job.prepare_triton()
    if options.framework in (None, "tensorflow"):
        hook.watch_import(options.strict)
    if options.ranks is not None:
        from bringup.device.distributed import pretend_ranks  # only for --ranks

        pretend_ranks(options.rank or 0, options.ranks)
    if ranks.rank_here() is not None:
        torch.ops.bringup.watch_ranks(ranks.state_file())
    if options.shadow:
        shadow.begin()

    watch = watched("init" in job.checks) if {"race", "init"} & set(job.checks) else nullcontext()
    summary: Summary | None = None
    on_driver = measured() if asked_driver() else nullcontext()
    plan = placed(job.plan) if job.plan is not None else nullcontext()
    line = _live(job, options)
    recording = recorded(job.host, options.host_clock, stacks=options.stacks)
    with job.dry, watch, on_driver, plan, recording as recorder:
        parent = os.getpid()

        def finish() -> None:
            nonlocal summary
            if os.getpid() != parent:  # in a fork of the program: only the parent writes the report
                return
            if line is not None:
                line.end()
            if torch.ops.bringup.is_open():
                _quietly(torch.chip.synchronize)  # type: ignore[attr-defined]
                if asked_driver():
                    recorder.about["driver"] = facts()
                if options.shadow:
                    recorder.about["driver"]["shadow"] = shadow.report()
            summary = report(recorder, job, options)

        _report_before_termination(recorder, finish)
        recorder.about["chip_time"] = options.chip_time
        recorder.about["framework"] = options.framework or job.program.framework
        recorder.about |= _of_ranks(options)
        os.environ.setdefault("JAX_PLATFORMS", "chip,cpu")  # JAX reads it when the program imports it
        gc.freeze()  # what is imported by now needs no collection
        with clock.shown() if options.chip_time else line or nullcontext():
            code = execute(job.program)
        if os.getpid() != parent:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1 if code in (OUT_OF_MEMORY, FAILED) else code or 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the report is being written
        torch.ops.bringup.stop_recording()
        recorder.about["out_of_memory"] = code == OUT_OF_MEMORY
        unused = not torch.ops.bringup.is_open()  # such as a program that refuses its arguments
        recorder.about["failed"] = code in (OUT_OF_MEMORY, FAILED) or (bool(code) and unused)
        if code is None:
            recorder.about["stopped_by"] = "SIGINT"
        skip_last_collections()  # nor are there any while the report is written
        finish()
    diverged = bool(options.shadow and recorder.about.get("driver", {}).get("shadow", {}).get("first"))
    return Outcome(code, summary, diverged)


def _live(job: Job, options: RunOptions) -> Live | None:
    """Return the context in which the terminal's last line follows the program, if it is to be shown."""
    if not options.live or ranks.rank_here() is not None:
        return None
    from bringup.cli import live  # imports torch

    return live.Live(live.Progress(job.chips[0], job.host, options.host_clock))


def _of_ranks(options: RunOptions) -> dict[str, Any]:
    """Return what a recording says of ranks and their cluster."""
    about: dict[str, Any] = {}
    if options.cluster:
        about["cluster"] = os.path.abspath(options.cluster) if is_file(options.cluster) else options.cluster
    number, rank = options.ranks or options.nproc, options.rank or ranks.rank_here() or 0
    return {**about, "ranks": number, "rank": rank} if number else about


def _report_before_termination(recorder: Recording, finish: Callable[[], None]) -> None:
    """Write the report on SIGTERM, then end as python does, without clean-up.

    A program that handles the signal itself replaces this handler.
    """

    def handle(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # the report is being written
        recorder.about["stopped_by"] = signal.Signals(number).name
        try:
            finish()
        except BringupError as error:  # not an error of the program
            print(f"bringup: {plain(str(error))}", file=sys.stderr)
        sys.stdout.flush()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, handle)


def _quietly(function: Callable[[], None]) -> None:
    """Wait for all launches; print the error of a failed launch on stderr, as at the exit of any program."""
    try:
        function()
    except Exception as error:  # the program has ended, so its error is only printed
        print(f"bringup: a launch failed and nothing waited for it: {error}", file=sys.stderr)


def report(recorder: Recording, job: Job, options: RunOptions) -> Summary | None:
    """Price the recording, write its report and print the summary; return it.

    A program that failed before it used the chip has none.
    """
    from bringup.drivers import shadow
    from bringup.placement.apply import unplanned
    from bringup.recording.keepers import with_keeper
    from bringup.recording.measured import sentences
    from bringup.report import writer  # imports torch
    from bringup.report.prediction import price

    trace = recorder.trace()
    failed = bool(trace.about.get("failed", False))
    if failed and not len(trace) and options.output != "json":
        print("bringup: the program ended with an error before it used the chip: there is no report", file=sys.stderr)
        return None
    if not trace.launches and not failed and trace.about["framework"] not in ("onnx", "stablehlo"):
        print(f"bringup: the program launched nothing on the chip: {_how_to_launch(options)}", file=sys.stderr)
    trace.about |= {"host": job.host.name, "host_clock": options.host_clock}  # for `bringup report`
    if job.checks:
        touched = (sanitize.shown(item, recorder.places) for item in sanitize.touched() if item.check in job.checks)
        noticed = {str(item): item for item in touched}
        variables = vars(sys.modules["__main__"])  # the program's
        findings = [with_keeper(item, trace, variables) for item in sanitize.findings(trace, job.checks)]
        findings += noticed.values()
        trace.about["findings"] = [vars(item) for item in findings]
    prediction = price(trace, job.chips[0], job.host, host_clock=options.host_clock)
    in_ranks = ranks.rank_here() is not None or stages.stage_here() is not None
    writer.write(prediction, job.target, progress=sys.stderr.isatty() and not in_ranks)
    if in_ranks:  # the process that started the ranks prints their summary
        return prediction.summary
    if options.output == "json":
        print(summary_json.as_json(prediction.summary, indent=None), flush=True)
        return prediction.summary
    console = terminal.console()
    if prediction.summary.step_seconds or failed:  # else there is nothing to sum up
        console.print()
        terminal.print_summary(prediction.summary, console)
    plan = os.path.join(job.out, "plan.toml") if options.place == "auto" else options.place
    for sentence in unplanned(trace.about.get("placement"), plan):
        print(f"bringup: {plain(sentence)}", file=sys.stderr)
    if "driver" in trace.about:
        facts = trace.about["driver"]
        lines = [*sentences(facts, prediction.summary.step_seconds)]
        if "shadow" in facts:
            lines += shadow.sentences(facts["shadow"])
        for sentence in lines:
            console.print(terminal.escaped(sentence), soft_wrap=True)
    page, trace_file, timeline = (Path(job.out, name) for name in ("report.html", "trace.npz", "timeline.pftrace.gz"))
    paths = f"report: {page}   trace: {trace_file}   timeline: {timeline} (Perfetto)"
    console.print(terminal.escaped(paths), soft_wrap=True)
    if len(job.chips) > 1:
        print_table(compare(trace, job.chips, job.host, host_clock=options.host_clock), console)
    return prediction.summary


def _how_to_launch(options: RunOptions) -> str:
    if "tensorflow" in sys.modules and options.framework in (None, "tensorflow"):
        return "TensorFlow runs single operations on the host: make its steps functions with tf.function"
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if "jax" in sys.modules and "chip" not in platforms.split(","):
        return f"JAX_PLATFORMS={platforms} keeps JAX on another device: unset it"
    if options.cuda:
        return "move its model and data to the device 'cuda'"
    return (
        "move its model and data to the device 'chip' (torch.accelerator.current_accelerator() returns it), "
        "or use --cuda if the program uses the device cuda"
    )


def _leave(code: int | None) -> None:
    if code is None:  # end by the signal as python does, so that a loop in a shell ends too
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    skip_last_collections()
    sys.exit(code)
