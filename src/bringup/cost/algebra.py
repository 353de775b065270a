"""Dense linear algebra and Fourier transforms."""

from __future__ import annotations

import math

from bringup.cost.rules import Gemm, Work, names, rule
from bringup.cost.signature import Signature


@rule(
    "linalg",
    *names("""
        linalg_ linalg_matrix_exp matrix_exp _compute_linear_combination
        cholesky cholesky_solve cholesky_inverse _cholesky_solve_helper
        lu_unpack lu_solve linalg_lu_factor_ex _lu_with_info
        inverse _linalg_inv_ex _linalg_solve_ex triangular_solve _linalg_det _linalg_slogdet _linalg_check_errors
        geqrf orgqr ormqr householder_product svd _linalg_svd _linalg_eigh _linalg_eigvals
    """),
)
def factorization(signature: Signature) -> Work:
    """Price n^3 operations per matrix, in successive blocks of 32 columns (LAPACK's order)."""
    data = signature.tensors[0]
    if len(data.shape) < 2:
        return Work(
            family="linalg",
            dtype=data.dtype,
            vector_flops=data.numel,
            read_bytes=signature.read_bytes,
            written_bytes=signature.written_bytes,
        )
    *batch, rows, columns = data.shape
    size = min(rows, columns)
    blocks = max(1, math.ceil(size / 32))
    gemm = Gemm(math.prod(batch), rows, columns, max(size, 1))
    return Work(
        family="linalg",
        dtype=data.dtype,
        gemms=(gemm,),
        special=float(size),
        read_bytes=signature.read_bytes * blocks,
        written_bytes=signature.written_bytes * blocks,
        items=max(data.numel, 1),
        kernels=2 * blocks,
    )


@rule("fft", "_fft_", "fft_fft", "stft", "istft")
def fourier(signature: Signature) -> Work:
    """Price 5 n log2 n operations per transform (Cooley & Tukey), and two passes over memory if n exceeds 8,192."""
    data, result = signature.tensors[0], signature.results[0]
    dims = signature.args.get("dim") or [-1]
    n = math.prod(data.shape[d] for d in (dims if isinstance(dims, list) else [dims])) or 1
    elements = max(data.numel, result.numel, 1)
    passes = 1 if n <= 8192 else 2
    return Work(
        family="fft",
        dtype=signature.dtype,
        vector_flops=5 * elements * math.log2(max(n, 2)),
        read_bytes=signature.read_bytes * passes,
        written_bytes=signature.written_bytes * passes,
        items=elements,
        kernels=passes,
    )
