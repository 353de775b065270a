"""Asynchrony: queues, events, threads, fork, exit."""

import subprocess
import threading
import time
from collections.abc import Callable

import pytest
import torch

import bringup

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@torch.library.custom_op("bringup_tests::hold", mutates_args=(), device_types="cpu")
def hold(x: torch.Tensor, seconds: float) -> torch.Tensor:
    """A kernel that takes known time, without the interpreter's lock."""
    time.sleep(seconds)
    return x.clone()


@hold.register_fake
def _(x: torch.Tensor, seconds: float) -> torch.Tensor:
    return torch.empty_like(x)


def test_launch_returns_before_the_kernel_has_run() -> None:
    x = torch.ones(3, device="chip")
    event = torch.chip.Event()
    y = hold(x, 0.3)
    event.record()
    assert not event.query()
    assert not torch.chip.current_stream().query()
    assert y.cpu().tolist() == [1, 1, 1]
    assert event.query()


def test_first_launch_of_a_signature_does_not_wait() -> None:
    before = bringup.launch_stats()
    hold(torch.ones(3, device="chip"), 2.0)  # longer than a busy machine takes to issue four launches
    a = torch.ones(37, 41, device="chip")
    b = (a @ a.t()).relu().sum(0).softmax(0)
    after = bringup.launch_stats()
    assert after["synchronous"] == before["synchronous"]
    assert not torch.chip.current_stream().query()
    assert b.shape == (37,)


@pytest.mark.parametrize("side", [5, 500])
def test_first_launch_with_a_tensor_given_twice_does_not_wait(side: int) -> None:
    a, b = torch.ones(side, side + 1, device="chip"), torch.ones(side, side + 1, device="chip")
    calls = (
        lambda: a.addcmul_(b, b, value=0.5),
        lambda: torch.mul(a, a, out=a),
        lambda: torch._foreach_addcdiv_([a, b], [b, a], [b, a], 0.5),
        lambda: torch.add(a[:1], a[1:2], out=b[:1]),
        lambda: b.view(-1).copy_(a.view(-1)).add_(b.view(-1)),
    )
    torch.chip.synchronize()
    for number, call in enumerate(calls):
        before = bringup.launch_stats()
        call()
        after = bringup.launch_stats()
        waited = {key: after[key] - before[key] for key in ("synchronous", "synchronizations", "learned_by_running")}
        assert not any(waited.values()), (number, waited)


def test_stream_runs_in_order() -> None:
    x = torch.zeros(1000, device="chip")
    for _ in range(500):
        x.add_(1).mul_(1)
    assert x.min().item() == x.max().item() == 500


def test_streams_overlap() -> None:
    one, two = torch.chip.Stream(), torch.chip.Stream()
    x = torch.ones(3, device="chip")
    torch.chip.synchronize()
    done = torch.chip.Event()
    with torch.chip.stream(one):
        hold(x, 1.0)
    with torch.chip.stream(two):
        hold(x, 0.01)
        done.record()
    done.synchronize()
    assert not one.query()  # the long kernel of the other stream is still running
    torch.chip.synchronize()


def test_event_orders_streams() -> None:
    side, event = torch.chip.Stream(), torch.chip.Event()
    x = torch.zeros(3, device="chip")
    torch.chip.synchronize()
    with torch.chip.stream(side):
        y = hold(x, 0.2)
        y.add_(1)
        event.record()
    event.wait()
    assert (y * 2).cpu().tolist() == [2, 2, 2]
    torch.chip.current_stream().wait_stream(side)


def test_event_times_the_kernels_between() -> None:
    start, end = torch.chip.Event(enable_timing=True), torch.chip.Event(enable_timing=True)
    start.record()
    hold(torch.ones(1, device="chip"), 0.1)
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) >= 100
    assert isinstance(start, torch.chip.Event)


def test_event_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="must be recorded"):
        torch.chip.Event(enable_timing=True).elapsed_time(torch.chip.Event(enable_timing=True))
    untimed = torch.chip.Event()
    untimed.record()
    with pytest.raises(ValueError, match="enable_timing=True"):
        untimed.elapsed_time(untimed)
    with pytest.raises(bringup.BringupError, match="between processes"):
        torch.chip.Event(interprocess=True)


