"""Prices of operators bound by memory: strides, rows, passes and kernels, as properties."""

import math
from itertools import pairwise

import pytest

from bringup import pricing
from bringup.cost.rules import Work
from bringup.cost.signature import Signature
from bringup.machine.files import load_chip

H100 = load_chip("h100-sxm")
FULL = 65536  # rows of 1,024 that keep every core of the chip busy


def dense(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def launch(
    op: str, *shapes: tuple[int, ...], out: tuple[int, ...], strides: list[int] | None = None, **args: object
) -> Signature:
    """A launch of float32 tensors; the first has the strides, an int64 shape is marked by a leading -1."""
    inputs = []
    for i, shape in enumerate(shapes):
        dtype, shape = ("int64", shape[1:]) if shape[:1] == (-1,) else ("float32", shape)
        inputs.append([dtype, list(shape), strides if strides and i == 0 else dense(shape), i, False])
    outputs = [["float32", list(out), dense(out), -1, True]]
    return Signature.parse({"op": f"aten::{op}", "inputs": inputs, "outputs": outputs, "args": args})


def seconds(*signatures: Signature, chip: str = "h100-sxm") -> list[float]:
    table = pricing.WorkTable.from_signatures(signatures)
    return [float(s) for s in pricing.price_table(table, signatures, load_chip(chip)).seconds]


def work(*args: object, **named: object) -> Work:
    return launch(*args, **named).work  # type: ignore[arg-type]


def transpose(n: int) -> Signature:
    return launch("clone", (n, n), out=(n, n), strides=[1, n])


def test_transposed_copy_costs_more_than_a_plain_one() -> None:
    plain, crossed = seconds(launch("clone", (4096, 4096), out=(4096, 4096)), transpose(4096))
    assert crossed > 1.5 * plain


def test_copy_of_one_layout_is_plain_whatever_its_order() -> None:
    n = 1024
    same = Signature.parse(
        {
            "op": "aten::clone",
            "inputs": [["float32", [n, n], [1, n], 0, False]],
            "outputs": [["float32", [n, n], [1, n], -1, True]],
            "args": {},
        }
    )
    assert (same.work.offsets, same.work.sectors) == (0, 0)


def test_slice_costs_offsets_but_no_sectors() -> None:
    sliced = work("clone", (512, 1024), out=(512, 1024), strides=[2048, 1])
    assert sliced.offsets > 0
    assert sliced.sectors == 0


def test_broadcast_row_is_no_transpose() -> None:
    assert work("add", (64, 1024), (1024,), out=(64, 1024)).sectors == 0


def test_reduction_of_few_rows_waits_as_long_as_one_of_many() -> None:
    few, many = (work("sum", (rows, 1024), out=(rows,), dim=[1]) for rows in (4, FULL))
    assert few.chain == many.chain > 0


@pytest.mark.parametrize(
    ("shape", "out", "dims", "kernels"),
    [
        ((1024, 1024), (), None, 2),  # all elements: 1,048,576 / 512 threads = 2,048 values per thread
        ((64, 65536), (64,), [1], 1),  # 65,536 / 512 = 128
        ((65536, 64), (64,), [0], 2),  # 65,536 / 8 warps' rows of a block = 8,192
        ((64, 65536), (65536,), [0], 1),  # 64 values of a column
        ((4, 262144), (4,), [1], 2),  # 262,144 / 512 = 512
    ],
)
def test_blocks_share_a_result_of_many_values(
    shape: tuple[int, ...], out: tuple[int, ...], dims: list[int] | None, kernels: int
) -> None:
    assert work("sum", shape, out=out, **({"dim": dims} if dims else {})).kernels == kernels


def test_short_rows_cost_more_than_their_bytes() -> None:
    long, short = seconds(
        launch("sum", (1024, 4096), out=(1024,), dim=[1]), launch("sum", (FULL, 64), out=(FULL,), dim=[1])
    )
    assert short > 1.3 * long  # the same bytes


def test_scan_of_columns_waits_for_every_row() -> None:
    first, last = seconds(
        launch("cumsum", (8192, 256), out=(8192, 256), dim=0), launch("cumsum", (256, 8192), out=(256, 8192), dim=1)
    )
    assert first > 5 * last
    assert first > 8192 * 250e-9


def test_lookup_reads_no_more_than_its_table() -> None:
    table = 100 * 64 * 4
    assert work("embedding", (100, 64), (-1, 10_000), out=(10_000, 64)).read_bytes == table + 10_000 * 8


def test_sorted_gradient_of_many_rows_takes_more_kernels() -> None:
    few, many = (work("embedding_dense_backward", (n, 64), (-1, n), out=(5000, 64)) for n in (3072, 3073))
    assert few.kernels == 1
    assert many.kernels == 31


def test_sort_of_few_rows_sorts_twice() -> None:
    one, few, many = (work("sort", (rows, 10_000), out=(rows, 10_000), dim=-1) for rows in (1, 64, 128))
    assert few.kernels > one.kernels == many.kernels
    assert few.read_bytes / 64 > many.read_bytes / 128


@pytest.mark.parametrize(
    ("rows", "row", "kernels"), [(20, 19_999, 2), (20, 20_000, 22), (199, 5000, 22), (200, 2999, 2)]
)
def test_topk_of_long_rows_uses_several_blocks(rows: int, row: int, kernels: int) -> None:
    assert work("topk", (rows, row), out=(rows, 8), dim=-1, k=8).kernels == kernels


def test_scatter_reads_its_indices_once() -> None:
    n = 1_000_000
    scattered = work("scatter_add", (100, 64), (-1, n, 64), (n, 64), out=(100, 64), dim=0)
    assert scattered.read_bytes == (2 * 4 + 8) * 64 * n + 100 * 64 * 4


RULES = {
    "transpose": lambda n: launch("clone", (n, 64), out=(n, 64), strides=[1, max(n, 1)]),
    "cat": lambda n: launch("cat", (n, 64), out=(n, 64), strides=[128, 1], dim=0),
    "roll": lambda n: launch("roll", (n, 64), out=(n, 64), shifts=[1], dims=[0]),
    "add": lambda n: launch("add", (n, 64), (64,), out=(n, 64)),
    "sum": lambda n: launch("sum", (n, 64), out=(n,), dim=[1]),
    "sum all": lambda n: launch("sum", (n, 64), out=()),
    "argmax": lambda n: launch("argmax", (n, 64), out=(n,), dim=-1),
    "cumsum": lambda n: launch("cumsum", (n, 64), out=(n, 64), dim=0),
    "embedding": lambda n: launch("embedding", (1000, 64), (-1, n), out=(n, 64)),
    "index_select": lambda n: launch("index_select", (1000, 64), (-1, n), out=(n, 64), dim=0),
    "gather": lambda n: launch("gather", (1000, 64), (-1, n, 64), out=(n, 64), dim=0),
    "backward": lambda n: launch("embedding_dense_backward", (n, 64), (-1, n), out=(1000, 64)),
    "scatter_add": lambda n: launch("scatter_add", (1000, 64), (-1, n, 64), (n, 64), out=(1000, 64), dim=0),
    "sort": lambda n: launch("sort", (n,), out=(n,), dim=0),
    "topk": lambda n: launch("topk", (64, n), out=(64, 8), dim=-1, k=8),
    "kthvalue": lambda n: launch("kthvalue", (n,), out=(), dim=0, k=1),
    "pool": lambda n: launch("max_pool2d_with_indices", (1, n, 8, 8), out=(1, n, 4, 4), kernel_size=[2, 2]),
}


@pytest.mark.parametrize("chip", ["h100-sxm", "mi210", "edge8"])
@pytest.mark.parametrize("name", RULES)
def test_more_elements_never_cost_less(name: str, chip: str) -> None:
    # Powers of two up to 2**30, and none. A library that takes another algorithm may win a part, as measured.
    times = seconds(*[RULES[name](n) for n in (0, *(2**i for i in range(0, 31, 3)))], chip=chip)
    assert all(0 <= time < 1e9 for time in times)
    assert all(more >= 0.8 * less for less, more in pairwise(times))
    assert times[-1] > times[1]
