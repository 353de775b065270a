"""Chips whose cores each compute tiles of a product: GPUs, and NPUs, IPUs and TPUs with a tile engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.cost.rules import SECTOR
from bringup.cost.work_table import WorkTable
from bringup.machine.vocabulary import matrix_dtype
from bringup.pricing.classes import ChipClass, Products, register
from bringup.pricing.constants import Constants
from bringup.pricing.rates import (
    by_dtype,
    by_torch,
    cache_rate,
    in_half,
    matrix_sustained,
    memory_latency,
    memory_rate,
    sector_rate,
)

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

Array = npt.NDArray[Any]

# The menu of a tuned library: tile sizes, and the numbers of parts into which it divides k.
TILES = [
    (m, n)
    for m in (16, 32, 64, 128, 192, 256)
    for n in (32, 64, 128, 192, 256)
    if m * n <= 256 * 128 or (m, n) == (256, 256)
]
SPLITS = (1, 2, 3, 4, 6, 8, 16)
# Kernels for the vector units, by their names in profiles of cuBLAS 13 and cuDNN 9.19 (sm80_xmma_gemm_f32f32,
# cutlass_80_simt_sgemm).
VECTOR_TILES = [(32, 32), (128, 32), (64, 64), (128, 64), (64, 128), (128, 128), (256, 64), (256, 128), (128, 256)]
VECTOR_SPLITS = (*SPLITS, 64)
# cuBLAS 13 adds parts of k while tiles occupy less than this share of the cores, and has more than three parts for
# results of one tile only. Chosen by our own measurement of float32 kernels on the H100: 24 tiles have two or three
# parts, 32 have two, 72 and more have one, and one tile with k = 100,000 has over 60.
FILLED = 0.5
PARTS = 3
# Kernels for 2 to 16 rows have 4 warps per tile, which divide k (gemmSN_TN_kernel<float, 128, ...> in profiles of
# cuBLAS 13).
FEW_ROWS = 16
WARPS = 4
FEW_TILES = [(4, 32), (16, 32)]
# Bytes along k of one step: names in profiles of cuBLAS 13 say 64 elements of 16 bits, 128 of 8 bits, 32 of TF32.
STEP = 128
# Bytes per clock from the last cache to one core of a GPU (Jia et al., Dissecting the NVIDIA Volta GPU Architecture via
# Microbenchmarking, 2018: 64 between L2 and a core's L1).
PORT = 64
# Integer instructions of a GPU's core per clock, from Volta to Hopper and on AMD's compute units (CUDA C++ Programming
# Guide, throughput of arithmetic instructions; AMD CDNA architecture: 4 units of 16 lanes).
INTEGER = 64
AT_ONCE = 256  # products whose tiles are priced at once: the numbers of more do not stay in a CPU's cache


def best_tiles(
    table: WorkTable,
    chip: Chip,
    peaks: Array,
    constants: Constants,
    *,
    menu: Sequence[tuple[int, int]],
    split_menu: Sequence[int],
    small: Array,
    step: Array | None = None,
    seldom: Array | None = None,
    port: float = np.inf,
) -> Products:
    """Price every product with the best tile and split of a menu, by one formula over [product, tile, split].

    Args:
        table: the products.
        chip: the chip.
        peaks: peak flop/s for the dtype of every product.
        constants: values that the chip file does not have.
        menu: the tiles, as (m, n).
        split_menu: numbers of parts into which k may be divided between cores.
        small: `Constants.small_tile` for every product.
        step: cycles between two elements along k that a tile alone on its core waits beyond their arithmetic. Other
            tiles on the core compute meanwhile.
        seldom: True for products whose k is divided into few parts, see `FILLED`, and not at all if they are `whole`.
        port: bytes per clock that a core receives from the last cache at most.

    Returns:
        `ChipClass.products`. The first tiles fill their cores before anything overlaps, and the parts of a divided k
        are added afterwards.
    """
    is_plain, shared = table.product_is_family("matmul"), _cluster(table, chip)
    sides = (table.batch, table.m, table.n, table.k, table.item, table.whole)
    columns = (*sides, is_plain, shared, peaks, small, step, seldom)

    def price(rows: slice) -> Products:
        part = _Part(*(None if column is None else column[rows] for column in columns))  # type: ignore[arg-type]
        return _best_tiles(part, chip, constants, menu, split_menu, port)

    parts = [price(slice(first, first + AT_ONCE)) for first in range(0, len(peaks), AT_ONCE)]
    seconds, share, exposed, adding = map(np.concatenate, zip(*parts, strict=True))
    return seconds, share, exposed, adding


@dataclass(frozen=True)
class _Part:
    """Some of the products, see `best_tiles`: their columns, and what tiles of a cluster load once."""

    batch: Array
    m: Array
    n: Array
    k: Array
    item: Array
    whole: Array
    is_plain: Array
    shared: Array
    peaks: Array
    small: Array
    step: Array | None
    seldom: Array | None


def _best_tiles(
    part: _Part,
    chip: Chip,
    constants: Constants,
    menu: Sequence[tuple[int, int]],
    split_menu: Sequence[int],
    port: float,
) -> Products:
    cores = chip.compute.cores
    sustained = matrix_sustained(chip, constants)
    cycle = 1e-9 / chip.compute.clock_ghz
    step, seldom = part.step, part.seldom
    tile_m = np.asarray([tile[0] for tile in menu], dtype=np.float64)[None, :, None]
    tile_n = np.asarray([tile[1] for tile in menu], dtype=np.float64)[None, :, None]
    splits = np.asarray(split_menu, dtype=np.float64)[None, None, :]
    batch, m, n, k = (side[:, None, None] for side in (part.batch, part.m, part.n, part.k))
    tiles = np.ceil(m / tile_m) * np.ceil(n / tile_n) * batch * splits
    waves = np.ceil(tiles / cores)
    padded_k = np.ceil(k / splits / 16) * 16  # the engine computes 16 elements of k at a time
    traffic = part.small[:, None, None] * (tile_m + tile_n)
    efficiency = tile_m * tile_n / (tile_m * tile_n + traffic)
    efficiency = efficiency / efficiency.max(axis=(1, 2), keepdims=True)
    flops = 2 * tile_m * tile_n * padded_k
    rate = part.peaks[:, None, None]
    # A single core runs near its peak. All cores together run at the sustained rate, because of the power limit.
    one_tile = flops / (rate / cores * max(constants.core_sustained, sustained) * efficiency)
    item = part.item[:, None, None]
    shared = part.shared[:, None, None]  # tiles of a cluster load their common rows or columns once
    loads = np.minimum(tile_m / shared + tile_n, tile_m + tile_n / shared) * padded_k * item
    fed = loads / np.minimum(cache_rate(chip, constants) / np.minimum(tiles, cores), port / cycle)
    stepped = padded_k * item / STEP * constants.step_cycles * cycle
    by_wave = waves * np.maximum(np.maximum(one_tile, fed), stepped)
    if step is not None:
        by_wave = np.maximum(by_wave, waves * flops / (rate / cores) + padded_k * step[:, None, None] * cycle)
    fill = constants.tile_cycles * cycle
    # Half of the scratchpad holds the operands of later tiles, whose fill is hidden if they are short.
    is_plain = part.is_plain[:, None, None]
    room = chip.scratchpad.kib_per_core * 512 if chip.scratchpad else 0.0
    ahead = np.where(is_plain, np.maximum(np.floor(room / ((tile_m + tile_n) * padded_k * item)), 1.0), 1.0)
    by_wave += (np.ceil(waves / ahead) - 1) * constants.tile_exposed * fill
    by_power = tiles * flops / (rate * sustained * efficiency)
    total = np.maximum(by_wave, by_power)
    if seldom is not None:
        several = (splits > PARTS) & (tiles > splits)
        filled = tiles * (1 - 1 / splits) >= FILLED * cores
        refused = seldom[:, None, None] & (part.whole[:, None, None] | filled | several)
        total = np.where((splits > 1) & refused, np.inf, total)
    added = splits * batch * m * n * 8 / memory_rate(chip, constants) + fill
    exposed = np.where(splits > 1, fill + added, np.full_like(total, fill))
    share = np.minimum(tiles, cores) / cores
    moved = part.batch * (part.m * part.k + part.k * part.n + part.m * part.n) * part.item
    moved = np.where(is_plain, moved[:, None, None], 0.0)
    streamed = moved / memory_rate(chip, constants) / np.minimum(1.0, share / constants.cores_for_bandwidth)
    body = np.sqrt(total * total + streamed * streamed) + exposed  # near `overlap`, and quick
    best = (np.arange(len(part.peaks)), body.reshape(len(part.peaks), -1).argmin(axis=1))
    adding = np.broadcast_to(np.where(splits > 1, 1.0, 0.0), total.shape)
    seconds, share, exposed, adding = (
        values.reshape(len(part.peaks), -1)[best] for values in (total, share, exposed, adding)
    )
    return seconds, share, exposed, adding


def with_attention(products: Products, table: WorkTable, chip: Chip, peaks: Array, constants: Constants) -> Products:
    """Replace the prices of products inside fused attention.

    A tile is 128 queries of a head. If there are fewer tiles than cores, the keys are divided between cores.
    """
    fused = table.product_is_family("attention")
    if not fused.any():
        return products
    cores = chip.compute.cores
    rows = np.ceil(table.m / 128)
    height = np.maximum(16.0, np.minimum(table.m, 128))
    tiles = table.batch * rows
    keys = np.maximum(table.n, table.k)
    splits = np.clip(np.floor(cores / tiles), 1, np.ceil(keys / 256))
    waves = np.ceil(tiles * splits / cores)
    rate = peaks / cores * _attention_share(table, chip, constants)
    one_tile = 2 * height * table.n * table.k / splits / rate
    one_tile += constants.tile_cycles * 1e-9 / chip.compute.clock_ghz
    busy, none = np.minimum(1.0, tiles * splits / cores), np.zeros(len(tiles))
    return _chosen(fused, (waves * one_tile, busy, none, none), products)


def _attention_share(table: WorkTable, chip: Chip, constants: Constants) -> Array:
    """Return the rate of products inside fused attention over peak.

    Where a chip file states the rates of tiles on its vector units, they compute tiles of 64 x 64 (torch's kernel is
    fmha_cutlassF_f32_aligned_64x64). Products that run while the softmax does have 16 bits and no mask.
    """
    library, sustained = chip.library, matrix_sustained(chip, constants)
    share = np.full(len(table.owner), constants.attention)
    if library.vector_tile is not None:
        tile = sustained * (1 + library.vector_tile / 128) / (1 + library.vector_tile / 32)
        share = np.where(_on_vector(table, chip), tile, share)
    if library.softmax_overlap is None:
        return share
    products = np.bincount(table.owner, minlength=len(table.works))  # 2 forward, 5 backward
    measured = np.where(products > 2, library.attention_backward or constants.attention, sustained)
    measured = np.where(by_torch(table, chip), library.flash or 1.0, measured)
    return np.where(((table.hides_softmax > 0) & in_half(table.dtypes))[table.owner], measured[table.owner], share)


def _on_vector(table: WorkTable, chip: Chip) -> npt.NDArray[np.bool_]:
    """Return a mask over products: True for those on the vector units."""
    rates, vector = chip.matrix.tflops, chip.vector.tflops["float32"]
    return (by_dtype(table.dtypes, lambda dtype: rates.get(matrix_dtype(dtype), 0.0)) <= vector)[table.owner]


def _library_share(table: WorkTable, chip: Chip, constants: Constants) -> Array:
    """Return the rate of the library's products over that of a product at ``matrix.sustained``."""
    library, usual = chip.library, matrix_sustained(chip, constants)

    def rates(shares: dict[str, float], default: float = 1.0) -> Array:
        return by_dtype(table.dtypes, lambda dtype: shares.get(matrix_dtype(dtype), default))

    share = rates(library.sustained, usual) / usual
    share *= np.where(table.aligned > 0, 1.0, rates(library.unaligned))
    share *= np.where(table.is_family("convolution"), rates(library.convolution), 1.0)
    outer = rates(library.outer)[table.owner]
    return share[table.owner] * np.where(table.gathers, library.filter_gradient, np.where(table.outer, outer, 1.0))


