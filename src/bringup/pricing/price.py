"""Work -> seconds on a chip, for all signatures of a trace at once.

Note [The analytic model]
A launch takes ``launch + (compute^p + memory^p)^(1/p)``: the two overlap, but not perfectly near their crossing.
Products are tiled as a tuned library would: the best of a menu of tiles and splits is taken. Everything is elementwise
over arrays of signatures, so that pricing a recording takes milliseconds. `Constants` has what data sheets hide; a chip
file may give its own measured values. What differs between GPUs, CPUs and systolic arrays is asked of the `ChipClass`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bringup.cost import FAMILIES, Signature, Work
from bringup.cost.rules import ITEMS_PER_CORE
from bringup.cost.work_table import WorkTable
from bringup.pricing.classes import class_of
from bringup.pricing.constants import DEFAULT, Constants
from bringup.pricing.rates import (
    cache_rate,
    launch_seconds,
    matrix_peak,
    memory_rate,
    special_rate,
    vector_rate,
)

if TYPE_CHECKING:
    from bringup.machine.schema import Chip

Array = npt.NDArray[Any]

COMPUTE, MEMORY, LAUNCH = range(3)
BOUNDS = ("compute", "memory", "launch")

FRESH_BYTES = 32 << 20  # glibc's largest threshold for memory of its own (mallopt(3), M_MMAP_THRESHOLD)
CACHE_KEPT = 0.7  # of the last cache stays from one repetition to the next; no published source


@dataclass(frozen=True)
class Prices:
    """What every signature costs on one chip.

    Attributes:
        seconds: duration on the device, launch included.
        bound: index into `BOUNDS`: what set it.
        share: of the chip's cores that the launch can keep busy.
        supported: True if the chip runs it; the timeline runs the others on the host.
        engines: [engine, signature], seconds that each of `ENGINES` works, with the cores that the launch reaches; they
            overlap.
    """

    seconds: Array
    bound: Array
    share: Array
    supported: Array
    engines: Array


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
        graph: True if the launches are replayed from a recorded graph.
        warm: for each signature, True if its tensors are in the last cache where they fit. By default only on a CPU,
            and only what operators without parameters read and write.
        constants: what the chip file does not say.
    """
    chip_class = class_of(chip)
    launch = (launch_seconds(chip, graph=graph, constants=constants) + constants.kernel_seconds) * table.kernels
    reached = np.clip(table.items / (chip.compute.cores * ITEMS_PER_CORE), 1.0 / chip.compute.cores, 1.0)
    vector_rates = np.asarray([vector_rate(chip, dtype) for dtype in table.dtypes]) if table.dtypes else np.zeros(0)
    # Little work cannot fill the chip: it runs at the rate of the cores that it reaches.
    vector = table.vector_flops / vector_rates / reached
    special = table.special / special_rate(chip) / reached
    matrix, share = _matrix_seconds(table, chip, reached, constants)
    memory = _memory_seconds(table, signatures, chip, share, warm, constants)
    compute = vector + special + matrix
    p = chip_class.overlap(constants)
    body = (compute**p + memory**p) ** (1 / p) + chip_class.exposed_seconds(table, chip, constants)
    if chip.efficiency:
        body /= [efficiency(chip, s, work) for s, work in zip(signatures, table.works, strict=True)]
    return Prices(
        seconds=launch + body,
        bound=np.where(launch > body, LAUNCH, np.where(compute >= memory, COMPUTE, MEMORY)),
        share=share,
        supported=np.asarray([_supports(chip, signature) for signature in signatures], dtype=bool),
        engines=np.stack([matrix, vector, special, memory]),
    )


def efficiency(chip: Chip, signature: Signature, work: Work) -> float:
    """Speed of a kernel over what the model expects."""
    names = efficiency_names(signature, work)
    return next((chip.efficiency[name] for name in names if name in chip.efficiency), 1.0)


def efficiency_names(signature: Signature, work: Work) -> tuple[str, ...]:
    """Names under which a chip file may give a kernel's efficiency, the most special one first."""
    weight = signature.tensor("weight") if work.family == "convolution" else None
    pointwise = weight is not None and math.prod(weight.shape[2:]) == 1
    operator = () if signature.base in FAMILIES else (signature.base,)
    return (*(("convolution_1x1",) if pointwise else ()), *operator, work.family)


def _supports(chip: Chip, signature: Signature) -> bool:
    """True if the chip runs a launch; of a fused one, all that was fused."""
    launches = signature.inner or (signature,)
    return all(chip.supports(launch.op, launch.work.family, launch.dtype) for launch in launches)


def _matrix_seconds(table: WorkTable, chip: Chip, share: Array, constants: Constants) -> tuple[Array, Array]:
    """Seconds of each signature's products, and `share` with the signatures that have products set to theirs."""
    if not len(table.owner):
        return np.zeros(len(share)), share
    peaks = np.asarray([matrix_peak(chip, table.dtypes[i]) for i in table.owner])
    seconds, busy = class_of(chip).products(table, chip, peaks, constants)
    most = np.zeros_like(share)
    np.maximum.at(most, table.owner, busy)
    return table.by_signature(seconds), np.where(most > 0, most, share)


def _memory_seconds(
    table: WorkTable,
    signatures: Sequence[Signature],
    chip: Chip,
    share: Array,
    warm: Array | None,
    constants: Constants,
) -> Array:
    """Seconds that device memory works for each signature, with the cores that it reaches."""
    chip_class = class_of(chip)
    traffic = table.bytes + chip_class.again_bytes(table, chip)
    rate = _bandwidth(table, chip, chip_class.warm(table) if warm is None else warm, constants)
    memory: Array = traffic / (rate * np.minimum(1.0, share / constants.cores_for_bandwidth))
    if chip.memory.fresh_gb_s is not None:
        memory += np.asarray([_fresh_bytes(signature) for signature in signatures]) / (chip.memory.fresh_gb_s * 1e9)
    if len(table.owner):
        memory += _reread_seconds(table, chip, constants)
    memory += chip_class.pass_seconds(table, chip, constants)
    return memory


def _bandwidth(table: WorkTable, chip: Chip, warm: Array | None, constants: Constants) -> Array:
    """Bytes/s that each signature's kernel reaches with the chip full."""
    shares = class_of(chip).streams(constants) | chip.streams
    family_share = np.asarray([shares[name] for name in FAMILIES])[table.family]
    rate: Array = memory_rate(chip, constants) * table.streams * family_share
    if warm is None or chip.cache is None:
        return rate
    fits = table.bytes < chip.cache.mib * 2**20 * CACHE_KEPT
    return np.where(warm & fits, cache_rate(chip, constants) * table.streams * family_share, rate)


def _fresh_bytes(signature: Signature) -> int:
    """Bytes of results so large that the C library asks the operating system for them every time."""
    return sum(tensor.nbytes for tensor in signature.outputs if tensor is not None and tensor.nbytes > FRESH_BYTES)


def _reread_seconds(table: WorkTable, chip: Chip, constants: Constants) -> Array:
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
    again = np.where(table.product_is_family("attention"), 0.0, again)
    return table.by_signature(again / memory_rate(chip, constants))
