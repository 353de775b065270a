"""The constants that data sheets hide: one set for all chips, each with its source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """One set for all chips. A chip file may give its own measured value for some.

    Published values are medians over the chips that their source lists. Fitted ones minimise the error of the fitted
    subset of the measurement sets (`bringup.validation.constants_fit`), never of single rows.
    """

    # Best large product over peak. Median of nine accelerators, of 51 to 97 % (MAMF tables in compute/accelerator of
    # github.com/stas00/ml-engineering at 744d01e).
    matrix_sustained: float = 0.8
    # Streaming read over data sheet. Median of nine chips, of 61 to 97 % (github.com/te42kyfo/gpu-benches at 1c36d50).
    memory_sustained: float = 0.87
    # Bandwidth of the last cache over that of memory: 3.4 on the H100 PCIe, 2.8 on the MI210 (gpu-benches at 1c36d50).
    cache_speedup: float = 3.0
    # Between queued kernels: 2.05 to 2.62 us on five GPUs; replayed as a graph 0.94 to 2.05 (gpu-benches at 1c36d50).
    launch_seconds: float = 2.5e-6
    graph_launch_seconds: float = 1.3e-6
    # Share of its peak that one core of a matrix engine reaches while the chip is far from its power limit. Fitted.
    core_sustained: float = 0.95
    # From the start of a kernel to its first result: fetching arguments and code, first loads. Fitted.
    kernel_seconds: float = 0.301e-6
    # Fill and drain of one wave of tiles, and of each further pass of a row kernel. Fitted; the latency of memory is
    # some 600 of these cycles (Mei & Chu, TPDS 2017).
    tile_cycles: float = 2780.0
    # Share of `tile_cycles` that further waves cannot hide. Fitted.
    tile_exposed: float = 1.0
    # Latency of 64 steps along k in a tile that cannot hide it. Fitted.
    step_cycles: float = 174.0
    # Share of the cores that saturates the memory. Fitted; the knee of gpu-benches' bandwidth over occupied cores is at
    # a third.
    cores_for_bandwidth: float = 0.402
    # Operand traffic inside a core, for the matrix engine and for the vector units: a tile of m x n reaches
    # mn / (mn + c (m + n)) of the engine's rate. Fitted.
    small_tile: float = 12.4
    small_tile_vector: float = 4.59
    # The p of Note [The analytic model]. Fitted.
    overlap: float = 2.2
    # `matrix_sustained` of systolic arrays. Fitted.
    systolic_sustained: float = 0.94
    # `overlap` of systolic arrays. Fitted.
    systolic_overlap: float = 1.61
    # Share of an array's height that few rows cost while weights are loaded. Fitted.
    systolic_fill: float = 0.1
    # Share of the matrix engine's peak inside fused attention. Fitted.
    attention: float = 0.562
    # Rate of products in the program's own kernels over that of a tuned library, on GPUs. Median of the products over
    # 1 ms of vLLM's kernel in Triton (33) over CUTLASS's (36), float8 on the L40S (aiconfigurator at 095f58a).
    kernel_products: float = 0.68
    # How much faster a convolution of 3 x 3 in float32 is than its product: 2.25 times fewer multiplications, of which
    # the transforms take a part. Lavin & Gray (CVPR 2016) saw 1.5 to 2.3 on large layers; small ones gain nothing.
    # Assumed.
    winograd: float = 1.4
    # Share of the sustained bandwidth that kernels of a family reach; families that are not named reach all of it.
    # Fitted, but for that of convolutions, which is assumed.
    streams_matmul: float = 0.96
    streams_convolution: float = 0.8
    streams_attention: float = 0.6
    streams_pointwise: float = 0.923
    streams_normalization: float = 0.903
    streams_softmax: float = 0.899


DEFAULT = Constants()
