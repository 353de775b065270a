"""``bringup driver check``: runs the checks in processes of their own, and adds up what they report.

A driver may crash, or a kernel may never end. The core writes into a file what the driver is doing, so the operator
can still be named. It is then left out, and a new process goes on.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bringup.drivers import shadow
from bringup.drivers.basics import CHECKS
from bringup.drivers.compared import ByOperator, add_rows, rows_of
from bringup.drivers.names import VIRTUAL
from bringup.drivers.worker import MARK
from bringup.errors import BringupError
from bringup.text import quantity

KERNEL_SECONDS = 60.0  # after which a call of the driver counts as endless; compilers take seconds
CASE_SECONDS = 600.0  # the same for a whole case
MOST_CRASHES = 50  # of one share: then the rest is not run


@dataclass(frozen=True)
class Options:
    """What to check.

    Attributes:
        driver: a name, or the absolute path of a library.
        chip: the chip that the device has the memory of.
        jobs: number of processes at the same time.
        only: names of torch's database to check; all if empty.
        dtypes: names such as ``torch.float32``; all if empty.
        seconds: the time limit of one call of the driver.
    """

    driver: str
    chip: str
    jobs: int = 2
    only: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    seconds: float = KERNEL_SECONDS


def run(options: Options, report: Callable[[str], None]) -> dict[str, Any]:
    """Check a driver.

    Args:
        options: what to check.
        report: called with the name of each case that begins.

    Returns:
        ``driver``; ``operators``, a line per operator and dtype; ``checks``, a line for each other check.

    Raises:
        BringupError: the driver cannot be loaded, or its device does not open.
    """
    if options.driver == VIRTUAL:
        raise BringupError("the virtual chip has no kernels of its own: give opencl, cuda, or a driver's library")
    lines: list[dict[str, Any]] = []
    operators: ByOperator = {}
    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        shares = [_Share(options, number, report) for number in range(options.jobs)]
        for share in pool.map(_Share.run, shares):
            add_rows(operators, rows_of(share.operators))
            lines += share.lines
    if not options.only:
        lines += _basics(options)
    rows = [operator.line(*key) for key, operator in sorted(operators.items())]
    return {"driver": options.driver, "operators": rows, "checks": lines}


def is_right(result: dict[str, Any]) -> bool:
    """Return True if nothing was wrong."""
    return not any(line["verdict"] == "wrong" for line in (*result["operators"], *result["checks"]))


def sentence(result: dict[str, Any]) -> str:
    """Return the counts of the operators' verdicts."""
    counts = Counter(line["verdict"] for line in result["operators"])
    samples = sum(line["samples"] for line in result["operators"])
    wrong = sum(line["verdict"] == "wrong" for line in result["checks"])
    checks = f"; {len(result['checks']) - wrong} of {quantity(len(result['checks']), 'other check')} right"
    others = checks if result["checks"] else ""
    on_device = {line["op"] for line in result["operators"] if line["verdict"] != "refused"}
    return (
        f"{quantity(len(on_device), 'operator')} on the device; with their dtypes {counts['right']} right, "
        f"{counts['wrong']} wrong ({samples:,} launches compared), {counts['refused']} on the host{others}"
    )


# ---- processes


class _Process:
    """A worker, whose errors are read while it runs."""

    def __init__(self, options: Options, *arguments: str) -> None:
        self.errors: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bringup.drivers.worker", "--chip", options.chip, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "BRINGUP_DRIVER": options.driver, "BRINGUP_DEVICES": "1"},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def _read_errors(self) -> None:
        assert self.process.stderr
        with self.process.stderr as stream:
            self.errors.extend(stream)

    def end(self) -> str:
        """End it, and return how it ended."""
        if self.process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)  # it may be about to end
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        self._reader.join(1)
        if code < 0:
            return f"the process died of {signal.Signals(-code).name}"
        lines = [line for line in "".join(self.errors).splitlines() if line.strip()]
        return lines[-1] if lines else f"the process ended with exit code {code}"


def _basics(options: Options) -> list[dict[str, Any]]:
    """Run the checks beside the kernels; a crash is the verdict of one of them."""
    names = list(CHECKS)
    lines: list[dict[str, Any]] = []
    while len(lines) < len(names):
        worker, hangs = _Process(options, "--basics", str(len(lines))), ""
        for line in _lines(worker.process, None, CASE_SECONDS):
            if isinstance(line, str):
                hangs = line
            else:
                lines.append(line)
        ending = worker.end()
        if len(lines) < len(names):
            lines.append({"check": names[len(lines)], "verdict": "wrong", "evidence": hangs or ending})
    return lines


