"""A driver that fails, is slow or returns late: the process lives, errors say what failed, nothing leaks."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

HERE = Path(__file__).parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]
ENTRIES = (
    *("range_reserve", "range_release", "range_map", "range_unmap"),
    *("open", "alloc", "free", "map", "unmap", "host_alloc", "host_free", "stream_create"),
    *("stream_synchronize", "stream_query", "copy_h2d", "copy_d2h", "copy_d2d", "launch_host"),
    *(
        "event_create",
        "event_destroy",
        "event_record",
        "event_wait",
        "event_query",
        "event_synchronize",
        "event_elapsed",
    ),
)
FEW = ("alloc", "copy_h2d", "launch_host")
VOID = ("unmap", "host_free", "event_destroy")  # they cannot fail
FAIL, SLOW, LATE, NO_MEMORY = 1, 2, 3, 4

# Uses every entry at least ten times, whatever fails, and says what it was told. Then once more without a fault.
SCENARIO = """
import ctypes, gc, sys, torch
import bringup
library, entry = ctypes.CDLL(sys.argv[1]), sys.argv[2]
names = ("devices", "streams", "events", "bytes", "pinned", "mapped", "tasks", "ranges")

def alive():
    counts = (ctypes.c_long * len(names))()
    library.fault_alive(counts)
    return dict(zip(names, counts))

def scenario(first):
    for number in range(10):  # devices that were not opened before
        torch.ones(1, device=f"chip:{first + number}")
    on = f"chip:{first}"
    for number in range(10):
        stream = torch.chip.Stream(on)
        begin, end = (torch.chip.Event(enable_timing=True) for _ in range(2))
        torch.chip.set_device(first)
        host = torch.arange(200_000.0)
        with torch.chip.stream(stream):
            begin.record()
            x = host.to(on)
            pinned = torch.ones(1000).pin_memory()
            y = pinned.to(on, non_blocking=True)
            z = (x[:1000] + y).mul_(2)
            back = torch.empty(1000).pin_memory()
            back.copy_(z, non_blocking=True)
            end.record()
        torch.chip.default_stream(on).wait_event(end)
        large = torch.full((3 << 20,), 1.0, device=on)
        other = z.to(f"chip:{first + 1}")
        large.record_stream(stream)
        stream.query(), end.query()
        end.synchronize()
        begin.elapsed_time(end)
        assert back.tolist() == [2.0 * (i + 1) for i in range(1000)], "wrong values"
        assert other.sum().item() == back.sum().item() and large.sum().item() == 3 << 20, "wrong values"
        assert (x > 5).nonzero().shape == (199_994, 1)
        del x, y, z, large, other, pinned, back
        torch.chip.synchronize()
        torch.chip.empty_cache()
        torch.chip.host_empty_cache() if hasattr(torch.chip, "host_empty_cache") else None
        torch._C._accelerator_emptyHostCache() if hasattr(torch._C, "_accelerator_emptyHostCache") else None

fresh = entry in ("open", "stream_create")  # only devices that were not used before get there
first, bad = 0, []
scenario(first)
gc.collect()
gc.freeze()  # what was imported stays: it is not looked through each time
before = alive()
for mode in map(int, sys.argv[3].split(",")):
    for call in (1, 2, 10):
        first += 10 if fresh else 0
        what = f"{entry} call {call} mode {mode}"
        library.fault_plan(entry.encode(), call, mode)
        told = []
        for attempt in (None, *range(first, first + 10)):  # what failed on a device is raised where it is waited for
            try:
                scenario(first) if attempt is None else torch.chip.synchronize(attempt)
            except Exception as error:
                told.append(str(error))
                if isinstance(error, AssertionError) or not isinstance(error, RuntimeError):
                    bad.append(f"{what}: {type(error).__name__}: {error}")
                del error
        if not library.fault_met():
            bad.append(f"{what}: was never called")
        if mode in (2, 3) and told:
            bad.append(f"{what}: only took longer, and {told}")
        said = f"call {call} of {entry} failed", "cannot be opened"
        if mode == 1 and not any(words in text for text in told for words in said):
            bad.append(f"{what}: is not told, but {told}")
        if mode == 1 and not any(words in text for text in told for words in ("scenario.py", "cannot be opened")):
            bad.append(f"{what}: has no line: {told}")
        library.fault_plan(b"", 0, 0)
        gc.collect()
        scenario(first)
        torch.chip.synchronize()
        gc.collect()
        torch.chip.empty_cache()
        torch._C._accelerator_emptyHostCache() if hasattr(torch._C, "_accelerator_emptyHostCache") else None
        lost = {name: (before[name], count) for name, count in alive().items() if count > before[name]}
        lost = {name: counts for name, counts in lost.items() if name not in ("devices", "streams")}
        if lost:
            bad.append(f"{what}: lost {lost}")
            before = alive()
