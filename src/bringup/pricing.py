"""Work -> seconds on a chip, for all signatures of a trace at once.

Note [The analytic model]
A launch takes ``launch + (compute^p + memory^p)^(1/p)``: the two overlap, but not perfectly near their crossing.
Products are tiled as a tuned library would: the best of a menu of tiles and splits is taken. Everything is elementwise
over arrays of signatures, so that pricing a recording takes milliseconds. Constants that data sheets hide stand at the
top, one for all chips; a chip file may give its own measured ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.cost import FAMILIES, Work, work_of
from bringup.cost.signature import Signature

if TYPE_CHECKING:
    from bringup._schema import Chip

Array = npt.NDArray[Any]

# Best large GEMM over peak: the median of nine accelerators, of 51 to 97 %
# (github.com/stas00/ml-engineering at 744d01e, compute/accelerator, MAMF tables).
MATRIX_SUSTAINED = 0.80
# Streaming read over data sheet: the median of nine chips, of 61 to 97 % (github.com/te42kyfo/gpu-benches at 1c36d50).
MEMORY_SUSTAINED = 0.87
# Bandwidth of the last cache over that of memory: 3.4 on the H100 PCIe, 2.8 on the MI210 (gpu-benches at 1c36d50).
CACHE_SPEEDUP = 3.0
# Between queued kernels: 2.05 to 2.62 us on five GPUs; replayed as a graph 0.94 to 2.05 (gpu-benches at 1c36d50).
LAUNCH_SECONDS = 2.5e-6
GRAPH_LAUNCH_SECONDS = 1.3e-6
# Fill and drain of one wave of tiles: pipeline depth x latency of memory, some 600 ns (Mei & Chu, TPDS 2017).
TILE_SECONDS = 0.6e-6
# A third of the cores saturates the memory (the knee of gpu-benches' bandwidth over occupied cores).
CORES_FOR_BANDWIDTH = 0.35
# Operand traffic inside of a core: a tile of 16 x 16 reaches a third of the engine's rate, of 128 x 128 four fifths.
SMALL_TILE = 16
# The same for products on the vector units (float32 without a matrix engine for it), which are slower and so easier to
# feed: fitted on the float32 products of V100, T4 and A100 in measurements.csv.
SMALL_TILE_VECTOR = 4
OVERLAP = 4.0  # the p of Note [The analytic model]
SYSTOLIC_OVERLAP = 6.0  # software-managed double buffering overlaps better
# Elements one core of a GPU has in flight before the latency of memory is hidden: 2,048 threads, one each.
ITEMS_PER_CORE = 2048
# What a chip file does not give, over float32: float64 is half as fast on data-centre GPUs, int64 takes two
# instructions, a complex multiplication four (and two additions).
VECTOR_RATE = {"float64": 0.5, "complex128": 0.125, "complex64": 0.25, "int64": 0.5}
TILES = [
    (m, n) for m in (16, 32, 64, 128, 256) for n in (32, 64, 128, 256) if m * n <= 256 * 128 or (m, n) == (256, 256)
]
SPLITS = (1, 2, 4, 8, 16)

COMPUTE, MEMORY, LAUNCH = range(3)
BOUNDS = ("compute", "memory", "launch")


@dataclass(frozen=True)
class WorkTable:
    """The work of all signatures of a trace, one array entry each; gemms apart. Independent of any chip."""

    works: tuple[Work, ...]
    family: Array
    dtypes: tuple[str, ...]
    vector_flops: Array
    special: Array
    bytes: Array
    down_bytes: Array  # of the tensors that a fallback copies to the host
    up_bytes: Array  # and back
    items: Array
    kernels: Array
    streams: Array
    flops: Array
    owner: Array  # gemm -> signature
    batch: Array
    m: Array
    n: Array
    k: Array
    item: Array  # bytes per element of a gemm's matrices

    @classmethod
    def of(cls, signatures: Sequence[Signature]) -> WorkTable:
        """Apply the rules."""
        works = tuple(work_of(signature) for signature in signatures)

        def column(name: str) -> Array:
            return np.asarray([getattr(work, name) for work in works], dtype=np.float64)

        gemms = [(i, gemm) for i, work in enumerate(works) for gemm in work.gemms]
        sizes = np.asarray([(g.batch, g.m, g.n, g.k) for _, g in gemms], dtype=np.float64).reshape(-1, 4)
        batch, m, n, k = np.maximum(sizes, 1).T.copy()
        return cls(
            works=works,
            family=np.asarray([FAMILIES.index(work.family) for work in works], dtype=np.int64),
            dtypes=tuple(work.dtype for work in works),
            vector_flops=column("vector_flops"),
            special=column("special"),
            bytes=column("bytes"),
            down_bytes=np.asarray([s.read_bytes for s in signatures], dtype=np.float64),
            up_bytes=np.asarray([s.written_bytes for s in signatures], dtype=np.float64),
            items=column("items"),
            kernels=column("kernels"),
            streams=column("streams"),
            flops=column("flops"),
            owner=np.asarray([i for i, _ in gemms], dtype=np.int64),
            batch=batch,
            m=m,
            n=n,
            k=k,
            item=np.asarray([works[i].bytes / max(_elements(works[i]), 1) for i, _ in gemms], dtype=np.float64),
        )


@dataclass(frozen=True)
class Prices:
    """What every signature costs on one chip.

    Attributes:
        seconds: duration on the device, launch included.
        bound: index into `BOUNDS`: what set it.
        share: of the chip's cores that the launch can keep busy.
        supported: does the chip run it? If not, the timeline runs it on the host.
        compute_seconds, memory_seconds: the two sides of the roofline.
    """

    seconds: Array
    bound: Array
    share: Array
    supported: Array
    compute_seconds: Array
    memory_seconds: Array


def matrix_rate(chip: Chip, dtype: str) -> float:
    """Sustained flop/s of the matrix engine for inputs of a dtype; what it lacks runs on what it has.

    bfloat16 and float16 fall back to each other's only by way of float32; other dtypes to the vector units.
    """
    table = chip.matrix.tflops
    sustained = MATRIX_SUSTAINED if chip.matrix.sustained is None else chip.matrix.sustained
    if dtype.startswith("float8"):
        dtype = "float8_e4m3fn"
    if dtype in table:
        return table[dtype] * 1e12 * sustained
    if dtype in ("float16", "bfloat16", "complex64") and "float32" in table:
        return table["float32"] * 1e12 * sustained * (0.25 if dtype == "complex64" else 1.0)
    if dtype == "float8_e4m3fn" and "bfloat16" in table:
        return table["bfloat16"] * 1e12 * sustained
    return vector_rate(chip, dtype)


def vector_rate(chip: Chip, dtype: str) -> float:
    """Flop/s of the vector units."""
    table = chip.vector.tflops
    return table[dtype] * 1e12 if dtype in table else table["float32"] * 1e12 * VECTOR_RATE.get(dtype, 1.0)


def memory_rate(chip: Chip) -> float:
    """Sustained bytes/s of device memory."""
    share = MEMORY_SUSTAINED if chip.memory.sustained is None else chip.memory.sustained
    return chip.memory.bandwidth_gb_s * 1e9 * share


def launch_seconds(chip: Chip, *, graph: bool = False) -> float:
    """Seconds from one queued kernel to the next."""
    own = chip.launch.graph_us if graph else chip.launch.eager_us
    if own is not None:
        return own * 1e-6
    return GRAPH_LAUNCH_SECONDS if graph else LAUNCH_SECONDS


def price_table(table: WorkTable, signatures: Sequence[Signature], chip: Chip, *, graph: bool = False) -> Prices:
    """Price every signature on a chip."""
    cores = chip.compute.cores
    launch = launch_seconds(chip, graph=graph) * table.kernels
    share = np.clip(table.items / (cores * ITEMS_PER_CORE), 1.0 / cores, 1.0)
    vector_rates = np.asarray([vector_rate(chip, dtype) for dtype in table.dtypes]) if table.dtypes else np.zeros(0)
    special_rate = (
        chip.vector.tflops["float32"] * 0.25e12 if chip.vector.special_tops is None else chip.vector.special_tops * 1e12
    )
    # Little work cannot fill the chip: it runs at the rate of the cores that it reaches.
    compute = (table.vector_flops / vector_rates + table.special / special_rate) / share
    reach = np.minimum(1.0, share / CORES_FOR_BANDWIDTH)
    memory = table.bytes / (memory_rate(chip) * table.streams * reach)
    if len(table.owner):
        gemm_seconds, gemm_share = _gemms(table, chip)
        np.add.at(compute, table.owner, gemm_seconds)
        top = np.zeros_like(share)
        np.maximum.at(top, table.owner, gemm_share)
        has_gemm = top > 0
        share = np.where(has_gemm, top, share)
        full = table.bytes / (memory_rate(chip) * np.minimum(1.0, share / CORES_FOR_BANDWIDTH))
        memory = np.where(has_gemm, full + _rereads(table, chip), memory)
    p = SYSTOLIC_OVERLAP if chip.matrix.kind == "systolic" else OVERLAP
    body = (compute**p + memory**p) ** (1 / p)
    bound = np.where(launch > body, LAUNCH, np.where(compute >= memory, COMPUTE, MEMORY))
    supported = np.asarray(
        [
            chip.supports(signature.op, work.family, signature.dtype)
            for signature, work in zip(signatures, table.works, strict=True)
        ],
        dtype=bool,
    )
    return Prices(launch + body, bound, share, supported, compute, memory)


def _gemms(table: WorkTable, chip: Chip) -> tuple[Array, Array]:
    rates = np.asarray([matrix_rate(chip, table.dtypes[i]) for i in table.owner])
    return _systolic(table, chip, rates) if chip.matrix.kind == "systolic" else _tiled(table, chip, rates)


def _tiled(table: WorkTable, chip: Chip, rates: Array) -> tuple[Array, Array]:
    cores = chip.compute.cores
    tile_m = np.asarray([tile[0] for tile in TILES], dtype=np.float64)[None, :, None]
    tile_n = np.asarray([tile[1] for tile in TILES], dtype=np.float64)[None, :, None]
    splits = np.asarray(SPLITS, dtype=np.float64)[None, None, :]
    batch, m, n, k = (side[:, None, None] for side in (table.batch, table.m, table.n, table.k))
    tiles = np.ceil(m / tile_m) * np.ceil(n / tile_n) * batch * splits
    waves = np.ceil(tiles / cores)
    padded_k = np.ceil(k / splits / 16) * 16  # the engine's step
    on_vector = [chip.matrix.tflops.get(table.dtypes[i], 0.0) <= chip.vector.tflops["float32"] for i in table.owner]
    small = np.where(on_vector, SMALL_TILE_VECTOR, SMALL_TILE)[:, None, None]
    efficiency = tile_m * tile_n / (tile_m * tile_n + small * (tile_m + tile_n))
    best_tile = efficiency.max(axis=(1, 2), keepdims=True)  # the sustained rate is that of the best tile
    core_rate = rates[:, None, None] / cores / best_tile
    one_tile = 2 * tile_m * tile_n * padded_k / (core_rate * efficiency)
    item = table.item[:, None, None]
    feed_rate = _cache_rate(chip) / np.minimum(tiles, cores)
    fed = (tile_m + tile_n) * padded_k * item / feed_rate
    seconds = waves * (np.maximum(one_tile, fed) + TILE_SECONDS)
    reduction = np.where(splits > 1, splits * batch * m * n * 8 / memory_rate(chip) + TILE_SECONDS, 0.0)
    total = (seconds + reduction).reshape(len(rates), -1)
    best = total.argmin(axis=1)
    busy = np.minimum(tiles, cores).reshape(len(rates), -1)[np.arange(len(rates)), best] / cores
    return total[np.arange(len(rates)), best], busy


def _elements(work: Work) -> float:
    return sum(g.batch * (g.m * g.k + g.k * g.n + g.m * g.n) for g in work.gemms)


def _systolic(table: WorkTable, chip: Chip, rates: Array) -> tuple[Array, Array]:
    rows, columns, arrays = chip.matrix.rows or 1, chip.matrix.columns or 1, chip.matrix.arrays
    folds = np.ceil(table.k / rows) * np.ceil(table.n / columns) * table.batch
    # Weights are loaded while the previous block streams; a block of fewer rows than the array's waits for them.
    per_fold = np.maximum(table.m, rows)
    cycles = folds * per_fold / np.minimum(arrays, folds) + 2 * rows
    cycle = 2.0 * rows * columns * arrays / rates  # at the sustained rate of this dtype
    return cycles * cycle, np.minimum(1.0, folds / arrays)


def _cache_rate(chip: Chip) -> float:
    """Bytes/s that feed the tiles: the last cache's, or the scratchpads' of a chip without one."""
    level = chip.cache or chip.scratchpad
    own = level.bandwidth_tb_s if level is not None else None
    return own * 1e12 if own is not None else memory_rate(chip) * CACHE_SPEEDUP


def _rereads(table: WorkTable, chip: Chip) -> Array:
    """Seconds for reading operands again: a block of the result is computed at once, and its rows and columns streamed.

    The block is what one wave of 128 x 128 tiles covers, or what its operands and itself leave of the on-chip memory.
    """
    on_chip = chip.cache.mib * 2**20 if chip.cache is not None else 0.0
    if chip.scratchpad is not None:
        on_chip = max(on_chip, chip.scratchpad.kib_per_core * 1024 * chip.compute.cores)
    side = np.maximum(128 * np.sqrt(chip.compute.cores), np.sqrt(on_chip / (3 * np.maximum(table.item, 1))))
    first, second = table.m * table.k * table.item, table.k * table.n * table.item
    again = first * (np.ceil(table.n / side) - 1) + second * (np.ceil(table.m / side) - 1)
    again = np.where(np.minimum(first, second) > on_chip / 2, again, 0.0) * table.batch
    seconds = np.zeros(len(table.works))
    np.add.at(seconds, table.owner, again / memory_rate(chip))
    return seconds
