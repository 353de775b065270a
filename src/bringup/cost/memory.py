"""Operators that mostly move data: copies, gather and scatter, sorting, random numbers, optimizers."""

from __future__ import annotations

import math
from dataclasses import replace

from bringup.cost.rules import Work, names, rule, streaming
from bringup.cost.signature import Signature

# Fraction of the bandwidth for rows picked by an index, which are shorter than a memory burst. Random rows of 64-128
# bytes reach about half on GPUs (Mei & Chu, TPDS 2017, figure on strided access).
GATHER = 0.5
# Fraction of the bandwidth for a copy that changes the order of dimensions. It reads or writes in short runs, even
# when tiled: 0.6 of a plain copy (Ruetsch & Micikevicius, "Optimizing Matrix Transpose in CUDA", 2009).
TRANSPOSE = 0.6


@rule(
    "copy",
    *names("""
        copy clone _to_copy _copy_from contiguous cat stack _stack _chunk_cat block_diag repeat resize resize_as
        fill zero fill_diagonal empty_like zeros_like ones_like full_like
        eye full ones zeros scalar_tensor new_empty new_zeros new_full new_ones
        arange range iota linspace logspace vander hann_window tril_indices triu_indices
        constant_pad_nd flip roll rot90 tril triu im2col_backward
        slice_scatter select_scatter diagonal_scatter as_strided_scatter
        slice_backward select_backward diagonal_backward
        narrow_copy unfold_copy split_with_sizes_copy view_as_complex_copy detach_copy alias_copy lift lift_fresh_copy
        _reshape_copy _unsafe_view _cast_Float _nested_tensor_from_mask
        _pack_padded_sequence _pack_padded_sequence_backward _pad_packed_sequence
    """),
)
def copy(signature: Signature) -> Work:
    """Price the bytes read and written."""
    work = streaming(signature, "copy", flops=0)
    layouts = {_order(tensor.strides) for tensor in (*signature.tensors, *signature.results) if len(tensor.shape) > 1}
    return replace(work, streams=TRANSPOSE) if len(layouts) > 1 else work


def _order(strides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(strides)), key=lambda dim: -strides[dim]))


@rule(
    "gather",
    *names("""
        gather index _unsafe_index index_select take take_along_dim masked_select nonzero nonzero_static argwhere
        repeat_interleave
        embedding embedding_renorm _embedding_bag _embedding_bag_forward_only
        _embedding_bag_backward _embedding_bag_dense_backward _embedding_bag_per_sample_weights_backward
    """),
)
def gather(signature: Signature) -> Work:
    """Price the bytes of the selected rows, not of the whole table."""
    results = sum(tensor.nbytes for tensor in signature.results)
    indices = sum(tensor.nbytes for tensor in signature.tensors[1:] if tensor.is_integer)
    elements = max(sum(tensor.numel for tensor in signature.results), 1)
    return Work(
        family="gather",
        dtype=signature.dtype,
        vector_flops=elements,
        read_bytes=results + indices,
        written_bytes=results,
        items=elements,
        streams=GATHER,
    )


@rule(
    "gather",
    *names("""
        scatter scatter_add scatter_reduce masked_scatter masked_scatter_backward put
        index_put _index_put_impl _unsafe_index_put index_add index_copy index_fill index_reduce
        _unsafe_masked_index _unsafe_masked_index_put_accumulate
        gather_backward index_select_backward embedding_dense_backward value_selecting_reduction_backward
    """),
)
def scatter(signature: Signature) -> Work:
    """Price the source, the elements that are changed (read and written), and the copy to a fresh result."""
    source = max((tensor.nbytes for tensor in signature.tensors if not tensor.written), default=0)
    fresh = sum(tensor.nbytes for tensor in signature.outputs if tensor is not None)
    elements = max((tensor.numel for tensor in signature.tensors if not tensor.written), default=1)
    return Work(
        family="gather",
        dtype=signature.dtype,
        vector_flops=elements,
        read_bytes=2 * source + fresh,
        written_bytes=source + fresh,
        items=elements,
        streams=GATHER,
    )


@rule(
    "sort",
    *names("""
        sort sort_stable _sort argsort msort median nanmedian mode kthvalue quantile nanquantile
        _unique _unique2 unique_dim unique_consecutive unique_dim_consecutive
    """),
)
def sort(signature: Signature) -> Work:
    """Price a radix sort of keys and positions: one pass over both per byte of the key (Merrill & Grimshaw, 2011)."""
    data = signature.tensors[0]
    row = data.shape[-1] if data.shape else 1
    passes = 1 if row <= 2048 else data.item_bytes  # short rows are sorted in the scratchpad
    moved = (data.item_bytes + 8) * data.numel
    depth = math.log2(max(row, 2))
    return Work(
        family="sort",
        dtype=data.dtype,
        vector_flops=data.numel * depth * 2,
        read_bytes=moved * passes,
        written_bytes=moved * passes,
        items=data.numel,
        kernels=passes,
    )


@rule("sort", "topk", "searchsorted")
def topk(signature: Signature) -> Work:
    """Price a radix selection: one pass over the input per byte of the key, at most four (Alabi et al., 2012)."""
    data = signature.tensors[0]
    passes = min(data.item_bytes, 4)
    return Work(
        family="sort",
        dtype=data.dtype,
        vector_flops=data.numel * 4,
        read_bytes=data.nbytes * passes,
        written_bytes=signature.written_bytes,
        items=data.numel,
        kernels=2,
    )


@rule(
    "random",
    *names("""
        nondeterministic_seeded
        normal uniform bernoulli random exponential geometric cauchy log_normal multinomial poisson binomial
        rand rand_like randn randn_like randint randint_like randperm
        _standard_gamma _standard_gamma_grad _sample_dirichlet _dirichlet_grad
        native_dropout _fused_dropout alpha_dropout feature_dropout
        inductor_random inductor_randint inductor_seeds inductor_lookup_seed
    """),
)
def random(signature: Signature) -> Work:
    """Price Philox: about 30 integer operations and one special function per element (Salmon et al., SC 2011)."""
    return streaming(signature, "random", flops=30, special=1)


@rule("optimizer", "_foreach_", "_fused_")
def lists(signature: Signature) -> Work:
    """Price a multi-tensor launch over lists, as several kernels if the tensors exceed one kernel's arguments."""
    work = streaming(signature, "optimizer")
    fused = 12.0 if signature.base.startswith("_fused_") else 1.0
    elements = sum(tensor.numel for tensor in signature.tensors if tensor.written) or work.items
    if not signature.results or all(tensor.numel == 0 for tensor in signature.results):
        return work
    special = elements if any(word in signature.base for word in ("sqrt", "div", "exp", "pow", "adam")) else 0.0
    tensors = len(signature.tensors)
    # 110 tensors per kernel for one list, 30 for five (aten/src/ATen/native/cuda/MultiTensorApply.cuh).
    return replace(
        work, vector_flops=fused * elements, special=special, items=elements, kernels=max(1, round(tensors / 110))
    )
