"""Normalisation and softmax: a few passes over rows."""

from __future__ import annotations

from dataclasses import replace

from bringup.cost.rules import Work, rule, streaming
from bringup.cost.signature import Signature

# Row kernels stop to reduce between reading and writing: 0.72 of the streaming bandwidth, the median over the layer
# norm and softmax rows of measurements.csv on V100, T4 and A100 (github.com/sitar-lab/NeuSight).
ROWS = 0.72


@rule(
    "normalization",
    *("native_layer_norm", "native_group_norm", "_fused_rms_norm", "rms_norm", "renorm", "local_response_norm"),
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
    *("_native_batch_norm_legit_functional", "batch_norm_elemt", "batch_norm_stats", "_batch_norm_with_update"),
    *("_batch_norm_no_update", "_weight_norm_interface", "batch_norm_update_stats", "batch_norm_gather_stats"),
)
def forward(signature: Signature) -> Work:
    """Price a sum, a sum of squares, and scale and shift: 8 operations per element; a row is read once."""
    return replace(streaming(signature, "normalization", flops=8), streams=ROWS)


@rule(
    "normalization",
    *("native_layer_norm_backward", "native_group_norm_backward", "_fused_rms_norm_backward"),
    *("native_batch_norm_backward", "cudnn_batch_norm_backward", "batch_norm_backward", "batch_norm_backward_elemt"),
    *("batch_norm_backward_reduce", "_weight_norm_interface_backward"),
)
def backward(signature: Signature) -> Work:
    """Price two sums over rows and the gradient: a second kernel sums the gradients of scale and shift."""
    return replace(streaming(signature, "normalization", flops=14), kernels=2, streams=ROWS)


@rule(
    "softmax",
    "_softmax",
    "_log_softmax",
    "_safe_softmax",
    "logsumexp",
    "_masked_softmax",
    "_logcumsumexp",
    "logcumsumexp",
)
def softmax(signature: Signature) -> Work:
    """Price maximum, exponential, sum and division; a row stays on the chip."""
    return replace(streaming(signature, "softmax", flops=4, special=1), streams=ROWS)


@rule("softmax", "_softmax_backward_data", "_log_softmax_backward_data", "_masked_softmax_backward")
def softmax_backward(signature: Signature) -> Work:
    """Price a sum of products and the gradient."""
    special = 1.0 if "log" in signature.base else 0.0
    return replace(streaming(signature, "softmax", flops=4, special=special), streams=ROWS)
