"""Convolutions, priced as matrix products of the filters and patches of the input."""

from __future__ import annotations

import math

from bringup.cost.matmul import allowed_tf32
from bringup.cost.rules import Gemm, Work, names, rule
from bringup.cost.signature import Signature, Tensor


def forward_gemm(weight: Tensor, pixels: int, batch: int, groups: int) -> Gemm:
    """Return the matrix product of one convolution.

    ``pixels`` counts those of the output, or those of the input of a transposed convolution. The flops equal
    ``torch.utils.flop_counter.conv_flop_count``.
    """
    outer, inner, *window = weight.shape
    return Gemm(groups, batch * pixels, max(outer // groups, 1), inner * math.prod(window))


def _gemm(signature: Signature, data: Tensor, result: Tensor, weight: Tensor) -> Gemm:
    groups = int(signature.args.get("groups") or 1)
    transposed = bool(signature.args.get("transposed", False))
    batch = data.shape[0] if len(data.shape) == len(weight.shape) else 1
    pixels = math.prod((data if transposed else result).shape[-(len(weight.shape) - 2) :])
    return forward_gemm(weight, pixels, batch, groups)


def _is_winograd(signature: Signature, weight: Tensor) -> bool:
    """Return True for a dense 3 x 3 convolution with stride 1 and dilation 1 (Lavin & Gray, CVPR 2016)."""
    steps = [*(signature.args.get("stride") or [1]), *(signature.args.get("dilation") or [1])]
    return weight.shape[2:] == (3, 3) and all(step == 1 for step in steps) and weight.shape[1] >= 16


def _work(signature: Signature, gemms: tuple[Gemm, ...], vector_flops: float = 0.0, winograd: bool = False) -> Work:
    weight = signature.tensor("weight") or signature.tensors[-1]
    if gemms and gemms[0].batch > 1 and weight.shape[1] == 1:
        return _depthwise(signature, gemms, vector_flops)
    items = max(gemm.batch * gemm.m * gemm.n for gemm in gemms) if gemms else 1
    converted = _converted_tensors(signature, weight, len(gemms))
    return Work(
        family="convolution",
        dtype=signature.dtype,
        gemms=gemms,
        vector_flops=vector_flops,
        read_bytes=signature.read_bytes,
        written_bytes=signature.written_bytes,
        items=items,
        kernels=max(len(gemms), 1),
        winograd=winograd,
        tf32=allowed_tf32(signature, "convolution"),
        converted_bytes=2.0 * sum(tensor.nbytes for tensor in converted),
        conversions=len(converted),
    )


def _converted_tensors(signature: Signature, weight: Tensor, products: int) -> list[Tensor]:
    """Return the tensors whose layout changes around a convolution in TF32, once for every product that uses them.

    cuDNN's kernels for tensor cores want channels last. For other layouts it converts both factors of every product
    before, and the product after, at the rate of a copy: 2 conversions of activations and 1 of the filter, counted in
    profiles of an H100 with cuDNN 9.19. Windows of one pixel with stride 1 are plain products, which need none.
    """
    data = signature.tensors[1] if "backward" in signature.base else signature.tensors[0]
    gradient = signature.tensors[0] if "backward" in signature.base else signature.results[0]
    channels_last = data.strides[1 - len(weight.shape)] == 1 and data.shape[1 - len(weight.shape)] > 1
    plain = math.prod(weight.shape[2:]) == 1 and all(step == 1 for step in signature.args.get("stride") or [1])
    return [] if channels_last or plain else [data, gradient, weight] * products


def _depthwise(signature: Signature, gemms: tuple[Gemm, ...], vector_flops: float) -> Work:
    """Price one filter per channel on the vector units, because too little data is reused for a matrix product."""
    return Work(
        family="depthwise",
        dtype=signature.dtype,
        vector_flops=vector_flops + sum(gemm.flops for gemm in gemms),
        read_bytes=signature.read_bytes * len(gemms),
        written_bytes=signature.written_bytes,
        items=max(sum(tensor.numel for tensor in signature.results), 1),
        kernels=len(gemms),
    )


@rule(
    "convolution",
    *names("""
        convolution _convolution convolution_overrideable mkldnn_convolution thnn_conv2d
        _slow_conv2d_forward slow_conv3d_forward slow_conv_transpose2d slow_conv_transpose3d
        slow_conv_dilated2d slow_conv_dilated3d _conv_depthwise2d conv_depthwise3d
    """),
)
def forward(signature: Signature) -> Work:
    """Price a product of output pixels x filters x (channels x window)."""
    data, weight, result = signature.tensors[0], signature.required("weight"), signature.results[0]
    gemms = (_gemm(signature, data, result, weight),)
    return _work(signature, gemms, winograd=_is_winograd(signature, weight))


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
    bias = float(gradient.numel) if mask[2] else 0.0
    return _work(signature, tuple(gemms), bias, _is_winograd(signature, weight))
