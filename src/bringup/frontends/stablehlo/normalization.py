"""StableHLO's batch normalization, which TensorFlow's XLA leaves whole: torch's kernels."""

from __future__ import annotations

import torch

from bringup.frontends.stablehlo.operators import Call, Tensor, operator

aten = torch.ops.aten


@operator("batch_norm_training")
def batch_norm_training(call: Call, x: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalized values, and the mean and variance of each feature."""
    feature = call("feature_index")
    others = [dim for dim in range(x.dim()) if dim != feature]
    variance, mean = torch.var_mean(x, others, correction=0)
    return _normalized(call, x, scale, offset, mean, variance), mean, variance


@operator("batch_norm_inference")
def batch_norm_inference(
    call: Call, x: Tensor, scale: Tensor, offset: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    return _normalized(call, x, scale, offset, mean, variance)


@operator("batch_norm_grad")
def batch_norm_grad(
    call: Call, x: Tensor, scale: Tensor, mean: Tensor, variance: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the values, the scale and the offset."""
    feature, epsilon = call("feature_index"), call("epsilon")
    moved = [item.movedim(feature, 1) for item in (gradient, x)]
    saved = mean, torch.rsqrt(variance + epsilon)
    results = aten.native_batch_norm_backward(*moved, scale, None, None, *saved, True, epsilon, [True, True, True])
    return results[0].movedim(1, feature), results[1], results[2]


def _normalized(call: Call, x: Tensor, scale: Tensor, offset: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    feature = call("feature_index")
    moved = x.movedim(feature, 1)
    result = aten.native_batch_norm(moved, scale, offset, mean, variance, False, 0.0, call("epsilon"))[0]
    return result.movedim(1, feature)
