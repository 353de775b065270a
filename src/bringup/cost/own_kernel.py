"""A program's own Triton kernels, priced from the counters of their execution."""

from __future__ import annotations

import math

from bringup.cost.rules import ITEMS_PER_CORE, OPMATH, Gemm, Work, rule
from bringup.cost.signature import Signature

ELEMENTS = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "i8": "int8"}
ELEMENTS |= {"f8E5M2": "float8_e5m2", "f8E4M3FN": "float8_e4m3fn"}

RESIDENT = 32  # programs in flight on a core: thread blocks per multiprocessor (CUDA C++ Programming Guide, table 27)


@rule("kernel", "triton")
def kernel(signature: Signature) -> Work:
    """Price products on the matrix engine, other arithmetic on the vector units, and repeated reads from the cache.

    A loop of products of one shape counts as one product with the same flops. A launch that the driver did not execute
    has no counters, and costs one read and one write of its tensors.
    """
    counters = signature.args.get("counters")
    programs = math.prod(signature.args.get("grid", [1]))
    if not isinstance(counters, dict):
        return Work(
            family="kernel",
            dtype=signature.dtype,
            read_bytes=signature.read_bytes,
            written_bytes=signature.written_bytes,
            items=programs,
        )
    gemms = []
    dtype = signature.dtype
    for m, n, k, element, count in counters["products"]:
        per_program = max(count // max(programs, 1), 1)
        gemms.append(Gemm(max(count // per_program, 1), m, n, k * per_program))
        dtype = ELEMENTS.get(element, dtype)
    return Work(
        family="kernel",
        dtype=dtype if gemms else OPMATH.get(dtype, dtype),
        gemms=tuple(gemms),
        vector_flops=counters["vector"],
        special=counters["special"],
        read_bytes=counters["read_once"],
        written_bytes=counters["written_once"],
        again_bytes=counters["loaded"] - counters["read_once"] if not gemms else 0,
        # One core runs up to RESIDENT programs at a time. If their tiles are small, they do not hide memory latency.
        items=max(min(max(counters["stored"], counters["loaded"]) // 4, programs * ITEMS_PER_CORE), 1),
        streams=min(1.0, counters["tile"] * RESIDENT / ITEMS_PER_CORE),
    )
