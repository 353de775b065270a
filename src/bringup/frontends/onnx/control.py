"""ONNX's operators that run graphs: branches and loops. Conditions are read by the host, which waits for them."""

from __future__ import annotations

from typing import Any

import torch

from bringup.frontends.onnx.operators import Call, Tensor, operator, scalar


@operator("If", host=(0,), foldable=False)
def branch(call: Call, condition: Tensor) -> tuple[Any, ...]:
    return tuple(call.run(call("then_branch" if scalar(condition) else "else_branch"), []))


@operator("Loop", host=(0, 1), foldable=False)
def loop(call: Call, count: Tensor | None, condition: Tensor | None, *carried: Any) -> tuple[Any, ...]:
    body = call("body")
    state = list(carried)
    most = None if count is None else int(scalar(count))
    go = condition is None or bool(scalar(condition))
    states = len(carried)
    rows: list[list[Tensor]] = [[] for _ in range(len(body.outputs) - 1 - states)]
    number = 0
    while go and (most is None or number < most):
        again, *results = call.run(body, [torch.tensor(number), torch.tensor(True), *state])
        state, outputs = results[:states], results[states:]
        for row, output in zip(rows, outputs, strict=True):
            row.append(output)
        go = bool(scalar(again))
        number += 1
    return (*state, *(torch.stack(row) if row else torch.zeros(0, device=call.device) for row in rows))


@operator("Scan", foldable=False)
def scan(call: Call, *items: Tensor) -> tuple[Any, ...]:
    body, count = call("body"), call("num_scan_inputs")
    states = len(items) - count
    state, inputs = list(items[:states]), items[states:]
    outputs_count = len(body.outputs) - states
    in_axes = call("scan_input_axes") or [0] * count
    out_axes = call("scan_output_axes") or [0] * outputs_count
    in_back = call("scan_input_directions") or [0] * count
    out_back = call("scan_output_directions") or [0] * outputs_count
    parts = [list(x.unbind(axis)) for x, axis in zip(inputs, in_axes, strict=True)]
    parts = [part[::-1] if back else part for part, back in zip(parts, in_back, strict=True)]
    rows: list[list[Tensor]] = [[] for _ in range(outputs_count)]
    for each in zip(*parts, strict=True):
        results = call.run(body, [*state, *each])
        state = results[:states]
        for row, output in zip(rows, results[states:], strict=True):
            row.append(output)
    stacked = (
        torch.stack(row[::-1] if back else row, axis) for row, back, axis in zip(rows, out_back, out_axes, strict=True)
    )
    return (*state, *stacked)


@operator("SequenceMap", foldable=False)
def sequence_map(call: Call, items: list[Any], *others: Any) -> tuple[list[Any], ...]:
    body = call("body")
    rows = [
        call.run(body, [item, *(other[place] if isinstance(other, list) else other for other in others)])
        for place, item in enumerate(items)
    ]
    return tuple(list(column) for column in zip(*rows, strict=True))
