"""The functions of libdevice (``tl.extra.libdevice``), computed with torch's functions."""

from __future__ import annotations

import math
from typing import Any

import torch

Tensor = torch.Tensor

_EXTERNAL: dict[str, Any] = {
    **{name: getattr(torch, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "asin", "acos", "atan")},
    **{name: getattr(torch, name) for name in ("asinh", "acosh", "atanh", "exp", "exp2", "expm1", "log", "log2")},
    **{name: getattr(torch, name) for name in ("log10", "log1p", "sqrt", "rsqrt", "erf", "erfc", "floor", "ceil")},
    **{name: getattr(torch, name) for name in ("trunc", "lgamma", "hypot", "atan2", "copysign", "nextafter")},
    **{"erfinv": torch.erfinv, "abs": torch.abs, "fabs": torch.abs, "pow": torch.pow, "fmod": torch.fmod},
    **{"rint": torch.round, "nearbyint": torch.round, "fmax": torch.fmax, "fmin": torch.fmin},
    **{
        "max": torch.maximum,
        "min": torch.minimum,
        "isnan": torch.isnan,
        "isinf": torch.isinf,
        "finite": torch.isfinite,
    },
    **{"isfinited": torch.isfinite, "signbit": torch.signbit, "cbrt": lambda x: x.sign() * x.abs().pow(1 / 3)},
    **{"round": lambda x: torch.where(x.abs() % 1 == 0.5, x.trunc() + x.sign(), x.round())},
    **{"fma": lambda a, b, c: torch.addcmul(c, a, b), "rcp": torch.reciprocal, "exp10": lambda x: torch.pow(10.0, x)},
    **{
        "fdim": lambda a, b: (a - b).clamp(min=0),
        "ldexp": torch.ldexp,
        "powi": torch.pow,
        "tgamma": lambda x: _gamma(x),
    },
    **{"normcdf": torch.special.ndtr, "normcdfinv": torch.special.ndtri, "j0": torch.special.bessel_j0},
    **{"j1": torch.special.bessel_j1, "y0": torch.special.bessel_y0, "y1": torch.special.bessel_y1},
    **{"cyl_bessel_i0": torch.special.i0, "cyl_bessel_i1": torch.special.i1, "erfcx": torch.special.erfcx},
    **{"sinpi": lambda x: torch.sin(x * math.pi), "cospi": lambda x: torch.cos(x * math.pi)},
    **{"clz": lambda x: _leading_zeros(x), "popc": lambda x: _ones(x), "ffs": lambda x: _first_one(x)},
    **{
        "mul24": torch.mul,
        "fdividef": torch.div,
        "saturatef": lambda x: x.clamp(0, 1),
        "ilogb": lambda x: x.abs().log2().floor(),
    },
    **{"logb": lambda x: x.abs().log2().floor(), "remainder": lambda a, b: a - b * (a / b).round()},
    **{"llrint": torch.round, "llround": lambda x: _EXTERNAL["round"](x), "rhypot": lambda a, b: 1 / torch.hypot(a, b)},
    **{"float_as_int": lambda x: x.view(torch.int32), "int_as_float": lambda x: x.view(torch.float32)},
    **{"double_as_longlong": lambda x: x.view(torch.int64), "longlong_as_double": lambda x: x.view(torch.float64)},
}
for _operation in ("add", "sub", "mul", "div"):
    for _rounding in ("rn", "rz", "rd", "ru"):
        _EXTERNAL[f"{_operation}_{_rounding}"] = getattr(torch, _operation)


def external(symbol: str) -> Any:
    """Return a torch function for a function of libdevice such as ``__nv_tanhf``; None if there is none."""
    name = symbol.removeprefix("__nv_").removeprefix("fast_")
    for form in (name, name.removesuffix("f"), name.removesuffix("d"), name.removeprefix("f"), name.removeprefix("d")):
        if form in _EXTERNAL:
            return _EXTERNAL[form]
    rounding = name.removeprefix("f").removeprefix("d")
    if rounding in ("sqrt_rn", "rcp_rn"):
        return torch.sqrt if rounding == "sqrt_rn" else torch.reciprocal
    return _EXTERNAL.get(name.removesuffix("ll"))


def _gamma(x: Tensor) -> Tensor:
    odd = (x < 0) & (x.floor() % 2 != 0)
    return torch.lgamma(x).exp() * torch.where(odd, -1.0, 1.0)


def _ones(x: Tensor) -> Tensor:
    width = x.itemsize * 8
    return sum(((x >> bit) & 1 for bit in range(width)), torch.zeros_like(x))


def _leading_zeros(x: Tensor) -> Tensor:
    width = x.itemsize * 8
    count, has_one = torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool)
    for bit in reversed(range(width)):
        has_one = has_one | ((x >> bit) & 1).bool()
        count = count + (~has_one).to(x.dtype)
    return count


def _first_one(x: Tensor) -> Tensor:
    return torch.where(x == 0, 0, _ones((x & -x) - 1) + 1)
