"""Device memory: isolation, capacity, the caching allocator, pinned host memory."""

import resource
import subprocess
from collections.abc import Callable

import pytest
import torch

Run = Callable[..., "subprocess.CompletedProcess[str]"]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def empty_device() -> None:
    torch.chip.synchronize()
    torch.chip.empty_cache()


def test_allocated_counts_rounded_blocks_and_returns_to_where_it_was() -> None:
    before = torch.chip.memory_allocated()
    x = torch.empty(1000, dtype=torch.uint8, device="chip")
    assert torch.chip.memory_allocated() - before == 1024  # two blocks of 512
    del x
    assert torch.chip.memory_allocated() == before


def test_freed_memory_is_cached_and_empty_cache_gives_it_back() -> None:
    x = torch.empty(64 * MIB, dtype=torch.uint8, device="chip")
    address, reserved = x.data_ptr(), torch.chip.memory_reserved()
    del x
    assert torch.chip.memory_reserved() == reserved
    assert torch.empty(64 * MIB, dtype=torch.uint8, device="chip").data_ptr() == address
    torch.chip.empty_cache()
    assert torch.chip.memory_reserved() == reserved - 64 * MIB


def test_peak_is_kept_until_reset() -> None:
    torch.chip.reset_peak_memory_stats()
    base = torch.chip.memory_allocated()
    x = torch.empty(8 * MIB, dtype=torch.uint8, device="chip")
    del x
    assert torch.chip.max_memory_allocated() - base == 8 * MIB
    torch.chip.reset_peak_memory_stats()
    assert torch.chip.max_memory_allocated() == base


def test_blocks_split_and_merge() -> None:
    whole = torch.empty(16 * MIB, dtype=torch.uint8, device="chip")
    start = whole.data_ptr()
    del whole
    halves = [torch.empty(8 * MIB, dtype=torch.uint8, device="chip") for _ in range(2)]
    assert sorted(half.data_ptr() for half in halves) == [start, start + 8 * MIB]
    del halves
    assert torch.empty(16 * MIB, dtype=torch.uint8, device="chip").data_ptr() == start


def test_accelerator_memory_functions_agree() -> None:
    x = torch.empty(MIB, device="chip")
    assert torch.accelerator.memory.memory_allocated() == torch.chip.memory_allocated() >= x.nbytes
    assert torch.accelerator.memory.memory_reserved() == torch.chip.memory_reserved()
    stats = torch.chip.memory_stats()
    assert stats["allocated_bytes.all.current"] == torch.chip.memory_allocated()
    assert stats["num_device_alloc"] > 0
    assert "Allocated memory" in torch.chip.memory_summary()
    free, total = torch.chip.mem_get_info()
    assert total == 8 << 30
    assert free == total - torch.chip.memory_reserved()


def test_out_of_memory_reports_and_the_process_goes_on() -> None:
    held = [torch.empty(1 << 28, device="chip") for _ in range(7)]
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(1 << 29, device="chip")
    text = str(caught.value)
    assert "requested 2.00 GiB" in text
    assert "allocated 7.00 GiB" in text
    assert "reserved 7.00 GiB" in text
    assert "capacity 8.00 GiB" in text
    assert text.count("1.00 GiB  float32[268435456] by aten::empty  tests/core/test_memory.py:") == 5
    held.clear()
    assert torch.ones(1 << 29, device="chip").sum().item() == 1 << 29


def test_out_of_memory_inside_an_operator_leaves_the_device_usable() -> None:
    x = torch.empty(1 << 29, device="chip")  # 2 GiB
    y = torch.empty(5 << 28, device="chip")  # 5 GiB
    with pytest.raises(torch.OutOfMemoryError, match="aten::add"):
        x + 1
    del y
    assert (x.fill_(1) + 1)[-1].item() == 2


def test_memory_fraction_limits_the_process(python: Run) -> None:
    done = python(
        """
import torch
torch.chip.set_per_process_memory_fraction(0.25)
try:
    torch.empty(3 << 30, dtype=torch.uint8, device="chip")
except torch.OutOfMemoryError as error:
    print(error)
"""
    )
    assert "limited by the program to 2.00 GiB" in done.stdout, done.stderr


def test_record_stream_keeps_memory_until_the_other_stream_is_done() -> None:
    side = torch.chip.Stream()
    a = torch.randn(1500, 1500, device="chip")
    torch.chip.synchronize()
    expected = (a.cpu() @ a.cpu()).sum()
    with torch.chip.stream(side):
        slow = a
        for _ in range(3):
            slow = a @ a
        result = a @ a
    a.record_stream(side)
    address = a.data_ptr()
    del a, slow
    b = torch.empty(1500, 1500, device="chip").fill_(float("nan"))  # same block, default stream: has to wait for side
    assert b.data_ptr() == address
    side.synchronize()
    torch.testing.assert_close(result.sum().cpu(), expected, rtol=1e-3, atol=1.0)


