"""Names the launches on a driver that have not ended after a time: their kernels may never end."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bringup.errors import BringupError
from bringup.text import duration
from bringup.units import parse_time

LIMIT = "BRINGUP_KERNEL_LIMIT"  # after which a launch that has not ended is named
LOOKS = 8  # per such time. Chosen: the sentence is at most an eighth late.


@contextmanager
def watched() -> Iterator[None]:
    """Watch the launches of a run that is measured.

    Raises:
        BringupError: BRINGUP_KERNEL_LIMIT is no time.
    """
    limit = _limit()
    done = threading.Event()
    threading.Thread(target=_watch, args=(limit, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _limit() -> float:
    text = os.environ.get(LIMIT, "60s")
    try:
        limit = parse_time(text)
    except BringupError as error:
        raise BringupError(f"{LIMIT}: {error}") from None
    if limit <= 0:
        raise BringupError(f"{LIMIT} must be positive, got {text}")
    return min(limit, threading.TIMEOUT_MAX)


def _watch(limit: float, done: threading.Event) -> None:
    """Say once for each launch that it has not ended ``limit`` seconds after it was first seen running."""
    running: dict[int, float] = {}  # launch: when it was first seen
    named: set[int] = set()
    while not done.wait(limit / LOOKS):
        now = time.monotonic()
        numbers, texts = torch.ops.bringup.running_launches()
        running = {number: running.get(number, now) for number in numbers}
        named.intersection_update(running)
        for number, text in zip(numbers, texts, strict=True):
            if number in named or now - running[number] < limit:
                continue
            named.add(number)
            print(
                f"bringup: {text} has not ended for {duration(limit)}: its kernel may never end "
                f"(kill {os.getpid()} ends the program; {LIMIT} sets the time)",
                file=sys.stderr,
                flush=True,
            )
