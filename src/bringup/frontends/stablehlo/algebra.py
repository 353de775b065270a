"""StableHLO's linear algebra and transforms, and the LAPACK functions that JAX calls on its CPU."""

from __future__ import annotations

import re
from typing import Any

import torch

from bringup.frontends.stablehlo.module import Op
from bringup.frontends.stablehlo.operators import Call, Tensor, operator

_LAPACK = re.compile(r"lapack_[sdcz](potrf|getrf|geqrf|orgqr|ungqr|trsm|syevd|heevd|gesdd|gtsv|geev)_ffi")
_APPROXIMATE = "ApproxTopK"  # of jax.lax.approx_max_k and approx_min_k
_IDENTITY = ("Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "annotate_device_placement")


@operator("cholesky")
def cholesky(call: Call, x: Tensor) -> Tensor:
    return torch.linalg.cholesky_ex(x, upper=not call("lower", True)).L


@operator("triangular_solve")
def triangular_solve(call: Call, a: Tensor, b: Tensor) -> Tensor:
    lower = call("lower")
    if call("transpose_a") not in ("NO_TRANSPOSE", "TRANSPOSE_INVALID"):
        a, lower = (a.mH if call("transpose_a") == "ADJOINT" else a.mT), not lower
    return torch.linalg.solve_triangular(
        a, b, upper=not lower, left=call("left_side"), unitriangular=call("unit_diagonal")
    )


@operator("fft")
def fft(call: Call, x: Tensor) -> Tensor:
    lengths = list(call("fft_length"))
    dims = list(range(x.dim() - len(lengths), x.dim()))
    kind = str(call("fft_type"))
    functions: dict[str, Any] = {
        "FFT": torch.fft.fftn,
        "IFFT": torch.fft.ifftn,
        "RFFT": torch.fft.rfftn,
        "IRFFT": torch.fft.irfftn,
    }
    return functions[kind](x, s=lengths, dim=dims)


def _other_target(op: Op) -> str:
    target = op.attributes["call_target_name"]
    return "" if target in (*_IDENTITY, _APPROXIMATE) or _LAPACK.fullmatch(target) else f"of {target}"


@operator("custom_call", refusal=_other_target)
def custom_call(call: Call, *items: Tensor) -> Any:
    target = call("call_target_name")
    if target in _IDENTITY:
        return items[0]
    options = {key: _letter(value) for key, value in call("mhlo.backend_config", {}).items()}
    if target == _APPROXIMATE:
        return _best(call, options, *items)
    match = _LAPACK.fullmatch(target)
    assert match is not None
    return _FUNCTIONS[match[1]](call, options, *items)


def _letter(value: Any) -> Any:
    return chr(value) if isinstance(value, int) and 64 < value < 91 else value


def _best(call: Call, options: dict[str, Any], x: Tensor, numbers: Tensor, *_initial: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best elements along a dimension, and their places: all of them, as XLA's CPU does, not most."""
    dim = options["reduction_dim"]
    one, zero = (torch.tensor(value, dtype=x.dtype) for value in (1, 0))
    places = [torch.tensor(0, dtype=numbers.dtype)] * 2
    largest = bool(call.call(call("called_computations")[0], [one, zero, *places])[0])
    order = torch.sort(x, dim=dim, descending=largest, stable=True).indices.narrow(dim, 0, call.shape[dim])
    return x.gather(dim, order), numbers.gather(dim, order)


def _potrf(call: Call, options: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    result = torch.linalg.cholesky_ex(x, upper=options["uplo"] == "U")
    return result.L, result.info


def _getrf(call: Call, options: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    result = torch.linalg.lu_factor_ex(x)
    return result.LU, result.pivots, result.info


def _geqrf(call: Call, options: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.geqrf(x)


def _orgqr(call: Call, options: dict[str, Any], x: Tensor, tau: Tensor) -> Tensor:
    return torch.linalg.householder_product(x, tau)


def _trsm(call: Call, options: dict[str, Any], a: Tensor, b: Tensor) -> Tensor:
    upper = options["uplo"] == "U"
    if options["trans_x"] != "N":
        a, upper = (a.mH if options["trans_x"] == "C" else a.mT), not upper
    return torch.linalg.solve_triangular(
        a, b, upper=upper, left=options["side"] == "L", unitriangular=options["diag"] == "U"
    )


def _syevd(call: Call, options: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(x, UPLO=options["uplo"])
    info = call.op.result_types[2]
    return vectors, values, torch.zeros(info.shape, dtype=info.dtype, device=x.device)


def _gesdd(call: Call, options: dict[str, Any], x: Tensor) -> tuple[Tensor, ...]:
    *_, kind_u, kind_v, info = call.op.result_types
    full = kind_u.shape[-1] == kind_u.shape[-2] and kind_v.shape[-1] == kind_v.shape[-2]
    left, values, right = torch.linalg.svd(x, full_matrices=full)
    return x, values, left, right, torch.zeros(info.shape, dtype=info.dtype, device=x.device)


def _gtsv(call: Call, options: dict[str, Any], *items: Tensor) -> tuple[Tensor, ...]:
    """Solve tridiagonal systems as dense ones: torch has no other solver."""
    low, middle, high, b = items
    places = (low[..., 1:], -1), (middle, 0), (high[..., :-1], 1)
    whole = sum(torch.diag_embed(values, offset) for values, offset in places)
    result, info = torch.linalg.solve_ex(whole, b)
    return low, middle, high, result, info


def _geev(call: Call, options: dict[str, Any], x: Tensor) -> tuple[Tensor, ...]:
    *_, kind_left, kind_right, info = call.op.result_types
    values, right = torch.linalg.eig(x)
    left = torch.linalg.inv(right).mH if options.get("compute_left") == "V" else right
    left = left / left.abs().square().sum(-2, keepdim=True).sqrt()  # as LAPACK scales it
    parts = (values,) if x.is_complex() else (values.real, values.imag)
    status = torch.zeros(info.shape, dtype=info.dtype, device=x.device)
    return *parts, left.to(kind_left.dtype), right.to(kind_right.dtype), status


_FUNCTIONS: dict[str, Any] = {
    "potrf": _potrf,
    "getrf": _getrf,
    "geqrf": _geqrf,
    "orgqr": _orgqr,
    "ungqr": _orgqr,
    "trsm": _trsm,
    "syevd": _syevd,
    "heevd": _syevd,
    "gesdd": _gesdd,
    "gtsv": _gtsv,
    "geev": _geev,
}
