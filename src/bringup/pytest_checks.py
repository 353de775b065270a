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

from bringup import units
from bringup.analyse.summarize import by_group
from bringup.device.dry import DryWarning, dry
from bringup.device.load import use
from bringup.errors import BringupError, ChipWarning
from bringup.machine.files import load_chip, load_host
from bringup.process import asked_devices
from bringup.recording import sanitize
from bringup.recording.findings import Finding
from bringup.recording.recording import Recording, recorded
from bringup.recording.rows import LAUNCH
from bringup.report.prediction import Prediction, price
from bringup.text import duration, quantity, size
from bringup.timeline.replay import replay

KEY, LEAK = (
    "bringup",
    "bringup leak",
)  # keys of user properties, which pytest-xdist sends from workers to the main process

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

    def __init__(self, config: pytest.Config, name: str) -> None:
        self.chip, self.host = load_chip(name), load_host(None)
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
        return price(self.recorder.trace(), self.chip if chip is None else chip, self.host)

    # ---- around a test

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        """Record the device memory held before the test."""
        self.bytes_before, self.shared, self.failed = _held_bytes(), 0, True
        with self._dry():
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
                result = yield
                if chips.is_initialized():
                    chips.synchronize()  # a failed launch belongs to this test
            finally:
                recorder, self.recorder = self.recorder, None
                touched = sanitize.touched()
        self.failed = False
        trace = recorder.trace()
        self.lines = set(trace.lines)
        findings = [*sanitize.findings(trace, ("race", "init", "device")), *touched, *self._budgets(item, trace)]
        item.user_properties.append((KEY, self._facts(trace, findings)))
        self._raise(item, findings)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        """Report device memory that the test still holds after its fixtures are gone as a leak."""
        with self._dry():
            result = yield
        if hasattr(item, "funcargs"):
            item.funcargs = {}  # pytest itself drops them a little later
        if not self.failed and _held_bytes() > self.bytes_before + self.shared:
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

    def _budgets(self, item: pytest.Item, trace: Any) -> list[Finding]:
        findings = []
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
            priced = price(trace, marker.kwargs.get("chip", self.chip), self.host)
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

    def _facts(self, trace: Any, findings: list[Finding]) -> dict[str, Any]:
        columns = trace.columns
        launched = columns["signature"][columns["kind"] == LAUNCH]
        unsupported: dict[str, int] = {}
        seconds = 0.0
        if len(launched):
            timeline = replay(trace, self.chip, self.host)
            for number, count in enumerate(np.bincount(launched).tolist()):
                if not timeline.prices.supported[number] and count:
                    signature = trace.signatures[number]
                    name = f"{signature.op.split('.')[0]} {signature.dtype}"
                    unsupported[name] = unsupported.get(name, 0) + count
            seconds = timeline.total_seconds
        return {
            "launches": len(launched),
            "seconds": seconds,
            "peak": _peak(),
            "fallbacks": unsupported,
            "findings": [item.check for item in findings],
        }

    def _raise(self, item: pytest.Item, findings: list[Finding]) -> None:
        if not findings:
            return
        if self.warn:
            for finding in findings:
                item.warn(ChipWarning(str(finding)))
            return
        pytest.fail("\n".join(f"{self.chip.name}: {finding}" for finding in findings), pytrace=False)

    # ---- the end of pytest's output

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a test to the totals. With pytest-xdist, this also runs in the main process."""
        if report.when == "teardown" and any(key == LEAK for key, _ in report.user_properties):
            self.totals.findings["leak"] = self.totals.findings.get("leak", 0) + 1
        if report.when != "call":
            return
        for key, facts in report.user_properties:
            if key != KEY or not isinstance(facts, dict):
                continue
            totals = self.totals
            totals.tests += 1
            totals.launches += facts["launches"]
            totals.seconds += facts["seconds"]
            totals.slowest.append((facts["seconds"], report.nodeid))
            totals.most = max(totals.most, (facts["peak"], report.nodeid))
            for name in facts["findings"]:
                totals.findings[name] = totals.findings.get(name, 0) + 1
            for name, count in facts["fallbacks"].items():
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


def _leak(count: int, lines: set[str]) -> Finding:
    """Return the finding of a leak: its bytes, and the largest live tensors that the test's lines allocated."""
    blocks = [
        block for i in range(_chips().device_count()) for block in json.loads(torch.ops.bringup.live_blocks(i, 1000))
    ]
    blocks = [block for block in blocks if block["line"].removesuffix(" (backward)") in lines] or blocks
    largest = "; ".join(f"{size(block['bytes'])} {block['what']} {block['line']}" for block in blocks[:3])
    line = blocks[0]["line"] if blocks else ""
    text = f"{size(count)} of device memory outlive the test; the largest live tensors: {largest}"
    return Finding("leak", text, line, "", "delete them, or clear their holder (a global, a cache, a cycle)")
