"""Normalisation and softmax: a few passes over rows."""

from __future__ import annotations

import math
from dataclasses import replace

from bringup.cost.rules import Work, names, rule, streaming
from bringup.cost.signature import Signature

THREADS = 2048  # resident on one core of a GPU (CUDA C++ Programming Guide, technical specifications)
# Layer norm uses one block of 128 threads per row (vectorized_layer_norm_kernel in torch's layer_norm_kernel.cu). One
# pass computes mean and variance, another one applies scale and shift.
ROWS_IN_FLIGHT = THREADS // 128
# Latencies that such a block waits for loads and for the sums of its threads, which other blocks of the core overlap.
# Chosen: our measurement on the H100 of 65,536 rows of 768 bfloat16 gives 12, and LLMCompass's of an A100 give less.
LAYER_WAITS = 8
# Group norm has three kernels: moments, factors, and scale and shift. The first has one block of 512 threads per group,
# each of which reads one element after the other (RowwiseMomentsCUDAKernel in
# aten/src/ATen/native/cuda/group_norm_kernel.cu). Its gradient has two for the products' sums and those of each group,
# one for factors, one for scale and shift and one for the parameters.
GROUP_THREADS, GROUP_KERNELS, GROUP_BACKWARD_KERNELS = 512, 3, 5
# Integer instructions per element of cuDNN's batch norm in inference (bn_fw_inf_1C11_kernel_NCHW and _NHWC), which
# finds each element by strides. Own measurement on the H100: median 0.3e12 elements/s in float32 and float16.
BATCH_OFFSET = 48
# The gradients of layer norm's parameters have one block per 32 columns, which steps through all rows, 256 at a time
# (GammaBetaBackwardCUDAKernelTemplate in torch's layer_norm_kernel.cu). Latencies of a step, one after the other, from
# our measurement on the H100 of 8,192 and 65,536 rows of 768, alike in float32 and bfloat16: 1.1 us with the mean,
# 0.86 us without.
ROWS_PER_STEP, STEP_WAITS, STEP_WAITS_RMS = 256, 3.6, 2.9
# Softmax keeps rows of up to 1,024 elements in registers (PersistentSoftmax.cuh). Longer rows are read three times, for
# the maximum, the sum and the result (SoftMax.cu). Their blocks have a thread per 16 bytes, 1,024 threads at most.
SHORT_ROW = 1024


def _row_length(signature: Signature) -> int:
    data = signature.tensors[0]
    dim = signature.args.get("dim")
    if isinstance(dim, int) and data.shape:
        return data.shape[dim]
    return data.shape[-1] if data.shape else 1


