"""StableHLO's random numbers. Bits are those of XLA's CPU, which makes them by Philox-4x32 with ten rounds."""

from __future__ import annotations

import math

import torch

from bringup.frontends.stablehlo.module import Op
from bringup.frontends.stablehlo.operators import Call, Tensor, operator, values
from bringup.frontends.stablehlo.tensors import Type

_FACTORS = 0xD2511F53, 0xCD9E8D57  # Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011), Philox-4x32
_STEPS = 0x9E3779B9, 0xBB67AE85  # of the key, same paper
_ROUNDS = 10  # same paper
_LOW = 0xFFFFFFFF
_SIGN = -(1 << 63)  # turns the order of signed numbers into that of unsigned ones


def _other(op: Op) -> str:
    state, bits = op.operand_types[0], op.result_types[1]
    algorithm = op.attributes["rng_algorithm"]
    states = Type("ui64", (2,)), Type("ui64", (3,))
    if algorithm in ("DEFAULT", "PHILOX") and state in states and bits.kind in ("ui32", "ui64"):
        return ""
    return f"of {algorithm} from {state} to {bits.kind}"


@operator("threefry2x32")
def threefry2x32(call: Call, *items: Tensor) -> tuple[Tensor, Tensor]:
    """JAX's random bits in one kernel, where JAX lowers for the chip."""
    return torch.ops.bringup.threefry2x32(*items)


@operator("rng_bit_generator", refusal=_other)
def rng_bit_generator(call: Call, state: Tensor) -> tuple[Tensor, Tensor]:
    kind = call.op.result_types[1]
    count = math.prod(kind.shape) * kind.bits // 32
    blocks = -(-count // 4)
    key, counter, *rest = state.unbind()  # the counter's upper half is that of the state, or the key
    upper = rest[0] if rest else key
    keys = [key & _LOW, key >> 32 & _LOW]
    numbers = torch.arange(blocks, device=state.device) + counter
    if rest:
        upper = upper + _carry(numbers, counter)
    words = [numbers & _LOW, numbers >> 32 & _LOW, upper & _LOW, upper >> 32 & _LOW]
    for _ in range(_ROUNDS):
        first, second = words[0] * _FACTORS[0], words[2] * _FACTORS[1]
        words = [
            *((second >> 32 & _LOW) ^ words[1] ^ keys[0], second & _LOW),
            *((first >> 32 & _LOW) ^ words[3] ^ keys[1], first & _LOW),
        ]
        keys = [item + step & _LOW for item, step in zip(keys, _STEPS, strict=True)]
    bits = torch.stack(words, 1).flatten()[:count]
    if kind.bits == 64:
        bits = bits[0::2] | bits[1::2] << 32
    ended = counter + blocks
    rest = [half + _carry(ended, counter) for half in rest]
    return torch.stack([key, ended, *rest]), bits.to(kind.dtype).reshape(kind.shape)


def _carry(total: Tensor, counter: Tensor) -> Tensor:
    """Return 1 where a sum has overflowed: as an unsigned number, it is less than the counter."""
    return ((total ^ _SIGN) < (counter ^ _SIGN)).to(torch.int64)


@operator("rng", as_they_are=True)
def rng(call: Call, low: Tensor, high: Tensor, sizes: Tensor) -> Tensor:
    """Numbers of torch's generator: StableHLO leaves the generator to the implementation."""
    kind, device = call.target, call.device
    low, high = values(call.on_chip(low), kind), values(call.on_chip(high), kind)
    if call("rng_distribution") == "NORMAL":  # of this mean and deviation
        return torch.randn(kind.shape, dtype=kind.dtype, device=device) * high + low
    if kind.dtype.is_floating_point:
        return torch.rand(kind.shape, dtype=kind.dtype, device=device) * (high - low) + low
    bits = torch.empty(kind.shape, dtype=torch.int64, device=device).random_()
    return (bits % (high - low) + low).to(kind.dtype)
