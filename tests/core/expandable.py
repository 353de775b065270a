"""Expandable segments: the allocator's pages, what they count as, and what runs over them."""

import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import bringup
from bringup.device.allocator_settings import set_allocator_settings

Run = Callable[..., "subprocess.CompletedProcess[str]"]
MIB = 1 << 20
EXPANDABLE = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.fixture(autouse=True)
def expandable() -> Iterator[None]:
    torch.chip.synchronize()
    torch.chip.empty_cache()
    set_allocator_settings("expandable_segments:True")
    yield
    torch.chip.synchronize()
    set_allocator_settings("expandable_segments:False")
    torch.chip.empty_cache()


def block(mebibytes: float) -> torch.Tensor:
    return torch.empty(int(mebibytes * MIB), dtype=torch.uint8, device="chip")


def reserved() -> float:
    return torch.chip.memory_reserved() / MIB


def test_a_segment_grows_by_pages_of_2_and_20_mebibytes() -> None:
    before, segments = reserved(), torch.chip.memory_stats()["segment.all.current"]
    first = block(30)
    assert reserved() == before + 40
    second = block(9)  # another segment of 20 MiB without the setting
    assert second.data_ptr() == first.data_ptr() + 30 * MIB and reserved() == before + 40
    third = block(12)
    assert third.data_ptr() == first.data_ptr() + 39 * MIB and reserved() == before + 60
    small = block(0.25)
    assert reserved() == before + 62 and abs(small.data_ptr() - first.data_ptr()) > 60 * MIB
    stats = torch.chip.memory_stats()
    assert stats["segment.all.current"] == segments and stats["inactive_split.all.current"] == 0
    assert "62.00 MiB" in torch.chip.memory_summary()


def test_what_remains_of_a_block_is_split_off() -> None:
    first = block(31.5)  # of 40: without the setting, a segment of 32 whose last half MiB stays unused
    assert block(0.25 + 8).data_ptr() == first.data_ptr() + int(31.5 * MIB)
    assert torch.chip.memory_stats()["allocated_bytes.large_pool.current"] == int(31.5 * MIB)


def test_free_neighbours_become_one_block_that_grows() -> None:
    before = reserved()
    first, second = block(30), block(30)
    address = first.data_ptr()
    del first, second
    third = block(70)  # 60 free and 10 more
    assert third.data_ptr() == address and reserved() == before + 80


def test_whole_pages_are_given_back_and_mapped_again_at_the_lowest_address() -> None:
    before = reserved()
    first, second, third = block(30), block(30), block(30)
    start = first.data_ptr()
    first.fill_(1)
    third.fill_(3)
    del second
    torch.chip.empty_cache()  # of the free bytes 30 to 60, one page from 40 to 60; of 90 to 100, none
    assert reserved() == before + 80
    fourth = block(25)
    assert fourth.data_ptr() == start + 30 * MIB and reserved() == before + 100
    fourth.fill_(4)
    sums = [int(tensor.sum()) / MIB for tensor in (first, third, fourth)]
    assert sums == [30, 90, 100]


def test_a_segment_without_tensors_is_given_back_whole() -> None:
    before = reserved()
    tensors = [block(15) for _ in range(5)]
    del tensors
    torch.chip.empty_cache()
    assert reserved() == before
    assert int(block(5).fill_(1).sum()) == 5 * MIB


def test_a_snapshot_has_a_segment_per_mapped_part() -> None:
    first, second, third = block(30), block(30), block(30)
    start = first.data_ptr()
    torch.chip.memory._record_memory_history(clear_history=True)
    del second
    torch.chip.empty_cache()
    fourth = block(0.001)
    snapshot = torch.chip.memory._snapshot()
    torch.chip.memory._record_memory_history(None, clear_history=True)
    large = [part for part in snapshot["segments"] if start <= part["address"] < start + 100 * MIB]
    assert [(part["address"] - start, part["total_size"]) for part in large] == [(0, 40 * MIB), (60 * MIB, 40 * MIB)]
    assert all(part["is_expandable"] for part in large)
    assert snapshot["allocator_settings"]["expandable_segments"] is True
    events = [event for event in snapshot["device_traces"][0] if event["action"].startswith("segment")]
    assert [(event["action"], event["size"]) for event in events] == [
        ("segment_unmap", 20 * MIB),
        ("segment_map", 2 * MIB),
    ]
    assert events[0]["addr"] == start + 40 * MIB and len((third, fourth)) == 2


def test_the_setting_can_change_while_tensors_live() -> None:
    first = block(30)
    address = first.data_ptr()
    del first  # cached in an expandable segment
    set_allocator_settings("expandable_segments:False")
    segments = torch.chip.memory_stats()["segment.all.current"]
    second = block(30)
    assert second.data_ptr() != address and torch.chip.memory_stats()["segment.all.current"] == segments + 1
    set_allocator_settings("expandable_segments:True")
    third = block(30)
    assert third.data_ptr() == address


def test_streams_have_segments_of_their_own() -> None:
    before = reserved()
    first = block(30)
    with torch.chip.stream(torch.chip.Stream()):
        second = block(30)
    assert reserved() == before + 80
    assert abs(first.data_ptr() - second.data_ptr()) > torch.chip.mem_get_info()[1]  # a range of 9/8 of the capacity