class _Share:
    """A part of the cases, which one process after the other runs."""

    def __init__(self, options: Options, number: int, report: Callable[[str], None]) -> None:
        self.options, self.number, self.report = options, number, report
        self.operators: ByOperator = {}
        self.lines: list[dict[str, Any]] = []
        self.left_out: list[str] = []

    def run(self) -> _Share:
        first = 0
        with tempfile.TemporaryDirectory(prefix="bringup-") as folder:
            for attempt in range(MOST_CRASHES):
                going_on = self._from(first, Path(folder, f"named-{attempt}"))
                if going_on is None:
                    return self
                first = going_on
        evidence = f"the process ended {MOST_CRASHES} times: the rest is not checked"
        self.lines.append({"check": "operators", "verdict": "wrong", "evidence": evidence})
        return self

    def _from(self, first: int, named: Path) -> int | None:
        """Run the cases from this one on. Return where to go on after a crash, None at the end."""
        arguments = ["--share", str(self.number), "--shares", str(self.options.jobs), "--first", str(first)]
        lists = {"--leave-out": self.left_out, "--only": self.options.only, "--dtype": self.options.dtypes}
        arguments += [part for option, values in lists.items() for value in values for part in (option, value)]
        worker = _Process(self.options, *arguments, "--named", str(named))
        at, name, began = first, "the first case", False
        for line in _lines(worker.process, named, self.options.seconds):
            if isinstance(line, str):  # it does not end
                activity = _named(named)
                worker.end()
                return self._crashed(line, at, name, activity, named)
            began = True
            if "end" in line:
                worker.end()
                return None
            at, name = line["case"], line["name"]
            if "rows" in line:
                self._add(line)
            else:
                self.report(name)
        ending = worker.end()
        if not began and worker.process.returncode > 0:
            raise BringupError(f"{self.options.driver} cannot be checked: {ending.partition(': ')[2] or ending}")
        return self._crashed(ending, at, name, _named(named), named)

    def _add(self, line: dict[str, Any]) -> None:
        add_rows(self.operators, line["rows"])
        for error in line["errors"]:
            self.lines.append({"check": line["name"], "verdict": "wrong", "evidence": error})

    def _crashed(self, ending: str, at: int, name: str, activity: list[str], named: Path) -> int:
        if not activity and shadow.cpu_file(named).exists():  # a kernel of the CPU ended it
            return at + 1
        if not activity:
            self.lines.append({"check": name, "verdict": "wrong", "evidence": f"{ending}, outside of its kernels"})
            return at + 1
        op, dtype, _, call = activity
        row = {"compared": 0, "wrong": 1, "worst_error": 0.0, "first": f"{ending} in {call}", "refused": {}}
        add_rows(self.operators, [{"op": op, "dtype": dtype, **row}])
        self.left_out.append(op)
        return at


def _named(file: Path | None) -> list[str]:
    """Return operator, dtype, number and call of the launch that the driver is at work on; empty if it is at none."""
    try:
        text = "" if file is None else file.read_bytes().split(b"\0", 1)[0].decode(errors="replace")
    except OSError:
        return []
    parts = text.split("\n", 3)
    return parts if len(parts) == 4 else []


def _lines(process: subprocess.Popen[str], named: Path | None, seconds: float) -> Iterator[dict[str, Any] | str]:
    """Yield what a process prints, until it ends. Yield a sentence if the driver, or a case, does not end."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout
        with process.stdout as stream:
            for line in stream:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    last_line, activity, since = time.monotonic(), list[str](), time.monotonic()
    while True:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            now = time.monotonic()
            if (present := _named(named)) != activity:
                activity, since = present, now
            if activity and now - since > seconds:
                yield f"it did not end within {seconds:.0f} s"
                return
            if now - last_line > CASE_SECONDS:
                yield f"it did not end within {CASE_SECONDS:.0f} s"
                return
            continue
        if line is None:
            return
        last_line = time.monotonic()
        if line.startswith(MARK):
            yield json.loads(line[len(MARK) :])
