"""ONNX's attention and rotary embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from bringup.frontends.onnx.operators import Call, Tensor, operator
from bringup.frontends.onnx.tensors import torch_dtype


@operator("Attention", foldable=False)
def attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Any:
    flat = query.dim() == 3
    if flat:
        query, key, value = (
            item.unflatten(2, (call(heads), -1)).transpose(1, 2)
            for item, heads in ((query, "q_num_heads"), (key, "kv_num_heads"), (value, "kv_num_heads"))
        )
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        key, value = torch.cat((past_key, key), 2), torch.cat((past_value, value), 2)
    present = key, value
    causal = bool(call("is_causal", 0))
    softcap, scores = call("softcap", 0.0), call.has_output(3)
    if mask is not None and mask.shape[-1] < key.shape[2]:  # what the mask leaves out is masked
        fill = False if mask.dtype == torch.bool else float("-inf")
        mask = functional.pad(mask, (0, key.shape[2] - mask.shape[-1]), value=fill)
    if lengths is not None:
        places = torch.arange(key.shape[2], device=query.device)
        mask = _joined(mask, (places < lengths.reshape(-1, 1)).reshape(-1, 1, 1, key.shape[2]), query)
    offset = past if lengths is None else None
    if causal and (mask is not None or past or scores or softcap or lengths is not None):
        rows = torch.arange(query.shape[2], device=query.device).reshape(-1, 1)
        columns = torch.arange(key.shape[2], device=query.device)
        if offset is None:
            assert lengths is not None
            rows = rows + (lengths.reshape(-1, 1, 1, 1) - query.shape[2])
        mask, causal = _joined(mask, columns <= rows + (offset or 0), query), False
    if scores or softcap:
        result, shown = _in_parts(call, query, key, value, mask)
    else:
        grouped = query.shape[1] != key.shape[1]
        result, shown = (
            functional.scaled_dot_product_attention(
                query, key, value, mask, is_causal=causal, scale=call("scale"), enable_gqa=grouped
            ),
            None,
        )
        if mask is not None and mask.dtype == torch.bool:
            result = torch.where(mask.any(-1, keepdim=True), result, torch.zeros_like(result))
    if flat:
        result = result.transpose(1, 2).flatten(2)
    return (result, *present, shown) if shown is not None else (result, *present)


def _joined(mask: Tensor | None, allowed: Tensor, like: Tensor) -> Tensor:
    """Return a mask that also masks what is not allowed."""
    if mask is None:
        return allowed
    if mask.dtype == torch.bool:
        return mask & allowed
    return mask + torch.where(allowed, 0.0, float("-inf")).to(like.dtype)


def _in_parts(call: Call, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute attention operator by operator, where the node shows its scores or limits them."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = call("scale") or query.shape[-1] ** -0.5
    cap, mode = call("softcap", 0.0), call("qk_matmul_output_mode", 0)
    scores = (query * scale**0.5) @ (key * scale**0.5).transpose(-2, -1)
    shown = scores
    capped = cap * torch.tanh(scores / cap) if cap else scores
    if mode == 1:
        shown = capped
    if mask is not None and mask.dtype == torch.bool:
        capped = torch.where(mask, capped, float("-inf"))
    elif mask is not None:
        capped = capped + mask
    if mode == 2:
        shown = capped
    number = call("softmax_precision")
    dtype = torch_dtype(number) if number else capped.dtype
    weights = torch.nan_to_num(torch.softmax(capped.to(dtype), -1), nan=0.0).to(query.dtype)
    return weights @ value, weights if mode == 3 else shown


@operator("RotaryEmbedding")
def rotary_embedding(call: Call, x: Tensor, cosine: Tensor, sine: Tensor, places: Tensor | None = None) -> Tensor:
    flat = x.dim() == 3
    if flat:
        x = x.unflatten(2, (call("num_heads"), -1)).transpose(1, 2)
    count = call("rotary_embedding_dim", 0) or x.shape[-1]
    turned, rest = x[..., :count], x[..., count:]
    if places is not None:
        cosine, sine = (functional.embedding(places.to(torch.int64), item) for item in (cosine, sine))
    cosine, sine = (item[..., : count // 2].unsqueeze(1) for item in (cosine, sine))
    if call("interleaved", 0):
        first, second = turned[..., 0::2], turned[..., 1::2]
        both = torch.stack((cosine * first - sine * second, sine * first + cosine * second), -1).flatten(-2)
    else:
        first, second = turned.chunk(2, -1)
        both = torch.cat((cosine * first - sine * second, sine * first + cosine * second), -1)
    result = torch.cat((both, rest), -1) if rest.shape[-1] else both
    return result.transpose(1, 2).flatten(2) if flat else result
