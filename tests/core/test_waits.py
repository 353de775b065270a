"""--chip-time: which calls count as waiting, and that watching them changes nothing else."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_signal_handlers_that_write_do_not_stop_the_program(bringup_run: Run, tmp_path: Path) -> None:
    """A handler may interrupt malloc or the recorder: what it writes is not recorded."""
    (tmp_path / "program.py").write_text(
        """
import faulthandler, os, signal, socket, threading, torch
x = torch.ones(4, device="chip")
ours, theirs = os.pipe()
threading.Thread(target=os.read, args=(ours, 1), daemon=True).start()  # a thread waits for bytes
ours, wakeup = socket.socketpair()
wakeup.setblocking(False)
signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
count = 0
def handler(*_):
    global count
    count += 1
signal.signal(signal.SIGALRM, handler)
assert signal.getsignal(signal.SIGALRM) is handler
faulthandler.register(signal.SIGUSR1, file=wakeup, all_threads=False)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
for i in range(5000):
    x.add_(1)
    if i % 100 == 0:
        os.kill(os.getpid(), signal.SIGUSR1)
signal.setitimer(signal.ITIMER_REAL, 0)
assert faulthandler.unregister(signal.SIGUSR1)
assert count > 10 and len(ours.recv(100)) == 100
print("done", flush=True)
os._exit(0)
"""
    )
    done = bringup_run("--chip-time", "--chip", "t4", "program.py", timeout=120)
    assert done.stdout == "done\n", done.stderr


# Calls that wait for 0.2 s, by their own time-out or for another thread, and what they take besides.
EXACT = {
    "nanosleep in a folder called torch": "shim.nap(200)",
    "usleep": "shim.short_nap(200)",
    "time-out after a let-go": "stolen()",
    "lock's time-out beside a timer": "ticking(lambda: lock.acquire(timeout=0.2))",
    "select's time-out beside a timer": "ticking(lambda: select.select([], [], [], 0.2))",
    "eventfd": "e = os.eventfd(0); later(lambda: os.eventfd_write(e, 1)); os.eventfd_read(e)",
    "the first of several writes": "several_writes()",
    "sigtimedwait": "signal.sigtimedwait([signal.SIGUSR2], 0.2)",
}
PROGRAM = """
import ctypes, fcntl, os, select, signal, subprocess, sys, threading, time, torch
torch.ones(4, device="chip")
lock = threading.Lock()
lock.acquire()
time.perf_counter()
shim = ctypes.CDLL("./torch/shim.so")  # loaded since the last read of a clock

def later(call):
    threading.Thread(target=lambda: (time.sleep(0.2), call())).start()

def ticking(call):
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
    call()
    signal.setitimer(signal.ITIMER_REAL, 0)

def stolen():
    # Two threads ask for a lock that is let go once: which of them gets it does not matter.
    own, took = threading.Lock(), []
    own.acquire()
    def ask():
        before = time.perf_counter()
        if not own.acquire(timeout=0.2): took.append(time.perf_counter() - before)
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads: thread.start()
    own.release()
    for thread in threads: thread.join()
    assert len(took) == 1 and abs(took[0] - 0.2) < 1e-4, took

def several_writes():
    ours, theirs = os.pipe()
    def write():
        time.sleep(0.2)
        os.write(theirs, b"x")
        for _ in range(3):
            time.sleep(0.1)
            os.write(theirs, b"x")
    thread = threading.Thread(target=write)
    thread.start()
    os.read(ours, 1)

def other(lock):
    program = f"import fcntl, sys, time; f = open('f', 'w'); {lock}; print(flush=True); time.sleep(0.2)"
    process = subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE)
    process.stdout.readline()

def took(name, call):
    before = time.perf_counter()
    call()
    print(f"{name}: {time.perf_counter() - before:.6f}", flush=True)
