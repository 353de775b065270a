"""The checks of ``pytest --chip`` around every test, and their summary at the end."""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from bringup import pytest_baseline, units
from bringup.analyse.summarize import by_group
from bringup.device.dry import DryWarning, dry
from bringup.device.load import use
from bringup.errors import BringupError, ChipWarning, MissingFeatureError
from bringup.files import refuse_unwritable
from bringup.machine.files import load_chip, load_host
from bringup.paths import BACKWARD
from bringup.process import asked_devices
from bringup.project import Settings
from bringup.pytest_baseline import Baseline, Used
from bringup.recording import sanitize
from bringup.recording.findings import Finding
from bringup.recording.recording import Recording, recorded
from bringup.recording.rows import LAUNCH
from bringup.report import exceeded
from bringup.report.prediction import Prediction, price
from bringup.text import duration, quantity, size
from bringup.timeline.replay import replay

# The keys of user properties begin so. pytest-xdist sends them from workers to the main process, and --junitxml writes
# them. Lists are JSON.
KEY = "bringup_"
LEAK = KEY + "leaked_bytes"

GROWTH = "5%"  # of a test over its baseline, without an option
CHECKS = ("race", "init", "device", "leak")  # without settings
Value = TypeVar("Value")


@dataclass
class _Totals:
    """The totals of all tests, for the end of pytest's output."""

    tests: int = 0
    launches: int = 0
    seconds: float = 0.0
    findings: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    most: tuple[int, str] = (0, "")