def test_urgent_stream_passes_a_backlog_of_the_others() -> None:
    low, high = torch.chip.Stream(priority=0), torch.chip.Stream(priority=-1)
    assert (low.priority, high.priority) == (0, -1)
    assert torch.chip.Stream.priority_range() == (0, -1)
    x = torch.ones(3, device="chip")
    torch.chip.synchronize()
    with torch.chip.stream(low):
        for _ in range(50):
            hold(x, 0.02)
    with torch.chip.stream(high):
        hold(x, 0.3)
    high.synchronize()
    assert not low.query()  # it stood still meanwhile: 50 x 0.02 s are not over
    torch.chip.synchronize()


def test_only_reading_synchronises() -> None:
    x = torch.randn(64, 64, device="chip", requires_grad=True)
    weight = torch.randn(64, 64).to("chip")
    for _ in range(2):  # the second round has no first launches
        before = bringup.launch_stats()
        y = torch.nn.functional.cross_entropy(x @ weight, torch.arange(64, device="chip"))
        y.backward()
        torch.optim.SGD([x], lr=0.1).step()
        x.grad = None
    after = bringup.launch_stats()
    assert after["synchronous"] == before["synchronous"]
    assert after["synchronizations"] == before["synchronizations"]
    for read in (lambda: y.item(), lambda: y.cpu(), lambda: str(y)):
        count = bringup.launch_stats()["synchronizations"]
        read()
        assert bringup.launch_stats()["synchronizations"] > count


def test_pinned_copies_are_asynchronous_and_pageable_ones_are_not() -> None:
    x = torch.ones(3, device="chip")
    pinned, pageable = torch.ones(1 << 18).pin_memory(), torch.ones(1 << 18)
    hold(x, 0.2)
    arrived = pinned.to("chip", non_blocking=True)
    assert not torch.chip.current_stream().query()
    pageable.to("chip", non_blocking=True)
    assert torch.chip.current_stream().query()
    hold(x, 0.2)
    back = torch.empty(1 << 18).pin_memory()
    back.copy_(arrived, non_blocking=True)
    assert not torch.chip.current_stream().query()
    torch.chip.synchronize()
    assert back.sum().item() == 1 << 18


def test_pageable_source_may_change_after_the_copy() -> None:
    host = torch.zeros(4)
    hold(torch.ones(1, device="chip"), 0.1)
    copied = host.to("chip")
    host.fill_(9)
    assert copied.cpu().tolist() == [0, 0, 0, 0]


def test_eight_threads_with_a_stream_each() -> None:
    results: dict[int, float] = {}

    def work(number: int) -> None:
        stream = torch.chip.Stream()
        torch.manual_seed(0)
        with torch.chip.stream(stream):
            x = torch.full((64, 64), float(number), device="chip")
            for _ in range(100):
                x = (x @ torch.eye(64, device="chip")).add_(1)
            results[number] = x.mean().item()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {number: number + 100.0 for number in range(8)}


