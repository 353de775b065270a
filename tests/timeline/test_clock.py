"""--chip-time: the program's own clocks show the predicted machine's."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import slow

Run = Callable[..., Any]

TRAINING = """
import time, torch
from time import perf_counter
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 10)).cuda()
optimizer = torch.optim.AdamW(model.parameters())
x, y = torch.randn(64, 256).cuda(), torch.randint(10, (64,)).cuda()
for step in range(12):
    if step == 2:
        torch.cuda.synchronize()
        began, also = perf_counter(), time.time_ns()
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loss.item()
torch.cuda.synchronize()
print("samples/s", 640 / (perf_counter() - began), (time.time_ns() - also) / 1e9)
"""


@pytest.mark.parametrize("options", [["--dry"], *slow([])])
def test_throughput_that_a_program_prints_is_the_reports(bringup_run: Run, tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "train.py").write_text(TRAINING)
    done = bringup_run("--cuda", "--chip-time", *options, "--chip", "t4", "train.py")
    found = re.search(r"samples/s ([0-9.]+) ([0-9.e-]+)", done.stdout)
    assert found, done.stderr
    summary = json.loads((tmp_path / "bringup-train" / "summary.json").read_text())
    assert float(found[1]) == pytest.approx(64 / summary["step_seconds"], rel=0.02)
    assert float(found[2]) == pytest.approx(640 / float(found[1]), rel=0.02)
    assert summary["chip_time"] is True
    assert "the program's clocks showed chip time" in done.stdout


def test_sleep_passes_and_libraries_see_the_clock_but_deadlines_do_not(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        """
import queue, threading, time, torch
import torch.utils.benchmark as benchmark
x = torch.randn(64, 64, device="chip")
began, process = time.perf_counter(), time.process_time()
time.sleep(0.2)
assert 0.1999 < time.perf_counter() - began < 0.21, time.perf_counter() - began
assert time.process_time() - process < 0.01
try:
    queue.Queue().get(timeout=0.05)  # computes a deadline with the real clock
except queue.Empty:
    pass
threading.Event().wait(0.05)
took = benchmark.Timer("x @ x", globals={"x": x}).timeit(50).median
assert 0 < took < 1e-3, took
y = x.clone()
for _ in range(2):
    y = y @ x
