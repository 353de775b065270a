"""Threads that use the chip at the same time. `make sanitize` looks for races here."""

import queue
import subprocess
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

import bringup
from bringup.recording.rows import LAUNCH, PHASES

Work = Callable[[int], None]


def together(*works: Work, rounds: int = 30) -> None:
    """Run each of them in a thread of its own, for so many rounds, and raise the first error."""
    errors: list[BaseException] = []
    gate = threading.Barrier(len(works))

    def repeat(work: Work) -> None:
        gate.wait()
        try:
            for number in range(rounds):
                work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if errors:
        raise errors[0]


def test_memory_goes_from_thread_to_thread_while_others_look_at_it() -> None:
    handed: queue.Queue[torch.Tensor] = queue.Queue()
    stream = torch.chip.Stream()
    sums: list[torch.Tensor] = []

    def make(number: int) -> None:
        for size in (3, 1000, 1 << 18, 3 << 18):
            handed.put(torch.full((size,), number % 7, dtype=torch.int32, device="chip").add_(1))

    def use(_: int) -> None:
        for _ in range(4):
            x = handed.get(timeout=60)
            with torch.chip.stream(stream):
                stream.wait_stream(torch.chip.default_stream())
                x.record_stream(stream)
                sums.append(x.max())
            del x

    def look(number: int) -> None:
        torch.chip.memory_stats()
        torch.ops.bringup.live_blocks(0, 5)
        torch.chip.mem_get_info()
        if number % 5 == 0:
            torch.chip.reset_peak_memory_stats()
            torch.chip.empty_cache()

    together(make, use, look)
    torch.chip.synchronize()
    assert [x.item() for x in sums] == [number % 7 + 1 for number in range(30) for _ in range(4)]


def test_running_out_of_memory_names_blocks_that_others_free() -> None:
    def compute(number: int) -> None:
        parts = [torch.full((size << 18,), number, device="chip") for size in (1, 2, 30)]
        assert [part.add_(1).numel() >> 18 for part in parts] == [1, 2, 30]

    def fail(_: int) -> None:
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            torch.empty(1 << 50, dtype=torch.uint8, device="chip")

    with bringup.dry():
        together(compute, compute, fail, rounds=100)


def test_events_are_shared() -> None:
    events = [torch.chip.Event(enable_timing=True) for _ in range(4)]
    for event in events:
        event.record()
    streams = [torch.chip.Stream() for _ in range(2)]
    x = torch.zeros(64, device="chip")
    torch.chip.synchronize()

    def record(number: int) -> None:
        with torch.chip.stream(streams[number % 2]):
            for event in events:
                x + 1
                event.record()

    def wait(number: int) -> None:
        with torch.chip.stream(streams[(number + 1) % 2]):
            for event in events:
                event.wait()
                event.query()
        events[number % 4].synchronize()

    def measure(_: int) -> None:
        events[0].synchronize()
        events[1].synchronize()
        try:
            events[0].elapsed_time(events[1])
        except RuntimeError as error:  # recorded again meanwhile
            assert "before" in str(error)

    together(record, record, wait, wait, measure)
    torch.chip.synchronize()


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def train(rounds: int) -> None:
    model = Tiny().to("chip")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(rounds):
        optimizer.zero_grad()
        model(torch.randn(2, 8).to("chip")).square().mean().backward()
        optimizer.step()


def test_recordings_begin_and_end_while_others_launch() -> None:
    def record(_: int) -> None:
        with bringup.record() as trace:
            torch.ones(3, device="chip").add_(1).sum().item()
        names = [trace.signatures[i].name for i in trace.columns["signature"] if i >= 0]
        assert "sum" in names and "add_" in names

    together(record, lambda _: train(1), lambda _: train(1), rounds=60)


def test_one_recording_of_threads_holds_every_launch() -> None:
    with bringup.record() as trace:
        together(*[lambda _: torch.ones(3, device="chip").add_(1)] * 4, rounds=50)
    launches = [trace.signatures[i].name for i in trace.columns["signature"] if i >= 0]
    assert launches.count("add_") == 200
    assert len(set(trace.columns["thread"][trace.columns["kind"] == LAUNCH].tolist())) == 4


