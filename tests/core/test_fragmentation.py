"""The out-of-memory error when free memory lies in pieces."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = """import torch

def block(mebibytes):
    return torch.empty(mebibytes << 20, dtype=torch.uint8, device="chip")

whole = block(6144)
del whole
{lines}
try:
    block({wanted})
    print("fits")
except torch.OutOfMemoryError as error:
    print(error)
"""
RECORDED = f"import bringup\nwith bringup.record():\n{textwrap.indent(PROGRAM, '    ')}"
SHOWING = RECORDED.replace('print("fits")', 'print("fits", f"{{torch.chip.memory_reserved() / 2**30:.2f}} GiB")')
PIECES = "small = [block(64) for _ in range(96)]\nalive = small[::2]\ndel small"
FULL = "alive = [block(64) for _ in range(96)]"


def run(folder: Path, lines: str, wanted: int, program: str = PROGRAM, setting: bool = False) -> str:
    (folder / "blocks.py").write_text(program.format(lines=lines, wanted=wanted), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "blocks.py"],
        cwd=folder,
        env={**os.environ, "BRINGUP_CHIP": "edge8", "PYTORCH_ALLOC_CONF": f"expandable_segments:{setting}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_error_names_the_pieces_and_what_lies_between_them(tmp_path: Path) -> None:
    text = run(tmp_path, PIECES, 4096)  # 3 of 8 GiB are allocated, so 4 GiB would fit in one piece
    assert "fragmentation: the request would fit if free memory were in one piece; 48 free pieces" in text
    assert "the largest 64.00 MiB" in text and "48 (3.00 GiB) made at blocks.py:4" in text
    assert "expandable_segments:True" in text


def test_a_recorded_program_is_told_that_it_fits_with_expandable_segments(tmp_path: Path) -> None:
    lines = PIECES.replace("\n", "\n    ")
    text = run(tmp_path, lines, 4096, RECORDED)
    reserved = re.search(r"use expandable segments .*, with which the request fits: .* reserved (\S+ GiB)", text)
    assert reserved is not None, text
    after = run(tmp_path, lines, 4096, SHOWING, setting=True)
    assert after.split() == ["fits", *reserved[1].split()]


@pytest.mark.slow
def test_pieces_smaller_than_a_page_are_not_promised_to_fit(tmp_path: Path) -> None:
    lines = "small = [block(16) for _ in range(384)]\n    alive = small[::2]\n    del small"
    text = run(tmp_path, lines, 4096, RECORDED)
    assert "192 free pieces" in text and "expandable segments alone would not be enough" in text
    assert "use expandable segments" not in text
    text = run(tmp_path, lines, 4096, RECORDED, setting=True)
    assert "out of memory" in text and "expandable" not in text  # they are on


@pytest.mark.slow
def test_an_error_about_full_memory_does_not_speak_of_pieces(tmp_path: Path) -> None:
    assert "fragmentation" not in run(tmp_path, FULL, 4096)
    assert "fragmentation" not in run(tmp_path, PIECES, 7168)  # it would not fit in one piece either