@rule(
    "normalization",
    *names("""
        native_layer_norm rms_norm _fused_rms_norm renorm local_response_norm _weight_norm_interface
        native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
        _native_batch_norm_legit_functional cudnn_batch_norm _batch_norm_with_update _batch_norm_no_update
        batch_norm_elemt batch_norm_stats batch_norm_update_stats batch_norm_gather_stats
    """),
)
def forward(signature: Signature) -> Work:
    """Price a sum, a sum of squares, and scale and shift: 8 operations per element; a row is read twice."""
    work = streaming(signature, "normalization", flops=8)
    if signature.args.get("training") is False or signature.base.endswith("no_training"):
        # The statistics are inputs, so one pass is enough.
        return replace(work, offsets=float(BATCH_OFFSET * signature.tensors[0].numel))
    data = signature.tensors[0]
    width = math.prod(signature.args.get("normalized_shape") or [_row_length(signature)])
    if "layer" not in signature.base and "rms" not in signature.base:
        width = max(data.numel // max(data.shape[1] if len(data.shape) > 1 else 1, 1), 1)
    in_flight = ROWS_IN_FLIGHT * width * data.item_bytes
    waits = LAYER_WAITS * data.numel / max(width, 1) / ROWS_IN_FLIGHT if "layer" in signature.base else 0.0
    return replace(work, again_bytes=float(data.nbytes), in_flight=in_flight, passes=1, waits=waits)


@rule("normalization", "native_layer_norm_backward", "_fused_rms_norm_backward")
def layer_backward(signature: Signature) -> Work:
    """Price the gradient of the input, and another kernel for those of the parameters, which steps through all rows."""
    width = math.prod(signature.args.get("normalized_shape") or [_row_length(signature)])
    rows = signature.tensors[0].numel / max(width, 1)
    waits = STEP_WAITS if "layer" in signature.base else STEP_WAITS_RMS
    return replace(backward(signature), chain=waits * math.ceil(rows / ROWS_PER_STEP))


@rule(
    "normalization",
    *names("""
        _weight_norm_interface_backward
        native_batch_norm_backward cudnn_batch_norm_backward
        batch_norm_backward batch_norm_backward_elemt batch_norm_backward_reduce
    """),
)
def backward(signature: Signature) -> Work:
    """Price two sums over rows and the gradient; a second kernel reads all inputs again for scale and shift."""
    work = streaming(signature, "normalization", flops=14)
    return replace(work, kernels=2, again_bytes=work.read_bytes, in_flight=math.inf)


@rule("normalization", "native_group_norm")
def group_forward(signature: Signature) -> Work:
    """Price the moments of each group, whose threads read in sequence, and another kernel for scale and shift."""
    work = streaming(signature, "normalization", flops=8)
    data = signature.tensors[0]
    groups = max(data.shape[0] * int(signature.args.get("group") or 1), 1)
    chain = math.ceil(data.numel / groups / GROUP_THREADS)
    again = float(data.nbytes)
    return replace(work, kernels=GROUP_KERNELS, again_bytes=again, in_flight=math.inf, chain=float(chain))


@rule("normalization", "native_group_norm_backward")
def group_backward(signature: Signature) -> Work:
    """Price sums over the pixels of each channel, and other kernels for the gradients."""
    return replace(backward(signature), kernels=GROUP_BACKWARD_KERNELS)


@rule(
    "softmax",
    *names("""
        _softmax _log_softmax _safe_softmax _masked_softmax logsumexp logcumsumexp _logcumsumexp
    """),
)
def softmax(signature: Signature) -> Work:
    """Price maximum, exponential, sum and division; a short row stays on the chip, a long one is read three times."""
    # About 25 instructions per element, none a multiply-add, so each takes the time of two operations.
    work = streaming(signature, "softmax", flops=50, special=1)
    data, width = signature.tensors[0], _row_length(signature)
    if width <= SHORT_ROW:
        return work
    # A long row takes an exponential in each of the last two passes.
    work = streaming(signature, "softmax", flops=50, special=2)
    threads = min(width * data.item_bytes // 16, 1024)
    in_flight = THREADS // threads * width * data.item_bytes
    return replace(work, again_bytes=2.0 * data.nbytes, in_flight=float(in_flight), passes=2)


@rule("softmax", "_softmax_backward_data", "_log_softmax_backward_data", "_masked_softmax_backward")
def softmax_backward(signature: Signature) -> Work:
    """Price a sum of products and the gradient; a long row is read twice.

    Except for the logarithm, the product of gradient and result is a kernel of its own (softmax_backward_cuda_out in
    aten/src/ATen/native/cuda/SoftMax.cu).
    """
    special = 1.0 if "log" in signature.base else 0.0
    work = streaming(signature, "softmax", flops=4, special=special)
    data, width = signature.tensors[0], _row_length(signature)
    if width > SHORT_ROW:
        in_flight = THREADS // min(width * data.item_bytes // 16, 1024) * width * data.item_bytes
        work = replace(work, again_bytes=work.read_bytes, in_flight=2.0 * in_flight, passes=1)
    if signature.base != "_softmax_backward_data":
        return work
    read, written = work.read_bytes + 2 * data.nbytes, work.written_bytes + data.nbytes
    return replace(work, read_bytes=read, written_bytes=written, kernels=2)
