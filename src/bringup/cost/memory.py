"""Operators that mostly move data: copies, gather and scatter, sorting, random numbers, optimizers."""

from __future__ import annotations

import math
from dataclasses import replace

from bringup.cost.access import OFFSET, walked
from bringup.cost.rules import Work, names, rule, streaming
from bringup.cost.signature import Signature, Tensor

# Fraction of the bandwidth for rows picked by an index, which are shorter than a memory burst. Random rows of 64-128
# bytes reach about half on GPUs (Mei & Chu, TPDS 2017, figure on strided access).
GATHER = 0.5
# Latencies that a block waits for each row that it picks, over the blocks of a core: index, row and result, with the
# block's start. Own measurement on the H100: embeddings of 65,536 rows of 64 take 41 us in bfloat16 and in float32.
# index_select was not used for it: 0.61 ns per row of 128 are measured, and 0.57 follow.
ROW_WAITS = 0.25
# Latencies in sequence of one pass of a radix sort or selection: ranks, counts, sum over blocks. Own measurement
# on the H100: 9 us per pass over 16,384 keys.
RADIX_PASS = 30
RADIX_STREAMS = 0.6  # of the bandwidth, in runs as short as a digit's: own measurement on the H100, 16 M float32 keys
# Shortest row that is sorted alone, and number of rows from which one kernel sorts all of them each alone
# (launch_stable_sort_kernel in aten/src/ATen/native/cuda/SortStable.cu).
ONE_SEGMENT, SEGMENTS = 1_000_000, 128
SMALL_SORT = 4096  # longest row that one block sorts (should_use_small_sort in aten/src/ATen/native/cuda/Sort.h)
# Latencies in sequence of one pass over 4 bits in such a block: ranks, and the exchange of keys and positions. Own
# measurement on the H100: radixSortKVInPlace takes 31 us for rows of 1,024 float32, of which 3 us are memory.
BLOCK_PASS = 11
# Instructions per random number beyond its 30 operations: conversions, and the walk of a grid no larger than the
# chip. Own measurement on the H100: uniform numbers, 33,554,432 in float32 and bfloat16; no other distribution.
PHILOX = 12
# Threads of the one block that selects in a row (block in KthValueLauncher, aten/src/ATen/native/cuda/Sorting.cu).
BLOCK = 1024
# Rows that are added without a sort (embedding_dense_backward_cuda in aten/src/ATen/native/cuda/Embedding.cu).
UNSORTED_ROWS = 3072
# One kernel over lists takes 110 tensors of one list or 30 of five, and 320 blocks of 65,536 elements of each list
# (depth_to_max_tensors, depth_to_max_blocks and kChunkSize in aten/src/ATen/native/cuda/MultiTensorApply.cuh).
LIST_TENSORS, LIST_BLOCKS, LIST_CHUNK = 110, 320, 65536
# Fraction of the bandwidth for a copy that changes the order of dimensions. It reads or writes in short runs, even
# when tiled: 0.6 of a plain copy (Ruetsch & Micikevicius, "Optimizing Matrix Transpose in CUDA", 2009).
TRANSPOSE = 0.6
# Instructions per element of copies that compute their offsets. Roll divides 64-bit numbers (roll_cuda_kernel in
# aten/src/ATen/native/cuda/TensorTransformations.cu): 0.24e12 elements/s on the H100, our own measurement.
SHUFFLES = {"flip": OFFSET, "rot90": OFFSET, "roll": 62}


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
    if signature.base in SHUFFLES:
        return replace(work, offsets=float(SHUFFLES[signature.base] * sum(t.numel for t in signature.results)))
    if signature.base in ("cat", "stack"):
        # CatArrayBatchedCopy computes offsets unless all inputs are contiguous (aten/src/ATen/native/cuda/Shape.cu).
        strided = any(not _contiguous(tensor) for tensor in signature.tensors)
        return replace(work, offsets=float(OFFSET * sum(t.numel for t in signature.results))) if strided else work
    work = walked(signature, work)
    return replace(work, streams=TRANSPOSE) if work.sectors else work


def _contiguous(tensor: Tensor) -> bool:
    dense = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size > 1 and stride != dense:
            return False
        dense *= size
    return True


@rule(
    "gather",
    *names("""
        gather index _unsafe_index take take_along_dim masked_select nonzero nonzero_static argwhere
        repeat_interleave
        embedding_renorm _embedding_bag _embedding_bag_forward_only
        _embedding_bag_backward _embedding_bag_dense_backward _embedding_bag_per_sample_weights_backward
    """),
)
def gather(signature: Signature) -> Work:
    """Price the bytes of the selected rows, not of the whole table. Indices and results are streamed."""
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
        streams=_picked(results, results + indices),
    )


