"""What ``pytest --chip`` checks around every test, and says at the end."""

from __future__ import annotations

import gc
import json
import re
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from bringup.analyse.summarize import by_group
from bringup.device.dry import DryWarning, dry
from bringup.device.load import use
from bringup.errors import ChipWarning
from bringup.machine.files import load_chip, load_host
from bringup.process import asked_devices
from bringup.recording import sanitize
from bringup.recording.findings import Finding
from bringup.recording.recording import Recording, recorded
from bringup.recording.rows import LAUNCH
from bringup.report.prediction import Prediction, price
from bringup.text import duration, size
from bringup.timeline.replay import replay

KEY, LEAK = "bringup", "bringup leak"  # of a test's user properties: they survive the way from a worker of pytest-xdist
_SIZES = {"b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def parse_size(text: str) -> int:
    """Read ``4GiB``."""
    return int(_parse(text, _SIZES, "4GiB"))


def parse_time(text: str) -> float:
    """Read ``20ms`` as seconds."""
    return _parse(text, _TIMES, "20ms")


def _parse(text: str, units: dict[str, Any], example: str) -> float:
    found = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*([a-z]+)\s*", str(text), re.IGNORECASE)
    if found is None or found[2].lower() not in units:
        raise pytest.UsageError(f"{text!r} is no amount: write a number and a unit, such as {example!r}")
    return float(found[1]) * float(units[found[2].lower()])


@dataclass
class _Totals:
    """What all tests did, for the end of pytest's output."""

    tests: int = 0
    launches: int = 0
    seconds: float = 0.0
    findings: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    most: tuple[int, str] = (0, "")


class ChipPlugin:
    """The checks, around every test."""

    def __init__(self, config: pytest.Config, name: str) -> None:
        self.chip, self.host = load_chip(name), load_host(None)
        self.dry = bool(config.getoption("--chip-dry"))
        self.warn = bool(config.getoption("--chip-warn"))
        self.totals = _Totals()
        self.recorder: Recording | None = None
        self.held = 0
        self.shared = 0  # bytes that fixtures of a wider scope hold
        self.failed = False
        self.lines: set[str] = set()  # that the test ran
        use(name, devices=asked_devices(), strict=bool(config.getoption("--chip-strict")))

    def report(self, chip: str | None = None) -> Prediction:
        """Price what the test that runs has launched so far."""
        assert self.recorder is not None, "a test is running"
        return price(self.recorder.trace(), self.chip if chip is None else chip, self.host)

    # ---- around a test

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        """Note what is held before the test."""
        self.held, self.shared, self.failed = _held(), 0, True
        with self._dry():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None]:
        """What a fixture of a wider scope holds is no leak of the test that came first."""
        before = _held()
        result = yield
        if fixturedef.scope != "function":
            self.shared += _held() - before
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        """Record the test, and look at the recording."""
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
        found = [*sanitize.findings(trace, ("race", "init", "device")), *touched, *self._budgets(item, trace)]
        item.user_properties.append((KEY, self._facts(trace, found)))
        self._raise(item, found)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        """What the test still holds after its fixtures are gone is leaked."""
        with self._dry():
            result = yield
        if hasattr(item, "funcargs"):
            item.funcargs = {}  # pytest itself drops them a moment later
        if not self.failed and _held() > self.held + self.shared:
            gc.collect()
            leaked = _held() - self.held - self.shared
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
        found = []
        for marker in item.iter_markers("max_syncs"):
            waits = sanitize.waits(trace)
            count = sum(number for _, number in waits)
            if count > marker.args[0]:
                lines = ", ".join(f"{line} {number}x" for line, number in waits[:3])
                what = f"the host waits {count} times for the chip, at most {marker.args[0]} are allowed: {lines}"
                found.append(Finding("sync", what, waits[0][0], "", "read fewer values, copy from pinned memory"))
        for marker in item.iter_markers("max_device_memory"):
            peak, allowed = _peak(), parse_size(marker.args[0])
            if peak > allowed:
                at = price(trace, self.chip, self.host).memory.at
                line = at.line if at else ""
                what = f"the test holds {size(peak)} of device memory at once, {size(allowed)} are allowed"
                found.append(
                    Finding("memory", what + (f" (at {line})" if line else ""), line, "", "free tensors earlier")
                )
        for marker in item.iter_markers("max_chip_time"):
            priced = price(trace, marker.kwargs.get("chip", self.chip), self.host)
            allowed_seconds = parse_time(marker.args[0])
            if priced.total_seconds > allowed_seconds:
                most = by_group(priced.timeline, "line")[:1]
                line = most[0][0] if most else ""
                what = (
                    f"the test takes {duration(priced.total_seconds)} on {priced.chip} and its host, "
                    f"{duration(allowed_seconds)} are allowed; most of the chip's time at {line}"
                )
                found.append(Finding("time", what, line, "", "see the report of `bringup run`"))
        return found

    def _facts(self, trace: Any, found: list[Finding]) -> dict[str, Any]:
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
            "findings": [item.check for item in found],
        }

    def _raise(self, item: pytest.Item, found: list[Finding]) -> None:
        if not found:
            return
        if self.warn:
            for finding in found:
                item.warn(ChipWarning(str(finding)))
            return
        pytest.fail("\n".join(f"{self.chip.name}: {finding}" for finding in found), pytrace=False)

    # ---- the end of pytest's output

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a test up; in the main process of pytest-xdist, too."""
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
        """Say what the chip saw."""
        totals, write = self.totals, terminalreporter.write_line
        terminalreporter.section(f"chip {self.chip.name}")
        mode = "dry, nothing was computed" if self.dry else self.chip.description
        write(f"{totals.tests} tests, {totals.launches:,} launches, {duration(totals.seconds)} on the chip ({mode})")
        if totals.most[0]:
            write(f"most memory: {size(totals.most[0])} of {size(self.chip.device_bytes)} in {totals.most[1]}")
        for seconds, test in sorted(totals.slowest, key=lambda pair: (-pair[0], pair[1]))[:3]:
            if seconds > 0:
                write(f"{duration(seconds):>10}  {test}")
        if totals.fallbacks:
            most = sorted(totals.fallbacks.items(), key=lambda pair: (-pair[1], pair[0]))
            shown = ", ".join(f"{name} {count}x" for name, count in most[:5])
            write(f"on the host, as {self.chip.name} does not have them: {shown}" + (" ..." if len(most) > 5 else ""))
        if totals.findings:
            write("findings: " + ", ".join(f"{name} {count}" for name, count in sorted(totals.findings.items())))


def _chips() -> Any:
    return torch.chip  # type: ignore[attr-defined]


def _bytes() -> list[tuple[int, int, int]]:
    """Bytes that tensors hold on every device: now and at most; and what is reserved."""
    chips = _chips()
    return [torch.ops.bringup.held_bytes(i) for i in range(chips.device_count())] if chips.is_initialized() else []


def _held() -> int:
    return sum(now for now, *_ in _bytes())


def _peak() -> int:
    return max((most for _, most, _ in _bytes()), default=0)


def _leak(count: int, lines: set[str]) -> Finding:
    """Name the leaked bytes, and the largest live tensors that the test's lines made."""
    blocks = [
        block for i in range(_chips().device_count()) for block in json.loads(torch.ops.bringup.live_blocks(i, 1000))
    ]
    blocks = [block for block in blocks if block["line"].removesuffix(" (backward)") in lines] or blocks
    largest = "; ".join(f"{size(block['bytes'])} {block['what']} {block['line']}" for block in blocks[:3])
    line = blocks[0]["line"] if blocks else ""
    what = f"{size(count)} of device memory outlive the test; the largest live tensors: {largest}"
    return Finding("leak", what, line, "", "delete them, or clear what holds them (a global, a cache, a cycle)")
