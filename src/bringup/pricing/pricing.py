"""Work -> seconds on a chip, for all signatures of a trace at once.

Note [The analytic model]
A launch takes ``launch + (compute^p + memory^p)^(1/p)``: the two overlap, but not perfectly near their crossing.
Products are tiled as a tuned library would: the best of a menu of tiles and splits is taken. Everything is elementwise
over arrays of signatures, so that pricing a recording takes milliseconds. Constants that data sheets hide stand at the
top, one for all chips; a chip file may give its own measured ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.cost import FAMILIES, Work
from bringup.cost.signature import Signature

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Constants:
    """What data sheets hide: one set for all chips. A chip file may give its own measured value for some.

    Published values are medians over the chips that their source lists. Fitted ones minimise the error of the fitted
    subset of the measurement sets (``bringup.validation.fit`` names it), never of single rows.

    Attributes:
        matrix_sustained: best large product over peak. Median of nine accelerators, of 51 to 97 %
            (github.com/stas00/ml-engineering at 744d01e, compute/accelerator, MAMF tables).
        memory_sustained: streaming read over data sheet. Median of nine chips, of 61 to 97 %
            (github.com/te42kyfo/gpu-benches at 1c36d50).
        cache_speedup: bandwidth of the last cache over that of memory: 3.4 on the H100 PCIe, 2.8 on the MI210
            (gpu-benches at 1c36d50).
        launch_seconds, graph_launch_seconds: between queued kernels: 2.05 to 2.62 us on five GPUs; replayed as a graph
            0.94 to 2.05 (gpu-benches at 1c36d50).
        core_sustained: of its peak that one core of a matrix engine reaches while the chip is far from its power limit.
            Fitted.
        kernel_seconds: from the start of a kernel to its first result: fetching arguments and code, first loads.
            Fitted.
        tile_cycles: fill and drain of one wave of tiles, and of each further pass of a row kernel. Fitted; the latency
            of memory is some 600 of them (Mei & Chu, TPDS 2017).
        tile_exposed: share of it that further waves cannot hide. Fitted.
        step_cycles: latency of 64 steps along k in a tile that cannot hide it. Fitted.
        cores_for_bandwidth: share of the cores that saturates the memory. Fitted; the knee of gpu-benches' bandwidth
            over occupied cores is at a third.
        small_tile, small_tile_vector: operand traffic inside of a core, for the matrix engine and for the vector units:
            a tile of m x n reaches mn / (mn + c (m + n)) of the engine's rate. Fitted.
        overlap: the p of Note [The analytic model]. Fitted.
        systolic_sustained: `matrix_sustained` of systolic arrays. Fitted.
        systolic_overlap: the p of systolic arrays. Fitted.
        systolic_fill: how much of an array's height few rows cost while weights are loaded. Fitted.
        attention: share of the matrix engine's peak inside of fused attention. Fitted.
        kernel_products: rate of products in kernels that programs bring, over a tuned library's, on GPUs. Median of the
            products over 1 ms of vLLM's kernel in Triton (33) over CUTLASS's (36), float8 on the L40S (aiconfigurator
            at 095f58a).
        winograd: how much faster a convolution of 3 x 3 in float32 is than its product: 2.25 times fewer
            multiplications, of which the transforms take a part; Lavin & Gray (CVPR 2016) saw 1.5 to 2.3 on large
            layers, small ones gain nothing. Assumed.
        streams_matmul, ...: share of the sustained bandwidth that kernels of a family reach. Fitted, but for that of
            convolutions, which is assumed; families that are not named reach all of it.
    """

    matrix_sustained: float = 0.8
    memory_sustained: float = 0.87
    cache_speedup: float = 3.0
    launch_seconds: float = 2.5e-6
    graph_launch_seconds: float = 1.3e-6
    core_sustained: float = 0.95
    kernel_seconds: float = 0.301e-6
    tile_cycles: float = 2780.0
    tile_exposed: float = 1.0
    step_cycles: float = 174.0
    cores_for_bandwidth: float = 0.402
    small_tile: float = 12.4
    small_tile_vector: float = 4.59
    overlap: float = 2.2
    systolic_sustained: float = 0.94
    systolic_overlap: float = 1.61
    systolic_fill: float = 0.1
    attention: float = 0.562
    kernel_products: float = 0.68
    winograd: float = 1.4
    streams_matmul: float = 0.96
    streams_convolution: float = 0.8
    streams_attention: float = 0.6
    streams_pointwise: float = 0.923
    streams_normalization: float = 0.903
    streams_softmax: float = 0.899


DEFAULT = Constants()
# Elements one core of a GPU has in flight before the latency of memory is hidden: 2,048 threads, one each.
ITEMS_PER_CORE = 2048
# What a chip file does not give, over float32: float64 is half as fast on data-centre GPUs, int64 takes two
# instructions, a complex multiplication four (and two additions).
VECTOR_RATE = {"float64": 0.5, "complex128": 0.125, "complex64": 0.25, "int64": 0.5}
TILES = [
    (m, n)
    for m in (16, 32, 64, 128, 192, 256)
    for n in (32, 64, 128, 192, 256)
    if m * n <= 256 * 128 or (m, n) == (256, 256)
]
SPLITS = (1, 2, 3, 4, 6, 8, 16)
# A CPU's library blocks by its vectors of 16 floats, and never splits k over two cores.
CPU_TILES = [(m, n) for m in (16, 32, 64, 128) for n in (16, 32, 48, 64, 96, 128)]

# Share of the last cache that still serves a second pass: it hits below the first and misses above the second. Seen in
# layer norm and softmax by row length on P100, V100, T4 and A100 (github.com/sitar-lab/NeuSight).
CACHE_HOLDS = (0.25, 0.5)
FRESH_BYTES = 32 << 20  # glibc's largest threshold for memory of its own (mallopt(3), M_MMAP_THRESHOLD)
CACHE_KEPT = 0.7  # of the last cache stays from one repetition to the next
ATTENTION = FAMILIES.index("attention")
KERNEL = FAMILIES.index("kernel")
WITH_PARAMETERS = [FAMILIES.index(name) for name in ("matmul", "convolution", "optimizer", "gather")]

COMPUTE, MEMORY, LAUNCH = range(3)
BOUNDS = ("compute", "memory", "launch")
ENGINES = ("matrix", "vector", "special", "memory")


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
    again_bytes: Array
    in_flight: Array
    passes: Array
    winograd: Array
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
        works = tuple(signature.work for signature in signatures)

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
            again_bytes=column("again_bytes"),
            in_flight=column("in_flight"),
            passes=column("passes"),
            winograd=column("winograd"),
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
        engines: [engine, signature], seconds that each of `ENGINES` works, with the cores that the launch reaches; they
            overlap.
    """

    seconds: Array
    bound: Array
    share: Array
    supported: Array
    engines: Array