t = time.monotonic()
y.sum().item()
assert 0 < time.monotonic() - t < 0.01
print("done")
"""
    )
    done = bringup_run("--chip-time", "--chip", "t4", "program.py")
    assert done.stdout.startswith("done"), done.stderr


def test_waiting_for_another_process_passes(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        """
import subprocess, time, torch
torch.ones(2, device="chip")
began = time.perf_counter()
subprocess.run(["sleep", "0.3"])
print("waited", time.perf_counter() - began)
"""
    )
    done = bringup_run("--chip-time", "--dry", "program.py")
    found = re.search(r"waited ([0-9.]+)", done.stdout)
    assert found and 0.25 < float(found[1]) < 1.0, done.stdout + done.stderr


WAITS = {
    "sleep": "time.sleep(0.2)",
    "lock": "later(lock.release); lock.acquire()",
    "with lock": "later(lock.release)\n    with lock: pass\n    lock.acquire()",
    "event": "e = threading.Event(); later(e.set); e.wait()",
    "condition's time-out": "threading.Condition().acquire(); threading.Event().wait(0.2)",
    "queue": "q = queue.Queue(); later(lambda: q.put(1)); q.get()",
    "simple queue": "q = queue.SimpleQueue(); later(lambda: q.put(1)); q.get()",
    "join": "t = threading.Thread(target=time.sleep, args=(0.2,)); t.start(); t.join()",
    "future": "pool.submit(time.sleep, 0.2).result()",
    "pipe": "r, w = os.pipe(); later(lambda: os.write(w, b'x')); os.read(r, 1)",
    "pipe as a file": "r, w = os.pipe(); later(lambda: os.write(w, b'x\\n')); os.fdopen(r).readline()",
    "socket": "a, b = socket.socketpair(); later(lambda: b.send(b'x')); a.recv(1)",
    "select's time-out": "select.select([], [], [], 0.2)",
    "poll's time-out": "select.poll().poll(200)",
    "asyncio": "asyncio.run(asyncio.sleep(0.2))",
    "executor": "asyncio.run(in_executor(time.sleep, 0.2))",
}
# Deadlines that are set before the emulation computes, for longer than the chip would.
DEADLINES = {
    "asyncio": "asyncio.run(slept_beside(emulated))",
    "asyncio's time-out": "asyncio.run(timed_out_beside(emulated))",
    "sched": "s = sched.scheduler(); s.enter(0.2, 1, emulated); s.enter(0.4, 1, int); s.run()",
    "process": "wait_for_process(0.4)",
}
# Another thread provides after 0.2 s, or in steps until then. Here the program asks later: it has been busy.
LATE = {
    "queue": "q = queue.Queue(); later(lambda: q.put(1)); busy(); q.get()",
    "one item of several": "q = queue.Queue(); q.put(0); later(lambda: q.put(1)); busy(); q.get(); q.get(timeout=1)",
    "queue by priority": "q = queue.PriorityQueue(); later(lambda: q.put(1)); busy(); q.get()",
    "simple queue": "q = queue.SimpleQueue(); later(lambda: q.put(1)); busy(); q.get()",
    "room in a queue": "q = queue.Queue(1); q.put(0); later(q.get); busy(); q.put(1)",
    "a loader that is ahead": "q = queue.Queue(2); load(q); [(busy(), q.get()) for _ in range(4)]",
    "event": "e = threading.Event(); later(e.set); busy(); e.wait()",
    "join": "t = threading.Thread(target=time.sleep, args=(0.2,)); t.start(); busy(); t.join()",
    "timer": "t = threading.Timer(0.2, int); t.start(); busy(); t.join()",
    "future": "f = pool.submit(time.sleep, 0.2); busy(); f.result()",
    "as completed": "f = pool.submit(time.sleep, 0.2); busy(); next(concurrent.futures.as_completed([f]))",
    "futures": "f = pool.submit(time.sleep, 0.2); busy(); concurrent.futures.wait([f])",
    "future that is asked": "f = pool.submit(time.sleep, 0.2); poll(f.done)",
    "event that is asked": "e = threading.Event(); later(e.set); poll(e.is_set)",
    "thread that is asked": "t = threading.Timer(0.2, int); t.start(); poll(lambda: not t.is_alive())",
    "queue that was cleared": "q = queue.Queue(); q.put(1); q.queue.clear(); later(lambda: q.put(1)); busy(); q.get()",
    "room after clearing": "q = queue.Queue(1); q.put(0); q.queue.clear(); q.put(0); later(q.get); busy(); q.put(1)",
    "queue of one's own": "q = Own(); later(lambda: q.put(1)); busy(); q.get()",
}
# Nothing is handed over: which thread comes first is no order of the program.
APART = {
    "lock": "other = threading.Lock(); later(lambda: held(other)); busy(); held(other)",
    "first item of several": "q = queue.Queue(); q.put(0); later(lambda: q.put(1)); busy(); q.get()",
    "event that is set again": "e = threading.Event(); e.set(); later(e.set); busy(); e.wait()",
    "room that was there": "q = queue.Queue(2); q.put(0); later(q.get); busy(); q.put(1)",
}
# What the machine under the program does, and not the program: no time.
WORKS = {
    "the interpreter": "sum(range(10_000_000))",
    "the interpreter in a thread": "pool.submit(sum, range(10_000_000)).result()",
    "imports": "import sympy, xml.dom.minidom, scipy.stats",
    "fresh memory": "bytearray(1 << 29)[::4096]",
    "reading files": "[open(name, 'rb').read() for name in glob.glob(os.path.dirname(os.__file__) + '/*.py')]",
    "a lock that is free": "threading.Lock().acquire()",
}
# The emulation computes in the place of the chip, for longer than the chip would.
EMULATION = {
    "emulation": "emulated()",
    "emulation in a thread": "pool.submit(emulated).result()",
    "emulation in an executor": "asyncio.run(in_executor(emulated))",
    "backward": "loss().backward(); torch.chip.synchronize()",
}
PRELUDE = """
import asyncio, concurrent.futures, glob, os, queue, sched, select, signal, socket, subprocess, sys
import threading, time, torch
x = torch.randn(400, 400).to("chip").requires_grad_()
lock, pool = threading.Lock(), concurrent.futures.ThreadPoolExecutor()
lock.acquire()

