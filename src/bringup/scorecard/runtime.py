"""B. The runtime: asynchronous launches, streams, events, errors."""

from __future__ import annotations

import time
from typing import Any

import torch

import bringup
from bringup.recording.sanitize import waits
from bringup.scorecard.registry import Partial, item, needs_accelerator, needs_chip, require


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def launch_products(x: torch.Tensor, count: int) -> torch.Event:
    """Launch products of a square matrix on the current stream; return an event that is recorded after them."""
    for _ in range(count):
        x @ x
    end = torch.Event(x.device)
    end.record()
    return end


SIDES = (768, 1536, 3072, 6144, 12288)  # of the matrices that `work` tries: 2.4 MB to 604 MB in float32
LONG_SECONDS = 1e-3  # of a kernel: far longer than a launch takes any host (host files: 2 to 30 us)


def work(device: torch.device, seconds: float = 0.2) -> tuple[torch.Tensor, int]:
    """Return a square matrix, and the number of its products that keep the device busy for about `seconds`.

    The matrix is so large that one product takes the device far longer than its launch takes the host.
    """
    for side in SIDES:
        x = torch.full((side, side), 1e-3, device=device)
        product_seconds = _product_seconds(x)
        if product_seconds >= LONG_SECONDS:
            break
    return x, max(4, int(seconds / product_seconds))


def _product_seconds(x: torch.Tensor) -> float:
    """Return the seconds of one product, the second of two: the first may load a library."""
    x @ x
    synchronize(x.device)
    start = time.perf_counter()
    x @ x
    synchronize(x.device)
    return max(time.perf_counter() - start, 1e-6)


@item(
    "B1",
    "D",
    "launches return before their kernels end",
    hint="enqueue kernels on a stream instead of waiting for them",
)
def asynchronous(device: torch.device) -> str:
    """Launching a series of products takes less than half of the time until they are done."""
    needs_accelerator(device, "asynchronous launches")
    x, count = work(device)
    x @ x
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        x @ x
    issued = time.perf_counter() - start
    synchronize(device)
    total = time.perf_counter() - start
    text = f"launching {count} products takes {issued / total:.0%} of the time until they are done"
    require(issued < 0.5 * total, text)
    return text


@item("B2", "D", "a stream keeps its order", hint="one queue per stream, first in, first out")
def ordered(device: torch.device) -> str:
    """A thousand dependent launches on one stream run in order."""
    x = torch.zeros(1000, device=device)
    for number in range(500):
        x.add_(number).mul_(0.5)
    expected = torch.zeros(1000)
    for number in range(500):
        expected.add_(number).mul_(0.5)
    require(torch.equal(x.cpu(), expected), "1,000 dependent launches have another result than in order")
    return "1,000 dependent launches ran in order"


@item("B3", "T", "streams overlap", hint="use a separate queue for every stream")
def overlap(device: torch.device) -> str:
    """A short launch on a second stream is done while a long series on the first still runs."""
    needs_accelerator(device, "streams")
    require(any(_overlaps(device) for _ in range(TRIES)), "the second stream waits until the first is done")
    return "a launch on a second stream is done before a series of products on the first"


TRIES = 3  # the machine may be busy with other work


def _overlaps(device: torch.device) -> bool:
    first, second = torch.Stream(device), torch.Stream(device)
    x, count = work(device)
    y = torch.ones(4, device=device)
    short = torch.Event(device)
    synchronize(device)
    with first:
        long = launch_products(x, count)
    with second:
        z = y + 1
        short.record()
    short.synchronize()
    still_running = not long.query()
    synchronize(device)
    require(z.cpu().tolist() == [2, 2, 2, 2], "the result of the second stream is wrong")
    return still_running


