"""How well prices of kernels in Triton meet published times of kernels in Triton.

Run ``python benchmarks/kernel_prices.py --data DIR``, where DIR holds the measurement sets of docs/validation.md.
aiconfigurator timed kernels of vLLM: products of float8 with block scales, mixtures of experts in bfloat16. The kernels
below do the same work with usual block sizes, and are priced from dry runs.
"""

import argparse
import csv
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import triton
import triton.language as tl

import bringup
from bringup.pricing import WorkTable, price_table
from bringup.recording.rows import LAUNCH


@triton.jit
def scaled_product(
    a, b, c, a_scales, b_scales, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr
):
    """Compute a @ b.T for [M, K] and [N, K] in float8; scales are of 1 x 128 elements of a, 128 x 128 of b."""
    program = tl.program_id(0)
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    first = program // (GROUP * columns) * GROUP
    size = min(rows - first, GROUP)
    row = first + program % (GROUP * columns) % size
    column = program % (GROUP * columns) // size
    i = (row * BM + tl.arange(0, BM)) % M
    j = (column * BN + tl.arange(0, BN)) % N
    k = tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(0, tl.cdiv(K, BK)):
        left = tl.load(a + i[:, None] * K + step * BK + k[None, :], mask=k[None, :] < K - step * BK, other=0.0)
        right = tl.load(b + j[None, :] * K + step * BK + k[:, None], mask=k[:, None] < K - step * BK, other=0.0)
        left_scale = tl.load(a_scales + i * tl.cdiv(K, BK) + step)
        right_scale = tl.load(b_scales + j // BN * tl.cdiv(K, BK) + step)
        total += tl.dot(left, right) * left_scale[:, None] * right_scale[None, :]
    i = row * BM + tl.arange(0, BM)
    j = column * BN + tl.arange(0, BN)
    tl.store(c + i[:, None] * N + j[None, :], total.to(tl.bfloat16), mask=(i[:, None] < M) & (j[None, :] < N))


@triton.jit
def expert_product(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Compute a[e] @ b[e].T for experts e: [M, K] and [N, K], in bfloat16."""
    tiles = tl.cdiv(M, BM) * tl.cdiv(N, BN)
    expert, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    i = tile // tl.cdiv(N, BN) * BM + tl.arange(0, BM)
    j = tile % tl.cdiv(N, BN) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    a += expert * M * K
    b += expert * N * K
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(0, tl.cdiv(K, BK)):
        inside = k < K - step * BK
        left = tl.load(a + i[:, None] * K + step * BK + k[None, :], mask=(i[:, None] < M) & inside[None, :], other=0.0)
        right = tl.load(b + j[None, :] * K + step * BK + k[:, None], mask=(j[None, :] < N) & inside[:, None], other=0.0)
        total = tl.dot(left, right, total)
    tl.store(
        c + expert * M * N + i[:, None] * N + j[None, :],
        total.to(tl.bfloat16),
        mask=(i[:, None] < M) & (j[None, :] < N),
    )


@triton.jit
def gate(x, out, count, BLOCK: tl.constexpr):
    """silu(first half) * second half of every row."""
    row, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(x + row * 2 * count + i, mask=i < count).to(tl.float32)
    second = tl.load(x + row * 2 * count + count + i, mask=i < count).to(tl.float32)
    tl.store(out + row * count + i, (first * tl.sigmoid(first) * second).to(tl.bfloat16), mask=i < count)


def scaled(row: dict[str, str]) -> None:
    """Launch the work of a row of products."""
    m, n, k = (int(row[name]) for name in "mnk")
    a, b = (torch.empty(side, k, dtype=torch.float8_e4m3fn, device="chip") for side in (m, n))
    c = torch.empty(m, n, dtype=torch.bfloat16, device="chip")
    blocks = triton.cdiv(k, 128)
    scales = (torch.empty(m, blocks, device="chip"), torch.empty(triton.cdiv(n, 128), blocks, device="chip"))
    grid = (triton.cdiv(m, 64) * triton.cdiv(n, 128),)
    scaled_product[grid](a, b, c, *scales, m, n, k, BM=64, BN=128, BK=128, GROUP=32)


def experts(row: dict[str, str]) -> None:
    """Launch the work of a row of a mixture of experts: two products for each, and the gate between them."""
    names = ("num_experts", "moe_ep_size", "moe_tp_size", "num_tokens", "topk", "hidden_size", "inter_size")
    total, ep, tp, tokens, topk, hidden, inner = (int(row[name]) for name in names)
    count, inner = total // ep, inner // tp
    m = max(tokens * topk // total, 1)

    def product(x: torch.Tensor, n: int, k: int) -> torch.Tensor:
        weight = torch.empty(count, n, k, dtype=torch.bfloat16, device="chip")
        out = torch.empty(count * m, n, dtype=torch.bfloat16, device="chip")
        grid = (count * triton.cdiv(m, 128) * triton.cdiv(n, 128),)
        expert_product[grid](x, weight, out, m, n, k, BM=128, BN=128, BK=64)
        return out

    both = product(torch.empty(count * m, hidden, dtype=torch.bfloat16, device="chip"), 2 * inner, hidden)
    gated = torch.empty(count * m, inner, dtype=torch.bfloat16, device="chip")
    gate[(count * m, triton.cdiv(inner, 1024))](both, gated, inner, BLOCK=1024)
    product(gated, hidden, inner)


# File, kernel, chip, the launches that do its work, which rows. Those of less than 1 ms are bound by the host that
# launched them: their times have a floor of 0.3 ms. The first set is where `Constants.kernel_products` comes from.
SETS = (
    ("l40s__gemm_perf.csv", "TritonFp8BlockScaledMMKernel", "l40s", scaled, lambda row: True),
    (
        *("h100_sxm__moe_perf.csv", "vllm_unquantizedfusedmoe_triton_tritonexperts", "h100-sxm", experts),
        lambda row: row["distribution"] == "balanced",
    ),
    (
        *("l40s__moe_perf.csv", "vllm_unquantizedfusedmoe_triton_tritonexperts", "l40s", experts),
        lambda row: row["distribution"] == "balanced",
    ),
)


def predicted(launch: Callable[[dict[str, str]], None], row: dict[str, str], chip: str) -> float:
    """Milliseconds of a row's kernels on a chip."""
    with bringup.dry(), bringup.record() as trace:
        launch(row)
    launches = [trace.signatures[i] for i in trace.columns["signature"][trace.columns["kind"] == LAUNCH].tolist()]
    launches = [signature for signature in launches if signature.op.startswith("triton::")]
    return (
        float(price_table(WorkTable.from_signatures(launches), launches, bringup.load_chip(chip)).seconds.sum()) * 1e3
    )


def main() -> None:
    """Print the errors of every set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--most", type=int, default=8, help="rows of a set, evenly taken")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    bringup.use("h100-sxm")
    for name, kernel, chip, launch, wanted in SETS:
        (path,) = options.data.rglob(name)
        with path.open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["kernel_source"] == kernel and wanted(row)]
        rows = [row for row in rows if float(row["latency"]) > 1]
        rows = rows[:: max(len(rows) // options.most, 1)]
        ratios = sorted(predicted(launch, row, chip) / float(row["latency"]) for row in rows)
        print(
            f"{chip} {kernel}: {len(rows)} rows, mean error {statistics.mean(abs(r - 1) for r in ratios):.1%}, "
            f"predicted over published {ratios[0]:.2f} to {ratios[-1]:.2f}, median {statistics.median(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
