"""The class of a program, by which the error band of its prediction is chosen."""

from __future__ import annotations

import numpy as np

from bringup.recording.rows import LAUNCH
from bringup.recording.trace import Trace

LANGUAGE, TRANSFORMER, CNN, RNN = "language model", "transformer", "CNN", "RNN"
RECOMMENDER, GRAPH, OTHER = "recommender", "graph network", "other"
CLASSES = (LANGUAGE, TRANSFORMER, CNN, RNN, RECOMMENDER, GRAPH, OTHER)
_EMBEDDINGS, _CELLS = ("embedding", "index_select"), ("lstm", "gru", "rnn_tanh", "rnn_relu", "_thnn_fused")
_SCATTERS = ("index_add", "scatter_add", "scatter_reduce")
_SOFTMAX = {"amax", "exp", "sum.dim_IntList"}  # as compilers take it apart


def program_class(trace: Trace) -> str:
    """Return the class of a program, one of `CLASSES`, by what its launches compute.

    Attention, fused or as a softmax of a batched product, makes a transformer; with an embedding, a language model.
    Convolutions without attention make a CNN, and gates (sigmoid and tanh) beside products an RNN.
    """
    columns = trace.columns
    launched = columns["signature"][columns["kind"] == LAUNCH]
    count = np.bincount(launched, minlength=len(trace.signatures))
    fused = [signature.inner or (signature,) for signature in trace.signatures]
    names = [[item.op.removeprefix("aten::") for item in operators] for operators in fused]

    def launches(*begins: str) -> int:
        begun = (any(name.startswith(begins) for name in operators) for operators in names)
        return sum(int(number) for starts, number in zip(begun, count, strict=True) if starts)

    def of_family(*families: str) -> int:
        return int(count[trace.work.is_family(*families)].sum())

    if launches(*_CELLS):
        return RNN
    softmaxes = of_family("softmax") or any(set(operators) >= _SOFTMAX for operators in names)
    if of_family("attention") or (softmaxes and launches("bmm", "baddbmm")):
        return LANGUAGE if launches("embedding") else TRANSFORMER
    if of_family("convolution", "depthwise"):
        return CNN
    if launches("sigmoid") and launches("tanh") and of_family("matmul"):
        return RNN  # cells written by hand
    if launches(*_SCATTERS):
        return GRAPH
    return RECOMMENDER if launches("embedding") else OTHER