def test_backward_launches_of_threads_that_count_alike_have_their_own_lines() -> None:
    """The nodes of two threads have the same numbers, since each counts from zero."""
    losses = []

    def one() -> None:
        x = torch.ones(3, device="chip", requires_grad=True)
        losses.append(x.exp())

    def other() -> None:
        x = torch.ones(3, device="chip", requires_grad=True)
        losses.append(x.exp())

    with bringup.record() as trace:
        for forward in (one, other):
            thread = threading.Thread(target=forward)
            thread.start()
            thread.join()
        for loss in losses:
            loss.backward(torch.ones(3, device="chip"))
    columns = trace.columns
    rows = (columns["kind"] == LAUNCH) & (columns["phase"] == PHASES.index("backward"))
    lines = [trace.lines[i].split(":")[-1] for i in columns["line"][rows] if i >= 0]
    expected = [f.__code__.co_firstlineno + 2 for f in (one, other)]
    assert lines == [str(number) for number in expected]


def test_random_numbers_and_their_states_in_threads() -> None:
    state = torch.chip.get_rng_state()

    def draw(_: int) -> None:
        assert 0 <= torch.rand(100, device="chip").min().item() < 1

    together(
        draw,
        draw,
        lambda number: torch.chip.manual_seed(number),
        lambda _: torch.chip.set_rng_state(state),
        lambda _: torch.chip.get_rng_state(),
        lambda _: torch.chip.initial_seed(),
    )


SEEDS_WHILE_OTHERS_DRAW = """
import threading, time, torch, bringup

@torch.library.custom_op("seeds::slow", mutates_args=("x",), device_types="cpu")
def slow(x: torch.Tensor) -> None:
    time.sleep(0.3)  # the queue becomes full; then the worker needs the GIL again

slow.register_fake(lambda x: None)
generator, over = torch.Generator(device="chip"), threading.Event()
torch.zeros(4, device="chip").normal_(generator=generator)  # the first draw imports much of torch
draws = [0, 0]

def draw(number):
    x = torch.zeros(4, device="chip")
    with torch.chip.stream(torch.chip.Stream()):
        while not over.is_set():
            if draws[number] % 500 == 0:
                slow(x)
            x.normal_(generator=generator)
            draws[number] += 1

def seed_while_others_draw():
    end = time.monotonic() + 1.5
    over.clear()
    threads = [threading.Thread(target=draw, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        generator.manual_seed(7)
        generator.initial_seed()
    over.set()
    for thread in threads:
        thread.join()
    torch.chip.synchronize()

seed_while_others_draw()
with bringup.record() as trace:
    seed_while_others_draw()
assert min(draws) > 0
generator.manual_seed(3)
x = torch.rand(4, device="chip", generator=generator)
print(torch.equal(x.cpu(), torch.rand(4, generator=torch.manual_seed(3))))
"""


def test_seeding_does_not_wait_for_threads_that_draw(python: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    done = python(SEEDS_WHILE_OTHERS_DRAW, timeout=60)
    assert done.returncode == 0 and done.stdout == "True\n", done.stderr


def test_signatures_are_learned_by_several_threads_at_once() -> None:
    def learn(number: int) -> None:
        a = torch.ones(number + 1, 5, device="chip")
        b = (a @ a.t()).softmax(0).sum()
        c = torch.cat([a, a])[:, number % 5].nonzero()
        d = a[a > 0].topk(3).values
        assert (c.shape[0], d.shape[0]) == (2 * number + 2, 3)
        assert b.item() == pytest.approx(number + 1, rel=1e-5)

    together(learn, learn, learn, rounds=20)


def test_failures_of_several_threads_are_raised_in_them_or_counted() -> None:
    index = torch.full((1, 1), 7, device="chip")

    def guarded(work: Work) -> Work:
        def run(number: int) -> None:
            try:
                work(number)
            except RuntimeError as error:
                assert "index 7 is out of bounds" in str(error)

        return run

    @guarded
    def fail(_: int) -> None:
        with torch.chip.stream(torch.chip.Stream()):
            bad = torch.ones(2, 2, device="chip").gather(0, index)
            (bad + 1).sum().item()  # nothing to raise here if another thread has just heard of it

    @guarded
    def wait(_: int) -> None:
        torch.chip.synchronize()

    together(fail, fail, fail, wait, wait)
    wait(0)
    assert torch.ones(3, device="chip").sum().item() == 3


def test_page_locked_memory_is_shared() -> None:
    def copy(number: int) -> None:
        host = torch.full((1 << 12,), number).pin_memory()
        on_chip = host.to("chip", non_blocking=True)
        back = torch.empty(1 << 12, dtype=torch.int64, pin_memory=True)
        back.copy_(on_chip, non_blocking=True)
        torch.chip.current_stream().synchronize()
        assert back.eq(number).all()

    together(copy, copy, copy)


def test_profiler_beside_threads_that_launch() -> None:
    def profile(_: int) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.PrivateUse1]
        with torch.profiler.profile(activities=activities):
            torch.ones(3, device="chip").add_(1)

    together(profile, lambda _: train(1), rounds=5)