def matrix_rate(chip: Chip, dtype: str, constants: Constants = DEFAULT) -> float:
    """Sustained flop/s of the matrix engine for inputs of a dtype; what it lacks runs on what it has.

    bfloat16 and float16 fall back to each other's only by way of float32; other dtypes to the vector units.
    """
    return matrix_peak(chip, dtype) * matrix_sustained(chip, constants)


def matrix_sustained(chip: Chip, constants: Constants = DEFAULT) -> float:
    """Best large product over peak."""
    default = constants.systolic_sustained if chip.matrix.kind == "systolic" else constants.matrix_sustained
    return default if chip.matrix.sustained is None else chip.matrix.sustained


def matrix_peak(chip: Chip, dtype: str) -> float:
    """Peak flop/s of what computes products of a dtype."""
    table = chip.matrix.tflops
    if dtype.startswith("float8"):
        dtype = "float8_e4m3fn"
    if dtype in table:
        return table[dtype] * 1e12
    if dtype in ("float16", "bfloat16", "complex64") and "float32" in table:
        return table["float32"] * 1e12 * (0.25 if dtype == "complex64" else 1.0)
    if dtype == "float8_e4m3fn" and "bfloat16" in table:
        return table["bfloat16"] * 1e12
    return vector_rate(chip, dtype)


def vector_rate(chip: Chip, dtype: str) -> float:
    """Flop/s of the vector units."""
    table = chip.vector.tflops
    return table[dtype] * 1e12 if dtype in table else table["float32"] * 1e12 * VECTOR_RATE.get(dtype, 1.0)