def _picked(picked: float, streamed: float) -> float:
    """Return the fraction of the bandwidth if some bytes are picked by an index and others are streamed."""
    return (picked + streamed) / (picked / GATHER + streamed) if picked + streamed else 1.0


@rule("gather", "embedding", "index_select")
def rows(signature: Signature) -> Work:
    """Price a block per row; a row that is looked up again comes from the cache.

    Rows that are contiguous are picked by vectorized_gather_kernel (aten/src/ATen/native/cuda/IndexKernelUtils.cu).
    """
    work = gather(signature)
    table, dim = signature.tensors[0], signature.args.get("dim", 0)
    if dim != 0 or not table.shape or not _contiguous(table):
        return work
    count = work.items * table.shape[0] / max(table.numel, 1)
    read = min(work.written_bytes, table.nbytes) + work.read_bytes - work.written_bytes
    return replace(work, read_bytes=read, streams=1.0, waits=ROW_WAITS * count)


@rule(
    "gather",
    *names("""
        scatter scatter_add scatter_reduce masked_scatter masked_scatter_backward put
        index_put _index_put_impl _unsafe_index_put index_add index_copy index_fill index_reduce
        _unsafe_masked_index _unsafe_masked_index_put_accumulate
        gather_backward index_select_backward value_selecting_reduction_backward
    """),
)
def scatter(signature: Signature) -> Work:
    """Price the source, the elements that are changed (read and written), and the copy to a fresh result."""
    inputs = [tensor for tensor in signature.tensors if not tensor.written]
    elements = max((tensor.numel for tensor in inputs), default=1)
    # The source is the largest input of the result's dtype. An index may have as many elements.
    source = max((tensor.nbytes for tensor in inputs if tensor.dtype == signature.dtype), default=0)
    indices = sum(tensor.nbytes for tensor in inputs if tensor.is_integer and tensor.dtype != signature.dtype)
    source = source or max((tensor.nbytes for tensor in inputs), default=0)
    fresh = sum(tensor.nbytes for tensor in signature.outputs if tensor is not None)
    return Work(
        family="gather",
        dtype=signature.dtype,
        vector_flops=elements,
        read_bytes=2 * source + indices + fresh,
        written_bytes=source + fresh,
        items=max(elements, *(tensor.numel for tensor in signature.results)) if signature.results else elements,
        streams=_picked(2 * source, source + indices + 2 * fresh),
    )


