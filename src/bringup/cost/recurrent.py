"""Stacks of recurrent layers, as libraries compute them: one call for all layers and steps."""

from __future__ import annotations

import math

from bringup.cost.matmul import allowed_tf32
from bringup.cost.rules import Gemm, Work, rule, streaming
from bringup.cost.signature import Signature

GATES = {"lstm": 4, "gru": 3}  # the other recurrent layers have one
# Of cuDNN 9.19, counted in profiles of an H100: for every layer and direction 8 products with the inputs of several
# steps, and for every step a product with the state and an elementwise kernel.
INPUT_KERNELS, STEP_KERNELS = 8, 2
CELL_KERNELS = 9  # of one step of a layer that is launched operator by operator


@rule("rnn", "lstm", "gru", "rnn_tanh", "rnn_relu", "rnn_backward")
def stack(signature: Signature) -> Work:
    """Price a product with the inputs of all steps, and one with the state for every step, for each layer.

    A backward pass has two products for each of them: for the gradient of the data and that of the weights. Arguments:
    ``mode``, ``num_layers``, ``bidirectional``, ``batch_first``, and ``steps`` if the sequences are packed.
    """
    data = signature.required("input")
    packed_steps = signature.args.get("steps")
    if packed_steps:
        rows, steps, batch = data.shape[0], int(packed_steps), max(data.shape[0] // int(packed_steps), 1)
    else:
        steps, batch = data.shape[:2] if not signature.args.get("batch_first") else (data.shape[1], data.shape[0])
        rows = steps * batch
    directions = 2 if signature.args.get("bidirectional") else 1
    layers = int(signature.args["num_layers"])
    hidden = signature.required("state").shape[-1]
    gates = GATES.get(signature.args["mode"], 1)
    factor = 2 if signature.base == "rnn_backward" else 1
    gemms = []
    for layer in range(layers):
        width = data.shape[-1] if layer == 0 else hidden * directions
        gemms += [Gemm(1, rows, gates * hidden, width)] * (directions * factor)
        gemms += [Gemm(1, rows, gates * hidden, hidden)] * (directions * factor)
    parts = layers * directions
    cells = float(rows * hidden * parts)
    return Work(
        family="rnn",
        dtype=signature.dtype,
        gemms=tuple(gemms),
        vector_flops=6.0 * gates * cells * factor,
        special=gates * cells * factor,
        read_bytes=signature.read_bytes * factor,
        written_bytes=signature.written_bytes,
        items=max(batch * gates * hidden, 1),
        kernels=factor * parts * (STEP_KERNELS * steps + INPUT_KERNELS),
        cells=math.ceil(factor * parts * CELL_KERNELS * steps),
        tf32=allowed_tf32(signature, "rnn"),
    )


# Activations of the gates and of the state, from their definitions, per element of the results (states and workspace).
CELL_SPECIAL = {
    "_thnn_fused_lstm_cell": 5 / 6,
    "_thnn_fused_lstm_cell_backward": 1 / 5,
    "_thnn_fused_gru_cell": 3 / 6,
    "_thnn_fused_gru_cell_backward": 0.0,
}


@rule("pointwise", *CELL_SPECIAL)
def cell(signature: Signature) -> Work:
    """Price the gates of one step, beside its products: one pointwise kernel over the results."""
    return streaming(signature, "pointwise", flops=3, special=CELL_SPECIAL[signature.base])