def special_rate(chip: Chip) -> float:
    """Evaluations of exp, log, tanh, ... per second; a quarter of the vector units' rate if the chip file has none."""
    own = chip.vector.special_tops
    return chip.vector.tflops["float32"] * 0.25e12 if own is None else own * 1e12


def memory_rate(chip: Chip, constants: Constants = DEFAULT) -> float:
    """Sustained bytes/s of device memory."""
    share = constants.memory_sustained if chip.memory.sustained is None else chip.memory.sustained
    return chip.memory.bandwidth_gb_s * 1e9 * share


def cache_rate(chip: Chip, constants: Constants = DEFAULT) -> float:
    """Bytes/s that feed the tiles: the last cache's, or the scratchpads' of a chip without one."""
    level = chip.cache or chip.scratchpad
    own = level.bandwidth_tb_s if level is not None else None
    return own * 1e12 if own is not None else memory_rate(chip, constants) * constants.cache_speedup


def launch_seconds(chip: Chip, *, graph: bool = False, constants: Constants = DEFAULT) -> float:
    """Seconds from one queued kernel to the next."""
    own = chip.launch.graph_us if graph else chip.launch.eager_us
    if own is not None:
        return own * 1e-6
    return constants.graph_launch_seconds if graph else constants.launch_seconds


def kinds(signature: Signature, work: Work) -> tuple[str, ...]:
    """Names under which a chip file may give a kernel's efficiency, the most special one first."""
    weight = signature.tensor("weight") if work.family == "convolution" else None
    pointwise = weight is not None and math.prod(weight.shape[2:]) == 1
    own = () if signature.base in FAMILIES else (signature.base,)
    return (*(("convolution_1x1",) if pointwise else ()), *own, work.family)


def efficiency(chip: Chip, signature: Signature, work: Work) -> float:
    """How fast a kernel is over what the model expects."""
    return next((chip.efficiency[name] for name in kinds(signature, work) if name in chip.efficiency), 1.0)


def price_table(
    table: WorkTable,
    signatures: Sequence[Signature],
    chip: Chip,
    *,
    graph: bool = False,
    warm: Array | None = None,
    constants: Constants = DEFAULT,
) -> Prices:
    """Price every signature on a chip.

    Args:
        table: the work of the signatures.
        signatures: the launches.
        chip: where.
        graph: are the launches replayed from a recorded graph?
        warm: for each signature, are its tensors in the last cache if they fit? By default only on a CPU, and only
            what operators without parameters read and write.
        constants: what the chip file does not say.
    """
    cores = chip.compute.cores
    launch = (launch_seconds(chip, graph=graph, constants=constants) + constants.kernel_seconds) * table.kernels
    share = np.clip(table.items / (cores * ITEMS_PER_CORE), 1.0 / cores, 1.0)
    vector_rates = np.asarray([vector_rate(chip, dtype) for dtype in table.dtypes]) if table.dtypes else np.zeros(0)
    # Little work cannot fill the chip: it runs at the rate of the cores that it reaches.
    vector = table.vector_flops / vector_rates / share
    special = table.special / special_rate(chip) / share
    matrix = np.zeros(len(share))
    rate = _bandwidth(table, chip, warm, constants)
    traffic = table.bytes + _again(table, chip)
    if len(table.owner):
        gemm_seconds, gemm_share = _gemms(table, chip, constants)
        np.add.at(matrix, table.owner, gemm_seconds)
        top = np.zeros_like(share)
        np.maximum.at(top, table.owner, gemm_share)
        share = np.where(top > 0, top, share)
    memory = traffic / (rate * np.minimum(1.0, share / constants.cores_for_bandwidth))
    if chip.memory.fresh_gb_s is not None:
        memory += np.asarray([_fresh_bytes(signature) for signature in signatures]) / (chip.memory.fresh_gb_s * 1e9)
    if len(table.owner):
        memory += _rereads(table, chip, constants)
    if chip.kind == "gpu":
        memory += table.passes * constants.tile_cycles * 1e-9 / chip.compute.clock_ghz
    p = constants.systolic_overlap if chip.matrix.kind == "systolic" else constants.overlap
    if chip.kind == "cpu":
        p = 1.0  # the library first brings its operands into the order that it computes in
    compute = vector + special + matrix
    body = (compute**p + memory**p) ** (1 / p) + _exposed(table, chip, constants)
    if chip.efficiency:
        body /= [efficiency(chip, s, work) for s, work in zip(signatures, table.works, strict=True)]
    bound = np.where(launch > body, LAUNCH, np.where(compute >= memory, COMPUTE, MEMORY))
    supported = np.asarray(
        [
            all(chip.supports(item.op, item.work.family, item.dtype) for item in (signature.inner or (signature,)))
            for signature in signatures
        ],
        dtype=bool,
    )
    return Prices(launch + body, bound, share, supported, np.stack([matrix, vector, special, memory]))


