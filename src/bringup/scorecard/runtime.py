"""B. The runtime: asynchronous launches, streams, events, errors."""

from __future__ import annotations

import time
from typing import Any

import torch

import bringup
from bringup.recording.sanitize import waits
from bringup.scorecard.registry import item, needs_accelerator, needs_chip, require


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def work(device: torch.device, seconds: float = 0.2) -> tuple[torch.Tensor, int]:
    """Return a square matrix and how many products of it keep the device busy for about as long."""
    x = torch.full((768, 768), 1e-3, device=device)
    x @ x
    synchronize(device)
    start = time.perf_counter()
    x @ x
    synchronize(device)
    return x, max(4, int(seconds / max(time.perf_counter() - start, 1e-6)))


@item(
    "B1",
    "D",
    "launches return before their kernels end",
    hint="enqueue kernels on a stream instead of waiting for them",
)
def asynchronous(device: torch.device) -> str:
    """Issuing a series of products takes less than half of the time until they are done."""
    needs_accelerator(device, "asynchronous launches")
    x, count = work(device)
    x @ x
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        x @ x
    issued = time.perf_counter() - start
    synchronize(device)
    done = time.perf_counter() - start
    require(issued < 0.5 * done, f"issuing {count} products takes {issued / done:.0%} of the time until they are done")
    return f"issuing {count} products takes {issued / done:.0%} of the time until they are done"


@item("B2", "D", "a stream keeps its order", hint="one queue per stream, first in, first out")
def ordered(device: torch.device) -> str:
    """A thousand dependent launches on one stream give what they give in order."""
    x = torch.zeros(1000, device=device)
    for number in range(500):
        x.add_(number).mul_(0.5)
    expected = torch.zeros(1000)
    for number in range(500):
        expected.add_(number).mul_(0.5)
    require(torch.equal(x.cpu(), expected), "1,000 dependent launches give another result than in order")
    return "1,000 dependent launches are in order"


@item("B3", "T", "streams overlap", hint="give every stream a queue of its own")
def overlap(device: torch.device) -> str:
    """A short launch on a second stream is done while a long series on the first still runs."""
    needs_accelerator(device, "streams")
    require(any(_overlaps(device) for _ in range(TRIES)), "the second stream waits until the first is done")
    return "a launch on a second stream is done before a series of products on the first"


TRIES = 3  # on a machine with other work


def _overlaps(device: torch.device) -> bool:
    first, second = torch.Stream(device), torch.Stream(device)
    x, count = work(device)
    y = torch.ones(4, device=device)
    long, short = torch.Event(device), torch.Event(device)
    synchronize(device)
    with first:
        for _ in range(count):
            x @ x
        long.record()
    with second:
        z = y + 1
        short.record()
    short.synchronize()
    still = not long.query()
    synchronize(device)
    require(z.cpu().tolist() == [2, 2, 2, 2], "the second stream's result is wrong")
    return still


@item("B4", "T", "events", hint="record, query, wait, synchronize and elapsed_time are demanded by torch.Event")
def events(device: torch.device) -> str:
    """An event is reached after what was launched before it, makes streams and the host wait, and measures time."""
    needs_accelerator(device, "events")
    start, end = torch.Event(device, enable_timing=True), torch.Event(device, enable_timing=True)
    side = torch.Stream(device)
    x, count = work(device)
    start.record()
    for _ in range(count):
        x @ x
    y = x + 1
    end.record()
    require(not end.query(), "an event is reached although the work before it is not done")
    end.wait(side)
    with side:
        z = y * 2
    end.synchronize()
    require(end.query(), "an event is not reached after synchronize()")
    milliseconds = start.elapsed_time(end)
    require(milliseconds > 0, f"elapsed_time is {milliseconds} ms")
    synchronize(device)
    require(abs(z[0, 0].item() - 2.002) < 1e-3, "a stream that waits for an event runs before it")
    return f"record, query, wait, synchronize, elapsed_time ({milliseconds:.1f} ms)"


@item("B5", "T", "copies from pinned memory overlap", hint="pin host memory, and copy it without waiting")
def pinned(device: torch.device) -> str:
    """A non-blocking copy from pinned memory returns while a series of products runs, and arrives whole."""
    needs_accelerator(device, "pinned copies")
    require(any(_copies_beside(device) for _ in range(TRIES)), "the copy waits until the products are done")
    return "256 KiB arrive while a series of products runs"


def _copies_beside(device: torch.device) -> bool:
    x, count = work(device)
    host = torch.arange(1 << 16, dtype=torch.float32).pin_memory()
    require(host.is_pinned(), "pin_memory() gives memory that is not pinned")
    side, copied, busy = torch.Stream(device), torch.Event(device), torch.Event(device)
    synchronize(device)
    for _ in range(count):
        x @ x
    busy.record()
    with side:
        there = host.to(device, non_blocking=True)
        copied.record()
    copied.synchronize()
    still = not busy.query()
    synchronize(device)
    require(torch.equal(there.cpu(), host), "the copy does not arrive whole")
    return still


@item(
    "B6",
    "T",
    "implicit synchronisations are counted and located",
    hint="count them where the runtime waits, with the Python line",
)
def implicit_waits(device: torch.device) -> str:
    """Three reads of a device value are counted, with their line; a launch without a read is not."""
    needs_chip(device, "the count is bringup's; the device has no interface that all devices share")
    with bringup.record() as trace:
        x = torch.ones(4, device=device)
        for _ in range(3):
            x.sum().item()
        x + 1
    counts = waits(trace)
    require(sum(count for _, count in counts) == 3, f"3 reads are counted as {sum(count for _, count in counts)}")
    return "3 reads of a value were counted"


def failing_launch(device: torch.device) -> None:
    """Launch a kernel that fails: an index that is out of range."""
    torch.zeros(4, device=device).index_select(0, torch.tensor([9], device=device))


def failure(device: torch.device) -> str:
    """Return the text of the error that a failing launch leaves."""
    try:
        failing_launch(device)
        synchronize(device)
    except Exception as error:
        return str(error)
    return ""


@item("B7", "T", "an error names its launch", hint="carry the operator, shapes and Python line with every launch")
def located(device: torch.device) -> str:
    """An index out of range raises by the next synchronisation, and the error names the operator."""
    text = failure(device)
    require(text, "an index out of range raises nothing")
    require("index" in text, f"the error does not name the operator: {text.splitlines()[0]}")
    if device.type != "cpu":
        require(".py:" in text and "[4]" in text, f"the error names no line and shape: {text.splitlines()[0]}")
    return "the error names operator, shapes and line" if device.type != "cpu" else "the error is raised at the call"


@item(
    "B8", "T", "the device works after a failed kernel", hint="a failed launch must not end the stream or the process"
)
def survives(device: torch.device) -> str:
    """After a failing launch the next ones give right results."""
    require(failure(device), "the failing launch did not fail")
    found: Any = (torch.ones(4, device=device) * 3).cpu().tolist()
    require(found == [3, 3, 3, 3], f"after a failure ones * 3 is {found}")
    return "right results after a failed launch"
