"""Convolutions, priced as matrix products of the filters and patches of the input."""

from __future__ import annotations

import math

from bringup.cost.matmul import allowed_tf32
from bringup.cost.rules import Gemm, Work, names, rule
from bringup.cost.signature import Signature, Tensor

# PyTorch's own depthwise kernels on an H100 (our own measurement, torch 2.11, float32): an output takes 2.5 cycles of a
# core with 9 taps and 8.8 with 49, so finding its addresses takes as long as 7 taps. The gradients of 3 x 3 windows
# take 342 us (data) and 295 us (filters) where the forward pass takes 191.
ADDRESS_TAPS = 7
BACKWARD_SLOWER = 1.67


def forward_gemm(weight: Tensor, pixels: int, batch: int, groups: int) -> Gemm:
    """Return the matrix product of one convolution.

    ``pixels`` counts those of the output, or those of the input of a transposed convolution. The flops equal
    ``torch.utils.flop_counter.conv_flop_count``. cuDNN divides k for the filter's gradient only: profiles of float32
    convolutions on an H100 (cuDNN 9.19) have one kernel each, whose time grows with all of k.
    """
    outer, inner, *window = weight.shape
    return Gemm(groups, batch * pixels, max(outer // groups, 1), inner * math.prod(window), whole=True)


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


def _work(
    signature: Signature,
    gemms: tuple[Gemm, ...],
    vector_flops: float = 0.0,
    winograd: bool = False,
    bias_bytes: float = 0.0,
) -> Work:
    weight = signature.tensor("weight") or signature.tensors[-1]
    if gemms and gemms[0].batch > 1 and weight.shape[1] == 1:
        return _depthwise(signature, gemms, vector_flops, bias_bytes)
    items = max(gemm.batch * gemm.m * gemm.n for gemm in gemms) if gemms else 1
    converted = _converted_bytes(signature, weight) * len(gemms)
    return Work(
        family="convolution",
        dtype=signature.dtype,
        gemms=gemms,
        vector_flops=vector_flops,
        read_bytes=signature.read_bytes - _skipped_bytes(signature, weight),
        written_bytes=signature.written_bytes,
        items=items,
        kernels=max(len(gemms), 1),
        winograd=winograd,
        tf32=allowed_tf32(signature, "convolution"),
        converted_bytes=float(sum(converted)),
        conversions=len(converted),
        channels_last=not _is_channels_first(signature, weight),
        bias_bytes=bias_bytes,
        aligned=weight.shape[1] * weight.item_bytes % 16 == 0,
    )


def _skipped_bytes(signature: Signature, weight: Tensor) -> float:
    """Return the bytes of the data that no window touches: rows, and pixels if their channels are contiguous."""
    if signature.args.get("transposed", False):
        return 0.0
    data = signature.tensors[1] if "backward" in signature.base else signature.tensors[0]
    windows = weight.shape[2:]
    steps = list(signature.args.get("stride") or [1])
    steps = steps * len(windows) if len(steps) == 1 else steps
    apart = list(zip(windows, steps, strict=False))[: len(windows) - _is_channels_first(signature, weight)]
    return data.nbytes * (1 - math.prod(min(1.0, window / step) for window, step in apart))


def _converted_bytes(signature: Signature, weight: Tensor) -> list[int]:
    """Return the traffic of the changes of layout around one product of a convolution, if the library makes them.

    cuDNN's kernels for tensor cores want channels last. For other layouts it converts both factors of every product
    before, and the product after: 2 conversions of activations and 1 of the filter, counted in profiles of an H100 with
    cuDNN 9.19. Channels that do not fill 16 bytes are filled up with zeros, in memory that is cleared before.

    Its kernels for plain float32 want channels first. It converts data and results with channels last, and filters with
    windows: 51, 51 and 16 conversions in our profile of a compiled ResNet-50 with 53 convolutions on the same H100.
    """
    data = signature.tensors[1] if "backward" in signature.base else signature.tensors[0]
    gradient = signature.tensors[0] if "backward" in signature.base else signature.results[0]
    if not _is_channels_first(signature, weight):
        filters = [weight] if math.prod(weight.shape[2:]) > 1 else []
        return [2 * tensor.nbytes for tensor in (data, *filters, gradient)]
    if _is_product(signature, weight):
        return []
    row = weight.shape[1] * weight.item_bytes
    filled = 1.0 if row % 16 == 0 else 2 * (math.ceil(row / 16) * 16) / row
    return [round(tensor.nbytes * (1 + filled)) for tensor in (data, weight)] + [2 * gradient.nbytes]


def _is_product(signature: Signature, weight: Tensor) -> bool:
    """Return True for windows of one pixel with stride 1, which are plain products of matrices as they lie."""
    return math.prod(weight.shape[2:]) == 1 and all(step == 1 for step in signature.args.get("stride") or [1])


def _is_channels_first(signature: Signature, weight: Tensor) -> bool:
    data = signature.tensors[1] if "backward" in signature.base else signature.tensors[0]
    channels = 1 - len(weight.shape)
    return data.strides[channels] != 1 or data.shape[channels] == 1


def _depthwise(signature: Signature, gemms: tuple[Gemm, ...], vector_flops: float, bias_bytes: float) -> Work:
    """Price one filter per channel on the vector units, because too little data is reused for a matrix product.

    PyTorch's own kernels add the bias.
    """
    weight = signature.tensor("weight") or signature.tensors[-1]
    backward, own = "backward" in signature.base, _is_own_depthwise(signature, weight)
    taps = math.prod(weight.shape[2:])
    flops = sum(gemm.flops for gemm in gemms)
    return Work(
        family="depthwise",
        dtype=signature.dtype,
        vector_flops=vector_flops + flops,
        own_flops=own * flops * (1 + ADDRESS_TAPS / taps) * (BACKWARD_SLOWER if backward else 1.0),
        read_bytes=signature.read_bytes * len(gemms),
        written_bytes=signature.written_bytes,
        items=max(sum(tensor.numel for tensor in signature.results), 1),
        kernels=len(gemms),
        bias_bytes=0.0 if own and not backward else bias_bytes,
    )


def _is_own_depthwise(signature: Signature, weight: Tensor) -> bool:
    """Return True where PyTorch on CUDA takes its own depthwise kernels, and not those of cuDNN.

    cuDNN has channels last, transposed convolutions, and float16 with windows of 1, 3 or 5 pixels
    (use_cudnn_depthwise in aten/src/ATen/native/Convolution.cpp).
    """
    if signature.args.get("transposed", False) or not _is_channels_first(signature, weight):
        return False
    return weight.dtype != "float16" or weight.shape[-1] not in (1, 3, 5)


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
    bias_bytes = 2.0 * result.nbytes if signature.tensor("bias") else 0.0
    return _work(signature, gemms, winograd=_is_winograd(signature, weight), bias_bytes=bias_bytes)


@rule("convolution", "convolution_backward", "convolution_backward_overrideable", "_slow_conv2d_backward")
def backward(signature: Signature) -> Work:
    """Price one product for the input's gradient and one for the filter's, each as large as the forward one."""
    gradient, data, weight = signature.tensors[:3]
    mask = signature.args.get("output_mask") or [True, True, True]
    gemm = _gemm(signature, data, gradient, weight)
    gemms = []
    if mask[0]:
        gemms.append(Gemm(gemm.batch, gemm.m, gemm.k, gemm.n, whole=True))
    if mask[1]:
        gemms.append(Gemm(gemm.batch, gemm.n, gemm.k, gemm.m, gathers=not _is_product(signature, weight)))
    added, bias_bytes = (float(gradient.numel), float(gradient.nbytes)) if mask[2] else (0.0, 0.0)
    return _work(signature, tuple(gemms), added, _is_winograd(signature, weight), bias_bytes)