def test_storage_resize_keeps_the_first_bytes() -> None:
    x = torch.arange(4, device="chip")
    x.untyped_storage().resize_(64)
    assert x.cpu().tolist() == [0, 1, 2, 3]
    x.resize_(6)
    assert x[:4].cpu().tolist() == [0, 1, 2, 3]


def test_pinned_memory_round_trip() -> None:
    x = torch.randn(1000).pin_memory()
    assert x.is_pinned()
    assert not torch.randn(3).is_pinned()
    y = x.to("chip", non_blocking=True)
    z = torch.empty(1000, pin_memory=True)
    z.copy_(y, non_blocking=True)
    torch.chip.synchronize()
    assert torch.equal(x, z)


def test_pinned_memory_is_safe_when_freed_under_a_copy() -> None:
    results = []
    for value in range(50):
        host = torch.full((1 << 18,), float(value)).pin_memory()
        results.append(host.to("chip", non_blocking=True))
        del host
    for value, result in enumerate(results):
        assert result.min().item() == result.max().item() == value


def test_check_mode_catches_a_host_dereference(python: Run) -> None:
    done = python(
        """
import ctypes
import torch

x = torch.full((4,), 7, device="chip")
torch.chip.synchronize()
ctypes.string_at(x.data_ptr(), 8)
try:
    torch.chip.synchronize()
except RuntimeError as error:
    print(error)
print((x + 1).sum().item())
torch.manual_seed(0)
model = torch.nn.Conv2d(3, 4, 3).to("chip")
model(torch.randn(2, 3, 8, 8, device="chip")).sum().backward()
print(model.weight.grad.shape)
""",
        BRINGUP_CHECK="1",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("chip:0: host code dereferenced device memory at 0x")
    assert "int64[4]" in lines[0] and "program.py:5" in lines[0]
    assert lines[1:] == ["32", "torch.Size([4, 3, 3, 3])"]


def test_without_check_mode_freed_segments_are_not_readable(python: Run) -> None:
    done = python(
        """
import ctypes
import torch
x = torch.ones(1 << 22, device="chip")
address = x.data_ptr()
del x
torch.chip.empty_cache()
ctypes.string_at(address, 8)
"""
    )
    assert done.returncode < 0  # the operating system's own fault: nothing was read


BESIDE_THREADS = """
import threading, time, torch
torch.ones(2, device="chip")
over = threading.Event()
wrong = []

def compute():
    stream = torch.chip.Stream()
    with torch.chip.stream(stream):
        while not over.is_set():
            found = [torch.full((11 << 20,), 1, dtype=torch.uint8, device="chip").add_(1)[-1] for _ in range(8)]
            if any(value.item() != 2 for value in found):
                wrong.append(1)

threads = [threading.Thread(target=compute) for _ in range(3)]
for thread in threads: thread.start()
end = time.monotonic() + 4
while time.monotonic() < end:
    {0}
over.set()
for thread in threads: thread.join()
torch.chip.synchronize()
print("alive", len(wrong))
"""


@pytest.mark.parametrize(
    "call",
    [
        "torch.chip.empty_cache()",
        """
    try:
        torch.empty(9 << 30, dtype=torch.uint8, device="chip")
    except torch.OutOfMemoryError:
        pass""",
    ],
    ids=["empty_cache", "out of memory"],
)
def test_memory_goes_back_beside_threads_that_compute(python: Run, call: str) -> None:
    done = python(BESIDE_THREADS.format(call))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive 0\n"


def test_memory_that_another_thread_is_giving_back_is_no_out_of_memory(python: Run) -> None:
    done = python(
        """
import threading, torch
GIB = 1 << 30
def take(n):
    for _ in range(60):
        held = torch.empty(3 * GIB + n, dtype=torch.uint8, device="chip")
        del held
        torch.chip.empty_cache()
failed = []
def guarded(n):
    try: take(n)
    except torch.OutOfMemoryError as error: failed.append(str(error))
threads = [threading.Thread(target=guarded, args=(n,)) for n in (1, 2)]  # 6 of 8 GiB at once
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(failed), torch.chip.memory_reserved())
""",
        BRINGUP_CHIP="edge8",
    )
    assert done.stdout == "0 0\n", done.stdout + done.stderr


def test_split_block_waits_for_what_the_whole_one_was_used_for() -> None:
    side = torch.chip.Stream()
    x = torch.zeros(32 * MIB, dtype=torch.uint8, device="chip")
    torch.chip.synchronize()
    with torch.chip.stream(side):
        for _ in range(5):
            x.add_(1)
    x.record_stream(side)
    del x
    parts = [torch.full((4 * MIB,), number, dtype=torch.uint8, device="chip") for number in range(8)]
    torch.chip.synchronize()
    assert all((part == number).all().item() for number, part in enumerate(parts))


def test_views_that_lie_far_apart_are_not_tried_with_all_that_is_between_them() -> None:
    whole = torch.empty(1 << 30, dtype=torch.uint8, device="chip")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (whole[:4] + whole[-4:]).cpu()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10  # KiB
