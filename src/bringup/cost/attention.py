"""Fused attention: two products per head and a softmax that stays on the chip."""

from __future__ import annotations

import math
from collections.abc import Hashable

from bringup.cost.rules import Gemm, Work, names, rule
from bringup.cost.signature import Signature

BLOCK = 128  # keys that a kernel reads at a time (Dao, FlashAttention-2, 2023: 64 or 128; cuDNN's names say 128)


def _work(signature: Signature, products: int) -> Work:
    query, key, value = (signature.required(name) for name in ("query", "key", "value"))
    *heads, rows, depth = query.shape
    batch, columns = math.prod(heads), key.shape[-2]
    # Query heads that share keys and values count as rows of one product.
    shared = max(batch // max(math.prod(key.shape[:-2]), 1), 1)
    # A causal kernel skips the blocks above the diagonal, and computes those on it whole.
    causal = bool(signature.args.get("is_causal")) and rows == columns
    columns_read = min(columns, (columns + BLOCK) // 2) if causal else columns
    scores = Gemm(batch // shared, rows * shared, columns_read, depth)
    mix = Gemm(batch // shared, rows * shared, value.shape[-1], columns_read)
    gemms = (scores, mix) if products == 2 else (scores, scores, scores, mix, mix)
    elements = batch * rows * columns_read
    # Backward passes clear, add up and convert the queries' gradient in float32, and first multiply results by their
    # gradients (Dao, FlashAttention-2, 2023; both are kernels of their own in profiles of cuDNN 9.19).
    again = 0 if products == 2 else query.numel * (3 * 4 + 2 * query.item_bytes)
    return Work(
        family="attention",
        dtype=signature.dtype,
        gemms=gemms,
        vector_flops=4.0 * elements,
        special=float(elements),
        read_bytes=signature.read_bytes + again,
        written_bytes=signature.written_bytes,
        items=batch * rows * value.shape[-1],
        kernels=1 if products == 2 else 3,
        hides_softmax=not any(signature.tensor(name) for name in ("attn_mask", "attn_bias")),
        torchs_own=not signature.cudnn,
    )


# cuDNN computes attention in these dtypes, with heads of at most this depth, in whole numbers of eight elements, and
# for more than one key (PyTorch, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).
PLANNED_DTYPES, DEEPEST_HEAD, HEAD_STEP = ("float16", "bfloat16"), 256, 8
# Operators for which PyTorch chooses between kernels. Those that name another library's kernel have no plan.
CHOSEN = names("""
    scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
    _scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable
""")


def plan_of(signature: Signature) -> Hashable:
    """Return what the plan of cuDNN for a forward attention depends on, or None if it needs no plan."""
    if signature.name not in CHOSEN or not signature.cudnn or signature.dtype not in PLANNED_DTYPES:
        return None
    query, key, value = (signature.tensor(name) for name in ("query", "key", "value"))
    if query is None or key is None or value is None:
        return None
    depths = (query.shape[-1], value.shape[-1])
    if key.shape[-2] < 2 or any(depth > DEEPEST_HEAD or depth % HEAD_STEP for depth in depths):
        return None
    options = (bool(signature.args.get("is_causal")), float(signature.args.get("dropout_p") or 0))
    return tuple((tensor.dtype, tensor.shape, tensor.strides) for tensor in signature.tensors) + options


@rule(
    "attention",
    *names("""
        scaled_dot_product_attention _scaled_dot_product_attention_math
        _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
        _scaled_dot_product_fused_attention_overrideable
    """),
)
def forward(signature: Signature) -> Work:
    """Price queries by keys and weights by values; the flops equal ``torch.utils.flop_counter.sdpa_flop_count``."""
    return _work(signature, 2)


@rule(
    "attention",
    *names("""
        _scaled_dot_product_flash_attention_backward _scaled_dot_product_flash_attention_for_cpu_backward
        _scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention_backward
        _scaled_dot_product_fused_attention_overrideable_backward
    """),
)
def backward(signature: Signature) -> Work:
    """Price five products: the scores again, and the gradients of weights, values, queries and keys."""
    return _work(signature, 5)


@rule("attention", "_native_multi_head_attention", "_transformer_encoder_layer_fwd", "_triton_multi_head_attention")
def encoder(signature: Signature) -> Work:
    """Price a fused encoder layer for inference: a projection by every weight matrix, and attention over the rows."""
    data = next(tensor for tensor in signature.tensors if len(tensor.shape) == 3)
    batch, rows, width = data.shape
    matrices = [tensor for tensor in signature.tensors if len(tensor.shape) == 2 and width in tensor.shape]
    gemms = [Gemm(1, batch * rows, matrix.shape[0], matrix.shape[1]) for matrix in matrices]
    gemms += [Gemm(batch, rows, rows, width), Gemm(batch, rows, width, rows)]
    elements = batch * rows * rows
    return Work(
        family="attention",
        dtype=signature.dtype,
        gemms=tuple(gemms),
        vector_flops=4.0 * elements,
        special=float(elements),
        read_bytes=signature.read_bytes,
        written_bytes=signature.written_bytes,
        items=batch * rows * width,
        kernels=len(gemms) + 4,
    )
