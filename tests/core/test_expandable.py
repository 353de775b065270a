"""The tests of expandable segments, in a process whose allocator has served nothing else."""

import subprocess
import sys
from pathlib import Path


def test_expandable_segments() -> None:
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider"]
    tests = Path(__file__).with_name("expandable.py")
    done = subprocess.run([*command, str(tests)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
