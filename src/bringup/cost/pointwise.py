"""Pointwise operators: torch's tag says which they are; here, which need special functions."""

from __future__ import annotations

from bringup.cost.rules import Work, rule, streaming
from bringup.cost.signature import Signature

# Evaluations of a special function per element, by the operator's definition; all others have none.
SPECIAL = {
    **dict.fromkeys(("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal"), 1),
    **dict.fromkeys(("sin", "cos", "tan", "tanh", "sigmoid", "erf", "erfc", "silu", "hardswish", "elu", "celu"), 1),
    **dict.fromkeys(("div", "true_divide", "logit", "softplus", "mish", "log_sigmoid_forward", "selu", "sinc"), 1),
    **dict.fromkeys(("gelu", "gelu_backward", "silu_backward", "pow", "atan2", "sinh", "cosh", "acos", "asin"), 2),
    **dict.fromkeys(("atan", "acosh", "asinh", "atanh", "xlogy", "logaddexp", "logaddexp2", "mish_backward"), 2),
    **dict.fromkeys(("lgamma", "digamma", "polygamma", "igamma", "igammac", "erfinv", "i0", "zeta"), 8),
    **dict.fromkeys(("fmod", "remainder", "floor_divide"), 1),
}


@rule(
    "pointwise",
    "pointwise",
    "where",
    "masked_fill",
    "floor_divide",
    "lerp",
    "_fake_quantize_learnable_per_tensor_affine",
    "glu",
    "prelu",
)
def elementwise(signature: Signature) -> Work:
    """Price one operation per element, and the special functions of `SPECIAL`."""
    special = float(SPECIAL.get(signature.base, 1 if signature.base.startswith("special_") else 0))
    if signature.base == "pow" and not any(t.shape == () for t in signature.tensors) and len(signature.tensors) == 1:
        special = 0.0  # a whole exponent: multiplications
    return streaming(signature, "pointwise", special=special)


@rule(
    "pointwise",
    *("glu_backward", "glu_jvp", "prelu_backward", "_prelu_kernel", "_prelu_kernel_backward", "threshold_backward"),
    *(
        "tanh_backward",
        "sigmoid_backward",
        "hardtanh_backward",
        "leaky_relu_backward",
        "elu_backward",
        "softplus_backward",
    ),
    *("hardswish_backward", "hardsigmoid_backward", "logit_backward", "log_sigmoid_backward", "softshrink_backward"),
    *(
        "hardshrink_backward",
        "rrelu_with_noise",
        "rrelu_with_noise_backward",
        "native_dropout_backward",
        "angle",
        "complex",
    ),
    *("fake_quantize_per_tensor_affine_cachemask", "fake_quantize_per_channel_affine_cachemask", "masked_scale"),
    *(
        "_conj_physical",
        "conj_physical",
        "view_as_real_copy",
        "polar",
        "isin",
        "bucketize",
        "frexp",
        "smooth_l1_loss_backward",
    ),
    *("mse_loss_backward", "huber_loss_backward", "binary_cross_entropy_backward", "soft_margin_loss_backward"),
    *("log_sigmoid_forward", "cross", "linalg_cross", "quantize_per_tensor", "dequantize", "heaviside", "bitwise_not"),
    *("_amp_foreach_non_finite_check_and_unscale", "_amp_update_scale"),
)
def gradient(signature: Signature) -> Work:
    """Price a few operations per element."""
    return streaming(signature, "pointwise", flops=3, special=float(SPECIAL.get(signature.base, 0)))
