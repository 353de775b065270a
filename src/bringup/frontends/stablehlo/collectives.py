"""StableHLO's collectives: between chips that run a program together; in a program of one device they change nothing.

A chip copies what it needs from each other chip of its group, and computes on it. So all chips have equal results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bringup.frontends.stablehlo import team
from bringup.frontends.stablehlo.module import Op
from bringup.frontends.stablehlo.operators import Call, Tensor, operator


def _several(op: Op) -> str:
    """Refuse groups of several devices; no groups are one of all devices. Chips that run together can have them."""
    groups = op.attributes.get("replica_groups") or [list(range(op.attributes["devices"]))]
    size = max(map(len, groups)) if isinstance(groups, list) else op.attributes["devices"]
    return f"over {size} devices" if size > 1 and not op.attributes["together"] else ""


def _one_of_several(op: Op) -> str:
    several = op.attributes["devices"] > 1 and not op.attributes["together"]
    return f"in a program of {op.attributes['devices']} devices" if several else ""


def _group(call: Call) -> tuple[int, ...]:
    """Return the places of the chips that a collective is among, for the chip that runs."""
    member = team.here()
    if member is None:
        return (0,)
    everyone = tuple(range(len(member.team.members)))
    if getattr(call("channel_handle"), "handle", 0) <= 0:  # among replicas, of which there is one
        return (member.place,)
    groups = call("replica_groups")
    reduces = call.op.name in ("all_reduce", "all_gather", "reduce_scatter")
    if not groups or (reduces and "use_global_device_ids" not in call.op.attributes):
        return everyone
    return next((tuple(x for x in group if x >= 0) for group in groups if member.place in group), (member.place,))


def _exchanged(
    call: Call, items: tuple[Tensor, ...], part: Callable[[Tensor, int, int], Tensor]
) -> list[tuple[Tensor, ...]]:
    """Return a part of each member's tensors, copied here; `part` takes a tensor, a place in the group and its size."""
    member, group = team.here(), _group(call)
    if member is None or len(group) == 1:
        return [items]
    place = group.index(member.place)
    values = member.exchange(id(call.op), group, items)
    return [tuple(part(item, place, len(group)).to(call.device) for item in theirs) for theirs in values]


def _whole(item: Tensor, place: int, size: int) -> Tensor:
    return item


def _chunk(dim: int) -> Callable[[Tensor, int, int], Tensor]:
    return lambda item, place, size: item.chunk(size, dim)[place]


def _reduced(call: Call, parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(_folded(call, list(items)) for items in zip(*parts, strict=True))


def _folded(call: Call, items: list[Tensor]) -> Tensor:
    total = items[0]
    for item in items[1:]:
        (total,) = call.run(call.op.blocks[0], [total, item])
    return total


@operator("all_reduce", refusal=_several)
def all_reduce(call: Call, *items: Tensor) -> tuple[Tensor, ...]:
    return _reduced(call, _exchanged(call, items, _whole))


@operator("all_gather", refusal=_several)
def all_gather(call: Call, *items: Tensor) -> tuple[Tensor, ...]:
    return _joined(_exchanged(call, items, _whole), call("all_gather_dim"))


@operator("all_to_all", refusal=_several)
def all_to_all(call: Call, *items: Tensor) -> tuple[Tensor, ...]:
    return _joined(_exchanged(call, items, _chunk(call("split_dimension"))), call("concat_dimension"))


def _joined(parts: list[tuple[Tensor, ...]], dim: int) -> tuple[Tensor, ...]:
    return tuple(torch.cat(items, dim) for items in zip(*parts, strict=True)) if len(parts) > 1 else parts[0]


@operator("reduce_scatter", refusal=_several)
def reduce_scatter(call: Call, *items: Tensor) -> tuple[Tensor, ...]:
    return _reduced(call, _exchanged(call, items, _chunk(call("scatter_dimension"))))


@operator("collective_broadcast", refusal=_several)
def collective_broadcast(call: Call, x: Tensor) -> Tensor:
    member, group = team.here(), _group(call)
    if member is None or len(group) == 1:
        return x
    return _copied(call, member.exchange(id(call.op), group, x)[0])


@operator("collective_permute", refusal=_one_of_several)
def collective_permute(call: Call, x: Tensor) -> Tensor:
    member, pairs = team.here(), call("source_target_pairs")
    if member is None:
        return x if pairs else torch.zeros_like(x)  # what has no source is zero
    values = member.exchange(id(call.op), range(len(member.team.members)), x)
    source = next((source for source, target in pairs if target == member.place), None)
    return torch.zeros_like(x) if source is None else _copied(call, values[source])


def _copied(call: Call, value: Any) -> Tensor:
    copied: Tensor = value.to(call.device)
    return copied


@operator("partition_id", refusal=_one_of_several)
def partition_id(call: Call) -> Tensor:
    member = team.here()
    return torch.full(call.shape, 0 if member is None else member.place, dtype=call.target.dtype)


@operator("replica_id", refusal=_one_of_several)
def replica_id(call: Call) -> Tensor:
    return torch.zeros(call.shape, dtype=call.target.dtype)


@operator("sdy.sharding_constraint", "copy")
def same(call: Call, x: Tensor) -> Tensor:
    return x