begun, over = [], []

def later(call):
    begun.append(call)
    threading.Thread(target=lambda: (time.sleep(0.2), call(), over.append(call))).start()

class Own(queue.SimpleQueue):
    def __init__(self): pass

def busy():
    sum(range(20_000_000))
    while len(over) < len(begun):  # or the two would meet at a lock
        sum(range(1_000_000))

def held(lock):
    with lock:
        pass

def poll(is_over):
    while not is_over():
        busy()

def load(items):
    def loads():
        for _ in range(4):
            time.sleep(0.05)
            items.put(1)
    threading.Thread(target=loads).start()

def emulated():
    y = x.detach()
    for _ in range(40):
        y = (y @ y) * 1e-3
    y.sum().item()

def loss():
    y = x
    for _ in range(20):
        y = (y @ y) * 1e-3
    return y.sum()

async def in_executor(*call):
    await asyncio.get_running_loop().run_in_executor(None, *call)

async def slept_beside(call):
    sleeps = asyncio.create_task(asyncio.sleep(0.4))
    await asyncio.sleep(0)
    call()
    await sleeps

async def timed_out_beside(call):
    never = asyncio.get_running_loop().create_future()
    waits = asyncio.create_task(asyncio.wait_for(never, 0.4))
    await asyncio.sleep(0)
    call()
    try:
        await waits
    except asyncio.TimeoutError:
        pass

def wait_for_process(seconds):
    child = subprocess.Popen(["sleep", "60"])
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()

def ended(call):
    def raises(*_):
        raise TimeoutError
    signal.signal(signal.SIGALRM, raises)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        call()
    except TimeoutError:
        pass

def took(name, call):
    before = time.perf_counter(), time.process_time()
    call()
    print(f"{name}: {time.perf_counter() - before[0]:.6f} {time.process_time() - before[1]:.6f}", flush=True)
"""


def clocked(bringup_run: Run, folder: Path, calls: dict[str, str], *options: str) -> dict[str, tuple[float, float]]:
    """The seconds that every call takes by the program's clocks: the wall's and the process's."""
    body = "".join(f"def call():\n    {call}\ntook({name!r}, call)\n" for name, call in calls.items())
    (folder / "program.py").write_text(PRELUDE + body)
    done = bringup_run("--chip-time", "--chip", "t4", *options, "program.py")
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"^(.*): ([-0-9.]+) ([-0-9.]+)$", done.stdout, re.MULTILINE)
    found = {name: (float(wall), float(own)) for name, wall, own in printed}
    assert set(calls) <= set(found), done.stdout
    return found


def test_what_the_program_asks_to_wait_for_passes(bringup_run: Run, tmp_path: Path) -> None:
    for name, (wall, own) in clocked(bringup_run, tmp_path, WAITS).items():
        # asyncio rounds what is left of a time-out up to a millisecond (selectors): 0.2 s from some starts is 0.201 s.
        rounding = 1.1e-3 if "asyncio" in name else 1e-5
        assert wall == pytest.approx(0.2, abs=rounding), name
        assert own == pytest.approx(0, abs=1e-5), name


def test_late_receivers_wait_as_on_the_predicted_machine(bringup_run: Run, tmp_path: Path) -> None:
    for name, (wall, own) in clocked(bringup_run, tmp_path, LATE).items():
        # asyncio rounds what is left of a time-out up to a millisecond (selectors): 0.2 s from some starts is 0.201 s.
        rounding = 1.1e-3 if "asyncio" in name else 1e-5
        assert wall == pytest.approx(0.2, abs=rounding), name
        assert own == pytest.approx(0, abs=1e-5), name


def test_threads_that_are_kept_apart_do_not_wait(bringup_run: Run, tmp_path: Path) -> None:
    for name, (wall, _) in clocked(bringup_run, tmp_path, APART).items():
        assert wall == 0, name


def test_deadlines_are_those_of_the_predicted_machine(bringup_run: Run, tmp_path: Path) -> None:
    for name, (wall, _) in clocked(bringup_run, tmp_path, DEADLINES).items():
        assert wall == pytest.approx(0.4, rel=0.01), name


