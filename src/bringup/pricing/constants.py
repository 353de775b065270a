"""The constants of the analytic model that data sheets do not state, each with its source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """One set of constants for all chips. A chip file may override some of them by measured values.

    Published values are medians over the chips in their source. Fitted values minimise the error of the fitted subset
    of the measurements (`bringup.validation.constants_fit`), never of single rows.
    """

    # Rate of the best large product over peak. Median of nine accelerators, which reach 51 to 97 % (MAMF tables in
    # compute/accelerator of github.com/stas00/ml-engineering at 744d01e).
    matrix_sustained: float = 0.8
    # Bandwidth of a streaming read over the data sheet's. Median of nine chips, which reach 61 to 97 %
    # (github.com/te42kyfo/gpu-benches at 1c36d50).
    memory_sustained: float = 0.87
    # Bandwidth of the last cache over that of memory: 3.4 on the H100 PCIe, 2.8 on the MI210 (gpu-benches at 1c36d50).
    cache_speedup: float = 3.0
    # Latency of an access to memory (Mei & Chu, TPDS 2017).
    memory_cycles: float = 600.0
    # Bandwidth of the last cache in single sectors over that of memory. Transposed copies of two and four bytes per
    # element move 4.3 to 4.7 TB/s of sectors on the H100, our own measurement.
    sector_speedup: float = 1.4
    # Time between queued kernels: 2.05 to 2.62 us on five GPUs, 0.94 to 2.05 us in a graph (gpu-benches at 1c36d50).
    launch_seconds: float = 2.5e-6
    graph_launch_seconds: float = 1.3e-6
    # Share of its peak that one core of a matrix engine reaches while the chip is far from its power limit. Fitted.
    core_sustained: float = 0.95
    # Time from the start of a kernel to its first result: fetching arguments and code, first loads. Fitted.
    kernel_seconds: float = 0.301e-6
    # Fill and drain of one wave of tiles, and of each further pass of a row kernel. Fitted; about 600 of these cycles
    # are the latency of memory (Mei & Chu, TPDS 2017).
    tile_cycles: float = 2780.0
    # Share of `tile_cycles` that further waves cannot hide. Fitted.
    tile_exposed: float = 1.0
    # Latency of 64 steps along k in a tile that cannot hide it. Fitted.
    step_cycles: float = 174.0
    # Share of the cores that saturates the memory. Fitted; in gpu-benches, bandwidth stops growing at a third of the
    # cores.
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
    # Least time of a fold, as a share of the array's height: loading the weights, which few rows cannot hide. Fitted.
    systolic_fill: float = 0.1
    # Share of the matrix engine's peak inside fused attention. Fitted.
    attention: float = 0.624
    # Rate of products in a program's own kernels over that of a tuned library, on GPUs. Ratio of the medians of vLLM's
    # Triton kernel (33 products) and CUTLASS's (36), for float8 products over 1 ms on the L40S (aiconfigurator at
    # 095f58a).
    kernel_products: float = 0.68
    # Speed of a 3 x 3 convolution in float32 over that of its product. Winograd's algorithm needs 2.25 times fewer
    # multiplications, and its transforms take part of the gain. Lavin & Gray (CVPR 2016) measured 1.5 to 2.3 on large
    # layers; small layers gain nothing. Assumed.
    winograd: float = 1.4
    # Share of the sustained bandwidth that a family's kernels reach; families without an entry reach all of it.
    # Fitted, except for convolutions, whose share is assumed.
    streams_matmul: float = 0.96
    streams_convolution: float = 0.8
    streams_attention: float = 0.75
    streams_pointwise: float = 0.923
    streams_normalization: float = 0.903
    streams_softmax: float = 0.899


DEFAULT = Constants()