def _cluster(table: WorkTable, chip: Chip) -> Array:
    """Return the number of tiles that load their common operand once, for every product."""
    tiles = by_dtype(table.dtypes, lambda dtype: chip.library.cluster.get(matrix_dtype(dtype), 1.0))
    return np.where(table.is_family("matmul"), tiles, 1.0)[table.owner]


def _products(table: WorkTable, chip: Chip, peaks: Array, constants: Constants) -> Products:
    on_vector = _on_vector(table, chip)
    small = np.where(on_vector, chip.library.vector_tile or constants.small_tile_vector, constants.small_tile)
    peaks_of_attention, peaks = peaks, peaks * _library_share(table, chip, constants)
    tf32 = by_dtype(table.dtypes, lambda dtype: dtype == "tf32")[table.owner] > 0
    tune = partial(best_tiles, table, chip, peaks, constants, small=small)
    tiled = tune(menu=TILES, split_menu=SPLITS, port=PORT, seldom=tf32)
    if chip.library.vector_step and on_vector.any():
        step = np.full(len(peaks), chip.library.vector_step)
        tune = partial(best_tiles, split_menu=VECTOR_SPLITS, small=small, seldom=np.ones_like(table.whole))
        slow = tune(table, chip, peaks, constants, menu=VECTOR_TILES, step=step)
        few = (np.minimum(table.m, table.n) <= FEW_ROWS) & table.product_is_family("matmul")
        if few.any():
            flat = replace(table, m=np.minimum(table.m, table.n), n=np.maximum(table.m, table.n))
            of_few = tune(flat, chip, peaks, constants, menu=FEW_TILES, step=step / WARPS)
            slow = _chosen(few, of_few, slow)
        tiled = _chosen(on_vector, slow, tiled)
    return with_attention(tiled, table, chip, peaks_of_attention, constants)