"""
SHIM = """
#include <time.h>
#include <unistd.h>
void nap(int ms) { struct timespec t = {0, ms * 1000000L}; nanosleep(&t, 0); }
void short_nap(int ms) { usleep(ms * 1000); }
"""


def took(bringup_run: Run, folder: Path, calls: dict[str, str]) -> dict[str, float]:
    """Seconds that every call takes by the program's clocks."""
    (folder / "torch").mkdir()
    (folder / "torch" / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "shim.so", "shim.c"], cwd=folder / "torch", check=True)
    body = "".join(f"took({name!r}, lambda: ({call}))\n" for name, call in calls.items() if ";" not in call)
    body += "".join(f"def call():\n    {call}\ntook({name!r}, call)\n" for name, call in calls.items() if ";" in call)
    (folder / "program.py").write_text(PROGRAM + body)
    done = bringup_run("--chip-time", "--dry", "--chip", "t4", "program.py")
    assert done.returncode == 0, done.stderr
    printed = {name: float(seconds) for name, seconds in re.findall(r"^(.*): ([0-9.]+)$", done.stdout, re.MULTILINE)}
    assert set(calls) <= set(printed), done.stdout
    return printed


needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")


@needs_compiler
def test_waits_take_what_was_asked_for(bringup_run: Run, tmp_path: Path) -> None:
    for name, seconds in took(bringup_run, tmp_path, EXACT).items():
        assert seconds == pytest.approx(0.2, abs=1e-3), name


# Waits for other processes and for signals take what they took here: at least this long.
OUTSIDE = {
    "os.wait": "subprocess.Popen(['sleep', '0.2']); os.wait()",
    "pause": "signal.signal(signal.SIGALRM, print); signal.setitimer(signal.ITIMER_REAL, 0.2); signal.pause()",
    "flock": "other('fcntl.flock(f, fcntl.LOCK_EX)'); fcntl.flock(open('f', 'w'), fcntl.LOCK_EX)",
    "lockf": "other('fcntl.lockf(f, fcntl.LOCK_EX)'); fcntl.lockf(open('f', 'w'), fcntl.LOCK_EX)",
    "a large write": "p = subprocess.Popen(['sh', '-c', 'sleep 0.2; cat >/dev/null'], stdin=subprocess.PIPE); "
    "p.stdin.write(bytes(1 << 20)); p.stdin.close(); p.wait()",
}


@needs_compiler
def test_waits_for_what_is_outside_pass(bringup_run: Run, tmp_path: Path) -> None:
    for name, seconds in took(bringup_run, tmp_path, OUTSIDE).items():
        assert seconds > 0.15, name


@needs_compiler
def test_any_number_of_threads_may_wait(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        """
import threading, time, torch
torch.ones(4, device="chip")
began, event, seen = time.perf_counter(), threading.Event(), []
def wait():
    event.wait()
    seen.append(time.perf_counter() - began)
threads = [threading.Thread(target=wait) for _ in range(300)]
for thread in threads: thread.start()
time.sleep(1)
event.set()
for thread in threads: thread.join()
print(len(seen), min(seen) >= 1)
"""
    )
    done = bringup_run("--chip-time", "--dry", "--chip", "t4", "program.py")
    assert done.stdout.startswith("300 True\n"), done.stdout + done.stderr


def test_only_autograds_threads_work_for_the_one_that_runs_backward(python: Run) -> None:
    done = python(
        """
import threading, torch
ops = torch.ops.bringup
x = torch.ones(4, device="chip")
ready, over = threading.Event(), threading.Event()
def older():  # a thread of the program that was there before the recording
    ready.wait()
    x.add(1)
    over.set()
threading.Thread(target=older).start()
ops.start_recording()
x.add(1)
first = ops.begin_backward()
second = []
def other():
    x.add(1)
    second.append(ops.begin_backward())
thread = threading.Thread(target=other)
thread.start()
thread.join()
ops.end_backward(first)
ready.set()
over.wait()
ops.end_backward(second[0])
threads = ops.recorded_columns(0)[5].tolist()
ops.stop_recording()
print(len(set(threads)))
"""
    )
    assert done.stdout == "3\n", done.stdout + done.stderr
