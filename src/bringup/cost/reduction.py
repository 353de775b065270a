"""Reductions, scans, losses and pooling."""

from __future__ import annotations

from bringup.cost.rules import Work, names, rule, streaming
from bringup.cost.signature import Signature


@rule(
    "reduction",
    *names("""
        reduction
        sum nansum mean nanmean prod amax amin max min aminmax _aminmax argmax argmin all any is_nonzero equal
        norm dist linalg_vector_norm linalg_matrix_norm var std var_mean std_mean count_nonzero trace
        cumsum cumprod cummax cummin _cummax_helper _cummin_helper cumulative_trapezoid
        bincount histc histogram _histogramdd_bin_edges _histogramdd_from_bin_cts _histogramdd_from_bin_tensors
        segment_reduce _segment_reduce_backward _fused_moving_avg hash_tensor
        _local_scalar_dense _assert_async _functional_assert_async _is_all_true _is_any_true
    """),
)
def reduction(signature: Signature) -> Work:
    """Price one operation per input element."""
    return streaming(signature, "reduction")


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
    return streaming(signature, "pooling", flops=9)
