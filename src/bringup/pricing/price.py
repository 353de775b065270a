"""The analytic model: seconds on a chip for the work of all signatures of a trace at once.

Note [The analytic model]
A launch takes ``launch + (compute^p + memory^p)^(1/p)``. Compute and memory overlap, but not perfectly where they take
equal time. Products are tiled as by a tuned library, with the best tile and split of a menu. All formulas are
elementwise over arrays of signatures, so pricing a recording takes milliseconds. `Constants` has values that data
sheets do not state; a chip file may override them by measured values. `ChipClass` has the differences between GPUs,
CPUs and systolic arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.cost import FAMILIES, Signature, Work
from bringup.cost.rules import ITEMS_PER_CORE
from bringup.cost.work_table import WorkTable
from bringup.pricing.classes import Products, class_of
from bringup.pricing.constants import DEFAULT, Constants
from bringup.pricing.rates import (
    by_dtype,
    by_torch,
    cache_rate,
    engine_dtype,
    in_half,
    launch_seconds,
    matrix_peak,
    memory_rate,
    special_rate,
    vector_rate,
)

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

Array = npt.NDArray[Any]

COMPUTE, MEMORY, LAUNCH, NETWORK = range(4)
BOUNDS = ("compute", "memory", "launch", "network")

FRESH_BYTES = 32 << 20  # glibc maps larger allocations afresh each time (mallopt(3), M_MMAP_THRESHOLD)
CACHE_KEPT = 0.7  # share of the last cache that keeps its contents between repetitions; no published source


@dataclass(frozen=True)
class Prices:
    """The price of every signature on one chip.

    Attributes:
        seconds: duration on the device, launch included.
        bound: index into `BOUNDS` of the limiting resource.
        share: share of the chip's cores that the launch can keep busy.
        supported: True if the chip runs the launch; the replay runs the others on the host.
        engines: [engine, signature], the seconds that each of `ENGINES` works, on the cores that the launch reaches.
            Engines overlap.
        kernels: number of device kernels, with those that add the parts of a divided product.
    """

    seconds: Array
    bound: Array
    share: Array
    supported: Array
    engines: Array
    kernels: Array


def price_table(
    table: WorkTable,
    signatures: Sequence[Signature],
    chip: Chip,
    *,
    graph: bool = False,
    warm: Array | None = None,
    tf32: bool = False,
    constants: Constants = DEFAULT,
) -> Prices:
    """Price every signature on a chip.

    Args:
        table: the work of the signatures.
        signatures: the launches.
        chip: the chip.
        graph: True if the launches are replayed from a recorded graph.
        warm: for each signature, True if its tensors are in the last cache where they fit. The default is that of the
            chip's class: on a CPU, True for operators without parameters; elsewhere False.
        tf32: True if torch allows TF32 in all products; False if only where it did when they were recorded.
        constants: values that the chip file does not have.
    """
    chip_class = class_of(chip)
    engine_dtypes = [
        engine_dtype(chip, dtype, work.family if tf32 else work.tf32)
        for dtype, work in zip(table.dtypes, table.works, strict=True)
    ]
    to_last, to_first = {"tf32": 1.0} | chip.library.channels_last, chip.library.channels_first
    conversion = np.where(
        table.channels_last > 0,
        by_dtype(engine_dtypes, lambda dtype: to_first.get(dtype, 0.0)),
        by_dtype(engine_dtypes, lambda dtype: to_last.get(dtype, 0.0)),
    )
    kernels = np.where(launched_by_cells(table, chip), table.cells, table.kernels)
    bias = table.bias_bytes if chip_class.bias_apart else np.zeros_like(table.bias_bytes)
    kernels = kernels + np.where(conversion > 0, table.conversions, 0.0) + (bias > 0)
    launch = (launch_seconds(chip, graph=graph, constants=constants) + constants.kernel_seconds) * kernels
    reached = np.clip(table.items / (chip.compute.cores * ITEMS_PER_CORE), 1.0 / chip.compute.cores, 1.0)
    vector_rates = by_dtype(table.dtypes, lambda dtype: vector_rate(chip, dtype))
    # A small launch does not fill the chip, and runs at the rate of the cores that it reaches.
    vector = _vector_seconds(table, chip, vector_rates) / reached
    special = table.special / special_rate(chip) / reached
    computed_in = replace(table, dtypes=tuple(engine_dtypes))
    matrix, share, exposed, adding = _matrix_seconds(computed_in, chip, reached, constants)
    memory = _memory_seconds(table, signatures, chip, share, warm, constants)
    q = np.where((table.hides_softmax > 0) & in_half(table.dtypes), chip.library.softmax_overlap or 1.0, 1.0)
    beside = np.where(by_torch(table, chip), 0.0, vector + special)  # their rate includes the softmax
    compute = (beside**q + matrix**q) ** (1 / q) + chip_class.core_seconds(table, chip, reached, constants)
    p = chip_class.overlap(constants)
    body = (compute**p + memory**p) ** (1 / p) + exposed + chip_class.exposed_seconds(table, chip, constants)
    converted = np.where(conversion > 0, table.converted_bytes, 0.0) / np.where(conversion > 0, conversion, 1.0)
    body += (converted + bias) / memory_rate(chip, constants)
    if chip.efficiency:
        body /= [efficiency(chip, s, work) for s, work in zip(signatures, table.works, strict=True)]
    return Prices(
        seconds=launch + body,
        bound=np.where(launch > body, LAUNCH, np.where(compute >= memory, COMPUTE, MEMORY)),
        share=share,
        supported=_all_supported(chip, signatures),
        engines=np.stack([matrix, vector, special, memory]),
        kernels=kernels + adding,
    )


def _vector_seconds(table: WorkTable, chip: Chip, rates: Array) -> Array:
    """Return the seconds of work on the vector units, if all of them take part.

    Depthwise kernels, PyTorch's own and those of the library, compute in float32, whatever the dtype.
    """
    library, peak = chip.library, vector_rate(chip, "float32")
    depthwise = table.is_family("depthwise")
    shares = np.asarray([library.depthwise_channels_last.get(dtype, 0.0) for dtype in table.dtypes])
    seconds = table.vector_flops / np.where(depthwise & (shares > 0), peak * shares, rates)
    if library.depthwise is None:
        return seconds
    return np.where(table.own_flops > 0, table.own_flops / (peak * library.depthwise), seconds)


def launched_by_cells(table: WorkTable, chip: Chip) -> Array:
    """Return a mask: True for stacks of recurrent layers if the chip's library has no kernels for them."""
    dtypes = chip.ops.groups.get("rnn", [])
    apart: Array = (table.cells > 0) & ~np.asarray([dtype in dtypes for dtype in table.dtypes], dtype=bool)
    return apart


