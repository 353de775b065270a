"""--chip-time: which calls count as waiting, and that watching them changes nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
for i in range(30000):
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
