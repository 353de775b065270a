"""A new chip file, in which a comment explains each key."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from bringup.errors import BringupError, ChipFileError
from bringup.files import read_text, write_text
from bringup.machine.files import mistakes_of
from bringup.text import short

if TYPE_CHECKING:
    from pydantic import BaseModel

UNSOURCED = "assumed: name the document and page here"
HEAD = """\
# A chip file of bringup. docs/chip.md explains the keys at length.
# A key or table behind # is optional: remove the # and give a value. `bringup chips check` reports all mistakes.
"""
HEAD_OF_SOURCES = """
# The document and page of each number, by its dotted name or by that of its table.
# An invented chip needs none: write invented = true at the top, and remove this table."""
# What a specification may leave out.
DEFAULTS: dict[str, Any] = {
    "modes": ["eager", "graph"],
    "matrix": {"kind": "tile"},
    "ops": {"dtypes": ["float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]},
    "numerics": {"matmul_input": "as given", "accumulate": "float32"},
}
MEANINGS = {
    "vendor": "who makes it",
    "description": "one line, shown as the device's name",
    "invented": "true for a chip that does not exist: its numbers need no source",
    "kind": "gpu, tpu, ipu, npu or cpu: selects the chips whose error band is shown without measurements",
    "modes": "eager: the host can launch one operator at a time; graph: launches can be replayed as a graph",
    "compute.cores": "streaming multiprocessors, compute units, tiles, NeuronCores",
    "compute.clock_ghz": "their clock",
    "compute.concurrent_kernels": "kernels from different streams that run at once, if enough cores are free",
    "matrix.kind": "tile: each core has an engine; systolic: arrays of rows x columns",
    "matrix.rows": "rows of a systolic array",
    "matrix.columns": "columns of a systolic array",
    "matrix.arrays": "number of systolic arrays",
    "matrix.sustained": "best large product over peak, 0 to 1; without it, the median of published fractions",
    "matrix.tflops": "dense peak of products of the whole chip by dtype of the inputs, TFLOP/s; tf32 is a key, too",
    "vector.tflops": "peak of the vector units by dtype, TFLOP/s; float32 at least",
    "vector.special_tops": "special functions (exp, tanh), 10^12 per second",
    "scratchpad.kib_per_core": "memory of a core that software manages, KiB",
    "scratchpad.bandwidth_tb_s": "bandwidth of all of it together, TB/s",
    "cache.mib": "the last cache before device memory, MiB",
    "cache.bandwidth_tb_s": "its bandwidth, TB/s",
    "irregular.latency_ns": "an access that waits for the one before, ns",
    "irregular.sectors_tb_s": "rate of the last cache if one element of each sector is used, TB/s",
    "memory.device_gib": "capacity, GiB (2**30 bytes)",
    "memory.usable_gib": "the total that the chip's driver reports, GiB; without it, the capacity",
    "memory.context_mib": "the part of it that the driver's context and libraries take, MiB",
    "memory.blas_workspace_mib": "kept by torch for products, per host thread and stream (cuBLAS), MiB",
    "memory.blas_lt_workspace_mib": "kept beside it for products with a bias (cublasLt), MiB",
    "memory.bandwidth_gb_s": "bandwidth of the data sheet, GB/s",
    "memory.sustained": "the fraction of it that a streaming read reaches, 0 to 1",
    "memory.fresh_gb_s": "on a CPU, the first write to new memory, GB/s",
    "link.kind": "link to the host: pcie, usb, ethernet or shared (one memory)",
    "link.generation": "generation of PCIe",
    "link.lanes": "lanes of PCIe",
    "link.h2d_gb_s": "a large pinned copy from host to device, GB/s",
    "link.d2h_gb_s": "a large pinned copy from device to host, GB/s",
    "link.latency_us": "the fixed time of each copy, us",
    "interconnect.kind": "link to another chip, such as nvlink",
    "interconnect.gb_s": "one such link in one direction, GB/s",
    "launch.eager_us": "time from one queued kernel to the next, us",
    "launch.graph_us": "the same in a replayed graph, us",
    "launch.queue_depth": "launches that may be pending before the host waits",
    "launch.copy_engines": "1, or 2 for copies in both directions at once",
    "launch.attention_plan_ms": "host time for the library's plan of an attention of a new shape, ms",
    "library.attention_backward": "rate of the products in attention's backward pass, over peak",
    "library.flash": "rate of fused attention with its softmax in torch's own kernels, over peak",
    "library.softmax_overlap": "p of (products^p + softmax^p)^(1/p), the time of fused attention in 16 bits",
    "library.sustained": "by dtype: best large product over peak, where it differs from matrix.sustained",
    "library.unaligned": "by dtype: rate of products whose rows do not start at multiples of 16 bytes",
    "library.outer": "by dtype: rate of products whose k is the outer dimension of both factors",
    "library.convolution": "by dtype: rate of convolutions over that of equal products",
    "library.filter_gradient": "rate of the product for a filter's gradient over an equal product",
    "library.winograd": "speed of a 3 x 3 float32 convolution over its product; 1 without such kernels",
    "library.vector_tile": "operand traffic of products on the vector units",
    "library.vector_step": "cycles per element of k that a tile alone on its core waits there",
    "library.cluster": "by dtype: tiles of a product that load what they share once, in a cluster of cores",
    "library.channels_last": "by dtype: share of the bandwidth of conversions to channels last",
    "library.channels_first": "by dtype: share of the bandwidth of conversions to channels first",
    "library.depthwise": "rate of PyTorch's own depthwise kernels over the vector units' peak in float32",
    "library.depthwise_channels_last": "by dtype: rate of the library's depthwise kernels over the float32 peak",
    "efficiency": "measured speed over the model's, by operator (gelu) or family (softmax)",
    "streams": "share of the sustained bandwidth that a family's kernels reach",
    "ops.dtypes": "dtypes that the chip computes in; others fall back to the host",
    "ops.groups": "other dtypes for a family of operators: sort = [] leaves sorting to the host",
    "ops.host": 'operators that run on the host: "aten::topk", or with a dtype, "aten::topk int64"',
    "ops.tf32": "float32 products that follow torch's switch for TF32: matmul, convolution, rnn",
    "kernels.limits": "what a program's own kernel beyond a limit of the chip is: error, warning or off",
    "kernels.grid": "the largest grid of programs along x, y and z",
    "numerics.matmul_input": "what the matrix engine converts its inputs to; informational",
    "numerics.accumulate": "the format of its sums; informational",
    "power.idle_w": "idle power, W; without it, a tenth of the TDP",
    "power.tdp_w": "thermal design power, W",
    "price.usd": "price, USD; write its date into the source",
    "price.usd_per_hour": "price of an hour, USD; write its date into the source",
}


def read_specification(path: str) -> dict[str, Any]:
    """Read the values of a new chip from a JSON file, whose objects are the tables of a chip file.

    Raises:
        BringupError: the file cannot be read, or is not a JSON object.
    """
    try:
        specification = json.loads(read_text(path, "specification"))
    except (ValueError, RecursionError) as error:
        raise BringupError(f"{path}: is not valid JSON: {short(str(error), 200)}") from None
    if not isinstance(specification, dict):
        raise BringupError(f"{path}: must be a JSON object with the tables of a chip file")
    return specification


def write(path: Path, specification: dict[str, Any]) -> int:
    """Write a chip file, and return how many of its numbers are marked as assumed because they have no source.

    Args:
        path: the file, which must not exist.
        specification: tables and keys as in a chip file. What `DEFAULTS` has may be missing. ``source`` at the top is
            the source of the numbers that ``sources`` does not name.

    Raises:
        BringupError: the file exists, or cannot be written.
        ChipFileError: the specification is no chip; the message has all mistakes.
    """
    if os.path.lexists(path):
        raise BringupError(f"{path}: exists already; choose another name, or remove it first")
    from bringup.machine.schema import numbers  # imports pydantic

    data = {key: value for key, value in _without_nulls(specification).items() if key != "source"}
    for key, value in DEFAULTS.items():
        mine = data.get(key, {} if isinstance(value, dict) else value)
        data[key] = {**value, **mine} if isinstance(value, dict) and isinstance(mine, dict) else mine
    sources = data.pop("sources", {})
    if isinstance(sources, dict) and not data.get("invented"):
        rest = [key for key in numbers(data) if not any(f"{key}.".startswith(f"{name}.") for name in sources)]
        sources = {**sources, **dict.fromkeys(rest, specification.get("source", UNSOURCED))}
    if sources:
        data["sources"] = sources
    if "name" in data and data["name"] != path.stem:
        raise ChipFileError(
            f"{path.name}: a chip is named after its file: leave out name, or write {data['name']}.toml"
        )
    if mistakes := mistakes_of({"name": path.stem, **data}):
        raise ChipFileError(f"{path.name}: {'; '.join(mistake.text for mistake in mistakes)}")
    write_text(path, text_of(data))
    return sum(source == UNSOURCED for source in sources.values())


def _without_nulls(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out what JSON's null leaves open: TOML has no such value."""
    tables = {key: _without_nulls(value) if isinstance(value, dict) else value for key, value in data.items()}
    return {key: value for key, value in tables.items() if value is not None}


def text_of(data: dict[str, Any]) -> str:
    """Return the text of a chip file with these values, in which a comment explains each key."""
    from bringup.machine.schema import Chip  # imports pydantic

    lines = [HEAD.rstrip(), *_keys(Chip, data, ""), *_tables(Chip, data, "")]
    if sources := data.get("sources"):
        lines += [HEAD_OF_SOURCES, "[sources]", *(f"{json.dumps(key)} = {_value(sources[key])}" for key in sources)]
    return "\n".join(lines) + "\n"


def _keys(table: type[BaseModel], values: dict[str, Any] | None, name: str) -> Iterator[str]:
    """Yield the lines of a table's own keys; without values, behind #."""
    for key, field in table.model_fields.items():
        meaning = MEANINGS.get(f"{name}{key}")
        if meaning is None or _is_dict(field.annotation):
            continue
        number = isinstance(field.default, (int, float)) and not isinstance(field.default, bool)
        note = " (required)" if field.is_required() else f" (default: {field.default:g})" if number else ""
        yield f"# {key}: {meaning}{note}"
        yield f"# {key} =" if values is None or key not in values else f"{key} = {_value(values[key])}"


def _tables(table: type[BaseModel], values: dict[str, Any] | None, name: str) -> Iterator[str]:
    """Yield the lines of the tables within a table, in the schema's order."""
    for key, field in table.model_fields.items():
        if key == "sources":
            continue
        inner = next((item for item in (field.annotation, *get_args(field.annotation)) if _is_table(item)), None)
        mine = None if values is None else values.get(key)
        header = f"[{name}{key}]" if mine else f"# [{name}{key}]"
        if inner is not None:
            yield from ("", header, *_keys(inner, mine, f"{name}{key}."), *_tables(inner, mine, f"{name}{key}."))
        elif _is_dict(field.annotation):
            note = " (required)" if field.is_required() else ""
            yield from ("", f"# {MEANINGS[name + key]}{note}", header)
            yield from (f"{_name(item)} = {_value(value)}" for item, value in (mine or {}).items())


def _is_table(annotation: Any) -> bool:
    return hasattr(annotation, "model_fields")


def _is_dict(annotation: Any) -> bool:
    return get_origin(annotation) is dict


def _name(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
