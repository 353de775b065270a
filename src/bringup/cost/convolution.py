"""Convolutions, priced as the products that they are: the filter against patches of the input."""

from __future__ import annotations

import math

from bringup.cost.rules import Gemm, Work, rule
from bringup.cost.signature import Signature, Tensor


def forward_gemm(weight: Tensor, pixels: int, batch: int, groups: int) -> Gemm:
    """Return the product of one convolution; ``pixels`` are the output's, or the input's if it is transposed.

    The flops are those of ``torch.utils.flop_counter.conv_flop_count``.
    """
    outer, inner, *window = weight.shape
    return Gemm(groups, batch * pixels, max(outer // groups, 1), inner * math.prod(window))


def _gemm(signature: Signature, data: Tensor, result: Tensor, weight: Tensor) -> Gemm:
    groups = int(signature.args.get("groups") or 1)
    transposed = bool(signature.args.get("transposed", False))
    batch = data.shape[0] if len(data.shape) == len(weight.shape) else 1
    pixels = math.prod((data if transposed else result).shape[-(len(weight.shape) - 2) :])
    return forward_gemm(weight, pixels, batch, groups)


def _work(signature: Signature, gemms: tuple[Gemm, ...], vector_flops: float = 0.0) -> Work:
    items = max(gemm.batch * gemm.m * gemm.n for gemm in gemms) if gemms else 1
    return Work(
        "convolution",
        signature.dtype,
        gemms,
        vector_flops,
        0.0,
        signature.read_bytes,
        signature.written_bytes,
        items,
        kernels=max(len(gemms), 1),
    )


@rule(
    "convolution",
    *("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution", "_slow_conv2d_forward"),
    *("slow_conv3d_forward", "slow_conv_transpose2d", "slow_conv_transpose3d", "slow_conv_dilated2d"),
    *("slow_conv_dilated3d", "_conv_depthwise2d", "conv_depthwise3d", "thnn_conv2d"),
)
def forward(signature: Signature) -> Work:
    """Price output pixels x filters x (channels x window)."""
    data, weight, result = signature.tensors[0], signature.tensor("weight"), signature.results[0]
    assert weight is not None
    return _work(signature, (_gemm(signature, data, result, weight),))


@rule("convolution", "convolution_backward", "convolution_backward_overrideable", "_slow_conv2d_backward")
def backward(signature: Signature) -> Work:
    """Price one product for the input's gradient and one for the filter's, each as large as the forward one."""
    gradient, data, weight = signature.tensors[:3]
    mask = signature.args.get("output_mask") or [True, True, True]
    gemm = _gemm(signature, data, gradient, weight)
    gemms = []
    if mask[0]:
        gemms.append(Gemm(gemm.batch, gemm.m, gemm.k, gemm.n))
    if mask[1]:
        gemms.append(Gemm(gemm.batch, gemm.n, gemm.k, gemm.m))
    return _work(signature, tuple(gemms), vector_flops=gradient.numel if mask[2] else 0.0)
