"""Pointwise operators, most of them selected by torch's tag, and the special functions that they need."""

from __future__ import annotations

from bringup.cost.access import walked
from bringup.cost.rules import Work, names, rule, streaming
from bringup.cost.signature import Signature

# Evaluations of a special function per element, from the operator's definition; operators not listed have none.
SPECIAL = {
    **dict.fromkeys(names("exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal"), 1),
    **dict.fromkeys(names("sin cos tan tanh sigmoid erf erfc sinc logit softplus log_sigmoid_forward"), 1),
    **dict.fromkeys(names("silu hardswish elu celu selu mish div true_divide floor_divide fmod remainder"), 1),
    **dict.fromkeys(names("sinh cosh acos asin atan atan2 acosh asinh atanh pow xlogy logaddexp logaddexp2"), 2),
    **dict.fromkeys(names("gelu gelu_backward silu_backward mish_backward"), 2),
    **dict.fromkeys(names("lgamma digamma polygamma igamma igammac erfinv i0 zeta"), 8),
}


@rule(
    "pointwise",
    *names("""
        pointwise where masked_fill floor_divide lerp glu prelu _fake_quantize_learnable_per_tensor_affine
        __and__ __iand__ __or__ __ior__ __xor__ __ixor__ __lshift__ __ilshift__ __rshift__ __irshift__
        eq ne lt le gt ge copysign gcd lcm rsub addr _add_relu threshold
        gelu_backward mish_backward
        elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu mish softplus softshrink
    """),
)
def elementwise(signature: Signature) -> Work:
    """Price one operation per element, and the special functions of `SPECIAL`."""
    special = float(SPECIAL.get(signature.base, 1 if signature.base.startswith("special_") else 0))
    if signature.base == "pow" and not any(t.shape == () for t in signature.tensors) and len(signature.tensors) == 1:
        special = 0.0  # a constant exponent needs multiplications only
    return walked(signature, streaming(signature, "pointwise", special=special))


@rule(
    "pointwise",
    *names("""
        glu_backward glu_jvp prelu_backward _prelu_kernel _prelu_kernel_backward threshold_backward
        tanh_backward sigmoid_backward hardtanh_backward hardswish_backward hardsigmoid_backward
        glu_backward_jvp
        elu_backward leaky_relu_backward softplus_backward softshrink_backward hardshrink_backward logit_backward
        log_sigmoid_forward log_sigmoid_backward
        rrelu_with_noise rrelu_with_noise_backward native_dropout_backward masked_scale
        mse_loss_backward smooth_l1_loss_backward huber_loss_backward soft_margin_loss_backward
        binary_cross_entropy_backward
        angle complex polar _conj_physical conj_physical view_as_real_copy frexp heaviside bitwise_not
        cross linalg_cross isin bucketize quantize_per_tensor dequantize
        fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask
        _amp_foreach_non_finite_check_and_unscale _amp_update_scale
    """),
)
def gradient(signature: Signature) -> Work:
    """Price a few operations per element."""
    return walked(signature, streaming(signature, "pointwise", flops=3, special=float(SPECIAL.get(signature.base, 0))))
