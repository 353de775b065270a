"""Operators on sparse tensors, which are recorded by their parts: values, then indices."""

from __future__ import annotations

import math

from bringup.cost.memory import GATHER
from bringup.cost.rules import Work, names, rule, streaming
from bringup.cost.signature import Signature, Tensor

PRODUCTS = names("mm addmm mv addmv bmm matmul _sparse_mm _sparse_addmm _sparse_mm_reduce_impl hspmm sspaddmm")
SORTS = names("_coalesce coalesce _to_sparse _to_sparse_csr _to_sparse_csc to_sparse")
# Kernels of one call: rows to offsets and the product; keys, their sort, duplicates, sums and both results (torch's
# SparseCUDABlas.cpp and SparseCUDATensor.cu).
PRODUCT_KERNELS, SORT_KERNELS = 2, 6


def _is_sparse(signature: Signature, name: str) -> bool:
    return f"{name}.sizes" in signature.args


def _factors(signature: Signature) -> tuple[str, str]:
    """Return the names of a product's factors. Operators name them differently."""
    first = next(name for name in ("mat1", "batch1", "mat", "sparse", "self") if signature.tensor(name) is not None)
    second = next(name for name in ("mat2", "batch2", "vec", "dense", "other") if signature.tensor(name) is not None)
    return first, second


def _multiplications(signature: Signature, first: str, second: str) -> float:
    """Return the multiplications of a product; those of two sparse factors if nonzeros are evenly spread."""
    if _is_sparse(signature, first) and _is_sparse(signature, second):
        shared: int = signature.args[f"{second}.sizes"][0]
        return signature.required(first).numel * signature.required(second).numel / max(shared, 1)
    sparse, dense = (first, second) if _is_sparse(signature, first) else (second, first)
    shape = signature.required(dense).shape
    columns = shape[-1] if dense == second and len(shape) > 1 else shape[0] if dense == first else 1
    return float(signature.required(sparse).numel * columns)


@rule("sparse", "sparse")
def sparse(signature: Signature) -> Work:
    """Price products by their nonzeros, and conversions as a sort of the indices.

    A product reads both parts of a sparse factor once, and for every nonzero a row of the other factor. Such rows are
    picked at random, as in a gather. cuSPARSE and rocSPARSE are limited by this traffic, not by arithmetic (Yang, Buluc
    & Owens, "Design Principles for Sparse Matrix Multiplication on the GPU", 2018).
    """
    if signature.base in PRODUCTS:
        return _product(signature)
    if signature.base in SORTS:
        return _sort(signature)
    return streaming(signature, "sparse")


def _product(signature: Signature) -> Work:
    first, second = _factors(signature)
    multiplications = _multiplications(signature, first, second)
    values = signature.required(first if _is_sparse(signature, first) else second)
    both = _is_sparse(signature, first) and _is_sparse(signature, second)
    dense = signature.required(second if values is signature.required(first) else first)
    others = 0 if both else dense.nbytes
    element = values.item_bytes + (8 if both else 0)  # the second factor's index is read with its value
    return Work(
        family="sparse",
        dtype=values.dtype,
        vector_flops=2 * multiplications,
        read_bytes=signature.read_bytes - others + multiplications * element,
        written_bytes=signature.written_bytes,
        items=max(_results(signature), 1),
        kernels=PRODUCT_KERNELS,
        streams=GATHER,
    )


def _sort(signature: Signature) -> Work:
    """Price a radix sort of 8-byte keys with positions, one pass per byte (Merrill & Grimshaw, 2011), and the sums."""
    keys = max((tensor.shape[-1] for tensor in signature.tensors if _is_index(tensor)), default=0)
    keys = keys or max((tensor.shape[-1] for tensor in signature.results if _is_index(tensor)), default=1)
    moved = 8.0 * keys * (8 + 8)
    return Work(
        family="sparse",
        dtype=signature.dtype,
        vector_flops=float(keys) * max(math.log2(max(keys, 2)), 1),
        read_bytes=signature.read_bytes + moved,
        written_bytes=signature.written_bytes + moved,
        items=max(keys, 1),
        kernels=SORT_KERNELS,
    )


def _is_index(tensor: Tensor) -> bool:
    return tensor.dtype in ("int64", "int32") and bool(tensor.shape)


def _results(signature: Signature) -> int:
    return sum(tensor.numel for tensor in signature.results)
