"""Threads with two streams each compute, free, hand over and run out of memory: nothing is wrong, nothing grows.

Every result is compared with the CPU's, bit for bit. Each round is recorded, and its recording is dropped at its end:
the rows of one long recording would grow on purpose. Memory is measured between two rounds, when no tensor is alive,
against the end of the warm-up, a tenth of the time.
"""

import argparse
import collections
import contextlib
import ctypes
import gc
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

import bringup

GIB = 2**30
LIMIT = 0.25 * GIB  # of the chip's memory for all threads together
STEPS = 150  # of a thread in a round
# Few kinds of launches, so that what is known of them (docs/design.md) has its size before the warm-up ends.
SHAPES = ((), (7,), (64, 33), (3, 5, 8), (128, 128), (50_001,))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64)

Unary = Callable[[torch.Tensor], torch.Tensor]
UNARY: tuple[Unary, ...] = (
    lambda x: x * 2 + 1,
    lambda x: x.flip(0) if x.dim() else x,
    lambda x: x.t().contiguous() if x.dim() == 2 else x.clone(),
    lambda x: x.abs().cumsum(0) if x.dim() else x.abs(),
    lambda x: torch.where(x > 0, x, -x),
    lambda x: x.reshape(-1)[:3][x.reshape(-1)[:3] > 0].sum(),  # its size depends on the content
    lambda x: torch.cat([x, x])[len(x) :] if x.dim() else x + 1,
    lambda x: (x.float() @ x.float().mT) if x.dim() == 2 and x.numel() < 20_000 else x.to(torch.float32),
    lambda x: x.sort(0).values if x.dim() == 1 else x.clone(),
)


class WrongValue(Exception):
    """A tensor of the chip differs from the CPU's."""


@dataclass
class Held:
    """A tensor of the chip with the CPU's copy, and the stream that made it."""

    chip: torch.Tensor
    cpu: torch.Tensor
    stream: torch.Stream


Handed = collections.deque[tuple[Held, torch.Event]]


class Worker:
    """A thread's part of the soak."""

    def __init__(
        self, number: int, streams: int, seed: int, handed: collections.deque[tuple[Held, torch.Event]]
    ) -> None:
        self.number, self.handed = number, handed
        self.random = random.Random(f"{seed} {number}")
        self.generator = torch.Generator().manual_seed(seed * 1000 + number)
        self.streams = [torch.chip.Stream() for _ in range(streams)]
        self.held: list[Held] = []
        self.used: list[Held] = []  # by the step under way
        self.counts: collections.Counter[str] = collections.Counter()
        self.work = {self.make: 8, self.derive: 12, self.combine: 8, self.write: 6, self.check: 10, self.drop: 10}
        self.work |= {self.train: 3, self.give: 4, self.take: 4, self.exhaust: 0.5, self.ask_too_much: 0.5}
        if number % 2 == 0:
            self.work[self.empty_cache] = 1.0

    def round(self) -> None:
        """Take many steps, and let go of everything."""
        torch.set_num_threads(1)  # as the kernels of the chip then have it, so that sums are cut alike
        for _ in range(STEPS):
            step = self.random.choices(list(self.work), list(self.work.values()))[0]
            stream = self.random.choice(self.streams)
            try:
                with torch.chip.stream(stream):
                    step(stream)
                self.counts["steps"] += 1
            except torch.OutOfMemoryError:
                self.recover()
            while self.used:  # who writes them next waits for this step
                self.used.pop().stream.wait_stream(stream)
        while self.held:
            self.compare(self.held.pop())

    def recover(self) -> None:
        """Free half of what is held, as a program would that ran out of memory."""
        self.counts["recovered"] += 1
        del self.held[::2]
        torch.chip.empty_cache()

    def any_held(self, stream: torch.Stream) -> Held | None:
        """Choose a tensor, and make it safe to use on this stream."""
        if not self.held:
            return None
        chosen = self.random.choice(self.held)
        self.use_on(stream, chosen)
        return chosen

    def use_on(self, stream: torch.Stream, held: Held) -> None:
        """Let a stream use a tensor after the stream that made it."""
        if held.stream != stream:
            stream.wait_stream(held.stream)
            held.chip.record_stream(stream)
            self.used.append(held)

    # ---- steps

    def make(self, stream: torch.Stream) -> None:
        """Upload numbers, from pageable or page-locked memory."""
        dtype = self.random.choice(DTYPES)
        cpu = torch.randint(-8, 9, self.random.choice(SHAPES), generator=self.generator).to(dtype)
        pinned = self.random.random() < 0.3
        self.hold(stream, (cpu.pin_memory() if pinned else cpu).to("chip", non_blocking=pinned), cpu)

    def hold(self, stream: torch.Stream, chip: torch.Tensor, cpu: torch.Tensor) -> None:
        """Keep a tensor."""
        self.held.append(Held(chip, cpu, stream))
        if len(self.held) > 30:
            self.drop(stream)

    def derive(self, stream: torch.Stream) -> None:
        """Compute a tensor from another."""
        if source := self.any_held(stream):
            function = self.random.choice(UNARY)
            chip, cpu = function(source.chip), function(source.cpu)
            same = cpu is source.cpu  # one tensor is held once: it has one stream
            self.hold(stream, chip.clone() if same else chip, cpu.clone() if same else cpu)

    def combine(self, stream: torch.Stream) -> None:
        """Compute a tensor from two of one shape."""
        if not (first := self.any_held(stream)):
            return
        second = self.random.choice([held for held in self.held if held.cpu.shape == first.cpu.shape])
        self.use_on(stream, second)
        self.hold(stream, first.chip * second.chip - 3, first.cpu * second.cpu - 3)

    def write(self, stream: torch.Stream) -> None:
        """Change a tensor, or a part of it, in place."""
        if target := self.any_held(stream):
            every = slice(None, None, self.random.choice((1, 2))) if target.cpu.dim() else ...
            target.chip.detach()[every].add_(3)
            target.cpu.detach()[every].add_(3)

    def check(self, stream: torch.Stream) -> None:
        """Compare a tensor with the CPU's."""
        if chosen := self.any_held(stream):
            self.compare(chosen)

    def compare(self, held: Held) -> None:
        """Raise unless all bits are the CPU's."""
        with torch.chip.stream(held.stream):
            found = held.chip.cpu()
        self.counts["compared"] += 1
        same = (
            found.shape == held.cpu.shape and found.dtype == held.cpu.dtype and torch.equal(bits(found), bits(held.cpu))
        )
        if not same:
            raise WrongValue(f"thread {self.number}: {found.dtype}{list(found.shape)} differs from the CPU's")

    def drop(self, stream: torch.Stream) -> None:
        """Free a tensor whose kernels may still run."""
        if self.held:
            self.held.pop(self.random.randrange(len(self.held)))

    def train(self, stream: torch.Stream) -> None:
        """Compare the gradients of a small model."""
        x, weight = (torch.randn(16, 16, generator=self.generator) for _ in range(2))
        found = []
        for device in ("cpu", "chip"):
            leaf = weight.detach().to(device).requires_grad_()
            ((x.to(device) @ leaf).tanh() ** 2).mean().backward()
            assert leaf.grad is not None
            found.append(leaf.grad)
        self.hold(stream, found[1], found[0])

    def give(self, stream: torch.Stream) -> None:
        """Hand a tensor over to whoever takes it."""
        if self.any_held(stream):
            given = self.held.pop()
            self.use_on(stream, given)
            given.stream = stream
            self.handed.append((given, stream.record_event()))

    def take(self, stream: torch.Stream) -> None:
        """Go on with a tensor of another thread."""
        with contextlib.suppress(IndexError):
            taken, event = self.handed.popleft()
            stream.wait_event(event)
            taken.chip.record_stream(stream)
            self.hold(stream, taken.chip, taken.cpu)
            self.counts["taken"] += 1

    def exhaust(self, stream: torch.Stream) -> None:
        """Allocate until there is no more; other threads run out of memory meanwhile."""
        blocks: list[torch.Tensor] = []
        try:
            while True:
                blocks.append(torch.empty(16 << 20, dtype=torch.uint8, device="chip"))
        except torch.OutOfMemoryError:
            self.counts["exhausted"] += 1

    def ask_too_much(self, stream: torch.Stream) -> None:
        """Ask for more than the chip has."""
        try:
            torch.empty(2**45, dtype=torch.uint8, device="chip")
        except torch.OutOfMemoryError:
            self.counts["refused"] += 1

    def empty_cache(self, stream: torch.Stream) -> None:
        """Give cached memory back while the other threads compute."""
        torch.chip.empty_cache()
        self.counts["emptied"] += 1