def _chosen(mask: Array, first: Products, second: Products) -> Products:
    """Return the prices of the first for products in the mask, of the second for others."""
    seconds, share, exposed, adding = (np.where(mask, a, b) for a, b in zip(first, second, strict=True))
    return seconds, share, exposed, adding


def _gpu_products(table: WorkTable, chip: Chip, peaks: Array, constants: Constants) -> Products:
    seconds, share, exposed, adding = _products(table, chip, peaks, constants)
    # Winograd's algorithm is used for float32 only, because 16-bit floats lose too much precision in its transforms.
    fewer = np.asarray([table.dtypes[i] == "float32" for i in table.owner]) & (table.winograd[table.owner] > 0)
    seconds = np.where(fewer, seconds / (chip.library.winograd or constants.winograd), seconds)
    seconds = np.where(table.product_is_family("kernel"), seconds / constants.kernel_products, seconds)
    return seconds, share, exposed, adding


def pass_seconds(table: WorkTable, chip: Chip, constants: Constants) -> Array:
    """Return the seconds of latency between the passes of a GPU's row kernels."""
    latency: Array = table.passes * constants.tile_cycles * 1e-9 / chip.compute.clock_ghz
    return latency


def core_seconds(table: WorkTable, chip: Chip, reached: Array, constants: Constants) -> Array:
    """Return the seconds in which a GPU's cores compute offsets of elements, or wait for single accesses."""
    instructions = INTEGER * chip.compute.cores * chip.compute.clock_ghz * 1e9
    waits = table.waits * memory_latency(chip, constants) / chip.compute.cores
    seconds: Array = table.offsets / instructions / reached + waits
    return seconds


def sector_seconds(table: WorkTable, chip: Chip, constants: Constants) -> Array:
    """Return the seconds in which a GPU's last cache moves sectors of scattered elements."""
    seconds: Array = table.sectors * SECTOR / sector_rate(chip, constants)
    return seconds


def exposed_seconds(table: WorkTable, chip: Chip, constants: Constants) -> Array:
    """Return the seconds of accesses in sequence that nothing hides."""
    seconds: Array = table.chain * memory_latency(chip, constants)
    return seconds


TILED = ChipClass(
    products=_products,
    sustained=lambda constants: constants.matrix_sustained,
    overlap=lambda constants: constants.overlap,
)
GPU = replace(
    TILED,
    products=_gpu_products,
    pass_seconds=pass_seconds,
    core_seconds=core_seconds,
    sector_seconds=sector_seconds,
    exposed_seconds=exposed_seconds,
    bias_apart=True,
)

register(GPU, "gpu", matrix="tile")
register(TILED, "npu", "ipu", "tpu", matrix="tile")
