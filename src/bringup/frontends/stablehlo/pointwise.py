"""StableHLO's operators on single elements."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bringup.frontends.stablehlo.module import Op
from bringup.frontends.stablehlo.operators import Call, Tensor, operator, values, wide

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "acosh": torch.acosh,
    "asin": torch.asin,
    "asinh": torch.asinh,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "bessel_i1e": torch.special.i1e,
    "ceil": torch.ceil,
    "conj": torch.conj_physical,
    "cosh": torch.cosh,
    "cosine": torch.cos,
    "digamma": torch.digamma,
    "erf": torch.erf,
    "erf_inv": torch.erfinv,
    "erfc": torch.erfc,
    "exponential": torch.exp,
    "exponential_minus_one": torch.expm1,
    "floor": torch.floor,
    "imag": torch.imag,
    "is_finite": torch.isfinite,
    "is_inf": torch.isinf,
    "is_neg_inf": torch.isneginf,
    "is_pos_inf": torch.isposinf,
    "lgamma": torch.lgamma,
    "log": torch.log,
    "log_plus_one": torch.log1p,
    "logistic": torch.sigmoid,
    "negate": torch.neg,
    "not": torch.bitwise_not,
    "real": torch.real,
    "round_nearest_even": torch.round,
    "rsqrt": torch.rsqrt,
    "sine": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "and": torch.bitwise_and,
    "atan2": torch.atan2,
    "complex": torch.complex,
    "next_after": torch.nextafter,
    "or": torch.bitwise_or,
    "subtract": torch.sub,
    "xor": torch.bitwise_xor,
    "zeta": torch.special.zeta,
}
_COMPARE = {"EQ": torch.eq, "NE": torch.ne, "LT": torch.lt, "LE": torch.le, "GT": torch.gt, "GE": torch.ge}


def _unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    @operator(name)
    def run(call: Call, x: Tensor) -> Tensor:
        return function(x)


def _binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name)
    def run(call: Call, x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)


for _name, _function in UNARY.items():
    _unary(_name, _function)
for _name, _two in BINARY.items():
    _binary(_name, _two)


@operator("add")
def add(call: Call, x: Tensor, y: Tensor) -> Tensor:
    return x | y if x.dtype == torch.bool else x + y


@operator("multiply")
def multiply(call: Call, x: Tensor, y: Tensor) -> Tensor:
    return x & y if x.dtype == torch.bool else x * y


@operator("divide")
def divide(call: Call, x: Tensor, y: Tensor) -> Tensor:
    if x.dtype.is_floating_point or x.dtype.is_complex:
        return x / y
    return _without_zeros(
        call, x, y, lambda a, b: torch.div(a, b, rounding_mode="trunc"), lambda a: torch.full_like(a, -1)
    )


@operator("remainder")
def remainder(call: Call, x: Tensor, y: Tensor) -> Tensor:
    if x.dtype.is_floating_point:
        return torch.fmod(x, y)
    return _without_zeros(call, x, y, torch.fmod, lambda a: a)


def _without_zeros(
    call: Call, x: Tensor, y: Tensor, function: Callable[[Tensor, Tensor], Tensor], at_zero: Callable[[Tensor], Tensor]
) -> Tensor:
    """Divide whole numbers, which torch refuses to do by zero; XLA defines the result."""
    zero = y == 0
    divisor = torch.where(zero, 1, y)
    if call.source.kind == "ui64":
        result = _unsigned64(function, x, divisor)
    else:
        result = function(values(x, call.source), values(divisor, call.source)).to(x.dtype)
    return torch.where(zero, at_zero(x), result)


def _unsigned64(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Divide unsigned numbers of 64 bits: half of the dividend first, then what is left of it."""
    quotient = torch.div(x >> 1 & torch.iinfo(torch.int64).max, y, rounding_mode="trunc") << 1
    rest = x - quotient * y
    low = torch.iinfo(torch.int64).min
    above = (rest ^ low) >= (y ^ low)
    big = y < 0  # the divisor has the highest bit
    quotient = torch.where(big, ((x ^ low) >= (y ^ low)).to(x.dtype), quotient + above)
    return quotient if function is not torch.fmod else x - quotient * y


