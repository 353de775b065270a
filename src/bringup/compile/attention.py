"""Attention with dropout in compiled graphs: one kernel, as on the chip, where torch's CPU takes it apart."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

_MATH, _ON_CHIP = 0, 4  # SDPBackend: no fused kernel; OVERRIDEABLE, a kernel of the device's own
_NAME = "bringup_fused::_scaled_dot_product_flash_attention"


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Compute ``torch.nn.functional.scaled_dot_product_attention`` by the kernels that the chip would choose.

    With dropout it is that of csrc/torch/fused.cpp. A mask that no fused kernel takes means several kernels.
    """
    options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    drops = isinstance(dropout_p, float) and 0 < dropout_p < 1
    fused = torch.ops.bringup_fused
    if not drops and attn_mask is None:  # the choice is the CPU's
        return F.scaled_dot_product_attention(query, key, value, None, dropout_p, **options)
    choice = fused._fused_sdp_choice(query, key, value, attn_mask, dropout_p, *options.values())
    if attn_mask is not None and choice == _MATH:
        parts: tuple[torch.Tensor, torch.Tensor] = torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return parts[0]
    if not drops or choice != _ON_CHIP:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **options)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(attn_mask.logical_not(), float("-inf"))
    result: torch.Tensor = fused._scaled_dot_product_flash_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale, None
    )[0]
    return result


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    query, key, value, attn_bias, ctx.dropout_p, ctx.is_causal, ctx.scale, _ = inputs
    _, logsumexp, state = output
    ctx.save_for_backward(query, key, value, attn_bias, logsumexp, state)
    ctx.mark_non_differentiable(logsumexp, state)


def _backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    query, key, value, attn_bias, logsumexp, state = ctx.saved_tensors
    grads = torch.ops.bringup_fused._scaled_dot_product_flash_attention_backward(
        grad, query, key, value, attn_bias, logsumexp, ctx.dropout_p, ctx.is_causal, state, ctx.scale
    )
    return (*grads, None, None, None, None, None)


torch.library.register_autograd(_NAME, _backward, setup_context=_setup)
