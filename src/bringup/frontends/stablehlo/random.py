"""StableHLO's random bits, as XLA's CPU makes them: Philox-4x32 with ten rounds."""

from __future__ import annotations

import math

import torch

from bringup.frontends.stablehlo.module import Op
from bringup.frontends.stablehlo.operators import Call, Tensor, operator
from bringup.frontends.stablehlo.tensors import Type

_FACTORS = 0xD2511F53, 0xCD9E8D57  # Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011), Philox-4x32
_STEPS = 0x9E3779B9, 0xBB67AE85  # of the key, same paper
_ROUNDS = 10  # same paper
_LOW = 0xFFFFFFFF


def _other(op: Op) -> str:
    state, bits = op.operand_types[0], op.result_types[1]
    algorithm = op.attributes["rng_algorithm"]
    if algorithm in ("DEFAULT", "PHILOX") and state == Type("ui64", (2,)) and bits.kind in ("ui32", "ui64"):
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
    key, counter = state.unbind()
    keys = [key & _LOW, key >> 32 & _LOW]
    counters = torch.arange(blocks, device=state.device) + counter
    words = [counters & _LOW, counters >> 32 & _LOW, *keys]
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
    return torch.stack([key, counter + blocks]), bits.to(kind.dtype).reshape(kind.shape)
