"""The vocabulary of random programs: templates of expressions, and how their gaps are filled from a lane's tensors.

A gap is a method of `Filler`. The next operator is one more string in a group.

Left out on purpose:

- what accelerators do in another way than the CPU: `histc` of integers, `ldexp`, dropout, fused recurrent cells;
- mistakes of content, which the chip reports at the next synchronisation: an index out of bounds, an integer by zero;
- results that are written over their own arguments while they are computed: `torch.mm(a, b, out=a)`;
- what torch's CPU kernels read of memory that is not theirs: `median` along a dimension that was expanded;
- memory without content, and the part of a CPU's storage behind a result that was made too large.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tests.programs.program_world import room_of

LARGEST = 60_000  # elements: more than a launch's arguments may have to be tried whole (csrc/launch/probe.cpp)

DTYPES = (
    *["torch.float32"] * 8,
    *["torch.float64", "torch.int64", "torch.bool", "torch.bfloat16", "torch.float16", "torch.complex64"] * 2,
    *("torch.int32", "torch.uint8", "torch.int8", "torch.int16", "torch.complex128", "torch.uint16", "torch.uint32"),
    *("torch.float8_e4m3fn", "torch.complex32"),
)

MAKE = """
data({shape}, {dtype}, {seed})
data({shape}, {dtype}, {seed})
data({shape}, {dtype}, {seed})
data({shape}, {dtype}, {seed})
data({large}, {dtype}, {seed})
data({image}, {floating}, {seed}).to(memory_format=torch.channels_last)
strided({layout}, {dtype}, {seed})
drawn({seed}, {shape}, {floating}, {draw})
torch.zeros({shape}, dtype={dtype}, device=dev)
torch.ones({shape}, dtype={dtype}, device=dev)
torch.full({shape}, {scalar}, device=dev)
torch.full({shape}, {scalar}, dtype={dtype}, device=dev)
torch.arange({small}, device=dev, dtype={dtype})
torch.arange(-{small}, {small}, 0.5, device=dev)
torch.linspace(-1, {small}, {small}, device=dev, dtype={dtype})
torch.logspace(0, 1, {small}, device=dev)
torch.eye({small}, {small}, dtype={dtype}, device=dev)
torch.tril_indices({small}, {small}, device=dev)
torch.tensor({scalar}, device=dev)
torch.tensor([[{scalar}, 2], [3, 4]], device=dev)
torch.hann_window({small}, device=dev)
torch.complex(data({shape}, torch.float32, {seed}), torch.tensor(2.0, device=dev))
{x}.new_zeros({shape})
{x}.new_full({shape}, {scalar}, dtype={dtype})
{x}.new_tensor([1, 2, 3])
torch.zeros_like({x})
torch.zeros_like({x}, dtype={dtype})
torch.ones_like({x}, memory_format={memory})
torch.full_like({x}, {scalar})
torch.empty_like({x}).fill_({scalar})
torch.empty({image}, device=dev, memory_format=torch.channels_last).fill_({scalar})
torch.empty_permuted(({small}, {small}, 2), (2, 0, 1), device=dev).zero_()
torch.meshgrid(data(({small},), {dtype}, {seed}), data(({small},), torch.float32, {seed}), indexing="ij")
torch.meshgrid(data(({small},), torch.int64, {seed}), data(({small},), torch.int64, {seed}), indexing="xy")
"""

VIEW = """
{x}.view({reshape})
{x}.reshape({reshape})
{x}.transpose({dim}, {dim})
{x}.permute({permutation})
{x}.expand({expand})
{x}.expand_as({y})
{x}.narrow({dim}, {start}, {length})
{x}.select({dim}, {place})
{x}[{slice}]
{x}[{slice}]
{x}[{slice}]
{x}.unfold({dim}, {length}, {step})
{x}.diagonal({offset}, 0, 1)
{x}.diagonal({offset}, {dim}, {dim})
{x}.as_strided({strided})
{x}.as_strided({strided})
torch.as_strided({x}.clone(), (2, 2), (1, 1))
{x}.squeeze()
{x}.squeeze({dim})
{x}.unsqueeze({dim})
{x}.chunk({step}, {dim})
{x}.split({step}, {dim})
{x}.tensor_split({step}, {dim})
{x}.unbind({dim})
{x}.flatten()
{x}.flatten({dim})
{x}.movedim({dim}, {dim})
{x}.T
{x}.mT
{x}.mH
{x}.ravel()
{x}.unflatten({dim}, (-1, {step}))
{x}.swapaxes({dim}, {dim})
torch.view_as_real({complex})
torch.view_as_complex({floats})
{complex}.conj()
{x}.conj()
{complex}.real
{complex}.imag
{complex}.conj().imag
{x}.resolve_conj()
{x}.resolve_neg()
{x}.view({dtype_of_bits})
{x}.view(torch.uint8)
{x}.detach()
{x}.data
{x}.view_as({y})
torch.broadcast_to({x}, {expand})
torch.broadcast_tensors({x}, {y})
torch.atleast_2d({x})
torch.hsplit({m}, {step})
{x}.t()
{x}.t_()
{x}.transpose_({dim}, {dim})
{x}.unsqueeze_({dim})
{x}.squeeze_()
{x}.squeeze_({dim})
{x}.swapaxes_({dim}, {dim})
{x}.as_strided_({strided})
{x}.detach_()
"""

UNARY = """
abs neg sign sqrt rsqrt exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh
ceil floor round trunc frac reciprocal square sigmoid logit erf erfc erfinv lgamma digamma i0 sinc bitwise_not
logical_not relu nan_to_num deg2rad rad2deg sgn positive signbit isnan isinf isfinite isposinf angle conj_physical
triu tril zero_
"""

BINARY = """
add sub mul div true_divide maximum minimum fmax fmin atan2 hypot eq ne lt le gt ge logical_and logical_or logical_xor
bitwise_and bitwise_or bitwise_xor copysign nextafter xlogy logaddexp heaviside float_power pow remainder fmod
floor_divide gcd lcm dist rsub isclose arctan2
"""

# Integers by zero are wrong by content.
DIVIDES = {"remainder", "fmod", "floor_divide"}

SHAPED = """
torch.where({mask}, {me}, {y})
torch.where({mask}, {me}, {scalar})
torch.where({y} > 0, {scalar}, {x})
torch.where({mask})
torch.clamp({x}, {scalar}, {scalar})
{x}.clamp_(min={scalar})
torch.clamp({x}, max={y})
{x}.addcmul_({y}, {y}, value={scalar})
torch.addcdiv({f}, {y}, {z})
torch.lerp({f}, {y}, 0.5)
{f}.lerp_({y}, {z})
torch.add({x}, {y}, alpha={scalar})
{x}.add_({y}, alpha={scalar})
{x}.sub_({scalar}, alpha=2)
torch.div({f}, {y}, rounding_mode="floor")
torch.div({f}, {y}, rounding_mode="trunc")
{f}.div_({y}, rounding_mode="trunc")
{f}.div_({scalar})
{x} + {y} * {scalar}
{scalar} - {x}
{scalar} / {f}
2 ** {x}
{x} ** 2
-{x}
~{x}
{x} << {step}
{x} >> 1
{x} == {y}
{x} @ {me}.mT
{x} // {step}
{x} % 3
{f} % 2.5
{x}.mul({host0})
{x}.add_({host0})
{x}.sub_({host0}, alpha=2)
torch.maximum({x}, {host0})
{host0} + {x}
torch.add({host0}, {x}, out={y})
torch.where({mask}, {me}, {host0})
torch.round({f}, decimals=1)
torch.polygamma(1, {f})
torch.mvlgamma({f}, 2)
torch.frexp({f})
torch.special.expit({x})
torch.special.entr({f})
torch.special.bessel_j0({f})
torch.special.zeta({f}, {y})
torch.float_power({x}, 2)
torch.cat([{x}, {y}], {dim})
torch.cat([{x}, {me}, {me}], {dim})
torch.cat([{x}, {me}.to({dtype})], {dim})
torch.stack([{x}, {me}], {dim})
torch.stack([{x}, {y}])
torch.hstack([{x}, {me}])
torch.vstack([{x}, {me}])
torch.block_diag({x}, {y})
{x}.repeat({step}, {step})
{x}.repeat(({step}, {step}, 2))
{x}.repeat_interleave({step}, {dim})
torch.tile({x}, (2,))
{x}.flip({dim})
{x}.fliplr()
{x}.rot90()
{x}.roll({step}, {dim})
torch.tril({m}, {offset})
{m}.triu_({offset})
torch.diag({x})
torch.diag_embed({x})
torch.trace({m})
torch.kron({x}, {y})
torch.outer({x}.flatten()[:5], {y}.flatten()[:6])
torch.diff({x}, dim={dim})
torch.isin({x}, {me}.flatten()[:1])
torch.bucketize({f}, torch.arange(3.0, device=dev))
torch.searchsorted(torch.arange(5.0, device=dev), {f})
torch.combinations({x}.flatten()[:4])
torch.cartesian_prod({x}.flatten()[:3], {me}.flatten()[:2])
torch.trapezoid({f}, dim={dim})
torch.cross(data((4, 3), torch.float32, 1), data((4, 3), torch.float32, 2), dim=1)
{x}.fill_({scalar})
{x}.fill_({host0})
{x}.fill_({x}.flatten()[0])
{x}.zero_()
{m}.fill_diagonal_({scalar})
{x}.sgn()
torch.promote_types({x}.dtype, {y}.dtype).itemsize
torch.result_type({x}, {scalar}).itemsize
torch.can_cast({x}.dtype, {y}.dtype)
"""

REDUCE = """
{x}.sum()
{x}.sum({dim})
{x}.sum({dim}, keepdim=True)
{x}.sum((0, -1))
{x}.sum(dtype={dtype})
torch.sum({x}, {dim}, out={y})
{f}.mean()
{x}.mean({dim}, dtype=torch.float32)
{x}.prod()
{x}.prod({dim})
{x}.nansum()
{x}.amax()
{x}.amin({dim})
{x}.aminmax()
{x}.max()
{x}.max({dim})
{x}.min({dim}, keepdim=True)
{x}.median()
{x}.clone().median({dim})
{x}.nanmedian()
{x}.mode({dim})
{f}.quantile(0.5)
{x}.argmax()
{x}.argmax({dim})
{x}.argmin({dim}, keepdim=True)
{x}.argsort({dim}, stable=True)
{x}.sort({dim}, stable=True)
{x}.sort({dim}, descending=True)
{x}.topk(1, {dim})
{x}.kthvalue(1, {dim})
{x}.msort()
{x}.all()
{x}.any({dim})
{f}.std()
{f}.var({dim}, correction=0)
torch.var_mean({f}, {dim})
{f}.norm()
{f}.norm(1, {dim})
torch.linalg.vector_norm({f}, 3)
torch.linalg.matrix_norm({m})
{f}.logsumexp({dim})
{f}.softmax({dim})
{f}.log_softmax({dim})
torch.softmax({x}, {dim}, dtype=torch.float64)
{x}.cumsum({dim})
{x}.cumsum_({dim})
{x}.cumprod({dim})
{x}.cummax({dim})
{x}.cummin({dim})
{f}.logcumsumexp({dim})
torch.cumsum({x}, {dim}, dtype={dtype})
{x}.count_nonzero()
{x}.count_nonzero({dim})
torch.cov({m})
torch.corrcoef({m})
{f}.renorm(2, {dim}, 1.0)
"""

# How much there is of the result, or whether there is one, follows from the content: not in dry runs, where stand-ins
# decide.
COUNTED = """
{x}.nonzero()
{x}.masked_select({mask})
{x}[{mask}]
{x}.unique()
torch.unique_consecutive({x})
torch.unique({x}, return_inverse=True, return_counts=True)
{index_1d}.bincount()
torch.histogram({f}.flatten().float(), 4)
{x}.repeat_interleave({index_1d_of_first}, 0)
torch.nonzero({x}, as_tuple=True)
torch.argwhere({x})
{x}.flatten()[0].item()
{x}.tolist() == {me}.tolist()
torch.equal({x}, {y})
torch.allclose({f}, {y})
read({x})
bool({x}.any())
float({f}.flatten()[0])
int({x}.flatten()[0])
"""

INDEX = """
{x}[{indices}]
{x}[{indices}]
{x}[:, {index_of_1}]
{x}[{host_index}]
{x}.index_select({dim0}, {index_1d})
{x}.gather({dim0}, {index_like})
{x}.take({index_flat})
torch.take_along_dim({x}, {index_like_0}, 0)
{x}.scatter({dim0}, {index_like}, {me})
{x}.scatter_({dim0}, {index_like}, {scalar})
{x}.scatter_add_({dim0}, {index_like}, {me}.clone())
{x}.scatter_reduce({dim0}, {index_like}, {me}, "amax")
{x}.scatter({dim0}, {index_like}, {me}, reduce="add")
{x}.index_add_({dim0}, {index_of_all}, {me}.clone())
{x}.index_add({dim0}, {index_of_all}, {me}, alpha=2)
{x}.index_copy_({dim0}, {permuted_all}, {me}.clone())
{x}.index_fill_({dim0}, {index_1d}, {scalar})
{x}.index_reduce_({dim0}, {index_of_all}, {me}.clone(), "prod")
{x}.index_put_(({index_1d_of_first},), {scalar_tensor})
{x}.index_put_(({index_1d_of_first},), {scalar_tensor}, accumulate=True)
{x}.put_({index_flat}, {scalar_tensor}.expand(3))
{x}.masked_fill({mask}, {scalar})
{x}.masked_fill_({mask}, {scalar})
{x}.masked_fill_({mask}, {host0})
{x}.masked_scatter_({mask}, {me}.clone())
{x}.diagonal_scatter({x}.diagonal())
{x}.select_scatter({scalar_tensor}.expand({select_shape}), {dim0}, 0)
{x}.slice_scatter({me}[:1], 0, 0, 1)
"""

ASSIGN = """
{x}[{slice}] = {scalar}
{x}[{slice}] = {host0}
{x}[{mask}] = {scalar}
{x}[{indices}] = {scalar}
{x}[{slice}] += {scalar}
{x}[{slice}] *= {y}
{x}[{slice}] = {y_with_dims}
{x} += {y}
{x} -= {scalar}
{x} *= {me}
{x}.copy_({y})
{x}.copy_({y}, non_blocking=True)
{x}.copy_({me}.flip(0))
{x}.copy_({host})
{x}.copy_({host}, non_blocking=True)
{x}.copy_({host0})
{x}.data = {y}.data
{x}.set_({y})
{x}.set_()
{x}.set_(torch.ones(8, dtype={me}.dtype, device=dev).untyped_storage(), {start}, (2, 2), (1, 2))
grown({x}, {shape_smaller})
grown({x}, {shape})
{x}.resize_as_({me})
{x}.requires_grad_()
{f}.requires_grad_()
{f}.requires_grad_(False)
{f}.grad = None
"""

COPY = """
{x}.clone()
{x}.clone(memory_format={memory})
{x}.contiguous()
{x}.contiguous(memory_format={memory})
{x}.to({dtype})
{x}.to({dtype}, copy=True)
{x}.to({dtype}, non_blocking=True)
{x}.to({dtype}, memory_format={memory})
{x}.to({y})
{x}.type({dtype})
{x}.double()
{x}.half()
{x}.int()
{x}.bool()
{x}.type_as({y})
over({x})
over({x}, True)
pinned({x})
down({x}, {dtype}, False)
down({x}, {dtype}, True)
other_chip({x})
copy.deepcopy({x})
copy.deepcopy([{x}, {me}])
copy.copy({x})
pickled({x})
saved({x})
{x}.flatten().contiguous().numel()
{x}.is_contiguous()
{x}.is_contiguous(memory_format={memory})
{x}.dim() + {me}.element_size()
{x}.is_set_to({y})
"""

MATRIX = """
{m} @ {me}.mT
{m}.mT @ {me}
torch.mm({matrix}, {me}.t())
torch.matmul({m}, {y})
torch.addmm({scalar_tensor}.to({matrix}.dtype), {me}, {me}.t())
torch.addmm({scalar_tensor}.to({matrix}.dtype), {me}, {me}.t(), beta=0.5, alpha=2)
torch.mv({matrix}, {me}[0])
torch.bmm({batch}, {me}.mT)
torch.baddbmm({scalar_tensor}.to({batch}.dtype), {me}, {me}.mT, alpha=0.5)
torch.mm({matrix}, {me}.t(), out={y}.clone())
torch.einsum("...ij,...kj->...ik", {m}, {me})
torch.einsum("ij->ji", {matrix})
torch.tensordot({x}, {me}, {x}.dim())
torch.dot({x}.flatten(), {me}.flatten())
torch.vdot({x}.flatten(), {me}.flatten())
torch.inner({m}, {me})
torch.linalg.multi_dot([{matrix}, {me}.t(), {me}])
torch.chain_matmul({matrix}, {me}.t())
torch.cdist({m}, {me})
torch.linalg.det(torch.eye(3, device=dev) * 2)
torch.linalg.solve(torch.eye(3, device=dev) * 2, data((3, 2), torch.float32, {seed}))
torch.linalg.qr(data((4, 3), torch.float64, {seed}))
torch.linalg.cholesky(torch.eye(3, device=dev) * 4)
torch.linalg.inv(torch.eye(3, device=dev, dtype=torch.complex64) * 4)
torch.matrix_exp(torch.eye(3, device=dev))
torch.linalg.matrix_power(data((3, 3), torch.float32, {seed}), 3)
torch.fft.fft({f})
torch.fft.rfft({f}, dim={dim})
torch.fft.ifft2({m})
torch.fft.fftshift({x})
torch.stft(data((64,), torch.float32, {seed}), 16, return_complex=True, window=torch.ones(16, device=dev))
"""

NEURAL = """
F.relu({x})
F.relu_({x})
F.gelu({f})
F.gelu({f}, approximate="tanh")
F.silu({f})
F.silu({f}, inplace=True)
F.elu({f})
F.leaky_relu_({f}, 0.1)
F.hardtanh({f})
F.hardswish({f})
F.mish({f})
F.softplus({f})
F.threshold({x}, 0.1, 2)
F.prelu({f}, torch.tensor([0.25], device=dev))
F.glu({f}, {dim})
F.logsigmoid({f})
F.layer_norm({f}, {last})
F.layer_norm({f}, {last}, torch.ones({last}, device=dev), torch.zeros({last}, device=dev))
F.rms_norm({f}, {last})
F.group_norm({picture}, 1)
F.instance_norm({picture})
F.batch_norm({picture}, None, None, training=True)
F.batch_norm({picture}, torch.zeros({channels}, device=dev), torch.ones({channels}, device=dev))
F.linear({f}, data((3, {last_size}), torch.float32, {seed}))
F.linear({f}, {me})
F.linear({f}, data((3, {last_size}), torch.float32, {seed}), torch.ones(3, device=dev))
F.conv1d({batch}, data((2, {columns}, 1), torch.float32, {seed}))
F.conv2d({picture}, data((3, {channels}, 2, 2), torch.float32, {seed}), torch.ones(3, device=dev))
F.conv2d({picture}, data((3, {channels}, 3, 3), torch.float32, {seed}), padding=1, stride=2)
F.conv2d({picture}, data(({channels}, 1, 1, 1), torch.float32, {seed}), groups={channels})
F.conv_transpose2d({picture}, data(({channels}, 2, 2, 2), torch.float32, {seed}))
F.max_pool2d({picture}, 2)
F.max_pool2d({picture}, 2, return_indices=True)
F.avg_pool2d({picture}, 2)
F.adaptive_avg_pool2d({picture}, 2)
F.adaptive_max_pool2d({picture}, 1)
F.interpolate({picture}, scale_factor=2)
F.interpolate({picture}, size=(5, 5), mode="bilinear")
F.pad({x}, (1, 2), value=1)
F.pad({picture}, (1, 1), mode="reflect")
F.pixel_shuffle({picture}, 1)
F.unfold({picture}, 2)
F.normalize({f})
F.cosine_similarity({f}, {y})
F.one_hot({index_1d}, {big})
F.embedding({index_1d}, {matrix})
F.embedding(index((2, 2), {rows}, {seed}), {matrix})
F.mse_loss({f}, {y})
F.l1_loss({f}, {y}, reduction="none")
F.smooth_l1_loss({f}, {y})
F.binary_cross_entropy_with_logits({f}, {y})
F.cross_entropy({matrix}, index(({rows},), {columns}, {seed}))
F.cross_entropy({matrix}, index(({rows},), {columns}, {seed}), label_smoothing=0.1, reduction="none")
F.nll_loss({matrix}, index(({rows},), {columns}, {seed}))
F.kl_div({f}, {y}, reduction="sum")
F.huber_loss({f}, {y})
F.scaled_dot_product_attention({heads}, {me}, {me})
F.scaled_dot_product_attention({heads}, {me}, {me}, is_causal=True)
F.scaled_dot_product_attention({heads}, {me}, {me}, attn_mask=torch.ones({rows}, {rows}, dtype=torch.bool, device=dev))
F.grid_sample({picture}, torch.zeros({pictures}, 2, 2, 2, device=dev), align_corners=False)
F.local_response_norm({picture}, 2)
F.upsample_nearest({picture}, 6)
"""

LISTS = """
torch._foreach_add([{x}, {y}], {scalar})
torch._foreach_add_([{x}, {y}], {scalar})
torch._foreach_mul([{x}, {y}], [{me}, {y}])
torch._foreach_mul_([{f}, {me}.clone()], 0.5)
torch._foreach_sqrt([{f}, {y}])
torch._foreach_norm([{f}, {me}])
torch._foreach_lerp([{f}], [{me}.clone()], 0.5)
torch._foreach_addcmul_([{x}], [{y}], [{z}], 2)
torch._foreach_copy_([{x}], [{y}])
torch._foreach_zero_([{x}, {y}])
torch._foreach_clamp_min([{x}], 0)
torch._foreach_pow([{f}], 2)
torch.nn.utils.clip_grad_norm_([{leaf}], 1.0).to(dev)
torch.nn.utils.parameters_to_vector([{f}, {me}])
torch.optim.SGD([{leaf}], lr=0.1, momentum=0.9).step()
torch.optim.Adam([{leaf}], lr=0.1).step()
torch.optim.AdamW([{leaf}], lr=0.1, foreach=True).step()
"""

GRADIENT = """
{f}.detach().clone().requires_grad_()
{f}.detach().clone().requires_grad_()
{f}.detach().clone().requires_grad_()
{f}.detach().requires_grad_()
data({shape}, {floating}, {seed}).requires_grad_()
torch.nn.Parameter({f}.detach().clone())
backward({r})
backward({r})
backward({r}, True)
gradient({r}, {leaf})
gradient({r}, {leaf}, True)
gradient(gradient({r}, {leaf}, True), {leaf}, True)
gradient({r} * {me}, {me})
gradient({r}.exp(), {r})
{r}.retain_grad()
{r}.register_hook(lambda g: g * 2) and None
{leaf}.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(0.5)) and None
checkpoint(lambda t: (t * 2).sin(), {r}, use_reentrant=False)
checkpoint(lambda t: t.exp().cos(), {r}, use_reentrant=True)
Double.apply({r})
{r} * {y}
{r}.mul_({y})
{r}.sin()[{slice_any}]
{r}.view(-1).exp()
torch.func.grad(lambda t: (t * t).sum())({f})
torch.func.vmap(lambda t: t * 2 + t.sum())({x})
torch.func.jvp(lambda t: t.sin() * t, ({f},), ({me},))[1]
torch.autograd.functional.hessian(lambda t: (t ** 3).sum(), data((3,), torch.float64, {seed}))
{leaf}.grad.zero_()
{leaf}.grad * 2
"""

MEMORY = """
gc.collect() and None
empty_cache()
synchronize()
record_stream({x})
"""

GROUPS: Mapping[str, tuple[int, Sequence[str]]] = {
    "make": (10, MAKE.split("\n")[1:-1]),
    "view": (26, VIEW.split("\n")[1:-1]),
    "unary": (10, UNARY.split()),
    "binary": (12, BINARY.split()),
    "shaped": (14, SHAPED.split("\n")[1:-1]),
    "reduce": (12, REDUCE.split("\n")[1:-1]),
    "counted": (4, COUNTED.split("\n")[1:-1]),
    "index": (10, INDEX.split("\n")[1:-1]),
    "assign": (14, ASSIGN.split("\n")[1:-1]),
    "copy": (9, COPY.split("\n")[1:-1]),
    "matrix": (6, MATRIX.split("\n")[1:-1]),
    "neural": (8, NEURAL.split("\n")[1:-1]),
    "lists": (4, LISTS.split("\n")[1:-1]),
    "gradient": (14, GRADIENT.split("\n")[1:-1]),
    "memory": (2, MEMORY.split("\n")[1:-1]),
}


class Missing(Exception):
    """No tensor of the lane fits a gap."""


class Filler:
    """Fills the gaps of one template from a lane's tensors. `x` is the last one chosen for a gap of a kind."""

    def __init__(self, rng: random.Random, tensors: Mapping[str, torch.Tensor]) -> None:
        self.rng, self.tensors = rng, tensors
        self.name, self.tensor = "", torch.empty(0)

    def fill(self, template: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda gap: str(getattr(self, gap[1])()), template)

    # ---- tensors

    def _choose(self, fits: Callable[[torch.Tensor], bool] = lambda _: True) -> str:
        fitting = [name for name, tensor in self.tensors.items() if fits(tensor)]
        if not fitting:
            raise Missing
        self.name = self.rng.choice(fitting)
        self.tensor = self.tensors[self.name]
        return self.name

    def x(self) -> str:
        return self._choose()

    def me(self) -> str:
        return self.name or self._choose()

    def y(self) -> str:
        """A tensor that is likely to broadcast with the one before; it does not take its place."""
        sizes = tuple(self.tensor.shape)

        def fits(other: torch.Tensor) -> bool:
            return all(a in (1, b) for a, b in zip(reversed(other.shape), reversed(sizes), strict=False))

        likely = [name for name, tensor in self.tensors.items() if fits(tensor) and tensor.dim() <= len(sizes)]
        from_all = not likely or self.rng.random() < 0.1
        if not self.tensors:
            raise Missing
        return self.rng.choice(list(self.tensors) if from_all else likely)

    z = y

    def y_with_dims(self) -> str:
        """Where torch itself treats tensors of no dimensions differently on the CPU: assignments fill."""
        chosen = self.y()
        if self.tensors[chosen].dim() == 0:
            raise Missing
        return chosen

    def f(self) -> str:
        return self._choose(lambda x: x.is_floating_point())

    def floats(self) -> str:
        return self._choose(lambda x: x.is_floating_point() and x.dim() > 0 and x.shape[-1] == 2)

    def complex(self) -> str:
        return self._choose(torch.is_complex)

    def m(self) -> str:
        return self._choose(lambda x: x.dim() >= 2)

    def matrix(self) -> str:
        return self._choose(lambda x: x.dim() == 2 and x.is_floating_point() and min(x.shape) > 0)

    def batch(self) -> str:
        return self._choose(lambda x: x.dim() == 3)

    def picture(self) -> str:
        return self._choose(lambda x: x.dim() == 4 and x.is_floating_point() and min(x.shape) > 0)

    heads = picture

    def r(self) -> str:
        return self._choose(lambda x: x.requires_grad)

    def leaf(self) -> str:
        return self._choose(lambda x: x.requires_grad and x.is_leaf)

    # ---- numbers

    def seed(self) -> int:
        return self.rng.randrange(1000)

    def small(self) -> int:
        return self.rng.randint(1, 5)

    def step(self) -> int:
        return self.rng.randint(1, 3)

    def big(self) -> int:
        return 70

    def scalar(self) -> str:
        return self.rng.choice(("2", "-1", "3", "0", "0.5", "-1.5", "True", "float('inf')", "1j", "1e30", "300", "2.0"))

    def scalar_tensor(self) -> str:
        return f"torch.ones((), dtype={self.tensor.dtype}, device=dev)"

    def dim(self) -> int:
        rank = max(self.tensor.dim(), 1)
        return self.rng.randint(-rank, rank - 1) if self.rng.random() < 0.97 else rank

    def dim0(self) -> int:
        return 0

    def _size(self) -> int:
        return self.tensor.shape[0] if self.tensor.dim() else 1

    def start(self) -> int:
        return self.rng.randint(0, 2)

    def length(self) -> int:
        return self.rng.randint(0, 3)

    def place(self) -> int:
        return self.rng.randint(-2, 2)

    def offset(self) -> int:
        return self.rng.randint(-2, 2)

    def rows(self) -> int:
        return self.tensor.shape[-2] if self.tensor.dim() > 1 else 1

    def columns(self) -> int:
        return self.tensor.shape[1]

    def channels(self) -> int:
        return self.tensor.shape[1]

    def pictures(self) -> int:
        return self.tensor.shape[0]

    def last_size(self) -> int:
        return self.tensor.shape[-1] if self.tensor.dim() else 1

    def last(self) -> str:
        return f"({self.last_size()},)"

    # ---- shapes

    def _sizes(self) -> tuple[int, ...]:
        sizes = self.rng.choices((0, 1, 2, 3, 4, 5, 7, 16), (1, 5, 9, 9, 6, 3, 2, 1), k=self.rng.randint(0, 4))
        return tuple(sizes)

    def shape(self) -> str:
        return str(self._sizes())

    def shape_smaller(self) -> str:
        return str(tuple(min(size, self.rng.randint(1, 3)) for size in self.tensor.shape))

    def large(self) -> str:
        return self.rng.choice(("(130, 200)", "(3, 70, 90)", "(20000,)", "(2, 8, 40, 41)"))

    def image(self) -> str:
        return f"({self.step()}, {self.small()}, {self.rng.randint(3, 6)}, {self.rng.randint(3, 6)})"

    def layout(self) -> str:
        """Sizes and strides: permuted, with gaps, expanded, or overlapping."""
        sizes = self._sizes()
        strides, step = [1] * len(sizes), 1
        for place in self.rng.sample(range(len(sizes)), len(sizes)):
            strides[place] = step
            step *= max(sizes[place], 1) + self.rng.choice((0, 0, 0, 1))
        if strides and self.rng.random() < 0.3:
            strides[self.rng.randrange(len(strides))] = self.rng.choice((0, 1))
        return f"{sizes}, {tuple(strides)}"

    def reshape(self) -> str:
        sizes: list[int] = []
        rest = self.tensor.numel()
        while rest > 1 and len(sizes) < 4:
            divisor = self.rng.choice([d for d in range(1, 9) if rest % d == 0])
            sizes.append(divisor)
            rest //= divisor
        sizes.append(rest if self.rng.random() < 0.7 else -1)
        return str(tuple(self.rng.sample(sizes, len(sizes))))

    def permutation(self) -> str:
        return str(tuple(self.rng.sample(range(self.tensor.dim()), self.tensor.dim())))

    def expand(self) -> str:
        sizes = [self.rng.choice((2, 3, -1)) if size == 1 else size for size in self.tensor.shape]
        return str(tuple([2] * self.rng.randint(0, 1) + sizes))

    def select_shape(self) -> str:
        return str(tuple(self.tensor.shape[1:]))

    def strided(self) -> str:
        """Sizes, strides and an offset inside of what the tensor, or the tensor that it is a view of, reaches."""
        whole = self.tensor._base if self.tensor._base is not None else self.tensor
        room = whole.storage_offset() + room_of(whole)
        if whole.element_size() != self.tensor.element_size() or whole.device.type != self.tensor.device.type:
            room = 0
        offset = self.rng.randrange(min(room, 4)) if room else 0
        sizes, strides, last = [], [], offset
        for _ in range(self.rng.randint(0, 3)):
            stride = self.rng.choice((0, 1, 1, 2, 3, 5))
            size = self.rng.randint(1, 4)
            if last + (size - 1) * stride >= room:
                continue
            sizes.append(size)
            strides.append(stride)
            last += (size - 1) * stride
        return f"{tuple(sizes)}, {tuple(strides)}, {offset}"

    def slice(self) -> str:
        parts = []
        for size in self.tensor.shape:
            kind = self.rng.randrange(7)
            parts.append(
                (":", f"{self.rng.randrange(size) if size else 0}:", "::2", "1::3", ":-1", None, "...")[kind]
                or (str(self.rng.randrange(size)) if size else ":")
            )
        for place in [place for place, part in enumerate(parts) if part == "..."][1:]:
            parts[place] = ":"
        if self.rng.random() < 0.2:
            parts.insert(self.rng.randint(0, len(parts)), "None")
        return ", ".join(parts[: self.rng.randint(1, len(parts))] if parts else ["..."])

    def slice_any(self) -> str:
        return self.rng.choice(("...", "1:", "::2", "None"))

    # ---- indices and masks

    def mask(self) -> str:
        return f"mask({self.me()}, {self.seed()})"

    def host0(self) -> str:
        return f"host((), {self.dtype()}, {self.seed()})"

    def host(self) -> str:
        return f"host({tuple(self.tensor.shape)}, {self.dtype()}, {self.seed()})"

    def _index(self, shape: tuple[int, ...], bound: int, dtype: str = "torch.int64") -> str:
        if bound == 0:
            shape = (0,)
        return f"index({shape}, {bound}, {self.seed()}, {dtype})"

    def index_1d(self) -> str:
        return self._index((self.rng.randint(0, 4),), self._size(), self.rng.choice(("torch.int64", "torch.int32")))

    def index_1d_of_first(self) -> str:
        return self._index((self._size(),), self._size())

    def index_of_all(self) -> str:
        return self._index((self._size(),), self._size())

    def permuted_all(self) -> str:
        return f"drawn({self.seed()}, ({self._size()},), None, 'randperm')"

    def index_of_1(self) -> str:
        return self._index((2, 3), self.tensor.shape[1] if self.tensor.dim() > 1 else 1)

    def index_like(self) -> str:
        return self._index(tuple(self.tensor.shape), self._size())

    index_like_0 = index_like

    def index_flat(self) -> str:
        return self._index((3,), self.tensor.numel())

    def host_index(self) -> str:
        return f"torch.tensor([{self.rng.randrange(max(self._size(), 1))}])"

    def indices(self) -> str:
        parts = [
            self.rng.choice((self._index((2,), size), self._index((3, 1), size), ":", "None"))
            for size in self.tensor.shape[:3]
        ]
        return ", ".join(parts) or "None"

    # ---- dtypes and formats

    def dtype(self) -> str:
        return self.rng.choice(DTYPES)

    def floating(self) -> str:
        return self.rng.choice(("torch.float32", "torch.float32", "torch.float64", "torch.bfloat16", "torch.float16"))

    def dtype_of_bits(self) -> str:
        return self.rng.choice(("torch.int32", "torch.int16", "torch.int64", "torch.float32", "torch.float16"))

    def memory(self) -> str:
        formats = ["contiguous_format", "preserve_format"]
        if self.tensor.dim() == 4:
            formats += ["channels_last"] * 2
        return "torch." + self.rng.choice(formats)

    def draw(self) -> str:
        return self.rng.choice(('"rand"', '"randn"'))