def test_first_use_in_many_threads(python: Run) -> None:
    done = python(
        """
import threading, torch
errors, gate = [], threading.Barrier(8)
def use():
    gate.wait()
    try:
        with torch.chip.stream(torch.chip.Stream()):
            assert (torch.ones(4, device="chip") + torch.rand(4, device="chip")).sum().item() > 4
    except Exception as error:
        errors.append(str(error))
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(errors, torch.chip.get_device_name().split()[0])
""",
        BRINGUP_CHIP="t4",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[] "), done.stdout


def test_first_use_beside_threads_that_keep_the_interpreter(python: Run) -> None:
    done = python(
        """
import threading, torch
gate = threading.Barrier(3)
def launch():
    gate.wait()
    torch.ones(4, device="chip")
def allocate():
    gate.wait()
    for _ in range(3): torch.UntypedStorage(4, device="chip")
threads = [threading.Thread(target=use) for use in (launch, allocate, allocate)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("alive")
"""
    )
    assert done.stdout == "alive\n", done.stderr


def test_first_use_in_many_threads_raises_one_mistake_in_all(python: Run) -> None:
    done = python(
        """
import threading, torch
errors = []
def use():
    try: torch.ones(4, device="chip")
    except Exception as error: errors.append(str(error).splitlines()[0])
threads = [threading.Thread(target=use) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(errors), set(errors))
""",
        BRINGUP_CHIP="no-such-chip",
    )
    assert done.stdout.startswith("4 {\"no chip is named 'no-such-chip'"), done.stdout + done.stderr


def test_chip_works_beside_other_interpreters(python: Run) -> None:
    done = python(
        """
import threading, torch
try:
    import _xxsubinterpreters as interpreters
except ImportError:
    import _interpreters as interpreters
x = torch.ones(3, device="chip")
ids = [interpreters.create() for _ in range(3)]
def busy(number):
    interpreters.run_string(number, "import time\\nfor k in range(100): sum(range(1000)); time.sleep(0.0001)")
threads = [threading.Thread(target=busy, args=(number,)) for number in ids]
for thread in threads: thread.start()
for _ in range(100):
    x.add_(1).sum().item()
for thread in threads: thread.join()
for number in ids: interpreters.destroy(number)
torch.chip.empty_cache()
print("alive", x.tolist())
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive [101.0, 101.0, 101.0]\n"


def test_training_in_threads_gives_the_same_losses() -> None:
    def train(device: str) -> float:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(16, 16, generator=generator).to(device).requires_grad_()
        x = torch.randn(32, 16, generator=generator).to(device)
        for _ in range(20):
            loss = (x @ weight).tanh().pow(2).mean()
            (gradient,) = torch.autograd.grad(loss, weight)
            weight = (weight - 0.1 * gradient).detach().requires_grad_()
        return loss.item()

    expected, found = train("cpu"), []
    threads = [threading.Thread(target=lambda: found.append(train("chip"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [pytest.approx(expected, rel=1e-5)] * 4


@pytest.mark.filterwarnings("ignore:The argument 'device' of Tensor:DeprecationWarning")  # torch 2.10's own
def test_data_loader_workers_fork_and_pin() -> None:
    torch.ones(3, device="chip").sum().item()
    data = torch.utils.data.TensorDataset(torch.arange(40.0).view(20, 2))
    loader = torch.utils.data.DataLoader(
        data, batch_size=5, num_workers=2, pin_memory=True, multiprocessing_context="fork"
    )
    total = sum(batch.to("chip", non_blocking=True).sum().item() for (batch,) in loader if batch.is_pinned())
    assert total == sum(range(40))


def test_use_in_a_forked_child_is_refused(python: Run) -> None:
    done = python(
        """
import os
import torch

x = torch.ones(3, device="chip")
torch.chip.synchronize()
child = os.fork()
if child == 0:
    try:
        x + 1
    except RuntimeError as error:
        print(error, flush=True)
    del x
    raise SystemExit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), (x + 1).sum().item())
"""
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be used in a forked process" in done.stdout
    assert done.stdout.splitlines()[-1] == "3 6.0"


def test_exit_with_work_in_the_queue(python: Run) -> None:
    done = python(
        """
import torch
x = torch.randn(300, 300, device="chip", requires_grad=True)
for _ in range(50):
    y = (x @ x).tanh()
    y.sum().backward()
with torch.chip.stream(torch.chip.Stream()):
    z = x @ x
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_keyboard_interrupt_ends_the_program(python: Run) -> None:
    done = python(
        """
import os, signal, threading
import torch
x = torch.randn(1000, 1000, device="chip")
for _ in range(20):
    x = x @ x
threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    while True:
        (x + 1).sum().item()
except KeyboardInterrupt:
    print("interrupted", torch.ones(2, device="chip").sum().item())
"""
    )
    assert done.stdout.strip() == "interrupted 2.0", done.stderr


def test_python_kernel_on_a_stream_does_not_deadlock_with_a_waiting_host() -> None:
    x = torch.ones(3, device="chip")
    for _ in range(200):
        x = hold(x, 0.0)
    torch.chip.synchronize()
    assert x.cpu().tolist() == [1, 1, 1]
