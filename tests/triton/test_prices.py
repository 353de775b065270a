"""A kernel in Triton costs about what torch's operator costs that does the same."""

from collections.abc import Callable

import pytest
import torch

import bringup
from bringup.pricing import WorkTable, price_table
from bringup.recording.rows import LAUNCH

pytest.importorskip("triton", reason="needs bringup[triton]")

import triton
import triton.language as tl

from tests.triton import tutorials


@triton.jit
def row_sums(x, out, N: tl.constexpr):
    row = tl.program_id(0)
    tl.store(out + row, tl.sum(tl.load(x + row * N + tl.arange(0, N))))


def seconds(run: Callable[[], object], chip: str) -> float:
    """Of one launch."""
    with bringup.dry(), bringup.record() as trace:
        run()
    launches = [trace.signatures[i] for i in trace.columns["signature"][trace.columns["kind"] == LAUNCH].tolist()]
    prices = price_table(WorkTable.from_signatures(launches), launches, bringup.load_chip(chip))
    return float(prices.seconds.max())


@pytest.mark.parametrize("chip", ["h100-sxm", "mi300x", "t4"])
@pytest.mark.parametrize("shape", [(256, 1024), (4096, 4096), (16384, 1024)])
def test_sums_of_rows(chip: str, shape: tuple[int, int]) -> None:
    def own() -> None:
        x, out = torch.empty(shape, device="chip"), torch.empty(shape[0], device="chip")
        row_sums[(shape[0],)](x, out, shape[1])

    theirs = seconds(lambda: torch.empty(shape, device="chip").sum(1), chip)
    moved = 4 * shape[0] * (shape[1] + 1)
    assert seconds(own, chip) > moved / (bringup.load_chip(chip).memory.bandwidth_gb_s * 1e9)
    # Both stream the same bytes. The blocks of PyTorch's kernel also wait for each other, for some microseconds.
    assert 0 <= theirs - seconds(own, chip) < 5e-6


@pytest.mark.parametrize("chip", ["h100-sxm", "t4"])
def test_sums_of_vectors(chip: str) -> None:
    own, theirs = (
        seconds(lambda add=add: add(*torch.empty(2, 1 << 24, device="chip").unbind()), chip)  # type: ignore[misc]
        for add in (tutorials.add, torch.add)
    )
    assert own == pytest.approx(theirs, rel=0.15)


def test_products_reach_a_part_of_a_tuned_librarys_rate() -> None:
    def operands() -> tuple[torch.Tensor, ...]:
        return torch.empty(2, 4096, 4096, dtype=torch.float16, device="chip").unbind()

    own = seconds(lambda: tutorials.matmul(*operands(), blocks=(128, 256, 64)), "h100-sxm")
    small = seconds(lambda: tutorials.matmul(*operands(), blocks=(32, 32, 32)), "h100-sxm")
    theirs = seconds(lambda: torch.mm(*operands()), "h100-sxm")
    assert 1.2 * theirs < own < 2 * theirs and small > 2 * own
