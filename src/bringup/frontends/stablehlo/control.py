"""StableHLO's control flow: loops and branches read their conditions, and functions are called."""

from __future__ import annotations

from bringup.frontends.stablehlo.operators import Call, Tensor, operator


@operator("while", as_they_are=True)
def repeat(call: Call, *items: Tensor) -> tuple[Tensor, ...]:
    condition, step = call.op.blocks
    carried = list(items)
    while bool(call.run(condition, carried)[0].item()):
        carried = call.run(step, carried)
    return tuple(carried)


@operator("case", as_they_are=True)
def case(call: Call, index: Tensor) -> tuple[Tensor, ...]:
    place, last = int(index.item()), len(call.op.blocks) - 1
    return tuple(call.run(call.op.blocks[place if 0 <= place <= last else last], []))


@operator("if", as_they_are=True)
def branch(call: Call, condition: Tensor) -> tuple[Tensor, ...]:
    return tuple(call.run(call.op.blocks[0 if condition.item() else 1], []))


@operator("call", "composite", as_they_are=True)
def function(call: Call, *items: Tensor) -> tuple[Tensor, ...]:
    return tuple(call.call(call("callee") or call("decomposition"), list(items)))
