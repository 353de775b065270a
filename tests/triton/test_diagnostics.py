"""Bugs planted in kernels, each found at its line, beside kernels that look like them and are right."""

import json
import re
import subprocess
import textwrap
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import bringup
from bringup.recording import sanitize
from tests.conftest import ROOT

pytest.importorskip("triton", reason="needs bringup[triton]")
CHIP = "chip"

HEADER = """
import torch, triton
import triton.language as tl
"""


def run(tmp_path: Path, source: str) -> None:
    """Define a kernel in a file of its own and run what is beside it."""
    path = tmp_path / "k.py"
    path.write_text(HEADER.strip() + "\n" + textwrap.dedent(source).strip() + "\n")
    code = compile(path.read_text(), str(path), "exec")
    import linecache

    linecache.checkcache(str(path))
    exec(code, {"__name__": "k"})
    torch.chip.synchronize()


def line_with(tmp_path: Path, word: str) -> int:
    lines = (tmp_path / "k.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if word in line)


KERNEL = """
@triton.jit
def k(x, o, n, B: tl.constexpr):
    p = tl.program_id(0)
    i = p * B + tl.arange(0, B)
    {body}
x = torch.arange(100, dtype=torch.float32, device="chip")
o = torch.zeros(100, device="chip")
k[({grid},)](x, o, 100, B=32)
"""

OUT_OF_BOUNDS = {
    "no mask on the last block": ("tl.store(o + i, tl.load(x + i))  # here", 4),
    "store without the load's mask": ("a = tl.load(x + i, mask=i < n)\n    tl.store(o + i, a)  # here", 4),
    "one element too far": ("tl.store(o + i, tl.load(x + i + 1, mask=i < n), mask=i < n)  # here", 4),
    "before the start": ("tl.store(o + i, tl.load(x + i - 1, mask=i < n), mask=i < n)  # here", 4),
    "mask with <=": ("tl.store(o + i, tl.load(x + i, mask=i <= n), mask=i < n)  # here", 4),
    "stride of another tensor": ("tl.store(o + i, tl.load(x + i * 2, mask=i < n), mask=i < n)  # here", 4),
    "grid too large": ("tl.store(o + p, 1.0)  # here", 101),
    "atomic past the end": ("tl.atomic_add(o + i, 1.0)  # here", 4),
    "index from memory": (
        "j = tl.load(x + i, mask=i < n).to(tl.int32) * 3\n    "
        "tl.store(o + i, tl.load(x + j, mask=i < n), mask=i < n)  # here",
        4,
    ),
}


BEYOND = {
    "load without a mask": ("tl.store(o + i, tl.load(x + i), mask=i < n)  # here", 100),
    "store": ("tl.store(o + i, 1.0)  # here", 100),
    "mask that is too wide": ("tl.store(o + i, tl.load(x + i, mask=i < n + 5), mask=i < n)  # here", 100),
    "atomic": ("tl.atomic_add(o + i, 1.0, mask=i <= n)  # here", 100),
    "columns in reverse": ("tl.store(o + 99 - i, 1.0)  # here", -1),
}


@pytest.mark.parametrize("name", BEYOND)
def test_out_of_bounds_in_a_dry_run_names_the_element_and_has_no_price(tmp_path: Path, name: str) -> None:
    body, element = BEYOND[name]
    message = rf"out of bounds: argument '[xo]' at element {element}, .* program \(3, 0, 0\)"
    with pytest.raises(RuntimeError, match=message) as caught, bringup.record() as trace, bringup.dry():
        run(tmp_path, KERNEL.format(body=body, grid=4))
    assert f"k.py:{line_with(tmp_path, '# here')}" in str(caught.value)
    assert not [signature for signature in trace.signatures if signature.op == "triton::k"]


WIDE = """
@triton.jit
def k(x, stride, B: tl.constexpr):
    at = tl.program_id(0) * stride + tl.arange(0, B)
    tl.store(x + at, tl.load(x + at) * 2)
x = torch.empty(3, 1_200_000_000, dtype=torch.int8, device="chip")
k[(3,)](x, 1_200_000_000, B=1024)
"""


def test_copy_of_a_file_has_its_own_lines(tmp_path: Path) -> None:
    source = """
        @triton.jit
        def reads_beyond_its_end(x, B: tl.constexpr):
            tl.store(x + tl.arange(0, B), tl.load(x + tl.arange(0, B)) + 1)  # here

        reads_beyond_its_end[(1,)](torch.zeros(10, device="chip"), B=16)
        """
    for folder in (tmp_path / "project", tmp_path / "copy"):  # Triton's cache has the kernel of the first for both
        folder.mkdir()
        with pytest.raises(RuntimeError) as error:
            run(folder, source)
        assert f"{folder / 'k.py'}:{line_with(folder, '# here')}" in str(error.value)


def test_offset_beyond_32_bits_is_named_as_the_kernel_computes_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught, bringup.dry():
        run(tmp_path, WIDE)
    first = 2 * 1_200_000_000 - 2**32
    assert f"element {first}, its memory has elements 0 to 3599999999 (int8), program (2, 0, 0)" in str(caught.value)


def test_offset_in_a_large_allocation_is_in_order(tmp_path: Path) -> None:
    with bringup.record() as trace, bringup.dry():
        run(tmp_path, WIDE.replace("(3,)", "(2,)"))
    (seconds,) = [row.seconds for row in bringup.price(trace, chip="a100-sxm-80").kernels]
    assert seconds < 1e-5


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_out_of_bounds_raises_with_argument_element_program_and_lines(tmp_path: Path, name: str) -> None:
    body, grid = OUT_OF_BOUNDS[name]
    with pytest.raises(RuntimeError, match=r"out of bounds: argument '[xo]' at element -?\d+") as caught:
        run(tmp_path, KERNEL.format(body=body, grid=grid))
    message = str(caught.value)
    assert f"k.py:{line_with(tmp_path, '# here')}" in message, message
    assert re.search(r"program \(\d+, 0, 0\) of grid \(\d+, 1, 1\)", message), message
    assert f"launched at {tmp_path}/k.py:{line_with(tmp_path, 'k[(')}" in message, message
    assert torch.ones(2, device=CHIP).sum().item() == 2  # the process lives


class Refused(Exception):
    """An error whose text is not its only argument."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(code, what)
        self.code = code


ADDS = """
@triton.jit
def k(x, o, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + i, tl.load(x + i, mask=i < n) + 1, mask=i < n)

def launch(size):
    x, o = torch.empty(2, size, device="chip")
    k[(triton.cdiv(size, 64),)](x, o, size, B=64)  # here
    return o
"""
SIZES = {"in the user's thread": 100, "on the worker": 1 << 16}
Failing = Callable[[BaseException, int], torch.Tensor]


@pytest.fixture
def launch_failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Failing:
    """Launch a kernel of so many elements that raises the error."""
    from bringup.triton.executor import Kernel

    path = tmp_path / "k.py"
    path.write_text(HEADER.strip() + "\n" + ADDS)
    names: dict[str, Any] = {"__name__": "k"}
    exec(compile(path.read_text(), str(path), "exec"), names)

    errors: deque[BaseException] = deque()  # a launch may run after the next one was made

    def run(kernel: object, grid: object, arguments: object, memory: Any) -> None:
        raise errors.popleft()

    monkeypatch.setattr(Kernel, "run", run)

    def launch(error: BaseException, size: int) -> torch.Tensor:
        errors.append(error)
        o: torch.Tensor = names["launch"](size)
        return o

    return launch


def synchronize_in_a_thread(_: torch.Tensor) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(torch.chip.synchronize).result()


def synchronize_in_backward(_: torch.Tensor) -> None:
    x = torch.ones(3, device=CHIP, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: torch.chip.synchronize())
    y.sum().backward()


def synchronize_in_a_recording(_: torch.Tensor) -> None:
    with bringup.record():
        torch.chip.synchronize()


def synchronize_under_a_mode(o: torch.Tensor) -> None:
    with FlopCounterMode(display=False):
        o.nonzero()


WAITS: dict[str, Callable[[torch.Tensor], object]] = {
    "synchronize": lambda o: torch.chip.synchronize(),
    "stream": lambda o: torch.chip.current_stream().synchronize(),
    "query": lambda o: [torch.chip.current_stream().query() for _ in range(100_000)],
    "item": lambda o: o[0].item(),
    "download": lambda o: o.cpu(),
    "upload": lambda o: torch.zeros(1 << 16, device=CHIP).copy_(torch.zeros(1 << 16)),
    "nonzero": lambda o: o.nonzero(),
    "print": str,
    "thread": synchronize_in_a_thread,
    "backward": synchronize_in_backward,
    "recording": synchronize_in_a_recording,
    "mode": synchronize_under_a_mode,
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_error_keeps_its_type_and_gets_the_launching_line(
    launch_failing: Failing, tmp_path: Path, wait: Callable[[torch.Tensor], object], size: int
) -> None:
    o = launch_failing(MemoryError("no room for a tile"), size)
    with pytest.raises(MemoryError) as caught:
        wait(o)
    where = f"kernel k, launched at {tmp_path}/k.py:{line_with(tmp_path, '# here')}"
    assert str(caught.value).startswith("no room for a tile") and where in str(caught.value)
    traceback.clear_frames(caught.tb)  # torch turns off torch.func while the frame that prints a tensor lives
    torch.chip.synchronize()
    assert torch.ones(2, device=CHIP).sum().item() == 2


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_error_inside_a_recording_keeps_its_type(launch_failing: Failing, size: int) -> None:
    with pytest.raises(OSError, match="gone"), bringup.record() as trace:
        launch_failing(FileNotFoundError(2, "gone"), size)
        torch.chip.synchronize()
    assert "triton::k" not in [signature.op for signature in trace.signatures], "what failed has no price"
    assert trace.launches == 0 or "triton::k" not in trace.table()["op"]


def test_error_keeps_its_attributes_and_gets_a_note(launch_failing: Failing) -> None:
    launch_failing(Refused(7, "no"), 100)
    launch_failing(ValueError("later"), 100)
    with pytest.raises(Refused) as caught:
        torch.chip.synchronize()
    assert caught.value.args == (7, "no") and caught.value.code == 7
    (note,) = caught.value.__notes__
    assert note.startswith("kernel k, launched at ") and note.endswith("and 1 other launch failed")


def test_error_holds_no_memory_of_the_launch(launch_failing: Failing) -> None:
    from bringup.device import raised

    for _ in range(20):
        launch_failing(Refused(7, "no"), 100)
        with pytest.raises(Refused) as caught:
            torch.chip.synchronize()
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    held = [
        value for frame in frames if "/bringup/triton/" in frame.f_code.co_filename for value in frame.f_locals.values()
    ]
    assert frames and not [value for value in held if isinstance(value, torch.Tensor | list)]
    assert len(raised._errors) <= 2  # the core drops them


def test_error_that_the_program_handles_keeps_its_variables(launch_failing: Failing) -> None:
    def fail() -> None:
        mine = 7
        raise LookupError(mine)

    try:
        fail()
    except LookupError as error:
        launch_failing(Refused(7, "no"), 100)
        with pytest.raises(Refused):
            torch.chip.synchronize()
        assert error.__traceback__ is not None and error.__traceback__.tb_next is not None
        assert error.__traceback__.tb_next.tb_frame.f_locals == {"mine": 7}


def test_interrupted_kernel_leaves_no_half_raised_error(launch_failing: Failing) -> None:
    launch_failing(KeyboardInterrupt(), 100)
    with pytest.raises(KeyboardInterrupt):
        torch.chip.synchronize()


NOBODY_WAITS = """
from bringup.triton.executor import Kernel

def run(*arguments):
    raise LookupError("lost")

Kernel.run = run
outputs = [launch(size) for size in (100, 1 << 16)]
print("over")
"""


def test_error_that_nobody_waits_for_is_told_at_exit(python) -> None:
    program = HEADER.strip() + "\n" + ADDS + NOBODY_WAITS
    done = python(program)
    assert done.returncode == 0 and done.stdout == "over\n", done.stderr
    first, second, third = done.stderr.splitlines()
    assert first == "bringup: a launch failed and nothing waited for it: LookupError: lost"
    assert second.startswith("  kernel k, launched at program.py:") and third == "  and 1 other launch failed"


IN_BOUNDS = {
    "mask": ("tl.store(o + i, tl.load(x + i, mask=i < n), mask=i < n)", 4),
    "clamped index": ("j = tl.minimum(i, n - 1)\n    tl.store(o + j, tl.load(x + j))", 4),
    "remainder": ("tl.store(o + i % n, tl.load(x + i % n))", 5),
    "masked lanes before the start": (
        "tl.store(o + i, tl.load(x + i - 1, mask=(i > 0) & (i < n), other=0.0), mask=i < n)",
        4,
    ),
    "an early return": ("if p > 2:\n        return\n    tl.store(o + i, tl.load(x + i))", 9),
    "an empty launch's mask": ("tl.store(o + i, 1.0, mask=i < 0)", 4),
    "a branch around the edge": ("if p < 3:\n        tl.store(o + i, tl.load(x + i))", 4),
    "atomics to one place": ("tl.atomic_add(o, tl.sum(tl.load(x + i, mask=i < n, other=0.0)))", 4),
}


@pytest.mark.parametrize("name", IN_BOUNDS)
def test_what_stays_in_bounds_is_silent(tmp_path: Path, name: str) -> None:
    body, grid = IN_BOUNDS[name]
    run(tmp_path, KERNEL.format(body=body, grid=grid))


def findings(tmp_path: Path, source: str) -> list[sanitize.Finding]:
    with sanitize.watched(), bringup.record() as trace:
        run(tmp_path, source)
    return [*sanitize.findings(trace, ("race", "init")), *sanitize.touched()]


RACES = {
    "blocks overlap": ("j = p * (B - 1) + tl.arange(0, B)\n    tl.store(o + j, tl.load(x + j) + p)  # here", 3),
    "a sum without an atomic": ("tl.store(o, tl.load(o) + tl.sum(tl.load(x + i)))  # here", 3),
    "all write one place": ("tl.store(o, p)  # here", 3),
    "neighbours read what is written": (
        "a = tl.load(x + i + 1)\n    tl.store(x + i, a)  # here",
        3,
    ),
}


@pytest.mark.parametrize("name", RACES)
def test_race_between_programs_is_found_with_both_lines(tmp_path: Path, name: str) -> None:
    body, grid = RACES[name]
    found = findings(tmp_path, KERNEL.format(body=body, grid=grid))
    assert found and all(item.check == "race" for item in found)
    assert any(item.line.endswith(f"k.py:{line_with(tmp_path, '# here')}") for item in found), found
    assert all("programs have no order" in item.what for item in found)


LOCK = """
@triton.jit
def k(x, o, lock, B: tl.constexpr):
    p = tl.program_id(0)
    i = tl.arange(0, B)
    a = tl.load(x + p * B + i)
    {body}
x, o = torch.arange(96, dtype=torch.float32, device="chip"), torch.zeros(100, device="chip")
lock = torch.zeros(4, dtype=torch.int32, device="chip")
k[(3,)](x, o, lock, B=32)
"""
ACQUIRE = "while tl.atomic_cas(lock, 0, 1) == 1:\n        pass\n    "
TAKE = "while tl.atomic_xchg(lock, 1) == 1:\n        pass\n    "
ADD = "tl.store(o + i, tl.load(o + i) + a)  # here\n    "
NO_BARRIER = {
    "compare and swap": ACQUIRE + ADD + "tl.atomic_xchg(lock, 0)  # and here",
    "exchange": TAKE + ADD + "tl.atomic_xchg(lock, 0)  # and here",
    "added back": "while tl.atomic_cas(lock, 0, 1) == 1:\n        pass\n    "
    + ADD
    + "tl.atomic_add(lock, -1)  # and here",
    "barrier too early": ACQUIRE + "tl.debug_barrier()\n    " + ADD + "tl.atomic_xchg(lock, 0)  # and here",
    "a flag for the next program": (
        "while tl.atomic_cas(lock, p, p) != p:\n        pass\n    " + ADD + "tl.atomic_xchg(lock, p + 1)  # and here"
    ),
    "the last writer": (
        ACQUIRE + "b = tl.load(o + i)\n    if p == 2:\n        tl.store(o + i, a + b)  # here\n    "
        "tl.atomic_xchg(lock, 0)  # and here"
    ),
}
BARRIER = {
    "before the release": ACQUIRE + ADD + "tl.debug_barrier()\n    tl.atomic_xchg(lock, 0)",
    "before the flag": (
        "while tl.atomic_cas(lock, p, p) != p:\n        pass\n    "
        + ADD
        + "tl.debug_barrier()\n    tl.atomic_xchg(lock, p + 1)"
    ),
    "a single element needs none": ACQUIRE + "tl.store(o, tl.load(o) + tl.sum(a))\n    tl.atomic_xchg(lock, 0)",
    "own elements beside the lock": (
        "tl.store(x + p * B + i, a + 1)\n    " + ACQUIRE + "tl.store(o, p)\n    tl.atomic_xchg(lock, 0)"
    ),
    "a counter that nobody waits for": (
        ACQUIRE + ADD + "tl.atomic_add(lock + 1, 1)\n    tl.debug_barrier()\n    tl.atomic_xchg(lock, 0)"
    ),
    "atomics on elements": ACQUIRE + "tl.atomic_add(o + i, a)\n    tl.debug_barrier()\n    tl.atomic_xchg(lock, 0)",
}


@pytest.mark.parametrize("name", NO_BARRIER)
def test_lock_released_before_a_barrier_is_a_race_with_both_lines(tmp_path: Path, name: str) -> None:
    (race,) = findings(tmp_path, LOCK.format(body=NO_BARRIER[name]))
    assert race.check == "race" and "tl.debug_barrier()" in race.advice
    assert race.line.endswith(f"k.py:{line_with(tmp_path, '# here')}")
    assert race.other.endswith(f"k.py:{line_with(tmp_path, '# and here')}")


@pytest.mark.parametrize("name", BARRIER)
def test_lock_released_after_a_barrier_is_silent(tmp_path: Path, name: str) -> None:
    assert findings(tmp_path, LOCK.format(body=BARRIER[name])) == []


INIT = {
    "atomics on empty memory": "tl.atomic_add(o + i, tl.load(x + i))  # here",
    "added to empty memory": "tl.store(o + i, tl.load(o + i) + tl.load(x + i))  # here",
}


@pytest.mark.parametrize("name", INIT)
def test_read_of_memory_that_nobody_wrote_is_found(tmp_path: Path, name: str) -> None:
    source = KERNEL.format(body=INIT[name], grid=3).replace("torch.zeros(100", "torch.empty(100")
    (item,) = findings(tmp_path, source)
    assert item.check == "init" and f"k.py:{line_with(tmp_path, '# here')}" in item.what
    assert item.other.endswith(f"k.py:{line_with(tmp_path, 'torch.empty')}")


PARTLY = """
@triton.jit
def k(x, o, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + i, tl.load(x + i, mask=i < n, other=0.0), mask=i < n)  # here
x = torch.empty(100, device="chip")  # and here
x[:60] = 1
o = torch.zeros(100, device="chip")
k[(4,)](x, o, {n}, B=32)
"""


def test_kernel_that_reads_beyond_what_is_written_is_found(tmp_path: Path) -> None:
    (item,) = findings(tmp_path, PARTLY.format(n=100))
    assert item.check == "init" and "elements 60 to 99 of float32[100]" in item.what
    assert f"k.py:{line_with(tmp_path, '# here')} reads" in item.what
    assert item.other.endswith(f"k.py:{line_with(tmp_path, '# and here')}")


def test_kernel_that_reads_what_is_written_is_silent(tmp_path: Path) -> None:
    assert findings(tmp_path, PARTLY.format(n=60)) == []


def test_kernel_that_writes_all_pieces_is_silent(tmp_path: Path) -> None:
    source = (
        PARTLY.format(n=60).replace("torch.zeros", "torch.empty")
        + "k[(4,)](o, torch.zeros(60, device='chip'), 60, B=32)\n"
    )
    assert findings(tmp_path, source) == []
    (item,) = findings(tmp_path, source + "print(o.sum().item())  # sum\n")
    assert item.line.endswith(f"k.py:{line_with(tmp_path, '# sum')}") and "elements 60 to 99" in item.what


TUNED = """
@triton.autotune([triton.Config({{"B": b}}) for b in (32, 64)], key=["n"]{more})
@triton.jit
def k(x, o, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    a = tl.load(x + i, mask=i < n, other=0.0)
    {body}
x, o = torch.ones(100, device="chip"), torch.zeros(100, device="chip")
k[lambda meta: (triton.cdiv(100, meta["B"]),)](x, o, 100)  # and here
"""
CHANGES = {
    "a sum of atomics": ("tl.atomic_add(o, tl.sum(a))  # here", "o"),
    "added in place": ("tl.store(o + i, tl.load(o + i, mask=i < n) + a, mask=i < n)  # here", "o"),
    "doubled in place": ("tl.store(x + i, tl.load(x + i, mask=i < n) * 2, mask=i < n)  # here", "x"),
}
RESTORED = {
    "reset": ("tl.atomic_add(o, tl.sum(a))", ', reset_to_zero=["o"]'),
    "restored": ("tl.store(o + i, tl.load(o + i, mask=i < n) + a, mask=i < n)", ', restore_value=["o"]'),
    "reset by a hook": ("tl.atomic_add(o, tl.sum(a))", ', pre_hook=lambda args, **_: args["o"].zero_()'),
    "only written": ("tl.store(o + i, a, mask=i < n)", ""),
    "the same once more": ("tl.store(x + i, tl.maximum(a - 3, 0.0) * 0 + 1, mask=i < n)", ""),
    "clamped in place": ("tl.store(x + i, tl.minimum(a, 0.5), mask=i < n)", ""),
    "a maximum of atomics": ("tl.atomic_max(o, tl.max(a))", ""),
}


@pytest.mark.parametrize("name", CHANGES)
def test_tuned_kernel_that_changes_what_it_reads_is_found(tmp_path: Path, name: str) -> None:
    body, argument = CHANGES[name]
    (item,) = findings(tmp_path, TUNED.format(body=body, more=""))
    assert f"changes {argument!r}, which it reads at" in item.what and f"reset_to_zero=[{argument!r}]" in item.advice
    assert item.line.endswith(f"k.py:{line_with(tmp_path, '# and here')}"), item


def test_first_try_of_a_process_is_watched(
    tmp_path: Path, bringup_run: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    (tmp_path / "first.py").write_text(HEADER + TUNED.format(body="tl.atomic_add(o, tl.sum(a))", more=""))
    done = bringup_run("--chip=t4", "--sanitize=race", "first.py")
    assert done.returncode == 1 and "in every try of autotune" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", RESTORED)
def test_tuned_kernel_whose_tries_leave_no_trace_is_silent(tmp_path: Path, name: str) -> None:
    body, more = RESTORED[name]
    assert findings(tmp_path, TUNED.format(body=body, more=more)) == []


LOSER = """
@triton.autotune([triton.Config({"B": b}) for b in (16, 64)], key=["n"])
@triton.jit
def k(o, n, B: tl.constexpr):
    tl.store(o + tl.arange(0, B), 1.0)
o = torch.empty(64, device="chip")  # and here
k[(1,)](o, 64)
assert k.best_config.kwargs == {"B": 16}
print(o[:16].sum().item())
"""


def test_what_only_a_losing_configuration_wrote_is_unwritten(tmp_path: Path) -> None:
    assert findings(tmp_path, LOSER) == []
    (item,) = findings(tmp_path, LOSER + "print(o.sum().item())")
    assert item.check == "init" and "elements 16 to 63 of float32[64]" in item.what
    assert item.other.endswith(f"k.py:{line_with(tmp_path, '# and here')}")


NO_FINDING = {
    "own elements": "tl.store(o + i, tl.load(x + i))",
    "in place": "tl.store(x + i, tl.load(x + i) * 2)",
    "atomics": "tl.atomic_add(o + i % 7, 1.0)",
    "all write the same value": "tl.store(o, 1.0)",
    "written, then read back": "tl.store(o + i, 1.0)\n    tl.debug_barrier()\n    tl.store(x + i, tl.load(o + i))",
    "all read one place": "tl.store(o + i, tl.load(x) + tl.load(x + i))",
    "a lock": (
        "while tl.atomic_cas(o + 99, 0.0, 1.0) == 1.0:\n        pass\n"
        "    tl.store(o, tl.load(o) + tl.sum(tl.load(x + i)))\n    tl.atomic_xchg(o + 99, 0.0)"
    ),
}


def test_memory_reached_by_addresses_is_checked_with_the_rest(tmp_path: Path) -> None:
    source = """
    @triton.jit
    def k(table, o, B: tl.constexpr):
        x = tl.load(table + tl.program_id(0)).to(tl.pointer_type(tl.float32))
        i = tl.arange(0, B)
        tl.store(o + tl.program_id(0) * B + i, tl.load(x + i))
    blocks = [torch.empty(32, device="chip") for _ in range(3)]
    for block in blocks:
        block.fill_(2.0)
    o = torch.zeros(96, device="chip")
    k[(3,)](torch.tensor([block.data_ptr() for block in blocks]).to("chip"), o, B=32)
    assert o.sum().item() == 192
    """
    assert findings(tmp_path, textwrap.dedent(source)) == []


@pytest.mark.parametrize("name", NO_FINDING)
def test_what_has_an_order_is_silent(tmp_path: Path, name: str) -> None:
    assert findings(tmp_path, KERNEL.format(body=NO_FINDING[name], grid=3)) == []


def test_device_assert_names_program_and_line(tmp_path: Path) -> None:
    body = 'tl.device_assert(tl.load(x + i) < 50, "too large")  # here'
    with pytest.raises(RuntimeError, match="device_assert failed: too large, program \\(1, 0, 0\\)") as caught:
        run(tmp_path, KERNEL.format(body=body, grid=3).replace("B=32)", "B=32, debug=True)"))
    assert f"k.py:{line_with(tmp_path, '# here')}" in str(caught.value)


def test_tensor_of_the_host_is_refused_at_once(tmp_path: Path) -> None:
    source = KERNEL.format(body="tl.store(o + i, tl.load(x + i))", grid=3).replace(
        'dtype=torch.float32, device="chip"', ""
    )
    with pytest.raises(ValueError, match="argument 'x' is on cpu, move it to the chip"):
        run(tmp_path, source)


def test_tensors_of_two_chips_are_refused(tmp_path: Path) -> None:
    source = KERNEL.format(body="tl.store(o + i, tl.load(x + i))", grid=3).replace(
        "100, device=", "100, device='chip:1' or "
    )
    with pytest.raises(bringup.BringupError, match="tensors on chip:0 and chip:1: argument 'o'"):
        run(tmp_path, source)


def test_kernel_runs_on_the_current_stream_and_on_another_chip() -> None:
    from tests.triton import tutorials

    x = torch.rand(5000, device="chip:1")
    stream = torch.chip.Stream(device="chip:1")
    stream.wait_stream(torch.chip.current_stream("chip:1"))  # which may still draw the numbers
    with bringup.record() as trace, stream:
        y = tutorials.add(x, x)
    stream.synchronize()
    assert torch.equal(y.cpu(), x.cpu() * 2)
    launched = trace.columns["kind"] == 0
    assert trace.columns["device"][launched].tolist() == [1] and trace.columns["stream"][launched][0] != 0


def test_unsupported_operation_is_refused_with_its_line(tmp_path: Path) -> None:
    body = 'a = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [tl.load(x + i)], tl.float32, True, 1)  # here'
    with pytest.raises(bringup.BringupError, match="does not support this operation of Triton") as caught:
        run(tmp_path, KERNEL.format(body=body + "\n    tl.store(o + i, a)", grid=3))
    assert f"k.py:{line_with(tmp_path, '# here')}" in str(caught.value)


def test_atomics_of_bits_need_integers(tmp_path: Path) -> None:
    with pytest.raises(bringup.BringupError, match="atomic or needs integers, got f32, used at") as caught:
        run(tmp_path, KERNEL.format(body="tl.atomic_or(o + i, 1.0, mask=i < n)  # here", grid=3))
    assert f"k.py:{line_with(tmp_path, '# here')}" in str(caught.value)


def test_lock_that_is_never_free_is_noticed(tmp_path: Path) -> None:
    body = "while tl.atomic_cas(o, 1.0, 2.0) != 1.0:\n        pass\n    tl.store(o + 1, 1.0)"
    with pytest.raises(RuntimeError, match="a loop spins for ever"):
        run(tmp_path, KERNEL.format(body=body, grid=2))


def chip_file(tmp_path: Path, limits: str) -> Path:
    from bringup.machine.files import CHIPS

    text = (CHIPS / "edge8.toml").read_text()
    text = re.sub(r"\[scratchpad\]\nkib_per_core = [\d.]+", "[scratchpad]\nkib_per_core = 16", text)
    path = tmp_path / "small.toml"
    path.write_text(text.replace("[numerics]", f"[kernels]\nlimits = {json.dumps(limits)}\ngrid = [64]\n\n[numerics]"))
    return path


LIMITS = """
import torch, bringup, sys
sys.path.insert(0, ROOT)
bringup.use(CHIP)
from tests.triton import tutorials
a = torch.randn(64, 64, device="chip")
try:
    tutorials.matmul(a, a, blocks=(64, 64, 32))
except Exception as error:
    print(type(error).__mro__[1].__name__, error)
try:
    tutorials.add(torch.ones(70000, device="chip"), torch.ones(70000, device="chip"))
except Exception as error:
    print(type(error).__name__, error)
"""


def limits(tmp_path: Path, level: str) -> str:
    return LIMITS.replace("ROOT", repr(str(ROOT))).replace("CHIP", repr(str(chip_file(tmp_path, level))))


def test_kernel_beyond_the_chips_limits_says_need_limit_and_tiles(tmp_path: Path, python) -> None:
    program = limits(tmp_path, "error")
    done = python(program)
    assert "OutOfResources matmul_kernel needs" in done.stdout, done.stderr
    assert "small has 16 KiB per core: choose smaller blocks" in done.stdout and "tensor<64x64xf32>" in done.stdout
    assert (
        "BringupError add_kernel is launched with a grid of (69, 1, 1); small takes at most 64 programs" in done.stdout
    )


def test_limits_as_warnings_let_the_kernel_run(tmp_path: Path, python) -> None:
    done = python(limits(tmp_path, "warning"))
    assert done.stdout == "" and done.stderr.count("KernelLimitWarning") == 2, done.stderr
