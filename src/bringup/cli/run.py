"""``bringup run``: run a program on a virtual chip, then say where the time went."""

from __future__ import annotations

import builtins
import importlib.util
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bringup.errors import BringupError
from bringup.files import current_directory
from bringup.machine.files import chip_names, load_chip, load_host
from bringup.process import DEFAULT_CHIP, asked_chip, asked_devices, asked_driver, process
from bringup.text import plain

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host
    from bringup.recording.recording import Recording

OUT_OF_MEMORY = -1  # in place of an exit code: the program ended with torch.OutOfMemoryError


class _Run(click.Command):
    """Lets ``--dry`` stand alone or have a value, which click only does for the last option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give a bare ``--dry`` before the script its value."""
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
def command(
    chips: str | None,
    host: str | None,
    host_clock: str,
    strict: bool,
    dry: str | None,
    dry_value: str,
    oom: str,
    sanitize: str | None,
    cuda: bool,
    chip_time: bool,
    compiler: str,
    ops: str,
    kernel_debug: bool,
    out: str | None,
    as_json: bool,
    module: bool,
    script: str,
    arguments: tuple[str, ...],
) -> None:
    """Run SCRIPT with ARGUMENTS on a virtual chip, and say where the whole system's time goes.

    The program runs as under python: its arguments, exit code, input and signals are its own.
    """
    names = chip_names(chips or asked_chip() or DEFAULT_CHIP, "--chip" if chips else "BRINGUP_CHIP")
    described = [load_chip(name) for name in names]
    machine = load_host(host)
    from bringup.report import directory

    out = out or f"bringup-{_stem(script, module)}"
    target = directory.prepare(out)
    program = _module_program(script) if module else _script_program(script)
    context = _dry(dry, dry_value)
    checks = _checks(sanitize)
    sys.argv = [program.file if module else script, *arguments]
    report = _Report(described, machine, host_clock, out, target, as_json, checks)
    prepare = _kernels(compiler, ops, kernel_debug)
    code = _record(program, names[0], report, strict, oom == "continue", context, cuda, chip_time, prepare)
    _leave(code)


def _dry(how: str | None, value: str) -> AbstractContextManager[None]:
    if how is None:
        return nullcontext()
    number: float | str = value
    if value != "random":
        try:
            number = float(value)
        except ValueError:
            raise BringupError(f"--dry-value must be a number or random, got {value!r}") from None
    from bringup.device.dry import dry

    return dry(strict=how == "strict", value=number)  # type: ignore[arg-type]


def _kernels(compiler: str, ops: str, debug: bool) -> Callable[[], None]:
    """Return what is to be done about Triton once the chip is chosen and before the program runs."""
    from bringup import triton as kernels

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

    def prepare() -> None:
        os.environ.setdefault("TRITON_DEFAULT_BACKEND", "chip")
        if ops == "flaggems":
            from bringup.triton import flaggems

            flaggems.enable()

    return prepare


def _checks(names: str | None) -> tuple[str, ...]:
    if names is None:
        return ()
    from bringup.recording.sanitize import CHECKS

    asked = tuple(CHECKS) if names == "all" else tuple(name for name in names.split(",") if name)
    for name in asked:
        if name not in CHECKS:
            raise BringupError(f"--sanitize knows {', '.join(CHECKS)} and all, not {name!r}")
    return asked


@dataclass
class _Report:
    """What the recording is priced on, and where the report goes."""

    chips: list[Chip]
    host: Host
    host_clock: str
    out: str  # the directory as the user gave it
    target: Path  # and where that is, wherever the program goes
    as_json: bool
    checks: tuple[str, ...]
    found: int = 0


class _Program:
    """What to run as ``__main__``: its file, its place on ``sys.path``, its code."""

    def __init__(self, file: str, folder: str, code: Callable[[], types.CodeType], spec: object = None) -> None:
        self.file = file
        self.folder = folder
        self.code = code
        self.spec = spec


def _stem(script: str, module: bool) -> str:
    return script.rsplit(".", 1)[-1] if module else Path(script).stem


def _script_program(script: str) -> _Program:
    path = Path(script)
    if not os.path.isfile(path):
        what = "is a directory" if os.path.isdir(path) else "there is no such script"
        raise BringupError(f"{script}: {what}; give the path of a Python file, or -m and a module")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise BringupError(f"{script}: cannot be read ({error.strerror})") from None
    file = os.path.abspath(script)  # as python names it in tracebacks and __file__
    return _Program(file, str(path.resolve().parent), lambda: compile(source, file, "exec", dont_inherit=True))


def _module_program(name: str) -> _Program:
    here = current_directory()
    sys.path.insert(0, here)
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except (ImportError, ValueError):
        spec = None
    finally:
        sys.path.pop(0)
    if spec is None or spec.origin is None or spec.loader is None or not hasattr(spec.loader, "get_code"):
        raise BringupError(
            f"-m {name}: there is no such module that can be run; is it installed, or in this directory?"
        )
    loader, full = spec.loader, spec.name

    def code() -> types.CodeType:
        found = loader.get_code(full)
        if not isinstance(found, types.CodeType):  # an extension module
            raise ImportError(f"No code object available for {full}")
        return found

    return _Program(spec.origin, here, code, spec)


