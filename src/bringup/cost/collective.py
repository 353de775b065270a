"""Collectives of several chips. Their time is the network's, so they have no work for the chip's engines."""

from __future__ import annotations

from collections.abc import Sequence

from bringup.cost.rules import Work, rule
from bringup.cost.signature import Signature


@rule("collective", "collective")
def collective(signature: Signature) -> Work:
    """Check the arguments that `pricing.collective` takes: the bytes of the whole, and the ranks."""
    if not 0 <= int(signature.args["bytes"]) < 10**18:
        raise ValueError(f"bytes is {signature.args['bytes']}")
    if not len(ranks_of(signature)):
        raise ValueError("there are no ranks")
    return Work(family="collective", dtype=signature.dtype)


def ranks_of(signature: Signature) -> Sequence[int]:
    """Return the ranks of a collective's group."""
    if "ranks" in signature.args:
        return [int(rank) for rank in signature.args["ranks"]]
    first, step, size = (int(signature.args[name]) for name in ("first", "step", "size"))
    if not (first >= 0 and step != 0 and 1 <= size <= 10**7 and first + step * (size - 1) >= 0):
        raise ValueError(f"ranks are {size} from {first} in steps of {step}")
    return range(first, first + step * size, step)