@operator("maximum")
def maximum(call: Call, x: Tensor, y: Tensor) -> Tensor:
    if x.dtype == torch.bool:
        return x | y
    if call.source.is_unsigned:
        return torch.where(wide(x, call.source) >= wide(y, call.source), x, y)
    return torch.maximum(x, y)


@operator("minimum")
def minimum(call: Call, x: Tensor, y: Tensor) -> Tensor:
    if x.dtype == torch.bool:
        return x & y
    if call.source.is_unsigned:
        return torch.where(wide(x, call.source) <= wide(y, call.source), x, y)
    return torch.minimum(x, y)


@operator("clamp")
def clamp(call: Call, low: Tensor, x: Tensor, high: Tensor) -> Tensor:
    if call.target.is_unsigned:
        return minimum(call, maximum(call, x, low), high)
    return torch.clamp(x, low, high)


@operator("power")
def power(call: Call, x: Tensor, y: Tensor) -> Tensor:
    if x.dtype.is_floating_point or x.dtype.is_complex:
        return torch.pow(x, y)
    # A whole number to a negative power is 0, but for 1 and -1.
    small = torch.where(x == 1, 1, torch.where(x == -1, 1 - 2 * (y & 1), 0)).to(x.dtype)
    result = torch.pow(x, y.clamp(min=0))
    return result if call.source.kind.startswith("u") else torch.where(y < 0, small, result)


@operator("sign")
def sign(call: Call, x: Tensor) -> Tensor:
    if x.dtype.is_complex:
        return torch.sgn(x)
    return torch.where(x.isnan(), x, torch.sign(x)) if x.dtype.is_floating_point else torch.sign(x)


@operator("polygamma")
def polygamma(call: Call, n: Tensor, x: Tensor) -> Tensor:
    parity = 1 - 2 * torch.remainder(n + 1, 2)
    return torch.where(n == 0, torch.digamma(x), parity * torch.exp(torch.lgamma(n + 1)) * torch.special.zeta(n + 1, x))


@operator("cbrt")
def cbrt(call: Call, x: Tensor) -> Tensor:
    return torch.copysign(torch.pow(x.abs().to(torch.float64), 1 / 3).to(x.dtype), x)


@operator("round_nearest_afz")
def round_nearest_afz(call: Call, x: Tensor) -> Tensor:
    whole = torch.trunc(x)
    return torch.where((x - whole).abs() >= 0.5, whole + torch.sign(x), whole)


@operator("compare")
def compare(call: Call, x: Tensor, y: Tensor) -> Tensor:
    direction = call("comparison_direction")
    if direction in ("EQ", "NE"):
        return _COMPARE[direction](x, y)
    if call("compare_type") == "TOTALORDER":
        return _COMPARE[direction](_ordered(x), _ordered(y))
    return _COMPARE[direction](wide(x, call.source), wide(y, call.source))