def efficiency(chip: Chip, signature: Signature, work: Work) -> float:
    """Return the speed of a kernel over the model's, from the chip file; 1 if the file has no entry."""
    names = efficiency_names(signature, work)
    return next((chip.efficiency[name] for name in names if name in chip.efficiency), 1.0)


def efficiency_names(signature: Signature, work: Work) -> tuple[str, ...]:
    """Return the names under which a chip file may state a kernel's efficiency, the most specific one first."""
    weight = signature.tensor("weight") if work.family == "convolution" else None
    pointwise = weight is not None and math.prod(weight.shape[2:]) == 1
    operator = () if signature.base in FAMILIES else (signature.base,)
    return (*(("convolution_1x1",) if pointwise else ()), *operator, work.family)


def _all_supported(chip: Chip, signatures: Sequence[Signature]) -> npt.NDArray[np.bool_]:
    """Return for each launch True if the chip runs it, or all operators of a fused launch."""
    supports = cache(chip.supports)  # few operators make many kinds of launch
    return np.asarray(
        [
            all(supports(launch.op, launch.work.family, launch.dtype) for launch in signature.inner or (signature,))
            for signature in signatures
        ],
        dtype=bool,
    )


def _matrix_seconds(table: WorkTable, chip: Chip, share: Array, constants: Constants) -> Products:
    """Return what `ChipClass.products` does for each signature, with `share` updated for signatures with products."""
    if not len(table.owner):
        none = np.zeros(len(share))
        return none, share, none, none
    peaks = by_dtype(table.dtypes, lambda dtype: matrix_peak(chip, dtype))[table.owner]
    seconds, busy, exposed, adding = class_of(chip).products(table, chip, peaks, constants)
    most = np.zeros_like(share)
    np.maximum.at(most, table.owner, busy)
    seconds, exposed, adding = (table.by_signature(values) for values in (seconds, exposed, adding))
    return seconds, np.where(most > 0, most, share), exposed, adding