def test_threads_that_read_the_clock_do_not_wait_for_each_other(bringup_run: Run, tmp_path: Path) -> None:
    """A lock of ours is nothing that the program waits for."""
    beside = """def monitor():
        while not over: time.sleep(0.0001); x.detach()[0]; time.perf_counter()
    over = []
    threads = [threading.Thread(target=monitor) for _ in range(4)]
    for thread in threads: thread.start()
    moments = {time.perf_counter() for _ in range(2000)}
    over.append(1)
    assert len(moments) == 1, sorted(moments)[-1] - min(moments)"""
    clocked(bringup_run, tmp_path, {"reading": beside})


# A signal handler raises after 0.2 s.
ENDED = {
    "sleep": "time.sleep(5)",
    "lock": "lock.acquire(timeout=5)",
    "queue": "queue.Queue().get(timeout=5)",
    "select": "select.select([], [], [], 5)",
}


def test_waits_that_a_signal_handler_ends_have_passed(bringup_run: Run, tmp_path: Path) -> None:
    calls = {name: f"ended(lambda: {call})" for name, call in ENDED.items()}
    for name, (wall, _) in clocked(bringup_run, tmp_path, calls).items():
        assert wall == pytest.approx(0.2, abs=0.1), name


def test_clock_may_be_read_while_it_is_read(bringup_run: Run, tmp_path: Path) -> None:
    """A signal handler, or a destructor, reads it within."""
    program = """
import signal, time, torch
x = torch.ones(4, device="chip")
signal.signal(signal.SIGALRM, lambda *_: time.time())
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
class Reads:
    def __del__(self): time.perf_counter()
moments = []
for _ in range(300):
    x.add_(1)
    a = Reads(); a.a = a
    moments.append(time.perf_counter())
signal.setitimer(signal.ITIMER_REAL, 0)
print(moments == sorted(moments) and moments[-1] > moments[0])
"""
    (tmp_path / "program.py").write_text(program)
    done = bringup_run("--chip-time", "--chip", "t4", "program.py", timeout=120)
    assert done.stdout.startswith("True\n"), done.stdout + done.stderr


def test_deadlines_inside_of_an_import_pass(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "imported.py").write_text("import asyncio; asyncio.run(asyncio.sleep(0.1))\n")
    assert clocked(bringup_run, tmp_path, {"import": "import imported"})["import"][0] == 0


def test_what_this_machine_does_takes_no_time(bringup_run: Run, tmp_path: Path) -> None:
    for name, (wall, _) in clocked(bringup_run, tmp_path, WORKS).items():
        assert wall == 0, name


def test_emulation_takes_the_chips_time(bringup_run: Run, tmp_path: Path) -> None:
    first, second = (clocked(bringup_run, tmp_path, EMULATION) for _ in range(2))
    assert first == second
    alone = first["emulation"][0]
    assert 1e-4 < alone < 1e-2
    assert first["emulation in a thread"][0] == first["emulation in an executor"][0] == alone


def test_thread_that_sleeps_does_not_hold_up_another(bringup_run: Run, tmp_path: Path) -> None:
    """A monitor wakes up again and again while the emulation runs: how often depends on this machine."""
    alone = clocked(bringup_run, tmp_path, {"emulation": "emulated()"})
    monitor = """def monitor():
        while not over: time.sleep(0.001); x.detach()[0]; time.perf_counter()
    over = []
    thread = threading.Thread(target=monitor); thread.start()
    emulated()
    over.append(1)"""
    beside = clocked(bringup_run, tmp_path, {"emulation": monitor})
    assert beside["emulation"][0] == pytest.approx(alone["emulation"][0], rel=0.01)


