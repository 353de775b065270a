"""Matrix products."""

from __future__ import annotations

import math
from dataclasses import replace

from bringup.cost.rules import Gemm, Work, names, rule
from bringup.cost.signature import Signature, Tensor


def allowed_tf32(signature: Signature, switch: str) -> str:
    """Return the name of a switch for TF32 if it was on at the launch, else ""."""
    return switch if switch in signature.tf32 else ""


def _is_aligned(tensor: Tensor) -> bool:
    """Return True if all rows or columns start at multiples of 16 bytes, which wide loads of tensor cores need."""
    if sum(size > 1 for size in tensor.shape[-2:]) < 2:
        return True
    strides = (stride for size, stride in zip(tensor.shape, tensor.strides, strict=True) if size > 1 and stride > 1)
    return all(stride * tensor.item_bytes % 16 == 0 for stride in strides)


def _is_outer(first: Tensor, second: Tensor) -> bool:
    """Return True if the rows of the second factor, and the columns of the first, are contiguous, and no others."""
    if min(*first.shape[-2:], *second.shape[-2:]) < 2:
        return False
    return first.strides[-2] == 1 and second.strides[-1] == 1


def product(signature: Signature, gemm: Gemm) -> Work:
    """Return the work of one product that reads its inputs and writes its result."""
    return Work(
        family="matmul",
        dtype=signature.dtype,
        gemms=(gemm,),
        read_bytes=signature.read_bytes,
        written_bytes=signature.written_bytes,
        items=gemm.batch * gemm.m * gemm.n,
        tf32=allowed_tf32(signature, "matmul"),
        aligned=all(map(_is_aligned, (*signature.tensors, *signature.results))),
    )


@rule("matmul", "mm", "addmm", "_addmm_activation", "sspaddmm", "_int_mm", "_scaled_mm", "_scaled_mm_v2", "addmv", "mv")
def two_dimensional(signature: Signature) -> Work:
    """Price [m, k] by [k, n], or by [k]. Operators name their factors differently."""
    if signature.base == "mv":
        factors = ("self", "vec")
    elif "mat1" in signature.args:
        factors = ("mat1", "mat2")
    elif "vec" in signature.args:
        factors = ("mat", "vec")
    else:
        factors = ("self", "mat2")
    first, second = (signature.required(name) for name in factors)
    m, k = first.shape
    if len(second.shape) < 2:
        return product(signature, Gemm(1, m, 1, k))
    return product(signature, Gemm(1, m, second.shape[1], k, outer=_is_outer(first, second)))


@rule("matmul", "bmm", "baddbmm", "addbmm")
def batched(signature: Signature) -> Work:
    """Price [b, m, k] by [b, k, n]."""
    factors = ("self", "mat2") if signature.base == "bmm" else ("batch1", "batch2")
    first, second = (signature.required(name) for name in factors)
    b, m, k = first.shape
    return product(signature, Gemm(b, m, second.shape[2], k, outer=_is_outer(first, second)))


@rule("matmul", "_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2")
def grouped(signature: Signature) -> Work:
    """Price the products of a mixture of experts. Groups that share a dimension count as equally large.

    Another kernel prepares the addresses of the groups. Dtypes other than bfloat16 have a product per group
    (_grouped_mm_fallback in aten/src/ATen/native/GroupedMMUtils.h).
    """
    first, second = signature.required("self"), signature.required("mat2")
    groups = (
        signature.results[0].shape[0]
        if len(first.shape) == len(second.shape)
        else max(first.shape, second.shape, key=len)[0]
    )
    m, k, n = first.shape[-2], first.shape[-1], second.shape[-1]
    if len(first.shape) == 2 and len(second.shape) == 3:
        m = math.ceil(m / groups)
    elif len(first.shape) == 3 and len(second.shape) == 2:
        n = math.ceil(n / groups)
    elif len(first.shape) == 2:
        k = math.ceil(k / groups)
    if signature.base == "_grouped_mm" and signature.dtype != "bfloat16":
        work = product(signature, Gemm(1, m, n, k))
        return replace(work, gemms=work.gemms * groups, kernels=groups)
    return replace(product(signature, Gemm(groups, m, n, k)), kernels=2)


@rule("matmul", "dot", "vdot")
def inner(signature: Signature) -> Work:
    """Price a sum of products on the vector units, because it is memory-bound."""
    return Work(
        family="matmul",
        dtype=signature.dtype,
        vector_flops=2 * signature.tensors[0].numel,
        read_bytes=signature.read_bytes,
        written_bytes=signature.written_bytes,
        items=1024,
    )


@rule(
    "matmul",
    *names("""
        linear matmul mkldnn_linear _trilinear _cdist_forward _cdist_backward _euclidean_dist
        _weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_for_cpu _dyn_quant_matmul_4bit
    """),
)
def general(signature: Signature) -> Work:
    """Price a product of any rank: the result's last dimension is n, its other dimensions together are m."""
    first, result = signature.tensors[0], signature.results[0]
    k = first.shape[-1] if first.shape else 1
    n = result.shape[-1] if result.shape else 1
    return product(signature, Gemm(1, math.prod(result.shape[:-1]), n, k))