def _bandwidth(table: WorkTable, chip: Chip, warm: Array | None, constants: Constants) -> Array:
    """Bytes/s that each signature's kernel reaches with the chip full."""
    named = {name: getattr(constants, f"streams_{name}", 1.0) for name in FAMILIES}
    if chip.matrix.kind == "systolic":
        named = dict.fromkeys(FAMILIES, 1.0)  # software moves the data, in blocks
    named |= chip.streams
    family = np.asarray([named[name] for name in FAMILIES])[table.family]
    rate: Array = memory_rate(chip, constants) * table.streams * family
    if warm is None and chip.kind == "cpu":
        warm = ~np.isin(table.family, WITH_PARAMETERS)
    if warm is None or chip.cache is None:
        return rate
    fits = table.bytes < chip.cache.mib * 2**20 * CACHE_KEPT
    return np.where(warm & fits, cache_rate(chip, constants) * table.streams * family, rate)


def _fresh_bytes(signature: Signature) -> int:
    """Bytes of results so large that the C library asks the operating system for them every time."""
    return sum(tensor.nbytes for tensor in signature.outputs if tensor is not None and tensor.nbytes > FRESH_BYTES)


def _again(table: WorkTable, chip: Chip) -> Array:
    """Bytes of later passes that the last cache does not keep."""
    if chip.cache is None or chip.kind == "cpu":  # whose cores work on few rows at a time
        return np.zeros(len(table.works))
    filled = table.in_flight * chip.compute.cores / (chip.cache.mib * 2**20)
    low, high = CACHE_HOLDS
    missed = np.where(table.again_bytes > 0, np.clip((filled - low) / (high - low), 0.0, 1.0), 0.0)
    return table.again_bytes * missed


def _gemms(table: WorkTable, chip: Chip, constants: Constants) -> tuple[Array, Array]:
    peaks = np.asarray([matrix_peak(chip, table.dtypes[i]) for i in table.owner])
    if chip.matrix.kind == "systolic":
        return _systolic(table, chip, peaks * matrix_sustained(chip, constants), constants)
    seconds, share = _tiled(table, chip, peaks, constants)
    if chip.kind == "gpu":
        seconds = np.where(table.family[table.owner] == KERNEL, seconds / constants.kernel_products, seconds)
    fused = table.family[table.owner] == ATTENTION
    if fused.any():
        fused_seconds, fused_share = _fused(table, chip, peaks, constants)
        seconds, share = np.where(fused, fused_seconds, seconds), np.where(fused, fused_share, share)
    return seconds, share