@pytest.mark.slow
def test_compiling_takes_no_time(bringup_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with cold caches and with warm ones."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    (tmp_path / "train.py").write_text(TRAINING.replace("optimizer =", "model = torch.compile(model)\noptimizer ="))
    prints = [bringup_run("--cuda", "--chip-time", "--chip", "t4", "train.py").stdout.splitlines()[0] for _ in range(2)]
    assert prints[0] == prints[1] and prints[0].startswith("samples/s")


def test_data_loader_workers_are_waited_for(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        """
import time, torch
class Slow(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, i):
        time.sleep(0.05)
        return torch.ones(4)
began = time.perf_counter()
for batch in torch.utils.data.DataLoader(Slow(), batch_size=2, num_workers=1):
    batch.to("chip").sum().item()
print("waited", time.perf_counter() - began)
"""
    )
    done = bringup_run("--chip-time", "program.py")
    found = re.search(r"waited ([0-9.]+)", done.stdout)
    assert found and float(found[1]) > 0.35, done.stdout + done.stderr


def test_same_program_same_prints(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINING)
    first, second = (bringup_run("--cuda", "--chip-time", "--dry", "train.py").stdout for _ in range(2))
    assert first.splitlines()[0] == second.splitlines()[0] and "samples/s" in first


def test_clocks_are_real_again_afterwards(python: Run) -> None:
    done = python(
        """
import time, torch, bringup
from bringup.timeline import clock
real = time.perf_counter, time.sleep
with bringup.record(), clock.shown():
    assert time.perf_counter is not real[0]
    torch.ones(2, device="chip")
assert (time.perf_counter, time.sleep) == real
print("done")
"""
    )
    assert done.stdout == "done\n", done.stderr


def test_folder_that_is_called_like_a_compiler_is_the_users(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "train.py").write_text(
        """
import time, torch
began = time.perf_counter()
torch.ones(2, device="chip")
time.sleep(0.25)
torch.ones(2, device="chip")
print(round(time.perf_counter() - began, 2))
"""
    )
    done = bringup_run("--chip-time", "--chip", "t4", "triton/train.py")
    assert done.stdout.startswith("0.25\n"), done.stdout + done.stderr


def test_a_monitor_that_waits_beside_the_program_is_in_no_step(bringup_run: Run, tmp_path: Path) -> None:
    beside = """import threading
def monitor():
    time.sleep(0.5)
    time.perf_counter()
threading.Thread(target=monitor).start()
"""
    (tmp_path / "train.py").write_text(
        TRAINING.replace("torch.manual_seed", "import time\n" + beside + "torch.manual_seed")
    )
    done = bringup_run("--cuda", "--chip-time", "--chip", "t4", "train.py")
    found = re.search(r"samples/s ([0-9.]+) ", done.stdout)
    assert found, done.stderr
    summary = json.loads((tmp_path / "bringup-train" / "summary.json").read_text())
    assert float(found[1]) == pytest.approx(64 / summary["step_seconds"], rel=0.02)


def test_a_clock_that_is_read_before_the_chip_is_done_is_named(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        """
import time, torch
x = torch.ones(4096, 4096, device="chip")
torch.chip.synchronize()
began = time.perf_counter()
for _ in range(4): x @ x
launched = time.perf_counter()
torch.chip.synchronize()
began = time.perf_counter()
for _ in range(4): x @ x
torch.chip.synchronize()
ended = time.perf_counter()
"""
    )
    done = bringup_run("--chip-time", "--dry", "--chip", "t4", "program.py")
    summary = json.loads((tmp_path / "bringup-program" / "summary.json").read_text())
    (item,) = summary["early_clocks"]
    assert item["line"] == 7 and item["shown_seconds"] < item["seconds"] / 2
    assert item["seconds"] == pytest.approx(4 * 2 * 4096**3 / (0.45 * 8.141e12), rel=0.02)  # the sustained rate
    assert "the clock at program.py:7 is read before the chip is done" in done.stdout, done.stderr


def test_an_early_reading_that_only_starts_an_interval_is_not_named(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        """
import time, torch
x = torch.ones(4096, 4096, device="chip")
started = time.perf_counter()
x @ x
for _ in range(4):
    began = time.perf_counter()
    (x @ x).sum().item()
    ended = time.perf_counter()
    for _ in range(4): x @ x
torch.chip.synchronize()
for _ in range(4):
    began = time.perf_counter()
    for _ in range(4): x @ x
    launched = time.perf_counter()
    (x @ x).sum().item()
"""
    )
    done = bringup_run("--chip-time", "--dry", "--chip", "t4", "program.py")
    summary = json.loads((tmp_path / "bringup-program" / "summary.json").read_text())
    assert [item["line"] for item in summary["early_clocks"]] == [15], done.stdout + done.stderr