def _record(
    program: _Program,
    name: str,
    report: _Report,
    strict: bool,
    past_capacity: bool,
    dry: AbstractContextManager[None],
    cuda: bool,
    chip_time: bool,
    prepare: Callable[[], None],
) -> int | None:
    import torch

    from bringup.device.load import use
    from bringup.recording.recording import recorded
    from bringup.timeline import clock

    devices = asked_devices()
    if past_capacity and asked_driver():
        raise BringupError("--oom=continue needs the virtual chip: unset BRINGUP_DRIVER")
    use(name, devices=devices, strict=strict, past_capacity=past_capacity)
    if cuda:
        from bringup.device.cuda import redirect_cuda

        redirect_cuda()
    prepare()
    from bringup.recording.sanitize import watched

    watch = watched() if {"race", "init"} & set(report.checks) else nullcontext()
    with dry, watch, recorded(report.host, report.host_clock) as recorder:  # type: ignore[arg-type]
        parent = os.getpid()

        def finish() -> None:
            if os.getpid() != parent:  # a fork of the program: the report is its parent's
                return
            if torch.ops.bringup.is_open():
                _quietly(torch.chip.synchronize)  # type: ignore[attr-defined]
            _write(recorder, report)

        _report_before_termination(finish)
        recorder.about["chip_time"] = chip_time
        with clock.shown() if chip_time else nullcontext():
            code = _execute(program)
        if os.getpid() != parent:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the report is being written
        torch.ops.bringup.stop_recording()
        recorder.about["out_of_memory"] = code == OUT_OF_MEMORY
        finish()
    return 1 if code == OUT_OF_MEMORY or (code == 0 and report.found) else code


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


def _execute(program: _Program) -> int | None:
    """Run as ``__main__``. Return the exit code; None for an interrupt, which the caller passes on."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=program.file, __builtins__=builtins, __spec__=program.spec, __annotations__={})
    if program.spec is not None:
        main.__dict__["__package__"] = str(getattr(program.spec, "parent", ""))
        main.__dict__["__loader__"] = getattr(program.spec, "loader", None)
    sys.modules["__main__"] = main
    sys.path[0] = program.folder
    try:
        exec(program.code(), main.__dict__)
    except SystemExit as error:
        return _exit_code(error)
    except KeyboardInterrupt:
        _print_traceback()
        return None
    except BaseException as error:
        _print_traceback()
        return OUT_OF_MEMORY if _is_out_of_memory(error) else 1
    finally:
        if pools := sys.modules.get("concurrent.futures.thread"):
            pools._python_exit()  # as at python's own exit: idle threads of pools would never end
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
    return 0


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code
    print(error.code, file=sys.stderr)
    return 1


def _print_traceback() -> None:
    """Print the error as python does: from the program's own first frame on."""
    kind, value, trace = sys.exc_info()
    assert kind is not None and value is not None
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    if sys.excepthook is not sys.__excepthook__:
        sys.excepthook(kind, value, trace)
    else:
        traceback.print_exception(kind, value, trace)


def _write(recorder: Recording, to: _Report) -> None:
    from bringup.analyse.prediction import price
    from bringup.recording import sanitize
    from bringup.report import summary_json, terminal, writer

    trace = recorder.trace()
    if not trace.launches:
        print(
            "bringup: the program launched nothing on the chip: move its model and data to the device 'chip' "
            "(torch.accelerator.current_accelerator() names it), or run it with --cuda if it says cuda",
            file=sys.stderr,
        )
    prediction = price(trace, to.chips[0], to.host, host_clock=to.host_clock)  # type: ignore[arg-type]
    if to.checks:
        touched = (sanitize.shown(item, recorder.places) for item in sanitize.touched() if item.check in to.checks)
        noticed = {str(item): item for item in touched}
        findings = sanitize.findings(trace, to.checks) + list(noticed.values())
        prediction.summary = replace(prediction.summary, findings=findings)
        to.found = len(findings)
    writer.write(prediction, to.target, progress=sys.stderr.isatty())
    if to.as_json:
        print(summary_json.as_json(prediction.summary, indent=None), flush=True)
        return
    console = terminal.console()
    console.print()
    terminal.print_summary(prediction.summary, console)
    report, trace_file, timeline = (Path(to.out, name) for name in ("report.html", "trace.parquet", "timeline.json"))
    paths = f"report: {report}   trace: {trace_file}   timeline: {timeline} (Perfetto)"
    console.print(terminal.shown(paths), highlight=False, soft_wrap=True)
    if len(to.chips) > 1:
        from bringup.analyse.compare import compare
        from bringup.cli.compare import print_table

        print_table(compare(trace, to.chips, to.host, host_clock=to.host_clock), console)  # type: ignore[arg-type]


def _leave(code: int | None) -> None:
    if code is None:  # as python does: die of the interrupt, so that a shell's loop ends too
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(code)