def _tiled(table: WorkTable, chip: Chip, peaks: Array, constants: Constants) -> tuple[Array, Array]:
    cores = chip.compute.cores
    sustained = matrix_sustained(chip, constants)
    cycle = 1e-9 / chip.compute.clock_ghz
    menu, split_menu = (CPU_TILES, (1,)) if chip.kind == "cpu" else (TILES, SPLITS)
    tile_m = np.asarray([tile[0] for tile in menu], dtype=np.float64)[None, :, None]
    tile_n = np.asarray([tile[1] for tile in menu], dtype=np.float64)[None, :, None]
    splits = np.asarray(split_menu, dtype=np.float64)[None, None, :]
    batch, m, n, k = (side[:, None, None] for side in (table.batch, table.m, table.n, table.k))
    tiles = np.ceil(m / tile_m) * np.ceil(n / tile_n) * batch * splits
    waves = np.ceil(tiles / cores)
    padded_k = np.ceil(k / splits / 16) * 16  # the engine's step
    on_vector = [chip.matrix.tflops.get(table.dtypes[i], 0.0) <= chip.vector.tflops["float32"] for i in table.owner]
    small = np.where(on_vector, constants.small_tile_vector, constants.small_tile)[:, None, None]
    if chip.kind == "cpu":
        small = np.ones_like(small)  # operands stay in registers for a whole panel
    efficiency = tile_m * tile_n / (tile_m * tile_n + small * (tile_m + tile_n))
    efficiency = efficiency / efficiency.max(axis=(1, 2), keepdims=True)
    flops = 2 * tile_m * tile_n * padded_k
    rate = peaks[:, None, None]
    # One core runs near its peak; all of them together at what power and clock sustain.
    one_tile = flops / (rate / cores * max(constants.core_sustained, sustained) * efficiency)
    item = table.item[:, None, None]
    fed = (tile_m + tile_n) * padded_k * item / (cache_rate(chip, constants) / np.minimum(tiles, cores))
    stepped = padded_k / 64 * constants.step_cycles * cycle
    by_wave = waves * np.maximum(np.maximum(one_tile, fed), stepped)
    by_wave += (1 + (waves - 1) * constants.tile_exposed) * constants.tile_cycles * cycle
    by_power = tiles * flops / (rate * sustained * efficiency) + constants.tile_cycles * cycle
    reduction = np.where(
        splits > 1, splits * batch * m * n * 8 / memory_rate(chip, constants) + constants.tile_cycles * cycle, 0.0
    )
    total = (np.maximum(by_wave, by_power) + reduction).reshape(len(peaks), -1)
    best = total.argmin(axis=1)
    busy = np.minimum(tiles, cores).reshape(len(peaks), -1)[np.arange(len(peaks)), best] / cores
    seconds = total[np.arange(len(peaks)), best]
    # Fewer multiplications, for float32 alone: half precision loses too much in the transforms.
    fewer = np.asarray([table.dtypes[i] == "float32" for i in table.owner]) & (table.winograd[table.owner] > 0)
    return np.where(fewer & (chip.kind == "gpu"), seconds / constants.winograd, seconds), busy


def _fused(table: WorkTable, chip: Chip, peaks: Array, constants: Constants) -> tuple[Array, Array]:
    """Price products inside of fused attention: 128 queries of a head are a tile, keys are split if tiles are few."""
    cores = chip.compute.cores
    rows = np.ceil(table.m / 128)
    height = np.maximum(16.0, np.minimum(table.m, 128))
    tiles = table.batch * rows
    keys = np.maximum(table.n, table.k)
    splits = np.clip(np.floor(cores / tiles), 1, np.ceil(keys / 256))
    waves = np.ceil(tiles * splits / cores)
    one_tile = 2 * height * table.n * table.k / splits / (peaks / cores * constants.attention)
    return waves * one_tile, np.minimum(1.0, tiles * splits / cores)


def _elements(work: Work) -> float:
    return sum(g.batch * (g.m * g.k + g.k * g.n + g.m * g.n) for g in work.gemms)


def _systolic(table: WorkTable, chip: Chip, rates: Array, constants: Constants) -> tuple[Array, Array]:
    rows, columns, arrays = chip.matrix.rows or 1, chip.matrix.columns or 1, chip.matrix.arrays
    folds = np.ceil(table.k / rows) * np.ceil(table.n / columns) * table.batch
    # Weights are loaded while the previous block streams; a block of few rows waits for them.
    per_fold = np.maximum(table.m, rows * constants.systolic_fill)
    cycles = folds * per_fold / np.minimum(arrays, folds) + 2 * rows
    cycle = 2.0 * rows * columns * arrays / rates  # at the sustained rate of this dtype
    return cycles * cycle, np.minimum(1.0, folds / arrays)


def _exposed(table: WorkTable, chip: Chip, constants: Constants) -> Array:
    """Seconds of a systolic product in which nothing is computed: the smaller operand is loaded first."""
    seconds = np.zeros(len(table.works))
    if chip.matrix.kind == "systolic":
        smaller = table.batch * table.k * np.minimum(table.m, table.n) * table.item
        np.add.at(seconds, table.owner, smaller / memory_rate(chip, constants))
    return seconds


def _rereads(table: WorkTable, chip: Chip, constants: Constants) -> Array:
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
    again = np.where(table.family[table.owner] == ATTENTION, 0.0, again)
    seconds = np.zeros(len(table.works))
    np.add.at(seconds, table.owner, again / memory_rate(chip, constants))
    return seconds