@item("B4", "T", "events", hint="implement record, query, wait, synchronize and elapsed_time of torch.Event")
def events(device: torch.device) -> str:
    """An event is reached after the launches before it, makes streams and the host wait, and measures time."""
    needs_accelerator(device, "events")
    start, end = torch.Event(device, enable_timing=True), torch.Event(device, enable_timing=True)
    side = torch.Stream(device)
    x, count = work(device)
    y = x + 1  # once before: a device may wait for its kernels while it loads another
    y * 2
    start.record()
    for _ in range(count):
        x @ x
    y = x + 1
    end.record()
    require(not end.query(), "an event is reached before the launches before it are done")
    end.wait(side)
    with side:
        z = y * 2
    end.synchronize()
    require(end.query(), "an event is not reached after synchronize()")
    milliseconds = start.elapsed_time(end)
    require(milliseconds > 0, f"elapsed_time is {milliseconds} ms")
    synchronize(device)
    require(abs(z[0, 0].item() - 2.002) < 1e-3, "a stream that waits for an event does not wait")
    return f"record, query, wait, synchronize, elapsed_time ({milliseconds:.1f} ms)"


@item("B5", "T", "copies from pinned memory overlap", hint="pin host memory, and copy it without waiting")
def pinned(device: torch.device) -> str:
    """A non-blocking copy from pinned memory arrives complete while a series of products runs."""
    needs_accelerator(device, "pinned copies")
    require(any(_copies_beside(device) for _ in range(TRIES)), "the copy waits until the products are done")
    return "256 KiB arrived while a series of products ran"


def _copies_beside(device: torch.device) -> bool:
    x, count = work(device)
    host = torch.arange(1 << 16, dtype=torch.float32).pin_memory()
    require(host.is_pinned(), "pin_memory() returns memory that is not pinned")
    side, copied = torch.Stream(device), torch.Event(device)
    synchronize(device)
    busy = launch_products(x, count)
    with side:
        copy = host.to(device, non_blocking=True)
        copied.record()
    copied.synchronize()
    still_running = not busy.query()
    synchronize(device)
    require(torch.equal(copy.cpu(), host), "the copy is not complete")
    return still_running


@item(
    "B6",
    "T",
    "implicit synchronisations are counted and located",
    hint="count waits in the runtime, with the Python line",
)
def implicit_waits(device: torch.device) -> str:
    """Three reads of a device value are counted with their line; a launch without a read is not."""
    needs_chip(device, "torch has no interface for this count; bringup counts on the device chip")
    with bringup.record() as trace:
        x = torch.ones(4, device=device)
        for _ in range(3):
            x.sum().item()
        x + 1
    counts = waits(trace)
    require(sum(count for _, count in counts) == 3, f"3 reads are counted as {sum(count for _, count in counts)}")
    return "3 reads of a device value were counted"


def failing_launch(device: torch.device) -> None:
    """Launch a kernel that fails because an index is out of range."""
    torch.zeros(4, device=device).index_select(0, torch.tensor([9], device=device))


def failure(device: torch.device) -> str:
    """Return the text of the error of a failing launch; empty if there is no error."""
    try:
        failing_launch(device)
        synchronize(device)
    except Exception as error:
        return str(error)
    return ""


@item("B7", "T", "an error names its launch", hint="carry the operator, shapes and Python line with every launch")
def located(device: torch.device) -> str:
    """An index out of range raises an error at the next synchronisation or earlier, and it names the operator."""
    text = failure(device)
    require(text, "an index out of range raises no error")
    parts = {"the operator": "index" in text}
    if device.type != "cpu":
        parts |= {"the line": ".py:" in text, "the shape": "[4]" in text}
    missing = [part for part, is_named in parts.items() if not is_named]
    if missing:
        share_found = (1 + len(parts) - len(missing)) / (1 + len(parts))  # that there is an error is a part, too
        first = text.splitlines()[0]
        raise Partial(share_found, f"the error is raised, but does not name {' and '.join(missing)}: {first}")
    return "the error names operator, shapes and line" if device.type != "cpu" else "the error is raised at the call"


@item(
    "B8", "T", "the device works after a failed kernel", hint="a failed launch must not end the stream or the process"
)
def survives(device: torch.device) -> str:
    """After a failing launch the next launches have right results.

    A device that is lost to the process, but says so with every further call, fulfils half of the item.
    """
    require(failure(device), "the failing launch did not fail")
    try:
        result: Any = (torch.ones(4, device=device) * 3).cpu().tolist()
    except Exception as error:
        raise Partial(0.5, f"the process lives, but its device is lost: {str(error).splitlines()[0]}") from error
    require(result == [3, 3, 3, 3], f"after a failure, ones * 3 is {result}")
    return "results are right after a failed launch"