def _ordered(x: Tensor) -> Tensor:
    """Return whole numbers in the total order of floating-point numbers, in which NaN is the largest."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    if x.itemsize == 1:
        return _ordered(x.to(torch.float16))
    whole = x.contiguous().view(bits[x.itemsize])
    return torch.where(whole < 0, whole ^ torch.iinfo(whole.dtype).max, whole)


@operator("select")
def select(call: Call, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, x, y)


@operator("convert")
def convert(call: Call, x: Tensor) -> Tensor:
    source, target = call.source, call.target
    if source.kind == target.kind:
        return x
    if source.kind == "ui64" and target.dtype.is_floating_point:  # of an odd number, the highest bits and the rest
        half = ((x >> 1 & torch.iinfo(torch.int64).max) | (x & 1)).to(target.dtype) * 2
        return torch.where(x < 0, half, x.to(target.dtype))
    if source.dtype.is_floating_point and not target.dtype.is_floating_point and not target.dtype.is_complex:
        return _to_whole(call, x)
    if source.dtype.is_complex and not target.dtype.is_complex:
        x = torch.real(x)
    if target.kind == "f8E8M0FNU":  # it has powers of two alone
        x = torch.where(x <= 0, torch.nan, x)
    return values(x, source).to(target.dtype)


def _to_whole(call: Call, x: Tensor) -> Tensor:
    """Return floating-point numbers as whole ones; XLA's CPU makes 0 of NaN, and the range's ends of what is beyond."""
    target = call.target
    if target.dtype == torch.bool:
        return x != 0
    x = x if x.dtype == torch.float64 else x.to(torch.float32)
    bits, unsigned = target.bits, target.kind.startswith("u")
    low, top = (0.0, 2.0**bits) if unsigned else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1))
    inside = torch.nan_to_num(x, 0.0).clamp(low, top * (1 - torch.finfo(x.dtype).eps / 2))  # the next number below
    if target.kind == "ui64":
        whole = torch.where(inside >= top / 2, (inside - top).to(torch.int64), inside.to(torch.int64))
    else:
        whole = inside.to(torch.int64)
    most = -1 if unsigned else (1 << bits - 1) - 1  # as bits
    whole = whole.to(target.dtype)
    return whole if bits < 32 else torch.where(x >= top, most, whole)


@operator("bitcast_convert")
def bitcast_convert(call: Call, x: Tensor) -> Tensor:
    source, target = call.source, call.target
    if source.bits == target.bits:
        return x.contiguous().view(target.dtype)
    if source.bits > target.bits:
        return x.contiguous().unsqueeze(-1).view(target.dtype).reshape(target.shape)
    return x.contiguous().view(target.dtype).reshape(target.shape)


_FORMS = {(8, 7): torch.bfloat16, (5, 10): torch.float16, (8, 23): torch.float32}


def _other_form(op: Op) -> str:
    form = op.attributes["exponent_bits"], op.attributes["mantissa_bits"]
    return "" if form in _FORMS else f"of {form[0]} and {form[1]} bits"


@operator("reduce_precision", refusal=_other_form)
def reduce_precision(call: Call, x: Tensor) -> Tensor:
    form = call("exponent_bits"), call("mantissa_bits")
    return x.to(_FORMS[form]).to(x.dtype)


def _shift_amount(call: Call, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return where a shift is by all bits or more, and the amounts elsewhere."""
    bits = call.source.bits
    all_bits = (y < 0) | (y >= bits)
    return all_bits, y.clamp(0, bits - 1)


@operator("shift_left")
def shift_left(call: Call, x: Tensor, y: Tensor) -> Tensor:
    all_bits, amount = _shift_amount(call, y)
    return torch.where(all_bits, 0, x << amount)


@operator("shift_right_arithmetic")
def shift_right_arithmetic(call: Call, x: Tensor, y: Tensor) -> Tensor:
    bits = call.source.bits
    amount = torch.where((y < 0) | (y >= bits), bits - 1, y)
    if x.dtype == torch.uint8:
        return (x.view(torch.int8) >> amount.view(torch.int8)).view(torch.uint8)
    return x >> amount


@operator("shift_right_logical")
def shift_right_logical(call: Call, x: Tensor, y: Tensor) -> Tensor:
    all_bits, amount = _shift_amount(call, y)
    if x.dtype == torch.uint8:
        return torch.where(all_bits, 0, x >> amount)
    highest = torch.iinfo(x.dtype).max
    once = (x >> 1) & highest  # without the sign, whose copies would move in
    return torch.where(all_bits, 0, torch.where(amount == 0, x, once >> (amount - 1).clamp(min=0)))


@operator("popcnt")
def popcnt(call: Call, x: Tensor) -> Tensor:
    count = torch.zeros_like(x)
    for bit in range(call.source.bits):
        count = count + (x >> bit & 1)
    return count


@operator("count_leading_zeros")
def count_leading_zeros(call: Call, x: Tensor) -> Tensor:
    bits = call.source.bits
    count = torch.zeros_like(x)
    clear = torch.ones_like(x)
    for bit in reversed(range(bits)):
        clear = clear & (1 - (x >> bit & 1))
        count = count + clear
    return count


@operator("mulhi", refusal=lambda op: "of 64 bits" if op.result_types[0].bits == 64 else "")
def mulhi(call: Call, x: Tensor, y: Tensor) -> Tensor:
    wide_x, wide_y = values(x, call.source).to(torch.int64), values(y, call.source).to(torch.int64)
    return (wide_x * wide_y >> call.source.bits).to(x.dtype)


@operator("optimization_barrier", as_they_are=True)
def optimization_barrier(call: Call, *x: Tensor) -> tuple[Tensor, ...]:
    return x


@operator("mhlo.copy")  # where XLA writes a variable
def copy(call: Call, x: Tensor) -> Tensor:
    return x