@rule("gather", "embedding_dense_backward")
def add_rows(signature: Signature) -> Work:
    """Price rows that are added to a fresh table; if there are many, their indices are sorted first."""
    work = scatter(signature)
    indices = next((tensor for tensor in signature.tensors if tensor.is_integer), None)
    if indices is None or indices.numel <= UNSORTED_ROWS:
        return work
    # The sort by every byte of the index, with its positions, then segments of equal indices (our own profile on the
    # H100: 21 kernels and 10 memsets).
    passes = indices.item_bytes
    return replace(work, kernels=13 + 2 * passes + passes // 4, chain=float(RADIX_PASS * passes))


@rule(
    "sort",
    *names("""
        sort sort_stable _sort argsort msort median nanmedian mode quantile nanquantile
        _unique _unique2 unique_dim unique_consecutive unique_dim_consecutive
    """),
)
def sort(signature: Signature) -> Work:
    """Price a radix sort of keys and positions: one pass over both per byte of the key (Merrill & Grimshaw, 2011)."""
    data = signature.tensors[0]
    row = _row(signature)
    small = row <= SMALL_SORT
    passes = 1 if small else data.item_bytes
    moved = float((data.item_bytes + 8) * data.numel * passes)
    depth = math.log2(max(row, 2))
    # Positions, two copies, the sort in one block, and copies of both results (our own profile on the H100); otherwise
    # positions, a copy of the keys, a histogram, its sum, and per pass the ranks with two memsets (CUB, onesweep).
    kernels = 5 if small else 2 + 3 * passes
    chain = BLOCK_PASS * 2 * data.item_bytes if small else RADIX_PASS * passes
    if not small and row < ONE_SEGMENT and 1 < data.numel // row < SEGMENTS:
        # One sort of all rows, and one of pairs of row and position by the row; then keys are picked by position.
        moved += (8 + 8 + data.item_bytes / GATHER) * data.numel
        kernels += 6
        chain += RADIX_PASS
    return Work(
        family="sort",
        dtype=data.dtype,
        vector_flops=data.numel * depth * 2,
        read_bytes=moved,
        written_bytes=moved,
        items=data.numel,
        kernels=kernels,
        chain=float(chain),
        streams=1.0 if small else RADIX_STREAMS,
    )


def _row(signature: Signature) -> int:
    """Return the elements of a row along the dimension that is sorted; a launch without a dimension has one row."""
    data, dim = signature.tensors[0], signature.args.get("dim")
    if not isinstance(dim, int):
        return data.shape[-1] if signature.base in ("sort", "topk", "kthvalue") and data.shape else data.numel
    return data.shape[dim] if data.shape else 1


def _block_steps(data: Tensor, row: int) -> float:
    """Return the loads in sequence of a radix selection in one block, with two bits per pass and a last one.

    RADIX_BITS and findPattern are in aten/src/ATen/native/cuda/SortingRadixSelect.cuh.
    """
    return math.ceil(row / BLOCK) * (data.item_bytes * 4 + 1)


@rule("sort", "kthvalue")
def kthvalue(signature: Signature) -> Work:
    """Price a radix selection by one block per row (gatherKthValue in aten/src/ATen/native/cuda/Sorting.cu)."""
    work = streaming(signature, "sort", flops=4)
    return replace(work, chain=_block_steps(signature.tensors[0], _row(signature)))


def _many_blocks(rows: int, row: int) -> bool:
    """True if several blocks select from a row (should_use_multiblock in aten/src/ATen/native/cuda/TensorTopK.cu)."""
    limits = ((20, 20000), (40, 10000), (80, 8000), (199, 5000), (799, 3000), (4000, 800))
    return row >= next((least for most, least in limits if rows <= most), 400)


@rule("sort", "searchsorted")
def searchsorted(signature: Signature) -> Work:
    """Price the inputs and the results once."""
    return streaming(signature, "sort", flops=4)


@rule("sort", "topk")
def topk(signature: Signature) -> Work:
    """Price a radix selection: one pass over the input per byte of the key, at most four (Alabi et al., 2012)."""
    data = signature.tensors[0]
    passes = min(data.item_bytes, 4)
    row = _row(signature)
    many = _many_blocks(data.numel // max(row, 1), row)
    return Work(
        family="sort",
        dtype=data.dtype,
        vector_flops=data.numel * 4,
        read_bytes=data.nbytes * passes,
        written_bytes=signature.written_bytes,
        items=data.numel,
        # Per pass digits, their sums and the counts; two memsets, a fill, counts, two scans of two kernels, the results
        # and their sort (our own profile on the H100). One block selects, and another sorts.
        kernels=10 + 3 * passes if many else 2,
        chain=float(RADIX_PASS * passes if many else _block_steps(data, row)),
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
    """Price Philox: about 30 integer operations and one special function per element (Salmon et al., SC 2011).

    Normal numbers take a logarithm, a root and a sine or cosine more (Box and Muller, 1958).
    """
    special = 4 if "normal" in signature.base or "randn" in signature.base else 1
    work = streaming(signature, "random", flops=30, special=special)
    return replace(work, offsets=float(PHILOX * work.items) if signature.results else 0.0)


@rule("random", "threefry2x32")
def threefry(signature: Signature) -> Work:
    """Price 20 rounds of 5 operations and 15 additions of keys, which make two numbers (Salmon et al., SC 2011)."""
    return streaming(signature, "random", flops=(20 * 5 + 15) / 2)


@rule("optimizer", "_foreach_", "_fused_")
def lists(signature: Signature) -> Work:
    """Price a multi-tensor launch over lists, as several kernels if the tensors exceed one kernel's arguments."""
    work = streaming(signature, "optimizer")
    fused = 12.0 if signature.base.startswith("_fused_") else 1.0
    elements = sum(tensor.numel for tensor in signature.tensors if tensor.written) or work.items
    if not signature.results or all(tensor.numel == 0 for tensor in signature.results):
        return work
    special = elements if any(word in signature.base for word in ("sqrt", "div", "exp", "pow", "adam")) else 0.0
    first = signature.args.get("self")
    one_list = [item for item in first if isinstance(item, Tensor)] if isinstance(first, list) else signature.results
    blocks = sum(math.ceil(tensor.numel / LIST_CHUNK) for tensor in one_list)
    kernels = max(1, round(len(signature.tensors) / LIST_TENSORS), math.ceil(blocks / LIST_BLOCKS))
    return replace(work, vector_flops=fused * elements, special=special, items=elements, kernels=kernels)
