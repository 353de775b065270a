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
            lines += pool.map(lambda name: _basic(options, name), CHECKS)
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
    checks = f"{len(result['checks']) - wrong} of {quantity(len(result['checks']), 'other check')} right"
    on_device = {line["op"] for line in result["operators"] if line["verdict"] != "refused"}
    return (
        f"{quantity(len(on_device), 'operator')} on the device; with their dtypes {counts['right']} right, "
        f"{counts['wrong']} wrong ({samples:,} launches compared), {counts['refused']} on the host; {checks}"
    )


# ---- processes


def _command(options: Options, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "bringup.drivers.worker", "--chip", options.chip, *arguments]


def _environment(options: Options) -> dict[str, str]:
    return {**os.environ, "BRINGUP_DRIVER": options.driver, "BRINGUP_DEVICES": "1"}


def _ending(process: subprocess.Popen[str], errors: str) -> str:
    if process.returncode < 0:
        return f"the process died of {signal.Signals(-process.returncode).name}"
    lines = [line for line in errors.strip().splitlines() if line.strip()]
    return lines[-1] if lines else f"the process ended with exit code {process.returncode}"


def _basic(options: Options, name: str) -> dict[str, Any]:
    process = subprocess.Popen(
        _command(options, "--basic", name),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(options),
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=CASE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"check": name, "verdict": "wrong", "evidence": f"it did not end within {CASE_SECONDS:.0f} s"}
    line = next((line for line in output.splitlines() if line.startswith(MARK)), None)
    if line is not None:
        answer: dict[str, Any] = json.loads(line[len(MARK) :])
        return answer
    return {"check": name, "verdict": "wrong", "evidence": _ending(process, errors)}


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
        errors: list[str] = []
        process = subprocess.Popen(
            _command(self.options, *arguments, "--named", str(named)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(self.options),
            start_new_session=True,
        )
        threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True).start()
        at, name, began = first, "the first case", False
        try:
            for line in _lines(process, named, self.options.seconds):
                if isinstance(line, str):  # it does not end
                    return self._crashed(line, at, name, _named(named))
                began = True
                if "end" in line:
                    return None
                at, name = line["case"], line["name"]
                if "rows" in line:
                    self._add(line)
                else:
                    self.report(name)
        finally:
            activity = _named(named)
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        time.sleep(0.1)  # the rest of its errors
        ending = _ending(process, "".join(errors))
        if not began and process.returncode > 0:
            raise BringupError(f"{self.options.driver} cannot be checked: {ending.partition(': ')[2] or ending}")
        return self._crashed(ending, at, name, activity)

    def _add(self, line: dict[str, Any]) -> None:
        add_rows(self.operators, line["rows"])
        for error in line["errors"]:
            self.lines.append({"check": line["name"], "verdict": "wrong", "evidence": error})

    def _crashed(self, ending: str, at: int, name: str, activity: list[str]) -> int:
        if not activity:
            self.lines.append({"check": name, "verdict": "wrong", "evidence": f"{ending}, outside of its kernels"})
            return at + 1
        op, dtype, _, call = activity
        row = {"compared": 0, "wrong": 1, "worst_error": 0.0, "first": f"{ending} in {call}", "refused": {}}
        add_rows(self.operators, [{"op": op, "dtype": dtype, **row}])
        self.left_out.append(op)
        return at


def _named(file: Path) -> list[str]:
    """Return operator, dtype, number and call of the launch that the driver is at work on; empty if it is at none."""
    try:
        text = file.read_bytes().split(b"\0", 1)[0].decode(errors="replace")
    except OSError:
        return []
    parts = text.split("\n", 3)
    return parts if len(parts) == 4 else []


def _lines(process: subprocess.Popen[str], named: Path, seconds: float) -> Iterator[dict[str, Any] | str]:
    """Yield what a process prints, until it ends. Yield a sentence if the driver, or a case, does not end."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
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