class ChipPlugin:
    """The pytest plug-in with the checks around every test."""

    def __init__(self, config: pytest.Config, name: str, project: Settings) -> None:
        self.chip, self.host = load_chip(name), load_host(project.host)
        self.clock: Any = project.host_clock or "modelled"
        if self.clock not in ("modelled", "measured"):
            raise BringupError(f"{project.file}: host_clock must be modelled or measured, got {self.clock!r}")
        self.max_step = units.parse_time(project.max_step) if project.max_step else None
        self.max_memory = units.parse_size(project.max_memory) if project.max_memory else None
        self.checks = sanitize.checks(project.sanitize or ",".join(CHECKS))
        self.cuda = bool(config.getoption("--chip-cuda"))
        self.baseline_file: str = config.getoption("--chip-baseline") or project.baseline or ""
        self.updates = bool(config.getoption("--chip-baseline-update"))
        self.slower = units.parse_time_change(config.getoption("--chip-max-slower") or GROWTH)
        self.growth = units.parse_size_change(config.getoption("--chip-max-memory") or GROWTH)
        self.baseline: Baseline | None = None
        if not self.baseline_file:
            for option in ("--chip-baseline-update", "--chip-max-slower", "--chip-max-memory"):
                if config.getoption(option):
                    raise BringupError(f"{option} needs --chip-baseline FILE")
        if self.updates:
            refuse_unwritable(self.baseline_file)
        if self.baseline_file and not self.updates:
            self.baseline = pytest_baseline.load(self.baseline_file, self.chip.name, self.host.name)
        self.used: dict[str, Used] = {}  # by the tests that passed
        self.measured: set[str] = set()  # the tests that passed or failed
        self.dry = bool(config.getoption("--chip-dry"))
        self.warn = bool(config.getoption("--chip-warn"))
        self.totals = _Totals()
        self.recorder: Recording | None = None
        self.bytes_before = 0  # bytes of device memory held before the test
        self.shared = 0  # bytes held by fixtures with a wider scope than the test
        self.failed = False
        self.lines: set[str] = set()  # Python lines that the test ran
        use(name, devices=asked_devices(), strict=bool(config.getoption("--chip-strict")))

    def report(self, chip: str | None = None) -> Prediction:
        """Price the launches of the current test so far."""
        assert self.recorder is not None, "a test is running"
        return price(self.recorder.trace(), self.chip if chip is None else chip, self.host, host_clock=self.clock)

    # ---- around a test

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        """Record the device memory held before the test."""
        self.bytes_before, self.shared, self.failed = _held_bytes(), 0, True
        with self._dry(), self._skips():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None]:
        """Count the memory of fixtures with a wider scope, which is not a leak of the test that uses them first."""
        before = _held_bytes()
        result = yield
        if fixturedef.scope != "function":
            self.shared += _held_bytes() - before
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        """Record the test and check the recording."""
        chips: Any = torch.chip  # type: ignore[attr-defined]
        if chips.is_initialized():
            for index in range(chips.device_count()):
                chips.reset_peak_memory_stats(index)
        with ExitStack() as around:
            around.enter_context(self._dry())
            around.enter_context(sanitize.watched())
            self.recorder = around.enter_context(recorded(self.host))
            try:
                with self._skips():
                    result = yield
                if chips.is_initialized():
                    chips.synchronize()  # a failed launch belongs to this test
            finally:
                recorder, self.recorder = self.recorder, None
                touched = sanitize.touched()
        self.failed = False
        trace = recorder.trace()
        self.lines = set(trace.lines)
        facts = self._facts(trace)
        findings = [
            *sanitize.findings(trace, tuple(name for name in self.checks if name != "leak")),
            *touched,
            *self._budgets(item, trace),
        ]
        findings += self._growth(item, facts)
        facts |= {"fallbacks": json.dumps(facts["fallbacks"])}
        facts |= {"findings": json.dumps([finding.check for finding in findings])}
        item.user_properties += [(KEY + name, value) for name, value in facts.items()]
        self._raise(item, findings)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        """Report device memory that the test still holds after its fixtures are gone as a leak."""
        with self._dry():
            result = yield
        if hasattr(item, "funcargs"):
            item.funcargs = {}  # pytest itself drops them a little later
        if "leak" in self.checks and not self.failed and _held_bytes() > self.bytes_before + self.shared:
            gc.collect()
            leaked = _held_bytes() - self.bytes_before - self.shared
            if leaked > 0:
                item.user_properties.append((LEAK, leaked))
                self._raise(item, [_leak(leaked, self.lines)])
        return result

    @contextmanager
    def _dry(self) -> Any:
        with dry() if self.dry else nullcontext(), warnings.catch_warnings():
            if self.dry:
                warnings.simplefilter("ignore", DryWarning)
            yield

    @contextmanager
    def _skips(self) -> Any:
        """Skip a test that needs what only NVIDIA's software has."""
        try:
            yield
        except Exception as error:
            if self.cuda and (isinstance(error, MissingFeatureError) or _asks_for_toolkit(error)):
                reason = f"not on {self.chip.name}: {str(error).splitlines()[0]}"
                raise pytest.skip.Exception(reason, _use_item_location=True) from None
            raise

    def _growth(self, item: pytest.Item, facts: dict[str, Any]) -> list[Finding]:
        before = self.baseline.tests.get(item.nodeid) if self.baseline else None
        if before is None:
            return []
        now = Used(seconds=facts["seconds"], peak_bytes=facts["peak_bytes"])
        advice = f"if this is meant, write {self.baseline_file} again with --chip-baseline-update"
        return [
            Finding(check, text, "", "", advice)
            for check, text in pytest_baseline.grown(before, now, self.slower, self.growth)
        ]

    def _budgets(self, item: pytest.Item, trace: Any) -> list[Finding]:
        findings = []
        if trace.launches and (self.max_step is not None or self.max_memory is not None):
            summary = price(trace, self.chip, self.host, host_clock=self.clock).summary
            for sentence in exceeded.by_run(summary, self.max_step, self.max_memory):
                findings.append(Finding("budget", sentence, "", "", "see the report of `bringup run`"))
        for marker in item.iter_markers("max_syncs"):
            waits = sanitize.waits(trace)
            count = sum(number for _, number in waits)
            if count > marker.args[0]:
                lines = ", ".join(f"{line} {number}x" for line, number in waits[:3])
                text = (
                    f"the host waits for the chip {quantity(count, 'time')}, at most {marker.args[0]} allowed: {lines}"
                )
                advice = "read fewer device values, or copy from pinned memory"
                findings.append(Finding("sync", text, waits[0][0], "", advice))
        for marker in item.iter_markers("max_device_memory"):
            peak, allowed = _peak(), _limit(units.parse_size, marker)
            if peak > allowed:
                at = price(trace, self.chip, self.host).memory.at
                line = at.line if at else ""
                text = f"the test holds {size(peak)} of device memory at once, {size(allowed)} are allowed"
                findings.append(
                    Finding("memory", text + (f" (at {line})" if line else ""), line, "", "free tensors earlier")
                )
        for marker in item.iter_markers("max_chip_time"):
            priced = price(trace, marker.kwargs.get("chip", self.chip), self.host, host_clock=self.clock)
            allowed_seconds = _limit(units.parse_time, marker)
            if priced.total_seconds > allowed_seconds:
                most = by_group(priced.timeline, "line")[:1]
                line = most[0][0] if most else ""
                text = (
                    f"the test takes {duration(priced.total_seconds)} on {priced.chip} and its host, "
                    f"{duration(allowed_seconds)} are allowed; the chip spends most time at {line}"
                )
                findings.append(Finding("time", text, line, "", "see the report of `bringup run`"))
        return findings

    def _facts(self, trace: Any) -> dict[str, Any]:
        columns = trace.columns
        launched = columns["signature"][columns["kind"] == LAUNCH]
        unsupported: dict[str, int] = {}
        seconds = 0.0
        if len(launched):
            timeline = replay(trace, self.chip, self.host, host_clock=self.clock)
            for number, count in enumerate(np.bincount(launched).tolist()):
                if not timeline.prices.supported[number] and count:
                    signature = trace.signatures[number]
                    name = f"{signature.op.split('.')[0]} {signature.dtype}"
                    unsupported[name] = unsupported.get(name, 0) + count
            seconds = timeline.total_seconds
        return {
            "launches": len(launched),
            "seconds": seconds,
            "device_bytes": _peak(),
            "peak_bytes": max(_peaks() - self.bytes_before - self.shared, 0),
            "fallbacks": unsupported,
        }

    def _raise(self, item: pytest.Item, findings: list[Finding]) -> None:
        if not findings:
            return
        if self.warn:
            for finding in findings:
                item.warn(ChipWarning(str(finding)))
            return
        pytest.fail("\n".join(f"{self.chip.name}: {finding}" for finding in findings), pytrace=False)

    # ---- the end of the tests

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the baseline; with pytest-xdist, in the main process."""
        if self.updates and not hasattr(session.config, "workerinput"):
            pytest_baseline.save(self.baseline_file, self.chip.name, self.host.name, self.used)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a test to the totals. With pytest-xdist, this also runs in the main process."""
        if report.when == "teardown" and any(key == LEAK for key, _ in report.user_properties):
            self.totals.findings["leak"] = self.totals.findings.get("leak", 0) + 1
        if report.when != "call":
            return
        facts: dict[str, Any] = {key: value for key, value in report.user_properties if key.startswith(KEY)}
        if not facts:
            return
        totals, seconds = self.totals, facts[KEY + "seconds"]
        totals.tests += 1
        totals.launches += facts[KEY + "launches"]
        totals.seconds += seconds
        totals.slowest.append((seconds, report.nodeid))
        totals.most = max(totals.most, (facts[KEY + "device_bytes"], report.nodeid))
        self.measured.add(report.nodeid)
        if report.passed:
            self.used[report.nodeid] = Used(seconds=seconds, peak_bytes=facts[KEY + "peak_bytes"])
        for name in json.loads(facts[KEY + "findings"]):
            totals.findings[name] = totals.findings.get(name, 0) + 1
        for name, count in json.loads(facts[KEY + "fallbacks"]).items():
            totals.fallbacks[name] = totals.fallbacks.get(name, 0) + count

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the totals of all tests."""
        totals, write = self.totals, terminalreporter.write_line
        terminalreporter.section(f"chip {self.chip.name}")
        mode = "dry run, nothing was computed" if self.dry else self.chip.description
        tests, launches = quantity(totals.tests, "test"), quantity(totals.launches, "launch")
        write(f"{tests}, {launches}, {duration(totals.seconds)} of predicted chip time ({mode})")
        if totals.most[0]:
            write(f"largest memory: {size(totals.most[0])} of {size(self.chip.device_bytes)} in {totals.most[1]}")
        for seconds, test in sorted(totals.slowest, key=lambda pair: (-pair[0], pair[1]))[:3]:
            if seconds > 0:
                write(f"{duration(seconds):>10}  {test}")
        if totals.fallbacks:
            most = sorted(totals.fallbacks.items(), key=lambda pair: (-pair[1], pair[0]))
            names = ", ".join(f"{name} {count}x" for name, count in most[:5]) + (" ..." if len(most) > 5 else "")
            write(f"fallbacks to the host, for operators that {self.chip.name} does not have: {names}")
        if self.updates:
            write(f"{self.baseline_file}: written with {quantity(len(self.used), 'test')}")
        elif self.baseline:
            compared = quantity(len(self.measured & self.baseline.tests.keys()), "test")
            new = len(self.used.keys() - self.baseline.tests.keys())
            add = f"; {quantity(new, 'new one')}: add with --chip-baseline-update" if new else ""
            write(f"baseline {self.baseline_file}: {compared} compared{add}")
        if totals.findings:
            write("findings: " + ", ".join(f"{name} {count}" for name, count in sorted(totals.findings.items())))


def _limit(parse: Callable[[str], Value], marker: pytest.Mark) -> Value:
    """Return the limit of a mark.

    Raises:
        pytest.UsageError: it is no number with a unit.
    """
    try:
        return parse(str(marker.args[0]))
    except BringupError as error:
        raise pytest.UsageError(f"{marker.name}: {error}") from None


def _chips() -> Any:
    return torch.chip  # type: ignore[attr-defined]


def _bytes() -> list[tuple[int, int, int]]:
    """Return for every device the bytes that tensors hold, their peak, and the reserved bytes."""
    chips = _chips()
    return [torch.ops.bringup.held_bytes(i) for i in range(chips.device_count())] if chips.is_initialized() else []


def _held_bytes() -> int:
    """Return the bytes that tensors hold. Workspaces of cuBLAS are given back first: they are no test's."""
    if _chips().is_initialized():
        torch.ops.bringup.clear_workspaces()
    return sum(held for held, *_ in _bytes())


def _peak() -> int:
    return max((most for _, most, _ in _bytes()), default=0)


def _peaks() -> int:
    """Return the peaks of all devices, summed."""
    return sum(most for _, most, _ in _bytes())


def _asks_for_toolkit(error: Exception) -> bool:
    """Return True for an error of torch's extensions without nvcc, or of NVIDIA's management library."""
    return (isinstance(error, OSError) and "CUDA_HOME" in str(error)) or type(error).__name__.startswith("NVMLError")


def _leak(count: int, lines: set[str]) -> Finding:
    """Return the finding of a leak: its bytes, and the largest live tensors that the test's lines allocated."""
    blocks = [
        block for i in range(_chips().device_count()) for block in json.loads(torch.ops.bringup.live_blocks(i, 1000))
    ]
    blocks = [block for block in blocks if block["line"].removesuffix(BACKWARD) in lines] or blocks
    largest = "; ".join(f"{size(block['bytes'])} {block['what']} {block['line']}" for block in blocks[:3])
    line = blocks[0]["line"] if blocks else ""
    text = f"{size(count)} of device memory outlive the test; the largest live tensors: {largest}"
    return Finding("leak", text, line, "", "delete them, or clear their holder (a global, a cache, a cycle)")
