"""StableHLO's collectives in a program of one device, where they change nothing."""

from __future__ import annotations

import torch

from bringup.frontends.stablehlo.module import Op
from bringup.frontends.stablehlo.operators import Call, Tensor, operator


def _several(op: Op) -> str:
    """Refuse groups of several devices; no groups are one of all devices."""
    groups = op.attributes.get("replica_groups") or [list(range(op.attributes["devices"]))]
    size = max(map(len, groups)) if isinstance(groups, list) else op.attributes["devices"]
    return f"over {size} devices" if size > 1 else ""


def _one_of_several(op: Op) -> str:
    return f"in a program of {op.attributes['devices']} devices" if op.attributes["devices"] > 1 else ""


@operator("all_reduce", "all_gather", "all_to_all", "reduce_scatter", "collective_broadcast", refusal=_several)
def collective(call: Call, *items: Tensor) -> tuple[Tensor, ...]:
    return items


@operator("collective_permute", refusal=_one_of_several)
def collective_permute(call: Call, x: Tensor) -> Tensor:
    return x if call("source_target_pairs") else torch.zeros_like(x)  # what has no source is zero


@operator("partition_id", "replica_id", refusal=_one_of_several)
def number_of_device(call: Call) -> Tensor:
    return torch.zeros(call.shape, dtype=call.target.dtype)


@operator("sdy.sharding_constraint")
def sharding_constraint(call: Call, x: Tensor) -> Tensor:
    return x
