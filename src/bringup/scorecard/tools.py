"""E. Tools: reports on time, memory and fallbacks for developers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bringup
from bringup.analyse import summarize
from bringup.report import perfetto
from bringup.scorecard.registry import item, needs_chip, require
from bringup.text import quantity


def recording(device: torch.device) -> Any:
    """Record training steps of a small network, priced on the device's chip."""
    needs_chip(device)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bringup.record() as trace:
        for _ in range(20):  # enough for an advice
            optimizer.zero_grad()
            model(torch.randn(32, 64).to(device)).square().mean().backward()
            optimizer.step()
    return bringup.price(trace, torch.ops.bringup.chip())


@item(
    "E1", "D", "time, calls and line of every operator", hint="record every launch with its line and its predicted time"
)
def per_operator(device: torch.device) -> str:
    """Every operator has a count, seconds and a line, and the seconds add up to the chip's time."""
    prediction = recording(device)
    groups = summarize.by_group(prediction.timeline, "op")
    total = sum(seconds for _, _, seconds, _ in groups)
    require(any("mm" in name for name, *_ in groups), "the products are not listed")
    require(
        abs(total - prediction.device_seconds) < 0.02 * total,
        f"operators take {total}, the chip {prediction.device_seconds}",
    )
    lines = summarize.by_group(prediction.timeline, "line")
    require(lines and ".py:" in lines[0][0], "the launches have no Python line")
    return f"{len(groups)} operators on {len(lines)} lines"


@item(
    "E2",
    "T",
    "one timeline of host, link and engines",
    hint="replay the launches with predicted times, and write them as a Perfetto trace",
)
def timeline(device: torch.device) -> str:
    """The timeline has ordered rows for the host, the link and the chip, and can be opened in Perfetto."""
    prediction = recording(device)
    names = perfetto.trace(prediction.timeline).names
    for word in ("host", "chip:", "stream", "link"):
        require(any(name.startswith(word) for name in names), f"the timeline has no track of the {word.rstrip(':')}")
    line = prediction.timeline
    require(bool((line.end >= line.start).all()), "a row ends before it starts")
    return f"{len(names)} tracks for Perfetto"


@item(
    "E3", "T", "the fallback ledger", hint="predict operators that the chip file does not list: d2h, host, h2d, stall"
)
def ledger(device: torch.device) -> str:
    """An operator that a chip does not have is listed with its line, count and milliseconds."""
    needs_chip(device)
    with bringup.record() as trace:
        torch.linalg.inv(torch.eye(8, device=device, dtype=torch.float64))
    ledger = bringup.price(trace, "tpu-v5e").fallbacks
    require(ledger, "a float64 inverse on a TPU is not listed as a fallback")
    require(ledger[0].line > 0 and ledger[0].seconds > 0, "the fallback has no line or no time")
    return f"{ledger[0].op} {ledger[0].dtype} at line {ledger[0].line}: {ledger[0].seconds * 1e6:.0f} us"


@item("E4", "T", "a summary with bottlenecks", hint="name condition, cause and action, with seconds")
def summary(device: torch.device) -> str:
    """A host-bound program is reported as host-bound, with advice."""
    bottlenecks = recording(device).bottlenecks
    require(bottlenecks and bottlenecks[0].key == "host-bound", "launches of 64 x 64 are not reported as host-bound")
    require(bottlenecks[0].action and bottlenecks[0].seconds > 0, "the bottleneck has no action or no cost")
    return str(bottlenecks[0].condition)


@item("E5", "T", "torch.profiler sees the device", hint="register a profiler activity (kineto) for the device")
def profiler(device: torch.device) -> str:
    """The profile of ``torch.profiler`` has device events for a product."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if device.type != "cpu":
        activities.append(
            getattr(ProfilerActivity, "CUDA" if device.type == "cuda" else "PrivateUse1", ProfilerActivity.CPU)
        )
    x = torch.ones(256, 256, device=device)
    with profile(activities=activities) as profiled:
        x @ x
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
    events: Any = profiled.events()
    if device.type == "cpu":
        require(any("mm" in event.name for event in events), "the product is not in the profile")
        return "the product is in the profile"
    device_events = [event for event in events if "CPU" not in str(event.device_type)]
    require(device_events, "the profile has no device event")
    return quantity(len(device_events), "device event")


@item("E6", "T", "a report in one file", hint="embed styles, scripts and data in the page")
def page(device: torch.device) -> str:
    """The HTML report is complete, and loads nothing from other files or servers."""
    prediction = recording(device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        prediction.to_html(file)
        text = file.read_text(encoding="utf-8")
    require(text.rstrip().endswith("</html>"), "the page is not complete")
    require('src="http' not in text and 'rel="stylesheet" href="http' not in text, "the page loads other files")
    return f"{len(text) // 1024:,} KiB"


@item("E7", "P", "record once, replay elsewhere", hint="keep recordings separate from predictions")
def replay(device: torch.device) -> str:
    """A saved recording is loaded and priced on another chip, with different and repeatable results."""
    prediction = recording(device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.npz"
        prediction.trace.save(file)
        loaded = bringup.Trace.load(file)
    priced = (bringup.price(loaded, name) for name in ("t4", "t4", "h100-sxm"))
    first, again, other = ((item.step_seconds, item.device_seconds) for item in priced)
    require(first == again and first != other, "the results do not repeat, or do not differ between chips")
    return f"the chip works for {first[1] * 1e6:.0f} us on t4, {other[1] * 1e6:.0f} us on h100-sxm"
