"""The out-of-memory error when free memory lies in pieces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
PIECES = "small = [block(64) for _ in range(96)]\nalive = small[::2]\ndel small"
FULL = "alive = [block(64) for _ in range(96)]"


def run(folder: Path, lines: str, wanted: int) -> str:
    (folder / "blocks.py").write_text(PROGRAM.format(lines=lines, wanted=wanted), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "blocks.py"],
        cwd=folder,
        env={**os.environ, "BRINGUP_CHIP": "edge8"},
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


def test_an_error_about_full_memory_does_not_speak_of_pieces(tmp_path: Path) -> None:
    assert "fragmentation" not in run(tmp_path, FULL, 4096)
    assert "fragmentation" not in run(tmp_path, PIECES, 7168)  # it would not fit in one piece either