def test_out_of_memory_is_an_error_and_the_process_goes_on() -> None:
    room = torch.chip.mem_get_info()[0] // MIB
    alive = block(room // 2)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory") as caught:
        block(room // 2 + 40)
    assert "expandable_segments:True" not in str(caught.value)  # they are on
    del alive
    assert block(room // 2 + 40).numel() == (room // 2 + 40) * MIB


def test_pieces_between_tensors_serve_a_large_one() -> None:
    """Without the setting this is the fragmentation of `test_fragmentation`."""
    whole = block(6144)
    del whole
    small = [block(64) for _ in range(96)]
    alive = small[::2]
    del small
    large = block(4096)  # on the pages that are wholly free between the tensors alive, given back and mapped at the end
    assert large.numel() == 4096 * MIB and len(alive) == 48


def test_memory_freed_in_one_graph_is_not_used_outside_of_it() -> None:
    graph = torch.chip.CUDAGraph()
    x = torch.ones(8 * MIB, device="chip")
    x * 2 + 1
    with torch.chip.graph(graph):
        y = x * 2 + 1
    others = [torch.full((8 * MIB,), 7.0, device="chip") for _ in range(3)]
    graph.replay()
    assert y[:2].tolist() == [3, 3] and all(int(other.min()) == int(other.max()) == 7 for other in others)
    del graph, y
    torch.chip.empty_cache()


def test_threads_never_get_the_same_memory() -> None:
    wrong: list[str] = []

    def work(number: int) -> None:
        alive: list[torch.Tensor] = []
        with torch.chip.stream(torch.chip.Stream()):
            for turn in range(60):
                tensor = block((turn * 7 + number * 3) % 23 + 0.5)
                alive.append(tensor.fill_(number))
                if turn % 5 == 4:
                    torch.chip.empty_cache()
                if len(alive) > 3:
                    oldest = alive.pop(turn % 3)
                    if not bool((oldest == number).all()):
                        wrong.append(f"thread {number}, turn {turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_driver_without_ranges_says_so_once(python: Run, tmp_path: Path) -> None:
    library = tmp_path / "null.so"
    source = Path(__file__).parent / "null_driver.cpp"
    subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    done = python(
        "import torch\n"
        "held = [torch.empty(30 << 20, dtype=torch.uint8, device='chip') for _ in range(2)]\n"
        "print(torch.chip.memory_reserved() >> 20)\n",
        BRINGUP_DRIVER=str(library),
        **EXPANDABLE,
    )
    assert done.stdout.split() == ["60"], done.stderr
    assert done.stderr.count("expandable_segments has no effect: the null driver") == 1


def test_check_mode_finds_a_dereference_in_a_range(python: Run) -> None:
    done = python(
        """
import ctypes, torch
x = torch.full((30 << 20,), 5, dtype=torch.uint8, device="chip")
print(int(x.sum(dtype=torch.int64)) >> 20, int((x + 1)[7]))
ctypes.cast(x.data_ptr(), ctypes.POINTER(ctypes.c_uint8))[0]
try:
    torch.chip.synchronize()
except RuntimeError as error:
    print(error)
""",
        BRINGUP_CHECK="1",
        **EXPANDABLE,
    )
    assert done.stdout.startswith("150 6\n"), done.stderr
    assert "host code dereferenced device memory" in done.stdout and "uint8[31457280]" in done.stdout


# ---- the replay of a recording's allocations

PROGRAMS = range(4)


def mixed(seed: int) -> None:
    """Allocate and free blocks of all sizes, on two streams, with a release in between."""
    numbers = torch.Generator().manual_seed(seed)

    def drawn(most: int) -> int:
        return int(torch.randint(most, (), generator=numbers))

    streams = torch.chip.default_stream(), torch.chip.Stream()
    alive: list[torch.Tensor] = []
    for _ in range(150):
        if alive and drawn(3) == 0:
            del alive[drawn(len(alive))]
        elif drawn(40) == 0:
            torch.chip.empty_cache()
        else:
            with torch.chip.stream(streams[drawn(4) == 0]):
                alive.append(block(0.01 * drawn(80) if drawn(3) == 0 else 1 + 0.37 * drawn(90)))


@pytest.mark.parametrize("seed", PROGRAMS)
def test_the_replay_reserves_what_a_run_with_the_setting_reserves(seed: int) -> None:
    set_allocator_settings("expandable_segments:False")
    torch.chip.empty_cache()
    assert reserved() == 0, "other tests hold memory"
    with bringup.record() as trace:
        mixed(seed)
    torch.chip.empty_cache()
    set_allocator_settings("expandable_segments:True")
    torch.chip.reset_peak_memory_stats()
    mixed(seed)
    assert trace.about["expandable_reserved_bytes"][0] == torch.chip.max_memory_reserved() > 0


def test_a_recording_with_the_setting_has_no_replay() -> None:
    with bringup.record() as trace, warnings.catch_warnings():
        block(30)
    assert "expandable_reserved_bytes" not in trace.about


def test_memory_from_before_the_recording_is_not_replayed() -> None:
    set_allocator_settings("expandable_segments:False")
    first = block(30)
    with bringup.record() as trace:
        block(30)
    assert "expandable_reserved_bytes" not in trace.about and first.numel() == 30 * MIB


def test_a_release_of_nothing_is_recorded_where_memory_is_held(python: Run) -> None:
    done = python(
        """
import torch, bringup
from bringup.recording.rows import RELEASE
with bringup.record() as trace:
    x = torch.ones(8 << 20, device="chip:0")
    torch.chip.empty_cache()
columns = trace.columns
print([(int(device), int(size)) for kind, device, size in zip(columns["kind"], columns["device"], columns["bytes"])
       if kind == RELEASE])
""",
        BRINGUP_DEVICES="2",
    )
    assert done.stdout == "[(0, 0)]\n", done.stderr