def expression(rng: random.Random, tensors: Mapping[str, torch.Tensor], allow_counted: bool = True) -> tuple[str, bool]:
    """Return a statement's text, and whether it has a value worth a name. Raises Missing."""
    filler = Filler(rng, tensors)
    names = [name for name in GROUPS if tensors and (allow_counted or name != "counted")] or ["make"]
    group = rng.choices(names, [GROUPS[name][0] for name in names])[0]
    word = rng.choice(GROUPS[group][1])
    if group == "unary":
        return filler.fill(_unary(rng, word)), True
    if group == "binary":
        return filler.fill(_binary(rng, word)), True
    return filler.fill(word), group not in ("assign", "memory")


def _unary(rng: random.Random, word: str) -> str:
    if word.endswith("_"):
        return f"{{x}}.{word}()"
    forms = (f"torch.{word}({{x}})", f"torch.{word}({{f}})", f"{{x}}.{word}_()", f"torch.{word}({{x}}, out={{y}})")
    return rng.choices(forms, (4, 2, 3, 1))[0]


def _binary(rng: random.Random, word: str) -> str:
    if word in DIVIDES:
        return rng.choice((f"torch.{word}({{f}}, {{y}})", f"torch.{word}({{x}}, 3)", f"{{f}}.{word}_({{y}})"))
    forms = (
        *(f"torch.{word}({{x}}, {{y}})", f"torch.{word}({{x}}, {{scalar}})", f"{{x}}.{word}_({{y}})"),
        *(f"{{x}}.{word}_({{scalar}})", f"torch.{word}({{x}}, {{y}}, out={{z}})", f"torch.{word}({{x}}, {{host0}})"),
    )
    return rng.choices(forms, (5, 2, 4, 2, 1, 1))[0]


def tensors_of(value: Any, name: str) -> dict[str, torch.Tensor]:
    """Return the expressions that reach the tensors of a statement's value."""
    parts = enumerate(value) if isinstance(value, (tuple, list)) else ()
    found = {f"{name}[{place}]": part for place, part in parts if isinstance(part, torch.Tensor)}
    return {name: value} if isinstance(value, torch.Tensor) else found