print(*bad, sep="\\n")
print("alive")
"""


@pytest.fixture(scope="session")
def fault_driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    library = tmp_path_factory.mktemp("driver") / "fault.so"
    source = HERE / "fault_driver.cpp"
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-fvisibility=default", str(source), "-o", str(library)]
    subprocess.run([*command, "-lpthread"], check=True)
    return str(library)


def environment(driver: str, **more: str) -> dict[str, str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("BRINGUP_")}
    return {**plain, "BRINGUP_DRIVER": driver, "BRINGUP_CHIP": "t4", **more}


@pytest.mark.parametrize(
    "entry", [entry if entry in FEW else pytest.param(entry, marks=pytest.mark.slow) for entry in ENTRIES]
)
def test_entry_that_fails_is_slow_or_late(fault_driver: str, tmp_path: Path, entry: str) -> None:
    modes = [SLOW, LATE] if entry in VOID else [FAIL, SLOW, LATE]
    modes += [NO_MEMORY] if entry in ("alloc", "range_reserve", "range_map", "host_alloc") else []
    settings = {"PYTORCH_ALLOC_CONF": f"expandable_segments:{entry.startswith('range_')}"}
    script = tmp_path / "scenario.py"
    script.write_text(SCENARIO)
    at_once = [[mode] for mode in modes] if entry in ("open", "stream_create") else [modes]  # there are 64 devices
    for some in at_once:
        done = subprocess.run(
            [sys.executable, str(script), fault_driver, entry, ",".join(map(str, some))],
            capture_output=True,
            text=True,
            timeout=300,
            env=environment(fault_driver, BRINGUP_DEVICES="64", **settings),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout == "\nalive\n", done.stdout


SUITE = ["tests/core/test_streams.py", "tests/core/test_memory.py", "tests/core/test_errors.py"]
# These ask for what the virtual chip itself does, in processes that choose for themselves, or look at its own entries.
OWN = "not check_mode and not without_check and not fork and not past"


def run_suite(driver: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", OWN, *SUITE],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env=environment(driver, BRINGUP_DEVICES="2", BRINGUP_CHIP="edge8", **variables),
    )


@pytest.mark.slow
def test_suite_is_the_same_over_another_driver(fault_driver: str) -> None:
    done = run_suite(fault_driver)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 2, 10])
@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if not entry.startswith("range_")])
def test_suites_survive_a_fault(fault_driver: str, entry: str, call: int) -> None:
    """Some tests fail where an error comes that they did not ask for; none ends the process or hangs."""
    for mode in (SLOW, LATE) if entry in VOID else (FAIL, SLOW, LATE):
        done = run_suite(fault_driver, BRINGUP_FAULT=f"{entry}:{call}:{mode}")
        told = mode == FAIL and "injected: " in done.stdout  # 2: while tests were collected
        assert done.returncode in ((0, 1, 2) if told else (0, 1) if mode == FAIL else (0,)), done.stdout + done.stderr
