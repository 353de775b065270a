"""Dense linear algebra and Fourier transforms."""

from __future__ import annotations

import math

from bringup.cost.rules import Gemm, Work, rule
from bringup.cost.signature import Signature


@rule(
    "linalg",
    *("linalg_", "cholesky", "cholesky_solve", "cholesky_inverse", "triangular_solve", "lu_unpack", "_linalg_det"),
    *(
        "_linalg_eigh",
        "_linalg_eigvals",
        "_linalg_slogdet",
        "_linalg_solve_ex",
        "_linalg_svd",
        "geqrf",
        "orgqr",
        "ormqr",
    ),
    *(
        "inverse",
        "lu_solve",
        "matrix_exp",
        "linalg_matrix_exp",
        "_linalg_check_errors",
        "_cholesky_solve_helper",
        "svd",
    ),
    *("_linalg_inv_ex", "linalg_lu_factor_ex", "householder_product", "_compute_linear_combination", "_lu_with_info"),
)
def factorization(signature: Signature) -> Work:
    """Price n^3 operations per matrix, done in blocks of 32 columns one after the other (LAPACK's order)."""
    data = signature.tensors[0]
    if len(data.shape) < 2:
        return Work("linalg", data.dtype, (), data.numel, 0, signature.read_bytes, signature.written_bytes)
    *batch, rows, columns = data.shape
    size = min(rows, columns)
    blocks = max(1, math.ceil(size / 32))
    gemm = Gemm(math.prod(batch), rows, columns, max(size, 1))
    return Work(
        "linalg",
        data.dtype,
        (gemm,),
        0.0,
        float(size),
        signature.read_bytes * blocks,
        signature.written_bytes * blocks,
        max(data.numel, 1),
        kernels=2 * blocks,
    )


@rule("fft", "_fft_", "fft_fft", "stft", "istft")
def fourier(signature: Signature) -> Work:
    """Price 5 n log2 n operations per transform (Cooley & Tukey), two passes over memory beyond the scratchpad."""
    data, result = signature.tensors[0], signature.results[0]
    dims = signature.args.get("dim") or [-1]
    n = math.prod(data.shape[d] for d in (dims if isinstance(dims, list) else [dims])) or 1
    elements = max(data.numel, result.numel, 1)
    passes = 1 if n <= 8192 else 2
    return Work(
        "fft",
        signature.dtype,
        (),
        5 * elements * math.log2(max(n, 2)),
        0,
        signature.read_bytes * passes,
        signature.written_bytes * passes,
        elements,
        kernels=passes,
    )
