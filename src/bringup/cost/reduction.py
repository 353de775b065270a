"""Reductions, scans, losses and pooling."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from bringup.cost.access import OFFSET
from bringup.cost.rules import ITEMS_PER_CORE, Work, names, rule, streaming
from bringup.cost.signature import Signature, Tensor

# Latencies in sequence of a reduction: loads, and a tree over 512 threads, of 2 times 9 steps in the scratchpad. Own
# measurement on the H100: the sums of 1,024 rows of 1,024 float32 take 3.7 us more than their bytes.
TREE = 12
# With the meeting of blocks in memory: own measurement on the H100, 5.5 us for sums of all elements.
SHARED_TREE = 18
# A block's threads, a warp's, values of a thread from which warps and blocks share a result, and results of a thread
# that loads vectors (MAX_NUM_THREADS, warp_split_threshold, max_values_per_thread in ATen/native/cuda/Reduce.cuh).
THREADS, WARP, WARP_VALUES, BLOCK_VALUES, VECTOR = 512, 32, 16, 256, 4
# Latencies of a block that reduces short rows, which other blocks of the core overlap: own measurement on the H100,
# sums and products of 65,536 rows of 64; argmax was not used for it.
ROW_STEPS = 5
PAIRS = ("argmax", "argmin", "max", "min", "var", "std", "var_mean", "std_mean")  # trees of two or three values
SCAN_STEP = 5  # latencies of a block's scan of one chunk: own measurement on the H100, 1.3 to 1.6 us
# Instructions per element of a window, beyond the offset of the result: own measurement on the H100, max_pool2d 3 x 3.
WINDOW = 25
INTERPOLATED = {"nearest": 1, "bilinear": 4, "trilinear": 8, "bicubic": 16, "linear1d": 2}  # inputs per result


@rule(
    "reduction",
    *names("""
        reduction
        sum nansum mean nanmean prod amax amin max min aminmax _aminmax argmax argmin all any is_nonzero equal
        norm dist linalg_vector_norm linalg_matrix_norm var std var_mean std_mean count_nonzero trace
        bincount histc histogram _histogramdd_bin_edges _histogramdd_from_bin_cts _histogramdd_from_bin_tensors
        segment_reduce _segment_reduce_backward _fused_moving_avg hash_tensor
        _local_scalar_dense _assert_async _functional_assert_async _is_all_true _is_any_true
    """),
)
def reduction(signature: Signature) -> Work:
    """Price one operation per input element."""
    work = streaming(signature, "reduction")
    results = max((tensor.numel for tensor in signature.results), default=0)
    if work.items <= results or results == 0 or not signature.tensors:
        return work
    threads, values, shared = _split(signature.tensors[0], signature.args.get("dim"), results)
    pairs = 2 if signature.base in PAIRS else 1
    if shared:
        return replace(work, kernels=2, chain=float(SHARED_TREE * pairs))  # a memset of the blocks' counters
    waits = ROW_STEPS * pairs * threads * results / ITEMS_PER_CORE if values <= WARP_VALUES else 0.0
    return replace(work, chain=float(TREE * pairs), waits=waits)


def _split(data: Tensor, dims: object, results: int) -> tuple[int, float, bool]:
    """Return the threads of one result, their values, and if blocks share it (setReduceConfig in Reduce.cuh).

    The limit to blocks that the chip holds at once is left out: a memset is nothing beside so much work.
    """
    row = data.numel / results
    last = [dims] if isinstance(dims, int) else dims if isinstance(dims, list | tuple) and dims else [-1]
    innermost = any(dim in (-1, len(data.shape) - 1) for dim in last)
    fastest, other = (row, results) if innermost else (results, row)
    vector = VECTOR if fastest >= 4 * WARP and (not innermost or len(last) == 1) else 1
    limit = THREADS if innermost else THREADS // vector
    x, y = (2 ** math.floor(math.log2(min(max(size, 1), limit))) for size in (fastest / vector, other))
    height = min(y, limit // min(x, WARP))
    width = min(x, limit // height)
    threads = width if innermost else 1
    split = row / threads >= min(height * WARP_VALUES, BLOCK_VALUES)
    threads *= height if split else 1
    return threads, row / threads, split and row / threads >= BLOCK_VALUES


@rule("reduction", *names("cumsum cumprod cummax cummin _cummax_helper _cummin_helper cumulative_trapezoid"))
def scan(signature: Signature) -> Work:
    """Price a thread per column along an outer dimension, blocks that step through rows along the innermost one.

    Both are kernels of aten/src/ATen/native/cuda/ScanUtils.cuh: scan_outer_dim and scan_innermost_dim.
    """
    work = streaming(signature, "reduction")
    data, dim = signature.tensors[0], signature.args.get("dim")
    if not data.numel or not data.shape or not isinstance(dim, int):
        return work
    row = data.shape[dim]
    rows = max(data.numel // max(row, 1), 1)
    if rows == 1:
        return replace(work, kernels=2)  # the scan of CUB, and its initialisation
    if dim % len(data.shape) != len(data.shape) - 1:
        return replace(work, chain=float(row))
    # Threads along the row, 16 to 512 of a block, by the shape (get_log_num_threads_x_inner_scan).
    log_row, log_rows = (math.ceil(math.log2(max(size, 1))) for size in (row, rows))
    threads = 2 ** min(max((9 + log_row - log_rows) // 2, 4), 9)
    return replace(work, chain=float(SCAN_STEP * math.ceil(row / (2 * threads))))


@rule(
    "reduction",
    *names("""
        nll_loss_forward nll_loss_backward nll_loss2d_forward nll_loss2d_backward cross_entropy_loss kl_div
        _ctc_loss _ctc_loss_backward
        mse_loss smooth_l1_loss huber_loss binary_cross_entropy soft_margin_loss cosine_embedding_loss
        multi_margin_loss multi_margin_loss_backward multilabel_margin_loss_forward multilabel_margin_loss_backward
        _pdist_forward _pdist_backward
    """),
)
def loss(signature: Signature) -> Work:
    """Price a few operations per element."""
    return streaming(signature, "reduction", flops=4)


@rule(
    "pooling",
    *names("""
        max_pool2d_with_indices max_pool2d_with_indices_backward
        max_pool3d_with_indices max_pool3d_with_indices_backward
        avg_pool1d avg_pool2d avg_pool2d_backward avg_pool3d avg_pool3d_backward adaptive_avg_pool2d
        _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _adaptive_avg_pool3d _adaptive_avg_pool3d_backward
        adaptive_max_pool2d adaptive_max_pool2d_backward adaptive_max_pool3d adaptive_max_pool3d_backward
        fractional_max_pool2d fractional_max_pool2d_backward fractional_max_pool3d fractional_max_pool3d_backward
        max_unpool2d max_unpool3d im2col col2im unfold_backward
        upsample_nearest1d upsample_nearest1d_backward upsample_nearest2d upsample_nearest2d_backward
        upsample_nearest3d upsample_nearest3d_backward
        _upsample_nearest_exact1d _upsample_nearest_exact1d_backward _upsample_nearest_exact2d
        _upsample_nearest_exact2d_backward _upsample_nearest_exact3d _upsample_nearest_exact3d_backward
        upsample_linear1d upsample_linear1d_backward upsample_bilinear2d upsample_bilinear2d_backward
        _upsample_bilinear2d_aa _upsample_bilinear2d_aa_backward
        upsample_bicubic2d upsample_bicubic2d_backward _upsample_bicubic2d_aa _upsample_bicubic2d_aa_backward
        upsample_trilinear3d upsample_trilinear3d_backward _upsample_lanczos2d_aa _upsample_lanczos2d_aa_backward
        grid_sampler_2d grid_sampler_2d_backward grid_sampler_3d grid_sampler_3d_backward affine_grid_generator
        reflection_pad1d reflection_pad1d_backward reflection_pad2d reflection_pad2d_backward
        reflection_pad3d reflection_pad3d_backward
        replication_pad1d replication_pad1d_backward replication_pad2d replication_pad2d_backward
        replication_pad3d replication_pad3d_backward
        pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
    """),
)
def window(signature: Signature) -> Work:
    """Price about 9 operations per result, one per element of its window; the input is read once."""
    work = streaming(signature, "pooling", flops=9)
    if "backward" in signature.base or not signature.results:
        return work
    kernel = signature.args.get("kernel_size")
    if isinstance(kernel, list | tuple) and kernel:
        rank = int(match[0]) if (match := re.search(r"\d(?=d)", signature.base)) else 2
        window = math.prod(kernel) if len(kernel) > 1 else kernel[0] ** rank
    else:
        window = next((size for name, size in INTERPOLATED.items() if name in signature.base), 0)
    return replace(work, offsets=float((OFFSET + WINDOW * window) * signature.results[0].numel)) if window else work
