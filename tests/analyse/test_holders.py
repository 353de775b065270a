"""What expandable segments would change, in the summary of a recording."""

import gc
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import bringup
from bringup.analyse.holders import Memory

Run = Callable[..., "subprocess.CompletedProcess[str]"]
MIB, GIB = 1 << 20, 1 << 30
BLOCK = """
import torch

def block(mebibytes):
    return torch.empty(mebibytes << 20, dtype=torch.uint8, device="chip").fill_(1)
"""
GROWING = "for step in range(20):\n    block(101 + 3 * step)\n"
EQUAL = "for step in range(20):\n    block(101)\n"
PIECES = """
whole = block(6144)
del whole
small = [block(64) for _ in range(96)]
alive = small[::2]
del small
large = block(4096)
"""


@pytest.mark.parametrize(
    ("reserved", "expandable", "room", "gain"),
    [
        (10 * GIB, None, 8 * GIB, 0),
        (10 * GIB, 8 * GIB, 8 * GIB, 2 * GIB),
        (8 * GIB + 100, 8 * GIB, 8 * GIB, 100),  # it then fits
        (8 * GIB, 7 * GIB, 16 * GIB, GIB),
        (8 * GIB, 8 * GIB - 300 * MIB, 16 * GIB, 0),  # 3.7 %
        (100 * MIB, 90 * MIB, 16 * GIB, 0),  # half a page
        (8 * GIB, 9 * GIB, 16 * GIB, 0),
    ],
)
def test_a_gain_makes_it_fit_or_saves_five_percent(reserved: int, expandable: int | None, room: int, gain: int) -> None:
    assert Memory(0, reserved, 0, None, [], expandable).expandable_gain(room) == gain


def summary_of(run: Run, folder: Path, program: str, *options: str) -> tuple[dict[str, object], str]:
    (folder / "program.py").write_text(BLOCK + program, encoding="utf-8")
    done = run("--dry", *options, "--chip", "edge8", "--out", "out", "program.py")
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out" / "summary.json").read_text(encoding="utf-8")), done.stderr + done.stdout


def test_blocks_that_grow_would_share_a_segment(bringup_run: Run, tmp_path: Path) -> None:
    summary, text = summary_of(bringup_run, tmp_path, GROWING)
    # Segments are multiples of 2 MiB: 102 + 104 + 108 + 110 + ... + 158; the largest block needs 8 pages of 20 MiB.
    reserved = sum(-(-(101 + 3 * step) // 2) * 2 for step in range(20)) * MIB
    memory = summary["memory"]
    assert isinstance(memory, dict) and (memory["reserved_bytes"], memory["expandable_bytes"]) == (reserved, 160 * MIB)
    setting = "segments (PYTORCH_ALLOC_CONF=expandable_segments:True) would reserve 160.00 MiB instead of 2.54 GiB"
    assert f"  expandable {setting}\n" in text
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"Expandable {setting}." in page


def test_equal_blocks_are_no_reason_for_a_word(bringup_run: Run, tmp_path: Path) -> None:
    summary, text = summary_of(bringup_run, tmp_path, EQUAL)
    memory = summary["memory"]
    assert isinstance(memory, dict) and memory["expandable_bytes"] == 120 * MIB > memory["reserved_bytes"]
    assert "expandable" not in text
    assert "expandable segments" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_program_that_fits_with_expandable_segments_is_told_so(bringup_run: Run, tmp_path: Path) -> None:
    summary, text = summary_of(bringup_run, tmp_path, PIECES, "--oom=continue")
    assert summary["fits"] is False
    memory, ways = summary["memory"], summary["ways_to_fit"]
    assert isinstance(memory, dict) and isinstance(ways, list)
    assert memory["expandable_bytes"] <= 8 * GIB < memory["reserved_bytes"] == 10 * GIB
    assert ways[0]["change"].startswith("expandable segments") and ways[0]["fits"]
    assert ways[0]["step_seconds"] == summary["step_seconds"]
    assert "instead of 10.00 GiB, which fits\n" in text


def test_a_module_may_own_an_empty_buffer() -> None:
    gc.collect()
    held = torch.chip.memory_allocated()  # of the tests before
    module = torch.nn.Identity().to("chip")
    module.weight = torch.nn.Parameter(torch.zeros(3, device="chip"))
    module.register_buffer("empty", torch.empty(0, device="chip"))
    with bringup.record() as trace:
        module(None)
    assert bringup.price(trace, chip="t4").peak_bytes - held == 512  # the weight, in a block of the allocator