def _memory_seconds(
    table: WorkTable,
    signatures: Sequence[Signature],
    chip: Chip,
    share: Array,
    warm: Array | None,
    constants: Constants,
) -> Array:
    """Return the seconds that device memory works for each signature, on the cores that the launch reaches."""
    chip_class = class_of(chip)
    traffic = table.bytes + chip_class.again_bytes(table, chip)
    rate = _bandwidth(table, chip, chip_class.warm(table) if warm is None else warm, constants)
    memory: Array = traffic / (rate * np.minimum(1.0, share / constants.cores_for_bandwidth))
    if chip.memory.fresh_gb_s is not None:
        memory += np.asarray([_fresh_bytes(signature) for signature in signatures]) / (chip.memory.fresh_gb_s * 1e9)
    if len(table.owner):
        memory += _reread_seconds(table, chip, constants)
    memory += chip_class.pass_seconds(table, chip, constants)
    return np.maximum(memory, chip_class.sector_seconds(table, chip, constants))


def _bandwidth(table: WorkTable, chip: Chip, warm: Array | None, constants: Constants) -> Array:
    """Return the bytes/s that each signature's kernel reaches on all cores."""
    shares = class_of(chip).streams(constants) | chip.streams
    family_share = np.asarray([shares[name] for name in FAMILIES])[table.family]
    rate: Array = memory_rate(chip, constants) * table.streams * family_share
    if warm is None or chip.cache is None:
        return rate
    fits = table.bytes < chip.cache.mib * 2**20 * CACHE_KEPT
    return np.where(warm & fits, cache_rate(chip, constants) * table.streams * family_share, rate)


def _fresh_bytes(signature: Signature) -> int:
    """Return the bytes of results so large that the C library maps fresh pages for them each time."""
    return sum(tensor.nbytes for tensor in signature.outputs if tensor is not None and tensor.nbytes > FRESH_BYTES)


def _reread_seconds(table: WorkTable, chip: Chip, constants: Constants) -> Array:
    """Return the seconds for repeated reads of operands.

    A product is computed in blocks of its result, and each block streams its rows and columns. A block is as large as
    one wave of 128 x 128 tiles, or as fits the on-chip memory together with its operands, whichever is larger.
    """
    on_chip = chip.cache.mib * 2**20 if chip.cache is not None else 0.0
    if chip.scratchpad is not None:
        on_chip = max(on_chip, chip.scratchpad.kib_per_core * 1024 * chip.compute.cores)
    side = np.maximum(128 * np.sqrt(chip.compute.cores), np.sqrt(on_chip / (3 * np.maximum(table.item, 1))))
    first, second = table.m * table.k * table.item, table.k * table.n * table.item
    again = first * (np.ceil(table.n / side) - 1) + second * (np.ceil(table.m / side) - 1)
    again = np.where(np.minimum(first, second) > on_chip / 2, again, 0.0) * table.batch
    again = np.where(table.product_is_family("attention"), 0.0, again)
    return table.by_signature(again / memory_rate(chip, constants))
