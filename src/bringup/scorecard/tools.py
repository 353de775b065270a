"""E. Tools: what a developer sees of time, memory and fallbacks."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bringup
from bringup.analyse import summarize
from bringup.report import perfetto
from bringup.scorecard.registry import item, needs_chip, require


def recording(device: torch.device) -> Any:
    """Record two training steps of a small network, priced on the device's chip."""
    needs_chip(device)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bringup.record() as trace:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(32, 64).to(device)).square().mean().backward()
            optimizer.step()
    return bringup.price(trace, torch.ops.bringup.chip())


@item("E1", "D", "time, calls and line of every operator", hint="record each launch with its line and price")
def per_operator(device: torch.device) -> str:
    """Every operator has a count, seconds and a line, and their seconds add up to the chip's."""
    found = recording(device)
    groups = summarize.by_group(found.timeline, "op")
    total = sum(seconds for _, _, seconds, _ in groups)
    require(any("mm" in name for name, *_ in groups), "the products are not listed")
    require(
        abs(total - found.device_seconds) < 0.02 * total, f"operators take {total}, the chip {found.device_seconds}"
    )
    lines = summarize.by_group(found.timeline, "line")
    require(lines and ".py:" in lines[0][0], "launches have no Python line")
    return f"{len(groups)} operators on {len(lines)} lines"


@item(
    "E2",
    "T",
    "one timeline of host, link and engines",
    hint="replay the launches with prices; write Chrome's trace format",
)
def timeline(device: torch.device) -> str:
    """The timeline has rows of the host, the link and the chip in order, and is written for Perfetto."""
    found = recording(device)
    data = json.loads(perfetto.text(found.timeline))
    names = json.dumps([row for row in data["traceEvents"] if row.get("ph") == "M"])
    require(all(word in names for word in ("host", "chip")), "the timeline lacks the host or the chip")
    line = found.timeline
    require(bool((line.end >= line.start).all()), "something ends before it starts")
    return f"{len(data['traceEvents'])} rows for Perfetto"


@item("E3", "T", "the fallback ledger", hint="price what the chip file does not list: d2h, host, h2d, stall")
def ledger(device: torch.device) -> str:
    """An operator that a chip does not have is listed with its line, count and milliseconds."""
    needs_chip(device)
    with bringup.record() as trace:
        torch.linalg.inv(torch.eye(8, device=device, dtype=torch.float64))
    found = bringup.price(trace, "tpu-v5e").fallbacks
    require(found, "a float64 inverse on a TPU falls back nowhere")
    require(found[0].line > 0 and found[0].seconds > 0, "the fallback has no line or no time")
    return f"{found[0].op} {found[0].dtype} at line {found[0].line}: {found[0].seconds * 1e6:.0f} us"


@item("E4", "T", "a summary with bottlenecks", hint="say condition, cause and action, with seconds")
def summary(device: torch.device) -> str:
    """A host-bound program is called host-bound, with what to do."""
    found = recording(device).bottlenecks
    require(found and found[0].key == "host-bound", "launches of 64 x 64 are not called host-bound")
    require(found[0].action and found[0].seconds > 0, "the bottleneck has no action or no cost")
    return str(found[0].condition)


@item("E5", "T", "torch.profiler sees the device", hint="register a profiler activity (kineto) for the device")
def profiler(device: torch.device) -> str:
    """``torch.profiler`` has events of the device for a product."""
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
    seen = [event for event in events if "CPU" not in str(event.device_type)]
    require(seen, "no event of the device is in the profile")
    return f"{len(seen)} events of the device"


@item("E6", "T", "a report in one file", hint="embed style, script and data in the page")
def page(device: torch.device) -> str:
    """The HTML report is written, whole, and loads nothing from elsewhere."""
    found = recording(device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        found.to_html(file)
        text = file.read_text(encoding="utf-8")
    require(text.rstrip().endswith("</html>"), "the page is not whole")
    require('src="http' not in text and 'rel="stylesheet" href="http' not in text, "the page loads from elsewhere")
    return f"{len(text) // 1024:,} KiB"


@item("E7", "P", "record once, replay elsewhere", hint="keep recordings apart from prices")
def replay(device: torch.device) -> str:
    """A saved recording is loaded and priced on another chip, with other and repeatable results."""
    found = recording(device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.npz"
        found.trace.save(file)
        loaded = bringup.Trace.load(file)
    first, again, other = (bringup.price(loaded, name).step_seconds for name in ("t4", "t4", "h100-sxm"))
    require(first == again and first != other, "replays do not repeat, or chips do not differ")
    return f"t4 {first * 1e6:.0f} us, h100-sxm {other * 1e6:.0f} us"
