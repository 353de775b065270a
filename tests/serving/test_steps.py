"""Tables of steps: rows of a file, and what lies between and beyond them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bringup.errors import BringupError
from bringup.serving.steps import Chunk, Rows, Scaled

HEADER = "prefill_tokens,decode_requests,context_tokens,seconds\n"


def table(tmp_path: Path, *rows: str) -> Rows:
    path = tmp_path / "steps.csv"
    path.write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")
    return Rows.read(path)


def test_a_grid_is_interpolated_and_extended(tmp_path: Path) -> None:
    steps = table(tmp_path, "0,1,0,0.010", "0,3,0,0.020", "100,1,0,0.030", "100,3,0,0.050")
    assert steps.seconds([], 2, 0) == pytest.approx(0.015)
    assert steps.seconds([Chunk(50, 0, True)], 2, 0) == pytest.approx((0.010 + 0.020 + 0.030 + 0.050) / 4)
    assert steps.seconds([Chunk(200, 0, True)], 1, 0) == pytest.approx(0.050)


def test_cached_tokens_of_a_chunk_count_as_context(tmp_path: Path) -> None:
    steps = table(tmp_path, "0,0,0,0.010", "0,0,1000,0.020", "100,0,0,0.020", "100,0,1000,0.030")
    assert steps.seconds([Chunk(100, 500, False)], 0, 0) == pytest.approx(0.025)


def test_scattered_rows_are_met_and_a_plane_leads_on(tmp_path: Path) -> None:
    rows = [(0, 1, 500), (512, 0, 0), (0, 64, 64_000), (1024, 32, 9000), (100, 7, 300)]
    plane = [0.01 + 1e-4 * p + 1e-5 * d + 1e-7 * c for p, d, c in rows]
    steps = table(tmp_path, *(f"{p},{d},{c},{s}" for (p, d, c), s in zip(rows, plane, strict=True)))
    for (prefill, requests, context), seconds in zip(rows, plane, strict=True):
        chunks = [Chunk(prefill, 0, True)] if prefill else []
        assert steps.seconds(chunks, requests, context) == pytest.approx(seconds)
    assert steps.seconds([], 128, 100_000) == pytest.approx(0.01 + 128e-5 + 0.01)


def test_one_row_is_a_constant(tmp_path: Path) -> None:
    steps = table(tmp_path, "0,1,0,0.02")
    np.testing.assert_allclose(steps.decode_seconds(5, np.asarray([1, 2, 3])), 0.02)


def test_below_the_first_context_runs_equal_single_steps(tmp_path: Path) -> None:
    steps = table(tmp_path, "0,1,100,0.010", "0,8,100,0.020", "0,1,1100,0.020", "0,8,1100,0.030")
    contexts = np.asarray([0, 50, 100])
    np.testing.assert_allclose(steps.decode_seconds(1, contexts), [0.009, 0.0095, 0.010])
    np.testing.assert_allclose([steps.seconds([], 1, int(context)) for context in contexts], [0.009, 0.0095, 0.010])


def test_runs_equal_single_steps(tmp_path: Path) -> None:
    steps = table(tmp_path, "0,1,0,0.010", "0,64,0,0.020", "0,1,1000,0.011", "0,64,1000,0.027")
    contexts = np.arange(64, 64 + 40 * 8, 8)
    single = [steps.seconds([], 8, int(context)) for context in contexts]
    np.testing.assert_allclose(steps.decode_seconds(8, contexts), single)
    np.testing.assert_allclose(Scaled(steps, 2.0).decode_seconds(8, contexts), 2 * np.asarray(single))


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2\n", "its first line must name the columns prefill_tokens"),
        (HEADER, "has no rows"),
        (HEADER + "0,1,0,fast\n", "steps.csv:2: must have four numbers"),
        (HEADER + "0,1,0\n", "steps.csv:2: must have four numbers"),
        (HEADER + "0,1,-5,0.1\n", "steps.csv:2: numbers must not be negative"),
        (HEADER + "0,1,0,0\n", "steps.csv:2: .*seconds must be positive"),
        (HEADER + "0,1,0,nan\n", "steps.csv:2"),
        pytest.param(HEADER + "0,1,0," + "1" * 200_000, "steps.csv:2: is no CSV: field larger than", id="long"),
    ],
)
def test_a_malformed_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "steps.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BringupError, match=message):
        Rows.read(path)