def bits(x: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a CPU tensor."""
    return x.contiguous().view(-1).view(torch.uint8)


def resident_kib() -> int:
    """Return what the process holds without what allocators cache: the chip's, Python's and C's."""
    gc.collect()
    torch.chip.synchronize()
    torch.chip.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=30)
    options.add_argument("--seconds", type=float, default=None, help="instead of minutes")
    options.add_argument("--threads", type=int, default=8)
    options.add_argument("--streams", type=int, default=2, help="of a thread")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument(
        "--bar", type=float, default=0.02, help="growth; what the process knows has its size after 2 min"
    )
    asked = options.parse_args()
    seconds = asked.minutes * 60 if asked.seconds is None else asked.seconds
    torch.set_num_threads(1)
    torch.chip.set_per_process_memory_fraction(LIMIT / torch.chip.get_device_properties().total_memory)
    handed: Handed = collections.deque()
    workers = [Worker(number, asked.streams, asked.seed, handed) for number in range(asked.threads)]
    began, rounds, rows, settled, settled_at = time.monotonic(), 0, 0, 0, 0.0
    last_said = began
    with ThreadPoolExecutor(asked.threads) as pool:
        while (now := time.monotonic()) - began < seconds or rounds < 2:
            with bringup.record() as trace:
                for done in [pool.submit(worker.round) for worker in workers]:
                    done.result()
                while handed:
                    workers[0].compare(handed.pop()[0])
            rows += len(trace)
            del trace
            rounds += 1
            if not settled and time.monotonic() - began >= seconds / 10:
                settled, settled_at = resident_kib(), time.monotonic() - began
            if now - last_said > 60:
                last_said = now
                kinds = bringup.launch_stats()["signatures"]
                said = f"{rounds} rounds, {kinds:,} signatures, {resident_kib() / 1024:.1f} MiB"
                print(f"{now - began:5.0f} s, {said}", flush=True)
    end = resident_kib()
    growth = end / settled - 1
    counts = sum((worker.counts for worker in workers), collections.Counter[str]())
    print(f"{asked.threads} threads x {asked.streams} streams, seed {asked.seed}, {time.monotonic() - began:.0f} s")
    done_by = ", ".join(f"{counts[name]:,} {name}" for name in sorted(counts))
    print(f"{rounds} rounds, {rows:,} recorded rows; {done_by}; every comparison equal")
    measured = f"{settled / 1024:.1f} (after {settled_at:.0f} s) -> {end / 1024:.1f} MiB"
    print(f"resident memory {measured}: {growth:+.2%} (bar {asked.bar:+.0%})")
    return 1 if growth > asked.bar else 0


if __name__ == "__main__":
    sys.exit(main())
